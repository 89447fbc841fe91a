//! Mounts whose files belong to others: ids are mapped in them as in a user namespace, without a copy. A snapshotter asks
//! for it by the options `uidmap=` and `gidmap=`, which no file system knows.
//!
//! Overlayfs itself cannot be mapped: its lower layers are, each in a mount of its own, and the upper one's files belong to
//! whom the mapping says. The shim makes such mounts; shimd does for shims that are too old to know them.

mod layers;
mod sys;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::OpenTreeFlags;

pub use layers::{forget_layers, with_mapped_layers};

/// Ranges of one mapping: the kernel takes 340.
const RANGES_MAX: usize = 340;
/// The kernel from which on overlayfs takes mapped layers: 5.19.
const OVERLAYFS_SINCE: (u32, u32) = (5, 19);

/// Which ids are which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    users: Vec<Range>,
    groups: Vec<Range>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    /// As the files have it.
    inside: u32,
    /// As the mount shows it.
    outside: u32,
    length: u32,
}

impl Mapping {
    /// Of texts like `0:100000:65536`, several with commas between; `None` where they are no mappings.
    pub fn parse(users: &str, groups: &str) -> Option<Mapping> {
        Some(Mapping { users: ranges(users)?, groups: ranges(groups)? })
    }

    /// Takes the mapping out of a mount's options. A mapping of users or of groups alone is none.
    ///
    /// # Errors
    /// `EINVAL` for one that is none.
    pub fn take_from(options: &mut Vec<String>) -> io::Result<Option<Mapping>> {
        let mut take = |name: &str| {
            let at = options.iter().position(|option| option.starts_with(name))?;
            Some(options.remove(at).split_off(name.len()))
        };
        match (take("uidmap="), take("gidmap=")) {
            (None, None) => Ok(None),
            (Some(users), Some(groups)) => Mapping::parse(&users, &groups).map(Some).ok_or_else(invalid),
            _ => Err(invalid()),
        }
    }

    /// The user and the group that root is shown as, if it is mapped.
    pub fn root(&self) -> Option<(u32, u32)> {
        let root = |ranges: &[Range]| ranges.iter().find(|range| range.inside == 0).map(|range| range.outside);
        Some((root(&self.users)?, root(&self.groups)?))
    }

    /// A user namespace of this mapping. It has no process.
    ///
    /// # Errors
    /// The kernel's, for a mapping that overlaps itself, or where there are too many namespaces.
    pub fn user_namespace(&self) -> io::Result<OwnedFd> {
        let process = sys::Sleeper::in_user_namespace()?;
        let proc = format!("/proc/{}", process.pid());
        std::fs::write(format!("{proc}/uid_map"), text(&self.users))?;
        std::fs::write(format!("{proc}/gid_map"), text(&self.groups))?;
        let namespace = format!("{proc}/ns/user");
        Ok(rustix::fs::open(namespace, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// A detached mount of what is at `path`, with all that is mounted beneath, that shows it so.
    ///
    /// # Errors
    /// `EINVAL` where the file system cannot be mapped.
    pub fn clone_tree(&self, path: &Path) -> io::Result<OwnedFd> {
        let tree = clone_of(path, OpenTreeFlags::AT_RECURSIVE)?;
        sys::map_ids(tree.as_fd(), self.user_namespace()?.as_fd(), sys::Extent::Tree)?;
        Ok(tree)
    }
}

/// Whether layers in this directory can be mounted so by overlayfs.
pub fn is_supported(directory: &Path) -> bool {
    let release = rustix::system::uname();
    let mut numbers = release
        .release()
        .to_bytes()
        .split(|byte| !byte.is_ascii_digit())
        .map(|number| std::str::from_utf8(number).ok().and_then(|number| number.parse().ok()).unwrap_or_default());
    let version: (u32, u32) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let mapping = Mapping::parse("0:1:1", "0:1:1");
    version >= OVERLAYFS_SINCE && mapping.is_some_and(|mapping| mapping.clone_tree(directory).is_ok())
}

fn clone_of(path: &Path, extent: OpenTreeFlags) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | extent;
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

fn ranges(text: &str) -> Option<Vec<Range>> {
    let ranges: Option<Vec<Range>> = text.split(',').map(range).collect();
    ranges.filter(|ranges| ranges.len() <= RANGES_MAX)
}

fn range(text: &str) -> Option<Range> {
    // No sign, which parse() would take.
    let number = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    let numbers: Option<Vec<u32>> = text.split(':').map(number).collect();
    let [inside, outside, length] = numbers?[..] else { return None };
    // The last id is nobody's.
    let is_whole = length > 0 && inside.checked_add(length).is_some() && outside.checked_add(length).is_some();
    is_whole.then_some(Range { inside, outside, length })
}

/// As `/proc/<pid>/uid_map` wants it: in one write.
fn text(ranges: &[Range]) -> String {
    ranges.iter().map(|range| format!("{} {} {}\n", range.inside, range.outside, range.length)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn mappings_and_what_are_none() {
        let mapping = Mapping::parse("0:100000:65536", "5:1:2,0:200000:5").unwrap();
        assert_eq!(mapping.root(), Some((100_000, 200_000)));
        assert_eq!(text(&mapping.groups), "5 1 2\n0 200000 5\n");
        assert_eq!(Mapping::parse("1:1:1", "0:1:1").unwrap().root(), None);
        for bad in ["", "0", "0:1", "0:1:0", "0:1:2:3", "a:1:1", "+0:1:1", "0:-1:1", "4294967295:0:1", "0:1:1,"] {
            assert_eq!(Mapping::parse(bad, "0:1:1"), None, "{bad}");
        }
    }

    #[test]
    fn options_are_taken_out() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let mut options = words(&["a=b", "uidmap=0:1:1", "gidmap=0:2:1", "lowerdir=/x"]);
        let mapping = Mapping::take_from(&mut options).unwrap().unwrap();
        assert_eq!((mapping.root(), options), (Some((1, 2)), words(&["a=b", "lowerdir=/x"])));
        assert_eq!(Mapping::take_from(&mut words(&["index=off"])).unwrap(), None);
        for bad in [words(&["uidmap=0:1:1"]), words(&["gidmap=0:1:1"]), words(&["uidmap=x", "gidmap=0:1:1"])] {
            assert_eq!(Mapping::take_from(&mut bad.clone()).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{bad:?}");
        }
    }

    #[test]
    fn a_tree_shows_files_as_others() {
        let directory = tempfile::tempdir().unwrap();
        if !rustix::process::geteuid().is_root() || !is_supported(directory.path()) {
            eprintln!("skipped: mapping a mount needs root and Linux 5.19");
            return;
        }
        std::fs::write(directory.path().join("file"), "").unwrap();
        let tree = Mapping::parse("0:7000:10", "0:8000:10").unwrap().clone_tree(directory.path()).unwrap();
        let file = rustix::fs::statat(&tree, "file", rustix::fs::AtFlags::empty()).unwrap();
        assert_eq!((file.st_uid, file.st_gid), (7000, 8000));
        assert_eq!(std::fs::metadata(directory.path().join("file")).unwrap().uid(), 0);
    }
}
