//! Waits for a program in the foreground, handing signals on to it.

use std::os::fd::{BorrowedFd, OwnedFd};

use std::os::fd::AsFd;

use rustix::process::{WaitIdOptions, WaitIdStatus};

use super::terminal::Terminal;
use crate::fault::{Attempt, Code, Result};
use crate::sys::{self, Call};

/// Signals that are for lowrun itself.
const OWN: [i32; 3] = [libc::SIGCHLD, libc::SIGURG, libc::SIGPIPE];

/// Waits until the process ends and is reaped; gives its exit status, 128 and the number for a signal.
///
/// `before_signal` is called before one is handed on.
pub fn foreground(
    pidfd: BorrowedFd<'_>,
    signals: &OwnedFd,
    terminal: Option<&mut Terminal>,
    before_signal: impl Fn(),
) -> Result<i32> {
    if let Some(terminal) = terminal {
        return terminal.relay(pidfd, signals);
    }
    loop {
        // It may have ended before the first signal is read.
        if let Some(status) = try_reap(pidfd)? {
            return Ok(status);
        }
        let signal = sys::signal::next(signals.as_fd()).attempt(Code::SystemError, || "wait for the program")?;
        if !OWN.contains(&signal) {
            before_signal();
        }
        hand_on(pidfd, signal);
    }
}

/// Sends a signal of ours to the program.
pub fn hand_on(pidfd: BorrowedFd<'_>, signal: i32) {
    if !OWN.contains(&signal) {
        // A program that has ended will be reaped in the next round.
        let _ = sys::pidfd::send(pidfd, signal);
    }
}

/// The exit status, if the process has ended; it is reaped then.
pub fn try_reap(pidfd: BorrowedFd<'_>) -> Result<Option<i32>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = rustix::process::waitid(sys::pidfd::wait_id(pidfd), options)
        .call("waitid")
        .attempt(Code::SystemError, || "wait for the program")?;
    Ok(status.map(exit_status))
}

/// Waits for the end.
pub fn reap(pidfd: BorrowedFd<'_>) -> sys::Result<i32> {
    let status = rustix::process::waitid(sys::pidfd::wait_id(pidfd), WaitIdOptions::EXITED).call("waitid")?;
    Ok(status.map_or(255, exit_status))
}

/// The exit status of a process that has ended, without reaping it.
pub fn status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    rustix::process::waitid(sys::pidfd::wait_id(pidfd), options).ok().flatten().map(exit_status)
}

fn exit_status(status: WaitIdStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    }
}
