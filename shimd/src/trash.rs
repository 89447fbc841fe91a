//! Getting rid of trees off the callers' paths.
//!
//! What shall go is renamed into the trash, which takes one system call, and removed by a thread that does nothing
//! else. What a killed process left there goes at the next start.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::{layout, tree};

/// Pauses before what could not be removed is tried again.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// What is too deep for so many moves at once is gone on with later: a container may still make directories in it, and
/// others wait.
const MOVES_MAX: u64 = 10_000;

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

/// Removes what comes. What cannot be removed is tried again: something may be mounted in it still, or somebody may
/// still have it open and put files there.
fn empty(doomed: &Receiver<PathBuf>) {
    let mut left = Vec::new();
    let mut pause = PAUSE_MIN;
    let mut next = Instant::now();
    loop {
        let came = if left.is_empty() {
            doomed.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            doomed.recv_timeout(next.saturating_duration_since(Instant::now()))
        };
        match came {
            Ok(path) => {
                if let Err(error) = remove(&path) {
                    tracing::warn!(path = %path.display(), %error, "empty the trash");
                    let soon = Instant::now() + PAUSE_MIN;
                    // Never later than it would have been: those that are left do not wait for an end of such failures.
                    (pause, next) = (PAUSE_MIN, if left.is_empty() { soon } else { next.min(soon) });
                    left.push(path);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if !left.is_empty() && Instant::now() >= next {
            left.retain(|path| remove(path).is_err());
            pause = (pause * 2).min(PAUSE_MAX);
            next = Instant::now() + pause;
        }
    }
}

fn remove(path: &Path) -> rustix::io::Result<()> {
    tree::remove_in_moves(path, MOVES_MAX)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{IFlags, ioctl_setflags};

    use super::*;

    /// A directory with a file in it that cannot be removed until this goes.
    struct Stubborn(std::fs::File);

    impl Stubborn {
        fn make(directory: &Path) -> Option<Stubborn> {
            std::fs::create_dir(directory).unwrap();
            let file = std::fs::File::create(directory.join("f")).unwrap();
            let set = ioctl_setflags(&file, IFlags::IMMUTABLE);
            let set = set.inspect_err(|error| eprintln!("skipped: nothing can be made immutable here: {error}"));
            set.ok().map(|()| Stubborn(file))
        }
    }

    impl Drop for Stubborn {
        fn drop(&mut self) {
            let _ = ioctl_setflags(&self.0, IFlags::empty());
        }
    }

    #[test]
    fn what_is_left_does_not_wait_until_all_else_can_be_removed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let trash = Trash::open(at("trash")).unwrap();
        let Some(first) = Stubborn::make(&at("first")) else { return };
        trash.take(&at("first")).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        drop(first);
        let mut others = Vec::new();
        let began = Instant::now();
        while at("trash/0").exists() {
            assert!(began.elapsed() < Duration::from_secs(20), "it is still there");
            others.push(Stubborn::make(&at("other")));
            trash.take(&at("other")).unwrap();
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    #[test]
    fn what_cannot_be_removed_is_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let (root, doomed) = (directory.path().join("trash"), directory.path().join("doomed"));
        std::fs::create_dir_all(doomed.join("d")).unwrap();
        let stubborn = std::fs::File::create(doomed.join("d/f")).unwrap();
        if let Err(error) = ioctl_setflags(&stubborn, IFlags::IMMUTABLE) {
            eprintln!("skipped: nothing can be made immutable here: {error}");
            return;
        }
        let trash = Trash::open(root.clone()).unwrap();
        trash.take(&doomed).unwrap();
        let other = directory.path().join("other");
        std::fs::create_dir(&other).unwrap();
        trash.take(&other).unwrap();
        let count = || std::fs::read_dir(&root).unwrap().count();
        let began = Instant::now();
        let wait_for = |left: usize| {
            while count() != left {
                assert!(began.elapsed() < Duration::from_secs(20), "{} and not {left} are left", count());
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        wait_for(1);
        ioctl_setflags(&stubborn, IFlags::empty()).unwrap();
        wait_for(0);
    }
}
