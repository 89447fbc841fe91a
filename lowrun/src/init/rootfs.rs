//! The container's file system: its root, the mounts in their order, the change of root, masks.
//!
//! Every mount is made detached and attached to a handle of its target; targets are resolved below a handle of the
//! root. So a symlink in the image, or one that is swapped in through a shared volume while this runs, leads nowhere
//! but into the container.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::{Setup, copy_up, dev};
use crate::channel::InitEnd;
use crate::fault::{Attempt, Code, Fault, Result};
use crate::path::{self, Root, openat2};
use crate::plan::Plan;
use crate::plan::mounts::{AttrChange, MountKind, MountPlan};
use crate::plan::namespaces::Kind;
use crate::sys::mount::{
    self, FsOption, MOUNT_ATTR_ATIME_MASK, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY, MountAttr,
};
use crate::sys::{Call, Failure};
use crate::trace::span;

/// What runc gives the mounts that it makes for the cgroup hierarchies.
const CGROUP_ATTR: u64 = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;

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

/// Copies of mounts of the host, opened before the process gave up the host's root: the root file system and the
/// sources of bind mounts by their place in the spec.
#[derive(Default)]
pub(super) struct Sources {
    rootfs: Option<OwnedFd>,
    binds: BTreeMap<usize, OwnedFd>,
}

/// Opens what a mapped root might not reach.
pub(super) fn open_sources(plan: &Plan) -> Result<Sources> {
    let mut binds = BTreeMap::new();
    for mount in &plan.mounts {
        if let MountKind::Bind { source, recursive } = &mount.kind {
            binds.insert(mount.index, clone_source(mount, source, *recursive)?);
        }
    }
    Ok(Sources { rootfs: None, binds })
}

/// The file system under construction.
pub(super) struct Rootfs {
    /// The container's root.
    pub(super) root: Root,
    /// Mounts that become read-only when all is in them.
    late_readonly: Vec<OwnedFd>,
    sources: Sources,
    in_cgroup: bool,
    in_network: bool,
    /// `/dev/null` of the host, verified: what masked files become.
    null: Option<OwnedFd>,
}

impl Rootfs {
    /// Makes the root and all mounts of the plan.
    pub(super) fn build(setup: &Setup<'_>, channel: &InitEnd, mut sources: Sources) -> Result<Rootfs> {
        let root = prepare_root(setup.plan, sources.rootfs.take())?;
        let null = clone_null(setup.plan)?;
        let mut rootfs = Rootfs { root, late_readonly: Vec::new(), sources, in_cgroup: false, in_network: false, null };
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

    /// Enters the network namespace, unless a mount has needed it before or it was there from the start.
    pub(super) fn enter_network(&mut self, setup: &Setup<'_>, channel: &InitEnd) -> Result<()> {
        if setup.host_makes_network && !std::mem::replace(&mut self.in_network, true) {
            span("network", || super::enter_network(channel))?;
        }
        Ok(())
    }

    fn mount(&mut self, setup: &Setup<'_>, channel: &InitEnd, mount: &MountPlan) -> Result<()> {
        match &mount.kind {
            MountKind::Bind { source, recursive } => self.bind(mount, source, *recursive),
            MountKind::Filesystem { fstype, source, options, copy_up } => {
                if fstype == "sysfs" {
                    // It shows the interfaces of the namespace that it is mounted in. The cgroups are ready earlier.
                    self.enter_cgroup(setup, channel)?;
                    self.enter_network(setup, channel)?;
                }
                self.filesystem(setup, mount, (fstype, source), options, *copy_up)
            }
            MountKind::Cgroup { options } => {
                self.enter_cgroup(setup, channel)?;
                self.cgroup(setup, mount, options)
            }
        }
    }

    fn bind(&mut self, mount: &MountPlan, source: &Path, recursive: bool) -> Result<()> {
        let tree = match self.sources.binds.remove(&mount.index) {
            Some(tree) => tree,
            None => clone_source(mount, source, recursive)?,
        };
        let attempted = || mount.describe();
        let is_dir = is_directory(tree.as_fd()).attempt(Code::MountFailed, attempted)?;
        if mount.id_map.is_some() {
            return Err(Fault::new(Code::Unsupported, attempted()).cause("id-mapped mounts are not supported yet"));
        }
        apply_bind_attributes(tree.as_fd(), mount)?;
        let target = self.target(mount, is_dir)?;
        check_proc_target(mount, target.as_fd(), Some(tree.as_fd()))?;
        mount::attach(tree.as_fd(), target.as_fd()).attempt(Code::MountFailed, attempted)?;
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
        let target =
            if matches!(fstype, "proc" | "sysfs") { self.plain_target(mount)? } else { self.target(mount, true)? };
        if fstype != "proc" || mount.destination != Path::new("/proc") {
            check_proc_target(mount, target.as_fd(), None)?;
        }
        let late = mount.attr.is_readonly() && (fstype == "tmpfs" || mount.destination == Path::new("/dev"));
        let attr = if late { mount.attr.set & !MOUNT_ATTR_RDONLY } else { mount.attr.set };
        let mode = tmpfs_mode(fstype, options, target.as_fd());
        let label = mount_label(setup.plan, fstype);
        let extra = [mode.as_deref().map(|mode| ("mode", mode)), label.map(|label| ("context", label))];
        let mut words: Vec<FsOption<'_>> =
            extra.into_iter().flatten().map(|(name, value)| FsOption::Value(name, value)).collect();
        words.extend(options.iter().map(as_fs_option));
        let filesystem = new_filesystem(mount, fstype, source, &words, attr)?;
        if copy_up {
            copy_up::copy(target.as_fd(), filesystem.as_fd()).attempt(Code::MountFailed, || mount.describe())?;
        }
        self.attach_new(mount, filesystem, target.as_fd(), late)
    }

    fn attach_new(
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
    fn target(&self, mount: &MountPlan, is_dir: bool) -> Result<OwnedFd> {
        let made = match self.root.resolve(&mount.destination) {
            Err(failure) if failure.errno == Errno::NOENT && is_dir => {
                self.root.make_missing_dirs(&mount.destination, 0o755)
            }
            Err(failure) if failure.errno == Errno::NOENT => self.root.make_file(&mount.destination),
            result => result,
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

    fn cgroup(&mut self, setup: &Setup<'_>, mount: &MountPlan, options: &[(String, Option<String>)]) -> Result<()> {
        let target = self.target(mount, true)?;
        check_proc_target(mount, target.as_fd(), None)?;
        if setup.cgroup.is_unified() {
            return self.cgroup_unified(setup, mount, options, target.as_fd());
        }
        let words = [FsOption::Value("mode", "755")];
        let tmpfs = new_filesystem(mount, "tmpfs", "tmpfs", &words, CGROUP_ATTR)?;
        let attempted = || mount.describe();
        let v1: Vec<_> = setup.cgroup.hierarchies.iter().filter(|hierarchy| !hierarchy.is_unified()).collect();
        for hierarchy in &v1 {
            let name = hierarchy.mount.file_name().unwrap_or_default();
            rustix::fs::mkdirat(&tmpfs, name, Mode::from_raw_mode(0o755))
                .call("mkdirat")
                .attempt(Code::MountFailed, attempted)?;
            link_controllers(tmpfs.as_fd(), &hierarchy.controllers, name.to_str().unwrap_or_default());
        }
        mount::attach(tmpfs.as_fd(), target.as_fd()).attempt(Code::MountFailed, attempted)?;
        for hierarchy in v1 {
            let tree = if setup.plan.namespaces.is_new(Kind::Cgroup) {
                new_hierarchy(mount, &hierarchy.controllers)?
            } else {
                mount::clone_path(&hierarchy.dir, true).attempt(Code::MountFailed, attempted)?
            };
            let name = hierarchy.mount.file_name().unwrap_or_default();
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&tmpfs, name, flags, Mode::empty())
                .call("openat")
                .and_then(|place| mount::attach(tree.as_fd(), place.as_fd()))
                .attempt(Code::MountFailed, attempted)?;
        }
        // One call for the tmpfs and all that is on it.
        let attr = AttrChange { set: mount.attr.set | CGROUP_ATTR, ..mount.attr };
        mount::mount_setattr(tmpfs.as_fd(), true, &attr.to_attr()).attempt(Code::MountFailed, attempted)?;
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
        let tree = match mount::new_filesystem("cgroup2", "cgroup", &words, mount.attr.set) {
            Ok(tree) => tree,
            // In a user namespace without a cgroup namespace the kernel wants a bind.
            Err((failure, _)) if matches!(failure.errno, Errno::PERM | Errno::BUSY) => {
                let own = setup.cgroup.unified().map_or(Path::new("/sys/fs/cgroup"), |hierarchy| {
                    if setup.plan.namespaces.has(Kind::Cgroup) { &hierarchy.dir } else { &hierarchy.mount }
                });
                let tree = mount::clone_path(own, true).attempt(Code::MountFailed, || mount.describe())?;
                mount::mount_setattr(tree.as_fd(), false, &mount.attr.to_attr())
                    .attempt(Code::MountFailed, || mount.describe())?;
                tree
            }
            Err((failure, words)) => return Err(refused(mount, failure, words)),
        };
        self.attach_new(mount, tree, target, false)
    }

    /// Device nodes, links and the terminal multiplexer of `/dev`, if it is ours.
    pub(super) fn populate_dev(&self, setup: &Setup<'_>) -> Result<()> {
        if setup.plan.fills_dev { dev::populate(&self.root, setup) } else { Ok(()) }
    }

    /// Makes the container's root the root of the process, and the host's root unreachable.
    pub(super) fn pivot(&mut self, setup: &Setup<'_>) -> Result<()> {
        let attempted = || format!("change the root to {}", setup.plan.rootfs.display());
        rustix::process::fchdir(self.root.fd()).call("fchdir").attempt(Code::RootfsInvalid, attempted)?;
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
        self.mask(&setup.plan.masked_paths)
    }

    fn protect(&self, path: &Path, readonly: &MountAttr) -> crate::sys::Result<()> {
        let Some(target) = self.existing(path)? else { return Ok(()) };
        let tree = mount::clone_handle(target.as_fd(), true)?;
        mount::mount_setattr(tree.as_fd(), false, readonly)?;
        mount::attach(tree.as_fd(), target.as_fd())
    }

    fn existing(&self, path: &Path) -> crate::sys::Result<Option<OwnedFd>> {
        match self.root.resolve(path) {
            Err(failure) if matches!(failure.errno, Errno::NOENT | Errno::NOTDIR) => Ok(None),
            result => result.map(Some),
        }
    }

    /// Covers files with the null device and directories with one empty read-only tmpfs, shared by all.
    fn mask(&mut self, paths: &[PathBuf]) -> Result<()> {
        let mut empty: Option<OwnedFd> = None;
        for (index, path) in paths.iter().enumerate() {
            if paths[..index].contains(path) {
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

/// Attaches a mask to `target`. The first mask of a kind is attached itself, later ones are copies of it: the kernel
/// copies only what is attached in the own namespace (before Linux 6.15).
fn cover(target: BorrowedFd<'_>, shared: &mut Option<OwnedFd>) -> crate::sys::Result<()> {
    match shared {
        None => {
            let words = [FsOption::Value("nr_blocks", "1"), FsOption::Value("nr_inodes", "1")];
            let tmpfs =
                mount::new_filesystem("tmpfs", "tmpfs", &words, MOUNT_ATTR_RDONLY).map_err(|(failure, _)| failure)?;
            mount::attach(tmpfs.as_fd(), target)?;
            *shared = Some(tmpfs);
            Ok(())
        }
        // A detached mask that was not used yet is attached; an attached one is copied.
        Some(mask) => match mount::clone_handle(mask.as_fd(), false) {
            Ok(copy) => mount::attach(copy.as_fd(), target),
            Err(failure) if failure.errno == Errno::INVAL => mount::attach(mask.as_fd(), target),
            Err(failure) => Err(failure),
        },
    }
}

/// A detached read-only mount of the host's null device, verified: in the container's own `/dev` something else could
/// have taken its name, and through a writable mount a container's root could change the host's node.
fn clone_null(plan: &Plan) -> Result<Option<OwnedFd>> {
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
    let attr = MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    mount::mount_setattr(tree.as_fd(), false, &attr).attempt(Code::MountFailed, attempted)?;
    Ok(Some(tree))
}

/// Cuts the propagation of mounts to the host and makes the root file system a mount of its own.
fn prepare_root(plan: &Plan, tree: Option<OwnedFd>) -> Result<Root> {
    let attempted = || format!("prepare the root file system {}", plan.rootfs.display());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open =
        || rustix::fs::open(&plan.rootfs, flags, Mode::empty()).call("open").attempt(Code::RootfsInvalid, attempted);
    if !plan.namespaces.has(Kind::Mount) {
        return Ok(Root::new(open()?));
    }
    let (propagation, recursive) = plan.root_propagation.unwrap_or((libc::MS_SLAVE, true));
    let attr = MountAttr { propagation, ..MountAttr::default() };
    mount::mount_setattr_path(c"/", recursive, &attr).attempt(Code::MountFailed, attempted)?;
    if propagation & (libc::MS_SLAVE | libc::MS_PRIVATE) == 0 || !recursive {
        make_parent_private(&plan.rootfs).attempt(Code::MountFailed, attempted)?;
    }
    let tree = match tree {
        Some(tree) => tree,
        None => mount::clone_path(&plan.rootfs, true).attempt(Code::RootfsInvalid, attempted)?,
    };
    let place = open()?;
    mount::attach(tree.as_fd(), place.as_fd()).attempt(Code::MountFailed, attempted)?;
    Ok(Root::new(tree))
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

fn clone_source(mount: &MountPlan, source: &Path, recursive: bool) -> Result<OwnedFd> {
    mount::clone_path(source, recursive).map_err(|failure| {
        let code = if failure.errno == Errno::NOENT { Code::MountSourceMissing } else { Code::MountFailed };
        Fault::of(code, mount.describe(), failure)
    })
}

/// The attributes asked for replace those of the source, as `mount --bind -o` does; a locked one (the source is of
/// another user namespace) stays, if nobody asked to clear it.
fn apply_bind_attributes(tree: BorrowedFd<'_>, mount: &MountPlan) -> Result<()> {
    let attempted = || mount.describe();
    if !mount.attr.is_empty() {
        let others = MOUNT_ATTR_RDONLY
            | MOUNT_ATTR_NOSUID
            | MOUNT_ATTR_NODEV
            | MOUNT_ATTR_NOEXEC
            | MOUNT_ATTR_NODIRATIME
            | MOUNT_ATTR_NOSYMFOLLOW;
        let asked = mount.attr.to_attr();
        let atime = asked.clear & MOUNT_ATTR_ATIME_MASK;
        let exact = MountAttr { clear: others & !asked.set | atime, ..asked };
        let result = match mount::mount_setattr(tree, false, &exact) {
            Err(failure) if failure.errno == Errno::PERM => mount::mount_setattr(tree, false, &asked),
            result => result,
        };
        result.attempt(Code::MountFailed, attempted)?;
    }
    if !mount.recursive_attr.is_empty() {
        mount::mount_setattr(tree, true, &mount.recursive_attr.to_attr()).attempt(Code::MountFailed, attempted)?;
    }
    Ok(())
}

fn propagate(mounted: BorrowedFd<'_>, mount: &MountPlan) -> Result<()> {
    mount.propagation.iter().try_for_each(|(flag, recursive)| {
        let attr = MountAttr { propagation: *flag, ..MountAttr::default() };
        mount::mount_setattr(mounted, *recursive, &attr).attempt(Code::MountFailed, || mount.describe())
    })
}

/// Nothing may cover `/proc` but a procfs, and nothing inside a procfs but the files of [`PROC_MOUNTS`].
fn check_proc_target(mount: &MountPlan, target: BorrowedFd<'_>, source: Option<BorrowedFd<'_>>) -> Result<()> {
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
    let listed = PROC_MOUNTS.iter().any(|path| mount.destination == Path::new(path));
    if !listed && is_proc(target)? {
        return refuse(format!("{destination:?} cannot be mounted because it is inside /proc"));
    }
    Ok(())
}

fn as_fs_option((name, value): &(String, Option<String>)) -> FsOption<'_> {
    match value {
        Some(value) => FsOption::Value(name, value),
        None => FsOption::Flag(name),
    }
}

fn new_filesystem(
    mount: &MountPlan,
    fstype: &str,
    source: &str,
    options: &[FsOption<'_>],
    attr: u64,
) -> Result<OwnedFd> {
    mount::new_filesystem(fstype, source, options, attr).map_err(|(failure, words)| refused(mount, failure, words))
}

fn refused(mount: &MountPlan, failure: Failure, words: Option<String>) -> Box<Fault> {
    let mut fault = Fault::of(Code::MountFailed, mount.describe(), failure);
    if let Some(words) = words {
        fault.causes.insert(0, words);
    }
    fault
}

/// The v1 hierarchy of some controllers, seen from the cgroup namespace.
fn new_hierarchy(mount: &MountPlan, controllers: &str) -> Result<OwnedFd> {
    let words: Vec<FsOption<'_>> = match controllers.strip_prefix("name=") {
        Some(name) => vec![FsOption::Flag("none"), FsOption::Value("name", name)],
        None => controllers.split(',').map(FsOption::Flag).collect(),
    };
    new_filesystem(mount, "cgroup", "cgroup", &words, CGROUP_ATTR | mount.attr.set)
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

/// A tmpfs over a directory takes the directory's mode, if the spec says none.
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

fn is_directory(handle: BorrowedFd<'_>) -> crate::sys::Result<bool> {
    path::stat(handle).map(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
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
