//! `seccomp(2)`: puts a compiled filter in force.

use std::os::fd::{FromRawFd, OwnedFd};

use super::{Result, check};

pub const FILTER_FLAG_LOG: u64 = 1 << 1;
pub const FILTER_FLAG_SPEC_ALLOW: u64 = 1 << 2;
pub const FILTER_FLAG_NEW_LISTENER: u64 = 1 << 3;
pub const FILTER_FLAG_TSYNC: u64 = 1 << 0;
pub const FILTER_FLAG_TSYNC_ESRCH: u64 = 1 << 4;
pub const FILTER_FLAG_WAIT_KILLABLE_RECV: u64 = 1 << 5;

const SET_MODE_FILTER: libc::c_long = 1;
/// Bytes of one `struct sock_filter`.
pub const INSTRUCTION_BYTES: usize = 8;

#[repr(C)]
struct Program {
    length: u16,
    filter: *const u8,
}

/// Puts `program` (an array of `struct sock_filter`, as bytes) in force for the calling thread; with the flag
/// `NEW_LISTENER` the descriptor for notifications comes back.
///
/// The caller needs `CAP_SYS_ADMIN` in its user namespace or `no_new_privs`.
pub fn install(program: &[u8], flags: u64) -> Result<Option<OwnedFd>> {
    let length = u16::try_from(program.len() / INSTRUCTION_BYTES).unwrap_or(0);
    // The kernel copies the instructions bytewise: they need no alignment here.
    let header = Program { length, filter: program.as_ptr() };
    // SAFETY: `header` describes `program`, which outlives the call; a length of 0 is refused by the kernel.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const header) };
    let fd = check("seccomp", result)?;
    if flags & FILTER_FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: with NEW_LISTENER the result is a new descriptor, owned by nobody else.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
}

/// Whether the kernel knows these filter flags: with a null program it says EFAULT for known and EINVAL for unknown ones.
pub fn knows_flags(flags: u64) -> bool {
    // It has a meaning with a listener only, and is refused without one.
    let listens = if flags & FILTER_FLAG_WAIT_KILLABLE_RECV == 0 { 0 } else { FILTER_FLAG_NEW_LISTENER };
    let flags = flags | listens;
    // SAFETY: the null pointer is the documented way to probe; the kernel refuses it before it does anything.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, std::ptr::null::<Program>()) };
    result == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}
