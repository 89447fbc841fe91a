//! What a container is called: its id, its name, and the names that the engine makes up.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::engine::error::{Error, Field};

/// Digits of an id.
const ID_LEN: usize = 64;
/// Digits that people are shown.
const SHORT_LEN: usize = 12;
/// Longest name, in bytes; it becomes a host name and stands in records and lists.
const NAME_MAX: usize = 255;

/// 64 hexadecimal digits, random.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct ContainerId(String);

impl ContainerId {
    /// A new one. Its first twelve digits are not all decimal: as a host name they would be taken for a number.
    pub(crate) fn random() -> ContainerId {
        loop {
            let mut bytes = [0; ID_LEN / 2];
            fill_random(&mut bytes);
            let id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            if id.as_bytes()[..SHORT_LEN].iter().any(u8::is_ascii_alphabetic) {
                return ContainerId(id);
            }
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The digits that people are shown.
    pub(crate) fn short(&self) -> &str {
        &self.0[..SHORT_LEN]
    }
}

/// Random bytes for ids; the kernel's generator does not fail once it is seeded.
pub(crate) fn fill_random(bytes: &mut [u8]) {
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => unreachable!("getrandom on a kernel from 5.10 on: {error}"),
        }
    }
}

/// Ids are ordered as their text is, so that a map of them can be asked for a beginning.
impl std::borrow::Borrow<str> for ContainerId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ContainerId {
    type Error = Error;

    fn try_from(text: String) -> Result<ContainerId, Error> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == ID_LEN && text.bytes().all(is_digit) {
            Ok(ContainerId(text))
        } else {
            Err(Error::invalid(Field::Container, text, "64 hexadecimal digits"))
        }
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> String {
        id.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that a person gave, or that was made up.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Name(String);

impl Name {
    /// Reads a name by Docker's grammar.
    pub(crate) fn parse(text: &str) -> Result<Name, Error> {
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        // Docker's clients may write "/web".
        let bare = text.strip_prefix('/').unwrap_or(text);
        let begins_well = bare.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if begins_well && (2..=NAME_MAX).contains(&bare.len()) && bare.bytes().all(is_inner) {
            Ok(Name(bare.to_owned()))
        } else {
            Err(Error::invalid(Field::Name, text, "[a-zA-Z0-9][a-zA-Z0-9_.-]+, at most 255 characters"))
        }
    }

    /// A made-up name; `attempt` counts those that were taken, and adds digits when there were many.
    pub(crate) fn made_up(attempt: u32) -> Name {
        let mut random = [0; 4];
        fill_random(&mut random);
        let pick = |words: &[&'static str], byte: u8| words[usize::from(byte) % words.len()];
        let (quality, thing) = (pick(QUALITIES, random[0]), pick(THINGS, random[1]));
        if attempt < 4 {
            Name(format!("{quality}_{thing}"))
        } else {
            Name(format!("{quality}_{thing}_{:02x}{:02x}", random[2], random[3]))
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Name {
    type Error = Error;

    fn try_from(text: String) -> Result<Name, Error> {
        Name::parse(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

const QUALITIES: &[&str] = &[
    "amber", "ample", "autumn", "bold", "brave", "bright", "brisk", "broad", "calm", "clear", "copper", "coral",
    "crisp", "deep", "distant", "early", "eager", "even", "fair", "fleet", "fresh", "gentle", "golden", "grand",
    "green", "happy", "hidden", "humble", "jolly", "keen", "kind", "late", "light", "lively", "lucky", "mellow",
    "misty", "modest", "nimble", "noble", "open", "patient", "plain", "polite", "proud", "quick", "quiet", "rapid",
    "ready", "royal", "rustic", "sharp", "silent", "silver", "sleepy", "snowy", "solid", "steady", "still", "sunny",
    "swift", "tidy", "vivid", "warm",
];

const THINGS: &[&str] = &[
    "acorn", "anchor", "basin", "beacon", "birch", "bridge", "brook", "canyon", "cedar", "cliff", "cloud", "comet",
    "cove", "creek", "dune", "falcon", "fern", "field", "fjord", "forest", "garden", "glacier", "grove", "harbour",
    "heron", "hill", "island", "juniper", "kettle", "lagoon", "lantern", "lark", "ledge", "maple", "marsh", "meadow",
    "mill", "moor", "moss", "oak", "orchard", "otter", "peak", "pebble", "pine", "plain", "pond", "prairie", "quarry",
    "raven", "reef", "ridge", "river", "sail", "shore", "sparrow", "spring", "stone", "summit", "thicket", "tide",
    "valley", "willow", "wren",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_docker_takes_them() {
        for good in ["ab", "web", "Web_1.x-y", "0a", "/web"] {
            assert!(Name::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "_a", "-a", ".a", "a/b", "a b", "ä1", "//a", &"a".repeat(256)] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_are_64_digits_and_no_number_in_short() {
        let id = ContainerId::random();
        assert!(ContainerId::try_from(id.to_string()).is_ok());
        assert_eq!(id.short().len(), 12);
        assert!(ContainerId::try_from("a".repeat(63)).is_err());
        assert!(ContainerId::try_from("A".repeat(64)).is_err());
    }

    #[test]
    fn made_up_names_are_names() {
        for attempt in 0..6 {
            assert!(Name::parse(Name::made_up(attempt).as_str()).is_ok());
        }
    }
}
