//! Who a process is: pids are used again, so the pid alone is never trusted.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use crate::sys;

/// A process, told by its pid, the moment it began and the boot of the machine.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    pub pid: i32,
    /// Clock ticks since boot, field 22 of `/proc/PID/stat`.
    pub start_time: u64,
    pub boot_id: String,
}

/// What `/proc/PID/stat` says.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// `R`, `S`, `Z`, …
    state: char,
    start_time: u64,
}

impl Identity {
    /// The identity of a process that cannot be reaped meanwhile: a child.
    pub fn of(pid: Pid) -> sys::Result<Identity> {
        let stat = stat(pid.as_raw_nonzero().get())?;
        Ok(Identity { pid: pid.as_raw_nonzero().get(), start_time: stat.start_time, boot_id: boot_id()? })
    }

    /// Whether the process lives; a zombie does not.
    pub fn is_alive(&self) -> bool {
        let same = |stat: Stat| stat.start_time == self.start_time && !matches!(stat.state, 'Z' | 'X');
        stat(self.pid).is_ok_and(same) && boot_id().is_ok_and(|boot| boot == self.boot_id)
    }

    /// A handle on the live process: what is done with the handle meets this process and no later one.
    pub fn open(&self) -> Option<OwnedFd> {
        let pidfd = rustix::process::pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Looked at after the handle is open: had the pid been taken over before, the start time would tell.
        self.is_alive().then_some(pidfd)
    }
}

fn stat(pid: i32) -> sys::Result<Stat> {
    let text = sys::read_kernel_file(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or(sys::Failure { call: "read(stat)", errno: rustix::io::Errno::INVAL })
}

/// The name, field 2, may hold anything, also `)`: fields are counted after the last one.
fn parse_stat(text: &[u8]) -> Option<Stat> {
    let after = text.iter().rposition(|byte| *byte == b')')? + 1;
    let fields = std::str::from_utf8(&text[after..]).ok()?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some(Stat { state, start_time: fields.nth(18)?.parse().ok()? })
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
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let text = b"7 (a) b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 2 3\n";
        assert_eq!(parse_stat(text), Some(Stat { state: 'S', start_time: 4242 }));
        assert_eq!(parse_stat(b"7 (x"), None);
    }

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
