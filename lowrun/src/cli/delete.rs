//! `lowrun delete`, and the removal that `run` ends with.

use std::time::{Duration, Instant};

use super::Global;
use super::args::{Command, Typed, switch};
use crate::cgroup::Cgroup;
use crate::create::hooks::Point;
use crate::create::{hooks, sweep_stage};
use crate::fault::{Attempt, Code, Fault, Result, Step};
use crate::plan::namespaces::Kind;
use crate::state::{self, Container, Dir, Identity, Status};
use crate::trace::span;

/// How long a running container may take to end before its deletion is refused. Whoever has seen the last word of a program
/// deletes its container, and is used to runtimes that take some time to look.
const END_PATIENCE: Duration = Duration::from_millis(100);
/// How long a killed process may take to die.
const DEATH_PATIENCE: Duration = Duration::from_secs(10);

pub(super) const DELETE: Command = Command {
    name: "delete",
    about: "remove a container that has ended",
    description: "Removes cgroup, state and what else a container left; then runs its poststop hooks. A container that was created and\n\
                  not started is ended first; a running one only with --force.",
    arguments: "CONTAINER",
    flags: &[switch("force", Some('f'), "kill what runs, and forget a container that is not there")],
    count: (1, 1),
    flags_end_after: usize::MAX,
};

pub(super) fn delete(global: &Global, typed: &Typed) -> Result<i32> {
    let id = typed.word(0)?;
    let force = typed.is_on("force");
    let container = match Container::load(&global.root, id) {
        Err(fault) if force && fault.code == Code::ContainerNotFound => return forget(global, id),
        Err(fault) if force && fault.code == Code::StateInvalid => return forget(global, id),
        Err(fault) if fault.code == Code::ContainerNotFound => {
            sweep(global, id);
            return Err(fault);
        }
        result => result?,
    };
    if !force {
        await_end(&container);
    }
    container.dir.lock()?;
    // While this waited, another may have removed it.
    let state = match container.dir.read(id) {
        Err(fault) if force && fault.code == Code::ContainerNotFound => return Ok(0),
        result => result?,
    };
    delete_locked(global, &Container { state, ..container }, force)
}

/// Holds no lock: whoever ran it may be about to remove it.
fn await_end(container: &Container) {
    let deadline = Instant::now() + END_PATIENCE;
    while container.status() == Status::Running && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn delete_locked(global: &Global, container: &Container, force: bool) -> Result<i32> {
    let id = &container.state.id;
    match container.status() {
        Status::Stopped if !force => {}
        // What is half made under this lock will never be made: its maker was killed.
        Status::Created | Status::Creating | Status::Stopped => kill(container)?,
        _ if force => kill(container)?,
        status => {
            return Err(Fault::new(Code::ContainerRunning, format!("delete container {id}"))
                .cause(format!("cannot delete container {id} that is not stopped: {}", status.as_str())));
        }
    }
    destroy(global, container).map(|()| 0)
}

/// As [`destroy`], of a container that others could get at meanwhile: one of them may have removed it.
pub(super) fn destroy_once(global: &Global, container: &Container) -> Result<()> {
    if container.dir.lock_again()? { destroy(global, container) } else { Ok(()) }
}

/// Removes what is left of a container: processes that outlived the first one, cgroup, state; then the poststop hooks.
pub(super) fn destroy(global: &Global, container: &Container) -> Result<()> {
    let cgroup = container.state.cgroup.own();
    // Without a pid namespace of its own, a container's processes survive the first one.
    let shares_pids = !container.state.namespaces.is_new(Kind::Pid);
    if shares_pids && cgroup.exists() {
        cgroup.kill().step("delete:kill")?;
    }
    sweep_stage(&container.state).step("delete:mounts")?;
    span("cgroup-remove", || cgroup.remove()).step("delete:cgroup")?;
    container.state.rdt.as_ref().map_or(Ok(()), crate::rdt::Group::remove).step("delete:limits")?;
    span("state-remove", || container.dir.remove()).step("delete:state")?;
    for fault in hooks::run_all(Point::Poststop, &container.state.poststop, &container.hook_state(Status::Stopped)) {
        global.log.warn(&fault.one_line());
    }
    Ok(())
}

/// Kills everything in the container and waits until the first process is gone.
pub(super) fn kill(container: &Container) -> Result<()> {
    kill_all(&container.state.id, container.state.init.as_ref(), &container.state.cgroup.own())
}

fn kill_all(id: &str, first: Option<&Identity>, cgroup: &Cgroup) -> Result<()> {
    let init = first.and_then(Identity::open);
    if let Some(pidfd) = &init {
        let _ = crate::sys::pidfd::send(std::os::fd::AsFd::as_fd(pidfd), libc::SIGKILL);
    }
    if cgroup.exists() {
        cgroup.kill().step("delete:kill")?;
    }
    let deadline = Instant::now() + DEATH_PATIENCE;
    let mut pause = Duration::from_micros(100);
    while first.is_some_and(Identity::is_alive) {
        if Instant::now() > deadline {
            return Err(Fault::new(Code::ContainerRunning, format!("delete container {id}"))
                .cause("container init still running"));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Ok(())
}

/// Takes away the directory that a creation left when it was killed at its very beginning, or a removal at its very end,
/// and that keeps the id. One that somebody has just made, and not locked yet, looks the same: its maker makes it again.
fn sweep(global: &Global, id: &str) {
    let Ok(dir) = Dir::open(global.root.join(id)) else { return };
    // Nobody who makes it now, and nothing in it: then it is no more than a name.
    if dir.try_lock() {
        dir.remove_empty();
    }
}

/// Removes what cannot be loaded: an aborted creation, damage, a state of another version. What of it can still be read
/// is ended first.
fn forget(global: &Global, id: &str) -> Result<i32> {
    state::check_id(id)?;
    let path = global.root.join(id);
    let dir = match Dir::open(path.clone()) {
        Err(failure) if failure.errno == rustix::io::Errno::NOENT => return Ok(0),
        result => result.attempt(Code::StateInvalid, || format!("open {}", path.display()))?,
    };
    dir.lock()?;
    // A creation that was under way may have ended while this waited.
    if let Ok(state) = dir.read(id) {
        return delete_locked(global, &Container { dir, state }, true);
    }
    let text = state::read_state(&dir).unwrap_or_default();
    let state::Remains { init, cgroup } = state::Remains::read(&text);
    if cgroup.is_none() && !text.is_empty() {
        global.log.warn(&format!("the state of container {id} cannot be read: what it names may still be there"));
    }
    let cgroup = cgroup.unwrap_or_default().own();
    kill_all(id, init.as_ref(), &cgroup)?;
    cgroup.remove().step("delete:cgroup")?;
    dir.remove().map(|()| 0)
}
