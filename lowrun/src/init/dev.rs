//! What a container finds in `/dev`: nodes, links, the terminal multiplexer.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, makedev};
use rustix::io::Errno;

use super::Setup;
use crate::fault::{Attempt, Code, Fault, Result};
use crate::path::{self, Root};
use crate::plan::devices::DeviceNode;
use crate::plan::namespaces::Kind;
use crate::sys::{self, Call, Failure, mount};

/// Links of `/dev`: name and target.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
];

/// Whether it is the null device.
pub(super) fn is_null(stat: &Stat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == makedev(1, 3)
}

/// Fills `/dev`.
pub(super) fn populate(root: &Root, setup: &Setup<'_>) -> Result<()> {
    let dev = root.make_dirs(Path::new("/dev"), 0o755).attempt(Code::RootfsUnsafe, || "open /dev")?;
    for node in &setup.plan.devices {
        // pts/ptmx takes its place.
        if node.path != Path::new("/dev/ptmx") {
            make_node(root, dev.as_fd(), node, setup)
                .attempt(Code::MountFailed, || format!("make the device {}", node.path.display()))?;
        }
    }
    make_links(dev.as_fd(), setup.proc.as_fd())
}

fn make_links(dev: BorrowedFd<'_>, proc: BorrowedFd<'_>) -> Result<()> {
    for (name, target) in LINKS {
        let wanted = name != "core" || path::stat_at(proc, OsStr::new("kcore")).is_ok();
        if wanted {
            link(dev, name, target)?;
        }
    }
    // What an image has there would be the host's terminals.
    match rustix::fs::unlinkat(dev, "ptmx", AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => link(dev, "ptmx", "pts/ptmx"),
        Err(errno) => Err(Fault::of(Code::MountFailed, "remove /dev/ptmx", Failure { call: "unlinkat", errno })),
    }
}

fn link(dev: BorrowedFd<'_>, name: &str, target: &str) -> Result<()> {
    match rustix::fs::symlinkat(target, dev, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => {
            Err(Fault::of(Code::MountFailed, format!("link /dev/{name}"), Failure { call: "symlinkat", errno }))
        }
    }
}

fn make_node(root: &Root, dev: BorrowedFd<'_>, node: &DeviceNode, setup: &Setup<'_>) -> sys::Result<()> {
    let elsewhere: OwnedFd;
    let (dir, name) = match node.path.strip_prefix("/dev") {
        Ok(name) if name.components().count() == 1 => (dev, name.as_os_str()),
        _ => {
            let (parent, name) = root.make_parent(&node.path)?;
            elsewhere = parent;
            (elsewhere.as_fd(), name)
        }
    };
    // A user namespace has no right to make nodes that count: the host's are bound there.
    if setup.plan.namespaces.has(Kind::User) {
        return bind_node(dir, name, &node.path);
    }
    let kind = FileType::from_raw_mode(node.mode);
    match rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(node.mode), makedev(node.major, node.minor)) {
        Ok(()) if node.uid != 0 || node.gid != 0 => own_node(dir, name, node),
        // What the spec mounted there, or the image brought along where /dev is a part of it.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(Errno::PERM) => bind_node(dir, name, &node.path),
        Err(errno) => Err(Failure { call: "mknodat", errno }),
    }
}

/// Gives a new node its owner, by a handle that is checked to be the node.
fn own_node(dir: BorrowedFd<'_>, name: &OsStr, node: &DeviceNode) -> sys::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(dir, name, flags, Mode::empty()).call("openat")?;
    let stat = path::stat(made.as_fd())?;
    let same_device = node.mode & libc::S_IFMT == libc::S_IFIFO || stat.st_rdev == makedev(node.major, node.minor);
    if stat.st_mode & libc::S_IFMT != node.mode & libc::S_IFMT || !same_device {
        return Err(Failure { call: "openat", errno: Errno::STALE });
    }
    let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
    rustix::fs::chownat(&made, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).call("fchownat")
}

fn bind_node(dir: BorrowedFd<'_>, name: &OsStr, host: &Path) -> sys::Result<()> {
    let tree = mount::clone_path(host, false)?;
    let flags = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty()).call("openat")?;
    let place = rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    mount::attach(tree.as_fd(), place.call("openat")?.as_fd())
}
