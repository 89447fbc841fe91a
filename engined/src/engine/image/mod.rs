//! Images: bringing them here, finding them, listing and removing them.
//!
//! What an image *is* lies in the supervisor: names, documents, layers. Here is what engined knows of it beyond that: how
//! people name images, how a registry is asked, in which order things are made so that no half-made image is ever seen,
//! and a memory of the images that were looked at, so that a run of a known image asks nobody.
//!
//! ```text
//!  local(name) ─▶ memory ─▶ catalog (the supervisor's records and documents) ─▶ Image
//!  pull(name) ──▶ shared: one pull per image, however many ask
//!                   └─▶ pull: resolve ─▶ lease ─▶ documents ∥ layers (download ∥, unpack in order) ─▶ name ─▶ lease off
//! ```
//!
//! The core calls [`Images`]; no wire type of a front door comes here.

mod catalog;
mod config;
mod layers;
mod lease;
mod listing;
mod memory;
mod pull;
mod remove;
mod shared;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use strata_fault::{Fault, Layer, code};
use strata_registry::{Platform, Reference};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::Sender;

pub(crate) use config::{ImageConfig, RunConfig};
pub(crate) use listing::Summary;
pub(crate) use remove::Removed;

use crate::containerd::Client;
use layers::Gates;
use lease::Left;
use memory::Memory;
use shared::Pulls;

/// Most blobs that are downloaded at the same time, over all pulls. More connections than this are no faster, and each
/// one costs memory here, in the supervisor and at the registry.
const DOWNLOADS_MAX: usize = 6;

/// An image that is here, unpacked, ready to be run.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// Its canonical name, `docker.io/library/nginx:latest`.
    pub(crate) reference: String,
    /// Its name as people write it, `nginx:latest`.
    pub(crate) familiar: String,
    /// Digest of what the name stands for: an index or a manifest.
    pub(crate) digest: String,
    /// Digest of its config, which is what people call the image's id.
    pub(crate) id: String,
    /// The snapshot that a container's root is made on; empty for an image without layers.
    pub(crate) chain_id: String,
    pub(crate) config: ImageConfig,
    /// The config document as it is stored.
    pub(crate) config_bytes: Bytes,
}

/// A pull, as it is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pull {
    /// As a person wrote it.
    pub(crate) name: String,
    pub(crate) auth: Option<Auth>,
    /// `os/arch[/variant]`; the host's when absent.
    pub(crate) platform: Option<String>,
}

/// Credentials for one registry.
#[derive(Clone, Default)]
pub(crate) struct Auth {
    /// As in references.
    pub(crate) host: String,
    pub(crate) username: String,
    pub(crate) password: String,
    pub(crate) identity_token: String,
}

/// How far a layer, or the image as a whole, is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The layer's; empty when it is about the image.
    pub(crate) digest: String,
    pub(crate) phase: Phase,
    /// Bytes, of `total`.
    pub(crate) current: u64,
    pub(crate) total: u64,
    /// The canonical reference, on the first message.
    pub(crate) image: String,
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// The registry is being asked.
    Resolving,
    Waiting,
    Downloading,
    Verifying,
    Extracting,
    Done,
    /// It was here already.
    Exists,
}

/// An image that was pulled.
#[derive(Clone, Debug)]
pub(crate) struct Pulled {
    pub(crate) image: Arc<Image>,
    /// Something was downloaded, or the name stands for something else than before.
    pub(crate) changed: bool,
}

/// All images of this engine.
pub(crate) struct Images {
    client: Client,
    registry: strata_registry::Client,
    snapshotter: String,
    memory: Memory,
    pulls: Pulls,
    gates: Gates,
    downloads: Semaphore,
    /// Leases of pulls that did not end well, kept for the next try.
    left: Left,
    /// A word for this life of the engine, so that leases of an earlier one can be told apart.
    life: String,
}

impl Images {
    /// The images that the supervisor behind `client` has. Spawns the task that hears of changes which others make.
    pub(crate) fn new(client: Client, registry: strata_registry::Client, snapshotter: &str) -> Arc<Images> {
        let images = Arc::new(Images {
            client,
            registry,
            snapshotter: snapshotter.to_owned(),
            memory: Memory::default(),
            pulls: Pulls::default(),
            gates: Gates::default(),
            downloads: Semaphore::new(DOWNLOADS_MAX),
            left: Left::default(),
            life: lease::unique(),
        });
        tokio::spawn(memory::listen(Arc::downgrade(&images)));
        tokio::spawn(lease::forget_killed_pulls(Arc::downgrade(&images)));
        images
    }

    /// The image of that name, id or unique beginning of an id, if it is here. One that was asked for before is found
    /// without asking anybody.
    ///
    /// # Errors
    /// The name is not well formed, the beginning of an id is not unique, or the supervisor fails.
    pub(crate) async fn local(self: &Arc<Self>, name: &str) -> Result<Option<Arc<Image>>, Fault> {
        match self.memory.image(name) {
            Some(image) => Ok(Some(image)),
            None => self.find(name).await,
        }
    }

    /// Brings an image here: only what is missing, and together with everybody who asks for the same. Progress is told
    /// as it comes, but a slow listener misses some of it. Dropping the future cancels, if nobody else waits.
    ///
    /// # Errors
    /// The request is not well formed, or the registry or the supervisor fails.
    pub(crate) async fn pull(self: &Arc<Self>, wanted: Pull, progress: Sender<Progress>) -> Result<Pulled, Fault> {
        let wanted = Wanted::parse(wanted)?;
        shared::pull(self, wanted, progress).await
    }
}

/// A pull whose request is well formed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    reference: Reference,
    credentials: strata_registry::Credentials,
    platform: Platform,
}

impl Wanted {
    fn parse(pull: Pull) -> Result<Wanted, Fault> {
        let reference = reference(&pull.name)?;
        let platform = match pull.platform.as_deref() {
            None | Some("") => Platform::host(),
            Some(text) => text.parse().map_err(|error| invalid("choose a platform", &error))?,
        };
        let credentials = pull.auth.map(|auth| auth.for_registry(reference.domain())).transpose()?;
        Ok(Wanted { reference, platform, credentials: credentials.unwrap_or_default() })
    }
}

impl Auth {
    /// Credentials go to the registry that they are for, and nowhere else.
    fn for_registry(self, domain: &str) -> Result<strata_registry::Credentials, Fault> {
        use strata_registry::Credentials;
        if !self.host.is_empty() && registry_name(&self.host) != domain {
            let what = format!("use the credentials for {:?} at the registry {domain:?}", self.host);
            return Err(Fault::new(Layer::Engine, "validate", code::INVALID_ARGUMENT, what));
        }
        Ok(match (self.identity_token.is_empty(), self.username.is_empty()) {
            (false, _) => Credentials::IdentityToken(self.identity_token),
            (true, false) => Credentials::Basic { user: self.username, password: self.password },
            (true, true) => Credentials::Anonymous,
        })
    }
}

impl std::fmt::Debug for Auth {
    /// Without the secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Auth({:?} at {:?})", self.username, self.host)
    }
}

/// The registry's name in references, of the forms in which Docker's `config.json` names it.
fn registry_name(host: &str) -> &str {
    let host = host.trim_start_matches("https://").trim_start_matches("http://");
    match host.split('/').next().unwrap_or_default() {
        "index.docker.io" | strata_registry::HUB_HOST => strata_registry::HUB,
        other => other,
    }
}

fn reference(name: &str) -> Result<Reference, Fault> {
    name.parse().map_err(|error: strata_registry::ReferenceError| {
        let source = error.problem().clone();
        Fault::new(Layer::Engine, "validate", code::INVALID_ARGUMENT, error.to_string()).caused_by(&source)
    })
}

fn invalid(attempt: &str, error: &(dyn std::error::Error + 'static)) -> Fault {
    Fault::new(Layer::Engine, "validate", code::INVALID_ARGUMENT, attempt).caused_by(error)
}
