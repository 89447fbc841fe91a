//! The host side of `exec`: clones a process into a running container.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;

use super::clone::{open_pid, receive_sibling};
use super::{is_gone, oom_score, pass_listener, seccomp, wait};
use crate::cgroup::{Cgroup, Hierarchy, discover};
use crate::channel::{self, FromInit, HostEnd, ToInit};
use crate::fault::{Attempt, Code, Fault, Result, Step};
use crate::init;
use crate::init::exec::ExecSetup;
use crate::log::Log;
use crate::path;
use crate::plan::namespaces::Kind;
use crate::plan::process::ProcessPlan;
use crate::rootless;
use crate::state::Container;
use crate::sys::clone::{Forked, clone3};
use crate::sys::{self, Call, Failure};
use crate::trace::span;

/// What the caller asked for.
pub struct ExecRequest<'a> {
    pub container: &'a Container,
    pub process: &'a ProcessPlan,
    pub log: &'a Log,
    /// The mount of lowrun's own program file, to be closed when there is time.
    pub program: Option<OwnedFd>,
    pub console: Option<OwnedFd>,
    pub pidfd_socket: Option<OwnedFd>,
    pub extra_fds: u32,
    /// `[controllers:]path` below the container's cgroup.
    pub cgroups: &'a [String],
}

/// Starts the process; gives its pid and a handle on it, a child of this one.
pub fn exec(request: ExecRequest<'_>) -> Result<(Pid, OwnedFd)> {
    let container = request.container;
    let init =
        container.running_init().step("exec:state")?.open().ok_or_else(|| container.not_running().at("exec:state"))?;
    let filter =
        container.state.seccomp_flags.map(|_| seccomp::load(&container.dir, container.state.seccomp_listener.clone()));
    let cgroup = sub_cgroup(&container.state.cgroup, request.cgroups).step("exec:cgroup")?;
    if !request.cgroups.is_empty() {
        check_is_there(&cgroup).step("exec:cgroup")?;
    }
    // Without privilege a namespace of pids can be joined from the user namespace only, by a helper.
    let staged = rootless::is_unprivileged() && container.state.namespaces.has(Kind::User);
    let kinds = container.state.namespaces.kinds().filter(|kind| staged || *kind != Kind::Pid);
    let setup = ExecSetup {
        id: &container.state.id,
        process: request.process,
        personality: container.state.personality,
        memory_policy: container.state.memory_policy.as_ref(),
        filter: filter.transpose().step("exec:seccomp")?,
        log: request.log,
        program: Cell::new(request.program),
        init,
        namespaces: kinds.fold(0, |flags, kind| flags | kind.flag()),
        staged,
        late_entrance: Cell::new(None),
        entrances: cgroup.entrances().step("exec:cgroup")?,
        waits_for_cgroup: cgroup.is_entered_by_systemd(),
        proc: path::open_proc().attempt(Code::RootfsUnsafe, || "open the host's /proc").step("exec:clone")?,
        console: request.console,
        pidfd_socket: request.pidfd_socket,
        extra_fds: request.extra_fds,
        follows: request.cgroups.is_empty(),
        caller_is_user: rootless::is_unprivileged(),
    };
    inherit_oom_score(&setup, container).step("exec:limits")?;
    let (host, pid, pidfd) = span("clone", || clone(&setup, &cgroup, container)).step("exec:clone")?;
    drop(setup.program.take());
    // A helper was let in, and what it has made was born there.
    let entered = if staged { Ok(()) } else { let_in(&host, &setup, pid, &cgroup, container) };
    let result = entered
        .and_then(|()| set_oom_score(&setup, pid, container))
        .and_then(|()| converse(&host, &setup, pid, &pidfd, container));
    if result.is_err() {
        let _ = sys::pidfd::send(pidfd.as_fd(), libc::SIGKILL);
        let _ = wait::reap(pidfd.as_fd());
    }
    result.map(|()| (pid, pidfd))
}

fn clone(setup: &ExecSetup<'_>, cgroup: &Cgroup, container: &Container) -> Result<(HostEnd, Pid, OwnedFd)> {
    let (host, init) = channel::pair()?;
    if container.state.namespaces.has(Kind::Pid) && !setup.staged {
        // Counts for children only; this process, which has nothing more to clone, stays where it is.
        sys::pidfd::join_namespaces(setup.init.as_fd(), Kind::Pid.flag())
            .attempt(Code::NamespaceFailed, || format!("join the pid namespace of container {}", setup.id))?;
    }
    let own_way = cgroup.unified().filter(|_| !setup.waits_for_cgroup);
    let attempted = || format!("make a process in container {}", setup.id);
    let follow = || own_cgroup_of(setup.init.as_fd()).attempt(Code::CgroupFailed, attempted);
    let dir = match own_way.map(open_cgroup) {
        // Its first process has left it, and it was removed.
        Some(Err(failure)) if failure.errno == Errno::NOENT && setup.follows => Some(follow()?),
        opened => opened.transpose().attempt(Code::CgroupFailed, || format!("open the cgroup of {}", setup.id))?,
    };
    let forked = match clone3(0, dir.as_ref().map(AsFd::as_fd)) {
        // On v2 the container's own init may have made cgroups below and moved there: then no process may enter the
        // upper one, and the first process's own is taken.
        Err(failure) if failure.errno == Errno::BUSY && setup.follows => clone3(0, Some(follow()?.as_fd())),
        Err(failure) if failure.errno == Errno::BUSY => return Err(is_busy(cgroup, failure)),
        // Before 5.7, or under a filter: the child enters by itself.
        Err(failure) if matches!(failure.errno, Errno::NOSYS | Errno::PERM) => {
            setup.late_entrance.set(cgroup.unified().and_then(|hierarchy| hierarchy.open_processes().ok()));
            clone3(0, None)
        }
        // A directory of the own user, but not the one that this process comes from: as at creation, without.
        Err(_) if rootless::is_unprivileged() => clone3(0, None),
        result => result,
    };
    match forked.attempt(Code::NamespaceFailed, attempted)? {
        Forked::Child => {
            drop(host);
            init::exec::run(setup, init)
        }
        Forked::Parent { pid, pidfd } if setup.staged => {
            // Before it speaks: it joins the cgroup, then the namespaces, then makes the process.
            let_in(&host, setup, pid, cgroup, container)?;
            // As long as this copy is open, a helper that dies is no end of the channel.
            drop(init);
            let pid = receive_sibling(&host, pidfd.as_fd())?;
            host.send(ToInit::Continue);
            Ok((host, pid, open_pid(pid)?))
        }
        Forked::Parent { pid, pidfd } => Ok((host, pid, pidfd)),
    }
}

/// Has systemd move the process, where only systemd may.
fn let_in(host: &HostEnd, setup: &ExecSetup<'_>, pid: Pid, cgroup: &Cgroup, container: &Container) -> Result<()> {
    if !setup.waits_for_cgroup {
        return Ok(());
    }
    let dir = |cgroup: &Cgroup| cgroup.unified().map(|hierarchy| hierarchy.dir.clone()).unwrap_or_default();
    let (whole, part) = (dir(&container.state.cgroup), dir(cgroup));
    cgroup.attach(part.strip_prefix(&whole).unwrap_or(Path::new("")), pid).step("exec:cgroup")?;
    host.send(ToInit::Cgroup);
    Ok(())
}

fn open_cgroup(hierarchy: &Hierarchy) -> sys::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&hierarchy.dir, flags, Mode::empty()).call("open")
}

/// In runc's words, of a cgroup that was asked for and has others below it that have its controllers.
fn is_busy(cgroup: &Cgroup, failure: Failure) -> Box<Fault> {
    let dir = cgroup.unified().map(|hierarchy| hierarchy.dir.display().to_string()).unwrap_or_default();
    Fault::new(Code::CgroupFailed, "adding pid of the new process to cgroups")
        .cause(format!("{dir}/cgroup.procs: {}", sys::words(failure.errno)))
}

fn own_cgroup_of(init: std::os::fd::BorrowedFd<'_>) -> sys::Result<OwnedFd> {
    let path = discover::unified_of(init)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, Mode::empty()).call("open")
}

/// Without privilege only the own score can be set: the new one inherits it.
fn inherit_oom_score(setup: &ExecSetup<'_>, container: &Container) -> Result<()> {
    let Some(score) = score_of(setup, container).filter(|_| rootless::lacks_privilege()) else { return Ok(()) };
    oom_score::set_own(setup.proc.as_fd(), &score.to_string()).map(drop)
}

fn score_of(setup: &ExecSetup<'_>, container: &Container) -> Option<i32> {
    setup.process.oom_score_adj.or(container.state.process.oom_score_adj)
}

fn set_oom_score(setup: &ExecSetup<'_>, pid: Pid, container: &Container) -> Result<()> {
    let Some(score) = score_of(setup, container).filter(|_| !rootless::lacks_privilege()) else { return Ok(()) };
    let file = format!("{}/oom_score_adj", pid.as_raw_nonzero());
    match path::write_in_proc(setup.proc.as_fd(), &file, &score.to_string()) {
        // The process has failed already; why, it says on the channel.
        Err(failure) if is_gone(&failure) || failure.errno == rustix::io::Errno::NOENT => Ok(()),
        result => result.attempt(Code::LimitInvalid, || format!("set oom_score_adj to {score}")).step("exec:limits"),
    }
}

fn converse(host: &HostEnd, setup: &ExecSetup<'_>, pid: Pid, pidfd: &OwnedFd, container: &Container) -> Result<()> {
    let mut ready = false;
    loop {
        match host.receive(pidfd.as_fd())? {
            None if ready => return Ok(()),
            Some(FromInit::Fault(fault)) => return Err(rename_step(fault)),
            // What is ready has only failures to tell: whoever traces the new program may speak for it.
            Some(FromInit::Limits) if !ready => {
                let limits = &setup.process.rlimits;
                limits.iter().try_for_each(|limit| init::process::set_limit(Some(pid), limit)).step("exec:limits")?;
            }
            Some(FromInit::Listener { fd }) if !ready => {
                let listener = container.state.seccomp_listener.as_ref();
                let listener = listener.ok_or_else(|| Fault::new(Code::SeccompFailed, "an unexpected listener"))?;
                pass_listener(host, (pid, pidfd.as_fd()), fd, listener, &container.state).step("exec:seccomp")?;
            }
            Some(FromInit::Ready) if !ready => {
                ready = true;
                continue;
            }
            Some(_) | None => {
                return Err(Fault::new(Code::SystemError, format!("make a process in container {}", setup.id))
                    .cause("it died while it was made")
                    .at("exec"));
            }
        }
        host.send(ToInit::Continue);
    }
}

/// The last steps are those of a first process too, which calls them by its own step.
fn rename_step(mut fault: Box<Fault>) -> Box<Fault> {
    if let Some((_, fine)) = fault.step.split_once(':') {
        fault.step = format!("exec:{fine}");
    }
    fault
}

/// The container's cgroup with the paths of `--cgroup` below it.
fn sub_cgroup(cgroup: &Cgroup, asked: &[String]) -> Result<Cgroup> {
    let invalid = |word: &str, cause: &str| {
        Err(Fault::new(Code::InvalidArgument, format!("invalid --cgroup argument: {word}")).cause(cause))
    };
    let mut sub = cgroup.clone();
    for word in asked {
        let (controllers, path) = match word.split_once(':') {
            Some((controllers, path)) => (controllers.split(',').collect::<Vec<_>>(), path),
            None if asked.len() == 1 => (Vec::new(), word.as_str()),
            None => return invalid(word, "missing <controller>: prefix"),
        };
        if controllers.contains(&"") {
            return invalid(word, "empty <controller> prefix");
        }
        if Path::new(path).components().any(|component| component == Component::ParentDir) {
            return invalid(word, "bad sub cgroup path: it leads upwards");
        }
        let below = path.trim_start_matches('/');
        let chosen = |hierarchy: &Hierarchy| {
            // As runc: without a controller, the same below each.
            controllers.is_empty() || controllers.iter().any(|controller| hierarchy.has(controller))
        };
        let mut found = false;
        for hierarchy in sub.hierarchies.iter_mut().filter(|hierarchy| chosen(hierarchy)) {
            hierarchy.dir.push(below);
            found = true;
        }
        if !found {
            return invalid(word, &format!("unknown controller {}", controllers.join(",")));
        }
    }
    Ok(sub)
}

/// A cgroup below the container's is never made, only entered.
fn check_is_there(cgroup: &Cgroup) -> Result<()> {
    let missing = cgroup.hierarchies.iter().find(|hierarchy| !hierarchy.dir.is_dir());
    missing.map_or(Ok(()), |hierarchy| {
        Err(Fault::new(Code::InvalidArgument, "invalid --cgroup argument")
            .cause(format!("adding pid to cgroup {}", hierarchy.dir.display()))
            .cause("no such file or directory"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hybrid() -> Cgroup {
        let hierarchy = |controllers: &str, dir: &str| Hierarchy {
            controllers: controllers.to_owned(),
            mount: "/m".into(),
            dir: dir.into(),
            top: Default::default(),
        };
        let hierarchies = vec![hierarchy("cpu,cpuacct", "/m/cpu/c"), hierarchy("", "/m/unified/c")];
        Cgroup { hierarchies, unit: None }
    }

    #[test]
    fn a_sub_cgroup_is_below_the_containers() {
        let sub = sub_cgroup(&hybrid(), &["cpu:sub".to_owned()]).unwrap();
        assert_eq!(sub.hierarchies[0].dir, Path::new("/m/cpu/c/sub"));
        assert_eq!(sub.hierarchies[1].dir, Path::new("/m/unified/c"));
        let sub = sub_cgroup(&hybrid(), &["/sub".to_owned()]).unwrap();
        assert_eq!(sub.hierarchies[0].dir, Path::new("/m/cpu/c/sub"));
        assert_eq!(sub.hierarchies[1].dir, Path::new("/m/unified/c/sub"));
    }

    #[test]
    fn climbing_and_unknown_ones_are_refused() {
        for word in ["cpu:../x", "moon:x", ":x", "cpu,:x"] {
            assert!(sub_cgroup(&hybrid(), &[word.to_owned()]).is_err(), "{word}");
        }
    }
}
