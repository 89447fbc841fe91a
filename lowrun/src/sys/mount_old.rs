//! `mount(2)` in the place of `mount_setattr(2)`: before Linux 5.12, or under a filter that denies it.
//!
//! It changes attached mounts only, one at a time, and takes paths: those of descriptors in a verified procfs.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};

use super::mount::{
    MOUNT_ATTR_ATIME_MASK, MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY, MOUNT_ATTR_STRICTATIME, MountAttr,
};
use super::{Call, Failure, Result};

/// Descriptor of the host's procfs in the container side; it lives until the program is executed.
static PROC: AtomicI32 = AtomicI32::new(-1);

/// `MS_NOSYMFOLLOW` and `ST_NOSYMFOLLOW` (Linux 5.10).
const NOSYMFOLLOW: (MountFlags, StatVfsMountFlags) =
    (MountFlags::from_bits_retain(1 << 8), StatVfsMountFlags::from_bits_retain(1 << 13));

/// Attributes that are flags, in both forms.
const FLAGS: [(u64, MountFlags, StatVfsMountFlags); 6] = [
    (MOUNT_ATTR_RDONLY, MountFlags::RDONLY, StatVfsMountFlags::RDONLY),
    (MOUNT_ATTR_NOSUID, MountFlags::NOSUID, StatVfsMountFlags::NOSUID),
    (MOUNT_ATTR_NODEV, MountFlags::NODEV, StatVfsMountFlags::NODEV),
    (MOUNT_ATTR_NOEXEC, MountFlags::NOEXEC, StatVfsMountFlags::NOEXEC),
    (MOUNT_ATTR_NODIRATIME, MountFlags::NODIRATIME, StatVfsMountFlags::NODIRATIME),
    (MOUNT_ATTR_NOSYMFOLLOW, NOSYMFOLLOW.0, NOSYMFOLLOW.1),
];

/// Says where the container side finds its descriptors by path; `proc` must stay open.
pub fn remember_proc(proc: BorrowedFd<'_>) {
    PROC.store(proc.as_raw_fd(), Ordering::Relaxed);
}

/// Makes that procfs the working directory: a path of a descriptor begins there.
pub(super) fn enter_proc() -> Result<()> {
    let proc = PROC.load(Ordering::Relaxed);
    if proc == -1 {
        return Err(Failure { call: "mount", errno: Errno::NOSYS });
    }
    // SAFETY: `remember_proc` was given a descriptor that stays open.
    rustix::process::fchdir(unsafe { BorrowedFd::borrow_raw(proc) }).call("fchdir")
}

/// Changes the mount that a descriptor is the root of; the working directory changes.
pub(super) fn setattr(mount: i32, recursive: bool, attr: &MountAttr) -> Result<()> {
    enter_proc()?;
    let path = std::ffi::CString::new(format!("self/fd/{mount}")).unwrap_or_default();
    setattr_path(&path, recursive, attr)
}

/// Changes the mount at `path`. Attributes of all below cannot be changed, propagation can.
pub(super) fn setattr_path(path: &CStr, recursive: bool, attr: &MountAttr) -> Result<()> {
    if attr.propagation != 0 {
        let below = if recursive { MountPropagationFlags::REC } else { MountPropagationFlags::empty() };
        let flags = MountPropagationFlags::from_bits_retain(attr.propagation as u32) | below;
        rustix::mount::mount_change(path, flags).call("mount")?;
    }
    if attr.set == 0 && attr.clear == 0 {
        return Ok(());
    }
    if recursive || attr.userns_fd != 0 {
        return Err(Failure { call: "mount_setattr", errno: Errno::NOSYS });
    }
    let flags = flags(path, attr)?;
    rustix::mount::mount_remount(path, flags | MountFlags::BIND, c"").call("mount")
}

/// All flags of the mount after the change: a remount that leaves one out clears it.
fn flags(path: &CStr, attr: &MountAttr) -> Result<MountFlags> {
    let now = rustix::fs::statvfs(path).call("statvfs")?.f_flag;
    let mut flags = MountFlags::empty();
    for (bit, flag, current) in FLAGS {
        let stays = now.contains(current) && attr.clear & bit == 0;
        if attr.set & bit != 0 || stays {
            flags |= flag;
        }
    }
    let atime = if attr.clear & MOUNT_ATTR_ATIME_MASK == 0 {
        if now.contains(StatVfsMountFlags::NOATIME) {
            MountFlags::NOATIME
        } else if now.contains(StatVfsMountFlags::RELATIME) {
            MountFlags::RELATIME
        } else {
            MountFlags::STRICTATIME
        }
    } else {
        atime_of(attr.set)
    };
    Ok(flags | atime)
}

/// Attributes (`MOUNT_ATTR_*`) of a new mount, as flags.
pub(super) fn flags_of(attr: u64) -> MountFlags {
    let set = FLAGS.iter().filter(|(bit, ..)| attr & bit != 0);
    set.fold(atime_of(attr), |flags, (_, flag, _)| flags | *flag)
}

fn atime_of(attr: u64) -> MountFlags {
    match attr & MOUNT_ATTR_ATIME_MASK {
        MOUNT_ATTR_NOATIME => MountFlags::NOATIME,
        MOUNT_ATTR_STRICTATIME => MountFlags::STRICTATIME,
        _ => MountFlags::RELATIME,
    }
}
