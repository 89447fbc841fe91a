//! The container's file system: the mounts in their order, and what is checked of each. The root is made in `root`,
//! masks in `masks`, the cgroup hierarchies in `cgroup_mounts`.
//!
//! Every mount is made detached (or on a stage, see `sys::stage`) and attached to a handle of its target; targets are
//! resolved below a handle of the root. So a symlink in the image, or one that is swapped in through a shared volume
//! while this runs, leads nowhere but into the container.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::masks::Mask;
use super::sources::Sources;
use super::{Setup, copy_up, dev, root};
use crate::channel::InitEnd;
use crate::fault::{Attempt, Code, Fault, Result};
use crate::path::{self, Root, openat2};
use crate::plan::Plan;
use crate::plan::mounts::{MountKind, MountPlan};
use crate::sys::mount::{
    self, FsOption, MOUNT_ATTR_ATIME_MASK, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY, MountAttr, Visit,
};
use crate::sys::{Call, Failure};
use crate::trace::span;

/// Files of a procfs that may be covered by a bind mount: lxcfs shows a container its own limits there.
const PROC_MOUNTS: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// The file system under construction.
pub(super) struct Rootfs {
    /// The container's root.
    pub(super) root: Root,
    /// Mounts that become read-only when all is in them.
    pub(super) late_readonly: Vec<OwnedFd>,
    sources: Sources,
    in_cgroup: bool,
    /// `/dev/null` of the host, verified: what masked files become.
    pub(super) null: Option<Mask>,
    /// The container's own procfs, where it is given one.
    pub(super) proc: Option<OwnedFd>,
    /// The last new tmpfs, while nothing was mounted since but by `filesystem_in_own`, on directories of its own.
    own: Option<(PathBuf, OwnedFd)>,
}

impl Rootfs {
    /// Makes the root and all mounts of the plan.
    pub(super) fn build(setup: &Setup<'_>, channel: &InitEnd, sources: Sources) -> Result<Rootfs> {
        let root = root::prepare_root(setup.plan, setup.state)?;
        let (late_readonly, null) = (Vec::new(), None);
        let mut rootfs = Rootfs { root, late_readonly, sources, in_cgroup: false, null, proc: None, own: None };
        for mount in &setup.plan.mounts {
            rootfs.mount(setup, channel, mount)?;
        }
        Ok(rootfs)
    }

    /// Enters the cgroups, unless a mount has needed it before.
    pub(super) fn enter_cgroup(&mut self, setup: &Setup<'_>, channel: &InitEnd) -> Result<()> {
        if !std::mem::replace(&mut self.in_cgroup, true) {
            span("cgroup", || super::enter_cgroup(setup, channel))?;
        }
        Ok(())
    }

    fn mount(&mut self, setup: &Setup<'_>, channel: &InitEnd, mount: &MountPlan) -> Result<()> {
        if let MountKind::Filesystem { fstype, source, options, copy_up: false } = &mount.kind
            && self.filesystem_in_own(setup, mount, (fstype, source), options)
        {
            return Ok(());
        }
        // Whatever comes now may cover it, or a part of the way to it.
        self.own = None;
        match &mount.kind {
            MountKind::Bind { source, .. } => {
                if setup.host_opens_sources && setup.plan.is_in_root(source) {
                    // The host side is asked for it, and must have said before what it says unasked.
                    self.enter_cgroup(setup, channel)?;
                }
                self.bind(setup, channel, mount)
            }
            MountKind::Filesystem { fstype, source, options, copy_up } => {
                self.filesystem(setup, mount, (fstype, source), options, *copy_up)
            }
            MountKind::Cgroup { options } => {
                self.enter_cgroup(setup, channel)?;
                self.cgroup(setup, mount, options)
            }
        }
    }

    fn bind(&mut self, setup: &Setup<'_>, channel: &InitEnd, mount: &MountPlan) -> Result<()> {
        let tree = self.sources.take(setup, channel, mount)?;
        let attempted = || mount.describe();
        let is_dir = is_directory(tree.as_fd()).attempt(Code::MountFailed, attempted)?;
        // A kernel without the call for detached mounts changes it when it is attached.
        let early = apply_bind_attributes(tree.as_fd(), mount);
        let target = self.target(mount, is_dir)?;
        check_proc_target(mount, target.as_fd(), Some(tree.as_fd()))?;
        attach(tree.as_fd(), target.as_fd()).attempt(Code::MountFailed, attempted)?;
        if early.is_err() {
            apply_bind_attributes(tree.as_fd(), mount)?;
        }
        propagate(tree.as_fd(), mount)
    }

    fn filesystem(
        &mut self,
        setup: &Setup<'_>,
        mount: &MountPlan,
        (fstype, source): (&str, &str),
        options: &[(String, Option<String>)],
        copy_up: bool,
    ) -> Result<()> {
        let (target, is_new) = match fstype {
            "proc" | "sysfs" => (self.plain_target(mount)?, false),
            _ => self.find_target(mount, true)?,
        };
        if fstype != "proc" || mount.destination != Path::new("/proc") {
            check_proc_target(mount, target.as_fd(), None)?;
        }
        let late = mount.attr.is_readonly() && (fstype == "tmpfs" || mount.destination == Path::new("/dev"));
        let attr = if late { mount.attr.set & !MOUNT_ATTR_RDONLY } else { mount.attr.set };
        let mode = if is_new { None } else { tmpfs_mode(fstype, options, target.as_fd()) };
        let words = fs_options(setup.plan, fstype, mode.as_deref(), options);
        let filesystem = new_filesystem(mount, fstype, source, &words, attr)?;
        if copy_up {
            copy_up::copy(target.as_fd(), filesystem.as_fd()).attempt(Code::MountFailed, || mount.describe())?;
        }
        if fstype == "proc" && mount.destination == Path::new("/proc") {
            self.proc = filesystem.try_clone().ok();
        }
        if fstype == "tmpfs" && !copy_up {
            self.own = filesystem.try_clone().ok().map(|tmpfs| (mount.destination.clone(), tmpfs));
        }
        self.attach_new(mount, filesystem, target.as_fd(), late)
    }

    /// The quick way of a file system that lies directly in a tmpfs which was made just before and is empty, as those of
    /// `/dev` do: its directory needs no looking for. False, with nothing made, where that is not so or the kernel
    /// refused something: then the other way is gone, which can tell.
    fn filesystem_in_own(
        &self,
        setup: &Setup<'_>,
        mount: &MountPlan,
        (fstype, source): (&str, &str),
        options: &[(String, Option<String>)],
    ) -> bool {
        let Some((tmpfs, name)) = self.own_place(mount) else { return false };
        let is_plain = mount.propagation.is_empty() && mount.recursive_attr.is_empty() && !source.is_empty();
        if !is_plain || matches!(fstype, "proc" | "sysfs") {
            return false;
        }
        // Nobody can have a name in it yet but those that lowrun made.
        if rustix::fs::mkdirat(tmpfs, name, Mode::from_raw_mode(0o755)).is_err() {
            return false;
        }
        let words = fs_options(setup.plan, fstype, None, options);
        let made = Visit::new(tmpfs).and_then(|visit| visit.mount(name, (fstype, source), &words, mount.attr.set));
        if made.is_err() {
            let _ = rustix::fs::unlinkat(tmpfs, name, AtFlags::REMOVEDIR);
        }
        made.is_ok()
    }

    /// The tmpfs of `own` and a name, if the mount goes directly into it.
    fn own_place<'m>(&self, mount: &'m MountPlan) -> Option<(BorrowedFd<'_>, &'m OsStr)> {
        let (above, tmpfs) = self.own.as_ref()?;
        let lies_in_own = mount.destination.parent() == Some(above) && mount.destination != Path::new("/proc");
        mount.destination.file_name().filter(|_| lies_in_own).map(|name| (tmpfs.as_fd(), name))
    }

    /// Attaches a new file system, and what belongs to it after that.
    pub(super) fn attach_new(
        &mut self,
        mount: &MountPlan,
        filesystem: OwnedFd,
        target: BorrowedFd<'_>,
        late_readonly: bool,
    ) -> Result<()> {
        mount::attach(filesystem.as_fd(), target).attempt(Code::MountFailed, || mount.describe())?;
        if !mount.recursive_attr.is_empty() {
            mount::mount_setattr(filesystem.as_fd(), true, &mount.recursive_attr.to_attr())
                .attempt(Code::MountFailed, || mount.describe())?;
        }
        propagate(filesystem.as_fd(), mount)?;
        if late_readonly {
            self.late_readonly.push(filesystem);
        }
        Ok(())
    }

    /// A handle of the mount point, made if it is missing.
    pub(super) fn target(&self, mount: &MountPlan, is_dir: bool) -> Result<OwnedFd> {
        self.find_target(mount, is_dir).map(|(target, _)| target)
    }

    /// As [`Rootfs::target`], and whether it was missing.
    fn find_target(&self, mount: &MountPlan, is_dir: bool) -> Result<(OwnedFd, bool)> {
        let made = match self.root.resolve(&mount.destination) {
            Err(failure) if failure.errno == Errno::NOENT && is_dir => {
                self.root.make_missing_dirs(&mount.destination, 0o755).map(|target| (target, true))
            }
            Err(failure) if failure.errno == Errno::NOENT => {
                self.root.make_file(&mount.destination).map(|target| (target, true))
            }
            result => result.map(|target| (target, false)),
        };
        made.map_err(|failure| {
            let fault = Fault::of(Code::MountFailed, mount.describe(), failure);
            fault.cause(format!("make the mount point {}", mount.destination.display()))
        })
    }

    /// As [`Rootfs::target`], of a path without any symlink: a procfs or sysfs that an image's symlink moves elsewhere
    /// would leave its own `/proc` in the place where security settings are written.
    fn plain_target(&self, mount: &MountPlan) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let open = || openat2(self.root.fd(), &mount.destination, flags, Mode::empty(), resolve);
        let unsafe_target = |failure: Failure| {
            Fault::of(Code::RootfsUnsafe, mount.describe(), failure).cause("it must be mounted on ordinary directory")
        };
        match open() {
            Err(failure) if failure.errno == Errno::NOENT => {
                self.root.make_missing_dirs(&mount.destination, 0o755).map_err(unsafe_target)?;
                open().map_err(unsafe_target)
            }
            result => result.map_err(unsafe_target),
        }
    }

    /// Device nodes, links and the terminal multiplexer of `/dev`, if it is ours.
    pub(super) fn populate_dev(&self, setup: &Setup<'_>) -> Result<()> {
        if setup.plan.fills_dev { dev::populate(&self.root, setup) } else { Ok(()) }
    }
}

/// `move_mount` says EINVAL of a file over a directory, or the reverse, where `mount` says ENOTDIR, which Docker knows and
/// explains to its user.
fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> crate::sys::Result<()> {
    mount::attach(tree, target).map_err(|failure| match (is_directory(tree), is_directory(target)) {
        (Ok(one), Ok(other)) if failure.errno == Errno::INVAL && one != other => {
            Failure { errno: Errno::NOTDIR, ..failure }
        }
        _ => failure,
    })
}

/// The attributes asked for replace those of the source, as `mount --bind -o` does; a locked one (the source is of
/// another user namespace) stays, if nobody asked to clear it.
fn apply_bind_attributes(tree: BorrowedFd<'_>, mount: &MountPlan) -> Result<()> {
    let attempted = || mount.describe();
    if !mount.attr.is_empty() {
        let lockable = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
        let asked = mount.attr.to_attr();
        // Access times stay as the source has them, unless something was said about them: then all of it goes.
        let atime = match mount.attr.is_about_atime() {
            true => MOUNT_ATTR_ATIME_MASK | MOUNT_ATTR_NODIRATIME & !asked.set,
            false => 0,
        };
        let free = MOUNT_ATTR_NOSYMFOLLOW & !asked.set | atime;
        let exact = MountAttr { clear: lockable & !asked.set | free, ..asked };
        let kept = MountAttr { clear: asked.clear | free, ..asked };
        let result = match mount::mount_setattr(tree, false, &exact) {
            Err(failure) if failure.errno == Errno::PERM => mount::mount_setattr(tree, false, &kept),
            result => result,
        };
        result.attempt(Code::MountFailed, attempted)?;
    }
    if !mount.recursive_attr.is_empty() {
        mount::mount_setattr(tree, true, &mount.recursive_attr.to_attr()).attempt(Code::MountFailed, attempted)?;
    }
    Ok(())
}

pub(super) fn propagate(mounted: BorrowedFd<'_>, mount: &MountPlan) -> Result<()> {
    mount.propagation.iter().try_for_each(|(flag, recursive)| {
        let attr = MountAttr { propagation: *flag, ..MountAttr::default() };
        mount::mount_setattr(mounted, *recursive, &attr).attempt(Code::MountFailed, || mount.describe())
    })
}

/// Nothing may cover `/proc` but a procfs, and nothing inside a procfs but the files of [`PROC_MOUNTS`].
pub(super) fn check_proc_target(
    mount: &MountPlan,
    target: BorrowedFd<'_>,
    source: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let is_proc = |fd: BorrowedFd<'_>| -> Result<bool> {
        let stat = rustix::fs::fstatfs(fd).call("fstatfs").attempt(Code::MountFailed, || mount.describe())?;
        Ok(stat.f_type == rustix::fs::PROC_SUPER_MAGIC)
    };
    let refuse = |cause: String| Err(Fault::new(Code::RootfsUnsafe, mount.describe()).cause(cause));
    let destination = mount.destination.display();
    if mount.destination == Path::new("/proc") {
        return match source.map(is_proc).transpose()? {
            Some(true) => Ok(()),
            _ => refuse(format!("{destination:?} cannot be mounted because it is not of type proc")),
        };
    }
    // In this order: paths are compared part by part.
    if is_proc(target)? && !PROC_MOUNTS.iter().any(|path| mount.destination == Path::new(path)) {
        return refuse(format!("{destination:?} cannot be mounted because it is inside /proc"));
    }
    Ok(())
}

fn fs_options<'w>(
    plan: &'w Plan,
    fstype: &str,
    mode: Option<&'w str>,
    options: &'w [(String, Option<String>)],
) -> Vec<FsOption<'w>> {
    let extra = [("mode", mode), ("context", mount_label(plan, fstype))];
    let extra = extra.into_iter().filter_map(|(name, value)| value.map(|value| FsOption::Value(name, value)));
    extra.chain(options.iter().map(as_fs_option)).collect()
}

pub(super) fn as_fs_option((name, value): &(String, Option<String>)) -> FsOption<'_> {
    match value {
        Some(value) => FsOption::Value(name, value),
        None => FsOption::Flag(name),
    }
}

pub(super) fn new_filesystem(
    mount: &MountPlan,
    fstype: &str,
    source: &str,
    options: &[FsOption<'_>],
    attr: u64,
) -> Result<OwnedFd> {
    mount::new_filesystem(fstype, source, options, attr).map_err(|(failure, words)| refused(mount, failure, words))
}

pub(super) fn refused(mount: &MountPlan, failure: Failure, words: Option<String>) -> Box<Fault> {
    let mut fault = Fault::of(Code::MountFailed, mount.describe(), failure);
    if let Some(words) = words {
        fault.causes.insert(0, words);
    }
    fault
}

/// A tmpfs over a directory that was there takes its mode, if the spec says none.
fn tmpfs_mode(fstype: &str, options: &[(String, Option<String>)], target: BorrowedFd<'_>) -> Option<String> {
    if fstype != "tmpfs" || options.iter().any(|(name, _)| name == "mode") {
        return None;
    }
    path::stat(target).ok().map(|stat| format!("{:04o}", stat.st_mode & 0o7777))
}

fn mount_label<'p>(plan: &'p Plan, fstype: &str) -> Option<&'p str> {
    let labelled = !plan.mount_label.is_empty() && !matches!(fstype, "proc" | "sysfs" | "mqueue");
    labelled.then_some(plan.mount_label.as_str())
}

pub(super) fn is_directory(handle: BorrowedFd<'_>) -> crate::sys::Result<bool> {
    path::stat(handle).map(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}
