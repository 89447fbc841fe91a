//! Who waits for which log to grow: one inotify instance for all readers.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use strata_log::{WatchId, Watcher};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::sys;

/// Wakes readers of logs.
#[derive(Clone)]
pub(crate) struct LogWatch(Arc<Inner>);

struct Inner {
    watcher: Watcher,
    readers: Mutex<HashMap<WatchId, Readers>>,
}

/// The readers of one log.
#[derive(Default)]
struct Readers {
    notify: Arc<Notify>,
    count: usize,
}

/// What tokio's reactor wants of a descriptor.
struct Descriptor(Arc<Inner>);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.watcher.as_fd().as_raw_fd()
    }
}

/// One reader's wish to be woken; it ends when dropped.
pub(crate) struct Woken {
    inner: Arc<Inner>,
    id: WatchId,
    notify: Arc<Notify>,
}

impl LogWatch {
    /// Begins to watch, with a task of its own.
    pub(crate) fn new() -> std::io::Result<LogWatch> {
        let inner = Arc::new(Inner { watcher: Watcher::new()?, readers: Mutex::default() });
        let descriptor = sys::readable(Descriptor(Arc::clone(&inner)))?;
        tokio::spawn(wake(descriptor));
        Ok(LogWatch(inner))
    }

    /// Watches the log in `directory`. Ask for [`Woken::notify`], then read until nothing is there, then wait.
    pub(crate) fn watch(&self, directory: &Path) -> Result<Woken, strata_log::Error> {
        let mut readers = self.0.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let id = self.0.watcher.watch(directory)?;
        let of_log = readers.entry(id).or_default();
        of_log.count += 1;
        Ok(Woken { inner: Arc::clone(&self.0), id, notify: Arc::clone(&of_log.notify) })
    }
}

impl Woken {
    /// Notified when the log grew.
    pub(crate) fn notify(&self) -> Arc<Notify> {
        Arc::clone(&self.notify)
    }
}

impl Drop for Woken {
    fn drop(&mut self) {
        let mut readers = self.inner.readers.lock().unwrap_or_else(PoisonError::into_inner);
        self.inner.watcher.unwatch(self.id);
        if let Some(of_log) = readers.get_mut(&self.id) {
            of_log.count -= 1;
            if of_log.count == 0 {
                readers.remove(&self.id);
            }
        }
    }
}

async fn wake(descriptor: AsyncFd<Descriptor>) {
    loop {
        let mut ready = match descriptor.readable().await {
            Ok(ready) => ready,
            Err(error) => return tracing::error!(%error, "readers of logs are woken no more"),
        };
        let inner = &descriptor.get_ref().0;
        // Cleared before it is read: what comes between is seen by the read or sets it again.
        ready.clear_ready();
        match inner.watcher.drain() {
            Ok(ids) => {
                let readers = inner.readers.lock().unwrap_or_else(PoisonError::into_inner);
                for reader in ids.iter().filter_map(|id| readers.get(id)) {
                    reader.notify.notify_waiters();
                }
            }
            Err(error) => return tracing::error!(%error, "readers of logs are woken no more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use strata_log::{Limits, Stream, Target, Writer};

    #[tokio::test]
    async fn a_reader_is_woken_by_the_writer() {
        let directory = tempfile::tempdir().unwrap();
        let target = Target { directory: directory.path().join("log"), limits: Limits::default() };
        let mut writer = Writer::open(&target, 1).unwrap();
        let watch = LogWatch::new().unwrap();
        let woken = watch.watch(&target.directory).unwrap();
        let notify = woken.notify();
        let notified = notify.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        writer.append(Stream::Stdout, 2, b"hello").unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(5), notified).await.unwrap();
        drop(woken);
        assert!(watch.0.readers.lock().unwrap().is_empty());
    }
}
