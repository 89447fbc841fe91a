//! The container's view of the cgroup hierarchies.
//!
//! On v1 a tmpfs with a directory for each hierarchy: in a cgroup namespace each is mounted anew and shows the
//! container's part as its root; else the container's own directories are bound.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::Setup;
use super::rootfs::{Rootfs, as_fs_option, check_proc_target, new_filesystem, propagate, refused};
use crate::cgroup::Hierarchy;
use crate::fault::{Attempt, Code, Result};
use crate::plan::mounts::{AttrChange, MountPlan};
use crate::plan::namespaces::Kind;
use crate::sys::Call;
use crate::sys::mount::{self, FsOption, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, Visit};

/// What runc gives the mounts that it makes for the cgroup hierarchies.
const CGROUP_ATTR: u64 = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;

impl Rootfs {
    /// Makes the mount of a plan of this kind.
    pub(super) fn cgroup(
        &mut self,
        setup: &Setup<'_>,
        mount: &MountPlan,
        options: &[(String, Option<String>)],
    ) -> Result<()> {
        let target = self.target(mount, true)?;
        check_proc_target(mount, target.as_fd(), None)?;
        let cgroup = setup.shown.as_ref().unwrap_or(setup.cgroup);
        if cgroup.is_unified() {
            return self.cgroup_unified(setup, mount, options, target.as_fd());
        }
        let words = [FsOption::Value("mode", "755")];
        let tmpfs = new_filesystem(mount, "tmpfs", "tmpfs", &words, CGROUP_ATTR)?;
        let attempted = || mount.describe();
        let v1: Vec<_> = cgroup.hierarchies.iter().filter(|hierarchy| !hierarchy.is_unified()).collect();
        for hierarchy in &v1 {
            let name = hierarchy.mount.file_name().unwrap_or_default();
            rustix::fs::mkdirat(&tmpfs, name, Mode::from_raw_mode(0o755))
                .call("mkdirat")
                .attempt(Code::MountFailed, attempted)?;
            link_controllers(tmpfs.as_fd(), &hierarchy.controllers, name.to_str().unwrap_or_default());
        }
        mount::attach(tmpfs.as_fd(), target.as_fd()).attempt(Code::MountFailed, attempted)?;
        let visit = Visit::new(tmpfs.as_fd()).attempt(Code::MountFailed, attempted)?;
        for hierarchy in &v1 {
            mount_hierarchy(setup, mount, hierarchy, (tmpfs.as_fd(), &visit))?;
        }
        drop(visit);
        // One call for the tmpfs and all that is on it, where the kernel has that.
        let attr = AttrChange { set: mount.attr.set | CGROUP_ATTR, ..mount.attr }.to_attr();
        mount::mount_setattr(tmpfs.as_fd(), true, &attr)
            .or_else(|_| {
                let names = v1.iter().map(|hierarchy| hierarchy.mount.file_name().unwrap_or_default());
                names.map(Path::new).chain([Path::new(".")]).try_for_each(|name| {
                    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let tree = rustix::fs::openat(&tmpfs, name, flags, Mode::empty()).call("openat")?;
                    mount::mount_setattr(tree.as_fd(), false, &attr)
                })
            })
            .attempt(Code::MountFailed, attempted)?;
        propagate(tmpfs.as_fd(), mount)
    }

    fn cgroup_unified(
        &mut self,
        setup: &Setup<'_>,
        mount: &MountPlan,
        options: &[(String, Option<String>)],
        target: BorrowedFd<'_>,
    ) -> Result<()> {
        let words: Vec<FsOption<'_>> = options.iter().map(as_fs_option).collect();
        match mount::new_filesystem("cgroup2", "cgroup", &words, mount.attr.set) {
            Ok(tree) => self.attach_new(mount, tree, target, false),
            // In a user namespace without a cgroup namespace the kernel wants a bind.
            Err((failure, _)) if matches!(failure.errno, Errno::PERM | Errno::BUSY) => {
                let cgroup = setup.shown.as_ref().unwrap_or(setup.cgroup);
                let own = cgroup.unified().map_or(Path::new("/sys/fs/cgroup"), |hierarchy| {
                    if setup.plan.namespaces.has(Kind::Cgroup) { &hierarchy.dir } else { &hierarchy.mount }
                });
                self.bind_hierarchy(mount, own, target)
            }
            Err((failure, words)) => Err(refused(mount, failure, words)),
        }
    }

    fn bind_hierarchy(&mut self, mount: &MountPlan, source: &Path, target: BorrowedFd<'_>) -> Result<()> {
        let attempted = || mount.describe();
        let tree = mount::clone_path(source, true).attempt(Code::MountFailed, attempted)?;
        let change = || mount::mount_setattr(tree.as_fd(), false, &mount.attr.to_attr());
        // Where the call for detached mounts is denied it changes when it is attached, as any bind does.
        let early = change();
        let own = tree.try_clone().call("fcntl").attempt(Code::MountFailed, attempted)?;
        self.attach_new(mount, own, target, false)?;
        early.or_else(|_| change()).attempt(Code::MountFailed, attempted)
    }
}

/// Mounts a v1 hierarchy in the tmpfs: seen from the cgroup namespace, if that is new, else the container's own part.
fn mount_hierarchy(
    setup: &Setup<'_>,
    mount: &MountPlan,
    hierarchy: &Hierarchy,
    (tmpfs, visit): (BorrowedFd<'_>, &Visit<'_>),
) -> Result<()> {
    let attempted = || mount.describe();
    let name = hierarchy.mount.file_name().unwrap_or_default();
    let tree = if setup.plan.namespaces.is_new(Kind::Cgroup) {
        let words: Vec<FsOption<'_>> = match hierarchy.controllers.strip_prefix("name=") {
            Some(name) => vec![FsOption::Flag("none"), FsOption::Value("name", name)],
            None => hierarchy.controllers.split(',').map(FsOption::Flag).collect(),
        };
        if visit.mount(name, ("cgroup", "cgroup"), &words, CGROUP_ATTR).is_ok() {
            return Ok(());
        }
        new_filesystem(mount, "cgroup", "cgroup", &words, CGROUP_ATTR | mount.attr.set)?
    } else {
        mount::clone_path(&hierarchy.dir, true).attempt(Code::MountFailed, attempted)?
    };
    mount::attach_at(tree.as_fd(), tmpfs, name).attempt(Code::MountFailed, attempted)
}

/// `cpu -> cpu,cpuacct`: programs look for a controller by its own name.
fn link_controllers(tmpfs: BorrowedFd<'_>, controllers: &str, name: &str) {
    if controllers.contains(',') {
        for controller in controllers.split(',').filter(|controller| *controller != name) {
            // A name that is taken is a hierarchy of its own.
            let _ = rustix::fs::symlinkat(name, tmpfs, controller);
        }
    }
}
