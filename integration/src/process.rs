//! The processes of this machine, as `/proc` shows them (proc(5)).

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::sync::{Mutex, PoisonError};

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

/// One process at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    /// `R`, `S`, `Z`, …
    pub state: char,
    /// In clock ticks since boot: with the pid it names one process for good.
    pub started: u64,
    /// Its arguments, or its name in brackets.
    pub command: String,
}

/// All processes. Those that end while this looks are left out.
pub fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter_map(find).collect()
}

/// The process with that pid.
pub fn find(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, fields) = parse_stat(&stat)?;
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command = String::from_utf8_lossy(&arguments).trim_end_matches('\0').replace('\0', " ");
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        state: fields.first()?.chars().next()?,
        started: fields.get(19)?.parse().ok()?,
        command: if command.is_empty() { format!("[{name}]") } else { command },
    })
}

/// The name, and the fields from the third on. The name may itself hold spaces and parentheses.
fn parse_stat(stat: &str) -> Option<(&str, Vec<&str>)> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    Some((name, tail.split_whitespace().collect()))
}

/// Children that the harness waits for itself, by pid and start: after some ten thousand processes a pid is another's.
static AWAITED: Mutex<BTreeSet<(i32, u64)>> = Mutex::new(BTreeSet::new());

/// Leaves the end of a child, which was not waited for yet, to who started it.
pub(crate) fn await_by_hand(pid: i32) {
    let Some(child) = find(pid) else { return };
    AWAITED.lock().unwrap_or_else(PoisonError::into_inner).insert((pid, child.started));
}

/// Fetches the orphans that have ended, as process 1 does elsewhere: the first process of a pid namespace does not end
/// before all others of it are fetched.
pub fn reap_orphans() {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    if matches!(waitid(Id::All, look), Ok(WaitStatus::StillAlive) | Err(_)) {
        return;
    }
    let me = std::process::id() as i32;
    let awaited = AWAITED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let dead = all().into_iter().filter(|process| process.parent == me && process.state == 'Z');
    for orphan in dead.filter(|process| !awaited.contains(&(process.pid, process.started))) {
        // Somebody may have been quicker.
        let _ = waitpid(Pid::from_raw(orphan.pid), Some(WaitPidFlag::WNOHANG));
    }
}

/// The children of `pid`, their children, and so on.
pub fn descendants(pid: i32) -> Vec<Process> {
    let everyone = all();
    let mut family = HashSet::from([pid]);
    loop {
        let before = family.len();
        family.extend(
            everyone.iter().filter(|process| family.contains(&process.parent)).map(|p| p.pid).collect::<Vec<_>>(),
        );
        if family.len() == before {
            break;
        }
    }
    everyone.into_iter().filter(|process| process.pid != pid && family.contains(&process.pid)).collect()
}

/// Has the process a pid in a PID namespace below ours too? (`NSpid` of proc_pid_status(5), a number for each level.)
pub fn is_in_inner_pid_namespace(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    pids.split_whitespace().count() > 1
}

/// What the descriptors of a process refer to, as `/proc/PID/fd` names it.
pub fn descriptors(pid: i32) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let mut targets: Vec<String> = entries
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect();
    targets.sort();
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let (name, fields) = parse_stat("7 (a) b (c) S 3 7 7 0\n").expect("a stat line");
        assert_eq!((name, fields[0], fields[1]), ("a) b (c", "S", "3"));
    }

    #[test]
    fn this_process_is_found_and_has_descriptors() {
        let me = find(std::process::id() as i32).expect("this process");
        assert!(me.command.contains("process") || !me.command.is_empty());
        assert!(descriptors(me.pid).len() >= 3);
    }
}
