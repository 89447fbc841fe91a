//! System calls that neither rustix nor std offers in the form needed, and the only unsafe code of lowrun.
//!
//! One function per call; flags that must not be forgotten are forced here. A failed call is a [`Failure`], which keeps
//! the call's name, so that an error can say which of the many calls of a step the kernel refused.

pub mod bpf;
pub mod caps;
pub mod clone;
pub mod entry;
pub mod exe;
pub mod last_word;
pub mod mount;
pub mod mount_old;
pub mod net;
pub mod pidfd;
pub mod process;
pub mod rtnetlink;
pub mod seccomp;
pub mod signal;
pub mod stage;

use std::fmt;
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// A system call that the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Name of the call, as in the manual.
    pub call: &'static str,
    /// Its error.
    pub errno: Errno,
}

/// What a system call gave.
pub type Result<T> = std::result::Result<T, Failure>;

impl fmt::Display for Failure {
    /// `call: no such file or directory`: the words of errno in small letters, as runc's callers look for them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, words(self.errno))
    }
}

impl std::error::Error for Failure {}

/// The words of an errno in small letters, without Rust's "(os error N)".
pub fn words(errno: Errno) -> String {
    let text = std::io::Error::from_raw_os_error(errno.raw_os_error()).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => format!("errno {}", errno.raw_os_error()),
    }
}

/// Names the call that gave a result.
pub trait Call<T> {
    /// Turns an errno into a [`Failure`] of `call`.
    fn call(self, call: &'static str) -> Result<T>;
}

impl<T> Call<T> for rustix::io::Result<T> {
    fn call(self, call: &'static str) -> Result<T> {
        self.map_err(|errno| Failure { call, errno })
    }
}

impl<T> Call<T> for std::io::Result<T> {
    fn call(self, call: &'static str) -> Result<T> {
        self.map_err(|error| Failure { call, errno: Errno::from_io_error(&error).unwrap_or(Errno::IO) })
    }
}

/// The result of a raw call: -1 means errno.
pub(crate) fn check(call: &'static str, result: libc::c_long) -> Result<libc::c_long> {
    if result == -1 {
        let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO);
        return Err(Failure { call, errno });
    }
    Ok(result)
}

/// Reads a file whose text the kernel makes up: it has no size, and `std::fs::read` would feel its way in many small
/// reads.
pub fn read_kernel_file(path: impl rustix::path::Arg) -> Result<Vec<u8>> {
    read_kernel_file_at(rustix::fs::CWD, path)
}

/// As [`read_kernel_file`], of a path below a directory.
pub fn read_kernel_file_at(dir: BorrowedFd<'_>, path: impl rustix::path::Arg) -> Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, path, flags, Mode::empty()).call("open")?;
    let mut text = Vec::with_capacity(4096);
    loop {
        let read = || rustix::io::read(&file, rustix::buffer::spare_capacity(&mut text));
        if rustix::io::retry_on_intr(read).call("read")? == 0 {
            break;
        }
        text.reserve(1024);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_file_is_read_whole() {
        let long = read_kernel_file("/proc/self/mountinfo").unwrap();
        assert_eq!(long, std::fs::read("/proc/self/mountinfo").unwrap());
        assert_eq!(read_kernel_file("/proc/none"), Err(Failure { call: "open", errno: Errno::NOENT }));
    }

    #[test]
    fn errno_words_are_those_that_callers_look_for() {
        assert_eq!(words(Errno::NOENT), "no such file or directory");
        assert_eq!(words(Errno::ACCESS), "permission denied");
        assert_eq!(words(Errno::PERM), "operation not permitted");
    }
}
