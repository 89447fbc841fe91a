//! strace, as the one who kills at an exact system call.

use std::process::{Child, Command, Stdio};

use integration::wait;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::NamedTempFile;

/// What strace writes of a process that met its point.
const KILLED: &str = "+++ killed by SIGKILL +++";

/// strace, attached to all threads of a process.
pub(crate) struct Strace {
    child: Child,
    log: NamedTempFile,
}

impl Strace {
    /// Kills whichever comes first to its n-th call of a kind: the process, by any of its threads, or one that it starts.
    pub(crate) fn attach(pid: i32, call: &str, count: u32) -> Strace {
        Strace::start(pid, call, count, &["-f"])
    }

    /// The same for the process alone.
    pub(crate) fn attach_alone(pid: i32, call: &str, count: u32) -> Strace {
        Strace::start(pid, call, count, &[])
    }

    fn start(pid: i32, call: &str, count: u32, more: &[&str]) -> Strace {
        let log = NamedTempFile::new().expect("a file for strace");
        let mut command = Command::new("strace");
        command.args(more).args(["-q", "-e", &format!("trace={call}")]).arg("-o").arg(log.path());
        command.args(["-e", &format!("inject={call}:signal=SIGKILL:when={count}")]);
        command.args(["-p", &pid.to_string()]);
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run strace");
        wait::until_true("strace is attached to every thread", || {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process's threads");
            tasks.flatten().all(|task| {
                let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
                !status.contains("TracerPid:\t0\n")
            })
        });
        Strace { child, log }
    }

    /// Whether somebody was killed by now.
    pub(crate) fn has_killed(&self) -> bool {
        std::fs::read_to_string(self.log.path()).is_ok_and(|text| text.contains(KILLED))
    }

    /// With SIGKILL: at SIGTERM strace detaches from each thread in turn, and may wait for ever for one that is just being
    /// killed. The kernel lets all go at once.
    pub(crate) fn end(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}
