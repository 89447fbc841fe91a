//! Image indexes and manifests: what a registry's JSON must be before anything is done with it.
//!
//! Two parsers that read one document differently are an attack (CVE-2021-41190): so a document says what it is in
//! three places (the `Content-Type`, its `mediaType`, the fields that it has) and here all three must agree, fields must
//! not occur twice, and what is counted by a stranger is bounded. Nothing here talks to anybody.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};

use crate::digest::Digest;
use crate::platform::Platform;

/// Most bytes of a manifest or an index; registries enforce the same.
pub const DOCUMENT_MAX: u64 = 4 << 20;
/// Most bytes of an image's config.
pub const CONFIG_MAX: u64 = 8 << 20;
/// Most layers of an image: OverlayFS stacks no more (`OVL_MAX_STACK`).
pub const LAYERS_MAX: usize = 500;
/// Most images of an index.
pub const INDEX_MAX: usize = 1000;

/// The media types that are understood.
pub mod media_type {
    #![expect(missing_docs, reason = "the names are the specifications' own")]
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
}
use media_type::*;

/// The document types that a registry is asked for.
pub(crate) const ACCEPTED: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST];

/// Names a blob or a document: what it is, its digest, its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// One of [`media_type`].
    pub media_type: String,
    /// Of the bytes.
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// As the document gives them.
    pub annotations: BTreeMap<String, String>,
    /// In an index: what the image runs on.
    pub platform: Option<Platform>,
}

/// How a layer's tar is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, RFC 1952.
    Gzip,
    /// Zstandard, RFC 8878.
    Zstd,
}

impl Compression {
    /// That of a layer's media type; `None` for what is no layer.
    pub fn of(media_type: &str) -> Option<Compression> {
        match media_type {
            OCI_LAYER | DOCKER_LAYER => Some(Compression::None),
            OCI_LAYER_GZIP | DOCKER_LAYER_GZIP => Some(Compression::Gzip),
            OCI_LAYER_ZSTD | DOCKER_LAYER_ZSTD => Some(Compression::Zstd),
            _ => None,
        }
    }
}

/// A checked document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// Images for several platforms.
    Index(Index),
    /// One image.
    Manifest(Manifest),
}

/// Images for several platforms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// What it is.
    pub media_type: String,
    /// The images, in the document's order.
    pub manifests: Vec<Descriptor>,
}

/// One image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// What it is.
    pub media_type: String,
    /// The image's configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
}

/// A document with the bytes that its digest is of.
#[derive(Clone, Debug)]
pub struct Fetched<D> {
    /// Media type, digest and size of `bytes`.
    pub descriptor: Descriptor,
    /// As the registry sent them.
    pub bytes: Bytes,
    /// What they say.
    pub document: D,
}

/// Why bytes are no document that can be used.
#[derive(Debug)]
pub enum DocumentError {
    /// Not JSON, or not of the shape.
    Json(serde_json::Error),
    /// It has the fields of both an index and a manifest.
    Ambiguous,
    /// It has the fields of neither.
    Neither,
    /// The old format, signed manifests with a history of v1 images.
    Schema1,
    /// `schemaVersion` is not 2.
    SchemaVersion(u64),
    /// It says to be one thing and has the fields of another.
    Contradiction {
        /// Where it says so.
        place: &'static str,
        /// What it says.
        claimed: String,
        /// What it is by its fields.
        actual: &'static str,
    },
    /// A media type that is not known for that purpose.
    MediaType {
        /// `config`, `layer 3`.
        of: String,
        /// What it says.
        media_type: String,
    },
    /// A layer that is to be fetched from a place that the document names.
    Foreign(String),
    /// More than the bound.
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many it has.
        count: usize,
        /// The bound.
        limit: usize,
    },
    /// A config above [`CONFIG_MAX`], or another size that cannot be.
    Size {
        /// Of what.
        of: String,
        /// What it says.
        size: u64,
        /// The bound.
        limit: u64,
    },
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use DocumentError::*;
        match self {
            Json(_) => f.write_str("read it as JSON of an image index or manifest"),
            Ambiguous => f.write_str("it has both layers and manifests, so it could be read as two different images"),
            Neither => f.write_str("it is neither an image index nor an image manifest"),
            Schema1 => f.write_str("it is in Docker's schema 1, which is no longer used"),
            SchemaVersion(version) => write!(f, "its schemaVersion is {version}, not 2"),
            Contradiction { place, claimed, actual } => {
                write!(f, "its {place} says {claimed:?}, but it has the fields of {actual}")
            }
            MediaType { of, media_type } => write!(f, "its {of} has media type {media_type:?}, which is not known"),
            Foreign(of) => write!(f, "its {of} is to be fetched from a foreign place, which is not done"),
            TooMany { what, count, limit } => write!(f, "it has {count} {what}, more than {limit}"),
            Size { of, size, limit } => write!(f, "its {of} has {size} bytes, more than {limit}"),
        }
    }
}

impl std::error::Error for DocumentError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            DocumentError::Json(error) => Some(error),
            _ => None,
        }
    }
}

impl Document {
    /// Reads and checks `bytes`. `content_type` is what the transport said they are, where it said something.
    ///
    /// # Errors
    /// See [`DocumentError`].
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Document, DocumentError> {
        let wire: Wire = serde_json::from_slice(bytes).map_err(DocumentError::Json)?;
        let actual = wire.family()?;
        if let Some(version) = wire.schema_version.filter(|version| *version != 2) {
            return Err(DocumentError::SchemaVersion(version));
        }
        agree("mediaType", wire.media_type.as_deref(), actual)?;
        agree("Content-Type", content_type.and_then(specific), actual)?;
        let media_type = wire.media_type.clone().or_else(|| content_type.and_then(specific).map(str::to_owned));
        match actual {
            Family::Index => index(wire, media_type).map(Document::Index),
            Family::Manifest => manifest(wire, media_type).map(Document::Manifest),
        }
    }

    /// The media type that the document has.
    pub fn media_type(&self) -> &str {
        match self {
            Document::Index(index) => &index.media_type,
            Document::Manifest(manifest) => &manifest.media_type,
        }
    }
}

impl Index {
    /// The image that runs best on `platform`; of equals the first. An index with one image that names no platform
    /// is an image for any.
    pub fn choose(&self, platform: &Platform) -> Option<&Descriptor> {
        let ranked = self.manifests.iter().filter_map(|entry| Some((platform.rank(entry.platform.as_ref()?)?, entry)));
        let best = ranked.rev().max_by_key(|(rank, _)| *rank).map(|(_, entry)| entry);
        best.or_else(|| match self.manifests.as_slice() {
            [only] if only.platform.is_none() => Some(only),
            _ => None,
        })
    }

    /// The platforms that it has images for, as a list for people. It is a stranger's text: bounded, and without
    /// anything that a terminal would obey.
    pub fn platforms(&self) -> String {
        const SHOWN: usize = 20;
        let known = self.manifests.iter().filter_map(|entry| entry.platform.as_ref()).filter(|p| p.os != "unknown");
        let shown = known.take(SHOWN).map(|platform| bounded(&platform.to_string()));
        shown.collect::<Vec<_>>().join(", ").replace(|c: char| c.is_control(), "?")
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Index,
    Manifest,
}

impl Family {
    fn of(media_type: &str) -> Option<Family> {
        match media_type {
            OCI_INDEX | DOCKER_INDEX => Some(Family::Index),
            OCI_MANIFEST | DOCKER_MANIFEST => Some(Family::Manifest),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Family::Index => "an image index",
            Family::Manifest => "an image manifest",
        }
    }
}

/// The media type of a `Content-Type`, without parameters; `None` for the types that say nothing.
fn specific(content_type: &str) -> Option<&str> {
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    let vague = ["", "application/json", "application/octet-stream", "text/plain"];
    (!vague.contains(&media_type)).then_some(media_type)
}

fn agree(place: &'static str, claimed: Option<&str>, actual: Family) -> Result<(), DocumentError> {
    match claimed {
        Some(claimed) if Family::of(claimed) != Some(actual) => {
            Err(DocumentError::Contradiction { place, claimed: bounded(claimed), actual: actual.name() })
        }
        _ => Ok(()),
    }
}

fn index(wire: Wire, media_type: Option<String>) -> Result<Index, DocumentError> {
    let entries = wire.manifests.unwrap_or_default();
    bounded_count("images", entries.len(), INDEX_MAX)?;
    let manifests = entries.into_iter().map(WireDescriptor::into_descriptor).collect();
    Ok(Index { media_type: media_type.unwrap_or_else(|| OCI_INDEX.to_owned()), manifests })
}

fn manifest(wire: Wire, media_type: Option<String>) -> Result<Manifest, DocumentError> {
    let (Some(config), Some(layers)) = (wire.config, wire.layers) else { return Err(DocumentError::Neither) };
    bounded_count("layers", layers.len(), LAYERS_MAX)?;
    check_config(&config)?;
    for (number, layer) in layers.iter().enumerate() {
        check_layer(&format!("layer {}", number + 1), layer)?;
    }
    Ok(Manifest {
        media_type: media_type.unwrap_or_else(|| OCI_MANIFEST.to_owned()),
        config: config.into_descriptor(),
        layers: layers.into_iter().map(WireDescriptor::into_descriptor).collect(),
    })
}

fn check_config(config: &WireDescriptor) -> Result<(), DocumentError> {
    if ![OCI_CONFIG, DOCKER_CONFIG].contains(&config.media_type.as_str()) {
        return Err(DocumentError::MediaType { of: "config".into(), media_type: bounded(&config.media_type) });
    }
    if config.size > CONFIG_MAX {
        return Err(DocumentError::Size { of: "config".into(), size: config.size, limit: CONFIG_MAX });
    }
    Ok(())
}

/// Most bytes of a layer: what content stores count in.
const LAYER_MAX: u64 = i64::MAX as u64;

fn check_layer(of: &str, layer: &WireDescriptor) -> Result<(), DocumentError> {
    if layer.urls.as_ref().is_some_and(|urls| !urls.is_empty()) || is_foreign(&layer.media_type) {
        return Err(DocumentError::Foreign(of.to_owned()));
    }
    if Compression::of(&layer.media_type).is_none() {
        return Err(DocumentError::MediaType { of: of.to_owned(), media_type: bounded(&layer.media_type) });
    }
    if layer.size > LAYER_MAX {
        return Err(DocumentError::Size { of: of.to_owned(), size: layer.size, limit: LAYER_MAX });
    }
    Ok(())
}

fn is_foreign(media_type: &str) -> bool {
    media_type.contains(".nondistributable.") || media_type.contains(".foreign.")
}

fn bounded_count(what: &'static str, count: usize, limit: usize) -> Result<(), DocumentError> {
    if count > limit { Err(DocumentError::TooMany { what, count, limit }) } else { Ok(()) }
}

/// At most 128 characters of what a stranger sent, for an error's text.
fn bounded(text: &str) -> String {
    text.chars().take(128).collect()
}

/// Either kind of document. serde refuses a field that occurs twice, so no two parsers can see different values of it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    schema_version: Option<u64>,
    media_type: Option<String>,
    #[serde(default, deserialize_with = "bounded_list")]
    manifests: Option<Vec<WireDescriptor>>,
    #[serde(default, deserialize_with = "bounded_list")]
    layers: Option<Vec<WireDescriptor>>,
    config: Option<WireDescriptor>,
    /// Of schema 1.
    fs_layers: Option<IgnoredAny>,
}

impl Wire {
    fn family(&self) -> Result<Family, DocumentError> {
        if self.fs_layers.is_some() || self.schema_version == Some(1) {
            return Err(DocumentError::Schema1);
        }
        match (self.manifests.is_some(), self.layers.is_some() || self.config.is_some()) {
            (true, true) => Err(DocumentError::Ambiguous),
            (true, false) => Ok(Family::Index),
            (false, true) => Ok(Family::Manifest),
            (false, false) => Err(DocumentError::Neither),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireDescriptor {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    platform: Option<Platform>,
    urls: Option<Vec<String>>,
}

impl WireDescriptor {
    fn into_descriptor(self) -> Descriptor {
        Descriptor {
            media_type: self.media_type,
            digest: self.digest,
            size: self.size,
            annotations: self.annotations.unwrap_or_default(),
            platform: self.platform,
        }
    }
}

/// A list whose elements past the larger bound are counted but not kept, so that a document of ten million layers
/// costs no memory before it is refused.
fn bounded_list<'de, D>(deserializer: D) -> Result<Option<Vec<WireDescriptor>>, D::Error>
where
    D: Deserializer<'de>,
{
    struct Visitor;
    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = Option<Vec<WireDescriptor>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {INDEX_MAX} descriptors")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut kept = Vec::new();
            while let Some(entry) = list.next_element()? {
                if kept.len() == INDEX_MAX {
                    return Err(serde::de::Error::invalid_length(INDEX_MAX + 1, &self));
                }
                kept.push(entry);
            }
            Ok(Some(kept))
        }
    }
    deserializer.deserialize_any(Visitor)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn digest(n: u8) -> String {
        Digest::of(&[n]).to_string()
    }

    fn layer(n: u8) -> Value {
        json!({"mediaType": OCI_LAYER_GZIP, "digest": digest(n), "size": 10})
    }

    fn manifest_json() -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": digest(0), "size": 7},
            "layers": [layer(1), layer(2)],
        })
    }

    fn index_json() -> Value {
        let entry = |n: u8, platform: Value| json!({"mediaType": OCI_MANIFEST, "digest": digest(n), "size": 5, "platform": platform});
        json!({
            "schemaVersion": 2,
            "manifests": [
                entry(1, json!({"os": "linux", "architecture": "arm64"})),
                entry(2, json!({"os": "linux", "architecture": "amd64"})),
                entry(3, json!({"os": "linux", "architecture": "amd64", "variant": "v2"})),
                entry(4, json!({"os": "unknown", "architecture": "unknown"})),
            ],
        })
    }

    fn parse(value: &Value, content_type: Option<&str>) -> Result<Document, DocumentError> {
        Document::parse(value.to_string().as_bytes(), content_type)
    }

    /// The error's text, for `value` with `change` made.
    fn refused(mut value: Value, change: impl FnOnce(&mut Value)) -> String {
        change(&mut value);
        parse(&value, None).expect_err("refused").to_string()
    }

    #[test]
    fn a_manifest() {
        let Document::Manifest(manifest) = parse(&manifest_json(), Some("application/json; charset=utf-8")).unwrap()
        else {
            panic!("an index")
        };
        assert_eq!(manifest.config.digest, Digest::of(&[0]));
        assert_eq!(manifest.layers.iter().map(|layer| layer.size).collect::<Vec<_>>(), [10, 10]);
    }

    #[test]
    fn an_index_chooses_by_platform() {
        let Document::Index(index) = parse(&index_json(), Some(OCI_INDEX)).unwrap() else { panic!("a manifest") };
        let chosen = |platform: &str| index.choose(&platform.parse().unwrap()).map(|entry| entry.digest.clone());
        assert_eq!(chosen("linux/amd64"), Some(Digest::of(&[2])));
        assert_eq!(chosen("linux/amd64/v3"), Some(Digest::of(&[3])));
        assert_eq!(chosen("linux/arm64/v8"), Some(Digest::of(&[1])));
        assert_eq!(chosen("linux/s390x"), None);
        let hostile = Index {
            manifests: vec![Descriptor {
                platform: Some(Platform { os: "\u{1b}[2J".into(), ..Platform::default() }),
                ..index.manifests[0].clone()
            }],
            ..index.clone()
        };
        assert_eq!(hostile.platforms(), "?[2J/");
        assert_eq!(index.platforms(), "linux/arm64, linux/amd64, linux/amd64/v2");
    }

    #[test]
    fn a_document_is_one_thing() {
        let both = refused(manifest_json(), |m| m["manifests"] = json!([]));
        assert_eq!(both, DocumentError::Ambiguous.to_string());
        assert!(refused(index_json(), |m| m["config"] = manifest_json()["config"].clone()).contains("both"));
        assert_eq!(refused(json!({}), |_| ()), DocumentError::Neither.to_string());
        assert!(refused(manifest_json(), |m| m["mediaType"] = json!(OCI_INDEX)).contains("mediaType"));
        let lied = parse(&manifest_json(), Some(DOCKER_INDEX)).unwrap_err();
        assert!(lied.to_string().contains("Content-Type"), "{lied}");
        assert!(parse(&manifest_json(), Some("text/html")).is_err());
        let twice = format!("{{\"layers\":[],{}", &manifest_json().to_string()[1..]);
        assert!(matches!(Document::parse(twice.as_bytes(), None), Err(DocumentError::Json(_))));
    }

    #[test]
    fn old_and_unknown_formats() {
        assert!(refused(json!({"schemaVersion": 1, "fsLayers": []}), |_| ()).contains("schema 1"));
        assert!(refused(manifest_json(), |m| m["schemaVersion"] = json!(3)).contains("schemaVersion is 3"));
        let helm = "application/vnd.cncf.helm.config.v1+json";
        assert!(refused(manifest_json(), |m| m["config"]["mediaType"] = json!(helm)).contains("config"));
        assert!(refused(manifest_json(), |m| m["layers"][1]["mediaType"] = json!("x/y")).contains("layer 2"));
    }

    #[test]
    fn foreign_layers() {
        let type_name = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        assert!(refused(manifest_json(), |m| m["layers"][0]["mediaType"] = json!(type_name)).contains("foreign"));
        assert!(refused(manifest_json(), |m| m["layers"][0]["urls"] = json!(["http://x"])).contains("foreign"));
    }

    #[test]
    fn bounds() {
        let many = |n: usize| Value::Array(vec![layer(1); n]);
        assert!(refused(manifest_json(), |m| m["layers"] = many(LAYERS_MAX + 1)).contains("501 layers"));
        assert!(refused(manifest_json(), |m| m["layers"] = many(INDEX_MAX + 1)).contains("JSON"));
        assert!(refused(manifest_json(), |m| m["config"]["size"] = json!(CONFIG_MAX + 1)).contains("config has"));
        assert!(refused(manifest_json(), |m| m["layers"][0]["size"] = json!(-1)).contains("JSON"));
        assert!(refused(manifest_json(), |m| m["layers"][0]["digest"] = json!("sha256:../..")).contains("JSON"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Document::parse(&bytes, None);
        }

        #[test]
        fn no_broken_manifest_panics(cut in 0usize..300, replaced in any::<u8>()) {
            let mut bytes = manifest_json().to_string().into_bytes();
            let at = cut % bytes.len();
            bytes[at] = replaced;
            let _ = Document::parse(&bytes, None);
            let _ = Document::parse(&bytes[..at], None);
        }
    }
}
