//! What a layer takes over from those below it: looks of directories, files that it links to.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::Spot;
use super::place::open_beneath;
use crate::error::{Error, Result};

/// Most bytes of a list of attribute names, and of a value (both are the kernel's own bounds).
const XATTR_MAX: usize = 64 << 10;

/// Makes `to` look like the directory at `path` in the nearest of `layers` that has one.
pub(crate) fn copy_directory_attributes(layers: &[OwnedFd], path: &[u8], to: BorrowedFd<'_>) -> Result<()> {
    for layer in layers {
        match open_beneath(layer.as_fd(), path) {
            Ok(from) => return copy_attributes(from.as_fd(), to),
            Err(Errno::NOENT) => {}
            // A whiteout or a file: whatever lies further down is hidden.
            Err(Errno::NOTDIR) => return Ok(()),
            Err(error) => return Err(Error::io("look up a directory in the layers below", error)),
        }
    }
    Ok(())
}

/// Copies the file `name` in the directory `parent` of the nearest of `layers` that has it.
pub(super) fn copy_file(layers: &[OwnedFd], parent: &[u8], name: &[u8], to: BorrowedFd<'_>) -> Result<()> {
    let name = OsStr::from_bytes(name);
    for layer in layers {
        let Ok(directory) = open_beneath(layer.as_fd(), parent) else { continue };
        let spot = Spot { directory: directory.as_fd(), name };
        match spot.file_type() {
            None => {}
            Some(FileType::RegularFile) => return copy(&spot, to, name),
            Some(_) => return Err(Error::layer("its link target", "it is no file in the layers below")),
        }
    }
    Err(Error::layer("its link target", "it does not exist"))
}

fn copy(from: &Spot<'_>, to: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    let failed = |error: Errno| Error::io("copy its link target from a layer below", error);
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = rustix::fs::openat(from.directory, from.name, read, Mode::empty()).map_err(failed)?;
    let write = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let copied = rustix::fs::openat(to, name, write, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    let mut reader = std::fs::File::from(source);
    let mut writer = std::fs::File::from(copied);
    std::io::copy(&mut reader, &mut writer)
        .map_err(|error| Error::io("copy its link target from a layer below", error))?;
    copy_attributes(reader.as_fd(), writer.as_fd())
}

fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let failed = |error: Errno| Error::io("copy the attributes of a file in a layer below", error);
    let stat = rustix::fs::fstat(from).map_err(failed)?;
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid))).map_err(failed)?;
    copy_xattrs(from, to).map_err(failed)?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode)).map_err(failed)?;
    rustix::fs::futimens(to, &times(&stat)).map_err(failed)
}

fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let mut names = vec![0; XATTR_MAX];
    let length = match rustix::fs::flistxattr(from, &mut names) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        outcome => outcome?,
    };
    let mut value = vec![0; XATTR_MAX];
    for name in names[..length].split(|byte| *byte == 0) {
        // overlayfs's marks say something about the directory below, not about this one.
        if name.is_empty() || name.starts_with(b"trusted.overlay.") {
            continue;
        }
        let name = OsStr::from_bytes(name);
        let length = rustix::fs::fgetxattr(from, name, &mut value)?;
        rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime as _, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

/// Makes the root of a layer look like `like`, which it replaces.
pub(crate) fn copy_root_attributes(like: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    copy_attributes(like, to)
}
