//! What a layer takes over from those below it: looks of directories, files that it links to.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::Spot;
use super::place::open_beneath;
use crate::error::{Error, Result};
use crate::tree;

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
            Some(FileType::RegularFile) => return copy(&spot, to),
            Some(_) => return Err(Error::layer("its link target", "it is no file in the layers below")),
        }
    }
    Err(Error::layer("its link target", "it does not exist"))
}

fn copy(from: &Spot<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let failed = |error: Errno| Error::io("copy its link target from a layer below", error);
    let stat = from.stat().ok_or(Errno::NOENT).map_err(failed)?;
    tree::copy::file(from.directory, to, from.name, &stat).map_err(failed)
}

fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    tree::copy::look_like(from, to).map_err(|error| Error::io("copy the attributes of a file in a layer below", error))
}

/// Makes the root of a layer look like `like`, which it replaces.
pub(crate) fn copy_root_attributes(like: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    copy_attributes(like, to)
}
