//! The container side of `exec`: one more process in a running container.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};

use super::process::{Program, become_program};
use super::{console, enter_namespace_root};
use crate::channel::{FromInit, InitEnd, ToInit};
use crate::create::seccomp::Filter;
use crate::fault::{Attempt, Code, Result, Step};
use crate::log::Log;
use crate::path::Root;
use crate::plan::MemoryPolicy;
use crate::plan::process::ProcessPlan;
use crate::sys::clone::{Forked, clone3};
use crate::sys::{self, Call};
use crate::trace::{self, span};

/// All that the process needs, made by the host side before the clone.
pub struct ExecSetup<'a> {
    pub id: &'a str,
    pub process: &'a ProcessPlan,
    pub personality: Option<u64>,
    pub memory_policy: Option<&'a MemoryPolicy>,
    pub filter: Option<Filter>,
    pub log: &'a Log,
    /// The mount of lowrun's own program file; each side closes its copy.
    pub program: Cell<Option<OwnedFd>>,
    /// Handle on the container's first process.
    pub init: OwnedFd,
    /// `CLONE_NEW*` of the namespaces to join; pids were joined by the parent.
    pub namespaces: u64,
    /// Whether a helper joins, and the process is its sibling.
    pub staged: bool,
    /// Files that a `0` is written to, to enter the v1 cgroups.
    pub entrances: Vec<OwnedFd>,
    /// As [`ExecSetup::entrances`], of the v2 cgroup, where the process could not be born in it.
    pub late_entrance: Cell<Option<OwnedFd>>,
    /// Whether systemd moves the process into its v2 cgroup.
    pub waits_for_cgroup: bool,
    /// `/proc` of the host, verified.
    pub proc: OwnedFd,
    pub console: Option<OwnedFd>,
    pub pidfd_socket: Option<OwnedFd>,
    pub extra_fds: u32,
    /// Whether it goes where the container's first process is, if the container's own cgroup takes nobody in.
    pub follows: bool,
    /// Whether the host side has no privilege.
    pub caller_is_user: bool,
}

/// Joins the container and becomes the program.
pub fn run(setup: &ExecSetup<'_>, channel: InitEnd) -> ! {
    trace::forget();
    drop(setup.program.take());
    sys::signal::reset_dispositions();
    let fault = super::fault_of(|| join(setup, &channel), "exec");
    // The host side waits for the end of the channel in any case.
    let _ = channel.send(&FromInit::Fault(fault));
    sys::process::exit_now(255)
}

fn join(setup: &ExecSetup<'_>, channel: &InitEnd) -> Result<std::convert::Infallible> {
    sys::signal::SignalSet::empty().block().attempt(Code::SystemError, || "unblock signals")?;
    rustix::process::umask(rustix::fs::Mode::empty());
    // The first words of the debug lines are those of runc's, which its users know.
    setup.log.debug("nsexec container setup: cgroup and namespaces are joined");
    let affinity = &setup.process.cpu_affinity;
    set_affinity(affinity.initial.as_deref())?;
    tell_affinity(setup);
    if setup.waits_for_cgroup {
        channel.expect(ToInit::Cgroup)?;
    }
    for entrance in setup.entrances.iter().chain(&setup.late_entrance.take()) {
        rustix::io::write(entrance, b"0")
            .call("write")
            .attempt(Code::CgroupFailed, || "enter the container's cgroup")
            .step("exec:cgroup")?;
    }
    if affinity.initial.is_none() && affinity.last.is_none() {
        // What the caller was bound to is not for the container; since Linux 6.2 a move between cpusets keeps it.
        sys::process::reset_affinity();
    }
    set_affinity(affinity.last.as_deref())?;
    span("namespaces", || sys::pidfd::join_namespaces(setup.init.as_fd(), setup.namespaces))
        .attempt(Code::NamespaceFailed, || format!("join the namespaces of container {}", setup.id))
        .step("exec:namespaces")?;
    if setup.staged {
        let flags = libc::CLONE_PARENT as u64;
        let forked =
            clone3(flags, None).attempt(Code::NamespaceFailed, || "make the process").step("exec:namespaces")?;
        if let Forked::Parent { pid, .. } = forked {
            channel.send(&FromInit::Init { pid: pid.as_raw_nonzero().get() })?;
            sys::process::exit_now(0)
        }
        // The helper speaks first: what this process says must not be taken for its words.
        channel.expect(ToInit::Continue)?;
    }
    let user = crate::plan::namespaces::Kind::User.flag();
    let in_user_namespace = setup.namespaces & user != 0;
    if in_user_namespace {
        super::become_root().step("exec:namespaces")?;
    }
    setup.log.debug("child process in init(): in the container");
    rustix::process::setsid().call("setsid").attempt(Code::SystemError, || "make a session").step("exec:process")?;
    super::join_session(setup.id, in_user_namespace).step("exec:process")?;
    if let Some(socket) = &setup.console {
        let root = Root::new(enter_namespace_root().step("exec:console")?);
        console::attach(&root, socket.as_fd(), setup.process.console_size, false).step("exec:console")?;
    }
    if let Some(socket) = &setup.pidfd_socket {
        super::send_pidfd(socket, b"setns").step("exec:process")?;
    }
    setup.log.debug("setns_init: about to exec the program, after privileges, filter and identity");
    become_program(&Program {
        process: setup.process,
        personality: setup.personality,
        memory_policy: setup.memory_policy,
        filter: setup.filter.as_ref(),
        proc: setup.proc.as_fd(),
        extra_fds: setup.extra_fds,
        in_user_namespace,
        caller_is_user: setup.caller_is_user,
        log: setup.log,
        channel,
        first: None,
    })
}

/// So that a person sees what `execCPUAffinity.initial` did before the cgroup was joined.
fn tell_affinity(setup: &ExecSetup<'_>) {
    if let (true, Ok(mask)) = (setup.log.is_debug(), sys::process::affinity()) {
        setup.log.debug(&format!("nsexec: affinity: {mask:#x}"));
    }
}

fn set_affinity(mask: Option<&[u64]>) -> Result<()> {
    let Some(mask) = mask else { return Ok(()) };
    sys::process::set_affinity(mask).attempt(Code::LimitInvalid, || "set process.execCPUAffinity").step("exec:limits")
}
