//! `lowrun ps` and `lowrun events`.

use std::process::Stdio;
use std::time::Duration;

use serde_json::json;

use super::args::{Command, Typed, option, switch};
use super::{Global, print};
use crate::cgroup::stats;
use crate::fault::{Attempt, Code, Fault, Result};
use crate::state::{Container, Status};
use crate::sys::Call;

pub(super) const PS: Command = Command {
    name: "ps",
    about: "list the processes of a container",
    arguments: "CONTAINER [PS-OPTION...]",
    flags: &[option("format", Some('f'), "FORMAT", "table (default) or json")],
    count: (1, usize::MAX),
    flags_end_after: 1,
};

pub(super) const EVENTS: Command = Command {
    name: "events",
    about: "print what a container uses",
    arguments: "CONTAINER",
    flags: &[
        option("interval", None, "DURATION", "time between two lines (default: 5s)"),
        switch("stats", None, "print one line and end"),
    ],
    count: (1, 1),
    flags_end_after: usize::MAX,
};

pub(super) fn ps(global: &Global, typed: &Typed) -> Result<i32> {
    let container = Container::load(&global.root, typed.word(0)?)?;
    let pids = container.state.cgroup.processes()?;
    match typed.text("format")?.unwrap_or("table") {
        "json" => print(&format!("{}\n", json!(pids))).map(|()| 0),
        "table" => table(&pids, typed).map(|()| 0),
        _ => Err(Fault::new(Code::InvalidArgument, "invalid format option")),
    }
}

/// What ps(1) of the host says of these processes.
fn table(pids: &[i32], typed: &Typed) -> Result<()> {
    let words = &typed.words[1..];
    let mut command = std::process::Command::new("ps");
    if words.is_empty() {
        command.arg("-ef")
    } else {
        command.args(words)
    };
    let output = command.stderr(Stdio::inherit()).output().call("execve").attempt(Code::SystemError, || "run ps")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    let column = head.split_whitespace().position(|title| title == "PID");
    let column = column.ok_or_else(|| Fault::new(Code::SystemError, "couldn't find PID field in ps output"))?;
    let is_ours = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|field| field.parse().ok());
        pid.is_some_and(|pid: i32| pids.contains(&pid))
    };
    let shown: String = std::iter::once(head).chain(lines.filter(is_ours)).map(|line| format!("{line}\n")).collect();
    print(&shown)
}

pub(super) fn events(global: &Global, typed: &Typed) -> Result<i32> {
    let container = Container::load(&global.root, typed.word(0)?)?;
    if container.status() == Status::Stopped {
        return Err(Fault::new(Code::ContainerNotRunning, format!("container {} is not running", container.state.id)));
    }
    let interval = match typed.text("interval")? {
        None => Duration::from_secs(5),
        Some(text) => parse_duration(text).ok_or_else(|| {
            Fault::new(Code::InvalidArgument, "duration interval must be greater than 0").cause(format!("{text:?}"))
        })?,
    };
    loop {
        let line = json!({ "type": "stats", "id": container.state.id, "data": stats::usage(&container.state.cgroup) });
        print(&format!("{line}\n"))?;
        if typed.is_on("stats") {
            return Ok(0);
        }
        std::thread::sleep(interval);
        if container.status() == Status::Stopped {
            return Ok(0);
        }
    }
}

/// `5s`, `1m30s`, `500ms`, as Go writes durations.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit_end = rest[end..].find(|letter: char| letter.is_ascii_digit()).map_or(rest.len(), |at| end + at);
        let unit = match &rest[end..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number * unit;
        rest = &rest[unit_end..];
    }
    (seconds > 0.0).then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        assert_eq!(parse_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        for text in ["", "5", "0s", "x", "5 s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
