//! The container side: what the child of `create` does between `clone3` and `execve`.
//!
//! It runs in a copy of lowrun's memory, with everything opened and decided by the host side in [`Setup`]; it reports
//! over the channel and never returns. `container` is the order of things, and each step says why it stands there.

mod cgroup_mounts;
pub mod console;
mod copy_up;
mod dev;
pub mod exec;
mod masks;
pub mod process;
pub mod program;
mod root;
mod rootfs;
mod sources;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::io::Errno;

use crate::cgroup::Cgroup;
use crate::channel::{FromInit, InitEnd, ToInit, send_descriptor};
use crate::create::hooks::{self, Point};
use crate::create::seccomp::Filter;
use crate::fault::{Attempt, Code, Fault, Result, Step};
use crate::log::Log;
use crate::plan::Plan;
use crate::plan::namespaces::Kind;
use crate::state::{Dir, State, Status, hook_state};
use crate::sys::clone::{Forked, clone3};
use crate::sys::{self, Call};
use crate::trace::{self, span};
use process::{Program, become_program};
use rootfs::Rootfs;
use sources::Sources;

pub use root::cut_propagation;
pub use sources::open_source;

/// All that the container side needs, made by the host side before the clone.
pub struct Setup<'a> {
    pub plan: &'a Plan,
    pub state: &'a State,
    pub log: &'a Log,
    pub cgroup: &'a Cgroup,
    /// What a mount of cgroups shows, where that is more than [`Setup::cgroup`].
    pub shown: Option<Cgroup>,
    /// The container's state directory.
    pub dir: &'a Dir,
    /// `/proc` of the host, verified.
    pub proc: OwnedFd,
    /// Namespaces that are joined by the child, opened.
    pub joins: Vec<(Kind, OwnedFd)>,
    /// Whether a helper joins, and the container's process is its sibling.
    pub staged: bool,
    /// Whether the helper makes the time namespace, and before it the user namespace, if that is new.
    pub helper_makes_time: bool,
    /// `CLONE_NEW*` that the clone makes.
    pub clone_flags: u64,
    /// The mount of lowrun's own program file; each side closes its copy.
    pub program: Cell<Option<OwnedFd>>,
    /// Where the terminal's master goes.
    pub console: Option<OwnedFd>,
    /// Where a pidfd of the first process goes.
    pub pidfd_socket: Option<OwnedFd>,
    /// The container's state file, which the container side keeps locked until the container is whole.
    pub state_file: RawFd,
    /// What a created container waits at; `run` has none.
    pub fifo: Option<OwnedFd>,
    pub filter: Option<Filter>,
    /// Descriptors from 3 on that the program gets.
    pub extra_fds: u32,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    /// Whether the container side makes its network namespace.
    pub makes_network: bool,
    /// Whether the host side opens the sources of bind mounts.
    pub host_opens_sources: bool,
    /// The user namespaces of id-mapped mounts with mappings of their own, by the mount's place in the spec.
    pub id_maps: BTreeMap<usize, OwnedFd>,
    /// Whether the host side moves the process into its cgroups.
    pub host_moves: bool,
    /// Whether cgroups that may not be made are gone without.
    pub tolerant: bool,
    /// Whether the host side has no privilege.
    pub caller_is_user: bool,
}

/// Does the container side's work and becomes the program.
pub fn run(setup: &Setup<'_>, channel: InitEnd) -> ! {
    trace::forget();
    setup.dir.leave_lock_to_parent();
    sys::mount_old::remember_proc(setup.proc.as_fd());
    drop(setup.program.take());
    sys::signal::reset_dispositions();
    let fault = fault_of(|| enter(setup, &channel), "create:init");
    // Without a mount namespace it would stay on the host.
    let _ = sys::stage::clear();
    // A created container's host side has gone when `start` comes: then the log is the only place to tell.
    if channel.send(&FromInit::Fault(fault.clone())).is_err() {
        setup.log.fault(&fault);
    }
    sys::process::exit_now(1)
}

/// What ended the work; a panic too is told by who still can.
fn fault_of(work: impl FnOnce() -> Result<Infallible>, step: &str) -> Box<Fault> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(Ok(never)) => match never {},
        Ok(Err(fault)) => fault,
        Err(_) => Fault::new(Code::SystemError, "the container side panicked").at(step),
    }
}

/// With a user namespace and others to join, two processes are needed: others than the user namespace may have to be
/// joined with the host's privilege, and the new namespaces are to belong to the user namespace.
fn enter(setup: &Setup<'_>, channel: &InitEnd) -> Result<Infallible> {
    sys::signal::SignalSet::empty().block().attempt(Code::SystemError, || "unblock signals")?;
    // The first words of the three stages are those of runc's debug log, which its users know.
    setup.log.debug("nsexec container setup: namespaces are joined");
    if setup.helper_makes_time {
        if setup.plan.namespaces.is_new(Kind::User) {
            channel.expect(ToInit::Mapped)?;
        }
        make_time_namespace(setup.plan, setup.proc.as_fd()).step("create:namespaces")?;
    }
    span("namespaces", || join(setup)).step("create:namespaces")?;
    if !setup.staged {
        return container(setup, channel);
    }
    let user = if setup.helper_makes_time { Kind::User.flag() } else { 0 };
    let flags = setup.clone_flags & !user | libc::CLONE_PARENT as u64;
    match clone3(flags, None).attempt(Code::NamespaceFailed, || "make the namespaces").step("create:namespaces")? {
        Forked::Child => container(setup, channel),
        Forked::Parent { pid, .. } => {
            channel.send(&FromInit::Init { pid: pid.as_raw_nonzero().get() })?;
            sys::process::exit_now(0)
        }
    }
}

fn join(setup: &Setup<'_>) -> Result<()> {
    let join_one = |kind: Kind, fd: &OwnedFd| sys::process::setns(fd.as_fd(), kind.flag());
    let attempted = |kind: Kind| {
        let path = setup.plan.namespaces.path(kind).unwrap_or(Path::new(""));
        format!("join {} namespace {}", kind.as_str(), path.display())
    };
    // Those of the host go first, with the host's privilege; those that belong to the user namespace fail then and are
    // tried again from within it. That of pids counts for children: without a helper the parent has joined it.
    let joins = setup.joins.iter().filter(|(kind, _)| setup.staged || *kind != Kind::Pid);
    let (user, others): (Vec<_>, Vec<_>) = joins.partition(|(kind, _)| *kind == Kind::User);
    let mut later = Vec::new();
    for (kind, fd) in others {
        match join_one(*kind, fd) {
            Err(_) if !user.is_empty() => later.push((kind, fd)),
            result => result.attempt(Code::NamespaceFailed, || attempted(*kind))?,
        }
    }
    for (kind, fd) in user.iter().map(|(kind, fd)| (kind, fd)).chain(later) {
        join_one(*kind, fd).attempt(Code::NamespaceFailed, || attempted(*kind))?;
    }
    Ok(())
}

/// The order of a container's making.
fn container(setup: &Setup<'_>, channel: &InitEnd) -> Result<Infallible> {
    let plan = setup.plan;
    setup.log.debug("child process in init(): the root is built");
    sys::stage::find_denied(setup.proc.as_fd());
    // What is made has the mode that was asked for; the program gets its own mask at the end.
    rustix::process::umask(rustix::fs::Mode::empty());
    let sources = enter_user_namespace(setup, channel).step("create:namespaces")?;
    span("network", || prepare_network(setup)).step("create:network")?;
    make_session(setup).step("create:process")?;
    set_names(plan).step("create:namespaces")?;
    let mut root = span("mounts", || Rootfs::build(setup, channel, sources)).step("create:mounts")?;
    // Some mounts want the process in its cgroups, so that may have happened; at the latest it happens here.
    root.enter_cgroup(setup, channel).step("create:cgroup")?;
    span("devices", || root.populate_dev(setup)).step("create:devices")?;
    // The old root is still there for hooks, and the mounts are made: as the spec wants it.
    run_hooks(setup, channel, &root).step("create:hooks")?;
    span("pivot", || root.pivot(setup)).step("create:pivot")?;
    if let Some(socket) = &setup.console {
        console::attach(&root.root, socket.as_fd(), plan.process.console_size, true).step("create:console")?;
    }
    if let Some(socket) = &setup.pidfd_socket {
        send_pidfd(socket, b"standard").step("create:process")?;
    }
    // Read-only and masks come last: everything above may have needed to write.
    span("sysctl", || set_sysctl(setup, root.proc.as_ref())).step("create:sysctl")?;
    span("masks", || root.finish(setup)).step("create:masks")?;
    setup.log.debug("init: closing the pipe to signal completion comes after privileges, filter and identity");
    become_program(&Program {
        process: &plan.process,
        personality: plan.personality,
        memory_policy: plan.memory_policy.as_ref(),
        filter: setup.filter.as_ref(),
        proc: setup.proc.as_fd(),
        extra_fds: setup.extra_fds,
        in_user_namespace: plan.namespaces.has(Kind::User),
        caller_is_user: setup.caller_is_user,
        log: setup.log,
        channel,
        first: Some(setup),
    })
}

/// Makes a time namespace for the children of this process; its offsets are fixed once somebody is in it.
pub fn make_time_namespace(plan: &Plan, proc: BorrowedFd<'_>) -> Result<()> {
    sys::process::unshare(Kind::Time.flag()).attempt(Code::NamespaceFailed, || "make a time namespace")?;
    if plan.time_offsets.is_empty() {
        return Ok(());
    }
    crate::path::write_in_proc(proc, "self/timens_offsets", &plan.time_offsets)
        .attempt(Code::SpecInvalid, || "set linux.timeOffsets")
}

/// In a user namespace: waits until ids are mapped and becomes its root. The sources of mounts are opened before, as
/// the host's root still: a mapped root may not even look at them.
fn enter_user_namespace(setup: &Setup<'_>, channel: &InitEnd) -> Result<Sources> {
    let plan = setup.plan;
    if !plan.namespaces.has(Kind::User) {
        return Ok(Sources::default());
    }
    if plan.namespaces.is_new(Kind::User) {
        channel.expect(ToInit::Mapped)?;
    }
    let sources = Sources::open(setup, channel)?;
    become_root()?;
    Ok(sources)
}

/// A network namespace that is new has its loopback interface up.
fn prepare_network(setup: &Setup<'_>) -> Result<()> {
    if setup.makes_network {
        sys::process::unshare(Kind::Network.flag()).attempt(Code::NamespaceFailed, || "make a network namespace")?;
    }
    if setup.plan.namespaces.is_new(Kind::Network) {
        sys::net::loopback_up().attempt(Code::NamespaceFailed, || "bring the loopback interface up")?;
    }
    Ok(())
}

/// A session of its own, before a terminal becomes the controlling one, and keys of its own.
fn make_session(setup: &Setup<'_>) -> Result<()> {
    rustix::process::setsid().call("setsid").attempt(Code::SystemError, || "make a session")?;
    if setup.no_new_keyring {
        return Ok(());
    }
    join_session(&setup.state.id, setup.plan.namespaces.has(Kind::User))
}

/// The hooks of the host side, then those of this side.
fn run_hooks(setup: &Setup<'_>, channel: &InitEnd, root: &Rootfs) -> Result<()> {
    let hooks = &setup.plan.hooks;
    if !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty() {
        channel.ask(&FromInit::Hooks)?;
    }
    if hooks.create_container.is_empty() {
        return Ok(());
    }
    // As runc: in the container's root.
    root.enter_dir()?;
    let me = rustix::process::getpid().as_raw_nonzero().get();
    let document = hook_state(setup.state, Status::Creating, me);
    // Among what may be the image's, nothing of the host's environment.
    let proc = Some(setup.proc.as_fd());
    let place = hooks::Place { environment: Some(&[]), dir: None, kept: setup.extra_fds, proc };
    hooks::run(Point::CreateContainer, &hooks.create_container, &document, &place)
}

/// Root of the user namespace: without it, what is made belongs to an id that is not mapped.
fn become_root() -> Result<()> {
    sys::process::set_ids(0, 0, None).or_else(|failure| match failure.errno {
        // 0 is not mapped: the container lives with what it has.
        Errno::INVAL => Ok(()),
        _ => Err(Fault::of(Code::UserInvalid, "become root of the user namespace", failure)),
    })?;
    // A change of ids makes the process dumpable again if the kernel's setting says so.
    sys::process::set_dumpable(false).attempt(Code::SystemError, || "protect the process")
}

/// A session keyring of the container's own: with the caller's the program could read the caller's keys.
fn join_session(id: &str, in_user_namespace: bool) -> Result<()> {
    // All for who possesses it; view, read, link and search for the user, or search for others in a user namespace.
    const USER: u32 = 0x3f1b_0000;
    const OTHERS: u32 = 0x3f13_0008;
    let name = std::ffi::CString::new(format!("_ses.{id}")).unwrap_or_default();
    let attempted = || "make a session keyring";
    let serial = match sys::process::join_session_keyring(&name) {
        // No keyrings in this kernel, or a seccomp filter around lowrun: they protect little.
        Err(failure) if failure.errno == Errno::NOSYS => return Ok(()),
        result => result.attempt(Code::SystemError, attempted)?,
    };
    let permissions = if in_user_namespace { OTHERS } else { USER };
    match sys::process::set_key_permissions(serial, permissions) {
        // A keyring that another user of the container made has its permissions already.
        Err(failure) if failure.errno == Errno::ACCESS => Ok(()),
        result => result.attempt(Code::SystemError, attempted),
    }
}

fn set_names(plan: &Plan) -> Result<()> {
    if !plan.hostname.is_empty() {
        rustix::system::sethostname(plan.hostname.as_bytes())
            .call("sethostname")
            .attempt(Code::NamespaceFailed, || format!("set the host name {:?}", plan.hostname))?;
    }
    if !plan.domainname.is_empty() {
        rustix::system::setdomainname(plan.domainname.as_bytes())
            .call("setdomainname")
            .attempt(Code::NamespaceFailed, || format!("set the domain name {:?}", plan.domainname))?;
    }
    Ok(())
}

/// Enters the cgroups, once they are made and limited.
fn enter_cgroup(setup: &Setup<'_>, channel: &InitEnd) -> Result<()> {
    channel.expect(ToInit::Cgroup)?;
    if !setup.host_moves {
        for entrance in setup.cgroup.entrances()? {
            rustix::io::write(&entrance, b"0")
                .call("write")
                .attempt(Code::CgroupFailed, || "enter the container's cgroup")?;
        }
    }
    // What the caller was bound to is not for the container; since Linux 6.2 a move between cpusets keeps it.
    sys::process::reset_affinity();
    // A cgroup namespace begins where its maker is: so it is made only now.
    if setup.plan.namespaces.is_new(Kind::Cgroup) {
        sys::process::unshare(Kind::Cgroup.flag()).attempt(Code::NamespaceFailed, || "make a cgroup namespace")?;
    }
    Ok(())
}

fn set_sysctl(setup: &Setup<'_>, own: Option<&OwnedFd>) -> Result<()> {
    for (path, value) in &setup.plan.sysctl {
        // What is below sys/net, sys/kernel and the like follows the writer, so a handle of the host's procfs does. But
        // that one knows an entry of one name for every network namespace there is, and goes through them all.
        let own = own.filter(|_| path.starts_with("sys/net/"));
        let through = |proc: &OwnedFd| crate::path::write_in_proc(proc.as_fd(), path, value);
        match own.map(through) {
            Some(Err(failure)) if !is_in_the_way(failure.errno) => Err(failure),
            Some(Ok(())) => Ok(()),
            _ => through(&setup.proc),
        }
        .attempt(Code::SpecInvalid, || format!("set sysctl {path} to {value:?}"))?;
    }
    Ok(())
}

/// Whether a failure is the container's own procfs's: read-only, without `sys`, covered, or not the writer's. The value
/// itself is refused whichever way it comes.
fn is_in_the_way(errno: Errno) -> bool {
    matches!(errno, Errno::ROFS | Errno::NOENT | Errno::XDEV | Errno::LOOP | Errno::ACCESS | Errno::PERM)
}

fn send_pidfd(socket: &OwnedFd, words: &[u8]) -> Result<()> {
    let attempted = "send the pidfd to --pidfd-socket";
    let me = rustix::process::getpid();
    let pidfd = rustix::process::pidfd_open(me, rustix::process::PidfdFlags::empty());
    let pidfd = pidfd.call("pidfd_open").map_err(|failure| match failure.errno {
        Errno::NOSYS | Errno::PERM => Fault::of(Code::Unsupported, attempted, failure)
            .hint("a pidfd needs Linux 5.3, and a seccomp filter around lowrun that allows pidfd_open"),
        _ => Fault::of(Code::SystemError, attempted, failure),
    })?;
    send_descriptor(socket.as_fd(), words, pidfd.as_fd()).attempt(Code::SystemError, || attempted)
}

/// A handle of the root directory of the joined mount namespace.
fn enter_namespace_root() -> Result<OwnedFd> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open("/", flags, rustix::fs::Mode::empty())
        .call("open")
        .attempt(Code::NamespaceFailed, || "open the container's root")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_fault_of_its_step() {
        let fault = fault_of(|| panic!("on purpose"), "create:process");
        assert_eq!((fault.code, fault.step.as_str()), (Code::SystemError, "create:process"));
        assert!(fault.message.contains("panicked"));
    }

    #[test]
    fn only_what_is_in_the_way_is_gone_around() {
        assert!(is_in_the_way(Errno::ROFS) && !is_in_the_way(Errno::INVAL) && !is_in_the_way(Errno::RANGE));
    }
}
