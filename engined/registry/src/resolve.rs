//! From a name to one image: the document it stands for and, through an index, the manifest for a platform.

use bytes::Bytes;

use crate::blob::Blob;
use crate::digest::{Digest, Hasher};
use crate::document::{CONFIG_MAX, Descriptor, Document, Fetched, Index, Manifest};
use crate::error::{Error, Problem};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::repository::{RawDocument, Repository};

use std::sync::Arc;

/// Deepest nesting of indexes that is followed.
const NESTING_MAX: usize = 3;

/// An image in a registry: its documents are here, its blobs can be fetched.
pub struct Image {
    /// The indexes that led to the manifest, outermost first; none where the name stood for a manifest.
    pub indexes: Vec<Fetched<Index>>,
    /// The image.
    pub manifest: Fetched<Manifest>,
    sources: Sources,
}

/// Where blobs are fetched from, in this order.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) repositories: Arc<[Arc<Repository>]>,
    /// For errors: as the person named it.
    pub(crate) name: Arc<str>,
}

impl Image {
    /// What the name stands for: the outermost index, or the manifest.
    pub fn target(&self) -> &Descriptor {
        self.indexes.first().map_or(&self.manifest.descriptor, |index| &index.descriptor)
    }

    /// Fetches and verifies the image's config.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn config(&self) -> Result<Bytes, Error> {
        let descriptor = &self.manifest.document.config;
        let failed = |problem| Error::new(format!("fetch the config of {}", self.sources.name), problem);
        let bytes = self.sources.small_blob(descriptor).await.map_err(failed)?;
        verify(&bytes, descriptor).map_err(failed)?;
        Ok(bytes)
    }

    /// A stream of a layer, from `offset` on. Nothing is asked for before the first [`Blob::next`].
    pub fn blob(&self, descriptor: &Descriptor, offset: u64) -> Blob {
        Blob::new(self.sources.clone(), descriptor.clone(), offset)
    }
}

impl Sources {
    /// Those that blobs are fetched from; all where there would be none, so that one says why not.
    pub(crate) fn to_pull(&self) -> Sources {
        let pulled = self.such_as(|source| source.capabilities().pull);
        let repositories = if pulled.is_empty() { self.repositories.clone() } else { pulled.into() };
        Sources { repositories, name: self.name.clone() }
    }

    pub(crate) fn such_as(&self, is_wanted: impl Fn(&Repository) -> bool) -> Vec<Arc<Repository>> {
        self.repositories.iter().filter(|source| is_wanted(source)).cloned().collect()
    }

    async fn small_blob(&self, descriptor: &Descriptor) -> Result<Bytes, Problem> {
        let mut sources = self.repositories.iter();
        loop {
            let repository = sources.next().expect("there is a source, and the last one ends the loop");
            match repository.small_blob(&descriptor.digest, descriptor.size.min(CONFIG_MAX)).await {
                Err(Problem::TooLarge { limit }) => {
                    return Err(Problem::Size { expected: limit, actual: limit + 1 });
                }
                Err(_) if sources.len() > 0 => {}
                result => return result,
            }
        }
    }
}

/// Asks the sources in turn; the words of the last one, the image's own registry, are those that count.
pub(crate) async fn resolve(
    sources: Vec<Repository>,
    reference: &Reference,
    platform: &Platform,
) -> Result<Image, Error> {
    let failed = |problem| Error::new(format!("fetch the manifest of {reference}"), problem);
    let mut sources: Vec<Arc<Repository>> = sources.into_iter().map(Arc::new).collect();
    while let Some(at) = sources.iter().position(|source| may_resolve(source, reference)) {
        match resolve_at(&sources[at], reference, platform).await {
            Ok((indexes, manifest)) => {
                let sources = Sources { repositories: sources.into(), name: reference.to_string().into() };
                return Ok(Image { indexes, manifest, sources: sources.to_pull() });
            }
            Err(problem) => {
                let source = sources.remove(at);
                if !sources.iter().any(|source| may_resolve(source, reference)) {
                    return Err(failed(problem));
                }
                tracing::info!(%problem, host = source.host(), image = %reference, "a mirror does not serve an image");
            }
        }
    }
    Err(failed(no_host()))
}

/// Whether a host is asked what a reference stands for. A digest stands for itself.
pub(crate) fn may_resolve(source: &Repository, reference: &Reference) -> bool {
    let capabilities = source.capabilities();
    if reference.digest().is_some() { capabilities.pull } else { capabilities.resolve }
}

/// No host is there for what is wanted.
pub(crate) fn no_host() -> Problem {
    Problem::Protocol("none of the registry's hosts has the capability for it".into())
}

async fn resolve_at(
    source: &Repository,
    reference: &Reference,
    platform: &Platform,
) -> Result<(Vec<Fetched<Index>>, Fetched<Manifest>), Problem> {
    let mut indexes: Vec<Fetched<Index>> = Vec::new();
    let mut next = fetch_named(source, reference).await?;
    loop {
        let index = match next {
            Fetched { document: Document::Manifest(document), descriptor, bytes } => {
                return Ok((indexes, Fetched { descriptor, bytes, document }));
            }
            Fetched { document: Document::Index(document), descriptor, bytes } => {
                Fetched { descriptor, bytes, document }
            }
        };
        if indexes.len() == NESTING_MAX {
            return Err(Problem::Protocol(format!("its indexes are nested more than {NESTING_MAX} deep")));
        }
        next = fetch_described(source, choose(&index.document, platform)?).await?;
        indexes.push(index);
    }
}

fn choose<'i>(index: &'i Index, platform: &Platform) -> Result<&'i Descriptor, Problem> {
    index.choose(platform).ok_or_else(|| {
        let offered = match index.platforms() {
            none if none.is_empty() => "no platform at all".to_owned(),
            some => some,
        };
        Problem::Platform { wanted: platform.to_string(), offered }
    })
}

/// The document that a tag or a digest stands for. A digest wins over a tag, and then it is the digest that is checked.
pub(crate) async fn fetch_named(source: &Repository, reference: &Reference) -> Result<Fetched<Document>, Problem> {
    let name = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.as_str(),
        (None, Some(tag)) => tag,
        (None, None) => unreachable!("a reference has a tag or a digest"),
    };
    let raw = source.document(name).await?;
    let expected = reference.digest().or(raw.claimed.as_ref()).cloned();
    checked(raw, expected.as_ref())
}

/// The document that an index describes: its digest, its size and its media type must be as described.
pub(crate) async fn fetch_described(
    source: &Repository,
    descriptor: &Descriptor,
) -> Result<Fetched<Document>, Problem> {
    let raw = source.document(descriptor.digest.as_str()).await?;
    verify(&raw.bytes, descriptor)?;
    let described = Some(descriptor.media_type.clone());
    let fetched =
        checked(RawDocument { content_type: raw.content_type.or(described), ..raw }, Some(&descriptor.digest))?;
    if fetched.document.media_type() != descriptor.media_type {
        let actual = fetched.document.media_type();
        return Err(Problem::Protocol(format!(
            "the index calls {} {:?}, but it is {actual:?}",
            descriptor.digest, descriptor.media_type
        )));
    }
    Ok(fetched)
}

fn checked(raw: RawDocument, expected: Option<&Digest>) -> Result<Fetched<Document>, Problem> {
    let digest = match expected {
        Some(expected) => {
            verify_digest(&raw.bytes, expected)?;
            expected.clone()
        }
        None => Digest::of(&raw.bytes),
    };
    let document = Document::parse(&raw.bytes, raw.content_type.as_deref()).map_err(Problem::Document)?;
    let descriptor = Descriptor {
        media_type: document.media_type().to_owned(),
        digest,
        size: raw.bytes.len() as u64,
        annotations: Default::default(),
        platform: None,
    };
    Ok(Fetched { descriptor, bytes: raw.bytes, document })
}

fn verify(bytes: &[u8], descriptor: &Descriptor) -> Result<(), Problem> {
    let actual = bytes.len() as u64;
    if actual != descriptor.size {
        return Err(Problem::Size { expected: descriptor.size, actual });
    }
    verify_digest(bytes, &descriptor.digest)
}

fn verify_digest(bytes: &[u8], expected: &Digest) -> Result<(), Problem> {
    let mut hasher = Hasher::new(expected.algorithm());
    hasher.update(bytes);
    let actual = hasher.finish();
    if actual == *expected { Ok(()) } else { Err(Problem::Digest { expected: expected.clone(), actual }) }
}
