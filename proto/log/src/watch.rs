//! Waiting for logs to grow, by inotify: one file descriptor for any number of logs.
//!
//! A watcher wakes for each log whose writer appended, began a segment or changed its state. It is level-free: watch
//! first, then read until [`crate::Next::Pending`], then wait; nothing is missed in that order. A process may have only
//! 128 inotify instances, so a daemon keeps one watcher for all its readers.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify;
use rustix::io::Errno;

use crate::Error;

/// A log that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WatchId(i32);

/// Watches logs.
#[derive(Debug)]
pub struct Watcher {
    inotify: OwnedFd,
    /// How many readers want each watch: the kernel has one per directory.
    wanted: Mutex<HashMap<WatchId, usize>>,
}

impl Watcher {
    /// A watcher of nothing.
    ///
    /// # Errors
    /// The user has too many inotify instances.
    pub fn new() -> io::Result<Watcher> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        Ok(Watcher { inotify: inotify::init(flags)?, wanted: Mutex::default() })
    }

    /// Watches the log in `directory`; watching it twice gives the same id and wants two calls of
    /// [`Watcher::unwatch`].
    ///
    /// # Errors
    /// No such directory, or the user has too many watches: wait by time then.
    pub fn watch(&self, directory: &Path) -> Result<WatchId, Error> {
        let events = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::ONLYDIR;
        let mut wanted = self.wanted();
        let id = inotify::add_watch(&self.inotify, directory, events).map(WatchId).map_err(|error| Error::Io {
            attempt: "watch",
            path: directory.to_owned(),
            source: error.into(),
        })?;
        *wanted.entry(id).or_default() += 1;
        Ok(id)
    }

    /// Ends one [`Watcher::watch`].
    pub fn unwatch(&self, id: WatchId) {
        let mut wanted = self.wanted();
        let Some(count) = wanted.get_mut(&id) else { return };
        *count -= 1;
        if *count == 0 {
            wanted.remove(&id);
            // The directory may be gone, and its watch with it.
            let _ = inotify::remove_watch(&self.inotify, id.0);
        }
    }

    /// Reads what has happened; never waits. Each id may come more than once. When the kernel's queue overflowed, all
    /// ids come.
    ///
    /// # Errors
    /// The inotify instance cannot be read.
    pub fn drain(&self) -> io::Result<Vec<WatchId>> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut ids: Vec<WatchId> = Vec::new();
        loop {
            match events.next() {
                Ok(event) if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) => {
                    ids.extend(self.wanted().keys());
                }
                Ok(event) if ids.last() != Some(&WatchId(event.wd())) => ids.push(WatchId(event.wd())),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok(ids),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until something happened or `limit` is over, and forgets what it was: for a program that reads one log.
    ///
    /// # Errors
    /// The inotify instance cannot be read.
    pub fn wait(&self, limit: Option<Duration>) -> io::Result<()> {
        let limit = limit.map(|limit| Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        let mut fds = [PollFd::new(&self.inotify, PollFlags::IN)];
        match rustix::event::poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => self.drain().map(drop),
            Err(error) => Err(error.into()),
        }
    }

    fn wanted(&self) -> MutexGuard<'_, HashMap<WatchId, usize>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Watcher {
    /// Readable when [`Watcher::drain`] has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
