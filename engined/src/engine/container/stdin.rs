//! A container's input: a FIFO that the shim reads.
//!
//! The engine opens it for reading too, so that opening never waits for the shim and writing never raises EPIPE. The shim
//! holds both ends open, so the death of the engine ends no program's input: only [`Stdin::close`] does.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;
use strata_fault::Fault;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::Mutex;

use super::id::ContainerId;
use crate::containerd::Client;
use crate::engine::error::Error;

/// Makes a FIFO that root alone may use; one that is there stays.
pub(crate) fn make_fifo(path: &Path) -> Result<(), Error> {
    match rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(Error::file("make FIFO", path, errno)),
    }
}

/// The writing end of a FIFO, which needs no reader yet.
pub(crate) fn open_writer(path: &Path) -> Result<pipe::Sender, Error> {
    let opened = pipe::OpenOptions::new().read_write(true).open_sender(path);
    opened.map_err(|error| Error::file("open FIFO", path, error))
}

/// The input of one container's program.
pub(crate) struct Stdin {
    container: ContainerId,
    path: PathBuf,
    writer: Mutex<Option<pipe::Sender>>,
    /// No more input: it was closed, or was never open.
    is_closed: AtomicBool,
}

impl Stdin {
    pub(crate) fn new(container: ContainerId, path: PathBuf, is_open: bool) -> Stdin {
        Stdin { container, path, writer: Mutex::new(None), is_closed: AtomicBool::new(!is_open) }
    }

    /// A run begins. The FIFO is open before the shim opens it: a stock shim reads at once, and a FIFO without a writer has
    /// ended.
    pub(crate) async fn open(&self) -> Result<(), Error> {
        let mut slot = self.writer.lock().await;
        *slot = Some(open_writer(&self.path)?);
        self.is_closed.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// A run has ended: what was not read is gone.
    pub(crate) async fn shut(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.writer.lock().await.take();
    }

    /// Writes, as fast as the program reads.
    pub(crate) async fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut slot = self.writer.lock().await;
        if self.is_closed.load(Ordering::Relaxed) {
            return Err(Error::StdinClosed { container: self.container.short().to_owned() });
        }
        let writer = match slot.take() {
            Some(writer) => slot.insert(writer),
            None => slot.insert(open_writer(&self.path)?),
        };
        writer.write_all(bytes).await.map_err(|error| Error::file("write to FIFO", &self.path, error))
    }

    /// Ends the program's input, after what was written. Closing what is closed is no error.
    pub(crate) async fn close(&self, client: &Client) -> Result<(), Fault> {
        let mut slot = self.writer.lock().await;
        if self.is_closed.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        // Our end first: a shim that waits for the FIFO's end would wait for ours.
        slot.take();
        client.close_stdin(self.container.as_str(), "").await
    }
}
