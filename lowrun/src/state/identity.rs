//! Who a process is: pids are used again, so the pid alone is never trusted.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::sys::pidfd::{self, Stat};
use crate::sys::{self, Call};

/// A process, told by its pid, the moment it began and the boot of the machine.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    pub pid: i32,
    /// Clock ticks since boot, field 22 of `/proc/PID/stat`.
    pub start_time: u64,
    pub boot_id: String,
}

impl Identity {
    /// The identity of a process that cannot be reaped meanwhile: a child.
    pub fn of(pid: Pid) -> sys::Result<Identity> {
        let stat = Stat::of(pid.as_raw_nonzero().get())?;
        Ok(Identity { pid: pid.as_raw_nonzero().get(), start_time: stat.start_time, boot_id: boot_id()? })
    }

    /// Whether the process lives; a zombie does not.
    pub fn is_alive(&self) -> bool {
        let same = |stat: Stat| stat.start_time == self.start_time && stat.lives();
        Stat::of(self.pid).is_ok_and(same) && boot_id().is_ok_and(|boot| boot == self.boot_id)
    }

    /// A handle on the live process: what is done with the handle meets this process and no later one.
    pub fn open(&self) -> Option<OwnedFd> {
        let pidfd = pidfd::open(Pid::from_raw(self.pid)?).ok()?;
        // Looked at after the handle is open: had the pid been taken over before, the start time would tell.
        self.is_alive().then_some(pidfd)
    }
}

/// A namespace, told by the file that stands for it: its path may lead to another one later.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct NamespaceIdentity {
    pub device: u64,
    pub inode: u64,
}

impl NamespaceIdentity {
    /// The identity of a namespace that is kept by an open file.
    pub fn of(file: BorrowedFd<'_>) -> sys::Result<NamespaceIdentity> {
        let stat = rustix::fs::fstat(file).call("fstat")?;
        Ok(NamespaceIdentity { device: stat.st_dev, inode: stat.st_ino })
    }
}

/// The kernel makes it at boot: read once.
fn boot_id() -> sys::Result<String> {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    if let Some(id) = BOOT_ID.get() {
        return Ok(id.clone());
    }
    let text = sys::read_kernel_file("/proc/sys/kernel/random/boot_id")?;
    let id = String::from_utf8_lossy(&text).trim().to_owned();
    Ok(BOOT_ID.get_or_init(|| id).clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_another_start_time_does_not() {
        let me = Identity::of(rustix::process::getpid()).unwrap();
        assert!(me.is_alive());
        assert!(me.open().is_some());
        let other = Identity { start_time: me.start_time + 1, ..me.clone() };
        assert!(!other.is_alive());
        let rebooted = Identity { boot_id: "other".to_owned(), ..me };
        assert!(!rebooted.is_alive());
    }
}
