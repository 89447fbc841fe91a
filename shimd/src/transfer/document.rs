//! The documents of images, as far as moving images about needs them.
//!
//! A document that reads as an index to one and as a manifest to another is an attack (CVE-2021-41190), and refused.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::platform::Platform;
use crate::error::{Error, Result};
use crate::name::Digest;

/// Most bytes of a document or a config.
pub(crate) const DOCUMENT_MAX: u64 = 8 << 20;

pub(crate) mod media_type {
    pub(crate) use crate::checkpoint::{CONFIG as CHECKPOINT_CONFIG, IMAGES as CHECKPOINT};

    pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    pub(crate) const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    pub(crate) const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    pub(crate) const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
}
use media_type as mt;

/// Names a blob: what it is, its digest, its size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    #[serde(with = "digest")]
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
}

mod digest {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    use crate::name::Digest;

    pub(super) fn serialize<S: Serializer>(digest: &Digest, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(digest.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(from)?;
        Digest::parse(&text).map_err(|error| D::Error::custom(error.to_string()))
    }
}

/// Whether a media type is a layer's, whatever was done to it.
pub(crate) fn is_layer(media_type: &str) -> bool {
    let base = media_type.split('+').next().unwrap_or_default();
    matches!(base, "application/vnd.oci.image.layer.v1.tar" | "application/vnd.oci.image.layer.nondistributable.v1.tar")
        || media_type.starts_with(mt::DOCKER_LAYER)
        || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.diff.tar")
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Descriptor {
        let media_type = media_type.to_owned();
        Descriptor { media_type, digest, size, annotations: BTreeMap::new(), platform: None }
    }

    pub(crate) fn is_index(&self) -> bool {
        matches!(self.media_type.as_str(), mt::OCI_INDEX | mt::DOCKER_INDEX)
    }

    pub(crate) fn is_manifest(&self) -> bool {
        matches!(self.media_type.as_str(), mt::OCI_MANIFEST | mt::DOCKER_MANIFEST)
    }

    pub(crate) fn is_config(&self) -> bool {
        matches!(self.media_type.as_str(), mt::OCI_CONFIG | mt::DOCKER_CONFIG)
    }

    pub(crate) fn is_layer(&self) -> bool {
        is_layer(&self.media_type)
    }

    /// Layers that may not be passed on.
    pub(crate) fn is_restricted(&self) -> bool {
        self.media_type.contains(".nondistributable.") || self.media_type.contains(".foreign.")
    }

    /// The label with which a document holds this child. One that ends in a dot is followed by a number.
    fn label(&self) -> &'static str {
        let is_known_config =
            self.is_config() || matches!(self.media_type.as_str(), mt::CHECKPOINT | mt::CHECKPOINT_CONFIG);
        match () {
            () if is_known_config => "containerd.io/gc.ref.content.config",
            () if self.is_manifest() => "containerd.io/gc.ref.content.m.",
            () if self.is_layer() => "containerd.io/gc.ref.content.l.",
            () => "containerd.io/gc.ref.content.",
        }
    }
}

/// The labels with which a document keeps its children from the garbage collector.
pub(crate) fn child_labels<'a>(children: impl IntoIterator<Item = &'a Descriptor>) -> BTreeMap<String, String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut labels = BTreeMap::new();
    for child in children {
        let label = child.label();
        let count = counts.entry(label).or_default();
        let is_numbered = *count > 0 || label.ends_with('.');
        let key = if is_numbered { format!("{label}{count}") } else { label.to_owned() };
        *count += 1;
        labels.insert(key, child.digest.to_string());
    }
    labels
}

/// What a document refers to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest { config: Descriptor, layers: Vec<Descriptor> },
}

impl Document {
    /// Reads the bytes of `descriptor`; `None` where it is no document.
    pub(crate) fn parse(descriptor: &Descriptor, bytes: &[u8]) -> Result<Option<Document>> {
        if descriptor.is_index() {
            let index: Index = read(descriptor, bytes)?;
            if index.config.is_some() || index.layers.is_some() {
                return Err(refused(descriptor, "an index has no config and no layers"));
            }
            return Ok(Some(Document::Index(index.manifests)));
        }
        if descriptor.is_manifest() {
            let manifest: Manifest = read(descriptor, bytes)?;
            if manifest.manifests.is_some() {
                return Err(refused(descriptor, "a manifest has no manifests"));
            }
            return Ok(Some(Document::Manifest { config: manifest.config, layers: manifest.layers }));
        }
        Ok(None)
    }

    pub(crate) fn children(&self) -> impl Iterator<Item = &Descriptor> {
        let (config, rest) = match self {
            Document::Index(manifests) => (None, manifests),
            Document::Manifest { config, layers } => (Some(config), layers),
        };
        config.into_iter().chain(rest)
    }
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
    manifests: Option<IgnoredAny>,
}

/// What unpacking needs of an image's config.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Config {
    #[serde(flatten)]
    pub(crate) platform: Platform,
    #[serde(default)]
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

impl Config {
    pub(crate) fn parse(descriptor: &Descriptor, bytes: &[u8]) -> Result<Config> {
        read(descriptor, bytes)
    }

    /// Digests of the layers as plain archives, lowest first.
    pub(crate) fn diff_ids(&self) -> Result<Vec<Digest>> {
        self.rootfs.diff_ids.iter().map(|text| Digest::parse(text)).collect()
    }
}

fn read<'de, T: Deserialize<'de>>(descriptor: &Descriptor, bytes: &'de [u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| refused(descriptor, &error.to_string()))
}

fn refused(descriptor: &Descriptor, why: &str) -> Error {
    Error::invalid(format!("{} {}", descriptor.media_type, descriptor.digest), why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(media_type: &str, digit: char) -> Descriptor {
        let digest = Digest::parse(&format!("sha256:{}", String::from(digit).repeat(64))).unwrap();
        Descriptor::new(media_type, digest, 1)
    }

    #[test]
    fn children_are_labelled_as_containerd_labels_them() {
        let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
        let children = [descriptor(mt::OCI_CONFIG, 'a'), descriptor(layer, 'b'), descriptor(layer, 'c')];
        let labels = child_labels(&children);
        let keys: Vec<_> =
            labels.keys().map(|key| key.strip_prefix("containerd.io/gc.ref.content.").unwrap()).collect();
        assert_eq!(keys, ["config", "l.0", "l.1"]);
        let labels = child_labels(&[descriptor(mt::OCI_MANIFEST, 'a'), descriptor("text/plain", 'b')]);
        assert!(labels.contains_key("containerd.io/gc.ref.content.m.0"));
        assert!(labels.contains_key("containerd.io/gc.ref.content.0"));
    }

    #[test]
    fn what_is_two_things_is_refused() {
        let child = serde_json::to_string(&descriptor(mt::OCI_CONFIG, 'a')).unwrap();
        let both = format!(r#"{{"config":{child},"layers":[],"manifests":[]}}"#);
        for media_type in [mt::OCI_INDEX, mt::OCI_MANIFEST, mt::DOCKER_INDEX, mt::DOCKER_MANIFEST] {
            assert!(Document::parse(&descriptor(media_type, 'b'), both.as_bytes()).is_err(), "{media_type}");
        }
        let manifest = format!(r#"{{"config":{child},"layers":[]}}"#);
        let read = Document::parse(&descriptor(mt::OCI_MANIFEST, 'b'), manifest.as_bytes()).unwrap().unwrap();
        assert_eq!(read.children().count(), 1);
        assert_eq!(Document::parse(&descriptor("text/plain", 'b'), b"").unwrap(), None);
    }

    #[test]
    fn a_wrong_digest_names_the_document() {
        let text = r#"{"manifests":[{"mediaType":"x","digest":"md5:0","size":1}]}"#;
        let error = Document::parse(&descriptor(mt::OCI_INDEX, 'b'), text.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("md5:0") && error.to_string().contains("bbbb"), "{error}");
    }
}
