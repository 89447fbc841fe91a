//! The host side: makes a container's process and everything around it, or nothing.
//!
//! Called by `cli` for `create` and `run`. Order: the state directory claims the id; everything is opened that the
//! container side will need; the process is cloned; while it makes its mounts, the host side makes the cgroups (on
//! another CPU, if there is one) and writes the state; then both meet. Each phase can be undone: [`Undo`] does it
//! unless the last phase disarms it.

pub mod exec;
pub mod hooks;
pub mod seccomp;
pub mod socket;
pub mod terminal;
pub mod wait;

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::cgroup::Cgroup;
use crate::channel::{self, FromInit, HostEnd, ToInit};
use crate::fault::{Attempt, Code, Fault, Result, Step};
use crate::init::{self, Setup};
use crate::log::Log;
use crate::path;
use crate::plan::Plan;
use crate::plan::namespaces::Kind;
use crate::spec::{IdMapping, Spec};
use crate::state::{Container, Dir, Identity, State, Status, hook_state};
use crate::sys::clone::{Forked, clone3};
use crate::sys::signal::SignalSet;
use crate::sys::{self, Call, Failure};
use crate::trace::span;
use seccomp::{Filter, Listener};

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
    /// The mount of lowrun's own program file, to be closed when there is time.
    pub program: Option<OwnedFd>,
    /// A connected socket that the terminal's master goes to.
    pub console: Option<OwnedFd>,
    pub pidfd_socket: Option<OwnedFd>,
    /// Descriptors from 3 on that the program gets.
    pub extra_fds: u32,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
}

/// A container that waits for `start`, or runs.
pub struct Created {
    pub container: Container,
    pub pid: Pid,
    /// Handle on the first process, a child of this one.
    pub pidfd: OwnedFd,
}

/// What has been made so far; dropped, it is unmade, last first.
struct Undo {
    dir: Option<Dir>,
    cgroup: Option<Cgroup>,
    process: Option<OwnedFd>,
}

impl Drop for Undo {
    fn drop(&mut self) {
        // Failures here have nowhere to go: the fault that led here is the one to tell, and `delete --force` finds
        // what is left by the state file.
        if let Some(process) = &self.process {
            let _ = sys::signal::send(process.as_fd(), libc::SIGKILL);
            let _ = wait::reap(process.as_fd());
        }
        let removed = self.cgroup.as_ref().is_none_or(|cgroup| cgroup.remove().is_ok());
        if let Some(dir) = self.dir.take().filter(|_| removed) {
            let _ = dir.remove();
        }
    }
}

/// Makes the container.
pub fn create(request: Request<'_>) -> Result<Created> {
    let dir = Dir::create(request.root, request.id).step("create:state")?;
    let mut undo = Undo { dir: Some(dir), cgroup: None, process: None };
    let dir = undo.dir.as_ref().ok_or_else(|| Fault::new(Code::SystemError, "no state directory"))?;
    check_rootfs(&request.plan.rootfs).step("create:plan")?;
    let cgroup = Cgroup::locate(&request.plan.cgroup).step("create:cgroup")?;
    let mut state = State::new(request.id, request.bundle, request.spec, request.plan, cgroup.clone());
    let filter = span("seccomp-prepare", || prepare_filter(&request, dir, &mut state)).step("create:seccomp")?;
    // Before anything else is made: whoever finds this state can remove all that it names.
    dir.save(&state).step("create:state")?;
    let fifo = if request.runs { None } else { Some(dir.create_fifo().step("create:state")?) };
    undo.cgroup = Some(cgroup.clone());
    span("cgroup-unified", || cgroup.create_unified(&request.plan.cgroup)).step("create:cgroup")?;

    let plan = request.plan;
    let setup = Setup {
        plan,
        state: &state,
        log: request.log,
        cgroup: &cgroup,
        dir,
        proc: path::open_proc().attempt(Code::RootfsUnsafe, || "open the host's /proc").step("create:clone")?,
        joins: open_joins(plan).step("create:namespaces")?,
        staged: is_staged(plan),
        clone_flags: clone_flags(plan),
        program: Cell::new(request.program),
        console: request.console,
        pidfd_socket: request.pidfd_socket,
        fifo,
        filter,
        extra_fds: request.extra_fds,
        no_pivot: request.no_pivot,
        no_new_keyring: request.no_new_keyring,
        host_makes_network: host_makes_network(plan),
        host_moves: plan.namespaces.has(Kind::User),
    };
    let (host, init_pid, pidfd, born_in_cgroup) = span("clone", || clone(&setup)).step("create:clone")?;
    let (pid, pidfd) = match init_pid {
        Some(pid) => (pid, pidfd),
        None => (receive_sibling(&host, pidfd.as_fd())?, pidfd),
    };
    let pidfd = if setup.staged { open_pid(pid)? } else { pidfd };
    undo.process = Some(pidfd.try_clone().call("fcntl").attempt(Code::SystemError, || "keep the process")?);
    let meeting = Meeting { setup: &setup, host: &host, pid, pidfd: pidfd.as_fd(), runs: request.runs };
    let init = meeting.prepare(born_in_cgroup)?;
    let running = State { init: Some(init), ..state.clone() };
    dir.save(&running).step("create:state")?;
    host.send(ToInit::Cgroup);
    // The container side has work to do: now there is time. It has closed its own copy long ago.
    if setup.host_makes_network {
        span("network-create", || make_network(&host)).step("create:network")?;
    }
    drop(setup.program.take());
    meeting.converse(&running)?;
    drop(setup);
    let dir = undo.dir.take().ok_or_else(|| Fault::new(Code::SystemError, "no state directory"))?;
    (undo.cgroup, undo.process) = (None, None);
    Ok(Created { container: Container { dir, state: running }, pid, pidfd })
}

/// As runc: the path itself must be the directory, else what a person sees is not what the container gets.
fn check_rootfs(rootfs: &Path) -> Result<()> {
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

fn prepare_filter(request: &Request<'_>, dir: &Dir, state: &mut State) -> Result<Option<Filter>> {
    let Some(section) = &request.plan.seccomp else { return Ok(None) };
    let filter = seccomp::prepare(section, request.root, dir)?;
    state.seccomp_flags = filter.as_ref().map(|filter| filter.flags);
    state.seccomp_listener = filter.as_ref().and_then(|filter| filter.listener.clone());
    Ok(filter)
}

/// The namespaces that the child joins. Those of pids are joined by the parent: it is the child that counts there.
fn open_joins(plan: &Plan) -> Result<Vec<(Kind, OwnedFd)>> {
    plan.namespaces.joined().map(|(kind, path)| Ok((kind, open_namespace(kind, path)?))).collect()
}

fn open_namespace(kind: Kind, path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
        .call("open")
        .attempt(Code::NamespaceFailed, || format!("open {} namespace {}", kind.as_str(), path.display()))
}

/// A user namespace and others to join take a helper; see `init::enter`.
fn is_staged(plan: &Plan) -> bool {
    plan.namespaces.has(Kind::User) && plan.namespaces.joined().next().is_some()
}

/// What `clone3` makes. A cgroup namespace is made later, when the child is in its cgroup; a time namespace earlier,
/// because its offsets are fixed once somebody is in it.
fn clone_flags(plan: &Plan) -> u64 {
    let network = if host_makes_network(plan) { Kind::Network.flag() } else { 0 };
    plan.namespaces.new_flags() & !(Kind::Cgroup.flag() | Kind::Time.flag() | network)
}

/// A network namespace takes the kernel longer to make than all others together: it is made by the host side while the
/// container side mounts. One that is to belong to a user namespace is made with it.
fn host_makes_network(plan: &Plan) -> bool {
    plan.namespaces.is_new(Kind::Network) && !plan.namespaces.has(Kind::User)
}

/// Makes the namespace with its loopback interface up, hands it over, and returns to the own: hooks run there.
fn make_network(host: &HostEnd) -> Result<()> {
    const OWN: &str = "/proc/self/ns/net";
    let attempted = || "make a network namespace";
    let own = open_namespace(Kind::Network, Path::new(OWN))?;
    sys::process::unshare(Kind::Network.flag()).attempt(Code::NamespaceFailed, attempted)?;
    let made = sys::net::loopback_up()
        .attempt(Code::NamespaceFailed, || "bring the loopback interface up")
        .and_then(|()| open_namespace(Kind::Network, Path::new(OWN)));
    sys::process::setns(own.as_fd(), Kind::Network.flag()).attempt(Code::NamespaceFailed, attempted)?;
    host.send_descriptor(ToInit::Network, made?.as_fd());
    Ok(())
}

type Cloned = (HostEnd, Option<Pid>, OwnedFd, bool);

/// Clones the container side. The pid is missing if the child is a helper, whose sibling is the container's.
fn clone(setup: &Setup<'_>) -> Result<Cloned> {
    let (host, init) = channel::pair()?;
    let restore = enter_before_clone(setup)?;
    // A signal that a caller sends meanwhile is for the host side; the child gets its mask back at its start.
    let born_in = setup.cgroup.unified().filter(|_| !setup.staged && !setup.host_moves);
    let cgroup_fd = born_in.and_then(|hierarchy| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&hierarchy.dir, flags, Mode::empty()).ok()
    });
    let flags = if setup.staged { 0 } else { setup.clone_flags };
    let attempted = || "make the container's process";
    let mut born = cgroup_fd.is_some();
    let forked = match clone3(flags, cgroup_fd.as_ref().map(AsFd::as_fd)) {
        // Before 5.7, or a cgroup that may not be entered so: the host side moves the process.
        Err(_) if born => {
            born = false;
            clone3(flags, None)
        }
        result => result,
    };
    match forked.attempt(Code::NamespaceFailed, attempted)? {
        Forked::Child => {
            drop(host);
            init::run(setup, init)
        }
        Forked::Parent { pid, pidfd } => {
            restore_after_clone(restore)?;
            Ok((host, (!setup.staged).then_some(pid), pidfd, born))
        }
    }
}

/// Namespaces that the parent must be in when it clones, and what brings it back.
fn enter_before_clone(setup: &Setup<'_>) -> Result<Vec<(Kind, OwnedFd)>> {
    let mut restore = Vec::new();
    for (kind, fd) in setup.joins.iter().filter(|(kind, _)| *kind == Kind::Pid) {
        restore.push((Kind::Pid, open_namespace(Kind::Pid, Path::new("/proc/self/ns/pid"))?));
        sys::process::setns(fd.as_fd(), kind.flag()).attempt(Code::NamespaceFailed, || "join the pid namespace")?;
    }
    if setup.plan.namespaces.is_new(Kind::Time) {
        let attempted = || "make a time namespace";
        restore.push((Kind::Time, open_namespace(Kind::Time, Path::new("/proc/self/ns/time"))?));
        sys::process::unshare(Kind::Time.flag()).attempt(Code::NamespaceFailed, attempted)?;
        if !setup.plan.time_offsets.is_empty() {
            path::write_in_proc(setup.proc.as_fd(), "self/timens_offsets", &setup.plan.time_offsets)
                .attempt(Code::SpecInvalid, || "set linux.timeOffsets")?;
        }
    }
    Ok(restore)
}

fn restore_after_clone(restore: Vec<(Kind, OwnedFd)>) -> Result<()> {
    restore.iter().try_for_each(|(kind, fd)| {
        sys::process::setns(fd.as_fd(), kind.flag())
            .attempt(Code::NamespaceFailed, || format!("return to the {} namespace", kind.as_str()))
    })
}

/// Waits for the helper to say who the container's process is, and for the helper's end.
fn receive_sibling(host: &HostEnd, helper: std::os::fd::BorrowedFd<'_>) -> Result<Pid> {
    let said = host.receive();
    let _ = wait::reap(helper);
    match said? {
        Some(FromInit::Init { pid }) => {
            Pid::from_raw(pid).ok_or_else(|| Fault::new(Code::SystemError, "the helper named no process"))
        }
        Some(FromInit::Fault(fault)) => Err(fault),
        _ => Err(Fault::new(Code::NamespaceFailed, "join the namespaces").cause("the helper died")),
    }
}

fn open_pid(pid: Pid) -> Result<OwnedFd> {
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
        .call("pidfd_open")
        .attempt(Code::SystemError, || "keep the container's process")
}

/// Host side and container side of one creation, from the clone on.
struct Meeting<'a> {
    setup: &'a Setup<'a>,
    host: &'a HostEnd,
    pid: Pid,
    pidfd: std::os::fd::BorrowedFd<'a>,
    runs: bool,
}

impl Meeting<'_> {
    /// Ids, cgroups and limits.
    fn prepare(&self, born_in_cgroup: bool) -> Result<Identity> {
        let plan = self.setup.plan;
        if plan.namespaces.is_new(Kind::User) {
            self.map_ids().step("create:namespaces")?;
            self.host.send(ToInit::Mapped);
        }
        let cgroup = self.setup.cgroup;
        span("cgroup-create", || cgroup.create_v1(&plan.cgroup)).step("create:cgroup")?;
        span("cgroup-limits", || cgroup.limit(&plan.cgroup)).step("create:limits")?;
        if self.setup.host_moves {
            cgroup.add(self.pid).step("create:cgroup")?;
        } else if !born_in_cgroup {
            cgroup.add_unified(self.pid).step("create:cgroup")?;
        }
        if let Some(score) = plan.process.oom_score_adj {
            let file = format!("{}/oom_score_adj", self.pid.as_raw_nonzero());
            path::write_in_proc(self.setup.proc.as_fd(), &file, &score.to_string())
                .attempt(Code::LimitInvalid, || format!("set oom_score_adj to {score}"))
                .step("create:limits")?;
        }
        Identity::of(self.pid).attempt(Code::SystemError, || "identify the container's process").step("create:clone")
    }

    fn map_ids(&self) -> Result<()> {
        let plan = self.setup.plan;
        for (file, mappings) in [("uid_map", &plan.uid_mappings), ("gid_map", &plan.gid_mappings)] {
            let path = format!("{}/{file}", self.pid.as_raw_nonzero());
            path::write_in_proc(self.setup.proc.as_fd(), &path, &map_text(mappings))
                .attempt(Code::SpecInvalid, || format!("write the container's {file}"))?;
        }
        Ok(())
    }

    /// Answers the container side until it waits for `start`, or until the program runs.
    fn converse(&self, state: &State) -> Result<()> {
        let mut ready = false;
        loop {
            match self.host.receive()? {
                Some(FromInit::Hooks) => self.run_hooks(state).step("create:hooks")?,
                Some(FromInit::Limits) => self.set_limits().step("create:limits")?,
                Some(FromInit::Listener { fd }) => self.pass_listener(fd, state).step("create:seccomp")?,
                Some(FromInit::Ready) if !self.runs => return Ok(()),
                Some(FromInit::Ready) => {
                    ready = true;
                    continue;
                }
                Some(FromInit::Fault(fault)) => return Err(fault),
                None if ready => return Ok(()),
                Some(FromInit::Init { .. }) | None => return Err(self.died()),
            }
            self.host.send(ToInit::Continue);
        }
    }

    fn run_hooks(&self, state: &State) -> Result<()> {
        let document = hook_state(state, Status::Creating, self.pid.as_raw_nonzero().get());
        hooks::run("prestart", &self.setup.plan.hooks.prestart, &document, &[])?;
        hooks::run("createRuntime", &self.setup.plan.hooks.create_runtime, &document, &[])
    }

    fn set_limits(&self) -> Result<()> {
        let limits = &self.setup.plan.process.rlimits;
        limits.iter().try_for_each(|limit| init::process::set_limit(Some(self.pid), limit))
    }

    fn pass_listener(&self, fd: i32, state: &State) -> Result<()> {
        let listener = state.seccomp_listener.as_ref();
        let listener = listener.ok_or_else(|| Fault::new(Code::SeccompFailed, "a listener that nobody asked for"))?;
        pass_listener(self.pidfd, fd, listener, state, self.pid)
    }

    fn died(&self) -> Box<Fault> {
        let how = match wait::status(self.pidfd) {
            Some(status) => format!("it ended with status {status}"),
            None => "it is gone".to_owned(),
        };
        Fault::new(Code::SystemError, "make the container")
            .cause("the container side died")
            .cause(how)
            .at("create:init")
    }
}

/// Takes the listener of a filter out of the process and sends it to who asked for it.
pub fn pass_listener(
    pidfd: std::os::fd::BorrowedFd<'_>,
    fd: i32,
    listener: &Listener,
    state: &State,
    pid: Pid,
) -> Result<()> {
    let taken = rustix::process::pidfd_getfd(pidfd, fd, rustix::process::PidfdGetfdFlags::empty())
        .call("pidfd_getfd")
        .attempt(Code::SeccompFailed, || "take the seccomp listener")?;
    let inner: serde_json::Value =
        serde_json::from_slice(&hook_state(state, Status::Creating, pid.as_raw_nonzero().get())).unwrap_or_default();
    let document = serde_json::json!({
        "ociVersion": crate::spec::OCI_VERSION,
        "fds": ["seccompFd"],
        "pid": pid.as_raw_nonzero().get(),
        "metadata": listener.metadata,
        "state": inner,
    });
    let socket = socket::connect(Path::new(&listener.path))?;
    channel::send_descriptor(socket.as_fd(), document.to_string().as_bytes(), taken.as_fd())
        .attempt(Code::SeccompFailed, || format!("send the seccomp listener to {}", listener.path))
}

fn map_text(mappings: &[IdMapping]) -> String {
    mappings.iter().map(|map| format!("{} {} {}\n", map.container_id, map.host_id, map.size)).collect()
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
    failure.errno == Errno::SRCH
}
