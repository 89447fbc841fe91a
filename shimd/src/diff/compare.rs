//! Directories gone through in order of names, each beside what it was before, if that is known.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::make::failed;
use crate::error::Result;
use crate::xattr;

const OPEN_DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Bytes of two files that are compared at once.
const READ_LEN: usize = 64 << 10;

/// A directory that is being gone through. The same files come in the same order.
pub(super) struct Level {
    pub(super) handle: OwnedFd,
    /// What it was before; none where nothing was, or nobody asks.
    before: Option<OwnedFd>,
    pub(super) path: Vec<u8>,
    names: std::collections::btree_set::IntoIter<OsString>,
}

/// What has a name now, and what had it before.
pub(super) struct Found {
    pub(super) path: Vec<u8>,
    pub(super) now: Option<Stat>,
    pub(super) before: Option<Stat>,
}

impl Level {
    pub(super) fn open(handle: OwnedFd, before: Option<OwnedFd>, path: Vec<u8>) -> Result<Level> {
        let mut names = BTreeSet::new();
        for directory in std::iter::once(&handle).chain(&before) {
            add_names(directory, &mut names).map_err(|error| failed("list", &path, error))?;
        }
        Ok(Level { handle, before, path, names: names.into_iter() })
    }

    /// The next name and what is behind it.
    pub(super) fn next(&mut self) -> Option<Result<(OsString, Found)>> {
        let name = self.names.next()?;
        Some(self.find(&name).map(|found| (name, found)))
    }

    fn find(&self, name: &OsStr) -> Result<Found> {
        let path = if self.path.is_empty() {
            name.as_bytes().to_vec()
        } else {
            [self.path.as_slice(), b"/", name.as_bytes()].concat()
        };
        let look = |directory: &OwnedFd| match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(failed("look at", &path, error)),
        };
        let now = look(&self.handle)?;
        let before = self.before.as_ref().map(look).transpose()?.flatten();
        Ok(Found { path, now, before })
    }

    /// The directory `name` and, if it was one before, that.
    pub(super) fn enter(&self, name: &OsStr, found: &Found) -> Result<Level> {
        let open = |directory: &OwnedFd| {
            rustix::fs::openat(directory, name, OPEN_DIRECTORY, Mode::empty())
                .map_err(|error| failed("open", &found.path, error))
        };
        let was_directory = found.before.is_some_and(|stat| is(&stat, FileType::Directory));
        let before = self.before.as_ref().filter(|_| was_directory).map(open).transpose()?;
        Level::open(open(&self.handle)?, before, found.path.clone())
    }

    /// Whether `name` is what it was. Of directories it is the directory alone that is meant, and not its time: that tells
    /// of what is in it.
    pub(super) fn is_unchanged(&self, name: &OsStr, found: &Found) -> Result<bool> {
        let (Some(now), Some(before), Some(then)) = (found.now, found.before, &self.before) else { return Ok(false) };
        let pair = Pair { now: self.handle.as_fd(), before: then.as_fd(), name };
        pair.is_same(&now, &before).map_err(|error| failed("compare", &found.path, error))
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

fn is(stat: &Stat, kind: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == kind
}

/// A name in two directories.
struct Pair<'a> {
    now: BorrowedFd<'a>,
    before: BorrowedFd<'a>,
    name: &'a OsStr,
}

impl Pair<'_> {
    fn is_same(&self, now: &Stat, before: &Stat) -> rustix::io::Result<bool> {
        if (now.st_dev, now.st_ino) == (before.st_dev, before.st_ino) {
            return Ok(true);
        }
        let looks = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev);
        if looks(now) != looks(before) || self.xattrs(self.now)? != self.xattrs(self.before)? {
            return Ok(false);
        }
        let kind = FileType::from_raw_mode(now.st_mode);
        if kind == FileType::Directory {
            return Ok(true);
        }
        let times = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
        if times(now) != times(before) {
            return Ok(false);
        }
        match kind {
            FileType::Symlink => Ok(self.link(self.now)? == self.link(self.before)?),
            // Archives have whole seconds, and a file that is written within one, or whose time is set back, looks the same.
            FileType::RegularFile if now.st_mtime_nsec == 0 => self.has_same_data(),
            _ => Ok(true),
        }
    }

    fn xattrs(&self, directory: BorrowedFd<'_>) -> rustix::io::Result<xattr::Xattrs> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, self.name, flags, Mode::empty())?;
        let mut all = xattr::all(file.as_fd())?;
        all.sort();
        Ok(all)
    }

    fn link(&self, directory: BorrowedFd<'_>) -> rustix::io::Result<std::ffi::CString> {
        rustix::fs::readlinkat(directory, self.name, Vec::new())
    }

    fn has_same_data(&self) -> rustix::io::Result<bool> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = |directory| rustix::fs::openat(directory, self.name, flags, Mode::empty()).map(File::from);
        let (mut now, mut before) = (open(self.now)?, open(self.before)?);
        let (mut new, mut old) = (vec![0; READ_LEN], vec![0; READ_LEN]);
        loop {
            let count = read_full(&mut now, &mut new)?;
            if count != read_full(&mut before, &mut old)? || new[..count] != old[..count] {
                return Ok(false);
            }
            if count < READ_LEN {
                return Ok(true);
            }
        }
    }
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        }
    }
    Ok(filled)
}
