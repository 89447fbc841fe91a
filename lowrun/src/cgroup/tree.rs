//! The cgroups that a container has made below its own: walked on handles, because their paths may be longer than a
//! system call takes, and one descriptor at a time, because they may be deeper than lowrun may have descriptors.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::sys::{self, Call, Failure};

/// How long a look at all cgroups of a container may take: who makes them ahead of the walk would keep it for ever.
const PATIENCE: Duration = Duration::from_secs(10);

/// When a look that begins now is to end.
pub(super) fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// Visits a cgroup and all below, each before its children.
pub(super) fn each(top: &Path, visit: impl FnMut(BorrowedFd<'_>) -> sys::Result<()>) -> sys::Result<()> {
    each_until(top, deadline(), visit)
}

/// As [`each`], until the deadline.
pub(super) fn each_until(
    top: &Path,
    deadline: Instant,
    mut visit: impl FnMut(BorrowedFd<'_>) -> sys::Result<()>,
) -> sys::Result<()> {
    let Some(top) = descend(rustix::fs::CWD, top)? else { return Ok(()) };
    walk(top, deadline, &mut visit, &mut |_, _| Ok(()))
}

/// As [`each_until`], of a cgroup that is held, by whatever name it goes.
pub(super) fn each_in(
    top: BorrowedFd<'_>,
    deadline: Instant,
    mut visit: impl FnMut(BorrowedFd<'_>) -> sys::Result<()>,
) -> sys::Result<()> {
    walk(open(top, ".")?, deadline, &mut visit, &mut |_, _| Ok(()))
}

/// Removes all below a cgroup, the deepest first, until the deadline.
pub(super) fn remove_below(top: &Path, deadline: Instant) -> sys::Result<()> {
    let mut remove =
        |parent: BorrowedFd<'_>, name: &CString| match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(Failure { call: "unlinkat", errno }),
        };
    let Some(top) = descend(rustix::fs::CWD, top)? else { return Ok(()) };
    walk(top, deadline, &mut |_| Ok(()), &mut remove)
}

/// `enter` gets each directory when it is come to, `leave` its parent and name when all below are done.
fn walk(
    top: OwnedFd,
    deadline: Instant,
    enter: &mut dyn FnMut(BorrowedFd<'_>) -> sys::Result<()>,
    leave: &mut dyn FnMut(BorrowedFd<'_>, &CString) -> sys::Result<()>,
) -> sys::Result<()> {
    let mut here = top;
    enter(here.as_fd())?;
    // Of each directory on the way down, what is still to be done there; the last name of each is the way.
    let mut todo = vec![children(here.as_fd())?];
    while let Some(names) = todo.last_mut() {
        if Instant::now() > deadline {
            return Err(Failure { call: "getdents64", errno: Errno::TIMEDOUT });
        }
        if let Some(name) = names.last() {
            let child = match descend(here.as_fd(), name) {
                // The container has closed it to who has no privilege over it: the others are visited all the same.
                Err(failure) if failure.errno == Errno::ACCESS => None,
                child => child?,
            };
            let Some(child) = child else {
                names.pop();
                continue;
            };
            here = child;
            enter(here.as_fd())?;
            todo.push(children(here.as_fd())?);
            continue;
        }
        todo.pop();
        let Some(name) = todo.last_mut().and_then(Vec::pop) else { break };
        here = open(here.as_fd(), "..")?;
        leave(here.as_fd(), &name)?;
    }
    Ok(())
}

/// A handle of a directory; `None` if it has gone.
fn descend(dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> sys::Result<Option<OwnedFd>> {
    match open(dir, name) {
        Err(failure) if matches!(failure.errno, Errno::NOENT | Errno::NODEV) => Ok(None),
        result => result.map(Some),
    }
}

/// A handle of a directory.
pub(super) fn open(dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> sys::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty()).call("openat")
}

fn children(dir: BorrowedFd<'_>) -> sys::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).call("getdents64")? {
        let entry = match entry {
            // It was removed meanwhile.
            Err(Errno::NOENT | Errno::NODEV) => break,
            entry => entry.call("getdents64")?,
        };
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_visited_once_and_all_below_go() {
        let top = tempfile::tempdir().unwrap();
        for dir in ["a/b/c", "a/d", "e"] {
            std::fs::create_dir_all(top.path().join(dir)).unwrap();
        }
        let mut count = 0;
        each(top.path(), |_| {
            count += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(count, 6);
        remove_below(top.path(), Instant::now() + PATIENCE).unwrap();
        assert!(top.path().is_dir() && top.path().read_dir().unwrap().next().is_none());
        each(&top.path().join("none"), |_| unreachable!()).unwrap();
    }

    #[test]
    fn one_that_may_not_be_opened_is_passed_over() {
        const OVERRIDES: u64 = 1 << 1 | 1 << 2;
        let top = tempfile::tempdir().unwrap();
        for dir in ["a", "b", "c"] {
            std::fs::create_dir(top.path().join(dir)).unwrap();
        }
        let closed = std::os::unix::fs::PermissionsExt::from_mode(0o0);
        std::fs::set_permissions(top.path().join("b"), closed).unwrap();
        let sets = sys::caps::capget().unwrap();
        // Of this thread alone.
        sys::caps::capset(sys::caps::Sets { effective: sets.effective & !OVERRIDES, ..sets }).unwrap();
        let mut count = 0;
        each(top.path(), |_| {
            count += 1;
            Ok(())
        })
        .unwrap();
        sys::caps::capset(sets).unwrap();
        assert_eq!(count, 3);
    }

    #[test]
    fn who_makes_them_ahead_of_the_walk_does_not_keep_it() {
        let top = tempfile::tempdir().unwrap();
        let mut grow = |dir: BorrowedFd<'_>| rustix::fs::mkdirat(dir, "d", Mode::from_raw_mode(0o700)).call("mkdirat");
        let begun = Instant::now();
        let deadline = begun + Duration::from_millis(50);
        let failure =
            walk(open(rustix::fs::CWD, top.path()).unwrap(), deadline, &mut grow, &mut |_, _| Ok(())).unwrap_err();
        assert_eq!(failure.errno, Errno::TIMEDOUT);
        assert!(begun.elapsed() < PATIENCE / 2);
        remove_below(top.path(), Instant::now() + PATIENCE).unwrap();
    }

    #[test]
    fn neither_paths_nor_descriptors_bound_the_depth() {
        let top = tempfile::tempdir().unwrap();
        let mut here = open(rustix::fs::CWD, top.path()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&here, "d", Mode::from_raw_mode(0o700)).unwrap();
            here = open(here.as_fd(), "d").unwrap();
        }
        let mut count = 0;
        each(top.path(), |_| {
            count += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(count, 3001);
        remove_below(top.path(), Instant::now() + PATIENCE).unwrap();
        assert!(top.path().read_dir().unwrap().next().is_none());
    }
}
