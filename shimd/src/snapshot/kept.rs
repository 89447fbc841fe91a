//! The ways in which snapshots are kept, under the names that containerd's clients know.

use std::sync::{Arc, Weak};

use tokio::sync::Semaphore;

use super::{Mount, Request, Snapshots};
use crate::db::Table;
use crate::db::record::SnapshotKind;
use crate::diff::run_blocking;
use crate::error::{Chain, Error, Result};

/// How snapshots are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Snapshotter {
    /// Each is what it has beyond its parents, and overlayfs puts them together: what clients use by default.
    Overlayfs,
    /// Each is a whole directory, copied of its parent.
    Native,
}

impl Snapshotter {
    pub(crate) const ALL: [Snapshotter; 2] = [Snapshotter::Overlayfs, Snapshotter::Native];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Snapshotter::Overlayfs => "overlayfs",
            Snapshotter::Native => "native",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Snapshotter> {
        Snapshotter::ALL.into_iter().find(|snapshotter| snapshotter.name() == name)
    }

    /// As what a lease holds its snapshots.
    pub(crate) const fn resource(self) -> &'static str {
        match self {
            Snapshotter::Overlayfs => "snapshots/overlayfs",
            Snapshotter::Native => "snapshots/native",
        }
    }

    /// Name of the directory of its snapshots.
    pub(crate) const fn directory(self) -> &'static str {
        match self {
            Snapshotter::Overlayfs => "snapshots",
            Snapshotter::Native => "native",
        }
    }

    pub(crate) const fn table(self) -> Table {
        match self {
            Snapshotter::Overlayfs => Table::Snapshots,
            Snapshotter::Native => Table::NativeSnapshots,
        }
    }

    /// Most layers that can be mounted as one: overlayfs takes 500 lower directories. `None` where the last layer is
    /// the whole.
    pub(crate) const fn layers_max(self) -> Option<usize> {
        match self {
            Snapshotter::Overlayfs => Some(500),
            Snapshotter::Native => None,
        }
    }

    /// Table of who stands on whom.
    pub(super) const fn children(self) -> Table {
        match self {
            Snapshotter::Overlayfs => Table::SnapshotChildren,
            Snapshotter::Native => Table::NativeSnapshotChildren,
        }
    }
}

/// Copies of snapshots at once; more wait. All use one disk, and threads for file work that others need, too.
pub(super) const COPIES_MAX: usize = 4;

/// The snapshots of each snapshotter.
#[derive(Clone)]
pub(crate) struct Snapshotters {
    each: Arc<[Snapshots; 2]>,
    copies: Arc<Semaphore>,
}

impl Snapshotters {
    /// Opens each by `open`.
    pub(crate) fn open(open: impl Fn(Snapshotter) -> Result<Snapshots>) -> Result<Snapshotters> {
        let [first, second] = Snapshotter::ALL;
        let each = Arc::new([open(first)?, open(second)?]);
        Ok(Snapshotters { each, copies: Arc::new(Semaphore::new(COPIES_MAX)) })
    }

    pub(crate) fn of(&self, snapshotter: Snapshotter) -> &Snapshots {
        &self.each[snapshotter as usize]
    }

    /// Makes a snapshot, as [`Snapshots::make`] does, and blocks no thread that serves requests. A copy goes on to its
    /// end, whoever waits for it.
    pub(crate) async fn make(&self, of: Snapshotter, kind: SnapshotKind, request: Request) -> Result<Vec<Mount>> {
        self.make_or_undo(of, kind, request, None).await
    }

    /// The same for who will not look for it: a snapshot whose caller went away while it was copied goes, too. Who goes
    /// away later removes it himself.
    pub(crate) async fn make_while_wanted(
        &self,
        of: Snapshotter,
        kind: SnapshotKind,
        request: Request,
    ) -> Result<Vec<Mount>> {
        let wanted = Arc::new(());
        self.make_or_undo(of, kind, request, Some(Arc::downgrade(&wanted))).await
    }

    async fn make_or_undo(
        &self,
        of: Snapshotter,
        kind: SnapshotKind,
        request: Request,
        wanted: Option<Weak<()>>,
    ) -> Result<Vec<Mount>> {
        if !self.of(of).copies(kind, &request) {
            return self.of(of).make(kind, request);
        }
        // The semaphore is never closed.
        let slot = self.copies.clone().acquire_owned().await;
        let all = self.clone();
        let (namespace, key) = (request.namespace.clone(), request.key.clone());
        run_blocking(move || {
            let made = all.of(of).make(kind, request);
            drop(slot);
            if made.is_ok()
                && wanted.is_some_and(|wanted| wanted.strong_count() == 0)
                && let Err(error) = all.of(of).remove(&namespace, &key)
                && !error.is_not_found()
            {
                tracing::warn!(error = %Chain(&error), "remove a snapshot that nobody waits for");
            }
            made
        })
        .await
    }

    /// Those of the snapshotter that a client names.
    pub(crate) fn named(&self, name: &str) -> Result<&Snapshots> {
        let names = || Snapshotter::ALL.map(Snapshotter::name).join(", ");
        let snapshotter = Snapshotter::named(name).ok_or_else(|| {
            Error::invalid(format!("snapshotter {name:?}"), format!("it is not loaded; there are {}", names()))
        })?;
        Ok(self.of(snapshotter))
    }

    /// Syncs what was committed. Blocks for as long as the disk needs.
    pub(crate) fn sync_committed(&self) -> Result<()> {
        let each = self.each.each_ref().map(Snapshots::sync_committed);
        each.into_iter().collect()
    }
}
