//! An image's layers become snapshots, named by their chain ids as containerd's clients name them.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use proto_containerd::events;
use proto_containerd::types::transfer::{ImageStore, UnpackConfiguration};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::document::{Config, Descriptor};
use super::gather::Manifest;
use super::platform::Platform;
use super::{Job, Transfers};
use crate::db::record::{Labels, SnapshotKind};
use crate::diff::Target;
use crate::error::{Chain, Error, Result};
use crate::lease::{self, Resource};
use crate::name::{Digest, Namespace};
use crate::snapshot::{Mount, Request, Snapshotter};

/// Label of a layer: its diff id.
pub(super) const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// Label of a config, with the snapshotter's name: the snapshot of the image's last layer.
const SNAPSHOT_REF: &str = "containerd.io/gc.ref.snapshot.";
/// Label of a snapshot: the chain id that it is made for.
const CHAIN_ID: &str = "containerd.io/snapshot.ref";

/// Who unpacks what: each chain id that somebody works on, with a channel that closes when that is over.
pub(crate) type Unpacking = HashMap<Key, watch::Receiver<()>>;
type Key = (Namespace, Snapshotter, String);

/// The right to unpack a chain id, as long as it is held.
struct Turn {
    of: Arc<Transfers>,
    key: Key,
    _over: watch::Sender<()>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.of.unpacking().remove(&self.key);
    }
}

/// A layer on its way into a snapshot.
struct Layer<'a> {
    snapshotter: Snapshotter,
    descriptor: &'a Descriptor,
    diff_id: &'a Digest,
    /// Empty for the first one.
    parent: &'a str,
    chain_id: &'a str,
}

/// A snapshot that is being unpacked into. It goes when it is not committed, also where the client goes away meanwhile.
struct Extraction<'a> {
    job: &'a Job,
    snapshotter: Snapshotter,
    key: Option<String>,
}

impl Extraction<'_> {
    fn commit(mut self, layer: &Layer<'_>) -> Result<()> {
        let Some(key) = &self.key else { return Ok(()) };
        match self.job.commit(key, layer) {
            // A client has unpacked the same meanwhile: that one is as good, and this one goes.
            Err(Error::Exists { .. }) => self.job.hold(layer),
            committed => {
                committed?;
                self.key = None;
                Ok(())
            }
        }
    }
}

impl Drop for Extraction<'_> {
    fn drop(&mut self) {
        let Some(key) = &self.key else { return };
        if let Err(error) = self.job.of.snapshots.of(self.snapshotter).remove(&self.job.namespace, key)
            && !error.is_not_found()
        {
            tracing::warn!(error = %Chain(&error), "remove a snapshot that was not unpacked");
        }
    }
}

impl Transfers {
    /// Waits for the right to unpack a chain id.
    async fn turn(self: &Arc<Self>, key: Key) -> Turn {
        loop {
            let mut busy = match self.unpacking().entry(key.clone()) {
                Entry::Occupied(busy) => busy.get().clone(),
                Entry::Vacant(free) => {
                    let (over, busy) = watch::channel(());
                    free.insert(busy);
                    return Turn { of: self.clone(), key, _over: over };
                }
            };
            // Nothing is ever sent.
            let _ = busy.changed().await;
        }
    }

    fn unpacking(&self) -> MutexGuard<'_, Unpacking> {
        self.unpacking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Job {
    /// Unpacks those images that the store is asked to unpack.
    pub(super) async fn unpack_wanted(&self, manifests: &[Manifest], to: &ImageStore) -> Result<()> {
        for manifest in manifests.iter().filter(|_| !to.unpacks.is_empty()) {
            let config = Config::parse(&manifest.config, &self.read(&manifest.config)?)?;
            let wanted: BTreeSet<_> =
                to.unpacks.iter().filter_map(|wanted| snapshotter_for(wanted, &config.platform)).collect();
            for snapshotter in wanted {
                self.unpack(manifest, &config, snapshotter).await?;
            }
        }
        Ok(())
    }

    async fn unpack(&self, manifest: &Manifest, config: &Config, snapshotter: Snapshotter) -> Result<()> {
        let diff_ids = config.diff_ids()?;
        if diff_ids.len() != manifest.layers.len() {
            let why = format!("{} layers, but its config has {} diff ids", manifest.layers.len(), diff_ids.len());
            return Err(Error::invalid(manifest.descriptor.digest.as_str(), why));
        }
        if let Some(most) = snapshotter.layers_max().filter(|most| diff_ids.len() > *most) {
            let what = format!("image {}", manifest.descriptor.digest);
            return Err(Error::refused(
                what,
                format!("it has more than {most} layers, the most that {} takes", snapshotter.name()),
            ));
        }
        let mut parent = String::new();
        for (descriptor, diff_id) in manifest.layers.iter().zip(&diff_ids) {
            let chain_id = chain_id(&parent, diff_id);
            let layer = Layer { snapshotter, descriptor, diff_id, parent: &parent, chain_id: &chain_id };
            self.unpack_layer(&layer).await?;
            parent = chain_id;
        }
        if parent.is_empty() {
            return Ok(());
        }
        self.label(&manifest.config.digest, &format!("{SNAPSHOT_REF}{}", snapshotter.name()), &parent)
    }

    async fn unpack_layer(&self, layer: &Layer<'_>) -> Result<()> {
        let snapshotter = layer.snapshotter;
        let _turn = self.of.turn((self.namespace.clone(), snapshotter, layer.chain_id.to_owned())).await;
        if self.of.snapshots.of(snapshotter).stat(&self.namespace, layer.chain_id).is_ok() {
            return self.hold(layer);
        }
        let key = format!("extract-{} {}", unique(), layer.chain_id);
        // Before it is there: who goes away meanwhile may find it made or not.
        let extraction = Extraction { job: self, snapshotter, key: Some(key.clone()) };
        let mounts = self.prepare(&key, layer).await?;
        self.apply(layer, &mounts).await?;
        extraction.commit(layer)?;
        self.label(&layer.descriptor.digest, UNCOMPRESSED, layer.diff_id.as_str())
    }

    /// Keeps the layer's snapshot, which was there already.
    fn hold(&self, layer: &Layer<'_>) -> Result<()> {
        let held = Resource { kind: layer.snapshotter.resource().to_owned(), id: layer.chain_id.to_owned() };
        lease::add_resource(&self.of.store, &self.namespace, &self.lease, &held)
    }

    async fn prepare(&self, key: &str, layer: &Layer<'_>) -> Result<Vec<Mount>> {
        let request = Request {
            namespace: self.namespace.clone(),
            lease: Some(self.lease.clone()),
            key: key.to_owned(),
            parent: layer.parent.to_owned(),
            labels: Labels::from([(CHAIN_ID.to_owned(), layer.chain_id.to_owned())]),
        };
        let mounts = self.of.snapshots.make_while_wanted(layer.snapshotter, SnapshotKind::Active, request).await?;
        let event = events::SnapshotPrepare {
            key: key.to_owned(),
            parent: layer.parent.to_owned(),
            snapshotter: layer.snapshotter.name().to_owned(),
        };
        self.of.events.publish(&self.namespace, "/snapshot/prepare", &event);
        Ok(mounts)
    }

    async fn apply(&self, layer: &Layer<'_>, mounts: &[Mount]) -> Result<()> {
        let digest = &layer.descriptor.digest;
        let (blob, _) = self.of.content.blob(&self.namespace, digest)?;
        let applied = self.of.differ.apply(digest, blob, Target::from_mounts(mounts)?).await?;
        if applied.diff_id == *layer.diff_id {
            return Ok(());
        }
        Err(Error::DigestMismatch {
            what: format!("unpacked layer {digest}"),
            expected: layer.diff_id.to_string(),
            actual: applied.diff_id.to_string(),
        })
    }

    fn commit(&self, key: &str, layer: &Layer<'_>) -> Result<()> {
        let labels = Labels::from([(CHAIN_ID.to_owned(), layer.chain_id.to_owned())]);
        let snapshots = self.of.snapshots.of(layer.snapshotter);
        snapshots.commit(&self.namespace, Some(&self.lease), key, layer.chain_id, labels)?;
        let event = events::SnapshotCommit {
            key: key.to_owned(),
            name: layer.chain_id.to_owned(),
            snapshotter: layer.snapshotter.name().to_owned(),
        };
        self.of.events.publish(&self.namespace, "/snapshot/commit", &event);
        self.of.upkeep.schedule_sync();
        Ok(())
    }

    pub(super) fn label(&self, digest: &Digest, key: &str, value: &str) -> Result<()> {
        let labels = Labels::from([(key.to_owned(), value.to_owned())]);
        self.of.content.update(&self.namespace, digest, &labels, &[format!("labels.{key}")]).map(drop)
    }
}

/// For which snapshotter an image for `offered` shall be unpacked; what is wanted for one that is not there is not, as
/// in containerd.
fn snapshotter_for(wanted: &UnpackConfiguration, offered: &Platform) -> Option<Snapshotter> {
    let snapshotter = snapshotter_of(wanted);
    if snapshotter.is_none() {
        tracing::warn!(snapshotter = wanted.snapshotter, "nothing is unpacked for a snapshotter that is not there");
    }
    let wanted = wanted.platform.clone().map_or_else(Platform::host, Platform::from);
    snapshotter.filter(|_| wanted.accepts(offered))
}

/// Whose snapshots are wanted; a client that names none wants what all use.
pub(super) fn snapshotter_of(wanted: &UnpackConfiguration) -> Option<Snapshotter> {
    if wanted.snapshotter.is_empty() { Some(Snapshotter::Overlayfs) } else { Snapshotter::named(&wanted.snapshotter) }
}

/// The name of a layer with all that is below it.
fn chain_id(parent: &str, diff_id: &Digest) -> String {
    if parent.is_empty() {
        return diff_id.to_string();
    }
    let mut hasher = Sha256::new();
    hasher.update(format!("{parent} {diff_id}"));
    Digest::from_sha256(&hasher.finalize()).to_string()
}

/// Nobody else unpacks the same chain id meanwhile; a key that a killed shimd left is another.
fn unique() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_are_those_of_the_specification() {
        let diff_id = |byte: u8| Digest::from_sha256(&[byte; 32]);
        let first = chain_id("", &diff_id(1));
        assert_eq!(first, diff_id(1).to_string());
        let text = format!("{} {}", diff_id(1), diff_id(2));
        let mut hasher = Sha256::new();
        hasher.update(text);
        assert_eq!(chain_id(&first, &diff_id(2)), Digest::from_sha256(&hasher.finalize()).to_string());
    }
}
