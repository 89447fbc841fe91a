//! Layers unpacked while they arrive.
//!
//! A write of content that names the layer's diff id (label [`DIFF_ID_LABEL`]) also feeds the bytes to a [`Feed`]: they
//! are decompressed and unpacked into a directory of their own, of which nobody knows. When the blob is committed and
//! both digests are right, the tree is kept under the blob's digest; the first Apply of that blob to an empty snapshot
//! takes it by renaming. Whatever goes wrong on this way is forgotten: Apply then unpacks the blob as usual, and it is
//! Apply that reports what is wrong with a layer.
//!
//! containerd's clients promise no diff id, but name the ingest of a layer that they pull [`LAYER_REFERENCE`], and apply it
//! next. Those layers are unpacked as they arrive too, where there is room enough for one that nobody applies; it goes
//! with its blob, or after [`KEEP`]. Their diff id is what they turn out to have, which Apply tells the client.
//!
//! Nothing here survives the process: what is left of another run is removed at start.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::stream::{self, Chunks, Filler};
use super::tar::Archive;
use super::unpack::{self, Lower, Report, Whiteouts};
use crate::error::{Chain, Error, Result};
use crate::name::Digest;
use crate::{layout, sys, tree};

/// A content write whose first message has this label is unpacked as it arrives; the value is the layer's diff id.
pub(crate) const DIFF_ID_LABEL: &str = "strata.io/unpack.diff-id";

/// What the names of ingests begin with that are layers on their way from a registry (containerd's `remotes` package).
const LAYER_REFERENCE: &str = "layer-";
/// A layer that may be for nobody is unpacked where so many times its size is free.
const ROOM: u64 = 16;

/// Pieces of a blob on their way to the decompressor; a piece is what one message brought.
const PIECES: usize = 4;
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
    slots: Arc<Semaphore>,
    trees: Mutex<HashMap<Digest, Waiting>>,
}

struct Waiting {
    outcome: watch::Receiver<Outcome>,
    since: Instant,
}

#[derive(Clone)]
enum Outcome {
    Working,
    Failed,
    Ready(Arc<Tree>),
}

/// An unpacked layer; its files go when it is dropped and nobody took them.
pub(crate) struct Tree {
    /// Holds `fs`.
    directory: PathBuf,
    pub(crate) diff_id: Digest,
    pub(crate) size: u64,
    pub(crate) report: Report,
}

impl Tree {
    pub(crate) fn root(&self) -> PathBuf {
        self.directory.join("fs")
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let directory = std::mem::take(&mut self.directory);
        // Off every caller's path: a tree may have many files.
        let spawned = std::thread::Builder::new().name("provisional".to_owned()).spawn(move || discard(&directory));
        if let Err(error) = spawned {
            tracing::warn!(error = %Chain(&error), "start a thread that removes a provisional layer");
        }
    }
}

fn discard(directory: &Path) {
    if let Err(error) = tree::remove(directory) {
        tracing::warn!(directory = %directory.display(), %error, "remove a provisional layer");
    }
}

impl Provisional {
    /// Makes `directory` empty.
    pub(crate) fn open(directory: PathBuf) -> Result<Provisional> {
        let failed = |error| Error::io(format!("empty {}", directory.display()), error);
        tree::remove(&directory).map_err(|error| failed(error.into()))?;
        layout::make_private(&directory).map_err(failed)?;
        layout::spread(&directory);
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        // Each is three threads, and the slowest of these is bound by the processor.
        let slots = Arc::new(Semaphore::new((cores * 2).clamp(4, 16)));
        Ok(Provisional { directory, next: AtomicU64::new(0), slots, trees: Mutex::default() })
    }

    /// Begins to unpack a layer that arrives; `None` when as many as are useful are being unpacked already, or there is
    /// little room.
    pub(crate) fn start(&self, prospect: &Prospect) -> Option<Feed> {
        let diff_id = match prospect {
            Prospect::Promised(diff_id) => Some(diff_id.clone()),
            Prospect::Likely { size } => self.has_room(*size).then_some(None)?,
        };
        let permit = self.slots.clone().try_acquire_owned().ok()?;
        let directory = self.directory.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        match Feed::start(directory, diff_id, permit) {
            Ok(feed) => Some(feed),
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "unpack a layer as it arrives");
                None
            }
        }
    }

    fn has_room(&self, size: u64) -> bool {
        let Ok(space) = rustix::fs::statvfs(&self.directory) else { return false };
        size.saturating_mul(ROOM) <= space.f_bavail.saturating_mul(space.f_frsize)
    }

    /// Keeps what `feed` makes of its layer, now that its bytes are known to be the blob `digest` of `size` bytes.
    pub(crate) fn keep(&self, digest: Digest, size: u64, feed: Feed) {
        if feed.pushed != size {
            // It has seen something else than the whole blob.
            return feed.cancel();
        }
        let Feed { pieces, outcome, .. } = feed;
        // The end of the pieces is the end of the layer.
        drop(pieces);
        let mut trees = self.lock();
        trees.retain(|_, waiting| waiting.since.elapsed() < KEEP);
        trees.insert(digest, Waiting { outcome, since: Instant::now() });
    }

    /// Drops the tree of a blob that is removed.
    pub(crate) fn forget(&self, digest: &Digest) {
        self.lock().remove(digest);
    }

    /// Takes the tree of `digest`, waiting until it is ready; `None` if there is none.
    pub(crate) async fn take(&self, digest: &Digest) -> Option<Arc<Tree>> {
        let mut outcome = self.lock().remove(digest)?.outcome;
        let outcome = outcome.wait_for(|outcome| !matches!(outcome, Outcome::Working)).await.ok()?;
        match &*outcome {
            Outcome::Ready(tree) => Some(tree.clone()),
            Outcome::Working | Outcome::Failed => None,
        }
    }

    /// Drops trees whose Apply never came.
    pub(crate) fn expire(&self) {
        self.lock().retain(|_, waiting| waiting.since.elapsed() < KEEP);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Waiting>> {
        self.trees.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the bytes of one layer. Dropping it without [`Provisional::keep`] discards the layer.
pub(crate) struct Feed {
    pieces: SyncSender<Piece>,
    /// Bytes so far.
    pushed: u64,
    outcome: watch::Receiver<Outcome>,
}

enum Piece {
    Data(Bytes),
    /// The write was given up: this is no whole layer.
    Cancel,
}

impl Feed {
    fn start(directory: PathBuf, diff_id: Option<Digest>, permit: OwnedSemaphorePermit) -> Result<Feed> {
        let root = make_root(&directory)?;
        let (pieces, arriving) = sync_channel(PIECES);
        let (filler, digester, chunks) = stream::pipe_with_digest();
        let (sender, outcome) = watch::channel(Outcome::Working);
        let work = move || {
            let tree = unpack_into(directory, root, chunks, diff_id.as_ref());
            // Nobody may be waiting any more: then the tree goes with the value.
            let _ = sender.send(tree.map_or(Outcome::Failed, |tree| Outcome::Ready(Arc::new(tree))));
            drop(permit);
        };
        spawn("unpack", work)?;
        spawn("digest", move || digester.run())?;
        spawn("decompress", move || decompress(filler, arriving))?;
        Ok(Feed { pieces, pushed: 0, outcome })
    }

    /// Hands over the next bytes; waits when the unpacking is behind. `false` when it has given up.
    pub(crate) fn push(&mut self, data: Bytes) -> bool {
        self.pushed += data.len() as u64;
        self.pieces.send(Piece::Data(data)).is_ok()
    }

    /// Discards the layer: its bytes turned out not to be what they should.
    pub(crate) fn cancel(self) {
        let _ = self.pieces.send(Piece::Cancel);
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).stack_size(512 << 10).spawn(work);
    spawned.map(drop).map_err(|error| Error::io("start a thread that unpacks a layer", error))
}

fn make_root(directory: &Path) -> Result<OwnedFd> {
    let root = directory.join("fs");
    let failed = |error| Error::io(format!("make {}", root.display()), error);
    std::fs::create_dir_all(&root).map_err(failed)?;
    File::open(&root).map(OwnedFd::from).map_err(failed)
}

fn decompress(filler: Filler, arriving: Receiver<Piece>) {
    filler.run(Arriving { pieces: arriving, current: Bytes::new() });
}

/// Unpacks all of `chunks`, and throws away what is not the promised layer, if one was promised.
fn unpack_into(directory: PathBuf, root: OwnedFd, chunks: Chunks, promised: Option<&Digest>) -> Option<Tree> {
    match unpack_checked(root, chunks, promised) {
        Ok((report, diff_id, size)) => Some(Tree { directory, diff_id, size, report }),
        Err(error) => {
            tracing::debug!(error = %Chain(&error), "a layer that arrives was not unpacked");
            discard(&directory);
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

/// The pieces as one stream.
struct Arriving {
    pieces: Receiver<Piece>,
    current: Bytes,
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.recv() {
                Ok(Piece::Data(data)) => self.current = data,
                Ok(Piece::Cancel) => return Err(io::Error::from(io::ErrorKind::ConnectionAborted)),
                Err(_) => return Ok(0),
            }
        }
        let count = self.current.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}
