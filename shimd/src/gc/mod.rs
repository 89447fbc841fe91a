//! Garbage collection: what nothing refers to goes, exactly that, and its space comes back.
//!
//! References are containerd's: images and containers are roots, leases hold what they list, labels named
//! `containerd.io/gc.…` make further roots and edges, a snapshot needs its parent. [`graph`] reads them all and marks.
//!
//! A collection marks on a view of the store, beside everything else that goes on. Only when that finds something does
//! it take the store's write lock, mark again if anything was written since, and remove the records in one transaction:
//! so nothing that was referred to at that moment can go. Files follow after.
//!
//! Collections are asked for by removals, run a moment later, one at a time, and never on a caller's path but where
//! the caller asks for it (`sync`).

mod graph;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, Notify};

use crate::content::Content;
use crate::db::{Durability, Store, Table, Writer, key};
use crate::diff::run_blocking;
use crate::error::{Chain, Result};
use crate::lease;
use crate::name::{Digest, Namespace};
use crate::snapshot::{Snapshotter, Snapshotters};
use crate::sys;
use graph::{Graph, Node, Scope, UNLEASED_AGE};

/// How long after a removal the collection begins; more removals are taken along.
const DELAY: Duration = Duration::from_millis(500);
/// A collection may take this part of the time.
const PAUSE_FACTOR: u32 = 50;

/// The collector.
pub(crate) struct Gc {
    store: Arc<Store>,
    content: Arc<Content>,
    snapshots: Snapshotters,
    wanted: Arc<Notify>,
    comes_back: Arc<AtomicBool>,
    running: Mutex<()>,
}

/// What was taken out of the store, and whose files must go now.
#[derive(Default)]
struct Doomed {
    blobs: Vec<Digest>,
    ingests: Vec<u64>,
    snapshots: Vec<(Snapshotter, u64)>,
    count: usize,
}

impl Gc {
    pub(crate) fn new(store: Arc<Store>, content: Arc<Content>, snapshots: Snapshotters) -> Gc {
        Gc { store, content, snapshots, wanted: Arc::default(), comes_back: Arc::default(), running: Mutex::new(()) }
    }

    /// Asks for a collection, soon.
    pub(crate) fn schedule(&self) {
        self.wanted.notify_one();
    }

    /// Collects whenever it was asked for, until the future is dropped.
    pub(crate) async fn serve(&self) {
        loop {
            self.wanted.notified().await;
            tokio::time::sleep(DELAY).await;
            let began = Instant::now();
            match self.collect(Scope::Settled).await {
                Ok(0) => {}
                Ok(_) => self.come_back(),
                Err(error) => tracing::warn!(error = %Chain(&error), "collect garbage"),
            }
            tokio::time::sleep(began.elapsed() * PAUSE_FACTOR).await;
        }
    }

    /// Collects all there is now, and returns when it is done.
    pub(crate) async fn run(&self) -> Result<()> {
        self.collect(Scope::All).await.map(drop)
    }

    /// Tells how many blobs were too young.
    async fn collect(&self, scope: Scope) -> Result<usize> {
        let _running = self.running.lock().await;
        let (store, content, snapshots) = (self.store.clone(), self.content.clone(), self.snapshots.clone());
        run_blocking(move || collect(&store, &content, &snapshots, scope)).await
    }

    /// Asks for another collection when what is too young now is not any more. One is enough for all of them.
    fn come_back(&self) {
        if self.comes_back.swap(true, Ordering::Relaxed) {
            return;
        }
        let (wanted, comes_back) = (self.wanted.clone(), self.comes_back.clone());
        tokio::spawn(async move {
            tokio::time::sleep(UNLEASED_AGE).await;
            comes_back.store(false, Ordering::Relaxed);
            wanted.notify_one();
        });
    }
}

fn collect(store: &Store, content: &Content, snapshots: &Snapshotters, scope: Scope) -> Result<usize> {
    // Taken before the view: a write in between makes the number stale, which only costs a second marking.
    let seq = store.seq();
    let graph = Graph::read(&store.read()?, scope)?;
    let young = graph.young;
    let garbage = graph.unmarked();
    if garbage.is_empty() {
        return Ok(young);
    }
    let doomed = {
        // No blob appears or goes while the records say otherwise.
        let _publishing = content.publishing();
        let doomed = store.write(Durability::Process, |writer| {
            let garbage = if store.seq() == seq { garbage } else { Graph::read(writer, scope)?.unmarked() };
            remove_records(writer, content, snapshots, garbage)
        })?;
        content.remove_files(&doomed.blobs, &doomed.ingests);
        doomed
    };
    for (snapshotter, number) in doomed.snapshots {
        snapshots.of(snapshotter).discard(number);
    }
    tracing::debug!(count = doomed.count, "garbage was collected");
    sys::trim_malloc();
    Ok(young)
}

fn remove_records(
    writer: &mut Writer,
    content: &Content,
    snapshots: &Snapshotters,
    garbage: Vec<(Namespace, Node)>,
) -> Result<Doomed> {
    let mut doomed = Doomed { count: garbage.len(), ..Doomed::default() };
    for (namespace, node) in garbage {
        match node {
            Node::Blob(digest) => {
                let digest = Digest::parse(&digest)?;
                if content.delete_in(writer, &namespace, &digest)? {
                    doomed.blobs.push(digest);
                }
            }
            // An ingest that somebody writes is not garbage, whatever the records say.
            Node::Ingest(name) => doomed.ingests.extend(content.abort_in(writer, &namespace, &name)?),
            Node::Snapshot(snapshotter, name) => {
                let number = snapshots.of(snapshotter).remove_in(writer, &namespace, &name)?;
                doomed.snapshots.push((snapshotter, number));
            }
            Node::Image(name) => writer.remove(Table::Images, &key(&[namespace.as_str(), &name]))?,
            Node::Lease(name) => lease::delete_in(writer, &namespace, &name)?,
            Node::Container(_) => {}
        }
    }
    Ok(doomed)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod whole;
