//! The image's passwd and group, read from a detached read-only mount.
//!
//! The files are an attacker's: they may be symlinks to the host's, devices, FIFOs, or without end. So the image is
//! mounted where nobody sees it, the names are resolved inside that root by the kernel (`RESOLVE_IN_ROOT`, no magic
//! links), and only a regular file of a bounded size is opened at all (CVE-2024-9676, CVE-2025-4437, CVE-2026-47262).
//!
//! This is one of the two places where the engine mounts something; see ARCHITECTURE.md. All here blocks.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proto_containerd::types::Mount;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};

use crate::engine::error::Error;

/// Largest passwd or group that is read.
const FILE_MAX: u64 = 1 << 20;

/// passwd and group; each is empty where the image has none.
#[derive(Clone, Debug, Default)]
pub(crate) struct UserFiles {
    pub(crate) passwd: String,
    pub(crate) group: String,
}

/// Reads both files of an image that the supervisor would mount so.
pub(crate) fn read(mounts: &[Mount], image: &str) -> Result<UserFiles, Error> {
    let Some(mount) = mounts.first() else { return Ok(UserFiles::default()) };
    let root = mounted(mount).map_err(|error| Error::Kernel {
        attempt: format!("mount image {image} to read its passwd"),
        source: error.into(),
    })?;
    read_in(root.as_fd(), image)
}

/// Reads both files below a root.
pub(crate) fn read_in(root: BorrowedFd<'_>, image: &str) -> Result<UserFiles, Error> {
    let text = |path: &'static str| read_file(root, path).map_err(|trouble| trouble.of(path, image));
    Ok(UserFiles { passwd: text("etc/passwd")?, group: text("etc/group")? })
}

/// The image as a mount that is nowhere in the file system, gone with its descriptor.
fn mounted(mount: &Mount) -> Result<OwnedFd, Errno> {
    match mount.r#type.as_str() {
        "overlay" => overlay(lower_directories(&mount.options)),
        // One layer alone: a bind mount of its directory.
        _ => bind(&mount.source),
    }
}

fn bind(source: &str) -> Result<OwnedFd, Errno> {
    rustix::mount::open_tree(CWD, source, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
}

fn lower_directories(options: &[String]) -> Vec<&str> {
    let lower = options.iter().find_map(|option| option.strip_prefix("lowerdir="));
    lower.map(|list| list.split(':').collect()).unwrap_or_default()
}

/// The lower directories alone: without an upper one an overlay is read-only.
fn overlay(lower: Vec<&str>) -> Result<OwnedFd, Errno> {
    if let [only] = lower[..] {
        return bind(only);
    }
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    if let Err(error) = set_lower(context.as_fd(), &lower) {
        // Before Linux 6.5 directories cannot be named one by one; an option's value ends at 255 bytes, which the short
        // names of descriptors make enough for 13 layers.
        if error != Errno::INVAL {
            return Err(error);
        }
        return overlay_by_handles(&lower);
    }
    finished(context.as_fd())
}

fn set_lower(context: BorrowedFd<'_>, lower: &[&str]) -> Result<(), Errno> {
    lower.iter().try_for_each(|directory| rustix::mount::fsconfig_set_string(context, "lowerdir+", *directory))
}

fn overlay_by_handles(lower: &[&str]) -> Result<OwnedFd, Errno> {
    let open = |path: &&str| rustix::fs::open(*path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let handles: Vec<OwnedFd> = lower.iter().map(open).collect::<Result<_, _>>()?;
    let names: Vec<String> = handles.iter().map(|fd| format!("/proc/self/fd/{}", raw(fd))).collect();
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(context.as_fd(), "lowerdir", names.join(":"))?;
    finished(context.as_fd())
}

fn raw(fd: &OwnedFd) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(fd)
}

fn finished(context: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    rustix::mount::fsconfig_create(context)?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    rustix::mount::fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Why a file cannot be used.
enum Trouble {
    Untrusted(&'static str),
    Kernel(Errno),
}

impl Trouble {
    fn of(self, path: &'static str, image: &str) -> Error {
        match self {
            Trouble::Untrusted(why) => Error::UserFile { path, image: image.to_owned(), why },
            Trouble::Kernel(errno) => {
                Error::Kernel { attempt: format!("read {path} of image {image}"), source: errno.into() }
            }
        }
    }
}

fn read_file(root: BorrowedFd<'_>, path: &str) -> Result<String, Trouble> {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // A handle opens nothing: a FIFO would block, a device might act.
    let handle = match rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside) {
        Ok(handle) => handle,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(Errno::LOOP) => return Err(Trouble::Untrusted("its symbolic links lead nowhere")),
        Err(errno) => return Err(Trouble::Kernel(errno)),
    };
    let status = rustix::fs::fstat(&handle).map_err(Trouble::Kernel)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(Trouble::Untrusted("it is not a regular file"));
    }
    if status.st_size as u64 > FILE_MAX {
        return Err(Trouble::Untrusted("it is larger than 1 MiB"));
    }
    let name = format!("/proc/self/fd/{}", raw(&handle));
    let file = rustix::fs::open(name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(Trouble::Kernel)?;
    let mut bytes = Vec::new();
    let read = std::fs::File::from(file).take(FILE_MAX).read_to_end(&mut bytes);
    read.map_err(|error| Trouble::Kernel(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    // Names that are not UTF-8 are nobody's; the lines around them still count.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn rootfs() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("etc")).unwrap();
        directory
    }

    fn read_at(root: &Path) -> Result<String, Trouble> {
        let root = rustix::fs::open(root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        read_file(root.as_fd(), "etc/passwd")
    }

    #[test]
    fn a_link_to_the_hosts_file_stays_inside() {
        let root = rootfs();
        symlink("/etc/passwd", root.path().join("etc/passwd")).unwrap();
        // It points at itself, seen from inside.
        assert!(matches!(read_at(root.path()), Err(Trouble::Untrusted(_))));
        let root = rootfs();
        symlink("../../../../../../etc/group", root.path().join("etc/passwd")).unwrap();
        fs::write(root.path().join("etc/group"), "inside").unwrap();
        assert!(matches!(read_at(root.path()).as_deref(), Ok("inside")));
    }

    #[test]
    fn what_is_no_regular_file_or_too_large_is_refused_at_once() {
        let root = rootfs();
        rustix::fs::mknodat(CWD, root.path().join("etc/passwd"), FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .unwrap();
        assert!(matches!(read_at(root.path()), Err(Trouble::Untrusted("it is not a regular file"))));
        let root = rootfs();
        fs::File::create(root.path().join("etc/passwd")).unwrap().set_len(4 << 30).unwrap();
        assert!(matches!(read_at(root.path()), Err(Trouble::Untrusted("it is larger than 1 MiB"))));
    }

    #[test]
    fn what_is_not_there_is_empty() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(read_at(root.path()).as_deref(), Ok("")));
    }

    #[test]
    fn several_layers_are_read_as_one() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root to mount");
            return;
        }
        let (lower, upper) = (rootfs(), rootfs());
        fs::write(lower.path().join("etc/passwd"), "lower").unwrap();
        fs::write(lower.path().join("etc/group"), "group").unwrap();
        fs::write(upper.path().join("etc/passwd"), "upper").unwrap();
        let lowerdir = format!("lowerdir={}:{}", upper.path().display(), lower.path().display());
        let mount = Mount {
            r#type: "overlay".to_owned(),
            options: vec!["index=off".to_owned(), lowerdir],
            ..Default::default()
        };
        let files = read(std::slice::from_ref(&mount), "x").unwrap();
        assert_eq!((files.passwd.as_str(), files.group.as_str()), ("upper", "group"));
        let handles = overlay_by_handles(&lower_directories(&mount.options)).unwrap();
        assert!(matches!(read_file(handles.as_fd(), "etc/passwd").as_deref(), Ok("upper")));
    }
}
