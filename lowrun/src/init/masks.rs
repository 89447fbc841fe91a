//! The last touches on the container's file system: what is read-only, and what is hidden.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::rootfs::{Rootfs, is_directory};
use super::{Setup, dev};
use crate::fault::{Attempt, Code, Fault, Result};
use crate::path;
use crate::plan::Plan;
use crate::sys::Call;
use crate::sys::mount::{self, FsOption, MOUNT_ATTR_RDONLY, MountAttr};
use crate::sys::stage;

impl Rootfs {
    /// What can be done only when nothing is written any more: read-only mounts and root, protected and masked paths.
    pub(super) fn finish(&mut self, setup: &Setup<'_>) -> Result<()> {
        let readonly = MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        for late in self.late_readonly.drain(..) {
            mount::mount_setattr(late.as_fd(), false, &readonly)
                .attempt(Code::MountFailed, || "make a mount read-only")?;
        }
        if setup.plan.root_readonly {
            mount::mount_setattr(self.root.fd(), false, &readonly)
                .attempt(Code::MountFailed, || "make the root file system read-only")?;
        }
        for path in &setup.plan.readonly_paths {
            self.protect(path, &readonly)
                .attempt(Code::MountFailed, || format!("make {} read-only", path.display()))?;
        }
        self.mask(&setup.plan.masked_paths)?;
        stage::clear().attempt(Code::MountFailed, || "take the stage of mounts away")
    }

    fn protect(&self, path: &Path, readonly: &MountAttr) -> crate::sys::Result<()> {
        let Some(target) = self.existing(path)? else { return Ok(()) };
        let tree = mount::clone_handle(target.as_fd(), true)?;
        let early = mount::mount_setattr(tree.as_fd(), false, readonly);
        mount::attach(tree.as_fd(), target.as_fd())?;
        early.or_else(|_| mount::mount_setattr(tree.as_fd(), false, readonly))
    }

    fn existing(&self, path: &Path) -> crate::sys::Result<Option<OwnedFd>> {
        match self.root.resolve(path) {
            Err(failure) if matches!(failure.errno, Errno::NOENT | Errno::NOTDIR) => Ok(None),
            result => result.map(Some),
        }
    }

    /// Covers files with the null device and directories with one empty read-only tmpfs, shared by all.
    fn mask(&mut self, paths: &[PathBuf]) -> Result<()> {
        let mut empty: Option<Mask> = None;
        for (index, path) in paths.iter().enumerate() {
            // They are clean: their bytes are enough, and cheaper to compare than their parts.
            if paths[..index].iter().any(|before| before.as_os_str() == path.as_os_str()) {
                continue;
            }
            let attempted = || format!("mask {}", path.display());
            let Some(target) = self.existing(path).attempt(Code::MountFailed, attempted)? else { continue };
            let shared = if is_directory(target.as_fd()).attempt(Code::MountFailed, attempted)? {
                &mut empty
            } else {
                &mut self.null
            };
            cover(target.as_fd(), shared).attempt(Code::MountFailed, attempted)?;
        }
        Ok(())
    }
}

/// What covers all masked paths of a kind.
pub(super) struct Mask {
    mount: OwnedFd,
    is_attached: bool,
}

/// Attaches a mask to `target`. The first of a kind is attached itself, later ones are copies of it: before Linux 6.15 the
/// kernel copies only what is attached in the own namespace, and a mount that is attached nowhere costs a wait for all
/// CPUs when it goes.
fn cover(target: BorrowedFd<'_>, shared: &mut Option<Mask>) -> crate::sys::Result<()> {
    let mask = match shared {
        Some(mask) => mask,
        None => shared.insert(Mask { mount: empty_directory()?, is_attached: false }),
    };
    if !std::mem::replace(&mut mask.is_attached, true) {
        return attach_readonly(mask.mount.as_fd(), target);
    }
    attach_readonly(mount::clone_handle(mask.mount.as_fd(), false)?.as_fd(), target)
}

fn empty_directory() -> crate::sys::Result<OwnedFd> {
    let words = [FsOption::Value("nr_blocks", "1"), FsOption::Value("nr_inodes", "1")];
    mount::new_filesystem("tmpfs", "tmpfs", &words, MOUNT_ATTR_RDONLY).map_err(|(failure, _)| failure)
}

/// A mask is read-only before it is attached, where the kernel can do that.
fn attach_readonly(mask: BorrowedFd<'_>, target: BorrowedFd<'_>) -> crate::sys::Result<()> {
    mount::attach(mask, target)?;
    if rustix::fs::fstatvfs(mask).is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY)) {
        return Ok(());
    }
    mount::mount_setattr(mask, false, &MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() })
}

/// A detached read-only mount of the host's null device, verified: in the container's own `/dev` something else could
/// have taken its name, and through a writable mount a container's root could change the host's node.
pub(super) fn clone_null(plan: &Plan) -> Result<Option<Mask>> {
    if plan.masked_paths.is_empty() {
        return Ok(None);
    }
    let attempted = || "open /dev/null for masked paths";
    let null = rustix::fs::open("/dev/null", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .call("open")
        .attempt(Code::MountFailed, attempted)?;
    let stat = path::stat(null.as_fd()).attempt(Code::MountFailed, attempted)?;
    if !dev::is_null(&stat) {
        return Err(Fault::new(Code::RootfsUnsafe, attempted()).cause("it is not the null device"));
    }
    let tree = mount::clone_handle(null.as_fd(), false).attempt(Code::MountFailed, attempted)?;
    // Private: as a slave of the host's mounts, CRIU could not make it again.
    let propagation = u64::from(libc::MS_PRIVATE as u32);
    let attr = MountAttr { set: MOUNT_ATTR_RDONLY, propagation, ..MountAttr::default() };
    match mount::mount_setattr(tree.as_fd(), false, &attr) {
        Err(failure) if mount::needs_attached(&failure) => {}
        result => result.attempt(Code::MountFailed, attempted)?,
    }
    Ok(Some(Mask { mount: tree, is_attached: false }))
}
