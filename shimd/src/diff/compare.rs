//! Directories gone through in order of names, each beside what it was before, if that is known.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::make::{OVERLAY_XATTRS, failed};
use crate::error::Result;
use crate::tree::walk::Walk;
use crate::xattr;

/// Bytes of two files that are compared at once.
const READ_LEN: usize = 64 << 10;

/// The sides of a walk.
const NOW: usize = 0;
const BEFORE: usize = 1;

/// A tree that is being gone through. The same files come in the same order.
pub(super) struct Comparison {
    walk: Walk<2>,
    /// What is now is overlayfs's upper directory alone.
    is_upper: bool,
}

/// What comes next.
pub(super) enum Step {
    Found(OsString, Box<Found>),
    /// All that is in the directory of that path has come.
    Left(Vec<u8>),
}

/// What has a name now, and what had it before.
pub(super) struct Found {
    pub(super) path: Vec<u8>,
    pub(super) now: Option<Stat>,
    pub(super) before: Option<Stat>,
}

impl Comparison {
    /// Of a directory with what it was before, if anybody asks.
    pub(super) fn of(now: OwnedFd, before: Option<OwnedFd>) -> Result<Comparison> {
        let walk = Walk::in_order([Some(now), before]).map_err(|error| failed("list", b".", error))?;
        Ok(Comparison { walk, is_upper: false })
    }

    /// Of an upper directory with what shows beneath it: what it does not name has not changed.
    pub(super) fn of_upper(upper: OwnedFd, below: OwnedFd) -> Result<Comparison> {
        let walk = Walk::first_in_order([Some(upper), Some(below)]).map_err(|error| failed("list", b".", error))?;
        Ok(Comparison { walk, is_upper: true })
    }

    /// Where it is, nothing shows of what was below.
    pub(super) fn hide_below(&mut self) {
        self.walk.forget(BEFORE);
    }

    /// Nothing was there before.
    pub(super) fn has_no_before(&self) -> bool {
        self.walk.here(BEFORE).is_none()
    }

    /// What comes next; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Step>> {
        if self.walk.is_over() {
            return Ok(None);
        }
        let next = self.walk.next();
        let next =
            next.map_err(|error| failed("go back to the directory of", &self.walk.path_of(OsStr::new("")), error))?;
        match next {
            Some(name) => self.find(&name).map(|found| Some(Step::Found(name, Box::new(found)))),
            None => Ok(self.walk.leave().map(Step::Left)),
        }
    }

    fn find(&self, name: &OsStr) -> Result<Found> {
        let path = self.walk.path_of(name);
        let look = |side| match self.walk.here(side).map(|at| rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)) {
            None | Some(Err(Errno::NOENT)) => Ok(None),
            Some(Ok(stat)) => Ok(Some(stat)),
            Some(Err(error)) => Err(failed("look at", &path, error)),
        };
        let (now, before) = (look(NOW)?, look(BEFORE)?);
        Ok(Found { path, now, before })
    }

    /// The directory where it is, as it is now.
    pub(super) fn here(&self) -> Option<BorrowedFd<'_>> {
        self.walk.here(NOW)
    }

    /// Goes into the directory `name` and, if it was one before, that.
    pub(super) fn enter(&mut self, name: &OsStr, found: &Found) -> Result<()> {
        let was_directory = found.before.is_some_and(|stat| is(&stat, FileType::Directory));
        self.walk.enter(name, [true, was_directory]).map_err(|error| failed("list", &found.path, error))
    }

    /// Whether `name` is what it was. Of directories it is the directory alone that is meant, and not its time: that
    /// tells of what is in it.
    pub(super) fn is_unchanged(&self, name: &OsStr, found: &Found) -> Result<bool> {
        let (Some(now), Some(before)) = (found.now, found.before) else { return Ok(false) };
        let (Some(here), Some(then)) = (self.walk.here(NOW), self.walk.here(BEFORE)) else { return Ok(false) };
        let pair = Pair { now: here, before: then, name, is_upper: self.is_upper };
        pair.is_same(&now, &before).map_err(|error| failed("compare", &found.path, error))
    }
}

fn is(stat: &Stat, kind: FileType) -> bool {
    FileType::from_raw_mode(stat.st_mode) == kind
}

/// A name in two directories.
struct Pair<'a> {
    now: BorrowedFd<'a>,
    before: BorrowedFd<'a>,
    name: &'a OsStr,
    is_upper: bool,
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
            // Archives have whole seconds, and a file that is written within one, or whose time is set back, looks the
            // same. What was copied up is looked at wholly: it is seldom, and has been open for writing.
            FileType::RegularFile if now.st_mtime_nsec == 0 || self.is_upper => self.has_same_data(),
            _ => Ok(true),
        }
    }

    fn xattrs(&self, directory: BorrowedFd<'_>) -> rustix::io::Result<xattr::Xattrs> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, self.name, flags, Mode::empty())?;
        let mut all = xattr::all(file.as_fd())?;
        all.retain(|(name, _)| !(self.is_upper && name.starts_with(OVERLAY_XATTRS)));
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
