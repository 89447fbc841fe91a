//! One pull, from the registry to an image that can be run.
//!
//! The order is what makes it safe: everything that is made belongs to a lease, so the supervisor's collector of garbage
//! leaves it alone; and the image's name is given last, so that whoever sees the name sees all that it stands for.
//! What a pull that does not end well has made goes with its lease.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use strata_fault::{Fault, Layer, code};
use strata_registry::{Descriptor, Platform, Reference};
use strata_trace::collect::TARGET;
use tracing::Instrument;

use super::shared::Board;
use super::{Image, Images, Phase, Pulled, Wanted, catalog, layers};
use crate::containerd::content::NewIngest;
use crate::containerd::images::ImageRecord;
use crate::containerd::leases::Resource;
use crate::containerd::{Client, is_unreachable};

/// A lease whose engine never comes back ends by itself after this.
const LEASE_LIFE: Duration = Duration::from_secs(24 * 3600);
/// What the ids of our leases begin with.
const LEASE_PREFIX: &str = "strata-pull-";

/// How often a pull goes on after the supervisor was away, and the pause before it does.
const RESTARTS_MAX: u32 = 3;
const RESTART_PAUSE: Duration = Duration::from_millis(200);

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
        let Some(mut ingest) = self.lease.client.open_ingest(&new).await? else {
            return self.adopt(descriptor, labels).await;
        };
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

    /// Makes a blob that was here already ours too.
    pub(super) async fn adopt(&self, descriptor: &Descriptor, labels: HashMap<String, String>) -> Result<(), Fault> {
        if self.adopt_if_there(descriptor, labels).await? {
            return Ok(());
        }
        let what = format!("use the blob {} that was here already", descriptor.digest);
        Err(Fault::new(Layer::Supervisor, "pull", code::UNKNOWN, what).cause("it was removed meanwhile"))
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
            tokio::time::sleep(super::RESUME_TIME).await;
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
            let ours = ["layer-", "config-", "manifest-", "index-"];
            let digest = ours.iter().find_map(|kind| reference.strip_prefix(kind));
            if digest.is_some_and(|digest| !self.gates.is_busy(digest)) {
                self.client.abort_ingest(&reference).await?;
            }
        }
        Ok(())
    }
}

/// After a start: pulls of an engine that was killed can be resumed for a while, then their traces go.
pub(super) async fn forget_killed_pulls(images: Weak<Images>, after: Duration) {
    let Some(client) = images.upgrade().map(|images| images.client.clone()) else { return };
    let leases = loop {
        match client.list_leases(LEASE_PREFIX).await {
            Ok(leases) => break leases,
            Err(_) if images.strong_count() > 0 => tokio::time::sleep(Duration::from_secs(1)).await,
            Err(_) => return,
        }
    };
    let Some(()) = images.upgrade().map(|images| images.leave_killed(leases)) else { return };
    tokio::time::sleep(after).await;
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
    fn repositories_are_listed_once() {
        assert_eq!(source_value("", "b"), "b");
        assert_eq!(source_value("b", "b"), "b");
        assert_eq!(source_value("c,a", "b"), "a,b,c");
    }

    #[test]
    fn words_are_unique() {
        assert_ne!(unique(), unique());
        assert_eq!(unique().len(), 16);
    }
}
