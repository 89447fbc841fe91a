//! One output of a process, moved to where the client wants it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::SpliceFlags;
use strata_log::{Stream, Writer};

use super::{Progress, Scratch, Watch, now_ns, watch};
use crate::error::Error;
use crate::poll::{Poller, Source};

/// Rounds before other descriptors get their turn.
const ROUNDS_MAX: usize = 16;
/// Bytes that one splice may move: more than a pipe holds.
const SPLICE_LEN: usize = 1 << 20;

/// Where output goes.
#[derive(Debug)]
pub(super) enum Sink {
    /// Open for both directions, not blocking.
    Fifo(OwnedFd),
    /// Open for appending.
    File(OwnedFd),
    /// The container's log, as this stream.
    Log(Stream),
    /// Let go of: whoever reads a FIFO learns of the end by that.
    Gone,
}

/// Where output comes from.
#[derive(Debug)]
enum From {
    Pipe(OwnedFd),
    Terminal(OwnedFd),
    /// The runtime has not sent it yet.
    Nowhere,
    Ended,
}

#[derive(Debug)]
pub(super) struct Output {
    from: From,
    sink: Sink,
    /// Read and not yet written.
    held: Vec<u8>,
    watch: Watch,
}

impl Output {
    pub(super) fn of_pipe(read: OwnedFd, sink: Sink) -> Result<Output, Error> {
        rustix::io::ioctl_fionbio(&read, true)
            .map_err(|error| Error::System { what: "stop a pipe from blocking".to_owned(), source: error.into() })?;
        Ok(Output { from: From::Pipe(read), sink, held: Vec::new(), watch: Watch::Nothing })
    }

    pub(super) fn of_terminal(sink: Sink) -> Output {
        Output { from: From::Nowhere, sink, held: Vec::new(), watch: Watch::Nothing }
    }

    pub(super) fn take_terminal(&mut self, master: OwnedFd) {
        self.from = From::Terminal(master);
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self.from, From::Ended) && self.held.is_empty()
    }

    /// Moves what there is.
    pub(super) fn advance(&mut self, log: Option<&mut Writer>, scratch: &mut Scratch) -> Progress {
        match (&self.from, &self.sink) {
            (From::Pipe(pipe), Sink::Fifo(fifo)) => splice_all(pipe, fifo),
            _ => self.copy_all(log, scratch),
        }
    }

    fn copy_all(&mut self, mut log: Option<&mut Writer>, scratch: &mut Scratch) -> Progress {
        for _ in 0..ROUNDS_MAX {
            if !self.held.is_empty() {
                let held = std::mem::take(&mut self.held);
                if let Some(wait) = self.deliver(&held, log.as_deref_mut()) {
                    return wait;
                }
            }
            let buffer = scratch.bytes();
            match self.read(buffer) {
                Ok(0) => {
                    self.from = From::Ended;
                    return Progress::Ended;
                }
                Ok(count) => {
                    let bytes = &scratch.bytes()[..count];
                    if let Some(wait) = self.deliver(bytes, log.as_deref_mut()) {
                        return wait;
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => return Progress::Empty,
            }
        }
        Progress::More
    }

    fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        match &self.from {
            From::Pipe(pipe) => rustix::io::read(pipe, buffer),
            From::Terminal(master) => match rustix::io::read(master, buffer) {
                // How a terminal says that nobody has its other side open.
                Err(Errno::IO) => Ok(0),
                other => other,
            },
            From::Nowhere => Err(Errno::AGAIN),
            From::Ended => Ok(0),
        }
    }

    /// Writes all bytes; where that cannot be, keeps the others and says what to wait for.
    fn deliver(&mut self, bytes: &[u8], log: Option<&mut Writer>) -> Option<Progress> {
        let (written, wait) = match (&self.sink, log) {
            (Sink::Log(stream), Some(log)) => match log.append(*stream, now_ns(), bytes) {
                Ok(()) => return None,
                Err(held) => (held.taken, Progress::Later),
            },
            // The log is gone: the process was deleted.
            (Sink::Log(_), None) | (Sink::Gone, _) => return None,
            (Sink::Fifo(fifo), _) => (write_some(fifo, bytes), Progress::Full),
            (Sink::File(file), _) => (write_some(file, bytes), Progress::Later),
        };
        let rest = &bytes[written..];
        if rest.is_empty() {
            return None;
        }
        self.held = rest.to_vec();
        Some(wait)
    }

    /// Waits for what `progress` needs; `false` when the kernel refuses.
    pub(super) fn watch(&mut self, progress: Progress, source: Source, poller: &mut Poller) -> bool {
        let from = match &self.from {
            From::Pipe(fd) | From::Terminal(fd) => Some(fd.as_fd()),
            From::Nowhere | From::Ended => None,
        };
        let to = match &self.sink {
            Sink::Fifo(fd) => Some(fd.as_fd()),
            Sink::File(_) | Sink::Log(_) | Sink::Gone => None,
        };
        let is_watched = watch(&mut self.watch, progress, [from, to], source, poller);
        if progress == Progress::Ended {
            self.from = From::Ended;
            self.sink = Sink::Gone;
        }
        is_watched
    }
}

/// Writes until all is written or the file refuses; how much was written.
fn write_some(file: &OwnedFd, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match rustix::io::write(file, &bytes[written..]) {
            Ok(count) => written += count,
            Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
    written
}

/// Moves pages from one pipe to another without looking at them.
fn splice_all(from: &OwnedFd, to: &OwnedFd) -> Progress {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    for _ in 0..ROUNDS_MAX {
        match rustix::pipe::splice(from, None, to, None, SPLICE_LEN, flags) {
            Ok(0) => return Progress::Ended,
            Ok(_) | Err(Errno::INTR) => {}
            // The kernel does not say which of the two pipes it is.
            Err(Errno::AGAIN) => return if is_empty(from) { Progress::Empty } else { Progress::Full },
            Err(_) => return Progress::Ended,
        }
    }
    Progress::More
}

/// Whether a pipe has no bytes.
pub(super) fn is_empty(pipe: &OwnedFd) -> bool {
    rustix::io::ioctl_fionread(pipe).map_or(true, |count| count == 0)
}
