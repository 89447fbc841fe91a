//! A runtime under measurement: its commands, timed.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::measure::{Cost, ms, timed};

/// A runtime with a root of its own.
pub(super) struct Subject {
    name: String,
    program: PathBuf,
    root: PathBuf,
    turn: Cell<u32>,
}

/// Milliseconds of one container's life, command by command.
#[derive(Clone, Copy)]
pub(super) struct Stages {
    pub(super) create: f64,
    pub(super) start: f64,
    pub(super) delete: f64,
}

impl Subject {
    pub(super) fn new(program: &Path, work: &Path, name: &str) -> Subject {
        let program = std::path::absolute(program).expect("a path");
        Subject { name: name.to_owned(), program, root: work.join(super::RUN).join(name), turn: Cell::new(0) }
    }

    /// A subcommand; its words follow.
    pub(super) fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).arg(subcommand);
        command
    }

    /// A name that no other container has, nor a cgroup.
    pub(super) fn fresh_id(&self) -> String {
        self.turn.set(self.turn.get() + 1);
        format!("bench-{}-{}-{}", self.name, std::process::id(), self.turn.get())
    }

    /// `run`, in the foreground, to its end.
    pub(super) fn run(&self, bundle: &Path) -> Cost {
        timed(self.command("run").arg("--bundle").arg(bundle).arg(self.fresh_id()))
    }

    /// `create`, `start` and `delete` of a container whose program ends at once.
    pub(super) fn stages(&self, bundle: &Path) -> Stages {
        let id = self.fresh_id();
        let create = timed(self.command("create").arg("--bundle").arg(bundle).arg(&id));
        let start = timed(self.command("start").arg(&id));
        wait_for_orphan();
        let delete = timed(self.command("delete").arg(&id));
        Stages { create: ms(create.wall), start: ms(start.wall), delete: ms(delete.wall) }
    }

    /// Leaves a container running and returns its name.
    pub(super) fn leave_running(&self, bundle: &Path) -> String {
        let id = self.fresh_id();
        timed(self.command("run").arg("--detach").arg("--bundle").arg(bundle).arg(&id));
        id
    }

    /// `exec` of `true` in a running container.
    pub(super) fn exec(&self, id: &str) -> Cost {
        timed(self.command("exec").arg(id).arg("/bin/true"))
    }

    /// Kills and removes a container that was left running.
    pub(super) fn remove(&self, id: &str) {
        timed(self.command("kill").arg(id).arg("KILL"));
        wait_for_orphan();
        timed(self.command("delete").arg("--force").arg(id));
    }

    /// KiB that a `run` holds at most, by way of the small program `launch`.
    pub(super) fn peak_kib(&self, launch: &Path, bundle: &Path) -> f64 {
        let run = self.command("run");
        let script = r#"launch=$1; shift; exec 9>&1 >/dev/null; exec "$launch" "$@""#;
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(script).arg("sh").arg(launch).arg(run.get_program()).args(run.get_args());
        command.arg("--bundle").arg(bundle).arg(self.fresh_id()).stdin(Stdio::null());
        let output = command.output().expect("run the launcher");
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().parse().expect("KiB")
    }
}

/// Waits for a container's process: what a runtime leaves behind becomes this process's child.
fn wait_for_orphan() {
    let ended = waitpid(None, None).expect("the container's process is a child");
    assert!(matches!(ended, WaitStatus::Exited(..) | WaitStatus::Signaled(..)), "{ended:?}");
    while let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {}
}
