//! The host side: makes a container's process and everything around it, or nothing.
//!
//! Called by `cli` for `create` and `run`. Order: the state directory claims the id; everything is opened that the
//! container side will need; the process is cloned; while it makes its mounts, the host side makes the cgroups (on
//! another CPU, if there is one) and writes the state; then both meet. Each phase can be undone by
//! `Made`, which `create` lets go of when all is there; who stays until the program ends keeps it until then, because the
//! program may never have begun.

mod clone;
pub mod exec;
pub mod hooks;
mod id_map;
mod meeting;
mod net_devices;
pub mod notify;
mod oom_score;
pub mod seccomp;
pub mod socket;
mod sources;
pub mod terminal;
pub mod wait;

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::process::Pid;

use crate::cgroup::{Cgroup, ignored_weight};
use crate::channel::{HostEnd, ToInit};
use crate::fault::{Attempt, Code, Fault, Result, Step};
use crate::init::Setup;
use crate::log::Log;
use crate::path;
use crate::plan::Plan;
use crate::plan::mounts::MountKind;
use crate::plan::namespaces::Kind;
use crate::spec::Spec;
use crate::state::{Container, Dir, NamespaceIdentity, State, StateFile};
use crate::sys::signal::SignalSet;
use crate::sys::{self, Call, Failure};
use crate::trace::span;
use crate::{rdt, rootless};
use clone::{Cloned, clone, clone_flags, helper_makes_time, init_makes_network, is_staged, open_joins};
use meeting::Meeting;
use seccomp::Filter;

pub use sources::sweep_stage;

pub use meeting::pass_listener;

/// What the caller asked for.
pub struct Request<'a> {
    pub id: &'a str,
    pub bundle: &'a Path,
    pub spec: &'a Spec,
    pub plan: &'a Plan,
    /// Where the states of all containers are.
    pub root: &'a Path,
    pub log: &'a Log,
    /// Whether the program runs at once, or waits for `start`.
    pub runs: bool,
    /// Whether the caller watches the program to its end, and need not know when it begins.
    pub stays: bool,
    /// The mount of lowrun's own program file, to be closed when there is time.
    pub program: Option<OwnedFd>,
    /// A connected socket that the terminal's master goes to.
    pub console: Option<OwnedFd>,
    pub pidfd_socket: Option<OwnedFd>,
    /// Descriptors from 3 on that the program gets.
    pub extra_fds: u32,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    /// Whether the plan has the directory of a socket for readiness.
    pub notifies: bool,
    /// What `--rootless` says about cgroups, if it says anything.
    pub rootless: Option<bool>,
}

/// A container that waits for `start`, or runs.
pub struct Created {
    pub container: Container,
    pub pid: Pid,
    /// Handle on the first process, a child of this one.
    pub pidfd: OwnedFd,
    /// Where a program that runs already tells its readiness.
    pub notify: Option<OwnedFd>,
    /// For a caller that stays: what to unmake if the process does not become the program.
    pub(crate) unsettled: Option<Made>,
}

impl Created {
    /// For a caller that stays: waits until the program has begun. What is not the program yet, signals are not for.
    pub fn await_program(&self) {
        if let Some(host) = self.unsettled.as_ref().and_then(|made| made.host.as_ref()) {
            host.await_program(self.pidfd.as_fd());
        }
    }

    /// For a caller that stays, when the process has ended: why it never became the program, if so. Nothing of the
    /// container is left then.
    pub fn take_refusal(&mut self) -> Option<Box<Fault>> {
        let fault = self.unsettled.as_ref()?.host.as_ref()?.last_fault(self.pidfd.as_fd())?;
        self.unsettled.take()?.unmake(&self.container.dir, fault.code);
        Some(fault)
    }
}

/// What has been made so far, to be unmade if the rest fails.
#[derive(Default)]
pub(crate) struct Made {
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) rdt: Option<rdt::Group>,
    pub(crate) process: Option<(Pid, OwnedFd)>,
    pub(crate) notify: Option<OwnedFd>,
    /// The root file system, where its mounts are not in a namespace of its own: killed at work, the process leaves some.
    shared_rootfs: Option<Box<State>>,
    /// Whether nobody has looked yet whether the directories of the cgroup are another's.
    only_permitted: bool,
    /// Whether systemd has made the cgroup's unit: until then, one of that name is somebody else's.
    pub(crate) unit_is_made: Cell<bool>,
    /// Open until the process is killed: one that finds it closed reports that, as if it were the fault.
    host: Option<HostEnd>,
}

impl Made {
    /// Last first. Failures here have nowhere to go: the fault that led here is the one to tell, and `delete --force`
    /// finds what is left by the state file, which goes only when the cgroup has gone.
    pub(crate) fn unmake(self, dir: &Dir, code: Code) {
        if let Some((_, pidfd)) = &self.process {
            let _ = sys::pidfd::send(pidfd.as_fd(), libc::SIGKILL);
            let _ = wait::reap(pidfd.as_fd());
        }
        if let Some(state) = self.shared_rootfs {
            let _ = sources::sweep_stage(&state);
        }
        let rdt_is_gone = self.rdt.is_none_or(|group| group.remove().is_ok());
        let had_process = self.process.is_some();
        let unit_is_made = self.unit_is_made.get();
        let remove = |cgroup: Cgroup| {
            let is_others = code == Code::CgroupInUse || self.only_permitted || cgroup.unit.is_some() && !unit_is_made;
            if is_others {
                cgroup.give_back(had_process);
            }
            is_others || cgroup.remove().is_ok()
        };
        if self.cgroup.is_none_or(remove) && rdt_is_gone {
            let _ = dir.remove();
        }
    }
}

/// Makes the container, or nothing.
pub fn create(request: Request<'_>) -> Result<Created> {
    let (dir, file) = Dir::create(request.root, request.id).step("create:state")?;
    let mut made = Made::default();
    let stays = request.stays;
    match make(request, (&dir, file), &mut made) {
        Ok((state, pid, pidfd)) => {
            let notify = made.notify.take();
            let unsettled = stays.then_some(made);
            Ok(Created { container: Container { dir, state }, pid, pidfd, notify, unsettled })
        }
        Err(fault) => {
            made.unmake(&dir, fault.code);
            Err(fault)
        }
    }
}

fn make(request: Request<'_>, (dir, mut file): (&Dir, StateFile), made: &mut Made) -> Result<(State, Pid, OwnedFd)> {
    let (plan, runs) = (request.plan, request.runs);
    let awaits_program = runs && !request.stays;
    check_rootfs(&plan.rootfs).step("create:plan")?;
    rootless::check(plan).step("create:plan")?;
    let tolerant = rootless::tolerates_cgroups(request.rootless);
    let cgroup = locate_cgroup(&request, tolerant).step("create:cgroup")?;
    let mut state = State::new(request.id, request.bundle, request.spec, plan, cgroup);
    if let Some(words) = ignored_weight(&plan.cgroup.resources).filter(|_| state.cgroup.is_unified()) {
        request.log.warn(words);
    }
    let filter =
        span("seccomp-prepare", || prepare_filter(plan, request.root, dir, &mut state)).step("create:seccomp")?;
    let joins = open_joins(plan).step("create:namespaces")?;
    state.mount_namespace = identify_mounts(&joins).step("create:namespaces")?;
    let section = plan.intel_rdt.as_ref();
    state.rdt = section.map(|section| rdt::locate(section, request.id)).transpose().step("create:plan")?;
    // Before anything is made: whoever finds this state can remove all that it names.
    file.save(&state).step("create:state")?;
    // A unit is made by who may make it.
    if tolerant && state.cgroup.unit.is_none() {
        made.only_permitted = true;
        state.cgroup.keep_permitted(plan.cgroup.is_named).step("create:cgroup")?;
        warn_of_loose_processes(&request, &state.cgroup);
        made.cgroup = Some(state.cgroup.clone());
        file.save(&state).step("create:state")?;
    }
    if request.notifies {
        notify::make_dir(dir.path()).step("create:state")?;
        made.notify = if runs { notify::bind(dir.path()).step("create:state")? } else { None };
    }
    let setup = prepare(request, (dir, file.number()), &state, (filter, joins), tolerant)?;
    (made.cgroup, made.only_permitted) = (Some(state.cgroup.clone()), false);
    made.rdt.clone_from(&state.rdt);
    made.shared_rootfs = (!plan.namespaces.is_new(Kind::Mount)).then(|| Box::new(state.clone()));
    span("cgroup-unified", || state.cgroup.create_unified(&plan.cgroup)).step("create:cgroup")?;
    let Cloned { host, pid, pidfd, born_in_cgroup } = span("clone", || clone_with_score(&setup))?;
    let (pid, pidfd) = made.process.insert((pid, pidfd));
    let host = made.host.insert(host);
    let unit_is_made = &made.unit_is_made;
    let meeting = Meeting { setup: &setup, host, pid: *pid, pidfd: pidfd.as_fd(), awaits_program, unit_is_made };
    let init = meeting.prepare(born_in_cgroup)?;
    open_to_own_user(false).step("create:clone")?;
    file.save_init(&init).step("create:state")?;
    let running = State { init: Some(init), ..state.clone() };
    if let (Some(group), Some(section)) = (&state.rdt, &plan.intel_rdt) {
        group.enter(section, *pid).step("create:limits")?;
    }
    clone::move_devices(&setup, *pid).step("create:network")?;
    host.send(ToInit::Cgroup);
    // Its last close takes long; the container side has work to do meanwhile.
    drop(setup.program.take());
    meeting.converse(&running)?;
    let (pid, pidfd) = made.process.take().ok_or_else(|| Fault::new(Code::SystemError, "the process is lost"))?;
    Ok((running, pid, pidfd))
}

/// The middle words are runc's, by which its users know it.
fn warn_of_loose_processes(request: &Request<'_>, cgroup: &Cgroup) {
    if cgroup.hierarchies.is_empty() && !request.plan.namespaces.has(Kind::Pid) {
        request.log.warn(
            "the container has no cgroup and no pid namespace of its own. Such configuration is strongly discouraged: \
             processes that outlive the first one cannot be found and killed",
        );
    }
}

/// Without privilege, a process in a user namespace that it joins cannot have its score set: it inherits lowrun's.
fn clone_with_score(setup: &Setup<'_>) -> Result<Cloned> {
    let namespaces = &setup.plan.namespaces;
    // Of a namespace that is joined nothing is mapped, and who is in it must not trace what comes.
    let is_open = namespaces.is_new(Kind::User);
    let inherits = !is_open && namespaces.has(Kind::User) && rootless::lacks_privilege();
    let score = setup.plan.process.oom_score_adj.filter(|_| inherits);
    let proc = setup.proc.as_fd();
    let before = score.map(|score| oom_score::set_own(proc, &score.to_string())).transpose().step("create:limits")?;
    open_to_own_user(is_open).step("create:clone")?;
    let cloned = clone(setup).step("create:clone")?;
    // To have less again is everybody's right, who had it before.
    before.map_or(Ok(()), |before| oom_score::set_own(proc, &before).map(drop)).step("create:limits")?;
    Ok(cloned)
}

/// Without privilege, a process that cannot be traced cannot have its ids mapped either: the files for it are root's.
/// So it is open for that long, to who is the same user on the host; nobody of the container is there yet.
pub fn open_to_own_user(open: bool) -> Result<()> {
    if !rootless::is_unprivileged() {
        return Ok(());
    }
    sys::process::set_dumpable(open).attempt(Code::SystemError, || "protect lowrun from the container")
}

/// The mount namespace among those that are joined.
fn identify_mounts(joins: &[(Kind, OwnedFd)]) -> Result<Option<NamespaceIdentity>> {
    let joined = joins.iter().find(|(kind, _)| *kind == Kind::Mount);
    let identity = joined.map(|(_, namespace)| NamespaceIdentity::of(namespace.as_fd())).transpose();
    identity.attempt(Code::NamespaceFailed, || "identify the mount namespace to join")
}

/// Opens and decides all that the container side will need.
fn prepare<'a>(
    request: Request<'a>,
    (dir, state_file): (&'a Dir, RawFd),
    state: &'a State,
    (filter, joins): (Option<Filter>, Vec<(Kind, OwnedFd)>),
    tolerant: bool,
) -> Result<Setup<'a>> {
    let plan = request.plan;
    let proc = path::open_proc().attempt(Code::RootfsUnsafe, || "open the host's /proc").step("create:clone")?;
    let id_maps = id_map::namespaces(plan, proc.as_fd()).step("create:namespaces")?;
    Ok(Setup {
        plan,
        state,
        log: request.log,
        cgroup: &state.cgroup,
        shown: shown(plan, &state.cgroup, tolerant),
        dir,
        proc,
        joins,
        staged: is_staged(plan),
        helper_makes_time: helper_makes_time(plan),
        clone_flags: clone_flags(plan),
        program: Cell::new(request.program),
        console: request.console,
        pidfd_socket: request.pidfd_socket,
        state_file,
        fifo: if request.runs { None } else { Some(dir.create_fifo().step("create:state")?) },
        filter,
        extra_fds: request.extra_fds,
        no_pivot: request.no_pivot,
        no_new_keyring: request.no_new_keyring,
        makes_network: init_makes_network(plan),
        host_opens_sources: sources::are_opened_by_host(plan),
        id_maps,
        host_moves: plan.namespaces.has(Kind::User) || tolerant,
        tolerant,
        caller_is_user: rootless::is_unprivileged(),
    })
}

/// Of cgroups that are gone without, a mount shows those of the caller: an empty directory would be no mount of cgroups.
fn shown(plan: &Plan, cgroup: &Cgroup, tolerant: bool) -> Option<Cgroup> {
    let shows = plan.mounts.iter().any(|mount| matches!(mount.kind, MountKind::Cgroup { .. }));
    (tolerant && shows).then(|| cgroup.with_own())
}

/// Where the cgroup will be.
fn locate_cgroup(request: &Request<'_>, tolerant: bool) -> Result<Cgroup> {
    match Cgroup::locate(&request.plan.cgroup) {
        // Who names the driver counts on it.
        Err(_) if tolerant && request.plan.cgroup.unit.is_none() => Ok(Cgroup::default()),
        result => result,
    }
}

/// As runc: the path itself must be the directory, else what a person sees is not what the container gets.
pub(crate) fn check_rootfs(rootfs: &Path) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // The usual case in one call; what is wrong, or a kernel without it, is looked at in detail.
    if rustix::fs::openat2(CWD, rootfs, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).is_ok() {
        return Ok(());
    }
    let invalid =
        |cause: &str| Err(Fault::new(Code::RootfsInvalid, format!("invalid rootfs {}", rootfs.display())).cause(cause));
    let stat = rustix::fs::stat(rootfs)
        .call("stat")
        .attempt(Code::RootfsInvalid, || format!("invalid rootfs {}", rootfs.display()))?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
        return invalid("not a directory");
    }
    let real = std::fs::canonicalize(rootfs)
        .call("open")
        .attempt(Code::RootfsInvalid, || format!("invalid rootfs {}", rootfs.display()))?;
    if real != path::clean(&rootfs.to_string_lossy()) {
        return invalid("not an absolute path, or a symlink");
    }
    Ok(())
}

/// The filter of a plan, found in the cache of `root` or made, and what the state must tell of it.
pub(crate) fn prepare_filter(plan: &Plan, root: &Path, dir: &Dir, state: &mut State) -> Result<Option<Filter>> {
    let Some(section) = &plan.seccomp else { return Ok(None) };
    let filter = seccomp::prepare(section, root, dir)?;
    state.seccomp_flags = filter.as_ref().map(|filter| filter.flags);
    state.seccomp_listener = filter.as_ref().and_then(|filter| filter.listener.clone());
    Ok(filter)
}

/// Blocks all signals, to read them as events: for a caller that waits for the container.
pub fn block_signals() -> Result<OwnedFd> {
    let attempted = || "read signals";
    let all = SignalSet::full();
    all.block().attempt(Code::SystemError, attempted)?;
    all.descriptor().attempt(Code::SystemError, attempted)
}

/// Whether a failure says that the process is gone.
pub fn is_gone(failure: &Failure) -> bool {
    failure.errno == rustix::io::Errno::SRCH
}
