//! `clone3(2)` without a new stack: the child goes on in a copy of the parent's memory, as after `fork(2)`.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::Pid;

use super::{Failure, Result, check};

/// Who returns from [`clone3`].
pub enum Forked {
    /// The caller: the child's pid as the caller sees it, and a handle on it.
    Parent {
        /// The child's pid in the caller's pid namespace.
        pid: Pid,
        /// Handle on the child.
        pidfd: OwnedFd,
    },
    /// The new process.
    Child,
}

/// `struct clone_args`, version 2 (Linux 5.7).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks into new namespaces (`CLONE_NEW*` and `CLONE_PARENT` in `flags`) and, where given, into a cgroup v2 directory.
///
/// The process must have one thread: the child may then allocate and use everything that the parent may.
pub fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Forked> {
    let mut pidfd: libc::c_int = -1;
    // A child made with CLONE_PARENT takes the exit signal of its maker, and the kernel refuses another one.
    let exit_signal = if flags & libc::CLONE_PARENT as u64 == 0 { libc::SIGCHLD as u64 } else { 0 };
    let args = CloneArgs {
        flags: flags | libc::CLONE_PIDFD as u64 | if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 },
        pidfd: &raw mut pidfd as u64,
        exit_signal,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
        ..CloneArgs::default()
    };
    // SAFETY: no CLONE_VM and no stack: the child runs on a copy of this stack. lowrun has one thread, so no lock is
    // held by a thread that the child would not have. `args` and `pidfd` outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match check("clone3", result) {
        // Filters that cannot look into the structure deny the call; the old one cannot enter a cgroup.
        Err(Failure { errno: Errno::NOSYS | Errno::PERM, .. }) if cgroup.is_none() => clone(flags, exit_signal),
        result => forked(result?, pidfd),
    }
}

/// `clone(2)`, for what it can do as well.
fn clone(flags: u64, exit_signal: u64) -> Result<Forked> {
    let mut pidfd: libc::c_int = -1;
    let flags = flags | libc::CLONE_PIDFD as u64 | exit_signal;
    // SAFETY: as in `clone3`: no CLONE_VM and no stack. With CLONE_PIDFD the third argument, on every architecture, is
    // where the descriptor goes.
    let result = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
    forked(check("clone", result)?, pidfd)
}

fn forked(pid: libc::c_long, pidfd: libc::c_int) -> Result<Forked> {
    if pid == 0 {
        return Ok(Forked::Child);
    }
    let pid = Pid::from_raw(pid as i32).ok_or(Failure { call: "clone3", errno: Errno::SRCH })?;
    // SAFETY: CLONE_PIDFD made the kernel store a new descriptor, owned by nobody else.
    Ok(Forked::Parent { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}
