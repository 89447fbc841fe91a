//! The system call that no crate of ours has in the form that is needed here; the only unsafe code of the registry client.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Bounds what a peer may have sent on a TCP connection that is not read yet. Unlike the size of the receive buffer this
/// has no bound of its own that only an administrator could raise.
pub(crate) fn bound_window(socket: impl AsFd, bytes: i32) -> io::Result<()> {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the descriptor is open as long as the borrow, and the option reads an int of the length that is given.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_WINDOW_CLAMP,
            (&raw const bytes).cast(),
            length,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
