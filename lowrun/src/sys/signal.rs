//! Signal masks, dispositions and signalfd.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::{Result, check};

/// A set of signals, as `sigprocmask(2)` takes it.
#[derive(Clone, Copy)]
pub struct SignalSet(libc::sigset_t);

impl SignalSet {
    /// No signal.
    pub fn empty() -> SignalSet {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the whole set.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            SignalSet(set.assume_init())
        }
    }

    /// Every signal.
    pub fn full() -> SignalSet {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigfillset initialises the whole set.
        unsafe {
            libc::sigfillset(set.as_mut_ptr());
            SignalSet(set.assume_init())
        }
    }

    /// Whether the calling thread blocks any signal.
    fn any_is_blocked() -> bool {
        let mut set = SignalSet::empty();
        // SAFETY: no new mask is set; the old one is written to a set that is there.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, std::ptr::null(), &raw mut set.0) };
        // SAFETY: the set is initialised, the numbers are those of signals.
        (1..=64).any(|signal| unsafe { libc::sigismember(&raw const set.0, signal) } == 1)
    }

    /// Makes this the calling thread's mask.
    pub fn block(&self) -> Result<()> {
        // SAFETY: the set is initialised; no old mask is asked for.
        let result = unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
        check("sigprocmask", result.into()).map(drop)
    }

    /// A descriptor from which the set's signals, which must be blocked, are read.
    pub fn descriptor(&self) -> Result<OwnedFd> {
        // SAFETY: the set is initialised; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const self.0, libc::SFD_CLOEXEC) };
        check("signalfd", fd.into())?;
        // SAFETY: a new descriptor, owned by nobody else.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Waits for the next signal of a descriptor from [`SignalSet::descriptor`].
pub fn next(descriptor: BorrowedFd<'_>) -> Result<i32> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
    let size = size_of::<libc::signalfd_siginfo>();
    loop {
        // SAFETY: the buffer has the size of one record.
        let read = unsafe { libc::read(descriptor.as_raw_fd(), info.as_mut_ptr().cast(), size) };
        match check("read(signalfd)", read as libc::c_long) {
            Err(failure) if failure.errno == rustix::io::Errno::INTR => {}
            Err(failure) => return Err(failure),
            // SAFETY: all-zero is a valid record, and the kernel wrote one.
            Ok(_) => return Ok(unsafe { info.assume_init() }.ssi_signo as i32),
        }
    }
}

/// Gives every signal its default action again: a caller may have ignored some, and what is ignored stays so over
/// `execve(2)`. All but SIGPIPE, which is ignored from the start: what cannot be written is still to be an error.
pub fn reset_dispositions() {
    for signal in 1..=31 {
        if !matches!(signal, libc::SIGKILL | libc::SIGSTOP | libc::SIGPIPE) {
            // SAFETY: SIG_DFL runs no code of ours.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
    }
}

/// Has signals end this process with 128 and their number, also where it is the first of a PID namespace and would not hear
/// of them. But for some: the `harmless`, SIGPIPE, and what nobody can handle. A program that it executes has the default
/// actions again, without another call.
pub fn end_by_signals(harmless: &[i32]) -> Result<()> {
    extern "C" fn end(signal: libc::c_int) {
        // SAFETY: nothing of the process is touched any more.
        unsafe { libc::_exit(128 + signal) }
    }
    let untouched =
        |signal: &i32| !harmless.contains(signal) && ![libc::SIGKILL, libc::SIGSTOP, libc::SIGPIPE].contains(signal);
    // Between them lie those of glibc.
    for signal in (1..=31).chain(libc::SIGRTMIN()..=libc::SIGRTMAX()).filter(untouched) {
        // SAFETY: all-zero is a valid action, without flags and with an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = end as extern "C" fn(libc::c_int) as usize;
        // SAFETY: the action is initialised, and its handler does nothing but end the process.
        check("sigaction", unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) }.into())?;
    }
    Ok(())
}

/// Makes writing to who does not read an error.
pub fn ignore_pipe() {
    // SAFETY: no handler runs.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Lets SIGPIPE end the process again: for the program that it becomes.
pub fn reset_broken_pipe() {
    // SAFETY: SIG_DFL runs no code of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Lets a program that is about to be started have every signal, also where this process reads them as events.
pub fn unblock_in(command: &mut std::process::Command) {
    // A program that is started without a step in between is started cheaper.
    if !SignalSet::any_is_blocked() {
        return;
    }
    let unblock = || SignalSet::empty().block().map_err(|failure| failure.errno.into());
    // SAFETY: between fork and exec it only makes two calls that are allowed there, and allocates nothing.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, unblock) };
}

/// What a signal means, in small letters: `bad system call`.
pub fn description(signal: i32) -> String {
    // SAFETY: strsignal gives a string that stays valid until it is called again; there is one thread.
    let text = unsafe { std::ffi::CStr::from_ptr(libc::strsignal(signal)) };
    text.to_string_lossy().to_lowercase()
}
