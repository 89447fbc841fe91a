//! The root directory: prepared as a mount of its own, and at last made the process's root.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::rootfs::Rootfs;
use super::{Setup, masks};
use crate::fault::{Attempt, Code, Result};
use crate::path::{self, Root};
use crate::plan::Plan;
use crate::plan::namespaces::Kind;
use crate::state::State;
use crate::sys::mount::{self, MountAttr};
use crate::sys::stage;
use crate::sys::{Call, Failure};

impl Rootfs {
    /// Makes the container's root the root of the process, and the host's root unreachable.
    pub(super) fn pivot(&mut self, setup: &Setup<'_>) -> Result<()> {
        let attempted = || format!("change the root to {}", setup.plan.rootfs.display());
        // As late as the host's can still be had: hooks must not meet a stage.
        self.null = masks::clone_null(setup.plan)?;
        self.enter_dir()?;
        if !setup.plan.namespaces.has(Kind::Mount) {
            change_root().attempt(Code::RootfsInvalid, attempted)?;
        } else if setup.no_pivot {
            move_root(&setup.plan.rootfs).attempt(Code::RootfsInvalid, attempted)?;
        } else {
            pivot(setup.plan.root_propagation.is_some()).attempt(Code::RootfsInvalid, attempted)?;
        }
        if let Some((flag, recursive)) = setup.plan.root_propagation
            && flag & (libc::MS_PRIVATE | libc::MS_SLAVE) == 0
        {
            let attr = MountAttr { propagation: flag, ..MountAttr::default() };
            mount::mount_setattr_path(c"/", recursive, &attr).attempt(Code::MountFailed, attempted)?;
        }
        self.make_cwd(&setup.plan.process.cwd)
    }

    /// Makes the container's root the working directory.
    pub(super) fn enter_dir(&self) -> Result<()> {
        rustix::process::fchdir(self.root.fd())
            .call("fchdir")
            .attempt(Code::RootfsInvalid, || "enter the container's root directory")
    }

    /// The working directory is made if it is missing, as runc does; whether it may be entered is seen later.
    fn make_cwd(&self, cwd: &Path) -> Result<()> {
        let cwd_text = cwd.to_string_lossy();
        match self.root.make_dirs(&path::clean(&cwd_text), 0o755) {
            // A magic link: refused where the directory is entered.
            Err(failure) if failure.errno == Errno::LOOP => Ok(()),
            result => {
                result.map(drop).attempt(Code::CwdInvalid, || format!("make the working directory {}", cwd.display()))
            }
        }
    }
}

/// Cuts the propagation of mounts to the host and makes the root file system a mount of its own: also without a mount
/// namespace, where that mount stays on the host, for it may have to be read-only.
pub(super) fn prepare_root(plan: &Plan, state: &State) -> Result<Root> {
    let attempted = || format!("prepare the root file system {}", plan.rootfs.display());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    cut_propagation(plan)?;
    let open = || rustix::fs::open(&plan.rootfs, flags, Mode::empty()).call("open");
    if stage::makes_clones() {
        let place = open().attempt(Code::RootfsInvalid, attempted)?;
        let root = stage::bind_to_itself(place.as_fd()).attempt(Code::MountFailed, attempted)?;
        keep_apart(plan, root.as_fd()).attempt(Code::MountFailed, attempted)?;
        stage::found_root(root.as_fd(), || state.stage_name()).attempt(Code::MountFailed, attempted)?;
        return Ok(Root::new(root));
    }
    let tree = mount::clone_path(&plan.rootfs, true).attempt(Code::RootfsInvalid, attempted)?;
    let place = open().attempt(Code::RootfsInvalid, attempted)?;
    mount::attach(tree.as_fd(), place.as_fd()).attempt(Code::MountFailed, attempted)?;
    keep_apart(plan, tree.as_fd()).attempt(Code::MountFailed, attempted)?;
    stage::found_root(tree.as_fd(), || state.stage_name()).attempt(Code::MountFailed, attempted)?;
    Ok(Root::new(tree))
}

/// On the host's own mount table, where its root is shared, the bind of the root file system is a peer of what it lies
/// on: each mount on it would be there twice, and the second time below it.
fn keep_apart(plan: &Plan, root: BorrowedFd<'_>) -> crate::sys::Result<()> {
    if plan.namespaces.has(Kind::Mount) {
        return Ok(());
    }
    mount::mount_setattr(root, true, &MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() })
}

/// Gives the mounts of the container's namespace the propagation that its root is to have: what is copied afterwards has
/// it too. A second time changes nothing.
pub fn cut_propagation(plan: &Plan) -> Result<()> {
    if !plan.namespaces.has(Kind::Mount) {
        return Ok(());
    }
    let (propagation, recursive) = plan.root_propagation.unwrap_or((libc::MS_SLAVE, true));
    let attr = MountAttr { propagation, ..MountAttr::default() };
    let mut cut = mount::mount_setattr_path(c"/", recursive, &attr);
    if propagation & (libc::MS_SLAVE | libc::MS_PRIVATE) == 0 || !recursive {
        cut = cut.and_then(|()| make_parent_private(&plan.rootfs));
    }
    cut.attempt(Code::MountFailed, || format!("prepare the root file system {}", plan.rootfs.display()))
}

/// The mount that holds the root file system must not be shared: `pivot_root` refuses it, and the bind of the root file
/// system would show on the host. A path that is no mount point says EINVAL: its parent is asked then.
fn make_parent_private(rootfs: &Path) -> crate::sys::Result<()> {
    let attr = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    let mut failure = Failure { call: "mount_setattr", errno: Errno::INVAL };
    for path in rootfs.ancestors() {
        let Ok(text) = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()) else { continue };
        match mount::mount_setattr_path(&text, false, &attr) {
            Ok(()) => return Ok(()),
            Err(refusal) if refusal.errno == Errno::INVAL => failure = refusal,
            Err(refusal) => return Err(refusal),
        }
    }
    Err(failure)
}

fn change_root() -> crate::sys::Result<()> {
    rustix::process::chroot(".").call("chroot")?;
    rustix::process::chdir("/").call("chdir")
}

/// With `.` for both paths the old root ends up on top of the new one, and is taken off there: so no directory for it
/// is needed in the image.
fn pivot(host_may_see: bool) -> crate::sys::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = rustix::fs::open("/", flags, Mode::empty()).call("open")?;
    rustix::process::pivot_root(".", ".").call("pivot_root")?;
    rustix::process::fchdir(&old).call("fchdir")?;
    if host_may_see {
        // With shared propagation the unmount would reach the host.
        let attr = MountAttr { propagation: libc::MS_SLAVE, ..MountAttr::default() };
        mount::mount_setattr_path(c".", true, &attr)?;
    }
    rustix::mount::unmount(".", UnmountFlags::DETACH).call("umount2")?;
    rustix::process::chdir("/").call("chdir")
}

/// Without `pivot_root` (a root that is a ramfs): the root file system is moved over the old root, which stays
/// reachable for the kernel. A full procfs or sysfs of the host there would let the container mount a new, unmasked
/// one: so those are taken away.
fn move_root(rootfs: &Path) -> crate::sys::Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").call("open")?;
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let kind = fields.iter().position(|field| *field == "-").and_then(|at| fields.get(at + 1));
        let (Some(kind), Some(within), Some(place)) = (kind, fields.get(3), fields.get(4)) else { continue };
        if matches!(*kind, "proc" | "sysfs") && *within == "/" && !Path::new(place).starts_with(rootfs) {
            let _ = rustix::mount::unmount(*place, UnmountFlags::DETACH);
        }
    }
    rustix::mount::mount_move(".", "/").call("mount(MS_MOVE)")?;
    change_root()
}
