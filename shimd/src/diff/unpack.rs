//! A layer's entries become files beneath a directory.
//!
//! Everything is done on handles: a parent directory is resolved with `openat2(RESOLVE_IN_ROOT)` beneath the layer's
//! root, so neither a link in the archive nor one that somebody swaps in meanwhile leads outside; the last component
//! is made anew (`O_EXCL`, `mkdirat`, `symlinkat`, …) and never followed. What stands in the way of an entry is
//! removed first. The unpacking thread has a umask of its own, zero, so that most files need no chmod.
//!
//! Whiteouts (`.wh.NAME`, `.wh..wh..opq`) become overlayfs's: a character device 0:0, an xattr on the directory.

mod attributes;
mod lower;
mod place;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::BufRead;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::tar::{Archive, Entry, Kind, Time};
use crate::error::{Error, Result};
pub(crate) use lower::{copy_directory_attributes, copy_root_attributes};
use place::Places;
pub(crate) use place::open_beneath;

/// Bytes of the paths of directories whose times are remembered until the end.
const TIMES_MAX: usize = 256 << 20;
/// What marks a file that hides one of the layers below.
const WHITEOUT: &[u8] = b".wh.";
/// Marks of the mark's own; only the opaque one has a meaning outside of aufs.
const WHITEOUT_META: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
/// overlayfs: nothing of the directories below is seen in this one.
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

/// What is known of the layers below.
pub(crate) enum Lower {
    /// Nothing yet: the layer arrives before its parents. What needs them is told in the [`Report`], or is an error
    /// .
    Unknown,
    /// The layers themselves, the nearest first; none for a first layer.
    Known(Vec<OwnedFd>),
}

/// How whiteouts are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whiteouts {
    /// As overlayfs wants them.
    Overlay,
    /// Not at all: what they hide is removed from the directory itself.
    Remove,
}

/// What unpacking came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Directories that no entry described, where the layers below are not known: they are to look like their
    /// counterparts there.
    pub(crate) implicit: Vec<Vec<u8>>,
    /// Whether an entry described the root itself.
    pub(crate) has_root: bool,
    /// Whether there was any whiteout.
    pub(crate) has_whiteouts: bool,
}

/// Unpacks `archive` into `root`.
pub(crate) fn unpack<R: BufRead>(
    archive: &mut Archive<R>,
    root: OwnedFd,
    lower: Lower,
    whiteouts: Whiteouts,
) -> Result<Report> {
    let mut unpacker = Unpacker {
        places: Places::new(root, lower),
        whiteouts,
        times: HashMap::new(),
        times_len: 0,
        report: Report::default(),
    };
    while let Some(entry) = archive.next_entry()? {
        unpacker.place(&entry, archive)?;
    }
    archive.drain()?;
    unpacker.finish()
}

struct Unpacker {
    places: Places,
    whiteouts: Whiteouts,
    /// Times of directories, set at the end: each file that is made in one changes them.
    times: HashMap<Vec<u8>, Time>,
    times_len: usize,
    report: Report,
}

impl Unpacker {
    fn place<R: BufRead>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<()> {
        let path = clean(entry)?;
        let Some((parent, name)) = split(&path) else {
            return self.place_root(entry);
        };
        let directory = self.places.directory(parent).map_err(|error| in_entry(entry, error))?;
        if name.starts_with(WHITEOUT) {
            return self.whiteout(entry, directory.as_fd(), name);
        }
        let spot = Spot { directory: directory.as_fd(), name: OsStr::from_bytes(name) };
        match &entry.kind {
            Kind::File => self.file(entry, &spot, archive),
            Kind::Directory => self.directory(entry, &spot, &path),
            Kind::HardLink => self.hard_link(entry, &spot),
            Kind::Symlink => self.symlink(entry, &spot),
            Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => self.node(entry, &spot),
        }
    }

    /// The root is there already; an entry for it can only be a directory.
    fn place_root(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::Directory {
            return Err(Error::layer(entry.shown(), "the root of a layer must be a directory"));
        }
        self.report.has_root = true;
        self.remember_time(&[], entry)?;
        attributes::set_on(self.places.root(), entry)
    }

    fn file<R: BufRead>(&mut self, entry: &Entry, spot: &Spot<'_>, archive: &mut Archive<R>) -> Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = attributes::creation_mode(entry);
        let file = self.make(entry, spot, || rustix::fs::openat(spot.directory, spot.name, flags, mode))?;
        write_data(&file, entry, archive)?;
        attributes::finish_file(&file, entry)
    }

    fn directory(&mut self, entry: &Entry, spot: &Spot<'_>, path: &[u8]) -> Result<()> {
        let mode = attributes::creation_mode(entry);
        let is_new = match rustix::fs::mkdirat(spot.directory, spot.name, mode) {
            Ok(()) => true,
            Err(Errno::EXIST) if spot.file_type() == Some(FileType::Directory) => false,
            Err(Errno::EXIST) => {
                let hid_lower = self.whiteouts == Whiteouts::Overlay && spot.is_whiteout();
                self.make(entry, spot, || rustix::fs::mkdirat(spot.directory, spot.name, mode))?;
                if hid_lower {
                    self.make_opaque(entry, spot)?;
                }
                true
            }
            Err(error) => return Err(failed("make", entry, error)),
        };
        self.remember_time(path, entry)?;
        if is_new && !attributes::needs_more(entry) {
            return Ok(());
        }
        attributes::set_on(spot.open_directory(entry)?.as_fd(), entry)
    }

    fn symlink(&mut self, entry: &Entry, spot: &Spot<'_>) -> Result<()> {
        let target = OsStr::from_bytes(&entry.link);
        self.make(entry, spot, || rustix::fs::symlinkat(target, spot.directory, spot.name))?;
        attributes::finish_at(spot, entry)
    }

    fn node(&mut self, entry: &Entry, spot: &Spot<'_>) -> Result<()> {
        let (file_type, device) = match entry.kind {
            Kind::CharDevice { major, minor } => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
            Kind::BlockDevice { major, minor } => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
            _ => (FileType::Fifo, 0),
        };
        let mode = attributes::creation_mode(entry);
        self.make(entry, spot, || rustix::fs::mknodat(spot.directory, spot.name, file_type, mode, device))?;
        attributes::finish_at(spot, entry)
    }

    /// The link's target is named from the root of the layer. Owner, mode and times are the target's.
    fn hard_link(&mut self, entry: &Entry, spot: &Spot<'_>) -> Result<()> {
        let link = clean_name(&entry.link)
            .ok_or_else(|| Error::layer(entry.shown(), "its link target leads out of the layer"))?;
        let Some((parent, name)) = split(&link) else {
            return Err(Error::layer(entry.shown(), "it links to the root"));
        };
        let directory = self.places.target_directory(parent).map_err(|error| in_entry(entry, error))?;
        let target = Spot { directory: directory.as_fd(), name: OsStr::from_bytes(name) };
        if target.file_type().is_none() {
            self.places.copy_up(parent, name).map_err(|error| in_entry(entry, error))?;
        }
        if target.is_same(spot) {
            return Ok(());
        }
        self.make(entry, spot, || {
            rustix::fs::linkat(target.directory, target.name, spot.directory, spot.name, AtFlags::empty())
        })
    }

    fn whiteout(&mut self, entry: &Entry, directory: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        if name == WHITEOUT_OPAQUE {
            self.report.has_whiteouts = true;
            return self.opaque(entry, directory);
        }
        if name.starts_with(WHITEOUT_META) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Error::layer(entry.shown(), "it is a whiteout of nothing"));
        }
        self.report.has_whiteouts = true;
        let spot = Spot { directory, name: OsStr::from_bytes(hidden) };
        match self.whiteouts {
            Whiteouts::Overlay => self.overlay_whiteout(entry, &spot),
            Whiteouts::Remove => self.places.remove(&spot).map_err(|error| in_entry(entry, error)),
        }
    }

    /// A whiteout hides the layers below, not what this layer itself has put there.
    fn overlay_whiteout(&mut self, entry: &Entry, spot: &Spot<'_>) -> Result<()> {
        match rustix::fs::mknodat(spot.directory, spot.name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) if spot.file_type() == Some(FileType::Directory) => self.make_opaque(entry, spot),
            Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(failed("make the whiteout", entry, error)),
        }
    }

    fn opaque(&mut self, entry: &Entry, directory: BorrowedFd<'_>) -> Result<()> {
        if self.whiteouts == Whiteouts::Remove {
            return Ok(());
        }
        rustix::fs::fsetxattr(directory, OPAQUE_XATTR, b"y", XattrFlags::empty())
            .map_err(|error| failed("make opaque the directory of", entry, error))
    }

    fn make_opaque(&mut self, entry: &Entry, spot: &Spot<'_>) -> Result<()> {
        let directory = spot.open_directory(entry)?;
        self.opaque(entry, directory.as_fd())
    }

    /// Makes something, after removing what is in its way.
    fn make<T>(&mut self, entry: &Entry, spot: &Spot<'_>, make: impl Fn() -> rustix::io::Result<T>) -> Result<T> {
        match make() {
            Err(Errno::EXIST) => {
                self.places.remove(spot).map_err(|error| in_entry(entry, error))?;
                make()
            }
            outcome => outcome,
        }
        .map_err(|error| failed("make", entry, error))
    }

    fn remember_time(&mut self, path: &[u8], entry: &Entry) -> Result<()> {
        if self.times.insert(path.to_vec(), entry.modified).is_none() {
            self.times_len += path.len();
        }
        match self.times_len <= TIMES_MAX {
            true => Ok(()),
            false => Err(Error::layer(entry.shown(), "it has too many directories before it")),
        }
    }

    fn finish(mut self) -> Result<Report> {
        for (path, time) in std::mem::take(&mut self.times) {
            self.places.set_directory_time(&path, time)?;
        }
        self.report.implicit = self.places.into_implicit();
        Ok(self.report)
    }
}

/// A name in a directory.
pub(super) struct Spot<'a> {
    directory: BorrowedFd<'a>,
    name: &'a OsStr,
}

impl Spot<'_> {
    fn stat(&self) -> Option<rustix::fs::Stat> {
        rustix::fs::statat(self.directory, self.name, AtFlags::SYMLINK_NOFOLLOW).ok()
    }

    fn file_type(&self) -> Option<FileType> {
        self.stat().map(|stat| FileType::from_raw_mode(stat.st_mode))
    }

    fn is_whiteout(&self) -> bool {
        self.stat()
            .is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0)
    }

    fn is_same(&self, other: &Spot<'_>) -> bool {
        let key = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        self.stat().map(key).is_some_and(|mine| other.stat().map(key) == Some(mine))
    }

    fn open_directory(&self, entry: &Entry) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(self.directory, self.name, flags, Mode::empty())
            .map_err(|error| failed("open", entry, error))
    }
}

fn write_data<R: BufRead>(file: &OwnedFd, entry: &Entry, archive: &mut Archive<R>) -> Result<()> {
    let Some(extents) = &entry.extents else {
        return write_part(file, entry, archive, 0, u64::MAX);
    };
    for extent in extents {
        write_part(file, entry, archive, extent.offset, extent.length)?;
    }
    rustix::fs::ftruncate(file, entry.size).map_err(|error| failed("extend", entry, error))
}

/// Writes the next `length` bytes of the entry's data, or what is left of them, at `offset`.
fn write_part<R: BufRead>(
    file: &OwnedFd,
    entry: &Entry,
    archive: &mut Archive<R>,
    mut offset: u64,
    mut length: u64,
) -> Result<()> {
    while length > 0 {
        let data = archive.data()?;
        if data.is_empty() {
            return Ok(());
        }
        let most = data.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(file, &data[..most], offset))
            .map_err(|error| failed("write", entry, error))?;
        archive.consume(written);
        offset += written as u64;
        length -= written as u64;
    }
    Ok(())
}

/// The path of an entry as components joined by single slashes, without a leading one; empty for the root.
fn clean(entry: &Entry) -> Result<Vec<u8>> {
    clean_name(&entry.path).ok_or_else(|| Error::layer(entry.shown(), "its path leads out of the layer"))
}

/// `None` where a component is `..`: no honest layer has one.
fn clean_name(path: &[u8]) -> Option<Vec<u8>> {
    let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    (!parts.contains(&b"..".as_slice())).then(|| parts.join(&b'/'))
}

/// Parent and last component; `None` for the root.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    })
}

fn failed(attempted: &str, entry: &Entry, error: Errno) -> Error {
    Error::io(format!("{attempted} {}", entry.shown()), error)
}

/// Puts an entry's name to an error that has none.
fn in_entry(entry: &Entry, error: Error) -> Error {
    match error {
        Error::Io { attempted, source } => Error::Io { attempted: format!("{}: {attempted}", entry.shown()), source },
        Error::Layer { what, why } => Error::Layer { what: entry.shown(), why: format!("{what}: {why}") },
        other => other,
    }
}

#[cfg(test)]
mod tests;
