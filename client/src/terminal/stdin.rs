//! Standard input, read when there is something to read and never in a way that holds the program up.
//!
//! The descriptor is shared with other programs (a shell, a pipeline), so it is not made non-blocking: readiness comes
//! from epoll, is confirmed by poll, and then one read is made. Regular files and a few devices know no readiness (epoll
//! says EPERM); they never block.

use std::io;
use std::os::fd::BorrowedFd;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Most bytes of one read, and so of one message.
const READ_MAX: usize = 64 << 10;

/// Standard input.
pub(crate) enum Stdin {
    Pollable(AsyncFd<BorrowedFd<'static>>),
    AlwaysReady,
}

impl Stdin {
    pub(crate) fn open() -> io::Result<Stdin> {
        match sys::readable(rustix::stdio::stdin()) {
            Ok(pollable) => Ok(Stdin::Pollable(pollable)),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(Stdin::AlwaysReady),
            Err(error) => Err(error),
        }
    }

    /// The next bytes; none at the end, which a terminal that hung up is too.
    pub(crate) async fn read(&mut self) -> io::Result<Bytes> {
        if let Stdin::Pollable(pollable) = self {
            wait_readable(pollable).await?;
        }
        let mut buffer = vec![0; READ_MAX];
        loop {
            match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
                Ok(length) => {
                    buffer.truncate(length);
                    return Ok(buffer.into());
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::IO) => return Ok(Bytes::new()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

async fn wait_readable(pollable: &AsyncFd<BorrowedFd<'static>>) -> io::Result<()> {
    loop {
        let mut guard = pollable.readable().await?;
        // Readiness is remembered from an edge; somebody else may have read since, and then a read would block.
        let mut fds = [PollFd::new(pollable.get_ref(), PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut fds, Some(&now)).unwrap_or(1) > 0 {
            return Ok(());
        }
        guard.clear_ready();
    }
}
