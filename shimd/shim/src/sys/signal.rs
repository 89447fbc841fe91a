//! Signals: what the shim ignores, and SIGCHLD as a file descriptor.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};

/// Signals that must not end the shim: a broken pipe, and whoever stops the daemon above with its process group. The
/// container's life does not hang on theirs.
const IGNORED: [libc::c_int; 4] = [libc::SIGPIPE, libc::SIGHUP, libc::SIGINT, libc::SIGTERM];

/// Ignores [`IGNORED`], blocks SIGCHLD and returns a descriptor that is readable when a child has changed its state.
pub(crate) fn take_over() -> io::Result<OwnedFd> {
    for signal in IGNORED {
        // SAFETY: SIG_IGN is no handler, so nothing of ours runs in a signal's context.
        if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(io::Error::last_os_error());
        }
    }
    let set = set_of(&[libc::SIGCHLD]);
    // SAFETY: the set is initialised; the old one is not asked for.
    if unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the set is initialised; a descriptor that is returned is new and ours.
    unsafe {
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Takes what a descriptor of [`take_over`] has, so that it is quiet until the next child ends.
pub(crate) fn quiet(signals: &OwnedFd) {
    // One is enough to know: children are asked for until there are no more.
    let _ = rustix::io::read(signals, &mut [0; size_of::<libc::signalfd_siginfo>()]);
}

/// A set of these signals.
pub(super) fn set_of(signals: &[libc::c_int]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set, sigaddset gets it initialised and a valid signal.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

/// Gives a child the usual disposition of what its parent ignores. (Handlers end with an exec, ignoring does not.)
pub(super) fn stop_ignoring() {
    for signal in IGNORED {
        // SAFETY: SIG_DFL is no handler, and the child has a table of dispositions of its own.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Sends any signal, real-time ones too, for which rustix has no names.
pub(crate) fn send(pid: rustix::process::Pid, signal: i32) -> rustix::io::Result<()> {
    // SAFETY: kill takes any number for a signal; the pid is positive, so it is no group.
    match unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) } {
        0 => Ok(()),
        _ => Err(rustix::io::Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(rustix::io::Errno::INVAL)),
    }
}
