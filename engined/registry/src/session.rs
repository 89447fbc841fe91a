//! One repository, piece by piece: for who decides for himself what of an image he wants.

use std::sync::Arc;

use bytes::Bytes;

use crate::Client;
use crate::auth::Credentials;
use crate::blob::Blob;
use crate::document::{Descriptor, Document, Fetched};
use crate::error::{Error, Problem};
use crate::push::Upload;
use crate::reference::Reference;
use crate::repository::{Repository, Right};
use crate::resolve::{Sources, fetch_described, fetch_named, may_resolve, no_host};

/// A repository at its own registry, with credentials. Made by [`Client::session`].
pub struct Session {
    sources: Sources,
    reference: Reference,
}

impl Client {
    /// Talks to the repository of `reference`, to read it or (`to_push`) to write it, too.
    ///
    /// # Errors
    /// What the operator says of the registry's hosts cannot be followed.
    pub fn session(&self, reference: &Reference, credentials: &Credentials, to_push: bool) -> Result<Session, Error> {
        let failed = |problem| Error::new(format!("find the hosts of {reference}"), problem);
        let mut sources = self.sources(reference, credentials).map_err(failed)?;
        if to_push {
            // The first that takes it, and no other: an image is not spread over several.
            let none = || failed(Problem::Protocol("none of them is there to be pushed to".into()));
            let at = sources.iter().position(|source| source.capabilities().push).ok_or_else(none)?;
            sources = vec![sources.swap_remove(at).with(Right::Push)];
        }
        if sources.is_empty() {
            return Err(failed(Problem::Protocol("there are none".into())));
        }
        let repositories = sources.into_iter().map(Arc::new).collect();
        let sources = Sources { repositories, name: reference.to_string().into() };
        Ok(Session { sources, reference: reference.clone() })
    }
}

impl Session {
    /// What the reference stands for.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn resolve(&self) -> Result<Fetched<Document>, Error> {
        let failed = |problem| Error::new(format!("fetch the manifest of {}", self.reference), problem);
        let sources = self.sources.such_as(|source| may_resolve(source, &self.reference));
        for (at, source) in sources.iter().enumerate() {
            match fetch_named(source, &self.reference).await {
                Err(problem) if at + 1 < sources.len() => {
                    tracing::info!(%problem, image = %self.reference, "a mirror does not serve an image");
                }
                found => return found.map_err(failed),
            }
        }
        Err(failed(no_host()))
    }

    /// The document of a descriptor, verified.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn document(&self, descriptor: &Descriptor) -> Result<Bytes, Error> {
        let failed =
            |problem| Error::new(format!("fetch manifest {} of {}", descriptor.digest, self.reference), problem);
        let sources = self.sources.such_as(|source| source.capabilities().pull);
        for (at, source) in sources.iter().enumerate() {
            match fetch_described(source, descriptor).await {
                Err(problem) if at + 1 < sources.len() => {
                    tracing::info!(%problem, digest = %descriptor.digest, "a mirror does not serve a manifest");
                }
                found => return found.map(|found| found.bytes).map_err(failed),
            }
        }
        Err(failed(no_host()))
    }

    /// A stream of a blob, from `offset` on. Nothing is asked for before the first [`Blob::next`].
    pub fn blob(&self, descriptor: &Descriptor, offset: u64) -> Blob {
        Blob::new(self.sources.to_pull(), descriptor.clone(), offset)
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

    /// The one that is pushed to; of those that are read, the registry itself, behind its mirrors.
    fn own(&self) -> &Repository {
        self.sources.repositories.last().expect("a session has a repository")
    }
}
