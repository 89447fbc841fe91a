//! Directories beneath the layer's root: found, made where missing, and emptied.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

use super::lower;
use super::{Lower, OPAQUE_XATTR, Spot, split};
use crate::diff::tar::Time;
use crate::error::{Error, Result};
use crate::tree;

/// Directories that are kept open: archives go through a tree in order.
const OPEN_MAX: usize = 16;
/// Bytes of the paths of directories that no entry described: one entry makes as many as its path is deep.
const IMPLICIT_MAX: usize = 16 << 20;

/// The directories of one layer.
pub(super) struct Places {
    root: Rc<OwnedFd>,
    lower: Lower,
    /// The last used first.
    open: Vec<(Vec<u8>, Rc<OwnedFd>)>,
    /// Where the layers below are not known: what is to look like its counterpart there.
    implicit: Vec<Vec<u8>>,
    implicit_len: usize,
}

impl Places {
    pub(super) fn new(root: OwnedFd, lower: Lower) -> Places {
        Places { root: Rc::new(root), lower, open: Vec::new(), implicit: Vec::new(), implicit_len: 0 }
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The directories that no entry described, if the layers below are not known.
    pub(super) fn into_implicit(self) -> Vec<Vec<u8>> {
        self.implicit
    }

    /// The directory at `path`, made where it is missing.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>> {
        // Those that are missing are made from the top down, without recursion: the depth is the archive's choice.
        let mut missing = Vec::new();
        let mut at = path;
        let mut directory = loop {
            if let Some(found) = self.find(at)? {
                break found;
            }
            missing.push(at);
            at = split(at).map_or(&[][..], |(parent, _)| parent);
        };
        for path in missing.into_iter().rev() {
            directory = self.make_directory(&directory, path)?;
            self.remember(path, &directory);
        }
        Ok(directory)
    }

    /// The directory at `path`, if it is one.
    fn find(&mut self, path: &[u8]) -> Result<Option<Rc<OwnedFd>>> {
        if path.is_empty() {
            return Ok(Some(self.root.clone()));
        }
        if let Some(at) = self.open.iter().position(|(known, _)| known == path) {
            self.open[..=at].rotate_right(1);
            return Ok(Some(self.open[0].1.clone()));
        }
        match open_beneath(self.root.as_fd(), path) {
            Ok(directory) => {
                let directory = Rc::new(directory);
                self.remember(path, &directory);
                Ok(Some(directory))
            }
            // Not a directory: a whiteout may have taken its name, or one of its parents'.
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(Error::io("open its directory", error)),
        }
    }

    fn remember(&mut self, path: &[u8], directory: &Rc<OwnedFd>) {
        self.open.insert(0, (path.to_vec(), directory.clone()));
        self.open.truncate(OPEN_MAX);
    }

    /// The directory of a link's target; made only if a layer below may have it.
    pub(super) fn target_directory(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>> {
        if let (Lower::Unknown, Err(Errno::NOENT)) = (&self.lower, open_beneath(self.root.as_fd(), path)) {
            return Err(needs_parents());
        }
        self.directory(path)
    }

    fn make_directory(&mut self, parent: &Rc<OwnedFd>, path: &[u8]) -> Result<Rc<OwnedFd>> {
        let (_, name) = split(path).unwrap_or_default();
        let spot = Spot { directory: parent.as_fd(), name: OsStr::from_bytes(name) };
        let hides_lower = spot.is_whiteout();
        if hides_lower {
            self.remove(&spot)?;
        }
        let made = rustix::fs::mkdirat(spot.directory, spot.name, Mode::from_raw_mode(0o755));
        made.map_err(|error| Error::io("make its directory", error))?;
        let directory =
            open_beneath(self.root.as_fd(), path).map_err(|error| Error::io("open its directory", error))?;
        if hides_lower {
            // What this layer had hidden stays so behind what it puts there, and is nothing to look like.
            let hidden = rustix::fs::fsetxattr(&directory, OPAQUE_XATTR, b"y", XattrFlags::empty());
            hidden.map_err(|error| Error::io("make its directory opaque", error))?;
            return Ok(Rc::new(directory));
        }
        match &self.lower {
            Lower::Known(layers) => lower::copy_directory_attributes(layers, path, directory.as_fd())?,
            Lower::Unknown => self.note_implicit(path)?,
        }
        Ok(Rc::new(directory))
    }

    fn note_implicit(&mut self, path: &[u8]) -> Result<()> {
        self.implicit_len += path.len();
        if self.implicit_len > IMPLICIT_MAX {
            return Err(Error::layer("its directories", "too many are described by no entry"));
        }
        self.implicit.push(path.to_vec());
        Ok(())
    }

    /// Brings a file of a layer below into this one, to be linked to.
    pub(super) fn copy_up(&mut self, parent: &[u8], name: &[u8]) -> Result<()> {
        let directory = self.directory(parent)?;
        match &self.lower {
            Lower::Unknown => Err(needs_parents()),
            Lower::Known(layers) => lower::copy_file(layers, parent, name, directory.as_fd()),
        }
    }

    /// Removes what has that name, with everything beneath it.
    pub(super) fn remove(&mut self, spot: &Spot<'_>) -> Result<()> {
        // A directory that is open here may be part of it.
        self.open.clear();
        tree::remove_at(spot.directory, spot.name).map_err(|error| Error::io("remove what was there", error))
    }

    /// Sets the time of a directory, should it still be there.
    pub(super) fn set_directory_time(&mut self, path: &[u8], time: Time) -> Result<()> {
        let times = super::attributes::timestamps(time);
        let outcome = match split(path) {
            None => rustix::fs::futimens(self.root(), &times),
            Some((parent, name)) => match open_beneath(self.root.as_fd(), parent) {
                Ok(parent) => rustix::fs::utimensat(parent, OsStr::from_bytes(name), &times, AtFlags::SYMLINK_NOFOLLOW),
                Err(error) => Err(error),
            },
        };
        match outcome {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => {
                let shown = String::from_utf8_lossy(path).into_owned();
                Err(Error::io(format!("set the time of layer directory {shown:?}"), error))
            }
        }
    }
}

/// Opens a directory, following links as if `root` were the root of everything.
pub(crate) fn open_beneath(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(path) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            // Something was renamed meanwhile and the kernel could not be sure.
            Err(Errno::AGAIN | Errno::INTR) => {}
            outcome => return outcome,
        }
    }
}

/// The layer cannot be unpacked before its parents are there.
fn needs_parents() -> Error {
    Error::layer("its link target", "it is in a layer below")
}
