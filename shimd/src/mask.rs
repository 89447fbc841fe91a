//! Field masks of updates: which fields a request replaces.

use std::collections::BTreeMap;

use prost_types::Any;

use crate::db::record::Labels;
use crate::error::{Error, Result};

/// One path of a mask.
pub(crate) enum Path<'a> {
    /// A whole field.
    Field(&'a str),
    /// One entry of a map field: `labels.KEY`.
    Entry(&'a str, &'a str),
}

/// The paths of a mask; those in `maps` take an entry's key behind a dot, and keys may have dots themselves.
pub(crate) fn paths<'a>(mask: &'a [String], maps: &'a [&str]) -> impl Iterator<Item = Path<'a>> {
    mask.iter().map(move |path| match path.split_once('.') {
        Some((field, entry)) if maps.contains(&field) => Path::Entry(field, entry),
        _ => Path::Field(path),
    })
}

/// Replaces one entry of `to`. An entry that is missing or empty in `from` goes: containerd's clients remove a label by
/// an empty value.
pub(crate) fn replace_entry(to: &mut Labels, from: &Labels, key: &str) {
    match from.get(key).filter(|value| !value.is_empty()) {
        Some(value) => to.insert(key.to_owned(), value.clone()),
        None => to.remove(key),
    };
}

/// Replaces one extension of `to`; one that is missing in `from` goes.
pub(crate) fn replace_extension(to: &mut BTreeMap<String, Any>, from: &BTreeMap<String, Any>, key: &str) {
    match from.get(key) {
        Some(extension) => to.insert(key.to_owned(), extension.clone()),
        None => to.remove(key),
    };
}

/// Applies a mask of which only labels may be part; an empty mask replaces all labels.
pub(crate) fn update_labels(what: &str, to: &mut Labels, from: &Labels, mask: &[String]) -> Result<()> {
    if mask.is_empty() {
        to.clone_from(from);
    }
    for path in paths(mask, &["labels"]) {
        match path {
            Path::Field("labels") => to.clone_from(from),
            Path::Entry(_, key) => replace_entry(to, from, key),
            Path::Field(field) => return Err(immutable(what, field)),
        }
    }
    Ok(())
}

/// The error for a field that cannot be replaced.
pub(crate) fn immutable(what: &str, field: &str) -> Error {
    Error::invalid(format!("update mask of {what}"), format!("field {field:?} cannot be updated"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn labels_by_mask() {
        let from = labels(&[("a.b", "2"), ("gone", "")]);
        let mut to = labels(&[("a.b", "1"), ("gone", "x"), ("kept", "y")]);
        update_labels("t", &mut to, &from, &["labels.a.b".to_owned(), "labels.gone".to_owned()]).unwrap();
        assert_eq!(to, labels(&[("a.b", "2"), ("kept", "y")]));
        update_labels("t", &mut to, &from, &[]).unwrap();
        assert_eq!(to, from);
        assert!(update_labels("t", &mut to, &from, &["size".to_owned()]).is_err());
    }
}
