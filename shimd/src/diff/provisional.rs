//! Layers unpacked while they arrive.
//!
//! A write of content that names the layer's diff id (label [`DIFF_ID_LABEL`]) also tells a [`Feed`] how far its file
//! is: what is there is decompressed and unpacked into a directory of its own, of which nobody knows. When the blob is
//! committed and both digests are right, the tree is kept under the blob's digest; the first Apply of that blob to an
//! empty snapshot takes it by renaming. Whatever goes wrong on this way is forgotten: Apply then unpacks the blob as
//! usual, and it is Apply that reports what is wrong with a layer.
//!
//! containerd's clients promise no diff id, but name the ingest of a layer that they pull [`LAYER_REFERENCE`], and
//! apply it next. Those layers are unpacked as they arrive too, where there is room enough for one that nobody applies;
//! it goes with its blob, or after [`KEEP`]. Where the last layers went on top of whole directories (the snapshotter
//! `native`), the next will, too, which cannot take a tree over: then nothing is unpacked for them. Their diff id is
//! what they turn out to have, which Apply tells the client.
//!
//! The bytes are read back from the file, which the kernel has in memory still: a layer that is unpacked slowly holds
//! up neither its own arrival, nor that of others on the same connection.
//!
//! Nothing here survives the process: what is left of another run is removed at start.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::run_blocking;
use super::sites::Sites;
use super::stream::{self, Chunks};
use super::tar::Archive;
use super::target::Target;
use super::unpack::{self, Lower, Report, Whiteouts};
use crate::error::{Chain, Error, Result};
use crate::name::Digest;
use crate::snapshot::Snapshotter;
use crate::{layout, sys, tree};

/// A content write whose first message has this label is unpacked as it arrives; the value is the layer's diff id.
pub(crate) const DIFF_ID_LABEL: &str = "strata.io/unpack.diff-id";

/// What the names of ingests begin with that are layers on their way from a registry (containerd's `remotes` package).
const LAYER_REFERENCE: &str = "layer-";
/// A layer that may be for nobody is unpacked where so many times its size is free.
const ROOM: u64 = 16;

/// How long a tree waits for its Apply.
const KEEP: Duration = Duration::from_secs(600);

/// Why a write is unpacked as it arrives.
pub(crate) enum Prospect {
    /// The client says what will come of it.
    Promised(Digest),
    /// It is called as layers are that are pulled; so many compressed bytes are to come.
    Likely { size: u64 },
}

impl Prospect {
    /// What an ingest's name and size let expect.
    pub(crate) fn of(reference: &str, size: u64) -> Option<Prospect> {
        (reference.starts_with(LAYER_REFERENCE) && size > 0).then_some(Prospect::Likely { size })
    }
}

/// The trees that wait, and the means to make them.
pub(crate) struct Provisional {
    directory: PathBuf,
    next: AtomicU64,
    sites: Arc<Sites>,
    slots: Arc<Semaphore>,
    /// Where snapshots are that are no copies.
    overlays: PathBuf,
    trees: Mutex<HashMap<Digest, Waiting>>,
    /// Clients apply layers to directories of their own.
    pays: AtomicBool,
}

struct Waiting {
    claim: Claim,
    outcome: watch::Receiver<Outcome>,
    since: Instant,
}

/// The right to unpack a layer: whoever wants the layer first, or a slot that is free.
#[derive(Clone, Default)]
struct Claim(Arc<AtomicBool>);

impl Claim {
    fn is_mine(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }
}

#[derive(Clone)]
enum Outcome {
    /// Or waiting for a slot.
    Working,
    Failed,
    Ready(Arc<Tree>),
}

/// An unpacked layer; its files go when it is dropped and nobody took them.
pub(crate) struct Tree {
    /// Holds `fs`.
    place: Place,
    pub(crate) diff_id: Digest,
    pub(crate) size: u64,
    pub(crate) report: Report,
}

impl Tree {
    pub(crate) fn root(&self) -> PathBuf {
        self.place.root()
    }
}

/// The directory of one layer, which goes with this.
struct Place(PathBuf);

impl Place {
    fn make(sites: &Sites, directory: PathBuf) -> Result<Place> {
        sites.make(&directory).map_err(|error| Error::io(format!("make {}", directory.display()), error))?;
        Ok(Place(directory))
    }

    fn root(&self) -> PathBuf {
        self.0.join("fs")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let directory = self.0.clone();
        // Off every caller's path: a tree may have many files.
        let spawned = std::thread::Builder::new().name("provisional".to_owned()).spawn(move || discard(&directory));
        if spawned.is_err() {
            discard(&self.0);
        }
    }
}

fn discard(directory: &Path) {
    if let Err(error) = tree::remove(directory) {
        tracing::warn!(directory = %directory.display(), %error, "remove a provisional layer");
    }
}

impl Provisional {
    /// Makes its directory in `root` empty.
    pub(crate) fn open(root: &Path) -> Result<Provisional> {
        let directory = root.join("provisional");
        let failed = |error| Error::io(format!("empty {}", directory.display()), error);
        tree::remove(&directory).map_err(|error| failed(error.into()))?;
        layout::make_private(&directory).map_err(failed)?;
        let sites = Arc::new(Sites::open(root.join("sites"))?);
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        // Each is three threads, and the slowest of these is bound by the processor.
        let slots = Arc::new(Semaphore::new((cores * 2).clamp(4, 16)));
        let overlays = root.join(Snapshotter::Overlayfs.directory());
        let (next, trees, pays) = (AtomicU64::default(), Mutex::default(), true.into());
        Ok(Provisional { directory, next, sites, slots, overlays, trees, pays })
    }

    /// Unpacks a layer that arrives in `file`, as soon as there is a slot for it; `None` where there is little room.
    pub(crate) fn start(&self, prospect: &Prospect, file: &File) -> Option<Feed> {
        let diff_id = match prospect {
            Prospect::Promised(diff_id) => Some(diff_id.clone()),
            Prospect::Likely { size } => (self.pays.load(Ordering::Relaxed) && self.has_room(*size)).then_some(None)?,
        };
        let file = match file.try_clone() {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(%error, "unpack a layer as it arrives");
                return None;
            }
        };
        let directory = self.directory.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        Some(Feed::start(Layer { directory, sites: self.sites.clone(), file, diff_id }, self.slots.clone()))
    }

    fn has_room(&self, size: u64) -> bool {
        let Ok(space) = rustix::fs::statvfs(&self.directory) else { return false };
        size.saturating_mul(ROOM) <= space.f_bavail.saturating_mul(space.f_frsize)
    }

    /// Keeps what `feed` makes of its layer, now that its bytes are known to be the blob `digest` of `size` bytes.
    pub(crate) fn keep(&self, digest: Digest, size: u64, feed: Feed) {
        if !feed.arrival.end(size) {
            // It has seen something else than the whole blob.
            return;
        }
        let (claim, outcome) = (feed.claim.clone(), feed.outcome.clone());
        let mut trees = self.lock();
        trees.retain(|_, waiting| waiting.since.elapsed() < KEEP);
        trees.insert(digest, Waiting { claim, outcome, since: Instant::now() });
    }

    /// Learns from a layer that is applied whether others that come could be taken over where they go.
    pub(crate) fn learn(&self, target: &Target) {
        let is_empty = || !std::fs::read_dir(&target.root).is_ok_and(|mut entries| entries.next().is_some());
        let pays = match target.whiteouts {
            Whiteouts::Overlay => true,
            // The first layer, which would be taken over by any snapshotter. It tells something only of one that makes
            // no copies: of those that do, the next layers come on top.
            Whiteouts::Remove if is_empty() => {
                if !target.root.starts_with(&self.overlays) {
                    return;
                }
                true
            }
            Whiteouts::Remove => false,
        };
        self.pays.store(pays, Ordering::Relaxed);
    }

    /// A tree was taken over, wherever.
    pub(crate) fn has_paid(&self) {
        self.pays.store(true, Ordering::Relaxed);
    }

    /// Drops the tree of a blob that is removed.
    pub(crate) fn forget(&self, digest: &Digest) {
        self.lock().remove(digest);
    }

    /// Takes the tree of `digest`, waiting until it is ready; `None` if there is none, or it still has no slot: others
    /// may hold those for as long as their layers take to arrive.
    pub(crate) async fn take(&self, digest: &Digest) -> Option<Arc<Tree>> {
        let Waiting { claim, mut outcome, .. } = self.lock().remove(digest)?;
        if claim.is_mine() {
            return None;
        }
        let outcome = outcome.wait_for(|outcome| !matches!(outcome, Outcome::Working)).await.ok()?;
        match &*outcome {
            Outcome::Ready(tree) => Some(tree.clone()),
            Outcome::Working | Outcome::Failed => None,
        }
    }

    /// Drops trees whose Apply never came, and sites that nobody wanted.
    pub(crate) fn expire(&self) {
        self.sites.expire();
        self.lock().retain(|_, waiting| waiting.since.elapsed() < KEEP);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Waiting>> {
        self.trees.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A layer that shall be unpacked.
struct Layer {
    directory: PathBuf,
    sites: Arc<Sites>,
    file: File,
    /// What was promised.
    diff_id: Option<Digest>,
}

/// Is told how far the file of one layer is. Dropping it without [`Provisional::keep`] discards the layer.
pub(crate) struct Feed {
    claim: Claim,
    arrival: Arc<Arrival>,
    outcome: watch::Receiver<Outcome>,
}

impl Feed {
    fn start(layer: Layer, slots: Arc<Semaphore>) -> Feed {
        let (claim, arrival) = (Claim::default(), Arc::new(Arrival::default()));
        let (sender, outcome) = watch::channel(Outcome::Working);
        let feed = Feed { claim: claim.clone(), arrival: arrival.clone(), outcome };
        // Where a slot is free, nobody comes before it.
        let free = slots.clone().try_acquire_owned().ok().filter(|_| claim.is_mine());
        tokio::spawn(async move {
            let slot = match free {
                Some(slot) => slot,
                None => tokio::select! {
                    biased;
                    // Its writer gave up, or its blob is gone.
                    () = sender.closed() => return,
                    // The semaphore is never closed.
                    slot = slots.acquire_owned() => match slot {
                        Ok(slot) if claim.is_mine() => slot,
                        _ => return,
                    },
                },
            };
            if let Err(error) = run_blocking(move || layer.begin(arrival, sender, slot)).await {
                tracing::warn!(error = %Chain(&error), "unpack a layer as it arrives");
            }
        });
        feed
    }

    /// So many more bytes are in the file.
    pub(crate) fn push(&self, length: usize) {
        self.arrival.change(|so_far| so_far.bytes += length as u64);
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.arrival.change(|so_far| so_far.end = so_far.end.or(Some(End::GivenUp)));
    }
}

/// How much of a layer is there, and a call for those who wait for more.
#[derive(Default)]
struct Arrival {
    so_far: Mutex<SoFar>,
    changed: Condvar,
}

#[derive(Default)]
struct SoFar {
    bytes: u64,
    end: Option<End>,
}

#[derive(Clone, Copy)]
enum End {
    Whole,
    /// This is no whole layer.
    GivenUp,
}

impl Arrival {
    fn change(&self, change: impl FnOnce(&mut SoFar)) {
        change(&mut self.so_far.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

    /// This was all, if it was `size` bytes.
    fn end(&self, size: u64) -> bool {
        let mut is_whole = false;
        self.change(|so_far| {
            is_whole = so_far.bytes == size;
            so_far.end = Some(if is_whole { End::Whole } else { End::GivenUp });
        });
        is_whole
    }

    /// Waits until more than `at` bytes are there, and says how many are; none: there are no more.
    fn more_than(&self, at: u64) -> io::Result<Option<u64>> {
        let so_far = self.so_far.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |so_far: &mut SoFar| so_far.bytes <= at && so_far.end.is_none();
        let so_far = self.changed.wait_while(so_far, waits).unwrap_or_else(PoisonError::into_inner);
        match so_far.end {
            Some(End::GivenUp) => Err(io::ErrorKind::ConnectionAborted.into()),
            _ => Ok(Some(so_far.bytes).filter(|bytes| *bytes > at)),
        }
    }
}

impl Layer {
    /// Starts the threads that unpack it.
    fn begin(self, arrival: Arc<Arrival>, done: watch::Sender<Outcome>, slot: OwnedSemaphorePermit) -> Result<()> {
        let Layer { directory, sites, file, diff_id } = self;
        let place = Place::make(&sites, directory)?;
        let root = make_root(&place.root())?;
        let (filler, digester, chunks) = stream::pipe_with_digest();
        let work = move || {
            let tree = unpack_into(place, root, chunks, diff_id.as_ref());
            // Nobody may be waiting any more: then the tree goes with the value.
            let _ = done.send(tree.map_or(Outcome::Failed, |tree| Outcome::Ready(Arc::new(tree))));
            drop(slot);
        };
        spawn("unpack", work)?;
        spawn("digest", move || digester.run())?;
        spawn("decompress", move || filler.run(Arriving { file, at: 0, arrival }))
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).stack_size(512 << 10).spawn(work);
    spawned.map(drop).map_err(|error| Error::io("start a thread that unpacks a layer", error))
}

fn make_root(root: &Path) -> Result<OwnedFd> {
    let failed = |error| Error::io(format!("make {}", root.display()), error);
    std::fs::create_dir(root).map_err(failed)?;
    File::open(root).map(OwnedFd::from).map_err(failed)
}

/// Unpacks all of `chunks`, and throws away what is not the promised layer, if one was promised.
fn unpack_into(place: Place, root: OwnedFd, chunks: Chunks, promised: Option<&Digest>) -> Option<Tree> {
    match unpack_checked(root, chunks, promised) {
        Ok((report, diff_id, size)) => Some(Tree { place, diff_id, size, report }),
        Err(error) => {
            tracing::debug!(error = %Chain(&error), "a layer that arrives was not unpacked");
            None
        }
    }
}

fn unpack_checked(root: OwnedFd, chunks: Chunks, promised: Option<&Digest>) -> Result<(Report, Digest, u64)> {
    sys::private_umask().map_err(|error| Error::io("unshare the umask of a thread", error))?;
    let mut archive = Archive::new(chunks);
    let report = unpack::unpack(&mut archive, root, Lower::Unknown, Whiteouts::Overlay)?;
    let (diff_id, size) = archive.into_reader().finish()?;
    match promised {
        Some(promised) if *promised != diff_id => Err(Error::DigestMismatch {
            what: "unpacked layer".to_owned(),
            expected: promised.to_string(),
            actual: diff_id.to_string(),
        }),
        _ => Ok((report, diff_id, size)),
    }
}

/// The file of a layer, as far as it is there.
struct Arriving {
    file: File,
    at: u64,
    arrival: Arc<Arrival>,
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(there) = self.arrival.more_than(self.at)? else { return Ok(0) };
        let most = buffer.len().min(usize::try_from(there - self.at).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        if count == 0 && most > 0 {
            // It was made shorter: somebody began anew.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(of: &Provisional, directory: PathBuf) -> Layer {
        Layer { directory, sites: of.sites.clone(), file: tempfile::tempfile().unwrap(), diff_id: None }
    }

    fn directories_in(directory: &Path) -> usize {
        std::fs::read_dir(directory).unwrap().count()
    }

    #[tokio::test]
    async fn a_layer_that_cannot_be_begun_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let provisional = Provisional::open(root.path()).unwrap();
        // A path that is just short enough, but not for what comes below.
        let mut parent = root.path().join("long");
        while parent.as_os_str().len() < 3800 {
            parent.push("x".repeat(200));
        }
        std::fs::create_dir_all(&parent).unwrap();
        let directory = parent.join("x".repeat(4094 - parent.as_os_str().len()));
        let slot = provisional.slots.clone().try_acquire_owned().unwrap();
        let (done, _outcome) = watch::channel(Outcome::Working);
        let begun = layer(&provisional, directory).begin(Arc::default(), done, slot);
        assert!(begun.unwrap_err().to_string().contains("make "));
        let free = async {
            while directories_in(&parent) > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), free).await.expect("its directory goes");
    }

    #[tokio::test]
    async fn layers_pay_again_after_copies() {
        let root = tempfile::tempdir().unwrap();
        let provisional = Provisional::open(root.path()).unwrap();
        let starts = || provisional.start(&Prospect::Likely { size: 1 }, &tempfile::tempfile().unwrap()).is_some();
        let learn = |path: &str, whiteouts| {
            let place = root.path().join(path);
            std::fs::create_dir_all(&place).unwrap();
            provisional.learn(&Target { root: place, lower: Vec::new(), whiteouts });
        };
        std::fs::create_dir_all(root.path().join("native/2/fs/f")).unwrap();
        let of_a_copy = || learn("native/2/fs", Whiteouts::Remove);
        assert!(starts());
        of_a_copy();
        assert!(!starts());
        learn("native/3/fs", Whiteouts::Remove);
        assert!(!starts(), "the first of an image whose others are copies, as it may be");
        learn("snapshots/1/fs", Whiteouts::Remove);
        assert!(starts(), "an image of one layer");
        of_a_copy();
        learn("snapshots/2/fs", Whiteouts::Overlay);
        assert!(starts(), "a layer on others");
        of_a_copy();
        assert!(!starts());
        provisional.has_paid();
        assert!(starts());
    }

    #[tokio::test]
    async fn a_layer_that_is_given_up_waits_for_no_slot() {
        let root = tempfile::tempdir().unwrap();
        let provisional = Provisional::open(root.path()).unwrap();
        let slots = provisional.slots.available_permits();
        let busy = provisional.slots.clone().try_acquire_many_owned(u32::try_from(slots).unwrap()).unwrap();
        let file = tempfile::tempfile().unwrap();
        let feed = provisional.start(&Prospect::Likely { size: 1 }, &file).unwrap();
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&provisional.sites), 2, "it waits");
        drop(feed);
        let gone = async {
            while Arc::strong_count(&provisional.sites) > 1 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.expect("it waits no more");
        drop(busy);
        assert_eq!(provisional.slots.available_permits(), slots);
    }
}
