//! What `openat2(2)` resolves, name by name: for a kernel, or a filter around lowrun, that has no such call.
//!
//! Every name is opened by a handle of its directory and never followed by the kernel; a symlink is taken apart here. A
//! directory that somebody renames meanwhile is followed where it goes, as the kernel would; `..` goes back on the way
//! that was come, never above the first directory.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::SYMLINKS;
use crate::sys::{self, Call, Failure, mount};

/// Opens `path` below `dir`, as `openat2` with `resolve` does.
pub(super) fn open(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> sys::Result<OwnedFd> {
    let mut steps = Steps { way: vec![open_dir(dir, ".")?], todo: Vec::new(), symlinks: 0, resolve };
    steps.push(path)?;
    while let Some(name) = steps.todo.pop() {
        if name == ".." {
            steps.back()?;
        } else if let Some(opened) = steps.forward(&name, flags, mode)? {
            return Ok(opened);
        }
    }
    // It is a directory that was come to by "..", or the first.
    rustix::fs::openat(steps.here(), ".", flags | OFlags::CLOEXEC, mode).call("openat")
}

struct Steps {
    /// The directories on the way, the first one first.
    way: Vec<OwnedFd>,
    /// Names to do, last one first.
    todo: Vec<OsString>,
    symlinks: usize,
    resolve: ResolveFlags,
}

impl Steps {
    fn here(&self) -> BorrowedFd<'_> {
        self.way[self.way.len() - 1].as_fd()
    }

    fn push(&mut self, path: &Path) -> sys::Result<()> {
        if path.is_absolute() {
            self.leave()?;
            self.way.truncate(1);
        }
        for component in path.components().rev() {
            match component {
                Component::Normal(name) => self.todo.push(name.to_owned()),
                Component::ParentDir => self.todo.push("..".into()),
                _ => {}
            }
        }
        Ok(())
    }

    fn back(&mut self) -> sys::Result<()> {
        if self.way.len() == 1 {
            return self.leave();
        }
        self.way.pop();
        Ok(())
    }

    /// Above the first directory there is nothing: in a root one stays, from beneath a directory one may not leave.
    fn leave(&self) -> sys::Result<()> {
        if self.resolve.contains(ResolveFlags::BENEATH) {
            return Err(Failure { call: "openat", errno: Errno::XDEV });
        }
        Ok(())
    }

    /// Goes to `name`; if that is the end, what was opened.
    fn forward(&mut self, name: &OsString, flags: OFlags, mode: Mode) -> sys::Result<Option<OwnedFd>> {
        let handle = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let entry = rustix::fs::openat(self.here(), name, handle, Mode::empty()).call("openat")?;
        self.check_mount(&entry)?;
        let is_last = self.todo.is_empty();
        let kind = rustix::fs::fstat(&entry).call("fstat")?.st_mode & libc::S_IFMT;
        if kind == libc::S_IFLNK && !(is_last && flags.contains(OFlags::NOFOLLOW)) {
            return self.follow(name).map(|()| None);
        }
        if kind != libc::S_IFDIR && (!is_last || flags.contains(OFlags::DIRECTORY)) {
            return Err(Failure { call: "openat", errno: Errno::NOTDIR });
        }
        if is_last && flags.contains(OFlags::PATH) {
            return Ok(Some(entry));
        }
        if is_last {
            return self.open_entry(&entry, name, flags, mode).map(Some);
        }
        self.way.push(entry);
        Ok(None)
    }

    /// Opens what `entry` is a handle of, by its name: somebody may have put another there meanwhile.
    fn open_entry(&self, entry: &OwnedFd, name: &OsString, flags: OFlags, mode: Mode) -> sys::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(self.here(), name, flags, mode).call("openat")?;
        let [is, was] = [&opened, entry].map(|fd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)));
        if is.call("fstat")? != was.call("fstat")? {
            return Err(Failure { call: "openat", errno: Errno::STALE });
        }
        Ok(opened)
    }

    fn follow(&mut self, name: &OsString) -> sys::Result<()> {
        self.symlinks += 1;
        if self.symlinks > SYMLINKS || self.resolve.contains(ResolveFlags::NO_SYMLINKS) {
            return Err(Failure { call: "openat", errno: Errno::LOOP });
        }
        let target = rustix::fs::readlinkat(self.here(), name, Vec::new()).call("readlinkat")?;
        // The text of a magic link is taken as a path below the first directory, so it leads nowhere else either.
        self.push(Path::new(&OsString::from_vec(target.into_bytes())))
    }

    fn check_mount(&self, entry: &OwnedFd) -> sys::Result<()> {
        if self.resolve.contains(ResolveFlags::NO_XDEV) && mount::id(entry.as_fd())? != mount::id(self.way[0].as_fd())?
        {
            return Err(Failure { call: "openat", errno: Errno::XDEV });
        }
        Ok(())
    }
}

fn open_dir(dir: BorrowedFd<'_>, name: &str) -> sys::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty()).call("openat")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT;
    const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_XDEV);

    /// A root with a file, links of all kinds, and a secret beside it.
    fn tree() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/file"), "inside").unwrap();
        std::fs::write(dir.path().join("secret"), "outside").unwrap();
        for (name, target) in [
            ("up", "../../../secret"),
            ("abs", "/a/b/file"),
            ("rel", "a/../a/b"),
            ("loop", "loop"),
            ("out", "/../secret"),
        ] {
            symlink(target, root.join(name)).unwrap();
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&root, flags, Mode::empty()).unwrap();
        (dir, root)
    }

    fn both(root: &OwnedFd, path: &str, resolve: ResolveFlags) -> [Result<u64, Errno>; 2] {
        let inode = |result: rustix::io::Result<OwnedFd>| result.map(|fd| rustix::fs::fstat(&fd).unwrap().st_ino);
        let kernels = rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
        let ours = open(root.as_fd(), Path::new(path), OFlags::PATH, Mode::empty(), resolve);
        [inode(kernels), inode(ours.map_err(|failure| failure.errno))]
    }

    #[test]
    fn it_resolves_as_the_kernel_does() {
        let (_dir, root) = tree();
        for path in [
            "/",
            ".",
            "a",
            "/a/b/file",
            "a/b/../b/file",
            "../../a",
            "up",
            "abs",
            "rel",
            "rel/file",
            "loop",
            "out",
            "none",
            "a/b/file/x",
            "a/none/x",
        ] {
            for resolve in [IN_ROOT, BENEATH, IN_ROOT | ResolveFlags::NO_SYMLINKS] {
                let [kernels, ours] = both(&root, path, resolve);
                assert_eq!(ours, kernels, "{path} with {resolve:?}");
            }
        }
    }

    #[test]
    fn what_is_exchanged_meanwhile_is_no_symlink() {
        let (dir, root) = tree();
        let [one, other] = ["root/abs", "root/a/b/file"].map(|name| dir.path().join(name));
        let done = std::sync::atomic::AtomicBool::new(false);
        let kind = |fd: OwnedFd| rustix::fs::fstat(&fd).unwrap().st_mode & libc::S_IFMT;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let flags = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(rustix::fs::CWD, &one, rustix::fs::CWD, &other, flags).unwrap();
                }
            });
            let found = (0..30_000).filter_map(|_| {
                open(root.as_fd(), Path::new("a/b/file"), OFlags::PATH, Mode::empty(), IN_ROOT).ok().map(kind)
            });
            let symlinks = found.filter(|kind| *kind == libc::S_IFLNK).count();
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(symlinks, 0);
        });
    }

    #[test]
    fn a_file_is_opened_to_be_read() {
        let (_dir, root) = tree();
        let file = open(root.as_fd(), Path::new("abs"), OFlags::RDONLY, Mode::empty(), IN_ROOT).unwrap();
        assert_eq!(std::io::read_to_string(std::fs::File::from(file)).unwrap(), "inside");
    }
}
