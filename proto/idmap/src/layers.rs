//! Layers of an overlay, each shown through a mapping.
//!
//! The mounts of them are there while the overlay is made, which keeps what it needs. They are detached and named by their
//! descriptors; kernels before 6.15 take only such as have a place, and get one for the moment.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::{Mapping, clone_of, sys};

/// Calls `mount` with names under which `layers` are shown through `mapping`, short ones. Where the kernel wants them at a
/// place, that is `scratch`, a directory that is not there, and `mount` is called a second time.
///
/// # Errors
/// What `mount` says, or why the layers cannot be shown so.
pub fn with_mapped_layers(
    layers: &[&str],
    mapping: &Mapping,
    scratch: &Path,
    mut mount: impl FnMut(&[String]) -> io::Result<()>,
) -> io::Result<()> {
    let namespace = mapping.user_namespace()?;
    let mapped = |layer: &&str| {
        let clone = clone_of(Path::new(layer), OpenTreeFlags::empty())?;
        sys::map_ids(clone.as_fd(), namespace.as_fd(), sys::Extent::Layer)?;
        Ok(clone)
    };
    let clones: Vec<OwnedFd> = layers.iter().map(mapped).collect::<io::Result<_>>()?;
    let names: Vec<String> = clones.iter().map(|clone| format!("/proc/self/fd/{}", clone.as_raw_fd())).collect();
    match mount(&names) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let attached = Attached::at(scratch, &clones)?;
            mount(&attached.names)
        }
        mounted => mounted,
    }
}

/// Takes off what somebody who was killed left mounted at `scratch`.
pub fn forget_layers(scratch: &Path) {
    let Ok(entries) = std::fs::read_dir(scratch) else { return };
    entries.flatten().for_each(|entry| forget(&entry.path()));
    let _ = std::fs::remove_dir(scratch);
}

fn forget(layer: &Path) {
    // One that is not mounted any more is a directory to be removed all the same; one that still is stays.
    let _ = rustix::mount::unmount(layer, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    let _ = std::fs::remove_dir(layer);
}

/// Mounts that have a place while this is there.
struct Attached {
    names: Vec<String>,
    /// By which they are named.
    _directory: OwnedFd,
    place: PathBuf,
}

impl Attached {
    fn at(place: &Path, clones: &[OwnedFd]) -> io::Result<Attached> {
        rustix::fs::mkdir(place, Mode::RWXU)?;
        let directory = rustix::fs::open(place, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let directory = directory.inspect_err(|_| drop(std::fs::remove_dir(place)))?;
        let name = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let mut attached = Attached { names: Vec::new(), _directory: directory, place: place.to_owned() };
        for (number, clone) in clones.iter().enumerate() {
            let target = place.join(number.to_string());
            rustix::fs::mkdir(&target, Mode::RWXU)?;
            attached.names.push(format!("{name}/{number}"));
            rustix::mount::move_mount(clone, "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        }
        Ok(attached)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        forget_layers(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use rustix::mount::MountFlags;

    use super::*;

    /// Two layers of which one covers a file of the other, mounted at `merged`; how often it was tried.
    fn mount_two(directory: &Path, refuse_first: bool) -> usize {
        for (layer, text) in [("one", "covered"), ("two", "seen")] {
            std::fs::create_dir(directory.join(layer)).unwrap();
            std::fs::write(directory.join(layer).join("file"), text).unwrap();
        }
        std::fs::create_dir(directory.join("merged")).unwrap();
        let layers = ["two", "one"].map(|layer| directory.join(layer).display().to_string());
        let mapping = Mapping::parse("0:7000:10", "0:8000:10").unwrap();
        let mut tries = 0;
        let mount = |names: &[String]| {
            tries += 1;
            if refuse_first && tries == 1 {
                return Err(crate::invalid());
            }
            let data = std::ffi::CString::new(format!("lowerdir={}", names.join(":"))).unwrap();
            let merged = directory.join("merged");
            Ok(rustix::mount::mount("overlay", &merged, "overlay", MountFlags::RDONLY, data.as_c_str())?)
        };
        with_mapped_layers(&layers.each_ref().map(String::as_str), &mapping, &directory.join("scratch"), mount)
            .unwrap();
        tries
    }

    #[test]
    fn an_overlay_of_mapped_layers_by_either_way() {
        for refuse_first in [false, true] {
            let directory = tempfile::tempdir().unwrap();
            if !rustix::process::geteuid().is_root() || !crate::is_supported(directory.path()) {
                eprintln!("skipped: mapping a mount needs root and Linux 5.19");
                return;
            }
            assert!(mount_two(directory.path(), refuse_first) <= 2);
            let file = directory.path().join("merged/file");
            let (owner, text) = (std::fs::metadata(&file).unwrap(), std::fs::read_to_string(&file).unwrap());
            rustix::mount::unmount(directory.path().join("merged"), UnmountFlags::empty()).unwrap();
            assert_eq!((owner.uid(), owner.gid(), text.as_str()), (7000, 8000, "seen"));
            assert!(!directory.path().join("scratch").exists());
            let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
            assert!(!mounts.contains(&directory.path().display().to_string()), "{mounts}");
        }
    }
}
