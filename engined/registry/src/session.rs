//! One repository, piece by piece: for who decides for himself what of an image he wants.

use bytes::Bytes;

use crate::Client;
use crate::auth::Credentials;
use crate::blob::Blob;
use crate::document::{Descriptor, Document, Fetched};
use crate::error::{Error, Problem};
use crate::push::Upload;
use crate::reference::Reference;
use crate::repository::{Repository, Right};
use crate::resolve::{Sources, fetch_described, fetch_named};

/// A repository at its own registry, with credentials. Made by [`Client::session`].
pub struct Session {
    sources: Sources,
    reference: Reference,
}

impl Client {
    /// Talks to the repository of `reference`, to read it or (`to_push`) to write it, too.
    pub fn session(&self, reference: &Reference, credentials: &Credentials, to_push: bool) -> Session {
        let mut repositories = if to_push { Vec::new() } else { self.sources(reference, credentials) };
        if to_push {
            repositories.push(self.own(reference, credentials).with(Right::Push));
        }
        let sources = Sources { repositories: repositories.into(), name: reference.to_string().into() };
        Session { sources, reference: reference.clone() }
    }
}

impl Session {
    /// What the reference stands for.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn resolve(&self) -> Result<Fetched<Document>, Error> {
        let found = fetch_named(self.own(), &self.reference).await;
        found.map_err(|problem| Error::new(format!("fetch the manifest of {}", self.reference), problem))
    }

    /// The document of a descriptor, verified.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn document(&self, descriptor: &Descriptor) -> Result<Bytes, Error> {
        let found = fetch_described(self.own(), descriptor).await;
        let found = found.map_err(|problem| {
            Error::new(format!("fetch manifest {} of {}", descriptor.digest, self.reference), problem)
        });
        Ok(found?.bytes)
    }

    /// A stream of a blob, from `offset` on. Nothing is asked for before the first [`Blob::next`].
    pub fn blob(&self, descriptor: &Descriptor, offset: u64) -> Blob {
        Blob::new(self.sources.clone(), descriptor.clone(), offset)
    }

    /// Whether the repository has a blob.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn has_blob(&self, descriptor: &Descriptor) -> Result<bool, Error> {
        let found = self.own().has(&format!("blobs/{}", descriptor.digest)).await;
        found.map_err(|problem| self.pushing("look for blob", descriptor, problem))
    }

    /// Begins to write a blob.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn upload(&self, descriptor: &Descriptor) -> Result<Upload<'_>, Error> {
        let begun = Upload::begin(self.own(), descriptor).await;
        begun.map_err(|problem| self.pushing("push blob", descriptor, problem))
    }

    /// Writes a document, under the reference's tag if it is what the reference shall stand for.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn push_document(&self, descriptor: &Descriptor, bytes: Bytes, is_root: bool) -> Result<(), Error> {
        let tag = self.reference.tag().filter(|_| is_root);
        let name = tag.unwrap_or(descriptor.digest.as_str());
        let pushed = self.own().put_document(name, &descriptor.media_type, bytes).await;
        pushed.map_err(|problem| self.pushing("push manifest", descriptor, problem))
    }

    /// The error for what went wrong with an upload of this session.
    pub fn pushing(&self, attempt: &str, descriptor: &Descriptor, problem: Problem) -> Error {
        Error::new(format!("{attempt} {} to {}", descriptor.digest, self.reference), problem)
    }

    /// The registry itself, behind its mirrors.
    fn own(&self) -> &Repository {
        self.sources.repositories.last().expect("a session has a repository")
    }
}
