//! Content digests: `algorithm:hex`, as the OCI image specification writes them.
//!
//! A digest from the network names a file, a URL path and a store key, so nothing else than an algorithm that can be
//! checked here and its exact number of lower-case hex digits is ever a [`Digest`].

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};

/// How content is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// What every registry uses.
    Sha256,
    /// The specification's other registered algorithm.
    Sha512,
}

impl Algorithm {
    const fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    const fn hex_len(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }

    fn parse(name: &str) -> Option<Algorithm> {
        [Algorithm::Sha256, Algorithm::Sha512].into_iter().find(|algorithm| algorithm.name() == name)
    }
}

/// A well-formed digest.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    text: Box<str>,
}

impl Digest {
    /// The SHA-256 of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// `sha256:…`.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The hex digits alone.
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm.name().len() + 1..]
    }

    /// How it is checked.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        let (name, hex) = text.split_once(':').ok_or(DigestError::NoAlgorithm)?;
        let algorithm = Algorithm::parse(name).ok_or_else(|| DigestError::Algorithm(bounded(name)))?;
        if hex.len() != algorithm.hex_len() {
            return Err(DigestError::Length { algorithm, wanted: algorithm.hex_len(), found: hex.len() });
        }
        if let Some(bad) = hex.chars().find(|c| !matches!(c, '0'..='9' | 'a'..='f')) {
            return Err(DigestError::Digit(bad));
        }
        Ok(Digest { algorithm, text: text.into() })
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// Why a text is no digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DigestError {
    /// There is no colon.
    NoAlgorithm,
    /// An algorithm that is not known here.
    Algorithm(String),
    /// Too few or too many hex digits.
    Length {
        /// Of which algorithm.
        algorithm: Algorithm,
        /// So many it has.
        wanted: usize,
        /// So many bytes follow the colon.
        found: usize,
    },
    /// Not a lower-case hex digit.
    Digit(char),
}

impl fmt::Display for DigestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DigestError::NoAlgorithm => f.write_str("a digest is written algorithm:hex, and there is no colon"),
            DigestError::Algorithm(name) => write!(f, "digest algorithm {name:?} is not known (sha256 and sha512 are)"),
            DigestError::Length { algorithm, wanted, found } => {
                write!(f, "a {} digest has {wanted} hex digits, not {found}", algorithm.name())
            }
            DigestError::Digit(bad) => write!(f, "{bad:?} in a digest is not a lower-case hex digit"),
        }
    }
}

impl std::error::Error for DigestError {}

/// A hash under way.
pub struct Hasher(State);

enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// Nothing hashed yet.
    pub fn new(algorithm: Algorithm) -> Hasher {
        Hasher(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(hash) => hash.update(bytes),
            State::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The digest of all of them.
    pub fn finish(self) -> Digest {
        let (algorithm, bytes) = match self.0 {
            State::Sha256(hash) => (Algorithm::Sha256, hash.finalize().to_vec()),
            State::Sha512(hash) => (Algorithm::Sha512, hash.finalize().to_vec()),
        };
        Digest { algorithm, text: format!("{}:{}", algorithm.name(), hex(&bytes)).into() }
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|nibble| DIGITS[usize::from(nibble)] as char).collect()
}

/// At most 32 characters of what a stranger sent, for an error's text.
fn bounded(text: &str) -> String {
    text.chars().take(32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_nothing() {
        let digest = Digest::of(b"");
        assert_eq!(digest.as_str(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(digest.as_str().parse(), Ok(digest.clone()));
        assert_eq!(digest.hex().len(), 64);
    }

    #[test]
    fn sha512_is_checked_as_such() {
        let digest = Hasher::new(Algorithm::Sha512).finish();
        assert!(digest.as_str().starts_with("sha512:cf83e1357eefb8bd"));
        assert_eq!(digest.as_str().parse(), Ok(digest));
    }

    #[test]
    fn what_is_no_digest() {
        let zeros = "0".repeat(64);
        let cases: [(String, DigestError); 7] = [
            ("".into(), DigestError::NoAlgorithm),
            (zeros.clone(), DigestError::NoAlgorithm),
            (format!("md5:{zeros}"), DigestError::Algorithm("md5".into())),
            (
                "sha256:../../etc/passwd".into(),
                DigestError::Length { algorithm: Algorithm::Sha256, wanted: 64, found: 16 },
            ),
            (format!("sha256:{}", "A".repeat(64)), DigestError::Digit('A')),
            (format!("sha256:{}/", "a".repeat(63)), DigestError::Digit('/')),
            (format!("SHA256:{zeros}"), DigestError::Algorithm("SHA256".into())),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Digest>(), Err(error), "{text}");
        }
    }
}
