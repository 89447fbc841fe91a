//! `lowrun kill`.

use std::os::fd::AsFd;

use super::Global;
use super::args::{Command, Typed, switch};
use crate::fault::{Code, Fault, Result};
use crate::plan::namespaces::Kind;
use crate::state::Container;
use crate::sys;

pub(super) const KILL: Command = Command {
    name: "kill",
    about: "send a signal (SIGTERM, if none is named) to the container's first process",
    description: "SIGNAL is a number or a name, with or without SIG: 9, KILL, SIGTERM, RTMIN+3.",
    arguments: "CONTAINER [SIGNAL]",
    flags: &[switch("all", Some('a'), "no error if the container has ended")],
    count: (1, 2),
    flags_end_after: usize::MAX,
};

/// Names by number, as on x86-64 and arm64.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

pub(super) fn kill(global: &Global, typed: &Typed) -> Result<i32> {
    let container = Container::load(&global.root, typed.word(0)?)?;
    let word = typed.word(1)?;
    let signal = parse_signal(if word.is_empty() { "SIGTERM" } else { word })?;
    match send(&container, signal) {
        Err(fault) if typed.is_on("all") && fault.code == Code::ContainerNotRunning => Ok(0),
        result => result.map(|()| 0),
    }
}

fn send(container: &Container, signal: i32) -> Result<()> {
    // Without a pid namespace of its own the first process's death leaves the others: all are killed.
    if signal == libc::SIGKILL && !container.state.namespaces.is_new(Kind::Pid) && container.state.cgroup.exists() {
        return container.state.cgroup.own().kill();
    }
    let init = container.running_init()?;
    let pidfd = init.open().ok_or_else(|| container.not_running())?;
    // As long as it lives, what is there under the container's name is the container's.
    let ways = (signal == libc::SIGKILL).then(|| container.state.cgroup.ways_to(init.pid)).filter(|_| init.is_alive());
    sys::pidfd::send(pidfd.as_fd(), signal).map_err(|failure| match failure.errno {
        rustix::io::Errno::SRCH => container.not_running(),
        _ => Fault::of(Code::SystemError, format!("send signal {signal} to container {}", container.state.id), failure),
    })?;
    if let Some(ways) = ways {
        ways.let_die();
    }
    Ok(())
}

/// A number, or a name with or without SIG in any case, or RTMIN+n.
fn parse_signal(word: &str) -> Result<i32> {
    let unknown = || Fault::new(Code::InvalidArgument, format!("unknown signal {word:?}"));
    if let Ok(number) = word.parse::<i32>() {
        return if (0..=64).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = word.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let realtime =
        name.strip_prefix("RTMIN").map(|rest| (34, rest)).or(name.strip_prefix("RTMAX").map(|rest| (64, rest)));
    if let Some((base, rest)) = realtime {
        let offset: i32 = if rest.is_empty() { 0 } else { rest.parse().map_err(|_| unknown())? };
        return Some(base + offset).filter(|number| (34..=64).contains(number)).ok_or_else(unknown);
    }
    match name {
        "IOT" => Ok(libc::SIGABRT),
        "CLD" => Ok(libc::SIGCHLD),
        "POLL" => Ok(libc::SIGIO),
        _ => SIGNALS.iter().position(|known| *known == name).map(|at| at as i32 + 1).ok_or_else(unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (word, number) in
            [("9", 9), ("KILL", 9), ("sigterm", 15), ("SIGUSR1", 10), ("SYS", 31), ("RTMIN+3", 37), ("0", 0)]
        {
            assert_eq!(parse_signal(word).unwrap(), number, "{word}");
        }
        for word in ["", "MOON", "65", "-1", "RTMIN+99"] {
            assert!(parse_signal(word).is_err(), "{word}");
        }
    }
}
