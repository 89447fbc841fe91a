//! Capabilities: the kernel's names, the default set, and what `--cap-add` and `--cap-drop` make of it.

use serde::{Deserialize, Serialize};

use crate::engine::error::{Error, Field};

/// Every capability, at its number (linux/capability.h).
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A capability, or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum CapabilityName {
    All,
    One(u8),
}

impl CapabilityName {
    /// Reads `NET_ADMIN`, `CAP_NET_ADMIN` or `ALL`, in any case; `field` is named when it is none.
    pub(crate) fn parse(field: Field, text: &str) -> Result<CapabilityName, Error> {
        let upper = text.to_ascii_uppercase();
        if upper == "ALL" {
            return Ok(CapabilityName::All);
        }
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let found = NAMES.iter().position(|name| name[4..] == *bare);
        found.map(|number| CapabilityName::One(number as u8)).ok_or_else(|| {
            Error::invalid(field, text, "a capability's name such as NET_ADMIN or CAP_NET_ADMIN, or ALL")
        })
    }
}

impl From<CapabilityName> for String {
    fn from(name: CapabilityName) -> String {
        match name {
            CapabilityName::All => "ALL".to_owned(),
            CapabilityName::One(number) => NAMES[usize::from(number)].to_owned(),
        }
    }
}

impl TryFrom<String> for CapabilityName {
    type Error = Error;

    fn try_from(text: String) -> Result<CapabilityName, Error> {
        CapabilityName::parse(Field::CapAdd, &text)
    }
}

/// `CapBnd` of proc_pid_status(5).
fn bounding_of(status: &str) -> Option<CapabilitySet> {
    let text = status.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
    u64::from_str_radix(text.trim(), 16).ok().map(|bits| CapabilitySet(bits & CapabilitySet::ALL.0))
}

/// A set of capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CapabilitySet(u64);

impl CapabilitySet {
    /// Every capability that has a name here.
    pub(crate) const ALL: CapabilitySet = CapabilitySet((1 << NAMES.len()) - 1);
    /// What a container has that asked for nothing: Docker's fourteen.
    pub(crate) const DEFAULT: CapabilitySet = CapabilitySet(
        1 << 0
            | 1 << 1
            | 1 << 3
            | 1 << 4
            | 1 << 5
            | 1 << 6
            | 1 << 7
            | 1 << 8
            | 1 << 10
            | 1 << 13
            | 1 << 18
            | 1 << 27
            | 1 << 29
            | 1 << 31,
    );

    /// What stays of the default when `add` and `drop` are asked for, as Docker reads them: an added `ALL` leaves out only
    /// what is dropped by name, a dropped `ALL` only what is added, and a name that is both dropped and added is added.
    pub(crate) fn adjusted(add: &[CapabilityName], drop: &[CapabilityName]) -> CapabilitySet {
        let of = |names: &[CapabilityName]| {
            CapabilitySet(names.iter().fold(0, |set, name| match name {
                CapabilityName::All => set,
                CapabilityName::One(number) => set | 1 << number,
            }))
        };
        let has_all = |names: &[CapabilityName]| names.contains(&CapabilityName::All);
        if has_all(add) {
            CapabilitySet(CapabilitySet::ALL.0 & !of(drop).0)
        } else if has_all(drop) {
            of(add)
        } else {
            CapabilitySet(CapabilitySet::DEFAULT.0 & !of(drop).0 | of(add).0)
        }
    }

    /// What this process may hand down: nobody below it can have more, and a runtime fails when it tries. What the kernel
    /// does not know is not in it either.
    pub(crate) fn bounding() -> CapabilitySet {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        bounding_of(&status).unwrap_or(CapabilitySet::ALL)
    }

    /// What is in both.
    pub(crate) fn and(self, other: CapabilitySet) -> CapabilitySet {
        CapabilitySet(self.0 & other.0)
    }

    /// The first of these that is not in the set.
    pub(crate) fn lacks(self, names: &[CapabilityName]) -> Option<CapabilityName> {
        let is_missing =
            |name: &&CapabilityName| matches!(name, CapabilityName::One(number) if self.0 & 1 << *number == 0);
        names.iter().find(is_missing).copied()
    }

    pub(super) fn has_name(self, name: &str) -> bool {
        NAMES.iter().position(|known| *known == name).is_some_and(|number| self.0 & 1 << number != 0)
    }

    /// The names, in the kernel's order.
    pub(crate) fn names(self) -> Vec<&'static str> {
        let is_in = |(number, _): &(usize, &&str)| self.0 & 1 << number != 0;
        NAMES.iter().enumerate().filter(is_in).map(|(_, name)| *name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> Vec<CapabilityName> {
        texts.iter().map(|text| CapabilityName::parse(Field::CapAdd, text).unwrap()).collect()
    }

    #[test]
    fn the_default_is_dockers_fourteen() {
        let mut expected = [
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_FSETID",
            "CAP_FOWNER",
            "CAP_MKNOD",
            "CAP_NET_RAW",
            "CAP_SETGID",
            "CAP_SETUID",
            "CAP_SETFCAP",
            "CAP_SETPCAP",
            "CAP_NET_BIND_SERVICE",
            "CAP_SYS_CHROOT",
            "CAP_KILL",
            "CAP_AUDIT_WRITE",
        ];
        let mut found = CapabilitySet::DEFAULT.names();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected);
    }

    #[test]
    fn adding_and_dropping() {
        let of = |add: &[&str], drop: &[&str]| CapabilitySet::adjusted(&names(add), &names(drop)).names();
        assert_eq!(of(&[], &["ALL"]), Vec::<&str>::new());
        assert_eq!(of(&["net_admin"], &["all"]), ["CAP_NET_ADMIN"]);
        assert_eq!(of(&["ALL"], &[]).len(), 41);
        assert_eq!(of(&["ALL"], &["CAP_SYS_ADMIN"]).len(), 40);
        assert_eq!(of(&["SYS_TIME"], &["CHOWN"]).len(), 14);
        assert!(of(&["SYS_TIME"], &["SYS_TIME"]).contains(&"CAP_SYS_TIME"));
        assert_eq!(of(&["ALL"], &["ALL"]).len(), 41);
    }

    #[test]
    fn the_bounding_set_is_read() {
        let set = bounding_of("Name:\tx\nCapBnd:\t000001fffeffffff\nCapAmb:\t0\n").unwrap();
        assert_eq!(set.lacks(&names(&["CHOWN", "ALL"])), None);
        assert_eq!(set.lacks(&names(&["CHOWN", "SYS_RESOURCE"])), Some(CapabilityName::One(24)));
        assert!(bounding_of("").is_none());
    }

    #[test]
    fn strange_names_are_refused() {
        for text in ["", "CAP_", "SUPERPOWER", "CAP_CAP_CHOWN"] {
            assert!(CapabilityName::parse(Field::CapDrop, text).is_err(), "{text}");
        }
    }
}
