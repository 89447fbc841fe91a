//! `tmpcopyup`: a tmpfs that begins with a copy of the directory that it covers.
//!
//! Both directories are held by handles, and no name is followed: what an image puts there is copied as what it is.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::sys::{self, Call, Failure};

/// Directories inside directories; deeper trees are no image's.
const DEPTH_MAX: usize = 256;
/// Longest list of names, and longest value, of extended attributes.
const XATTR_MAX: usize = 64 * 1024;

/// Copies all that is in `from` into `to`.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> sys::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = rustix::fs::openat(from, ".", flags, Mode::empty()).call("openat")?;
    copy_dir(from.as_fd(), to, DEPTH_MAX)
}

fn copy_dir(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> sys::Result<()> {
    if depth == 0 {
        return Err(Failure { call: "openat", errno: Errno::NAMETOOLONG });
    }
    for entry in Dir::read_from(from).call("getdents64")? {
        let entry = entry.call("getdents64")?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(from, to, name, depth)?;
        }
    }
    Ok(())
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: usize) -> sys::Result<()> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).call("fstatat")?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let source = rustix::fs::openat(from, name, flags, Mode::empty()).call("openat")?;
            rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o700)).call("mkdirat")?;
            let copy = rustix::fs::openat(to, name, flags, Mode::empty()).call("openat")?;
            copy_dir(source.as_fd(), copy.as_fd(), depth - 1)?;
            copy_xattrs(&source, &copy)?;
        }
        FileType::RegularFile => copy_file(from, to, name)?,
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new()).call("readlinkat")?;
            rustix::fs::symlinkat(target, to, name).call("symlinkat")?;
        }
        kind => rustix::fs::mknodat(to, name, kind, Mode::from_raw_mode(stat.st_mode), stat.st_rdev).call("mknodat")?,
    }
    copy_attributes(to, name, &stat)
}

fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> sys::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let source = rustix::fs::openat(from, name, flags, Mode::empty()).call("openat")?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let copy = rustix::fs::openat(to, name, flags, Mode::from_raw_mode(0o600)).call("openat")?;
    while rustix::fs::sendfile(&copy, &source, None, 1 << 20).call("sendfile")? > 0 {}
    copy_xattrs(&source, &copy)
}

/// Owner before mode, because a change of owner clears setuid; the time last.
fn copy_attributes(to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> sys::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).call("fchownat")?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        rustix::fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty()).call("fchmodat")?;
    }
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as i64 };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    rustix::fs::utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW).call("utimensat")
}

/// File capabilities among them; what a tmpfs does not keep (user attributes before 6.6) is left out.
fn copy_xattrs(from: &OwnedFd, to: &OwnedFd) -> sys::Result<()> {
    let mut names = vec![0; XATTR_MAX];
    let length = match rustix::fs::flistxattr(from, &mut names) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        result => result.call("flistxattr")?,
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; XATTR_MAX];
        let size = rustix::fs::fgetxattr(from, name, &mut value).call("fgetxattr")?;
        match rustix::fs::fsetxattr(to, name, &value[..size], XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(Failure { call: "fsetxattr", errno }),
        }
    }
    Ok(())
}
