//! Standard output and standard error as the program's output goes there: byte-exact, at the speed of memory, and without
//! holding up input, signals and detach keys when the reader is slow.
//!
//! ```text
//!   file, /dev/null          → write at once: it does not block
//!   pipe, terminal, socket   → small and the reader keeps up: write at once
//!                            → else: a thread writes, up to QUEUE pieces wait, then the stream from engined waits
//! ```
//!
//! The descriptor is shared with other programs, so it is not made non-blocking. No thread is started for a program that
//! says a few lines.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use tokio::sync::{mpsc, oneshot};

/// Pieces that may wait for the thread. A piece is a message of engined, at most a few hundred KiB.
const QUEUE: usize = 16;
/// A pipe that is writable takes this much without blocking (PIPE_BUF).
const SMALL: usize = 4096;
/// Most pieces of one writev.
const GATHER: usize = 64;
const STACK: usize = 64 << 10;

/// One of the two output streams.
pub(crate) struct Sink {
    fd: BorrowedFd<'static>,
    never_blocks: bool,
    writer: Option<Writer>,
}

/// The thread that writes what could block.
struct Writer {
    queue: mpsc::Sender<Bytes>,
    /// Pieces handed over and not yet written.
    waiting: Arc<AtomicUsize>,
    done: oneshot::Receiver<io::Result<()>>,
}

impl Sink {
    pub(crate) fn stdout() -> Sink {
        Sink::new(rustix::stdio::stdout())
    }

    pub(crate) fn stderr() -> Sink {
        Sink::new(rustix::stdio::stderr())
    }

    fn new(fd: BorrowedFd<'static>) -> Sink {
        let never_blocks = rustix::fs::fstat(fd).is_ok_and(|status| {
            match FileType::from_raw_mode(status.st_mode) {
                FileType::RegularFile | FileType::BlockDevice => true,
                // /dev/null and its like; a terminal can be slow.
                FileType::CharacterDevice => !rustix::termios::isatty(fd),
                _ => false,
            }
        });
        Sink { fd, never_blocks, writer: None }
    }

    /// Writes all of `data`, now or (in order) soon.
    pub(crate) async fn write(&mut self, data: Bytes) -> io::Result<()> {
        let idle = self.writer.as_ref().is_none_or(|writer| writer.waiting.load(Ordering::Acquire) == 0);
        if idle && (self.never_blocks || (data.len() <= SMALL && self.is_writable())) {
            return write_all(self.fd, &data);
        }
        let writer = match self.writer.as_mut() {
            Some(writer) => writer,
            None => self.writer.insert(Writer::start(self.fd)?),
        };
        writer.waiting.fetch_add(1, Ordering::AcqRel);
        match writer.queue.send(data).await {
            Ok(()) => Ok(()),
            // The thread ends early only with an error.
            Err(_) => self.finish().await,
        }
    }

    /// Returns when everything is written.
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        match self.writer.take() {
            None => Ok(()),
            Some(Writer { queue, done, .. }) => {
                drop(queue);
                done.await.unwrap_or_else(|_| Err(io::Error::other("the writing thread ended")))
            }
        }
    }

    fn is_writable(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

impl Writer {
    fn start(fd: BorrowedFd<'static>) -> io::Result<Writer> {
        let (queue, pieces) = mpsc::channel(QUEUE);
        let (said, done) = oneshot::channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&waiting);
        std::thread::Builder::new().name("output".to_owned()).stack_size(STACK).spawn(move || {
            // Nobody listens any more when the client is leaving.
            let _ = said.send(write_queue(fd, pieces, &counter));
        })?;
        Ok(Writer { queue, waiting, done })
    }
}

fn write_queue(fd: BorrowedFd<'static>, mut pieces: mpsc::Receiver<Bytes>, waiting: &AtomicUsize) -> io::Result<()> {
    let mut batch = Vec::with_capacity(GATHER);
    while pieces.blocking_recv_many(&mut batch, GATHER) > 0 {
        write_all_pieces(fd, &batch)?;
        waiting.fetch_sub(batch.len(), Ordering::AcqRel);
        batch.clear();
    }
    Ok(())
}

fn write_all_pieces(fd: BorrowedFd<'_>, pieces: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut left = &mut slices[..];
    // Empty pieces first, so that a write of nothing is no end.
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match rustix::io::writev(fd, left) {
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) => wait_or_fail(fd, error)?,
        }
    }
    Ok(())
}

/// Writes all of `data` to `fd`.
pub(crate) fn write_all(fd: BorrowedFd<'_>, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        match rustix::io::write(fd, data) {
            Ok(written) => data = &data[written..],
            Err(error) => wait_or_fail(fd, error)?,
        }
    }
    Ok(())
}

/// After a write that wrote nothing: somebody may have made the shared descriptor non-blocking.
fn wait_or_fail(fd: BorrowedFd<'_>, error: rustix::io::Errno) -> io::Result<()> {
    match error {
        rustix::io::Errno::INTR => Ok(()),
        rustix::io::Errno::AGAIN => {
            let mut fds = [PollFd::new(&fd, PollFlags::OUT)];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
                Err(error) => Err(error.into()),
            }
        }
        error => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::{AsFd, OwnedFd};

    use super::*;

    /// A sink on a descriptor that lives as long as the test process.
    fn sink(fd: OwnedFd) -> Sink {
        let leaked: &'static OwnedFd = Box::leak(Box::new(fd));
        Sink::new(leaked.as_fd())
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn a_slow_reader_gets_every_byte_in_order() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut sink = sink(writer.into());
        let sent: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
        let expected = sent.clone();
        let reading = std::thread::spawn(move || {
            let mut all = Vec::new();
            let mut buffer = [0; 777];
            while all.len() < 3_000_000 {
                let read = reader.read(&mut buffer).unwrap();
                all.extend_from_slice(&buffer[..read]);
            }
            all
        });
        runtime().block_on(async {
            for (at, piece) in sent.chunks(50_000).enumerate() {
                sink.write(Bytes::copy_from_slice(&piece[..at])).await.unwrap();
                sink.write(Bytes::copy_from_slice(&piece[at..])).await.unwrap();
            }
            sink.finish().await.unwrap();
        });
        assert!(reading.join().unwrap() == expected);
    }

    #[test]
    fn a_full_pipe_holds_up_nothing_but_itself() {
        let (_reader, writer) = io::pipe().unwrap();
        let mut sink = sink(writer.into());
        runtime().block_on(async {
            let flood = async {
                loop {
                    sink.write(Bytes::from(vec![0; 60_000])).await.unwrap();
                }
            };
            let waited = tokio::time::timeout(std::time::Duration::from_millis(100), flood).await;
            assert!(waited.is_err());
        });
    }

    #[test]
    fn a_reader_that_went_is_an_error() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut sink = sink(writer.into());
        runtime().block_on(async {
            let result = async {
                sink.write(Bytes::from(vec![0; 60_000])).await?;
                sink.finish().await
            };
            assert_eq!(result.await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        });
    }

    #[test]
    fn a_file_is_written_at_once() {
        let file = tempfile::tempfile().unwrap();
        let mut sink = sink(file.try_clone().unwrap().into());
        runtime().block_on(sink.write(Bytes::from_static(b"\0binary\xff"))).unwrap();
        assert!(sink.writer.is_none());
        assert_eq!(file.metadata().unwrap().len(), 8);
    }
}
