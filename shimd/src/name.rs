//! The names that requests carry, parsed once at the edge and trusted afterwards.
//!
//! Grammars are containerd's: what it accepts is accepted here, so that its clients find no difference.

use std::fmt;
use std::sync::Arc;

use crate::error::Error;

/// Longest identifier (namespace, container, exec), in bytes: they become file names.
const IDENTIFIER_MAX: usize = 76;
/// Most bytes of a label's key and value together.
pub(crate) const LABEL_MAX: usize = 4096;
/// Longest free-form name (snapshot key, image, ingest ref, lease), in bytes.
const NAME_MAX: usize = 4096;

/// A namespace, in which all other names live.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Namespace(Arc<str>);

impl Namespace {
    pub(crate) fn parse(text: &str) -> Result<Namespace, Error> {
        check_identifier("namespace", text)?;
        Ok(Namespace(text.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A sha256 digest, `sha256:` and 64 lower-case hex digits. No other algorithm is in use in images.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Digest(Arc<str>);

impl Digest {
    const ALGORITHM: &'static str = "sha256:";

    pub(crate) fn parse(text: &str) -> Result<Digest, Error> {
        let hex = text.strip_prefix(Self::ALGORITHM).filter(|hex| hex.len() == 64);
        let is_hex = |hex: &str| hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match hex {
            Some(hex) if is_hex(hex) => Ok(Digest(text.into())),
            _ => Err(Error::invalid(format!("digest {text:?}"), "it is not sha256: and 64 lower-case hex digits")),
        }
    }

    /// The digest whose bytes a hasher gave.
    pub(crate) fn from_sha256(bytes: &[u8]) -> Digest {
        use fmt::Write;
        let mut text = String::with_capacity(Self::ALGORITHM.len() + 64);
        text.push_str(Self::ALGORITHM);
        for byte in bytes {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Digest(text.into())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The hex digits alone: the name of the blob's file.
    pub(crate) fn hex(&self) -> &str {
        &self.0[Self::ALGORITHM.len()..]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks an identifier: letters and digits, in groups that are joined by single `.`, `_` or `-`.
pub(crate) fn check_identifier(what: &str, text: &str) -> Result<(), Error> {
    if text.is_empty() {
        return Err(Error::invalid(what, "it must not be empty"));
    }
    if text.len() > IDENTIFIER_MAX {
        return Err(Error::invalid(format!("{what} {text:?}"), format!("it is longer than {IDENTIFIER_MAX} bytes")));
    }
    let grouped = text.split(['.', '_', '-']).all(|group| !group.is_empty());
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if grouped && plain {
        Ok(())
    } else {
        Err(Error::invalid(
            format!("{what} {text:?}"),
            "it must be letters and digits, in groups joined by single dots, dashes or underscores",
        ))
    }
}

/// Checks a free-form name: not empty, no NUL (which separates the parts of a database key), not over-long.
pub(crate) fn check_name(what: &str, text: &str) -> Result<(), Error> {
    if text.is_empty() {
        return Err(Error::invalid(what, "it must not be empty"));
    }
    if text.len() > NAME_MAX || text.contains('\0') {
        return Err(Error::invalid(what, format!("it must have no NUL and at most {NAME_MAX} bytes")));
    }
    Ok(())
}

/// Checks labels as containerd does: key and value together have a bound.
pub(crate) fn check_labels<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Result<(), Error> {
    for (key, value) in labels {
        if key.len() + value.len() > LABEL_MAX {
            let shown: String = key.chars().take(64).collect();
            return Err(Error::invalid(
                format!("label {shown:?}"),
                format!("key and value are longer than {LABEL_MAX} bytes together"),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers() {
        for good in ["default", "k8s.io", "a-b_c.d", "0123", &"x".repeat(76)] {
            assert!(check_identifier("id", good).is_ok(), "{good}");
        }
        for bad in ["", ".", "-a", "a-", "a..b", "a/b", "ä", "a b", &"x".repeat(77)] {
            assert!(check_identifier("id", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn digests() {
        let text = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(Digest::parse(&text).unwrap().hex(), "0a".repeat(32));
        assert_eq!(Digest::from_sha256(&[0x0a; 32]).as_str(), text);
        for bad in ["", "sha256:", "sha256:../../etc", &text.to_uppercase(), &text.replace("sha256", "sha512")] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_have_a_bound() {
        let long = "v".repeat(4096);
        assert!(check_labels([(&"k".to_owned(), &long)]).is_err());
        assert!(check_labels([(&String::new(), &long)]).is_ok());
    }
}
