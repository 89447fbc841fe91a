//! The system calls that no crate wraps: socket options of `ip_tables`, whose sizes only the kernel and we know.

use std::os::fd::{AsRawFd, BorrowedFd};

use super::error::Refusal;

const IPT_SO_GET_INFO: i32 = 64;
const IPT_SO_GET_ENTRIES: i32 = 65;
const IPT_SO_SET_REPLACE: i32 = 64;
const IPT_SO_SET_ADD_COUNTERS: i32 = 65;

/// Bytes of one counter of packets and bytes.
pub(super) const COUNTER_BYTES: usize = 16;
/// Where `struct ipt_replace` holds how many counters there is room for, and where that room is.
const REPLACE_COUNT: usize = 84;
const REPLACE_ROOM: usize = 88;
/// Where the entries begin.
pub(super) const REPLACE_BYTES: usize = 96;

/// `struct ipt_getinfo`, its name filled in.
pub(super) fn table_info(socket: BorrowedFd<'_>, info: &mut [u8]) -> Result<(), Refusal> {
    read(socket, IPT_SO_GET_INFO, info)
}

/// `struct ipt_get_entries`, its name and size filled in.
pub(super) fn table_entries(socket: BorrowedFd<'_>, entries: &mut [u8]) -> Result<(), Refusal> {
    read(socket, IPT_SO_GET_ENTRIES, entries)
}

/// Replaces a table by `struct ipt_replace` with its entries; the old rules' last counts come back in `counters`, for as
/// many rules as there were.
pub(super) fn replace_table(
    socket: BorrowedFd<'_>,
    replace: &mut [u8],
    counters: &mut [[u8; COUNTER_BYTES]],
) -> Result<(), Refusal> {
    if replace.len() < REPLACE_BYTES {
        return Err(Refusal::garbled("the new table is too short"));
    }
    // The kernel writes as many counters as this says, so it is said here, where the room is known.
    replace[REPLACE_COUNT..REPLACE_ROOM].copy_from_slice(&(counters.len() as u32).to_ne_bytes());
    let room = counters.as_mut_ptr().expose_provenance();
    replace[REPLACE_ROOM..REPLACE_ROOM + size_of::<usize>()].copy_from_slice(&room.to_ne_bytes());
    // SAFETY: `replace` is valid for reads of its length. The one pointer in it is to `counters`, borrowed mutably for the
    // whole call, and the count beside it is their number.
    unsafe { write(socket, IPT_SO_SET_REPLACE, replace) }
}

/// Adds to the counts of a table: `struct xt_counters_info` with its counters.
pub(super) fn add_counters(socket: BorrowedFd<'_>, counters: &[u8]) -> Result<(), Refusal> {
    // SAFETY: `counters` is valid for reads of its length and holds no pointer.
    unsafe { write(socket, IPT_SO_SET_ADD_COUNTERS, counters) }
}

fn read(socket: BorrowedFd<'_>, name: i32, value: &mut [u8]) -> Result<(), Refusal> {
    let mut length = value.len() as libc::socklen_t;
    // SAFETY: `value` is valid for writes of `length` bytes, and the kernel writes no more than that.
    let outcome =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_IP, name, value.as_mut_ptr().cast(), &raw mut length) };
    if outcome == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}

/// # Safety
/// Whatever the kernel takes for a pointer in `value` must be one, to room that is ours for the whole call.
unsafe fn write(socket: BorrowedFd<'_>, name: i32, value: &[u8]) -> Result<(), Refusal> {
    let length = value.len() as libc::socklen_t;
    // SAFETY: `value` is valid for reads of `length` bytes; the rest is the caller's promise.
    let outcome = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_IP, name, value.as_ptr().cast(), length) };
    if outcome == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}
