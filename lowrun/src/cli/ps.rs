//! `lowrun ps`.

use std::process::Stdio;

use serde_json::json;

use super::args::{Command, Typed, option};
use super::{Global, print};
use crate::fault::{Attempt, Code, Fault, Result};
use crate::state::Container;
use crate::sys::Call;

pub(super) const PS: Command = Command {
    name: "ps",
    about: "list the processes of a container",
    description: "Runs ps(1) of the host with the options given (-ef, if none) and shows the lines of the container's processes.",
    arguments: "CONTAINER [PS-OPTION...]",
    flags: &[option("format", Some('f'), "FORMAT", "table (default) or json")],
    count: (1, usize::MAX),
    flags_end_after: 1,
};

pub(super) fn ps(global: &Global, typed: &Typed) -> Result<i32> {
    let container = Container::load(&global.root, typed.word(0)?)?;
    let pids = container.state.cgroup.own().processes()?;
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
    if !output.status.success() {
        return Err(Fault::new(Code::InvalidArgument, "run ps").cause(output.status.to_string()));
    }
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
