//! Host side and container side of one creation, from the clone until the container waits for `start` or runs.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::process::Pid;

use super::hooks::Point;
use super::seccomp::Listener;
use super::{hooks, id_map, socket, sources, wait};
use crate::channel::{self, FromInit, HostEnd, ToInit};
use crate::fault::{Attempt, Code, Fault, Result, Step};
use crate::init::{self, Setup};
use crate::path;
use crate::plan::namespaces::Kind;
use crate::rootless;
use crate::state::{Identity, State, Status, hook_state};
use crate::sys::Call;
use crate::trace::span;

/// Host side and container side of one creation, from the clone on.
pub(super) struct Meeting<'a> {
    pub(super) setup: &'a Setup<'a>,
    pub(super) host: &'a HostEnd,
    pub(super) pid: Pid,
    pub(super) pidfd: BorrowedFd<'a>,
    /// Whether to wait until the container side has become the program.
    pub(super) awaits_program: bool,
    /// Set when systemd has made the container's unit.
    pub(super) unit_is_made: &'a Cell<bool>,
}

impl Meeting<'_> {
    /// Ids, cgroups and limits.
    pub(super) fn prepare(&self, born_in_cgroup: bool) -> Result<Identity> {
        let plan = self.setup.plan;
        if plan.namespaces.is_new(Kind::User) {
            self.set_oom_score()?;
            if !self.setup.helper_makes_time {
                id_map::write(self.setup.proc.as_fd(), self.pid, &plan.uid_mappings, &plan.gid_mappings)
                    .step("create:namespaces")?;
            }
            self.host.send(ToInit::Mapped);
        }
        if self.setup.host_opens_sources {
            span("sources", || sources::hand_over(self.setup, self.host, (self.pid, self.pidfd), None))
                .step("create:mounts")?;
        }
        let cgroup = self.setup.cgroup;
        span("cgroup-unit", || cgroup.start_unit(&plan.cgroup, self.pid, self.unit_is_made)).step("create:cgroup")?;
        span("cgroup-create", || cgroup.create_v1(&plan.cgroup)).step("create:cgroup")?;
        // One that is joined protects the process already: without privilege it has inherited the score.
        let has_inherited = rootless::lacks_privilege() && plan.namespaces.has(Kind::User);
        if !plan.namespaces.is_new(Kind::User) && !has_inherited {
            self.set_oom_score()?;
        }
        if self.setup.tolerant {
            cgroup.enter_permitted(self.pid, &plan.cgroup).step("create:limits")?;
            return self.identify();
        }
        span("cgroup-limits", || cgroup.limit(&plan.cgroup)).step("create:limits")?;
        if self.setup.host_moves {
            cgroup.add(self.pid).step("create:cgroup")?;
        } else if !born_in_cgroup {
            cgroup.add_unified(self.pid).step("create:cgroup")?;
        }
        self.identify()
    }

    /// In a user namespace before ids are mapped: after that a user without privilege may not write the file.
    fn set_oom_score(&self) -> Result<()> {
        let Some(score) = self.setup.plan.process.oom_score_adj else { return Ok(()) };
        let file = format!("{}/oom_score_adj", self.pid.as_raw_nonzero());
        path::write_in_proc(self.setup.proc.as_fd(), &file, &score.to_string())
            .attempt(Code::LimitInvalid, || format!("set oom_score_adj to {score}"))
            .step("create:limits")
    }

    fn identify(&self) -> Result<Identity> {
        Identity::of(self.pid).attempt(Code::SystemError, || "identify the container's process").step("create:clone")
    }

    /// Answers the container side until it waits for `start`, or is about to become the program, or has become it.
    pub(super) fn converse(&self, state: &State) -> Result<()> {
        let mut ready = false;
        loop {
            match self.host.receive(self.pidfd)? {
                None if ready => return Ok(()),
                Some(FromInit::Fault(fault)) => return Err(fault),
                // What is ready has only failures to tell: whoever traces the new program may speak for it.
                Some(_) if ready => return Err(self.died()),
                Some(FromInit::Source { index }) => {
                    let process = (self.pid, self.pidfd);
                    sources::hand_over(self.setup, self.host, process, Some(index)).step("create:mounts")?;
                    continue;
                }
                Some(FromInit::Hooks) => self.run_hooks(state).step("create:hooks")?,
                Some(FromInit::Limits) => self.set_limits().step("create:limits")?,
                Some(FromInit::Listener { fd }) => self.pass_listener(fd, state).step("create:seccomp")?,
                Some(FromInit::Ready) if !self.awaits_program => return Ok(()),
                Some(FromInit::Ready) => {
                    ready = true;
                    continue;
                }
                Some(FromInit::Init { .. }) | None => return Err(self.died()),
            }
            self.host.send(ToInit::Continue);
        }
    }

    fn run_hooks(&self, state: &State) -> Result<()> {
        let document = hook_state(state, Status::Creating, self.pid.as_raw_nonzero().get());
        // As runc, which works in the bundle.
        let proc = Some(self.setup.proc.as_fd());
        let place = hooks::Place { dir: Some(&state.bundle), proc, ..hooks::Place::default() };
        hooks::run(Point::Prestart, &self.setup.plan.hooks.prestart, &document, &place)?;
        hooks::run(Point::CreateRuntime, &self.setup.plan.hooks.create_runtime, &document, &place)
    }

    fn set_limits(&self) -> Result<()> {
        let limits = &self.setup.plan.process.rlimits;
        limits.iter().try_for_each(|limit| init::process::set_limit(Some(self.pid), limit))
    }

    fn pass_listener(&self, fd: Option<i32>, state: &State) -> Result<()> {
        let listener = state.seccomp_listener.as_ref();
        let listener = listener.ok_or_else(|| Fault::new(Code::SeccompFailed, "a listener that nobody asked for"))?;
        pass_listener(self.host, (self.pid, self.pidfd), fd, listener, state)
    }

    fn died(&self) -> Box<Fault> {
        if self.setup.cgroup.oom_kills() > 0 {
            return Fault::new(Code::LimitInvalid, "linux.resources.memory.limit")
                .cause("container init was OOM-killed (memory limit too low?)")
                .at("create:limits");
        }
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

/// Taken, because the container's filter may deny or watch the calls that send it; where the taking is denied, sent.
fn take_listener(host: &HostEnd, pidfd: BorrowedFd<'_>, fd: Option<i32>) -> crate::sys::Result<OwnedFd> {
    let Some(fd) = fd else { return host.receive_offer(pidfd) };
    match rustix::process::pidfd_getfd(pidfd, fd, rustix::process::PidfdGetfdFlags::empty()) {
        Err(Errno::NOSYS | Errno::PERM | Errno::BADF) => host.ask_for_offer(pidfd),
        result => result.call("pidfd_getfd"),
    }
}

/// Takes the listener of a filter out of the process and sends it to who asked for it.
pub fn pass_listener(
    host: &HostEnd,
    process: (Pid, BorrowedFd<'_>),
    fd: Option<i32>,
    listener: &Listener,
    state: &State,
) -> Result<()> {
    let (pid, pidfd) = process;
    let taken = take_listener(host, pidfd, fd).attempt(Code::SeccompFailed, || "take the seccomp listener")?;
    let inner: serde_json::Value =
        serde_json::from_slice(&hook_state(state, Status::Creating, pid.as_raw_nonzero().get())).unwrap_or_default();
    let document = serde_json::json!({
        "ociVersion": crate::spec::OCI_VERSION,
        "fds": ["seccompFd"],
        "pid": pid.as_raw_nonzero().get(),
        "metadata": listener.metadata,
        "state": inner,
    });
    let socket = socket::connect(Path::new(&listener.path)).map_err(|mut fault| {
        let inner = std::mem::replace(&mut fault.message, "failed to connect with seccomp agent".to_owned());
        fault.causes.insert(0, inner);
        fault
    })?;
    channel::send_descriptor(socket.as_fd(), document.to_string().as_bytes(), taken.as_fd())
        .attempt(Code::SeccompFailed, || format!("send the seccomp listener to {}", listener.path))
}
