//! The standard input of a process, moved from the client's FIFO.
//!
//! The shim holds the FIFO open for both directions, so a client that goes away does not end the input: only CloseIO
//! does, after what the FIFO still has. It is opened when the process is started and not before: containerd's clients
//! wait for a reader, then send everything, and would see the end of their own input before they know the task whose
//! input to close.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;

use super::output::is_empty;
use super::{Progress, Scratch, Watch, failed, watch};
use crate::error::Error;
use crate::poll::{Poller, Source};

/// Bytes that one splice may move.
const SPLICE_LEN: usize = 1 << 20;
/// Bytes typed into a terminal at once: what its line discipline takes.
const TYPED_LEN: usize = 4 << 10;

#[derive(Debug)]
enum To {
    /// Not known yet: the runtime sends the terminal.
    Nowhere,
    Pipe(OwnedFd),
    Terminal(OwnedFd),
}

#[derive(Debug)]
pub(super) struct Input {
    path: String,
    /// Once it is opened.
    fifo: Option<OwnedFd>,
    to: To,
    /// Read and not yet written.
    held: Vec<u8>,
    is_closing: bool,
    watch: Watch,
}

impl Input {
    pub(super) fn new(path: &str) -> Input {
        let path = path.strip_prefix("fifo://").unwrap_or(path).to_owned();
        Input { path, fifo: None, to: To::Nowhere, held: Vec::new(), is_closing: false, watch: Watch::Nothing }
    }

    /// Opens the FIFO, if that was not done.
    pub(super) fn open(&mut self) -> Result<(), Error> {
        if self.fifo.is_some() {
            return Ok(());
        }
        let path = &self.path;
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let fifo = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed("open", path, error))?;
        let stat = rustix::fs::fstat(&fifo).map_err(|error| failed("stat", path, error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
            return Err(Error::Invalid { what: format!("stdin {path:?} is not a FIFO") });
        }
        self.fifo = Some(fifo);
        Ok(())
    }

    pub(super) fn into_pipe(mut self, write: OwnedFd) -> Result<Input, Error> {
        do_not_block(&write)?;
        self.to = To::Pipe(write);
        Ok(self)
    }

    pub(super) fn into_terminal(mut self, master: OwnedFd) -> Result<Input, Error> {
        do_not_block(&master)?;
        self.to = To::Terminal(master);
        Ok(self)
    }

    /// What the FIFO has now is the rest.
    pub(super) fn close(&mut self) {
        self.is_closing = true;
    }

    /// Moves what there is. `Ended` when the process takes no more, or when the rest was moved.
    pub(super) fn advance(&mut self, scratch: &mut Scratch) -> Progress {
        let progress = match (&self.fifo, &self.to) {
            (None, _) | (_, To::Nowhere) => return Progress::Later,
            (Some(fifo), To::Pipe(pipe)) => splice_all(fifo, pipe),
            (Some(_), To::Terminal(_)) => self.type_all(scratch),
        };
        match progress {
            Progress::Empty if self.is_closing => Progress::Ended,
            other => other,
        }
    }

    fn type_all(&mut self, scratch: &mut Scratch) -> Progress {
        let (Some(fifo), To::Terminal(master)) = (&self.fifo, &self.to) else { return Progress::Ended };
        loop {
            if self.held.is_empty() {
                match rustix::io::read(fifo, &mut scratch.bytes()[..TYPED_LEN]) {
                    Ok(0) => return Progress::Ended,
                    Ok(count) => self.held.extend_from_slice(&scratch.bytes()[..count]),
                    Err(Errno::INTR) => continue,
                    Err(_) => return Progress::Empty,
                }
            }
            match rustix::io::write(master, &self.held) {
                Ok(count) => drop(self.held.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Progress::Full,
                Err(_) => return Progress::Ended,
            }
        }
    }

    /// Waits for what `progress` needs; `false` when the kernel refuses.
    pub(super) fn watch(&mut self, progress: Progress, source: Source, poller: &mut Poller) -> bool {
        let to = match &self.to {
            To::Nowhere => None,
            To::Pipe(fd) | To::Terminal(fd) => Some(fd.as_fd()),
        };
        watch(&mut self.watch, progress, [self.fifo.as_ref().map(AsFd::as_fd), to], source, poller)
    }

    /// Lets go of it.
    pub(super) fn forget(mut self, poller: &mut Poller) {
        self.watch(Progress::Ended, Source::Listener, poller);
    }
}

fn do_not_block(fd: &OwnedFd) -> Result<(), Error> {
    rustix::io::ioctl_fionbio(fd, true)
        .map_err(|error| Error::System { what: "stop the input from blocking".to_owned(), source: error.into() })
}

fn splice_all(fifo: &OwnedFd, pipe: &OwnedFd) -> Progress {
    loop {
        match rustix::pipe::splice(fifo, None, pipe, None, SPLICE_LEN, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
            Ok(0) => return Progress::Ended,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return if is_empty(fifo) { Progress::Empty } else { Progress::Full },
            // The process closed its input.
            Err(_) => return Progress::Ended,
        }
    }
}
