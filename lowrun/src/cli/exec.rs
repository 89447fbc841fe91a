//! `lowrun exec`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::Global;
use super::args::{Command, Typed, option, switch};
use super::create::{console_socket, end, extra_fds, protect, terminal_pair};
use crate::create::exec::{ExecRequest, exec as start_process};
use crate::create::terminal::Terminal;
use crate::create::{self, socket, wait};
use crate::fault::{Attempt, Code, Fault, Result};
use crate::plan::process::ProcessPlan;
use crate::spec;
use crate::state::{self, Container, Dir, Status};
use crate::sys::Call;

/// How long the making of a container is waited for.
const MAKING_PATIENCE: Duration = Duration::from_millis(100);

pub(super) const EXEC: Command = Command {
    name: "exec",
    about: "run another program in a running container",
    description: "The program runs in all namespaces and the cgroup of the container. What no flag says is as in the container's own\n\
                  process; flags after the container's id belong to the program. The exit status is the program's, 255 if it could not\n\
                  be started.",
    arguments: "CONTAINER COMMAND [ARGUMENT...] | --process FILE CONTAINER",
    flags: &[
        option("console-socket", None, "SOCKET", "send the terminal's master through this unix socket"),
        option("pidfd-socket", None, "SOCKET", "send a pidfd of the process through this unix socket"),
        option("cwd", None, "DIR", "working directory in the container"),
        option("env", Some('e'), "NAME=VALUE", "set an environment variable"),
        switch("tty", Some('t'), "make a terminal"),
        option("user", Some('u'), "UID[:GID]", "user and group, by number"),
        option("additional-gids", Some('g'), "GID", "another group, by number"),
        option("process", Some('p'), "FILE", "read what to run from a process.json"),
        switch("detach", Some('d'), "do not wait"),
        option("pid-file", None, "FILE", "write the process's pid to FILE"),
        option("process-label", None, "LABEL", "SELinux label of the process"),
        option("apparmor", None, "PROFILE", "AppArmor profile of the process"),
        switch("no-new-privs", None, "set no_new_privs"),
        option("cap", Some('c'), "CAPABILITY", "one more capability"),
        option("preserve-fds", None, "N", "hand N more descriptors, from 3 on, to the process"),
        option("cgroup", None, "[CONTROLLER:]PATH", "run in this cgroup below the container's"),
        switch("ignore-paused", None, "also in a paused container, where it waits"),
    ],
    count: (1, usize::MAX),
    flags_end_after: 1,
};

pub(super) fn exec(global: &Global, typed: &Typed) -> Result<i32> {
    let program = protect(global)?;
    let container = load(global, typed.word(0)?)?;
    check_status(&container, typed)?;
    let process = process(&container, typed)?;
    let plan = ProcessPlan::parse(&process)?;
    for warning in &plan.warnings {
        global.log.warn(warning);
    }
    let detached = typed.is_on("detach");
    let console = console_socket(typed, plan.terminal, detached)?;
    let signals = if detached { None } else { Some(create::block_signals()?) };
    let (ours, theirs) = if plan.terminal && !detached {
        terminal_pair().map(|(ours, theirs)| (Some(ours), Some(theirs)))?
    } else {
        (None, console)
    };
    let pidfd_socket = typed.value("pidfd-socket").filter(|path| !path.is_empty());
    let (pid, pidfd) = start_process(ExecRequest {
        container: &container,
        process: &plan,
        log: &global.log,
        program,
        console: theirs,
        pidfd_socket: pidfd_socket.map(|path| socket::connect(Path::new(path))).transpose()?,
        extra_fds: extra_fds(typed, 0)?,
        cgroups: &typed.all("cgroup")?,
    })?;
    // A program of which the caller learns nothing must not stay.
    let mut relay = attend(typed, pid, ours.as_ref()).inspect_err(|_| end(pidfd.as_fd()))?;
    let Some(signals) = signals else { return Ok(0) };
    wait::foreground(pidfd.as_fd(), &signals, relay.as_mut(), || ()).inspect_err(|_| end(pidfd.as_fd()))
}

/// Writes the pid file, and takes the terminal.
fn attend(typed: &Typed, pid: Pid, terminal: Option<&OwnedFd>) -> Result<Option<Terminal>> {
    if let Some(path) = typed.value("pid-file").filter(|path| !path.is_empty()) {
        state::write_pid_file(Path::new(path), pid.as_raw_nonzero().get())?;
    }
    terminal.map(Terminal::receive).transpose()
}

/// The container, once it is made: before that its namespaces may still show the host. Who makes it is waited for a
/// moment; the cause is then what runc tells of a container that is not running.
fn load(global: &Global, id: &str) -> Result<Container> {
    let dir = Dir::find(&global.root, id)?;
    let begun = Instant::now();
    loop {
        if let Some(state) = dir.read_settled(id)? {
            return Ok(Container { dir, state });
        }
        if begun.elapsed() > MAKING_PATIENCE {
            return Err(Fault::new(Code::ContainerNotRunning, format!("exec in container {id}"))
                .cause("cannot exec in a stopped container")
                .cause("it is still being made, or removed"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn check_status(container: &Container, typed: &Typed) -> Result<()> {
    let refuse = |cause: &str| {
        let message = format!("exec in container {}", container.state.id);
        Err(Fault::new(Code::ContainerNotRunning, message).cause(cause))
    };
    match container.status() {
        Status::Stopped | Status::Creating => refuse("cannot exec in a stopped container"),
        Status::Paused if !typed.is_on("ignore-paused") => {
            refuse("cannot exec in a paused container (use --ignore-paused to override)")
        }
        _ => Ok(()),
    }
}

/// What to run: a process.json as it is, or the container's own process with what the flags change.
fn process(container: &Container, typed: &Typed) -> Result<Box<spec::Process>> {
    if let Some(path) = typed.value("process").filter(|path| !path.is_empty()) {
        let text =
            std::fs::read(path).call("open").attempt(Code::InvalidArgument, || format!("read {}", path.display()))?;
        return crate::spec::any_case::from_slice(&text).map_err(|error| {
            Fault::new(Code::SpecInvalid, format!("read {}", path.display())).cause(error.to_string())
        });
    }
    let mut process = container.state.process.clone();
    let words: Result<Vec<String>> = (1..typed.words.len()).map(|index| typed.word(index).map(str::to_owned)).collect();
    process.args = words?;
    if process.args.is_empty() {
        return Err(Fault::new(Code::InvalidArgument, "exec args cannot be empty"));
    }
    // The container's terminal is not the exec's, nor its size.
    process.terminal = typed.is_on("tty");
    process.console_size = None;
    process.env.extend(typed.all("env")?);
    let take = |field: &mut String, flag: &str| -> Result<()> {
        if let Some(value) = typed.text(flag)?.filter(|value| !value.is_empty()) {
            value.clone_into(field);
        }
        Ok(())
    };
    take(&mut process.cwd, "cwd")?;
    take(&mut process.apparmor_profile, "apparmor")?;
    take(&mut process.selinux_label, "process-label")?;
    if typed.value("no-new-privs").is_some() {
        process.no_new_privileges = typed.is_on("no-new-privs");
    }
    add_capabilities(&mut process, &typed.all("cap")?);
    set_user(&mut process.user, typed)?;
    Ok(process)
}

/// As runc: not inheritable, and ambient only where the container's process has inheritable ones.
fn add_capabilities(process: &mut spec::Process, names: &[String]) {
    if names.is_empty() {
        return;
    }
    let sets = process.capabilities.get_or_insert_default();
    sets.bounding.extend_from_slice(names);
    sets.effective.extend_from_slice(names);
    sets.permitted.extend_from_slice(names);
    if sets.inheritable.is_some() {
        sets.ambient.extend_from_slice(names);
    }
}

fn set_user(user: &mut spec::User, typed: &Typed) -> Result<()> {
    if let Some(text) = typed.text("user")?.filter(|text| !text.is_empty()) {
        let (uid, gid) = parse_user(text)?;
        user.uid = uid;
        user.gid = gid.unwrap_or(user.gid);
    }
    for text in typed.all("additional-gids")? {
        let parts = text.split(',').map(parse_gid);
        user.additional_gids.extend(parts.collect::<Result<Vec<u32>>>()?);
    }
    Ok(())
}

/// `UID[:GID]`, decimal numbers and nothing else: what is not a number must never end up as 0.
pub fn parse_user(text: &str) -> Result<(u32, Option<u32>)> {
    match text.split_once(':') {
        Some((uid, gid)) => Ok((parse_id(uid, "uid")?, Some(parse_id(gid, "gid")?))),
        None => Ok((parse_id(text, "uid")?, None)),
    }
}

/// As runc: a word that is no number at all is a fault of the flag, with the status of such.
fn parse_gid(text: &str) -> Result<u32> {
    const FLAG: &str = "additional-gids";
    text.parse::<i64>().map_err(|_| {
        Fault::new(Code::InvalidArgument, format!("invalid value {text:?} for flag --{FLAG}")).at("validate")
    })?;
    parse_id(text, FLAG)
}

fn parse_id(text: &str, what: &str) -> Result<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let id = digits.then(|| text.parse::<u32>().ok()).flatten().filter(|id| *id != u32::MAX);
    id.ok_or_else(|| Fault::new(Code::UserInvalid, format!("bad {what}: {text:?}")).cause("is not a number of an id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_exactly_one_or_two_numbers() {
        assert_eq!(parse_user("1").unwrap(), (1, None));
        assert_eq!(parse_user("1000:100").unwrap(), (1000, Some(100)));
        assert_eq!(parse_user("4294967294").unwrap(), (4_294_967_294, None));
        for text in ["", "1:", ":1", "0x1", " 1", "+1", "-1", "4294967295", "4294967296", "root", "1:2:3", "1 "] {
            assert_eq!(parse_user(text).unwrap_err().code, Code::UserInvalid, "{text:?}");
        }
    }
}
