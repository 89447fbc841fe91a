//! What a test may leave behind, and the look for it.
//!
//! A [`Snapshot`] holds what there is of each kind at one moment; [`Snapshot::grown_to`] says what a later one has more.
//! A lab has network and mount namespaces of its own, so that their mounts, links and nftables are the test's alone and
//! are compared whole. Cgroups, processes and files of the machine are the test's when they carry its name or descend
//! from it.

mod kernel;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// The kinds of things that can be left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Mount,
    Cgroup,
    Link,
    Nftables,
    Process,
    /// A descriptor of a daemon.
    Descriptor,
    File,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Mount => "mount",
            Kind::Cgroup => "cgroup",
            Kind::Link => "link",
            Kind::Nftables => "nftables",
            Kind::Process => "process",
            Kind::Descriptor => "descriptor",
            Kind::File => "file",
        })
    }
}

/// One thing that is there and was not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leak {
    pub kind: Kind,
    pub what: String,
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.what)
    }
}

/// What there is, with how often: two mounts on one place are two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    things: BTreeMap<Leak, usize>,
}

/// Where a snapshot looks.
#[derive(Clone, Debug, Default)]
pub struct Scope<'a> {
    /// Cgroups count when a part of their path contains this.
    pub cgroup_name: &'a str,
    /// Processes count when they descend from this one.
    pub ancestor: i32,
    /// Processes that belong there: the harness's own children.
    pub expected: &'a [i32],
    /// The daemons whose descriptors count.
    pub daemons: &'a [i32],
    /// Directories whose files count.
    pub directories: &'a [&'a Path],
    /// Files whose path contains one of these do not count.
    pub passing: &'a [&'a str],
}

impl Snapshot {
    /// Looks at the mounts, links and nftables of the calling thread's namespaces and at the rest as `scope` says.
    pub fn take(scope: &Scope<'_>) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.add(Kind::Mount, kernel::mounts());
        snapshot.add(Kind::Cgroup, kernel::cgroups(scope.cgroup_name));
        snapshot.add(Kind::Link, kernel::links());
        snapshot.add(Kind::Nftables, kernel::nftables());
        snapshot.add(Kind::Process, kernel::processes(scope.ancestor, scope.expected));
        snapshot.add(Kind::Descriptor, scope.daemons.iter().flat_map(|pid| kernel::descriptors(*pid)));
        snapshot
            .add(Kind::File, scope.directories.iter().flat_map(|directory| kernel::files(directory, scope.passing)));
        snapshot
    }

    /// Adds what lies right in these directories, without what is below.
    pub fn add_entries(&mut self, directories: &[PathBuf]) {
        self.add(Kind::File, directories.iter().flat_map(|directory| kernel::entries(directory)));
    }

    fn add(&mut self, kind: Kind, things: impl IntoIterator<Item = String>) {
        for what in things {
            *self.things.entry(Leak { kind, what }).or_default() += 1;
        }
    }

    /// What `later` has more than this one.
    pub fn grown_to(&self, later: &Snapshot) -> Vec<Leak> {
        let more = later.things.iter().filter(|(leak, count)| **count > self.things.get(leak).copied().unwrap_or(0));
        more.map(|(leak, _)| leak.clone()).collect()
    }

    /// How many things of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        self.things.iter().filter(|(leak, _)| leak.kind == kind).map(|(_, count)| count).sum()
    }
}

/// The cgroups of every hierarchy whose path contains `name`.
pub fn cgroups_named(name: &str) -> Vec<String> {
    kernel::cgroups(name)
}

/// The mount points of the cgroup hierarchies.
pub(crate) fn hierarchies() -> Vec<String> {
    kernel::hierarchies()
}

/// Is this link the host's end of a container's, as engined makes them?
pub fn is_port(leak: &Leak) -> bool {
    leak.kind == Kind::Link && leak.what == kernel::PORT
}

/// How many such links there are in the calling thread's network namespace.
pub(crate) fn ports() -> usize {
    kernel::links().iter().filter(|link| *link == kernel::PORT).count()
}

/// The leaks as lines of text.
pub fn report(leaks: &[Leak]) -> String {
    leaks.iter().map(|leak| format!("  {leak}\n")).collect()
}
