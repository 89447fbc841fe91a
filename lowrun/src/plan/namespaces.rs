//! The eight kinds of namespaces, and which of them a container makes, joins or shares.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fault::{Code, Fault, Result};
use crate::path::{PATH_MAX, TOO_LONG};
use crate::spec;

/// A kind of namespace.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    User,
    Mount,
    Pid,
    Network,
    Ipc,
    Uts,
    Cgroup,
    Time,
}

impl Kind {
    /// Every kind, in the order of `features`.
    pub const ALL: [Kind; 8] =
        [Kind::Cgroup, Kind::Ipc, Kind::Mount, Kind::Network, Kind::Pid, Kind::Time, Kind::User, Kind::Uts];

    /// The word of config.json.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::User => "user",
            Kind::Mount => "mount",
            Kind::Pid => "pid",
            Kind::Network => "network",
            Kind::Ipc => "ipc",
            Kind::Uts => "uts",
            Kind::Cgroup => "cgroup",
            Kind::Time => "time",
        }
    }

    /// The kind of that name in config.json.
    pub fn parse(word: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// The file below `/proc/PID/ns`.
    pub fn proc_name(self) -> &'static str {
        match self {
            Kind::Mount => "mnt",
            Kind::Network => "net",
            kind => kind.as_str(),
        }
    }

    /// `CLONE_NEW*`.
    pub fn flag(self) -> u64 {
        let flag = match self {
            Kind::User => libc::CLONE_NEWUSER,
            Kind::Mount => libc::CLONE_NEWNS,
            Kind::Pid => libc::CLONE_NEWPID,
            Kind::Network => libc::CLONE_NEWNET,
            Kind::Ipc => libc::CLONE_NEWIPC,
            Kind::Uts => libc::CLONE_NEWUTS,
            Kind::Cgroup => libc::CLONE_NEWCGROUP,
            Kind::Time => 0x80,
        };
        flag as u64
    }
}

/// The namespaces section: kinds that are not in it are shared with the caller.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Namespaces(Vec<Entry>);

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Entry {
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    path: Option<PathBuf>,
}

impl Namespaces {
    /// Reads the section; an unknown kind, a kind twice and a relative path are errors.
    pub fn parse(section: &[spec::Namespace]) -> Result<Namespaces> {
        let mut namespaces = Namespaces::default();
        for (index, entry) in section.iter().enumerate() {
            let field = || format!("linux.namespaces[{index}]");
            let kind = Kind::parse(&entry.kind).ok_or_else(|| {
                Fault::new(Code::SpecInvalid, field()).cause(format!("namespace {:?} does not exist", entry.kind))
            })?;
            if namespaces.has(kind) {
                return Err(Fault::new(Code::SpecInvalid, field()).cause(format!("duplicated ns {:?}", entry.kind)));
            }
            if entry.path.len() > PATH_MAX {
                return Err(Fault::new(Code::SpecInvalid, field()).cause(TOO_LONG));
            }
            let path = (!entry.path.is_empty()).then(|| PathBuf::from(&entry.path));
            namespaces.0.push(Entry { kind, path });
        }
        Ok(namespaces)
    }

    /// Adds a kind that somebody else has made for the container.
    pub fn add(&mut self, kind: Kind) {
        if !self.has(kind) {
            self.0.push(Entry { kind, path: None });
        }
    }

    /// Whether the container has its own or a joined namespace of the kind.
    pub fn has(&self, kind: Kind) -> bool {
        self.0.iter().any(|entry| entry.kind == kind)
    }

    /// Whether a namespace of the kind is made.
    pub fn is_new(&self, kind: Kind) -> bool {
        self.0.iter().any(|entry| entry.kind == kind && entry.path.is_none())
    }

    /// The path of a namespace that is joined.
    pub fn path(&self, kind: Kind) -> Option<&Path> {
        self.0.iter().find(|entry| entry.kind == kind).and_then(|entry| entry.path.as_deref())
    }

    /// `CLONE_NEW*` of all namespaces that are made.
    pub fn new_flags(&self) -> u64 {
        self.0.iter().filter(|entry| entry.path.is_none()).fold(0, |flags, entry| flags | entry.kind.flag())
    }

    /// The namespaces that are joined.
    pub fn joined(&self) -> impl Iterator<Item = (Kind, &Path)> {
        self.0.iter().filter_map(|entry| Some((entry.kind, entry.path.as_deref()?)))
    }

    /// The kinds that are not shared with the caller.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.0.iter().map(|entry| entry.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: &str, path: &str) -> spec::Namespace {
        spec::Namespace { kind: kind.to_owned(), path: path.to_owned() }
    }

    #[test]
    fn made_and_joined_namespaces_are_told_apart() {
        let namespaces = Namespaces::parse(&[entry("pid", ""), entry("network", "/run/netns/a")]).unwrap();
        assert_eq!(namespaces.new_flags(), libc::CLONE_NEWPID as u64);
        assert_eq!(namespaces.path(Kind::Network), Some(Path::new("/run/netns/a")));
        assert!(namespaces.is_new(Kind::Pid) && !namespaces.is_new(Kind::Network));
        assert!(!namespaces.has(Kind::User));
    }

    #[test]
    fn unknown_and_double_kinds_are_errors() {
        assert!(Namespaces::parse(&[entry("moon", "")]).unwrap_err().one_line().contains("linux.namespaces[0]"));
        assert!(Namespaces::parse(&[entry("pid", ""), entry("pid", "/x")]).is_err());
    }
}
