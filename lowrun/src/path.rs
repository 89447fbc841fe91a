//! Paths inside a container's root file system, resolved on handles.
//!
//! Who made the image or shares a volume may put a symlink anywhere and may swap one in at any time. So a path is
//! never joined to a host path: the kernel resolves it below a handle of the root (`openat2` with `RESOLVE_IN_ROOT`
//! and no magic links), and what is made, is made in a directory that is held by a handle, under a single name.

mod by_hand;

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::sys::{self, Call, Failure, stage};

/// How often a resolution is tried again that a rename somewhere on the machine disturbed (`EAGAIN`). runc measured
/// 0.12 % of spurious failures at 128 under a racing attacker.
const TRIES: usize = 512;
/// Longest chain of symlinks, as the kernel's.
const SYMLINKS: usize = 40;

/// Longest path that a system call takes, in bytes.
pub const PATH_MAX: usize = 4095;
/// What is said of a longer one.
pub const TOO_LONG: &str = "longer than the 4095 bytes of a path";

/// Handle of a directory that paths are resolved in as if it were `/`.
pub struct Root {
    fd: OwnedFd,
}

impl Root {
    /// Takes a handle of a directory.
    pub fn new(fd: OwnedFd) -> Root {
        Root { fd }
    }

    /// The handle.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// An `O_PATH` handle of what `path` leads to, symlinks followed within the root.
    pub fn resolve(&self, path: &Path) -> sys::Result<OwnedFd> {
        self.open(path, OFlags::PATH)
    }

    /// Opens what `path` leads to.
    pub fn open(&self, path: &Path, flags: OFlags) -> sys::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
        openat2(self.fd(), path, flags, Mode::empty(), resolve)
    }

    /// A handle of the directory `path`; what is missing of it is made, also where a symlink points to.
    pub fn make_dirs(&self, path: &Path, mode: u32) -> sys::Result<OwnedFd> {
        match self.open(path, OFlags::PATH | OFlags::DIRECTORY) {
            Err(failure) if failure.errno == Errno::NOENT => self.make_missing_dirs(path, mode),
            result => result,
        }
    }

    /// As [`Root::make_dirs`], of a path that was just found missing.
    pub fn make_missing_dirs(&self, path: &Path, mode: u32) -> sys::Result<OwnedFd> {
        // Mostly it is the last name that is missing; a symlink there, or more, is for the walk.
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
            && let Ok(dir) = self.open(parent, OFlags::PATH | OFlags::DIRECTORY)
            && rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(mode)).is_ok()
        {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            return rustix::fs::openat(&dir, name, flags, Mode::empty()).call("openat");
        }
        Walk::new(self, path).make_dirs(mode)
    }

    /// A handle of the directory of `path` (made if missing) and the last name of `path`.
    pub fn make_parent<'p>(&self, path: &'p Path) -> sys::Result<(OwnedFd, &'p OsStr)> {
        let name = path.file_name().ok_or(Failure { call: "openat2", errno: Errno::INVAL })?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        Ok((self.make_dirs(parent, 0o755)?, name))
    }

    /// A handle of the regular file `path`, made empty if it is missing.
    pub fn make_file(&self, path: &Path) -> sys::Result<OwnedFd> {
        let (parent, name) = self.make_parent(path)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
            Ok(_) => self.resolve(path),
            // Something came there since the caller looked, and is taken as it resolves now; or it is a symlink that
            // leads to nothing yet.
            Err(Errno::EXIST) => match self.resolve(path) {
                Err(failure) if failure.errno == Errno::NOENT => Walk::new(self, path).make_file(),
                result => result,
            },
            Err(errno) => Err(Failure { call: "openat", errno }),
        }
    }
}

/// `openat2(2)`, tried again while renames disturb it, and done by hand where it is denied, or where its `..` would lead
/// from the container's root to the stage above it.
pub fn openat2(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> sys::Result<OwnedFd> {
    if stage::is_up() && resolve.contains(ResolveFlags::IN_ROOT) {
        return by_hand::open(dir, path, flags, mode, resolve);
    }
    for _ in 0..TRIES {
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::NOSYS | Errno::PERM) => return by_hand::open(dir, path, flags, mode, resolve),
            result => return result.call("openat2"),
        }
    }
    Err(Failure { call: "openat2", errno: Errno::AGAIN })
}

/// The walk that makes missing directories, name by name.
struct Walk<'r> {
    root: &'r Root,
    /// What was resolved so far, from the root, without symlinks at its end.
    done: PathBuf,
    /// What is still to do, last name first.
    todo: Vec<Vec<u8>>,
    symlinks: usize,
}

impl<'r> Walk<'r> {
    fn new(root: &'r Root, path: &Path) -> Walk<'r> {
        let mut walk = Walk { root, done: PathBuf::from("/"), todo: Vec::new(), symlinks: 0 };
        walk.push(path);
        walk
    }

    fn push(&mut self, path: &Path) {
        for component in path.components().rev() {
            match component {
                Component::Normal(name) => self.todo.push(name.as_bytes().to_vec()),
                Component::ParentDir => self.todo.push(b"..".to_vec()),
                _ => {}
            }
        }
    }

    fn make_dirs(mut self, mode: u32) -> sys::Result<OwnedFd> {
        let mut dir = self.root.open(Path::new("/"), OFlags::PATH | OFlags::DIRECTORY)?;
        while let Some(name) = self.todo.pop() {
            dir = self.make_dir(&dir, &name, mode)?;
        }
        Ok(dir)
    }

    /// The directories, and a file of the last name: wherever symlinks lead.
    fn make_file(mut self) -> sys::Result<OwnedFd> {
        let mut dir = self.root.open(Path::new("/"), OFlags::PATH | OFlags::DIRECTORY)?;
        while let Some(name) = self.todo.pop() {
            if !self.todo.is_empty() || name == b".." {
                dir = self.make_dir(&dir, &name, 0o755)?;
                continue;
            }
            let name = OsStr::from_bytes(&name);
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o644)) {
                Ok(_) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(Failure { call: "openat", errno }),
            }
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let entry = rustix::fs::openat(&dir, name, flags, Mode::empty()).call("openat")?;
            if rustix::fs::fstat(&entry).call("fstat")?.st_mode & libc::S_IFMT != libc::S_IFLNK {
                return Ok(entry);
            }
            dir = self.follow(&dir, name)?;
        }
        Err(Failure { call: "openat", errno: Errno::ISDIR })
    }

    fn make_dir(&mut self, dir: &OwnedFd, name: &[u8], mode: u32) -> sys::Result<OwnedFd> {
        if name == b".." {
            self.done.pop();
            return self.root.open(&self.done, OFlags::PATH | OFlags::DIRECTORY);
        }
        let name = OsStr::from_bytes(name);
        match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(Errno::EXIST) => self.enter(dir, name),
            Err(errno) => Err(Failure { call: "mkdirat", errno }),
        }
    }

    /// A handle of `name` in `dir`; a symlink is not followed by the kernel but taken apart into the names to do.
    fn enter(&mut self, dir: &OwnedFd, name: &OsStr) -> sys::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let entry = rustix::fs::openat(dir, name, flags, Mode::empty()).call("openat")?;
        let kind = rustix::fs::fstat(&entry).call("fstat")?.st_mode & libc::S_IFMT;
        match kind {
            libc::S_IFDIR => {
                self.done.push(name);
                // Cross a mount that sits on the directory, which O_NOFOLLOW does too: the handle is its root already.
                Ok(entry)
            }
            libc::S_IFLNK => self.follow(dir, name),
            _ => Err(Failure { call: "openat", errno: Errno::NOTDIR }),
        }
    }

    fn follow(&mut self, dir: &OwnedFd, name: &OsStr) -> sys::Result<OwnedFd> {
        self.symlinks += 1;
        if self.symlinks > SYMLINKS {
            return Err(Failure { call: "openat2", errno: Errno::LOOP });
        }
        let target = rustix::fs::readlinkat(dir, name, Vec::new()).call("readlinkat")?;
        let target = Path::new(OsStr::from_bytes(target.as_bytes())).to_owned();
        self.push(&target);
        if target.is_absolute() {
            self.done = PathBuf::from("/");
        }
        self.root.open(&self.done.clone(), OFlags::PATH | OFlags::DIRECTORY)
    }
}

/// `path` from the root, without `.`, `..` and doubled slashes, by its text alone.
pub fn clean(path: &str) -> PathBuf {
    let is_name = |part: &str| !matches!(part, "" | "." | "..");
    if path.strip_prefix('/').is_some_and(|below| below.split('/').all(is_name)) {
        return PathBuf::from(path);
    }
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}

/// Opens `/proc` of the host and checks that it is the root of a procfs: what is written below the handle then reaches
/// the kernel and nothing else.
pub fn open_proc() -> sys::Result<OwnedFd> {
    const PROC_ROOT_INODE: u64 = 1;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", flags, Mode::empty()).call("open")?;
    let kind = rustix::fs::fstatfs(&proc).call("fstatfs")?.f_type;
    let inode = rustix::fs::fstat(&proc).call("fstat")?.st_ino;
    if kind != rustix::fs::PROC_SUPER_MAGIC || inode != PROC_ROOT_INODE {
        return Err(Failure { call: "open_proc", errno: Errno::NODEV });
    }
    Ok(proc)
}

/// Opens a file below a procfs handle: no symlink, no magic link, nothing mounted over it.
pub fn open_in_proc(proc: BorrowedFd<'_>, path: &str, flags: OFlags) -> sys::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    openat2(proc, Path::new(path), flags | OFlags::NOFOLLOW, Mode::empty(), resolve)
}

/// The numbers of this process's descriptors.
pub fn descriptors(proc: BorrowedFd<'_>) -> sys::Result<Vec<u32>> {
    let dir = open_in_proc(proc, "self/fd", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let entries = rustix::fs::Dir::read_from(&dir).call("getdents64")?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str().ok()?.parse().ok());
    Ok(names.collect())
}

/// Has no program that is started from now on inherit a descriptor from `first` on; `proc` is procfs, if it is at hand.
pub fn close_on_exec_from(first: u32, proc: Option<BorrowedFd<'_>>) {
    sys::process::close_on_exec_from(first, || match proc {
        Some(proc) => descriptors(proc),
        None => descriptors(open_proc()?.as_fd()),
    });
}

/// Writes `text` in one go to a file below a procfs handle.
pub fn write_in_proc(proc: BorrowedFd<'_>, path: &str, text: &str) -> sys::Result<()> {
    let file = open_in_proc(proc, path, OFlags::WRONLY)?;
    rustix::io::write(&file, text.as_bytes()).call("write").map(drop)
}

/// The mode and device of what a handle refers to.
pub fn stat(handle: BorrowedFd<'_>) -> sys::Result<rustix::fs::Stat> {
    rustix::fs::fstat(handle).call("fstat")
}

/// As [`stat`], of a name in a directory, not following a symlink.
pub fn stat_at(dir: BorrowedFd<'_>, name: &OsStr) -> sys::Result<rustix::fs::Stat> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).call("fstatat")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root(dir: &Path) -> Root {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        Root::new(rustix::fs::open(dir, flags, Mode::empty()).unwrap())
    }

    #[test]
    fn text_is_cleaned_without_leaving_the_root() {
        for (path, cleaned) in
            [("", "/"), ("a", "/a"), ("/a/../../b", "/b"), ("//a/./b/", "/a/b"), ("../../etc", "/etc")]
        {
            assert_eq!(clean(path), Path::new(cleaned), "{path}");
        }
    }

    #[test]
    fn absolute_and_climbing_symlinks_stay_in_the_root() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("absolute")).unwrap();
        symlink("../../../../../..", dir.path().join("climbing")).unwrap();
        let root = root(dir.path());
        root.make_dirs(Path::new("/absolute/made"), 0o755).unwrap();
        root.make_dirs(Path::new("/climbing/up"), 0o755).unwrap();
        assert!(outside.path().read_dir().unwrap().next().is_none(), "nothing is made outside");
        assert!(dir.path().join("up").is_dir());
        let inside = dir.path().join(outside.path().strip_prefix("/").unwrap()).join("made");
        assert!(inside.is_dir(), "the link's target is made inside");
    }

    #[test]
    fn dangling_relative_links_are_made_and_loops_end() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("var")).unwrap();
        symlink("../run", dir.path().join("var/run")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        let root = root(dir.path());
        root.make_dirs(Path::new("/var/run/lock"), 0o755).unwrap();
        assert!(dir.path().join("run/lock").is_dir());
        assert_eq!(root.make_dirs(Path::new("/loop/x"), 0o755).unwrap_err().errno, Errno::LOOP);
    }

    #[test]
    fn a_file_is_made_where_dangling_links_lead() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        symlink("/tmp/foo", dir.path().join("jump")).unwrap();
        symlink("/jump/baz/hosts", dir.path().join("etc/hosts")).unwrap();
        symlink("again", dir.path().join("again")).unwrap();
        let root = root(dir.path());
        root.make_file(Path::new("/etc/hosts")).unwrap();
        assert!(dir.path().join("tmp/foo/baz/hosts").is_file());
        assert_eq!(root.make_file(Path::new("/again")).unwrap_err().errno, Errno::LOOP);
    }

    #[test]
    fn a_file_is_made_once_and_no_directory_grows_through_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(dir.path());
        root.make_file(Path::new("/a/b/file")).unwrap();
        assert!(dir.path().join("a/b/file").is_file());
        assert_eq!(root.make_dirs(Path::new("/a/b/file/c"), 0o755).unwrap_err().errno, Errno::NOTDIR);
    }

    #[test]
    fn proc_is_the_real_one() {
        let proc = open_proc().unwrap();
        assert!(open_in_proc(proc.as_fd(), "sys/kernel/hostname", OFlags::RDONLY).is_ok());
        assert!(open_in_proc(proc.as_fd(), "self/cwd/x", OFlags::RDONLY).is_err());
    }
}
