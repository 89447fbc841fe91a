//! What cannot be said safely, one thin function each. (The network part has its own, in `network/sys.rs`.)

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the reactor wake who waits for `owner` to become readable. `owner` must own the descriptor that it names, for as
/// long as it lives.
pub(crate) fn readable<T: AsRawFd>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the descriptor is open and stays the owner's, as the function's contract says; the registration goes with
    // the owner.
    let registered = unsafe { AsyncFd::register_with_interest(owner, Interest::READABLE) };
    registered.map_err(|error| error.into_parts().1)
}

/// A descriptor that whoever started this process gave to it; to be asked for once for each number.
pub(crate) fn inherited(number: i32) -> File {
    // SAFETY: the caller knows by its contract with the process above that the number is open and its own, and asks
    // before anything else was opened or could have taken it.
    unsafe { File::from_raw_fd(number) }
}
