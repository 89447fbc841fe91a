//! What has to be done now and then, off everybody's path: syncing committed snapshots, making the store durable,
//! dropping layers that nobody applied.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::db::Store;
use crate::diff::provisional::Provisional;
use crate::diff::run_blocking;
use crate::error::Chain;
use crate::snapshot::Snapshotters;
use crate::sys;

/// How long after a commit of a snapshot its files are synced: the layers of one image go together.
const SYNC_DELAY: Duration = Duration::from_secs(1);
/// How often the store is looked after.
const TICK: Duration = Duration::from_secs(5);

/// The chores.
pub(crate) struct Upkeep {
    store: Arc<Store>,
    snapshots: Snapshotters,
    provisional: Arc<Provisional>,
    sync_wanted: Notify,
}

impl Upkeep {
    pub(crate) fn new(store: Arc<Store>, snapshots: Snapshotters, provisional: Arc<Provisional>) -> Upkeep {
        Upkeep { store, snapshots, provisional, sync_wanted: Notify::new() }
    }

    /// Says that a snapshot was committed.
    pub(crate) fn schedule_sync(&self) {
        self.sync_wanted.notify_one();
    }

    /// Does the chores until the future is dropped.
    pub(crate) async fn serve(&self) {
        tokio::join!(self.sync_snapshots(), self.tend_store());
    }

    async fn sync_snapshots(&self) {
        // Once at the start: the last run may have been killed before it had synced.
        loop {
            let snapshots = self.snapshots.clone();
            if let Err(error) = run_blocking(move || snapshots.sync_committed()).await {
                tracing::warn!(error = %Chain(&error), "sync committed snapshots");
            }
            self.sync_wanted.notified().await;
            tokio::time::sleep(SYNC_DELAY).await;
        }
    }

    async fn tend_store(&self) {
        let mut last_seq = None;
        loop {
            tokio::time::sleep(TICK).await;
            self.provisional.expire();
            let seq = self.store.seq();
            // A checkpoint holds up writers for an fsync: it waits for a quiet moment, unless the journal grows long.
            let is_quiet = last_seq == Some(seq);
            last_seq = Some(seq);
            if self.store.is_dirty() && (is_quiet || self.store.is_journal_long()) {
                self.checkpoint().await;
            }
        }
    }

    async fn checkpoint(&self) {
        let store = self.store.clone();
        if let Err(error) = run_blocking(move || store.checkpoint()).await {
            tracing::warn!(error = %Chain(&error), "make the metadata store durable");
        }
        // Work has ceased for now: what it used is given back.
        sys::trim_malloc();
    }
}
