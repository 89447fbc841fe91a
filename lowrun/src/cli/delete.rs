//! `lowrun delete`, and the removal that `run` ends with.

use std::time::{Duration, Instant};

use super::Global;
use super::args::{Command, Typed, switch};
use crate::create::hooks;
use crate::fault::{Attempt, Code, Fault, Result, Step};
use crate::state::{self, Container, Status};
use crate::sys::Call;
use crate::trace::span;

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
        result => result?,
    };
    container.dir.lock()?;
    // While this waited, another may have removed it.
    let container = match Container::load(&global.root, id) {
        Err(fault) if force && fault.code == Code::ContainerNotFound => return Ok(0),
        result => {
            let again = result?;
            Container { dir: container.dir, state: again.state }
        }
    };
    match container.status() {
        Status::Stopped if !force => {}
        Status::Created | Status::Stopped => kill(&container)?,
        _ if force => kill(&container)?,
        status => {
            return Err(Fault::new(Code::ContainerRunning, format!("delete container {id}"))
                .cause(format!("cannot delete container {id} that is not stopped: {}", status.as_str())));
        }
    }
    destroy(global, &container).map(|()| 0)
}

/// Removes what is left of a container: processes that outlived the first one, cgroup, state; then the poststop hooks.
pub(super) fn destroy(global: &Global, container: &Container) -> Result<()> {
    // Without a pid namespace of its own, a container's processes survive the first one.
    let shares_pids = !container.state.namespaces.is_new(crate::plan::namespaces::Kind::Pid);
    if shares_pids && container.state.cgroup.exists() {
        container.state.cgroup.kill().step("delete:kill")?;
    }
    span("cgroup-remove", || container.state.cgroup.remove()).step("delete:cgroup")?;
    container.state.rdt.as_ref().map_or(Ok(()), crate::rdt::Group::remove).step("delete:limits")?;
    span("state-remove", || container.dir.remove()).step("delete:state")?;
    for fault in hooks::run_all("poststop", &container.state.poststop, &container.hook_state(Status::Stopped)) {
        global.log.warn(&fault.one_line());
    }
    Ok(())
}

/// Kills everything in the container and waits until the first process is gone.
pub(super) fn kill(container: &Container) -> Result<()> {
    let init = container.state.init.as_ref().and_then(state::Identity::open);
    if let Some(pidfd) = &init {
        let _ = crate::sys::signal::send(std::os::fd::AsFd::as_fd(pidfd), libc::SIGKILL);
    }
    if container.state.cgroup.exists() {
        container.state.cgroup.kill().step("delete:kill")?;
    }
    let deadline = Instant::now() + DEATH_PATIENCE;
    let lives = || container.state.init.as_ref().is_some_and(state::Identity::is_alive);
    let mut pause = Duration::from_micros(100);
    while lives() {
        if Instant::now() > deadline {
            return Err(Fault::new(Code::ContainerRunning, format!("delete container {}", container.state.id))
                .cause("container init still running"));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    Ok(())
}

/// Removes a state directory that says nothing: an aborted creation, or damage.
fn forget(global: &Global, id: &str) -> Result<i32> {
    state::check_id(id)?;
    let path = global.root.join(id);
    match std::fs::remove_dir_all(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        result => {
            result.call("remove").attempt(Code::StateInvalid, || format!("remove {}", path.display())).map(|()| 0)
        }
    }
}
