//! Owner, mode, extended attributes and times of what was made.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::{Spot, failed};
use crate::diff::tar::{Entry, Kind, Time};
use crate::error::Result;

/// Permission bits that opening and making accept; set-id bits must come after a change of owner, which clears them.
const PLAIN_BITS: u32 = 0o1777;

/// The mode to make an entry with: nothing for others before it belongs to whom it shall.
pub(super) fn creation_mode(entry: &Entry) -> Mode {
    Mode::from_raw_mode(if is_roots(entry) { entry.mode & 0o777 } else { entry.mode & 0o700 })
}

fn is_roots(entry: &Entry) -> bool {
    entry.uid == 0 && entry.gid == 0
}

/// Whether making alone, with [`creation_mode`], does not do.
pub(super) fn needs_more(entry: &Entry) -> bool {
    !is_roots(entry) || entry.mode & !0o777 != 0 || !entry.xattrs.is_empty()
}

/// Owner, mode, xattrs and times of a file that was just written.
pub(super) fn finish_file(file: &OwnedFd, entry: &Entry) -> Result<()> {
    if needs_more(entry) {
        set_on(file.as_fd(), entry)?;
    }
    rustix::fs::futimens(file, &timestamps(entry.modified)).map_err(|error| failed("set the time of", entry, error))
}

/// Owner, mode and xattrs of an open file or directory.
pub(super) fn set_on(file: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
    rustix::fs::fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
        .map_err(|error| failed("set the owner of", entry, error))?;
    // After the owner: a change of owner clears capabilities and set-id bits.
    for (name, value) in settable(entry) {
        let outcome = rustix::fs::fsetxattr(file, name, value, XattrFlags::empty());
        allow_unsupported(outcome).map_err(|error| failed("set an extended attribute of", entry, error))?;
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode)).map_err(|error| failed("set the mode of", entry, error))
}

/// The same, and times, for what cannot be opened: links, devices, FIFOs.
pub(super) fn finish_at(spot: &Spot<'_>, entry: &Entry) -> Result<()> {
    let (owner, group) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
    if !is_roots(entry) {
        rustix::fs::chownat(spot.directory, spot.name, owner, group, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| failed("set the owner of", entry, error))?;
    }
    let needs_mode = entry.kind != Kind::Symlink && (!is_roots(entry) || entry.mode & !(PLAIN_BITS & 0o777) != 0);
    if needs_mode || !entry.xattrs.is_empty() {
        set_by_handle(spot, entry, needs_mode)?;
    }
    rustix::fs::utimensat(spot.directory, spot.name, &timestamps(entry.modified), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| failed("set the time of", entry, error))
}

/// A handle that opens nothing, and its name in /proc: calls that would follow a link act on the very file.
fn set_by_handle(spot: &Spot<'_>, entry: &Entry, needs_mode: bool) -> Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(spot.directory, spot.name, flags, Mode::empty())
        .map_err(|error| failed("open", entry, error))?;
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    for (name, value) in settable(entry) {
        let outcome = rustix::fs::setxattr(path.as_str(), name, value, XattrFlags::empty());
        allow_unsupported(outcome).map_err(|error| failed("set an extended attribute of", entry, error))?;
    }
    if needs_mode {
        rustix::fs::chmod(path.as_str(), Mode::from_raw_mode(entry.mode))
            .map_err(|error| failed("set the mode of", entry, error))?;
    }
    Ok(())
}

/// overlayfs's own attributes would let a layer redirect look-ups in the layers below; no image needs them.
fn settable(entry: &Entry) -> impl Iterator<Item = (&OsStr, &[u8])> {
    entry
        .xattrs
        .iter()
        .filter(|(name, _)| !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay."))
        .map(|(name, value)| (OsStr::from_bytes(name), value.as_slice()))
}

/// A file system or a kind of file may not have attributes of that class; containerd leaves them out, too.
fn allow_unsupported(outcome: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match outcome {
        Err(Errno::OPNOTSUPP) => Ok(()),
        // User attributes exist on files and directories only.
        Err(Errno::PERM) => Ok(()),
        outcome => outcome,
    }
}

/// Access and change at the same time, as nothing else is known.
pub(super) fn timestamps(time: Time) -> Timestamps {
    let spec = Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanoseconds) as _ };
    Timestamps { last_access: spec, last_modification: spec }
}
