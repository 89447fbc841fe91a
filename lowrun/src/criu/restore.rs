//! `lowrun restore`: a container of a directory of images.
//!
//! Like a creation, but CRIU makes the processes: lowrun makes state and cgroup, puts CRIU into the cgroup, and gives
//! the container's mounts names that CRIU finds. The first process comes back as a child of lowrun (`rst_sibling`).

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;

use super::client::{Ask, Client, Notification};
use super::wire::Message;
use super::{
    DESCRIPTORS, Draft, NULL, Options, cgroup_binds, external_key, external_namespaces, field, open_dir, resolved,
    version,
};
use crate::cgroup::Cgroup;
use crate::channel;
use crate::create::hooks::Point;
use crate::create::{Created, Made, check_rootfs, hooks, notify, prepare_filter};
use crate::fault::{Attempt, Code, Fault, Result, Step};
use crate::log::Log;
use crate::path::Root;
use crate::plan::Plan;
use crate::plan::mounts::{MountKind, MountPlan};
use crate::plan::namespaces::Kind;
use crate::spec::Spec;
use crate::state::{Container, Dir, Identity, State, StateFile, Status, hook_state};
use crate::sys::mount::{self, MountAttr};
use crate::sys::{self, Call};

/// What CRIU calls its log of a restore.
const LOG: &str = "restore.log";
/// Where the root file system is bound for CRIU, which wants the root of a mount; below the state directory.
const ROOT: &str = "criu-root";
/// From this version on restored processes are in a time namespace.
const VERSION_TIME_NAMESPACE: u32 = 31_400;
/// From this version on another LSM profile can be set.
const VERSION_LSM: u32 = 31_600;

/// What the caller asked for.
pub struct Restore<'a> {
    pub id: &'a str,
    pub bundle: &'a Path,
    pub spec: &'a Spec,
    pub plan: &'a Plan,
    pub root: &'a Path,
    pub log: &'a Log,
    pub options: &'a Options,
    /// Whether the plan has the directory of a socket for readiness.
    pub notifies: bool,
    /// A connected socket that the terminal's master goes to.
    pub console: Option<OwnedFd>,
}

/// Restores the container, or nothing.
pub fn restore(request: &Restore<'_>) -> Result<Created> {
    let (dir, file) = Dir::create(request.root, request.id).step("restore:state")?;
    let mut made = Made::default();
    match make(request, (&dir, file), &mut made) {
        Ok((state, pid, pidfd)) => {
            Ok(Created { container: Container { dir, state }, pid, pidfd, notify: None, unsettled: None })
        }
        Err(fault) => {
            made.unmake(&dir, fault.code);
            Err(fault)
        }
    }
}

fn make(request: &Restore<'_>, (dir, mut file): (&Dir, StateFile), made: &mut Made) -> Result<(State, Pid, OwnedFd)> {
    let version = version(request.log).step("restore:criu")?;
    let plan = request.plan;
    check_rootfs(&plan.rootfs).step("restore:plan")?;
    if request.options.texts.iter().any(|_| version < VERSION_LSM) {
        return Err(Fault::new(Code::Unsupported, "--lsm-profile requires at least CRIU 3.16"));
    }
    let cgroup = Cgroup::locate(&plan.cgroup).step("restore:cgroup")?;
    let mut state = State::new(request.id, request.bundle, request.spec, plan, cgroup);
    prepare_filter(plan, request.root, dir, &mut state).step("restore:seccomp")?;
    if version >= VERSION_TIME_NAMESPACE && Path::new("/proc/self/ns/time").exists() {
        // An exec joins it.
        state.namespaces.add(Kind::Time);
    }
    // Before anything else is made: whoever finds this state can remove all that it names.
    file.save(&state).step("restore:state")?;
    if request.notifies {
        notify::make_dir(dir.path()).step("restore:state")?;
    }
    made.cgroup = Some(state.cgroup.clone());
    if state.cgroup.unit.is_none() {
        state.cgroup.create(&plan.cgroup).step("restore:cgroup")?;
    }
    let place = Place::enter(dir, &plan.rootfs).step("restore:mounts")?;
    let restored = ask(request, &state, &place, made);
    place.leave().step("restore:mounts")?;
    restored.step("restore:criu")?;
    let unnamed = || {
        Fault::new(Code::CheckpointFailed, "restore the container").cause("criu named no process").at("restore:criu")
    };
    let pid = made.process.as_ref().ok_or_else(unnamed)?.0;
    let init = Identity::of(pid).attempt(Code::SystemError, || "identify the container's process")?;
    file.save_init(&init).step("restore:state")?;
    state.init = Some(init);
    // From here on it is not unmade.
    let (pid, pidfd) = made.process.take().ok_or_else(unnamed)?;
    Ok((state, pid, pidfd))
}

/// A mount namespace of lowrun's own, so that nothing stays mounted, however lowrun ends.
struct Place {
    own: OwnedFd,
    /// Where lowrun was: the return would leave it at the root of all, and paths that the caller gave are relative.
    dir: OwnedFd,
    root: PathBuf,
}

impl Place {
    fn enter(dir: &Dir, rootfs: &Path) -> Result<Place> {
        let attempted = || "make a mount namespace for criu";
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let own = rustix::fs::open("/proc/self/ns/mnt", flags, Mode::empty())
            .call("open")
            .attempt(Code::NamespaceFailed, attempted)?;
        let root = dir.path().join(ROOT);
        rustix::fs::mkdir(&root, Mode::from_raw_mode(0o755)).call("mkdir").attempt(Code::StateInvalid, attempted)?;
        sys::process::unshare(Kind::Mount.flag()).attempt(Code::NamespaceFailed, attempted)?;
        let dir = open_dir(Path::new("."))?;
        let place = Place { own, dir, root };
        match place.bind(rootfs) {
            Ok(()) => Ok(place),
            Err(failure) => {
                let fault = Fault::of(Code::MountFailed, format!("bind {} for criu", rootfs.display()), failure);
                place.leave().and(Err(fault))
            }
        }
    }

    fn bind(&self, rootfs: &Path) -> sys::Result<()> {
        // Nothing of what is mounted here gets out.
        let slave = MountAttr { propagation: u64::from(libc::MS_SLAVE as u32), ..MountAttr::default() };
        mount::mount_setattr_path(c"/", true, &slave)?;
        let target = rustix::fs::open(&self.root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).call("open")?;
        mount::attach(mount::clone_path(rootfs, true)?.as_fd(), target.as_fd())
    }

    /// Back to the namespace of before: hooks and the log are there.
    fn leave(self) -> Result<()> {
        sys::process::setns(self.own.as_fd(), Kind::Mount.flag())
            .attempt(Code::NamespaceFailed, || "return to the mount namespace")?;
        rustix::process::fchdir(&self.dir)
            .call("fchdir")
            .attempt(Code::NamespaceFailed, || "return to the working directory")?;
        let _ = rustix::fs::rmdir(&self.root);
        Ok(())
    }
}

fn ask(request: &Restore<'_>, state: &State, place: &Place, made: &mut Made) -> Result<()> {
    let options = request.options;
    let mut draft = Draft::begin(options, &state.annotations, LOG)?;
    let inherited = describe_namespaces(&mut draft, state)?;
    make_mountpoints(request.plan, &place.root)?;
    describe_mounts(&mut draft, request.plan, state);
    describe_descriptors(&mut draft, options)?;
    draft
        .options
        .text(field::ROOT, &place.root.display().to_string())
        .flag(field::EVASIVE_DEVICES, true)
        .flag(field::RST_SIBLING, true);
    let client = Client::start(true, &inherited)?;
    enter_cgroup(&mut draft, &client, request.plan, state, &made.unit_is_made)?;
    let mut notified = |notification: &Notification, descriptor| follow(request, state, notification, descriptor, made);
    let answer = client.ask(Ask::Restore, &draft.request(), &mut notified);
    let result = answer.and_then(|_| client.end(Ask::Restore));
    result.map_err(|fault| draft.explain(fault))
}

/// What lowrun does at the moments that CRIU tells.
fn follow(
    request: &Restore<'_>,
    state: &State,
    notification: &Notification,
    descriptor: Option<OwnedFd>,
    made: &mut Made,
) -> Result<()> {
    request.log.debug(&format!("criu: {}", notification.script));
    match notification.script.as_str() {
        "setup-namespaces" => {
            let document = hook_state(state, Status::Creating, notification.pid);
            let place = hooks::Place { dir: Some(request.bundle), ..hooks::Place::default() };
            hooks::run(Point::Prestart, &request.plan.hooks.prestart, &document, &place)?;
            hooks::run(Point::CreateRuntime, &request.plan.hooks.create_runtime, &document, &place)
        }
        "post-restore" => {
            made.process = Some(open(notification.pid)?);
            Ok(())
        }
        "orphan-pts-master" => match (&request.console, descriptor) {
            (Some(console), Some(master)) => channel::send_descriptor(console.as_fd(), b"/dev/ptmx", master.as_fd())
                .attempt(Code::SystemError, || "send the terminal to the console socket"),
            // A terminal that nobody asked for ends with its master.
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

fn open(pid: i32) -> Result<(Pid, OwnedFd)> {
    let attempted = || "keep the container's process";
    let pid = Pid::from_raw(pid).ok_or_else(|| Fault::new(Code::SystemError, attempted()).cause("it has no pid"))?;
    let pidfd = sys::pidfd::open(pid).attempt(Code::SystemError, attempted)?;
    Ok((pid, pidfd))
}

/// CRIU enters the cgroup itself, and what it restores is born there. With the systemd driver the unit is made around
/// CRIU, and stays for those that are in it when CRIU ends.
fn enter_cgroup(
    draft: &mut Draft,
    client: &Client,
    plan: &Plan,
    state: &State,
    unit_is_made: &Cell<bool>,
) -> Result<()> {
    let pid = client.pid()?;
    if state.cgroup.unit.is_some() {
        state.cgroup.start_unit(&plan.cgroup, pid, unit_is_made)?;
        state.cgroup.create_v1(&plan.cgroup)?;
    }
    if !state.cgroup.is_entered_by_systemd() {
        state.cgroup.add(pid)?;
    }
    state.cgroup.limit(&plan.cgroup)?;
    for hierarchy in &state.cgroup.hierarchies {
        let mut root = Message::default();
        root.text(1, &hierarchy.controllers);
        root.text(2, &Path::new("/").join(hierarchy.path_in_hierarchy()).display().to_string());
        draft.options.message(field::CG_ROOT, &root);
    }
    Ok(())
}

/// Namespaces that are joined: those that CRIU left alone it inherits, the others it joins by path.
fn describe_namespaces(draft: &mut Draft, state: &State) -> Result<Vec<OwnedFd>> {
    let mut inherited = Vec::new();
    for (kind, path) in external_namespaces(&state.namespaces) {
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .call("open")
            .attempt(Code::NamespaceFailed, || format!("open {} namespace {}", kind.as_str(), path.display()))?;
        inherit(draft, external_key(kind), fd.as_raw_fd());
        inherited.push(fd);
    }
    for (kind, path) in state.namespaces.joined() {
        match kind {
            Kind::Network | Kind::Pid => {}
            Kind::Cgroup => {
                return Err(Fault::new(Code::Unsupported, "join a cgroup namespace").cause("criu cannot do that"));
            }
            kind => {
                let mut join = Message::default();
                join.text(1, kind.proc_name()).text(2, &path.display().to_string());
                draft.options.message(field::JOIN_NS, &join);
            }
        }
    }
    Ok(inherited)
}

fn inherit(draft: &mut Draft, key: &str, fd: i32) {
    let mut inherit = Message::default();
    inherit.text(1, key).signed(2, fd);
    draft.options.message(field::INHERIT_FD, &inherit);
}

/// Places for mounts that a root file system does not have yet: it may be a fresh copy of the image. What lies on a
/// tmpfs CRIU brings itself.
fn make_mountpoints(plan: &Plan, root: &Path) -> Result<()> {
    let root = Root::new(open_dir(root)?);
    for (index, mount) in plan.mounts.iter().enumerate() {
        let path = &mount.destination;
        let covers = |other: &&MountPlan| path != &other.destination && path.starts_with(&other.destination);
        let cover = plan.mounts[..index].iter().rev().find(covers);
        match cover.map(|cover| (&cover.kind, path.strip_prefix(&cover.destination).unwrap_or(path))) {
            Some((MountKind::Filesystem { fstype, .. }, _)) if fstype == "tmpfs" => {}
            // In what a bind mount before this one brings.
            Some((MountKind::Bind { source, .. }, below)) => {
                make_mountpoint(&Root::new(open_dir(source)?), &Path::new("/").join(below), mount)?;
            }
            _ => make_mountpoint(&root, path, mount)?,
        }
    }
    Ok(())
}

fn make_mountpoint(root: &Root, path: &Path, mount: &MountPlan) -> Result<()> {
    if matches!(mount.kind, MountKind::Cgroup { .. }) || root.resolve(path).is_ok() {
        return Ok(());
    }
    let is_file = matches!(&mount.kind, MountKind::Bind { source, .. } if !source.is_dir());
    let made = if is_file { root.make_file(path) } else { root.make_dirs(path, 0o755) };
    made.attempt(Code::MountFailed, || format!("make {} for a mount", path.display())).map(drop)
}

/// Where the mounts come from that CRIU did not look into.
fn describe_mounts(draft: &mut Draft, plan: &Plan, state: &State) {
    let root = open_dir(&plan.rootfs).ok().map(Root::new);
    for mount in &plan.mounts {
        if let MountKind::Bind { source, .. } = &mount.kind {
            let destination = resolved(root.as_ref(), &plan.rootfs, &mount.destination);
            // CRIU finds no mount by a path that ends in `/.`.
            let source: PathBuf = source.components().collect();
            draft.external_mount(&destination, &source.display().to_string());
        }
        for (destination, hierarchy) in cgroup_binds(plan, &state.cgroup, mount) {
            draft.external_mount(&destination, &hierarchy.dir.display().to_string());
        }
    }
    if !plan.masked_paths.is_empty() {
        draft.external_mount(NULL, NULL);
    }
    for device in &plan.devices {
        let path = device.path.display().to_string();
        draft.external_mount(&path, &path);
    }
}

/// Pipes that stdio was become lowrun's own stdio.
fn describe_descriptors(draft: &mut Draft, options: &Options) -> Result<()> {
    let path = options.images.join(DESCRIPTORS);
    let attempted = || format!("read {}", path.display());
    let text = std::fs::read(&path).call("open").attempt(Code::InvalidArgument, attempted)?;
    let names: Vec<String> = serde_json::from_slice(&text)
        .map_err(|error| Fault::new(Code::InvalidArgument, attempted()).cause(error.to_string()))?;
    for (fd, name) in names.iter().take(3).enumerate().filter(|(_, name)| name.starts_with("pipe:")) {
        inherit(draft, name, fd as i32);
    }
    Ok(())
}
