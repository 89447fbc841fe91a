//! Layers into snapshots (Apply) and snapshots into layers (Diff).
//!
//! [`tar`] reads archives, [`stream`] decompresses, [`unpack`] makes files, [`provisional`] does it while a layer is
//! still arriving; this file finds out where a layer shall go and decides which way it takes.

mod compare;
pub(crate) mod make;
pub(crate) mod provisional;
mod shown;
mod sites;
pub(crate) mod store;
pub(crate) mod stream;
pub(crate) mod tar;
mod target;
pub(crate) mod unpack;

use std::any::Any;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use tokio::sync::Semaphore;

use crate::error::{Error, Result};
use crate::name::Digest;
use crate::sys;
use provisional::{Provisional, Tree};
use tar::Archive;
pub(crate) use target::Target;
use unpack::{Lower, Whiteouts};

/// The media type of what Apply says it applied.
pub(crate) const PLAIN_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layer as it is when nothing compresses it.
pub(crate) struct Applied {
    pub(crate) diff_id: Digest,
    pub(crate) size: u64,
}

/// Applies layers.
pub(crate) struct Differ {
    pub(crate) provisional: Arc<Provisional>,
    slots: Arc<Semaphore>,
}

impl Differ {
    pub(crate) fn new(provisional: Arc<Provisional>) -> Differ {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Differ { provisional, slots: Arc::new(Semaphore::new(cores.max(2))) }
    }

    /// Applies the blob `digest`, open as `blob`, to `target`.
    pub(crate) async fn apply(&self, digest: &Digest, blob: File, target: Target) -> Result<Applied> {
        if let Some(tree) = self.provisional.take(digest).await {
            let (provisional, target) = (self.provisional.clone(), target.clone());
            let adopted = run_blocking(move || {
                adopt(&tree, &target).inspect(|applied| applied.iter().for_each(|_| provisional.has_paid()))
            })
            .await?;
            if let Some(applied) = adopted {
                return Ok(applied);
            }
        }
        // The semaphore is never closed. The slot goes with the work, which goes on where the request does not.
        let slot = self.slots.clone().acquire_owned().await;
        let provisional = self.provisional.clone();
        run_blocking(move || {
            provisional.learn(&target);
            let applied = apply_blob(blob, &target);
            drop(slot);
            applied
        })
        .await
    }
}

tokio::task_local! {
    static HELD: Arc<dyn Any + Send + Sync>;
}

/// Does `work` and holds something meanwhile, also for the file work that it began and did not wait for.
pub(crate) async fn holding<F: Future>(held: Arc<dyn Any + Send + Sync>, work: F) -> F::Output {
    HELD.scope(held, work).await
}

/// Runs file work off the threads that serve requests. It is done to its end, whoever waits for it.
pub(crate) async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let held = HELD.try_with(Arc::clone).ok();
    let work = move || {
        let outcome = work();
        drop(held);
        outcome
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(failure) => std::panic::resume_unwind(failure.into_panic()),
    }
}

/// Renames a tree into the target, if that is empty and the tree can be what the target wants.
fn adopt(tree: &Tree, target: &Target) -> Result<Option<Applied>> {
    // In a first layer whiteouts hide nothing; that they are not there at all is seen by who mounts it alone.
    if target.whiteouts == Whiteouts::Remove && tree.report.has_whiteouts {
        return Ok(None);
    }
    let failed = |error: Errno| Error::io(format!("take a layer over into {}", target.root.display()), error);
    let root = tree.root();
    let handle = open_directory(&root)?;
    if !tree.report.has_root {
        unpack::copy_root_attributes(open_directory(&target.root)?.as_fd(), handle.as_fd())?;
    }
    let layers = target.open_lower()?;
    for path in &tree.report.implicit {
        let directory = unpack::open_beneath(handle.as_fd(), path).map_err(failed)?;
        unpack::copy_directory_attributes(&layers, path, directory.as_fd())?;
    }
    // Replaces an empty directory, and no other.
    match rustix::fs::rename(&root, &target.root) {
        Ok(()) => Ok(Some(Applied { diff_id: tree.diff_id.clone(), size: tree.size })),
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::XDEV) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

fn apply_blob(blob: File, target: &Target) -> Result<Applied> {
    let root = open_directory(&target.root)?;
    let lower = Lower::Known(target.open_lower()?);
    let whiteouts = target.whiteouts;
    let (filler, digester, chunks) = stream::pipe_with_digest();
    // Threads of their own, not the pool's: the unpacking one changes its umask for good.
    std::thread::scope(|scope| {
        scope.spawn(move || filler.run(blob));
        scope.spawn(move || digester.run());
        let unpacking = scope.spawn(move || {
            sys::private_umask().map_err(|error| Error::io("unshare the umask of a thread", error))?;
            let mut archive = Archive::new(chunks);
            unpack::unpack(&mut archive, root, lower, whiteouts)?;
            let (diff_id, size) = archive.into_reader().finish()?;
            Ok(Applied { diff_id, size })
        });
        match unpacking.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    File::open(path).map(OwnedFd::from).map_err(|error| Error::io(format!("open {}", path.display()), error))
}
