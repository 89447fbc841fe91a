//! A tree made a second time: data with its holes, owners, modes, times, extended attributes, devices, hard links.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::walk::Walk;
use crate::xattr;

const HANDLE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The sides of a walk.
const FROM: usize = 0;
const TO: usize = 1;

/// Copies what is in the directory `from` into the empty directory `to`, and makes `to` itself look like it.
pub(crate) fn copy(from: OwnedFd, to: OwnedFd) -> rustix::io::Result<()> {
    let top = to.try_clone().map_err(errno)?;
    let mut copy = Copy { top, walk: Walk::from([Some(from), Some(to)])?, links: HashMap::new() };
    while !copy.walk.is_over() {
        match copy.walk.next()? {
            Some(name) => copy.entry(&name)?,
            None => {
                if let (Some(from), Some(to)) = (copy.walk.here(FROM), copy.walk.here(TO)) {
                    // Its times at the end: each file that is made in it changes them.
                    look_like(from, to)?;
                }
                copy.walk.leave();
            }
        }
    }
    Ok(())
}

struct Copy {
    top: OwnedFd,
    walk: Walk<2>,
    /// Of what has several names the first, from the top, by its inode. Nobody else works in the copy: the way there is
    /// the one that was made.
    links: HashMap<u64, Vec<u8>>,
}

impl Copy {
    fn entry(&mut self, name: &OsStr) -> rustix::io::Result<()> {
        let (Some(from), Some(to)) = (self.walk.here(FROM), self.walk.here(TO)) else { return Ok(()) };
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            return self.walk.enter(name, [true; 2]);
        }
        if let Some(first) = self.links.get(&stat.st_ino) {
            return rustix::fs::linkat(&self.top, OsStr::from_bytes(first), to, name, AtFlags::empty());
        }
        match kind {
            FileType::RegularFile => file(from, to, name, &stat)?,
            _ => other(from, to, name, &stat)?,
        }
        if stat.st_nlink > 1 {
            self.links.insert(stat.st_ino, self.walk.path_of(name));
        }
        Ok(())
    }
}

/// Copies the file `name` of one directory into another.
pub(crate) fn file(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    name: &OsStr,
    stat: &Stat,
) -> rustix::io::Result<()> {
    // A FIFO that took the name meanwhile must not hold this up.
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let from = File::from(rustix::fs::openat(source, name, read, Mode::empty())?);
    let write = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let to = File::from(rustix::fs::openat(target, name, write, Mode::RUSR | Mode::WUSR)?);
    // Where the file system can share the blocks, nothing is copied.
    if rustix::fs::ioctl_ficlone(&to, &from).is_err() {
        data(&from, &to, stat.st_size as u64)?;
    }
    look_like(from.as_fd(), to.as_fd())
}

/// Copies the parts that are no holes.
fn data(from: &File, to: &File, size: u64) -> rustix::io::Result<()> {
    let mut at = 0;
    while at < size {
        let (begin, end) = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(begin) => (begin, rustix::fs::seek(from, SeekFrom::Hole(begin))?),
            Err(Errno::NXIO) => break,
            // A file system that knows no holes.
            Err(_) => (at, size),
        };
        rustix::fs::seek(from, SeekFrom::Start(begin))?;
        rustix::fs::seek(to, SeekFrom::Start(begin))?;
        io::copy(&mut from.take(end - begin), &mut { to }).map_err(errno)?;
        at = end.max(at + 1);
    }
    rustix::fs::ftruncate(to, size)
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// Links, devices, FIFOs and sockets.
fn other(source: BorrowedFd<'_>, target: BorrowedFd<'_>, name: &OsStr, stat: &Stat) -> rustix::io::Result<()> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == FileType::Symlink {
        let link = rustix::fs::readlinkat(source, name, Vec::new())?;
        rustix::fs::symlinkat(link.as_c_str(), target, name)?;
    } else {
        rustix::fs::mknodat(target, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?;
    }
    let from = rustix::fs::openat(source, name, HANDLE, Mode::empty())?;
    let to = rustix::fs::openat(target, name, HANDLE, Mode::empty())?;
    rustix::fs::chownat(target, name, owner(stat), group(stat), AtFlags::SYMLINK_NOFOLLOW)?;
    copy_xattrs(from.as_fd(), to.as_fd())?;
    if kind != FileType::Symlink {
        rustix::fs::chmodat(target, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
    }
    rustix::fs::utimensat(target, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

/// Gives an open file or directory the owner, attributes, mode and times of another.
pub(crate) fn look_like(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let stat = rustix::fs::fstat(from)?;
    // First the owner: a change of it clears capabilities and set-id bits.
    rustix::fs::fchown(to, owner(&stat), group(&stat))?;
    copy_xattrs(from, to)?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    rustix::fs::futimens(to, &times(&stat))
}

/// But not overlayfs's marks: they say something about the directory below, not about this one. What a file system, or
/// a security module, does not take is left out, as containerd leaves it out.
fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let all = xattr::all(from)?;
    let own = all.iter().filter(|(name, _)| !name.starts_with(b"trusted.overlay."));
    for (name, value) in own {
        match xattr::set(to, name, value) {
            Err(error @ (Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS | Errno::INVAL)) => {
                tracing::debug!(name = %String::from_utf8_lossy(name), %error, "an extended attribute is not copied");
            }
            outcome => outcome?,
        }
    }
    Ok(())
}

fn owner(stat: &Stat) -> Option<Uid> {
    Some(Uid::from_raw(stat.st_uid))
}

fn group(stat: &Stat) -> Option<Gid> {
    Some(Gid::from_raw(stat.st_gid))
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime as _, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    #[test]
    fn a_copy_looks_like_what_it_was_made_of() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |path: &str| from.path().join(path);
        fs::create_dir_all(at("d/deep")).unwrap();
        fs::write(at("d/deep/f"), "data").unwrap();
        fs::hard_link(at("d/deep/f"), at("d/again")).unwrap();
        symlink("/nowhere", at("link")).unwrap();
        fs::set_permissions(at("d/deep/f"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(at("d"), fs::Permissions::from_mode(0o1700)).unwrap();
        let sparse = File::create(at("sparse")).unwrap();
        rustix::io::pwrite(&sparse, b"end", 8 << 20).unwrap();
        sparse.set_len(9 << 20).unwrap();
        rustix::fs::mknodat(open(from.path()), "fifo", FileType::Fifo, Mode::RUSR, 0).unwrap();
        let _ = xattr::set(sparse.as_fd(), b"user.note", b"kept");
        let old = Timestamps {
            last_access: Timespec { tv_sec: 1, tv_nsec: 2 },
            last_modification: Timespec { tv_sec: 3, tv_nsec: 4 },
        };
        for name in ["d", "link", "fifo", "sparse"] {
            rustix::fs::utimensat(open(from.path()), name, &old, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        copy(open(from.path()), open(to.path())).unwrap();
        for path in ["", "d", "d/deep", "d/deep/f", "d/again", "link", "sparse", "fifo"] {
            let looks = |root: &Path| {
                let of = root.join(path).symlink_metadata().unwrap();
                (of.mode(), of.uid(), of.gid(), of.nlink(), of.size(), of.mtime(), of.mtime_nsec())
            };
            assert_eq!(looks(to.path()), looks(from.path()), "{path}");
        }
        let to_at = |path: &str| to.path().join(path);
        assert_eq!(fs::read(to_at("d/deep/f")).unwrap(), b"data");
        assert_eq!(to_at("d/again").metadata().unwrap().ino(), to_at("d/deep/f").metadata().unwrap().ino());
        assert_eq!(fs::read_link(to_at("link")).unwrap(), Path::new("/nowhere"));
        assert_eq!(fs::read(to_at("sparse")).unwrap(), fs::read(at("sparse")).unwrap());
        assert!(to_at("sparse").metadata().unwrap().blocks() <= at("sparse").metadata().unwrap().blocks());
        assert_eq!(xattr::all(open(&to_at("sparse")).as_fd()), xattr::all(sparse.as_fd()));
    }

    #[test]
    fn attributes_that_cannot_be_had_are_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        let from = File::create(from).unwrap();
        for name in ["user.note", "trusted.note"] {
            if let Err(error) = xattr::set(from.as_fd(), name.as_bytes(), b"kept") {
                eprintln!("skipped: {name} cannot be set here: {error}");
            }
        }
        rustix::fs::mknodat(rustix::fs::CWD, &to, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let to = rustix::fs::open(&to, HANDLE, Mode::empty()).unwrap();
        // User attributes are for files and directories alone; a pipe without a name has none at all.
        copy_xattrs(from.as_fd(), to.as_fd()).unwrap();
        let (pipe, _) = std::io::pipe().unwrap();
        copy_xattrs(from.as_fd(), pipe.as_fd()).unwrap();
    }

    #[test]
    fn deep_directories_are_copied() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let deep = vec!["d"; 1500].join("/");
        fs::create_dir_all(from.path().join(&deep)).unwrap();
        let old = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        File::open(from.path().join("d/d")).unwrap().set_times(old).unwrap();
        fs::write(from.path().join(&deep).join("f"), "1").unwrap();
        fs::hard_link(from.path().join(&deep).join("f"), from.path().join("g")).unwrap();
        copy(open(from.path()), open(to.path())).unwrap();
        assert_eq!(fs::read_to_string(to.path().join(&deep).join("f")).unwrap(), "1");
        assert_eq!(to.path().join("g").metadata().unwrap().nlink(), 2);
        assert_eq!(to.path().join("d/d").metadata().unwrap().modified().unwrap(), std::time::UNIX_EPOCH);
    }
}
