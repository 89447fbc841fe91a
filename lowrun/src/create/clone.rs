//! The clone, and the namespaces around it: which are made by it, which before, which meanwhile.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;

use super::{id_map, net_devices, wait};
use crate::channel::{self, FromInit, HostEnd, ToInit};
use crate::fault::{Attempt, Code, Fault, Result};
use crate::init::{self, Setup};
use crate::plan::Plan;
use crate::plan::namespaces::Kind;
use crate::plan::sysctl;
use crate::rootless;
use crate::sys::clone::{Forked, clone3};
use crate::sys::{self, Call};

/// The namespaces that are joined, opened. That of pids is joined by the parent: it counts for children.
pub(super) fn open_joins(plan: &Plan) -> Result<Vec<(Kind, OwnedFd)>> {
    let joins = plan.namespaces.joined().map(|(kind, path)| Ok((kind, open_namespace(kind, path)?)));
    let joins: Vec<(Kind, OwnedFd)> = joins.collect::<Result<_>>()?;
    check_parameters(plan, &joins)?;
    Ok(joins)
}

/// A namespace that is joined may be lowrun's own: a parameter of it would be set on the host.
fn check_parameters(plan: &Plan, joins: &[(Kind, OwnedFd)]) -> Result<()> {
    for (path, _) in &plan.sysctl {
        let kind = sysctl::kind_of(path);
        let join = joins.iter().find(|(joined, _)| *joined == kind);
        if join.is_some_and(|(_, namespace)| is_own(kind, namespace)) {
            return Err(Fault::new(Code::SpecInvalid, format!("linux.sysctl {path:?}"))
                .cause(format!("not allowed in host {} namespace", kind.as_str())));
        }
    }
    Ok(())
}

/// In doubt it is.
fn is_own(kind: Kind, namespace: &OwnedFd) -> bool {
    let own = rustix::fs::stat(format!("/proc/self/ns/{}", kind.proc_name()));
    let (Ok(own), Ok(joined)) = (own, rustix::fs::fstat(namespace)) else { return true };
    (own.st_dev, own.st_ino) == (joined.st_dev, joined.st_ino)
}

pub(super) fn open_namespace(kind: Kind, path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
        .call("open")
        .attempt(Code::NamespaceFailed, || format!("open {} namespace {}", kind.as_str(), path.display()))
}

/// A user namespace and others to join take a helper; see `init::enter`. So does what cannot be left again without the
/// host's privilege.
pub(super) fn is_staged(plan: &Plan) -> bool {
    let namespaces = &plan.namespaces;
    namespaces.has(Kind::User) && namespaces.joined().next().is_some()
        || helper_makes_time(plan)
        || namespaces.path(Kind::Pid).is_some() && rootless::lacks_privilege()
}

/// Without the host's privilege, a time namespace is made in the user namespace, and its offsets must be set before
/// anybody is in it.
pub(super) fn helper_makes_time(plan: &Plan) -> bool {
    plan.namespaces.is_new(Kind::Time) && rootless::lacks_privilege()
}

/// What `clone3` makes. A cgroup namespace is made later, when the child is in its cgroup; a time namespace earlier,
/// because its offsets are fixed once somebody is in it.
pub(super) fn clone_flags(plan: &Plan) -> u64 {
    let network = if init_makes_network(plan) { Kind::Network.flag() } else { 0 };
    plan.namespaces.new_flags() & !(Kind::Cgroup.flag() | Kind::Time.flag() | network)
}

/// A network namespace takes the kernel longer to make than all others together: the container side makes it while the
/// host side makes the cgroups. One that is to belong to a user namespace is made with it, and so is one that devices are
/// to be moved into: it must be there.
pub(super) fn init_makes_network(plan: &Plan) -> bool {
    plan.namespaces.is_new(Kind::Network) && !plan.namespaces.has(Kind::User) && plan.net_devices.is_empty()
}

/// Moves network devices into a network namespace that is joined, or that the clone has made.
pub(super) fn move_devices(setup: &Setup<'_>, pid: Pid) -> Result<()> {
    let devices = &setup.plan.net_devices;
    if devices.is_empty() {
        return Ok(());
    }
    let path = setup.plan.namespaces.path(Kind::Network).map(Path::to_owned);
    let path = path.unwrap_or_else(|| format!("/proc/{}/ns/net", pid.as_raw_nonzero()).into());
    net_devices::hand_over(devices, open_namespace(Kind::Network, &path)?.as_fd())
}

/// The container side, cloned.
pub(super) struct Cloned {
    pub(super) host: HostEnd,
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    /// Whether it was born in its v2 cgroup.
    pub(super) born_in_cgroup: bool,
}

/// Clones the container side.
pub(super) fn clone(setup: &Setup<'_>) -> Result<Cloned> {
    let (host, init) = channel::pair()?;
    let restore = enter_before_clone(setup)?;
    // A signal that a caller sends meanwhile is for the host side; the child gets its mask back at its start.
    let born_in = setup.cgroup.unified().filter(|_| !setup.staged && !setup.host_moves && setup.cgroup.unit.is_none());
    let cgroup_fd = born_in.and_then(|hierarchy| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&hierarchy.dir, flags, Mode::empty()).ok()
    });
    let flags = match setup.staged {
        true if setup.helper_makes_time => setup.clone_flags & Kind::User.flag(),
        true => 0,
        false => setup.clone_flags,
    };
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
            // As long as this copy is open, a helper that dies is no end of the channel.
            drop(init);
            restore_after_clone(restore)?;
            if !setup.staged {
                return Ok(Cloned { host, pid, pidfd, born_in_cgroup: born });
            }
            if setup.helper_makes_time && setup.plan.namespaces.is_new(Kind::User) {
                let plan = setup.plan;
                id_map::write(setup.proc.as_fd(), pid, &plan.uid_mappings, &plan.gid_mappings)?;
                host.send(ToInit::Mapped);
            }
            // The child is a helper, whose sibling is the container's process.
            let pid = receive_sibling(&host, pidfd.as_fd())?;
            Ok(Cloned { host, pid, pidfd: open_pid(pid)?, born_in_cgroup: false })
        }
    }
}

/// Namespaces that the parent must be in when it clones, and what brings it back.
fn enter_before_clone(setup: &Setup<'_>) -> Result<Vec<(Kind, OwnedFd)>> {
    let mut restore = Vec::new();
    for (kind, fd) in setup.joins.iter().filter(|(kind, _)| *kind == Kind::Pid && !setup.staged) {
        restore.push((Kind::Pid, open_namespace(Kind::Pid, Path::new("/proc/self/ns/pid"))?));
        sys::process::setns(fd.as_fd(), kind.flag()).attempt(Code::NamespaceFailed, || "join the pid namespace")?;
    }
    if setup.plan.namespaces.is_new(Kind::Time) && !setup.helper_makes_time {
        restore.push((Kind::Time, open_namespace(Kind::Time, Path::new("/proc/self/ns/time"))?));
        init::make_time_namespace(setup.plan, setup.proc.as_fd())?;
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
pub(super) fn receive_sibling(host: &HostEnd, helper: BorrowedFd<'_>) -> Result<Pid> {
    let said = host.receive(helper);
    let _ = wait::reap(helper);
    match said? {
        Some(FromInit::Init { pid }) => {
            Pid::from_raw(pid).ok_or_else(|| Fault::new(Code::SystemError, "the helper named no process"))
        }
        Some(FromInit::Fault(fault)) => Err(fault),
        _ => Err(Fault::new(Code::NamespaceFailed, "join the namespaces").cause("the helper died")),
    }
}

pub(super) fn open_pid(pid: Pid) -> Result<OwnedFd> {
    sys::pidfd::open(pid).attempt(Code::SystemError, || "keep the container's process")
}
