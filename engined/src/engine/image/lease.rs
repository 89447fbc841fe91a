//! The lease of one pull: what becomes of all that a pull has made.
//!
//! ```text
//!  take ─▶ the pull works ─┬─ done ──────────────▶ end: the image's name holds everything now
//!                          ├─ failed, or cancelled ▶ abandon: ingests, unfinished snapshots and blobs go
//!                          └─ the registry is away ▶ leave: kept for RESUME_TIME, so that the next try goes on
//!  engine killed ─▶ at the next start the lease is one that was left
//! ```

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use strata_fault::Fault;

use super::Images;
use crate::containerd::Client;

/// How long what a pull has left is kept, for it to be resumed.
const RESUME_TIME: Duration = Duration::from_secs(15 * 60);
/// A lease whose engine never comes back ends by itself after this.
const LEASE_LIFE: Duration = Duration::from_secs(24 * 3600);
/// What the ids of our leases begin with.
const LEASE_PREFIX: &str = "strata-pull-";
/// What the references of our ingests begin with.
const INGEST_PREFIXES: [&str; 4] = ["layer-", "config-", "manifest-", "index-"];

/// The lease of one pull, and what was made under it that is of no use alone.
pub(super) struct Lease {
    pub(super) id: String,
    /// Whose requests' creations belong to the lease.
    pub(super) client: Client,
    images: Weak<Images>,
    made: Mutex<Made>,
}

#[derive(Default)]
pub(super) struct Made {
    pub(super) ingests: HashSet<String>,
    /// Keys of snapshots that are being filled.
    pub(super) snapshots: HashSet<String>,
    /// Somebody has seen to what becomes of all this.
    settled: bool,
}

impl Lease {
    pub(super) async fn take(images: &Arc<Images>) -> Result<Lease, Fault> {
        let id = format!("{LEASE_PREFIX}{}-{}", images.life, unique());
        let client = images.client.with_lease(&id).expect("letters, digits and hyphens can stand in a header");
        images.client.create_lease(&id, LEASE_LIFE).await?;
        Ok(Lease { id, client, images: Arc::downgrade(images), made: Mutex::default() })
    }

    pub(super) fn made(&self) -> std::sync::MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pull is done: what it made is held by the image's name now.
    pub(super) async fn end(&self) {
        self.made().settled = true;
        let Some(images) = self.images.upgrade() else { return };
        let id = self.id.clone();
        let left = if images.pulls.are_several() { Vec::new() } else { images.left.take() };
        // A task of its own: a client that goes at this moment cancels the pull, but not this.
        let ending = tokio::spawn(async move {
            images.end_lease(&id).await;
            images.forget_leases(left).await;
        });
        if let Err(error) = ending.await {
            tracing::error!(%error, "ending a lease failed by a bug");
        }
    }

    /// The pull has failed for good.
    pub(super) async fn abandon(&self) {
        let made = std::mem::replace(&mut *self.made(), Made { settled: true, ..Made::default() });
        let (Some(images), id) = (self.images.upgrade(), self.id.clone()) else { return };
        let cleaning = tokio::spawn(async move { clean(&images, &id, made).await });
        if let Err(error) = cleaning.await {
            tracing::error!(%error, "cleaning up after a pull failed by a bug");
        }
    }

    /// The pull has failed, but may be tried again soon: its blobs and ingests are kept for a while.
    pub(super) fn leave(&self) {
        self.made().settled = true;
        let Some(images) = self.images.upgrade() else { return };
        images.left.add(self.id.clone());
        let weak = Weak::clone(&self.images);
        let id = self.id.clone();
        tokio::spawn(async move {
            tokio::time::sleep(RESUME_TIME).await;
            if let Some(images) = weak.upgrade()
                && images.left.remove(&id)
            {
                images.forget_leases(vec![id]).await;
            }
        });
    }
}

impl Drop for Lease {
    /// The pull was cancelled: every client that waited for it has gone.
    fn drop(&mut self) {
        let made = std::mem::take(&mut *self.made());
        if made.settled {
            return;
        }
        let (Some(images), id) = (self.images.upgrade(), self.id.clone()) else { return };
        tokio::spawn(async move { clean(&images, &id, made).await });
    }
}

/// Takes away what a pull has made; goes on past a failure, and leaves the rest to the end of the lease.
async fn clean(images: &Images, lease: &str, made: Made) {
    let mut failed = Vec::new();
    for ingest in &made.ingests {
        failed.extend(images.client.abort_ingest(ingest).await.err());
    }
    for key in &made.snapshots {
        failed.extend(images.client.remove_snapshot(&images.snapshotter, key).await.err());
    }
    failed.extend(images.client.delete_lease(lease).await.err());
    for fault in failed {
        tracing::warn!(lease, error = fault.one_line(), "the rest of a pull that failed is not all gone");
    }
}

/// Leases of pulls that failed or were killed, kept for the pull that tries again.
#[derive(Default)]
pub(super) struct Left(Mutex<Vec<String>>);

impl Left {
    fn list(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, id: String) {
        self.list().push(id);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.list())
    }

    /// Whether it was still there.
    fn remove(&self, id: &str) -> bool {
        let mut list = self.list();
        let before = list.len();
        list.retain(|other| other != id);
        list.len() < before
    }
}

impl Images {
    async fn end_lease(&self, lease: &str) {
        if let Err(fault) = self.client.delete_lease(lease).await {
            tracing::warn!(lease, error = fault.one_line(), "a lease stays until it ends by itself");
        }
    }

    /// Ends leases that were left, and throws away the ingests that nobody writes any more.
    async fn forget_leases(&self, leases: Vec<String>) {
        if leases.is_empty() {
            return;
        }
        for lease in &leases {
            self.end_lease(lease).await;
        }
        if let Err(fault) = self.abort_idle_ingests().await {
            tracing::warn!(error = fault.one_line(), "ingests of pulls that failed stay");
        }
    }

    /// Leases of an earlier life of this engine; those of this life are in use.
    fn leave_killed(&self, leases: Vec<String>) {
        let own = format!("{LEASE_PREFIX}{}-", self.life);
        leases.into_iter().filter(|id| !id.starts_with(&own)).for_each(|id| self.left.add(id));
    }

    async fn abort_idle_ingests(&self) -> Result<(), Fault> {
        for reference in self.client.list_ingests().await? {
            let digest = INGEST_PREFIXES.iter().find_map(|kind| reference.strip_prefix(kind));
            if digest.is_some_and(|digest| !self.gates.is_busy(digest)) {
                self.client.abort_ingest(&reference).await?;
            }
        }
        Ok(())
    }
}

/// After a start: pulls of an engine that was killed can be resumed for a while, then their traces go.
pub(super) async fn forget_killed_pulls(images: Weak<Images>) {
    let Some(client) = images.upgrade().map(|images| images.client.clone()) else { return };
    let leases = loop {
        match client.list_leases(LEASE_PREFIX).await {
            Ok(leases) => break leases,
            Err(_) if images.strong_count() > 0 => tokio::time::sleep(Duration::from_secs(1)).await,
            Err(_) => return,
        }
    };
    let Some(()) = images.upgrade().map(|images| images.leave_killed(leases)) else { return };
    tokio::time::sleep(RESUME_TIME).await;
    if let Some(images) = images.upgrade() {
        images.forget_leases(images.left.take()).await;
    }
}

/// A word that no other pull has.
pub(super) fn unique() -> String {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).expect("the kernel has random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn words_are_unique() {
        assert_ne!(unique(), unique());
        assert_eq!(unique().len(), 16);
    }

    #[test]
    fn what_was_left_is_taken_once() {
        let left = Left::default();
        left.add("a".to_owned());
        left.add("b".to_owned());
        assert!(left.remove("a") && !left.remove("a"));
        assert_eq!(left.take(), ["b"]);
        assert!(left.take().is_empty());
    }
}
