//! One pull, from the registry to an image that can be run.
//!
//! The order is what makes it safe: everything that is made belongs to a lease, so the supervisor's collector of garbage
//! leaves it alone; and the image's name is given last, so that whoever sees the name sees all that it stands for.
//! What a pull that does not end well has made goes with its lease.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use strata_fault::{Fault, Layer, code};
use strata_registry::{Descriptor, Platform, Reference};
use strata_trace::collect::TARGET;
use tracing::Instrument;

use super::lease::Lease;
use super::shared::Board;
use super::{Image, Images, Phase, Pulled, Wanted, catalog, layers};
use crate::containerd::content::{Ingest, NewIngest};
use crate::containerd::images::ImageRecord;
use crate::containerd::is_unreachable;
use crate::containerd::leases::Resource;

/// How often a pull goes on after the supervisor was away, and the pause before it does.
const RESTARTS_MAX: u32 = 3;
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// How often a blob may be found and be gone when it is to be used.
const ADOPTIONS_MAX: u32 = 4;

/// Labels by which the collector finds what belongs to a document: containerd's names.
const GC_CONFIG: &str = "containerd.io/gc.ref.content.config";
const GC_LAYER: &str = "containerd.io/gc.ref.content.l.";
const GC_MANIFEST: &str = "containerd.io/gc.ref.content.m.";
pub(super) const GC_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";
/// Label that says from where a blob came, followed by the registry; the value lists repositories.
const SOURCE: &str = "containerd.io/distribution.source.";
/// Most bytes of a label's name and value, as containerd bounds them.
const LABEL_MAX: usize = 4096;

/// Pulls what `wanted` says, and tells the board how far it is.
pub(super) async fn pull(images: &Arc<Images>, wanted: &Wanted, board: &Board) -> Result<Pulled, Fault> {
    let name = wanted.reference.to_string();
    board.resolving(&name);
    let remote = resolve(images, wanted).await?;
    let layers = &remote.manifest.document.layers;
    board.waiting(layers);
    let before = images.client.image(&name).await?;
    if let Some(image) = images.whole(before.as_ref(), &remote).await? {
        (0..layers.len()).for_each(|layer| board.phase(layer, Phase::Exists));
        return Ok(Pulled { image, changed: false });
    }
    let config = remote.config().await.map_err(|error| error.fault())?;
    let image = catalog::image(&name, remote.target(), &remote.manifest.document, config)?;
    let lease = Lease::take(images).await?;
    let job = Job { images, lease: &lease, remote: &remote, reference: &wanted.reference, image: &image, board };
    let outcome = job.run().await;
    match &outcome {
        Ok(_) => lease.end().await,
        Err(fault) if may_pass(fault) => lease.leave(),
        Err(_) => lease.abandon().await,
    }
    let downloaded = outcome?;
    // One of an index's other images is found again by a look at what is here, where the host's own goes first.
    match wanted.platform == Platform::host() {
        true => images.memory.remember_documents(&image),
        false => images.memory.forget_documents(&image.digest),
    }
    let is_new = before.is_none_or(|before| before.target.digest != remote.target().digest);
    Ok(Pulled { image, changed: downloaded || is_new })
}

async fn resolve(images: &Images, wanted: &Wanted) -> Result<strata_registry::Image, Fault> {
    let span = tracing::info_span!(target: TARGET, "resolve", layer = "registry", detail = %wanted.reference);
    let resolving = images.registry.resolve(&wanted.reference, &wanted.credentials, &wanted.platform);
    resolving.instrument(span).await.map_err(|error| error.fault())
}

/// The registry may be there again in a while, and what was downloaded is of use then.
fn may_pass(fault: &Fault) -> bool {
    fault.code == code::REGISTRY_UNREACHABLE
}

impl Images {
    /// The image that `remote` is, if it is here already, under its name and with all that belongs to it.
    async fn whole(
        &self,
        record: Option<&ImageRecord>,
        remote: &strata_registry::Image,
    ) -> Result<Option<Arc<Image>>, Fault> {
        let Some(record) = record.filter(|record| record.target.digest == remote.target().digest) else {
            return Ok(None);
        };
        let local = match self.load(record).await {
            Ok(local) => local,
            // What is damaged is pulled anew.
            Err(fault) if fault.code == code::MANIFEST_INVALID => None,
            Err(fault) => return Err(fault),
        };
        let same = |image: &Arc<Image>| image.id == remote.manifest.document.config.digest.as_str();
        let Some(image) = local.filter(same) else { return Ok(None) };
        let chain_ids = image.config.chain_ids();
        match chain_ids.last() {
            Some(top) if !self.client.has_layer(&self.snapshotter, top).await? => Ok(None),
            _ => Ok(Some(image)),
        }
    }
}

/// A pull that found something to do.
pub(super) struct Job<'p> {
    pub(super) images: &'p Arc<Images>,
    pub(super) lease: &'p Lease,
    pub(super) remote: &'p strata_registry::Image,
    pub(super) reference: &'p Reference,
    pub(super) image: &'p Arc<Image>,
    pub(super) board: &'p Board,
}

impl Job<'_> {
    /// Brings it all here; whether anything was downloaded for it. When the supervisor is restarted meanwhile, what it
    /// has by then is found and the rest goes on: everything here can be done twice.
    async fn run(&self) -> Result<bool, Fault> {
        let mut restarts = 0;
        loop {
            match self.run_once().await {
                Err(fault) if is_unreachable(&fault) && restarts < RESTARTS_MAX => {
                    tracing::info!(
                        image = self.image.reference,
                        error = fault.one_line(),
                        "a pull goes on after a pause"
                    );
                    restarts += 1;
                    tokio::time::sleep(RESTART_PAUSE).await;
                }
                outcome => return outcome,
            }
        }
    }

    async fn run_once(&self) -> Result<bool, Fault> {
        // The documents are small and the layers large: none waits for the other, but the name waits for all.
        let ((), downloaded) = futures_util::future::try_join(self.store_documents(), layers::bring(self)).await?;
        self.lease.client.put_image(&self.image.reference, self.remote.target()).await?;
        self.images.memory.forget_names();
        Ok(downloaded)
    }

    /// Stores the config, the manifest and what led to it, as the registry sent them, each with the labels that keep
    /// alive what it names.
    async fn store_documents(&self) -> Result<(), Fault> {
        let manifest = &self.remote.manifest;
        self.store("config", &manifest.document.config, &self.image.config_bytes, self.config_labels()).await?;
        self.store("manifest", &manifest.descriptor, &manifest.bytes, self.manifest_labels()).await?;
        for index in &self.remote.indexes {
            let entries = index.document.manifests.iter();
            let labels = entries.enumerate().map(|(n, entry)| (format!("{GC_MANIFEST}{n}"), entry.digest.to_string()));
            self.store("index", &index.descriptor, &index.bytes, labels.collect()).await?;
        }
        Ok(())
    }

    fn config_labels(&self) -> HashMap<String, String> {
        let snapshot = (format!("{GC_SNAPSHOT}{}", self.images.snapshotter), self.image.chain_id.clone());
        [snapshot].into_iter().filter(|(_, chain_id)| !chain_id.is_empty()).collect()
    }

    fn manifest_labels(&self) -> HashMap<String, String> {
        let document = &self.remote.manifest.document;
        let layers = document.layers.iter().enumerate();
        let mut labels: HashMap<String, String> =
            layers.map(|(n, layer)| (format!("{GC_LAYER}{n}"), layer.digest.to_string())).collect();
        labels.insert(GC_CONFIG.to_owned(), document.config.digest.to_string());
        labels
    }

    async fn store(
        &self,
        kind: &str,
        descriptor: &Descriptor,
        bytes: &Bytes,
        labels: HashMap<String, String>,
    ) -> Result<(), Fault> {
        // Two pulls at once may store the same document.
        let _turn = self.images.gates.enter(descriptor.digest.as_str()).await;
        let labels = self.with_source(labels, None);
        let new = self.ingest(kind, descriptor, labels.clone());
        let Some(mut ingest) = self.open_or_adopt(&new, &labels).await? else { return Ok(()) };
        let done = usize::try_from(ingest.offset()).unwrap_or(usize::MAX).min(bytes.len());
        ingest.write(bytes.slice(done..)).await?;
        ingest.commit(labels).await
    }

    /// The ingest of a blob, noted so that it does not outlive the pull.
    pub(super) fn ingest(&self, kind: &str, descriptor: &Descriptor, labels: HashMap<String, String>) -> NewIngest {
        let reference = format!("{kind}-{}", descriptor.digest);
        self.lease.made().ingests.insert(reference.clone());
        NewIngest { reference, descriptor: descriptor.clone(), labels }
    }

    /// Opens an ingest, or makes the blob ours too where it is here already: `None`. A blob that is collected just between
    /// the two is ingested after all, as the lease holds it by then.
    pub(super) async fn open_or_adopt(
        &self,
        new: &NewIngest,
        labels: &HashMap<String, String>,
    ) -> Result<Option<Ingest>, Fault> {
        for _ in 0..ADOPTIONS_MAX {
            if let Some(ingest) = self.lease.client.open_ingest(new).await? {
                return Ok(Some(ingest));
            }
            if self.adopt_if_there(&new.descriptor, labels.clone()).await? {
                return Ok(None);
            }
        }
        let what = format!("use the blob {} that was here already", new.descriptor.digest);
        Err(Fault::new(Layer::Supervisor, "pull", code::UNKNOWN, what).cause("it was removed again and again"))
    }

    /// The lease holds the blob, and it gets our labels beside those it has; `false` when there is none.
    pub(super) async fn adopt_if_there(
        &self,
        descriptor: &Descriptor,
        labels: HashMap<String, String>,
    ) -> Result<bool, Fault> {
        let client = &self.images.client;
        client.hold(&self.lease.id, Resource::Blob(descriptor.digest.to_string())).await?;
        let Some(info) = client.blob_info(&descriptor.digest).await? else { return Ok(false) };
        let others = info.labels.get(&self.source_key()).map(String::as_str);
        client.label_blob(&descriptor.digest, self.with_source(labels, others)).await
    }

    fn source_key(&self) -> String {
        format!("{SOURCE}{}", self.reference.domain())
    }

    /// Adds from where the blob comes, beside the repositories that `others` lists already.
    pub(super) fn with_source(
        &self,
        mut labels: HashMap<String, String>,
        others: Option<&str>,
    ) -> HashMap<String, String> {
        let key = self.source_key();
        let value = source_value(others.unwrap_or_default(), self.reference.path());
        if key.len() + value.len() <= LABEL_MAX {
            labels.insert(key, value);
        }
        labels
    }
}

/// A list of repositories, with one more.
fn source_value(others: &str, path: &str) -> String {
    let known = others.split(',').filter(|other| !other.is_empty() && *other != path);
    let mut all: Vec<&str> = known.chain([path]).collect();
    all.sort_unstable();
    all.join(",")
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn repositories_are_listed_once() {
        assert_eq!(source_value("", "b"), "b");
        assert_eq!(source_value("b", "b"), "b");
        assert_eq!(source_value("c,a", "b"), "a,b,c");
    }
}
