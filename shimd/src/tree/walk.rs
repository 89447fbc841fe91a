//! The way through a tree, or through several side by side, name by name, with few descriptors and without recursion.
//!
//! The deepest directories on the way are open, and the top. Those between were closed when the way led down from them, and
//! are opened by their path when it leads back up. So whoever moves a directory away meanwhile may end a walk. What is
//! deeper than a path can be long is not entered: it could not be named in a layer, and nobody could open it.

use std::collections::{BTreeSet, btree_set};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{Dir, Mode, ResolveFlags};
use rustix::io::Errno;

use super::OPEN_DIRECTORY;

/// Directories that are open at once on each side, beside the top.
const OPEN_MAX: usize = 16;
/// Bytes of a path, with the one that ends it.
const PATH_MAX: usize = 4096;

/// A way through trees, of which each is a side. The same names come in the same order.
pub(crate) struct Walk<const SIDES: usize> {
    /// The top first.
    levels: Vec<Level<SIDES>>,
}

/// A directory on the way, on each side where there is one.
type Directories<const SIDES: usize> = [Option<OwnedFd>; SIDES];

struct Level<const SIDES: usize> {
    /// From the top.
    path: Vec<u8>,
    is_on: [bool; SIDES],
    /// None while too many others are open.
    directories: Option<Directories<SIDES>>,
    names: btree_set::IntoIter<OsString>,
}

impl<const SIDES: usize> Walk<SIDES> {
    /// Begins at the top.
    pub(crate) fn from(top: Directories<SIDES>) -> rustix::io::Result<Walk<SIDES>> {
        Ok(Walk { levels: vec![Level::of(top, Vec::new())?] })
    }

    /// Whether it has left the top.
    pub(crate) fn is_over(&self) -> bool {
        self.levels.is_empty()
    }

    /// The next name that is in the directory where the walk is, on any side; `None` when all have come.
    pub(crate) fn next(&mut self) -> rustix::io::Result<Option<OsString>> {
        if self.levels.last().is_some_and(|level| level.directories.is_none()) {
            self.open_again()?;
        }
        Ok(self.levels.last_mut().and_then(|level| level.names.next()))
    }

    /// The directory where the walk is, on one side; `None` where that has none.
    pub(crate) fn here(&self, side: usize) -> Option<BorrowedFd<'_>> {
        let directories = self.levels.last()?.directories.as_ref()?;
        directories[side].as_ref().map(AsFd::as_fd)
    }

    /// The path of `name` from the top.
    pub(crate) fn path_of(&self, name: &OsStr) -> Vec<u8> {
        match self.levels.last().map(|level| level.path.as_slice()) {
            None | Some(b"") => name.as_bytes().to_vec(),
            Some(path) => [path, b"/", name.as_bytes()].concat(),
        }
    }

    /// Goes down to `name` on those sides, and so on no other that is there.
    pub(crate) fn enter(&mut self, name: &OsStr, sides: [bool; SIDES]) -> rustix::io::Result<()> {
        let path = self.path_of(name);
        if path.len() >= PATH_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let mut directories = [const { None }; SIDES];
        for side in (0..SIDES).filter(|side| sides[*side]) {
            directories[side] = self.here(side).map(|directory| open(directory, name)).transpose()?;
        }
        self.levels.push(Level::of(directories, path)?);
        if let Some(far) = self.levels.len().checked_sub(OPEN_MAX + 1).filter(|far| *far > 0) {
            self.levels[far].directories = None;
        }
        Ok(())
    }

    /// Goes back up, and gives the path of what it leaves.
    pub(crate) fn leave(&mut self) -> Option<Vec<u8>> {
        self.levels.pop().map(|level| level.path)
    }

    fn open_again(&mut self) -> rustix::io::Result<()> {
        let (Some((last, rest)), mut directories) = (self.levels.split_last_mut(), [const { None }; SIDES]) else {
            return Ok(());
        };
        let top = rest.first().and_then(|top| top.directories.as_ref());
        for side in (0..SIDES).filter(|side| last.is_on[*side]) {
            let top = top.and_then(|top| top[side].as_ref());
            directories[side] = top.map(|top| open(top.as_fd(), OsStr::from_bytes(&last.path))).transpose()?;
        }
        last.directories = Some(directories);
        Ok(())
    }
}

impl<const SIDES: usize> Level<SIDES> {
    fn of(directories: Directories<SIDES>, path: Vec<u8>) -> rustix::io::Result<Level<SIDES>> {
        let mut names = BTreeSet::new();
        for directory in directories.iter().flatten() {
            add_names(directory, &mut names)?;
        }
        let is_on = directories.each_ref().map(Option::is_some);
        Ok(Level { path, is_on, directories: Some(directories), names: names.into_iter() })
    }
}

fn add_names(directory: &OwnedFd, names: &mut BTreeSet<OsString>) -> rustix::io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if !matches!(name.as_slice(), b"." | b"..") {
            names.insert(OsString::from_vec(name));
        }
    }
    Ok(())
}

/// Opens what lies beneath a directory: over no link, and never into something that is mounted there, which is not this
/// tree's.
pub(super) fn open(directory: BorrowedFd<'_>, path: &OsStr) -> rustix::io::Result<OwnedFd> {
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(directory, path, OPEN_DIRECTORY, Mode::empty(), resolve) {
            // Something was renamed meanwhile and the kernel could not be sure.
            Err(Errno::AGAIN | Errno::INTR) => {}
            outcome => return outcome,
        }
    }
}
