//! The layers of an image: downloaded several at a time, unpacked one upon the other.
//!
//! ```text
//! layer 1  ─ download ─────────▶ unpack ─┐
//! layer 2  ─ download ────▶ (waits)      └▶ unpack ─┐
//! layer 3  ─ download ──────────────▶ (waits)       └▶ unpack
//! ```
//!
//! A download flows through the engine into an ingest of the supervisor, which is told the layer's diff id: shimd
//! unpacks while the bytes arrive, and the unpacking here then only puts the finished tree into its place. A supervisor
//! that knows nothing of this unpacks when it is told to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::future::{try_join, try_join_all};
use strata_fault::{Fault, GrpcCode, Layer, code};
use strata_registry::{Descriptor, Digest, Manifest};
use strata_trace::collect::TARGET;
use tokio::sync::{OwnedMutexGuard, watch};
use tracing::Instrument;

use super::lease::{Lease, unique};
use super::pull::Job;
use super::{Image, Images, Phase};
use crate::containerd::leases::Resource;
use crate::containerd::snapshots::NewLayer;

/// Label of an ingest: the diff id of the layer, so that it can be unpacked as it arrives. Ours; others ignore it.
const UNPACK: &str = "strata.io/unpack.diff-id";
/// Label of a blob: the digest of what it unpacks to. containerd's name.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// How often a snapshot is prepared whose name another one has just taken or left.
const PREPARE_TRIES: u32 = 3;

/// Brings all layers of a pull here, unpacked; whether any was downloaded.
pub(super) async fn bring(job: &Job<'_>) -> Result<bool, Fault> {
    let layers = &job.remote.manifest.document.layers;
    let chain = Chain::of(job.images, job.image);
    let present = chain.present(job.lease).await?;
    for (number, layer) in layers.iter().enumerate().take(present) {
        job.board.phase(number, Phase::Exists);
        // The blob of an unpacked layer may be gone: the layer is what is needed.
        job.adopt_if_there(layer, HashMap::new()).await?;
    }
    let (finished, arrived): (Vec<_>, Vec<_>) = (present..layers.len()).map(|_| watch::channel(false)).unzip();
    let downloads = finished.iter().enumerate().map(|(number, finished)| async move {
        let number = present + number;
        let downloaded = download(job, number).await?;
        finished.send_replace(true);
        Ok::<_, Fault>(downloaded)
    });
    let unpacking = async {
        for (number, mut arrived) in (present..layers.len()).zip(arrived) {
            // A download that fails ends this future too.
            let _ = arrived.wait_for(|arrived| *arrived).await;
            job.board.phase(number, Phase::Extracting);
            chain.unpack(job.lease, number, &layers[number]).await?;
            job.board.phase(number, Phase::Done);
        }
        Ok(())
    };
    let (downloaded, ()) = try_join(try_join_all(downloads), unpacking).await?;
    Ok(downloaded.into_iter().any(|downloaded| downloaded))
}

/// Brings one layer's blob here; `false` when it was here.
async fn download(job: &Job<'_>, number: usize) -> Result<bool, Fault> {
    let layer = &job.remote.manifest.document.layers[number];
    // Another pull may be downloading the very same layer: then it is waited for.
    let _turn = job.images.gates.enter(layer.digest.as_str()).await;
    let _permit = job.images.downloads.acquire().await.expect("it is never closed");
    let span = tracing::info_span!(target: TARGET, "download", layer = "registry", detail = %layer.digest);
    async {
        match fetch(job, number, layer).await {
            // An ingest from an earlier pull was resumed, and its start was not what it should be.
            Err((fault, resumed)) if resumed && fault.code == code::DIGEST_MISMATCH => {
                job.images.client.abort_ingest(&format!("layer-{}", layer.digest)).await?;
                fetch(job, number, layer).await.map_err(|(fault, _)| fault)
            }
            outcome => outcome.map_err(|(fault, _)| fault),
        }
    }
    .instrument(span)
    .await
}

/// As [`download`]; a failure says whether an ingest had been resumed.
async fn fetch(job: &Job<'_>, number: usize, layer: &Descriptor) -> Result<bool, (Fault, bool)> {
    let diff_id = &job.image.config.diff_ids[number];
    let labels = job.with_source(HashMap::new(), None);
    let mut hints = labels.clone();
    hints.insert(UNPACK.to_owned(), diff_id.clone());
    let new = job.ingest("layer", layer, hints);
    let opened = job.open_or_adopt(&new, &labels).await.map_err(|fault| (fault, false))?;
    let Some(mut ingest) = opened else { return Ok(false) };
    let resumed = ingest.offset() > 0;
    let failed = |fault| (fault, resumed);
    let mut blob = job.remote.blob(layer, ingest.offset());
    while let Some(bytes) =
        ingest.wait_for(blob.next()).await.map_err(failed)?.map_err(|error| failed(error.fault()))?
    {
        ingest.write(bytes).await.map_err(failed)?;
        job.board.downloaded(number, blob.offset());
    }
    job.board.phase(number, Phase::Verifying);
    ingest.commit(labels).await.map_err(failed)?;
    Ok(true)
}

impl Images {
    /// Unpacks the layers of an image whose blobs are here, brought by somebody else.
    ///
    /// # Errors
    /// Also `NotFound` when a blob is missing.
    pub(super) async fn unpack_local(self: &Arc<Self>, image: &Image, manifest: &Manifest) -> Result<(), Fault> {
        let lease = Lease::take(self).await?;
        let chain = Chain::of(self, image);
        let work = async {
            let present = chain.present(&lease).await?;
            for (number, layer) in manifest.layers.iter().enumerate().skip(present) {
                chain.unpack(&lease, number, layer).await?;
            }
            self.name_snapshot(image, manifest).await
        };
        let outcome = work.await;
        match &outcome {
            Ok(()) => lease.end().await,
            Err(_) => lease.abandon().await,
        }
        outcome
    }

    /// Lets the image's config keep its topmost snapshot.
    async fn name_snapshot(&self, image: &Image, manifest: &Manifest) -> Result<(), Fault> {
        let label = (format!("{}{}", super::pull::GC_SNAPSHOT, self.snapshotter), image.chain_id.clone());
        self.client.label_blob(&manifest.config.digest, HashMap::from([label])).await.map(drop)
    }
}

/// The snapshots of an image's layers, each on top of the one before.
struct Chain<'i> {
    images: &'i Images,
    image: &'i Image,
    ids: Vec<Digest>,
}

impl<'i> Chain<'i> {
    fn of(images: &'i Images, image: &'i Image) -> Chain<'i> {
        Chain { images, image, ids: image.config.chain_ids() }
    }

    /// How many layers, from the lowest, are unpacked already; the lease holds them from now on.
    async fn present(&self, lease: &Lease) -> Result<usize, Fault> {
        let (client, snapshotter) = (&self.images.client, &self.images.snapshotter);
        for (number, id) in self.ids.iter().enumerate().rev() {
            if !client.has_layer(snapshotter, id).await? {
                continue;
            }
            let resource = Resource::Snapshot { snapshotter: snapshotter.clone(), key: id.to_string() };
            client.hold(&lease.id, resource).await?;
            // It could have been collected between the look and the hold, but not since.
            if client.has_layer(snapshotter, id).await? {
                return Ok(number + 1);
            }
        }
        Ok(0)
    }

    /// Unpacks a layer whose blob is here, on top of the one below.
    async fn unpack(&self, lease: &Lease, number: usize, layer: &Descriptor) -> Result<(), Fault> {
        let id = &self.ids[number];
        // Another image may have the same layers, and be unpacked right now.
        let _turn = self.images.gates.enter(id.as_str()).await;
        if self.images.client.has_layer(&self.images.snapshotter, id).await? {
            let snapshotter = self.images.snapshotter.clone();
            return lease.client.hold(&lease.id, Resource::Snapshot { snapshotter, key: id.to_string() }).await;
        }
        let span = tracing::info_span!(target: TARGET, "unpack", layer = "supervisor", detail = %layer.digest);
        self.unpack_new(lease, number, layer).instrument(span).await
    }

    async fn unpack_new(&self, lease: &Lease, number: usize, layer: &Descriptor) -> Result<(), Fault> {
        for _ in 0..PREPARE_TRIES {
            let key = format!("extract-{} {}", unique(), self.ids[number]);
            let snapshot = NewLayer {
                snapshotter: &self.images.snapshotter,
                key: &key,
                parent: number.checked_sub(1).map(|below| &self.ids[below]),
                chain_id: &self.ids[number],
            };
            lease.made().snapshots.insert(key.clone());
            let Some(mounts) = lease.client.prepare_layer(&snapshot).await? else { continue };
            let found = lease.client.apply(layer, mounts).await?;
            self.check(number, layer, &found)?;
            if !lease.client.commit_layer(&snapshot).await? {
                lease.client.remove_snapshot(&self.images.snapshotter, &key).await?;
            }
            lease.made().snapshots.remove(&key);
            let label = (UNCOMPRESSED.to_owned(), found);
            return lease.client.label_blob(&layer.digest, HashMap::from([label])).await.map(drop);
        }
        let what = format!("prepare the snapshot {}", self.ids[number]);
        Err(Fault::new(Layer::Supervisor, "pull", code::UNKNOWN, what).grpc(GrpcCode::Aborted))
    }

    /// What came out of the layer must be what the image's config says.
    fn check(&self, number: usize, layer: &Descriptor, found: &str) -> Result<(), Fault> {
        let expected = &self.image.config.diff_ids[number];
        if found == expected {
            return Ok(());
        }
        let what = format!("unpack layer {} of {}", layer.digest, self.image.reference);
        let cause = format!("the digest of its content is {found}, and the image's config says {expected}");
        Err(Fault::new(Layer::Registry, "pull", code::DIGEST_MISMATCH, what).cause(cause))
    }
}

/// Turnstiles, one per name: who has entered one is alone until it leaves.
///
/// They are held while the supervisor and the registry are waited for. That is their purpose, and no harm: each is about
/// one blob or one layer, and who waits at one wants just that.
#[derive(Default)]
pub(super) struct Gates(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Gates {
    pub(super) async fn enter(&self, name: &str) -> OwnedMutexGuard<()> {
        let gate = self.gate(name);
        gate.lock_owned().await
    }

    fn gate(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = gates.get(name).and_then(Weak::upgrade) {
            return gate;
        }
        gates.retain(|_, gate| gate.strong_count() > 0);
        let gate = Arc::default();
        gates.insert(name.to_owned(), Arc::downgrade(&gate));
        gate
    }

    /// Whether somebody is inside, or waits to be.
    pub(super) fn is_busy(&self, name: &str) -> bool {
        let gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gates.get(name).is_some_and(|gate| gate.strong_count() > 0)
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_at_each_gate() {
        let gates = Gates::default();
        let a = gates.enter("a").await;
        let b = gates.enter("b").await;
        assert!(gates.is_busy("a") && gates.is_busy("b"));
        let soon = std::time::Duration::from_millis(10);
        assert!(tokio::time::timeout(soon, gates.enter("a")).await.is_err());
        drop(a);
        drop(gates.enter("a").await);
        drop(b);
        assert!(!gates.is_busy("a") && !gates.is_busy("b"));
    }
}
