//! Shims, and what starts them, that a killed shimd knew nothing of yet.
//!
//! A shim's program that was just being run when shimd was killed goes on, and leaves a shim behind that nobody has the
//! address of. Such processes are found by their working directory, the bundle, or by the id and the address on their
//! command line, and killed through pidfds, so that no pid can meanwhile have become another's.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Passes over all processes: one that is killed may just have made another.
const PASSES: usize = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// Kills every process that belongs to the bundle of `id` at `bundle` and was started for shimd's socket `address`.
/// The container's own processes are not meant, and are elsewhere.
pub(super) async fn kill(bundle: &Path, id: &str, address: &Path) {
    for _ in 0..PASSES {
        let killed = pids().filter(|pid| is_stray(*pid, bundle, id, address)).filter(|pid| kill_one(*pid)).count();
        if killed == 0 {
            return;
        }
        tracing::info!(id, killed, "processes of a shim that nobody knew of were killed");
        tokio::time::sleep(PAUSE).await;
    }
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn is_stray(pid: i32, bundle: &Path, id: &str, address: &Path) -> bool {
    if std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|directory| directory == bundle) {
        return true;
    }
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let has = |flag: &[u8], value: &[u8]| words.windows(2).any(|pair| pair == [flag, value]);
    has(b"-id", id.as_bytes()) && has(b"-address", address.as_os_str().as_bytes())
}

fn kill_one(pid: i32) -> bool {
    let handle = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    handle.is_some_and(|handle| pidfd_send_signal(handle, Signal::KILL).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_processes_of_the_bundle_are_killed() {
        let directory = tempfile::tempdir().unwrap();
        let start = |directory: &Path, arguments: &[&str]| {
            std::process::Command::new("sh")
                .args(["-c", "sleep 100; exit 0", "x"])
                .args(arguments)
                .current_dir(directory)
                .spawn()
                .unwrap()
        };
        let bundle = directory.path().join("c");
        std::fs::create_dir(&bundle).unwrap();
        let mut inside = start(&bundle, &[]);
        let mut named = start(directory.path(), &["-id", "c", "-address", "/s"]);
        let mut other = start(directory.path(), &["-id", "cc", "-address", "/s"]);
        kill(&bundle, "c", Path::new("/s")).await;
        assert!(!inside.wait().unwrap().success());
        assert!(!named.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
        kill(directory.path(), "cc", Path::new("/s")).await;
        other.wait().unwrap();
    }
}
