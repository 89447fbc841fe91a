//! Between the wire's types and those of the core.

use std::collections::HashMap;

use proto_containerd::types::{Descriptor, Mount as WireMount};

use crate::db::record::Labels;
use crate::error::{Error, Result};
use crate::name::Digest;
use crate::snapshot::Mount;

pub(super) fn labels(wire: HashMap<String, String>) -> Labels {
    wire.into_iter().collect()
}

pub(super) fn wire_labels(labels: Labels) -> HashMap<String, String> {
    labels.into_iter().collect()
}

/// Paths of a field mask; none at all where there is no mask.
pub(super) fn mask(mask: Option<prost_types::FieldMask>) -> Vec<String> {
    mask.map(|mask| mask.paths).unwrap_or_default()
}

/// A message field that must be there.
pub(super) fn required<T>(field: Option<T>, name: &str) -> Result<T> {
    field.ok_or_else(|| Error::invalid(name, "it is missing"))
}

/// A digest; `None` where the text is empty.
pub(super) fn optional_digest(text: &str) -> Result<Option<Digest>> {
    if text.is_empty() { Ok(None) } else { Digest::parse(text).map(Some) }
}

/// A size; negative ones are refused.
pub(super) fn size(number: i64, name: &str) -> Result<u64> {
    u64::try_from(number).map_err(|_| Error::invalid(name, "it must not be negative"))
}

pub(super) fn wire_mounts(mounts: Vec<Mount>) -> Vec<WireMount> {
    mounts
        .into_iter()
        .map(|mount| WireMount {
            r#type: mount.kind,
            source: mount.source,
            target: String::new(),
            options: mount.options,
        })
        .collect()
}

pub(super) fn mounts(wire: Vec<WireMount>) -> Vec<Mount> {
    wire.into_iter().map(|mount| Mount { kind: mount.r#type, source: mount.source, options: mount.options }).collect()
}

pub(super) fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: digest.to_string(),
        size: size as i64,
        annotations: HashMap::new(),
    }
}
