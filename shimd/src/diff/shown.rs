//! What mounts show, as a directory to look at. Nothing is attached anywhere, so nobody sees it and nothing can be left
//! of it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen};

use crate::error::{Error, Result};
use crate::snapshot::Mount;

/// Directories that lie on top of each other, the nearest first; none of them is an empty directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown(Vec<PathBuf>);

impl Shown {
    pub(crate) fn directory(path: PathBuf) -> Shown {
        Shown(vec![path])
    }

    pub(super) fn by(mounts: &[Mount]) -> Result<Shown> {
        let mount = match mounts {
            [] => return Ok(Shown(Vec::new())),
            [mount] => mount,
            _ => return Err(Error::invalid("mounts to compare", "there must be at most one on each side")),
        };
        let option = |key: &str| mount.options.iter().find_map(|option| option.strip_prefix(key)?.strip_prefix('='));
        match mount.kind.as_str() {
            "bind" => Ok(Shown::directory(mount.source.as_str().into())),
            "overlay" => {
                let lower = option("lowerdir").unwrap_or_default().split(':').filter(|path| !path.is_empty());
                Ok(Shown(option("upperdir").into_iter().chain(lower).map(PathBuf::from).collect()))
            }
            other => Err(Error::Unimplemented { what: format!("compare mounts of type {other:?}") }),
        }
    }

    pub(super) fn layers(&self) -> &[PathBuf] {
        &self.0
    }

    pub(super) fn open(&self) -> Result<OwnedFd> {
        match self.0.as_slice() {
            [] => mounted("tmpfs", &[]).map_err(|error| Error::io("make an empty directory", error)),
            [path] => File::open(path)
                .map(OwnedFd::from)
                .map_err(|error| Error::io(format!("open {}", path.display()), error)),
            layers => overlay(layers),
        }
    }
}

fn overlay(layers: &[PathBuf]) -> Result<OwnedFd> {
    let open = |path: &PathBuf| {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| Error::io(format!("open {}", path.display()), error))
    };
    let handles = layers.iter().map(open).collect::<Result<Vec<_>>>()?;
    // By handles: a path may be longer than an option can be, and a colon in it would divide it.
    let names: Vec<_> = handles.iter().map(|handle| format!("/proc/self/fd/{}", handle.as_raw_fd())).collect();
    let each: Vec<_> = names.iter().map(|name| ("lowerdir+", name.as_str())).collect();
    let one = match mounted("overlay", &each) {
        // Linux before 6.5 takes the layers in one option, of 255 bytes.
        Err(Errno::INVAL) => mounted("overlay", &[("lowerdir", &names.join(":"))]),
        other => other,
    };
    one.map_err(|error| Error::io(format!("look at {} layers as one", layers.len()), error))
}

/// The root of a new file system that only this handle leads to.
fn mounted(kind: &str, options: &[(&str, &str)]) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |(key, value): &(&str, &str)| fsconfig_set_string(context.as_fd(), *key, *value);
    options.iter().try_for_each(set)?;
    fsconfig_create(context.as_fd())?;
    let root = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    readable(root.as_fd())
}

/// What fsmount gives is a mere place; names are read from an open directory.
fn readable(root: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(root, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}
