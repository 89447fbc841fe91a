//! The few system interfaces that std, rustix and tokio do not offer safely: the C library's local time, dying of SIGPIPE
//! as a program in a pipeline does, and waiting for a standard stream. The only unsafe code of this package.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A moment as the clock on the wall shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LocalTime {
    pub(crate) year: i32,
    /// 1 to 12.
    pub(crate) month: u32,
    pub(crate) day: u32,
    pub(crate) hour: u32,
    pub(crate) minute: u32,
    pub(crate) second: u32,
    /// Seconds east of Greenwich.
    pub(crate) offset_s: i64,
    /// The zone's short name, "CET".
    pub(crate) zone: String,
}

/// `seconds` since 1970 in the time zone of TZ or /etc/localtime; `None` when the year does not fit.
pub(crate) fn local_time(seconds: i64) -> Option<LocalTime> {
    let mut broken_down = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are valid for the call; localtime_r fills `tm` or returns null. The environment is not
    // changed by this program after its start, so that reading TZ races with nobody.
    let tm = unsafe {
        if libc::localtime_r(&raw const seconds, broken_down.as_mut_ptr()).is_null() {
            return None;
        }
        broken_down.assume_init()
    };
    let zone = if tm.tm_zone.is_null() {
        String::new()
    } else {
        // SAFETY: tm_zone points at a string of the C library that lives as long as the program.
        unsafe { std::ffi::CStr::from_ptr(tm.tm_zone) }.to_string_lossy().into_owned()
    };
    Some(LocalTime {
        year: tm.tm_year + 1900,
        month: tm.tm_mon as u32 + 1,
        day: tm.tm_mday as u32,
        hour: tm.tm_hour as u32,
        minute: tm.tm_min as u32,
        second: tm.tm_sec as u32,
        offset_s: tm.tm_gmtoff,
        zone,
    })
}

/// Ends this process by `signal`, so that its parent sees what any other program would show.
pub(crate) fn die_of(signal: i32) -> ! {
    // SAFETY: plain calls; the default action of these signals ends the process, and `_exit` does where it does not
    // (a blocked signal).
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
        libc::_exit(128 + signal)
    }
}

/// Waits for `fd` to be readable, on the event loop of the caller. EPERM: the file knows no readiness.
pub(crate) fn readable(fd: BorrowedFd<'static>) -> io::Result<AsyncFd<BorrowedFd<'static>>> {
    // SAFETY: the descriptor stays open, and the same one, for as long as the program runs, by its lifetime; a
    // `BorrowedFd` names one descriptor only.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}
