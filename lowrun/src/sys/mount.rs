//! The mount API of Linux 5.2 and 5.12: mounts are made detached, as descriptors, and attached to a handle, so that no
//! path can be swapped under them. Where a filter denies it, they are made on a [`stage`].

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use super::{Call, Failure, Result, check, mount_old, stage};

pub const MOUNT_ATTR_RDONLY: u64 = 0x1;
pub const MOUNT_ATTR_NOSUID: u64 = 0x2;
pub const MOUNT_ATTR_NODEV: u64 = 0x4;
pub const MOUNT_ATTR_NOEXEC: u64 = 0x8;
pub const MOUNT_ATTR_ATIME_MASK: u64 = 0x70;
pub const MOUNT_ATTR_RELATIME: u64 = 0x0;
pub const MOUNT_ATTR_NOATIME: u64 = 0x10;
pub const MOUNT_ATTR_STRICTATIME: u64 = 0x20;
pub const MOUNT_ATTR_NODIRATIME: u64 = 0x80;
pub const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;
pub const MOUNT_ATTR_NOSYMFOLLOW: u64 = 0x20_0000;

/// `struct mount_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountAttr {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear; setting an access time mode needs the whole mask here.
    pub clear: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE` or 0.
    pub propagation: u64,
    /// The user namespace of an id-mapped mount.
    pub userns_fd: u64,
}

/// Changes a mount; `recursive` also all below it.
pub fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> Result<()> {
    setattr_at(mount.as_raw_fd(), c"", libc::AT_EMPTY_PATH, recursive, attr)
}

/// Changes the mount that `path` is the root of.
pub fn mount_setattr_path(path: &CStr, recursive: bool, attr: &MountAttr) -> Result<()> {
    setattr_at(libc::AT_FDCWD, path, 0, recursive, attr)
}

fn setattr_at(dir: i32, path: &CStr, flags: i32, recursive: bool, attr: &MountAttr) -> Result<()> {
    let at_flags = flags | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `path` ends in NUL, `attr` has the kernel's layout, and both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir,
            path.as_ptr(),
            at_flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    match check("mount_setattr", result) {
        // What the kernel itself denies, the old call is denied as well: its word is the kernel's, whatever a filter says.
        Err(refusal) if matches!(refusal.errno, Errno::NOSYS | Errno::PERM) => match path.is_empty() {
            true => mount_old::setattr(dir, recursive, attr).map_err(|own| match own.errno {
                // Not attached yet, perhaps: the caller tries again when it is. Or not for the old call at all.
                Errno::INVAL | Errno::NOSYS => refusal,
                _ => own,
            }),
            false => mount_old::setattr_path(path, recursive, attr),
        },
        result => result.map(drop),
    }
}

/// The number of the mount that a handle leads to, of its own until the mount has gone (Linux 5.8).
pub fn id(handle: BorrowedFd<'_>) -> Result<u64> {
    rustix::fs::statx(handle, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).call("statx").map(|stat| stat.stx_mnt_id)
}

/// Whether a mount must be attached for its attributes to be changed.
pub fn needs_attached(failure: &Failure) -> bool {
    matches!(failure.errno, Errno::NOSYS | Errno::PERM)
}

/// Maps the ids of a detached mount, and if `recursive` of all below, as the user namespace does (Linux 5.12).
pub fn map_ids(mount: BorrowedFd<'_>, recursive: bool, namespace: BorrowedFd<'_>) -> Result<()> {
    let userns_fd = namespace.as_raw_fd() as u64;
    mount_setattr(mount, recursive, &MountAttr { set: MOUNT_ATTR_IDMAP, userns_fd, ..MountAttr::default() })
}

/// A detached copy of the mount at `path` (relative to `dir`, following a last symlink) with, if `recursive`, all below.
fn clone_tree(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let flags = if recursive { flags | OpenTreeFlags::AT_RECURSIVE } else { flags };
    rustix::mount::open_tree(dir, path, flags).call("open_tree")
}

/// As `clone_tree`, of a path of the process's own root.
pub fn clone_path(path: &Path, recursive: bool) -> Result<OwnedFd> {
    if stage::makes_clones() {
        return stage::clone(open_source(path)?.as_fd(), recursive);
    }
    clone_tree(CWD, path, recursive)
}

/// A handle of what is to be copied, where the copy must wait until there is a stage.
pub fn open_source(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).call("open")
}

/// As `clone_tree`, of what a handle refers to.
pub fn clone_handle(handle: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd> {
    if stage::makes_clones() {
        return stage::clone(handle, recursive);
    }
    clone_tree(handle, Path::new(""), recursive)
}

/// Attaches a detached mount to what `target` refers to.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    stage::attach(mount, target, || rustix::mount::move_mount(mount, "", target, "", flags).call("move_mount"))
}

/// As [`attach`], to a directory in one that nobody but the caller can change.
pub fn attach_at(mount: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    if stage::makes_clones() || stage::makes_filesystems() {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = rustix::fs::openat(dir, name, flags, Mode::empty()).call("openat")?;
        return attach(mount, place.as_fd());
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", dir, name, flags).call("move_mount")
}

/// One option of a file system.
pub enum FsOption<'a> {
    /// `ro`, `newinstance`.
    Flag(&'a str),
    /// `mode=755`.
    Value(&'a str, &'a str),
}

/// A detached new file system with mount attributes `attr` (`MOUNT_ATTR_*`).
///
/// The kernel's own words about a refused option, where it left some, come back with the failure.
pub fn new_filesystem(
    fstype: &str,
    source: &str,
    options: &[FsOption<'_>],
    attr: u64,
) -> std::result::Result<OwnedFd, (Failure, Option<String>)> {
    if stage::makes_filesystems() {
        return stage::new_filesystem(fstype, source, options, attr).map_err(|failure| (failure, None));
    }
    let context = rustix::mount::fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC).call("fsopen").map_err(|e| (e, None))?;
    configure(context.as_fd(), source, options).map_err(|failure| (failure, kernel_words(context.as_fd())))?;
    let attr = MountAttrFlags::from_bits_retain(attr as u32);
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attr)
        .call("fsmount")
        .map_err(|failure| (failure, kernel_words(context.as_fd())))
}

fn configure(context: BorrowedFd<'_>, source: &str, options: &[FsOption<'_>]) -> Result<()> {
    if !source.is_empty() {
        rustix::mount::fsconfig_set_string(context, "source", source).call("fsconfig(source)")?;
    }
    for option in options {
        match option {
            FsOption::Flag(name) => rustix::mount::fsconfig_set_flag(context, *name),
            FsOption::Value(name, value) => rustix::mount::fsconfig_set_string(context, *name, *value),
        }
        .call("fsconfig")?;
    }
    rustix::mount::fsconfig_create(context).call("fsconfig(create)")
}

/// The last message that the kernel left in a file system context, without its severity letter.
fn kernel_words(context: BorrowedFd<'_>) -> Option<String> {
    let mut last = None;
    let mut buffer = [0_u8; 1024];
    while let Ok(length) = rustix::io::read(context, &mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]);
        last = Some(text.trim_start_matches(['e', 'w', 'i', ' ']).trim_end().to_owned());
    }
    last.filter(|text| !text.is_empty())
}

/// A directory in a file system that nobody but the caller can change, where new file systems are to be mounted; the
/// working directory is another until it is dropped.
///
/// In it a file system is mounted by one `mount(2)`, in the place of the six and more calls of [`new_filesystem`] and
/// [`attach_at`], which cost some 4 µs more. But there is no handle, and no word about what was wrong: who is refused
/// tries again in that way.
pub struct Visit<'d> {
    dir: BorrowedFd<'d>,
    home: OwnedFd,
}

impl<'d> Visit<'d> {
    pub fn new(dir: BorrowedFd<'d>) -> Result<Visit<'d>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let home = rustix::fs::open(c".", flags, Mode::empty()).call("open")?;
        Ok(Visit { dir, home })
    }

    /// Mounts a new file system on the directory `name`.
    pub fn mount(
        &self,
        name: &OsStr,
        (fstype, source): (&str, &str),
        options: &[FsOption<'_>],
        attr: u64,
    ) -> Result<()> {
        let has_comma = |option: &FsOption<'_>| matches!(option, FsOption::Value(_, value) if value.contains(','));
        let (data, superblock) = stage::data(options)?;
        // As flags of `mount(2)`, read-only would be the file system's, too, which may be another's as well, and some
        // words would be taken that the newer calls refuse; and a comma there ends an option.
        if attr & MOUNT_ATTR_RDONLY != 0 || superblock != 0 || options.iter().any(has_comma) {
            return Err(Failure { call: "mount", errno: Errno::INVAL });
        }
        // Each time: what is done in between, on a stage, has working directories of its own.
        rustix::process::fchdir(self.dir).call("fchdir")?;
        rustix::mount::mount(source, name, fstype, mount_old::flags_of(attr), data.as_c_str()).call("mount")
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        // A directory that was left can be gone back to, whatever became of it.
        let _ = rustix::process::fchdir(&self.home);
    }
}
