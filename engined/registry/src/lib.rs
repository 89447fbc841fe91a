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
//! | `hosts` | where an operator says that images are had, in containerd's form |
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
mod hosts;
mod platform;
mod push;
mod reference;
mod repository;
mod resolve;
mod retry;
mod session;
mod sys;
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
pub use hosts::{HostFiles, Hosts, HostsError, directory_of, read_files};
pub use platform::{Platform, PlatformError};
pub use push::Upload;
pub use reference::{DEFAULT_TAG, HUB, HUB_HOST, Reference, ReferenceError, ReferenceProblem};
pub use resolve::Image;
pub use session::Session;

use hosts::{Host, Trust};
use repository::Repository;
use transport::{Certificates, Transport};

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
    /// A directory with a directory for each registry that says where its images are had: see [`Hosts`]. What stands there
    /// goes before `mirrors`.
    pub hosts_dir: Option<PathBuf>,
    /// The same where somebody else has read it; for all registries.
    pub hosts: Option<Hosts>,
    /// Longest wait for the next bytes before a connection counts as broken.
    pub stall: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            insecure: Vec::new(),
            mirrors: Vec::new(),
            ca_files: Vec::new(),
            hosts_dir: None,
            hosts: None,
            stall: Duration::from_secs(30),
        }
    }
}

/// Talks to registries. Keep one: it holds the connections. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<Transport>,
    config: Arc<Config>,
}

impl Client {
    /// A client that has not connected yet.
    pub fn new(config: Config) -> Client {
        let certificates = Certificates { ca_files: config.ca_files.clone(), ..Certificates::default() };
        let transport = Transport::new(config.insecure.clone(), certificates, config.stall);
        Client { transport: Arc::new(transport), config: Arc::new(config) }
    }

    /// Where `reference` may be found: mirrors first, its own registry last.
    fn sources(&self, reference: &Reference, credentials: &Credentials) -> Result<Vec<Repository>, Problem> {
        if let Some(hosts) = self.hosts(reference)? {
            return Ok(hosts.0.iter().map(|host| self.at(host, reference, credentials)).collect());
        }
        let repository = |host: &str, credentials: Credentials| {
            Repository::new(Arc::clone(&self.transport), host, reference.path(), credentials)
        };
        let bare = |mirror: &String| mirror.trim_start_matches("https://").trim_end_matches('/').to_owned();
        let mirrors = self.config.mirrors.iter().filter(|_| reference.domain() == HUB).map(bare);
        let mut sources: Vec<Repository> = mirrors.map(|host| repository(&host, Credentials::Anonymous)).collect();
        sources.push(repository(reference.host(), credentials.clone()));
        Ok(sources)
    }

    fn hosts(&self, reference: &Reference) -> Result<Option<Hosts>, Problem> {
        let config = &self.config;
        match (&config.hosts, &config.hosts_dir) {
            (Some(hosts), _) => Ok(Some(hosts.clone())),
            (None, Some(directory)) => Hosts::read(directory, reference.domain(), reference.host())
                .map_err(|error| Problem::Setup(Box::new(error))),
            (None, None) => Ok(None),
        }
    }

    /// The repository at a host that the operator named. Credentials are for the registry itself.
    fn at(&self, host: &Host, reference: &Reference, credentials: &Credentials) -> Repository {
        let is_own = host.authority.eq_ignore_ascii_case(reference.host());
        let credentials = if is_own { credentials.clone() } else { Credentials::Anonymous };
        let repository = Repository::at(self.transport_for(host), host, reference.path(), credentials);
        if is_own { repository } else { repository.in_place_of(reference.domain()) }
    }

    /// One of its own for a host with certificates, headers or plain HTTP of its own.
    fn transport_for(&self, host: &Host) -> Arc<Transport> {
        let is_plain = host.tls == Some(false);
        if !is_plain && host.trust == Trust::default() && host.headers.is_empty() {
            return Arc::clone(&self.transport);
        }
        let name = host.authority.rsplit_once(':').map_or(host.authority.as_str(), |(name, _)| name);
        let certificates = Certificates {
            ca_files: self.config.ca_files.clone(),
            trust: host.trust.clone(),
            host: name.trim_matches(['[', ']']).to_owned(),
        };
        let plain = is_plain.then(|| host.authority.clone());
        let insecure = self.config.insecure.iter().cloned().chain(plain);
        let transport = Transport::new(insecure, certificates, self.config.stall);
        let scheme = if is_plain { "http" } else { "https" };
        let transport = match format!("{scheme}://{}/", host.authority).parse() {
            Ok(uri) => transport.with_headers(uri, host.headers.clone()),
            Err(_) => transport,
        };
        Arc::new(transport)
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
        let sources = self.sources(reference, credentials);
        let sources = sources.map_err(|problem| Error::new(format!("find the hosts of {reference}"), problem))?;
        resolve::resolve(sources, reference, platform).await
    }
}
