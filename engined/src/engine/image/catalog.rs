//! Finding an image among the supervisor's records: by name, by digest, by id.

use std::sync::Arc;

use bytes::Bytes;
use strata_fault::{Fault, GrpcCode, Layer, code};
use strata_registry::{CONFIG_MAX, DOCUMENT_MAX, Descriptor, Digest, Document, Index, Manifest, Platform, Reference};

use super::{Image, ImageConfig, Images, reference};
use crate::containerd::images::ImageRecord;

/// Fewest digits of an id that are looked up; fewer are more likely a slip.
const ID_PREFIX_MIN: usize = 2;

impl Images {
    /// As [`Images::local`], asking the supervisor.
    pub(super) async fn find(self: &Arc<Self>, name: &str) -> Result<Option<Arc<Image>>, Fault> {
        let moment = self.memory.moment();
        let Some(image) = self.lookup(name).await? else { return Ok(None) };
        if !self.ensure_unpacked(&image).await? {
            return Ok(None);
        }
        self.memory.remember_name(name, &image, moment);
        Ok(Some(image))
    }

    /// The image that `name` means, unpacked or not. An exact name wins over the beginning of an id.
    pub(super) async fn lookup(&self, name: &str) -> Result<Option<Arc<Image>>, Fault> {
        if let Some(id) = whole_id(name) {
            return self.find_by_id(id).await;
        }
        match self.find_by_name(name).await? {
            Some(image) => Ok(Some(image)),
            None => self.find_by_id_prefix(name).await,
        }
    }

    /// A name that is not well formed may still be the beginning of an id, which is checked then; else it is an error.
    async fn find_by_name(&self, name: &str) -> Result<Option<Arc<Image>>, Fault> {
        let reference = match reference(name) {
            Ok(reference) => reference,
            Err(_) if id_prefix(name).is_some() => return Ok(None),
            Err(fault) => return Err(fault),
        };
        match self.client.image(&reference.to_string()).await? {
            Some(record) => self.load(&record).await,
            None => self.find_by_digest(&reference).await,
        }
    }

    /// `name@digest` also means an image that was pulled by a tag of the same repository.
    async fn find_by_digest(&self, wanted: &Reference) -> Result<Option<Arc<Image>>, Fault> {
        let Some(digest) = wanted.digest() else { return Ok(None) };
        let records = self.client.list_images().await?;
        let same = |record: &&ImageRecord| {
            let name = record.name.parse::<Reference>();
            record.target.digest == *digest && name.is_ok_and(|name| name.name() == wanted.name())
        };
        match records.iter().find(same) {
            Some(record) => self.load(record).await,
            None => Ok(None),
        }
    }

    async fn find_by_id(&self, id: &str) -> Result<Option<Arc<Image>>, Fault> {
        Ok(self.load_all().await?.into_iter().find(|image| hex_of(&image.id) == id))
    }

    async fn find_by_id_prefix(&self, name: &str) -> Result<Option<Arc<Image>>, Fault> {
        let Some(prefix) = id_prefix(name) else { return Ok(None) };
        let mut found = self.load_all().await?.into_iter().filter(|image| hex_of(&image.id).starts_with(prefix));
        let Some(first) = found.next() else { return Ok(None) };
        match found.find(|image| image.id != first.id) {
            None => Ok(Some(first)),
            Some(_) => {
                let what = format!("find the image whose id begins with {prefix:?}: there are several");
                Err(Fault::new(Layer::Engine, "validate", code::INVALID_ARGUMENT, what).hint("give more digits"))
            }
        }
    }

    /// Every image that is whole. One whose documents are missing or damaged is left out, and named in the log: a pull
    /// heals it.
    pub(super) async fn load_all(&self) -> Result<Vec<Arc<Image>>, Fault> {
        let mut images = Vec::new();
        for record in self.client.list_images().await? {
            match self.load(&record).await {
                Ok(Some(image)) => images.push(image),
                Ok(None) => tracing::warn!(image = record.name, "an image is not whole, and left out"),
                Err(fault) if fault.code == code::MANIFEST_INVALID => {
                    tracing::warn!(image = record.name, error = fault.one_line(), "an image is damaged, and left out");
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(images)
    }

    /// The image that a record names, from its documents; `None` when they are not all here.
    pub(super) async fn load(&self, record: &ImageRecord) -> Result<Option<Arc<Image>>, Fault> {
        if let Some(known) = self.memory.documents(record.target.digest.as_str()) {
            return Ok(Some(named(known, &record.name)));
        }
        let Some(manifest) = self.read_manifest(&record.target).await? else { return Ok(None) };
        let config = &manifest.config.digest;
        let Some(bytes) = self.client.read_blob(config, CONFIG_MAX).await? else { return Ok(None) };
        let image = image(&record.name, &record.target, &manifest, bytes)?;
        self.memory.remember_documents(&image);
        Ok(Some(image))
    }

    /// The manifest that the target is or leads to: of an index's images the best for this host, of those that are here.
    async fn read_manifest(&self, target: &Descriptor) -> Result<Option<Manifest>, Fault> {
        match self.read_document(target).await? {
            None => Ok(None),
            Some(Document::Manifest(manifest)) => Ok(Some(manifest)),
            Some(Document::Index(index)) => self.read_best(index).await,
        }
    }

    async fn read_best(&self, index: Index) -> Result<Option<Manifest>, Fault> {
        let host = Platform::host();
        let mut entries = index.manifests;
        entries
            .sort_by_key(|entry| std::cmp::Reverse(entry.platform.as_ref().and_then(|platform| host.rank(platform))));
        for entry in &entries {
            // An index within an index leads on; deeper ones are not made by anything that is known.
            match self.read_document(entry).await? {
                Some(Document::Manifest(manifest)) => return Ok(Some(manifest)),
                Some(Document::Index(inner)) => {
                    if let Some(best) = inner.choose(&host)
                        && let Some(Document::Manifest(manifest)) = self.read_document(best).await?
                    {
                        return Ok(Some(manifest));
                    }
                }
                None => {}
            }
        }
        Ok(None)
    }

    async fn read_document(&self, descriptor: &Descriptor) -> Result<Option<Document>, Fault> {
        let Some(bytes) = self.client.read_blob(&descriptor.digest, DOCUMENT_MAX).await? else { return Ok(None) };
        let parsed = Document::parse(&bytes, Some(&descriptor.media_type));
        let failed = |error| damaged(&format!("read the document {}", descriptor.digest)).caused_by(&error);
        parsed.map(Some).map_err(failed)
    }

    /// Whether the image's layers are unpacked, so that a container can stand on them. Others may have brought an image
    /// here without: then it is done now, if its blobs are here.
    async fn ensure_unpacked(self: &Arc<Self>, image: &Arc<Image>) -> Result<bool, Fault> {
        if image.chain_id.is_empty() || self.client.has_layer(&self.snapshotter, &chain_id(image)).await? {
            return Ok(true);
        }
        let record = ImageRecord { name: image.reference.clone(), target: target(image)? };
        let Some(manifest) = self.read_manifest(&record.target).await? else {
            self.memory.forget_documents(&image.digest);
            return Ok(false);
        };
        match self.unpack_local(image, &manifest).await {
            Ok(()) => Ok(true),
            // A blob is missing.
            Err(fault) if fault.grpc == GrpcCode::NotFound => Ok(false),
            Err(fault) => Err(fault),
        }
    }
}

fn chain_id(image: &Image) -> Digest {
    image.chain_id.parse().expect("it was made of a digest")
}

fn target(image: &Image) -> Result<Descriptor, Fault> {
    let digest = image.digest.parse().map_err(|error| damaged("read an image's digest").caused_by(&error))?;
    let media_type = String::new();
    Ok(Descriptor { media_type, digest, size: 0, annotations: Default::default(), platform: None })
}

/// An image's documents put together.
pub(super) fn image(
    name: &str,
    target: &Descriptor,
    manifest: &Manifest,
    config_bytes: Bytes,
) -> Result<Arc<Image>, Fault> {
    let config = ImageConfig::parse(&config_bytes, manifest.layers.len())
        .map_err(|error| damaged(&format!("read the config of {name}")).caused_by(&error))?;
    let chain_id = config.chain_ids().pop().map(|digest| digest.to_string()).unwrap_or_default();
    Ok(Arc::new(Image {
        reference: name.to_owned(),
        familiar: familiar(name),
        digest: target.digest.to_string(),
        id: manifest.config.digest.to_string(),
        chain_id,
        config,
        config_bytes,
    }))
}

/// The same image under another of its names.
fn named(image: Arc<Image>, name: &str) -> Arc<Image> {
    if image.reference == name {
        return image;
    }
    Arc::new(Image { reference: name.to_owned(), familiar: familiar(name), ..(*image).clone() })
}

/// As people write it; a name that is no reference, which others may have given, stays as it is.
pub(super) fn familiar(name: &str) -> String {
    name.parse::<Reference>().map_or_else(|_| name.to_owned(), |reference| reference.familiar())
}

fn damaged(attempt: &str) -> Fault {
    Fault::new(Layer::Engine, "pull", code::MANIFEST_INVALID, attempt)
}

/// The hex digits of a digest.
fn hex_of(digest: &str) -> &str {
    digest.split_once(':').map_or(digest, |(_, hex)| hex)
}

/// The digits of a whole id, with or without its algorithm.
fn whole_id(name: &str) -> Option<&str> {
    id_digits(name).filter(|digits| digits.len() == 64)
}

fn id_prefix(name: &str) -> Option<&str> {
    id_digits(name).filter(|digits| (ID_PREFIX_MIN..=64).contains(&digits.len()))
}

fn id_digits(name: &str) -> Option<&str> {
    let digits = name.strip_prefix("sha256:").unwrap_or(name);
    digits.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')).then_some(digits)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn ids_and_their_beginnings() {
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(whole_id(&id), Some(id.as_str()));
        assert_eq!(whole_id(&format!("sha256:{id}")), Some(id.as_str()));
        assert_eq!((whole_id("abc"), id_prefix("abc"), id_prefix("sha256:abc")), (None, Some("abc"), Some("abc")));
        assert_eq!((id_prefix("a"), id_prefix("nginx"), id_prefix("ABC"), id_prefix("")), (None, None, None, None));
    }

    #[test]
    fn a_name_that_is_no_reference_is_shown_as_it_is() {
        assert_eq!(familiar("docker.io/library/nginx:latest"), "nginx:latest");
        assert_eq!(familiar("Import 2026"), "Import 2026");
    }
}
