//! A client of image registries: from a [`Reference`] to checked documents and verified bytes.
//!
//! ```text
//! Reference ─ Client::resolve ─▶ Image { manifest, index … } ─ Image::config, Image::blob ─▶ verified bytes
//! ```
//!
//! It speaks the OCI distribution specification and Docker's registry API v2. engined uses it, and the helper with which
//! shimd moves images; it knows nothing of engined, of stores and of containers. What it does not do: keep anything between two pulls but idle
//! connections, write a file, or trust a byte before its digest and its size are those that were promised.
//!
//! | file | what |
//! | --- | --- |
//! | `reference` | names as Docker writes them |
//! | `digest`, `platform`, `document` | what registries' documents are made of; pure |
//! | `transport` | connections, TLS, redirects, statuses |
//! | `auth` | challenges, credentials, tokens |
//! | `repository` | one repository at one host: requests with authorization and retries |
//! | `resolve` | from a name to one image's manifest |
//! | `blob` | verified, resumable streams |
//! | `session`, `push` | the same piece by piece, and writing |
//!
//! It stands on hyper and rustls directly. The `oci-client` crate was tried for it and found wanting where a registry
//! cannot be trusted: it reads manifests and tokens of any size into memory, shows neither `Content-Type` nor where a
//! redirect led, swallows the errors of token servers, sends credentials to any realm, and has no policy for retries,
//! stalls and resumption.

mod auth;
mod blob;
mod digest;
mod document;
mod error;
mod platform;
mod push;
mod reference;
mod repository;
mod resolve;
mod retry;
mod session;
mod transport;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use auth::{Credentials, CredentialsError, DockerConfig};
pub use blob::Blob;
pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use document::{
    CONFIG_MAX, Compression, DOCUMENT_MAX, Descriptor, Document, DocumentError, Fetched, INDEX_MAX, Index, LAYERS_MAX,
    Manifest, media_type,
};
pub use error::{Cause, Error, PLATFORM_NOT_FOUND, Problem, REGISTRY_FAILED, REGISTRY_RATE_LIMITED};
pub use platform::{Platform, PlatformError};
pub use push::Upload;
pub use reference::{DEFAULT_TAG, HUB, HUB_HOST, Reference, ReferenceError, ReferenceProblem};
pub use resolve::Image;
pub use session::Session;

use repository::Repository;
use transport::Transport;

/// What an operator decides about registries.
#[derive(Clone, Debug)]
pub struct Config {
    /// Registries (`host:port` or `host`) that may be spoken to in plain HTTP; loopback always may.
    pub insecure: Vec<String>,
    /// Hosts (`host[:port]`, perhaps after `https://`) that are asked for Docker Hub's images first, without
    /// credentials.
    pub mirrors: Vec<String>,
    /// PEM files of further certificate authorities.
    pub ca_files: Vec<PathBuf>,
    /// Longest wait for the next bytes before a connection counts as broken.
    pub stall: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config { insecure: Vec::new(), mirrors: Vec::new(), ca_files: Vec::new(), stall: Duration::from_secs(30) }
    }
}

/// Talks to registries. Keep one: it holds the connections. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<Transport>,
    mirrors: Arc<[String]>,
}

impl Client {
    /// A client that has not connected yet.
    pub fn new(config: Config) -> Client {
        let transport = Transport::new(config.insecure, config.ca_files, config.stall);
        let bare = |mirror: &String| mirror.trim_start_matches("https://").trim_end_matches('/').to_owned();
        Client { transport: Arc::new(transport), mirrors: config.mirrors.iter().map(bare).collect() }
    }

    /// Where `reference` may be found: mirrors first, its own registry last.
    fn sources(&self, reference: &Reference, credentials: &Credentials) -> Vec<Repository> {
        let repository = |host: &str, credentials: Credentials| {
            Repository::new(Arc::clone(&self.transport), host, reference.path(), credentials)
        };
        let mirrors = self.mirrors.iter().filter(|_| reference.domain() == HUB);
        let mut sources: Vec<Repository> = mirrors.map(|host| repository(host, Credentials::Anonymous)).collect();
        sources.push(self.own(reference, credentials));
        sources
    }

    /// The registry of the reference itself.
    fn own(&self, reference: &Reference, credentials: &Credentials) -> Repository {
        Repository::new(Arc::clone(&self.transport), reference.host(), reference.path(), credentials.clone())
    }

    /// Finds the image that `reference` means for `platform` and fetches its documents, but no blob yet.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn resolve(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        platform: &Platform,
    ) -> Result<Image, Error> {
        resolve::resolve(self.sources(reference, credentials), reference, platform).await
    }
}
