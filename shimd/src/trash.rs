//! Getting rid of trees off the callers' paths.
//!
//! What shall go is renamed into the trash, which takes one system call, and removed by a thread that does nothing else.
//! What a killed process left there goes at the next start.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::{layout, tree};

/// The trash of one file system.
pub(crate) struct Trash {
    directory: PathBuf,
    next: AtomicU64,
    /// Unbounded on purpose: an entry is a path, and its files take far more than that on disk.
    doomed: Sender<PathBuf>,
}

impl Trash {
    /// Opens the trash at `directory` and begins to empty it.
    pub(crate) fn open(directory: PathBuf) -> Result<Trash> {
        let failed = |source| Error::io(format!("open the trash {}", directory.display()), source);
        layout::make_private(&directory).map_err(failed)?;
        let (doomed, receiver) = channel();
        let mut next = 0;
        for entry in std::fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let number = entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok());
            next = next.max(number.unwrap_or_default() + 1);
            // The receiver is at hand: sending cannot fail.
            let _ = doomed.send(entry.path());
        }
        let spawned =
            std::thread::Builder::new().name("trash".to_owned()).stack_size(256 << 10).spawn(move || empty(&receiver));
        spawned.map_err(failed)?;
        Ok(Trash { directory, next: AtomicU64::new(next), doomed })
    }

    /// Takes the tree at `path` away; one that is not there is fine.
    pub(crate) fn take(&self, path: &Path) -> Result<()> {
        let place = self.directory.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        match rustix::fs::rename(path, &place) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(Error::io(format!("move {} to the trash", path.display()), error)),
        }
        // The thread ends only with the sender.
        let _ = self.doomed.send(place);
        Ok(())
    }
}

fn empty(doomed: &Receiver<PathBuf>) {
    for path in doomed {
        if let Err(error) = tree::remove(&path) {
            // It stays until the next start.
            tracing::warn!(path = %path.display(), %error, "empty the trash");
        }
    }
}
