//! Shims, and what starts them, that a killed shimd knew nothing of yet.
//!
//! A shim's program that was just being run when shimd was killed goes on, and leaves a shim behind that nobody has the
//! address of. Such processes are found by their working directory, the bundle, or by the id and the address on their
//! command line, and killed through pidfds that are opened before they are looked at, so that no pid can meanwhile have
//! become another's.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::launch::Subject;

/// Passes over all processes: one that is killed may just have made another.
const PASSES: usize = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// Whose processes are meant. The container's own are not, and are elsewhere.
pub(super) struct Strays<'a> {
    pub(super) subject: Subject<'a>,
    /// shimd's socket, for which they were started.
    pub(super) address: &'a Path,
    /// The shim has other containers, too, and is not meant; what it runs for this one is.
    pub(super) spares_shim: bool,
}

impl Strays<'_> {
    /// Kills them all.
    pub(super) async fn kill(&self) {
        for _ in 0..PASSES {
            let killed = pids().filter(|pid| self.kill_one(*pid)).count();
            if killed == 0 {
                return;
            }
            tracing::info!(id = self.subject.id, killed, "processes of a shim that nobody knew of were killed");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Whether the process was one of them, and is killed.
    fn kill_one(&self, pid: i32) -> bool {
        // Looked at once, for nearly all are others', and once more while no other process can have the pid.
        let handle = self.has(pid).then(|| open(pid)).flatten().filter(|_| self.has(pid));
        handle.is_some_and(|handle| pidfd_send_signal(handle, Signal::KILL).is_ok())
    }

    fn has(&self, pid: i32) -> bool {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let says = |flag: &[u8], value: &[u8]| words.windows(2).any(|pair| pair == [flag, value]);
        let is_ours = says(b"-namespace", self.subject.namespace.as_str().as_bytes())
            && says(b"-address", self.address.as_os_str().as_bytes());
        if is_ours && self.spares_shim {
            return false;
        }
        (is_ours && says(b"-id", self.subject.id.as_bytes())) || works_in(pid, self.subject.bundle)
    }
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn works_in(pid: i32, bundle: &Path) -> bool {
    std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|directory| directory == bundle)
}

fn open(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::name::Namespace;

    /// A process without children, which lives until it is killed or waited for. A shim has two
    /// words: its namespace and its id.
    fn start(directory: &Path, address: &str, words: &[&str]) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", "read line; exit 0", "x"]);
        if let [namespace, id] = words {
            command.args(["-namespace", namespace, "-address", address, "-id", id]);
        }
        let child = command.current_dir(directory).stdin(Stdio::piped()).spawn().unwrap();
        // It is the shell only when its words say so.
        while !std::fs::read(format!("/proc/{}/cmdline", child.id())).unwrap().starts_with(b"sh\0") {
            std::thread::yield_now();
        }
        child
    }

    async fn kill(bundle: &Path, address: &str, id: &str, spares_shim: bool) {
        let namespace = Namespace::parse("n").unwrap();
        let subject = Subject { program: Path::new("/shim"), namespace: &namespace, id, bundle };
        Strays { subject, address: Path::new(address), spares_shim }.kill().await;
    }

    // Each test has an address of its own: those of other tests run beside it.
    #[tokio::test]
    async fn only_processes_of_the_bundle_are_killed() {
        let directory = tempfile::tempdir().unwrap();
        let bundle = directory.path().join("c");
        std::fs::create_dir(&bundle).unwrap();
        let mut inside = start(&bundle, "/one", &[]);
        let mut named = start(directory.path(), "/one", &["n", "c"]);
        let mut other = start(directory.path(), "/one", &["n", "cc"]);
        let mut elsewhere = start(directory.path(), "/one", &["m", "c"]);
        kill(&bundle, "/one", "c", false).await;
        assert!(!inside.wait().unwrap().success());
        assert!(!named.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
        assert!(elsewhere.try_wait().unwrap().is_none(), "it is of another namespace");
        kill(directory.path(), "/one", "cc", false).await;
        other.wait().unwrap();
        elsewhere.wait().unwrap();
    }

    #[tokio::test]
    async fn a_shim_with_other_containers_is_spared() {
        let directory = tempfile::tempdir().unwrap();
        let mut shim = start(directory.path(), "/two", &["n", "c"]);
        let mut runtime = start(directory.path(), "/two", &[]);
        kill(directory.path(), "/two", "c", true).await;
        assert!(!runtime.wait().unwrap().success());
        assert!(shim.try_wait().unwrap().is_none());
        kill(directory.path(), "/two", "c", false).await;
        assert!(!shim.wait().unwrap().success());
    }
}
