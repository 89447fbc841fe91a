//! `lowrun start`.

use std::os::fd::{AsFd, OwnedFd};

use rustix::process::Pid;

use super::Global;
use super::args::{Command, Typed};
use crate::create::hooks::Point;
use crate::create::{hooks, notify};
use crate::fault::{Code, Fault, Result, Step};
use crate::state::{Container, Dir, Status};
use crate::trace::span;

pub(super) const START: Command = Command {
    name: "start",
    about: "run the program of a created container",
    description: "",
    arguments: "CONTAINER",
    flags: &[],
    count: (1, 1),
    flags_end_after: usize::MAX,
};

pub(super) fn start(global: &Global, typed: &Typed) -> Result<i32> {
    let container = load_made(global, typed.word(0)?)?;
    let refuse =
        |code, cause: &str| Err(Fault::new(code, format!("start container {}", container.state.id)).cause(cause));
    if !container.waits_for_start() {
        match container.status() {
            Status::Stopped => return refuse(Code::ContainerNotRunning, "cannot start a container that has stopped"),
            Status::Running => return refuse(Code::ContainerRunning, "cannot start an already running container"),
            other => {
                let cause = format!("cannot start a container in the {} state", other.as_str());
                return refuse(Code::ContainerRunning, &cause);
            }
        }
    }
    let notify = notify::of_caller().map(|_| notify::bind(container.dir.path())).transpose()?.flatten();
    span("release", || container.dir.release_fifo()).map_err(|failure| {
        let message = format!("start container {}", container.state.id);
        match failure.errno {
            // It has gone past the FIFO: whoever let it go was killed before it had removed that.
            rustix::io::Errno::NXIO if container.waits_for_start() => {
                let _ = container.dir.remove_fifo();
                Fault::new(Code::ContainerRunning, message).cause("cannot start an already running container")
            }
            rustix::io::Errno::NXIO => {
                Fault::new(Code::ContainerNotRunning, message).cause("container process is already dead")
            }
            _ => Fault::of(Code::StateInvalid, message, failure),
        }
    })?;
    if !container.state.poststart.is_empty() {
        // What they do may be to enter the container.
        container.dir.unlock();
    }
    hooks::run(
        Point::Poststart,
        &container.state.poststart,
        &container.hook_state(Status::Running),
        &hooks::Place::default(),
    )
    .or_else(|fault| {
        // As runc: a container whose poststart hook fails does not go on, and is forgotten.
        // The hook may have removed it, and made another of the same name.
        if container.dir.lock_again()? {
            super::delete::kill(&container).and_then(|()| super::delete::destroy(global, &container))?;
        }
        Err(fault)
    })
    .step("start:hooks")?;
    match notify {
        None => Ok(0),
        Some(socket) => hand_on_readiness(&container, &socket).map(|()| 0),
    }
}

/// The container, once nobody makes or removes it: what was read before that is out of date.
fn load_made(global: &Global, id: &str) -> Result<Container> {
    let dir = Dir::find(&global.root, id)?;
    dir.lock()?;
    // Its maker was killed, and what works on in the container finds nobody whom it could tell that it is done.
    let half_made = || {
        Fault::new(Code::ContainerRunning, format!("start container {id}"))
            .cause("cannot start a container in the creating state")
    };
    let state = dir.read_settled(id)?.ok_or_else(half_made)?;
    Ok(Container { dir, state })
}

fn hand_on_readiness(container: &Container, socket: &OwnedFd) -> Result<()> {
    // Who deletes the container meanwhile must not wait for it.
    container.dir.unlock();
    let init = container.state.init.as_ref();
    let process = init.and_then(|init| Some((Pid::from_raw(init.pid)?, init.open()?)));
    // One that is gone already tells nothing any more.
    let Some((pid, pidfd)) = process else { return Ok(()) };
    notify::hand_on(socket, (pid, pidfd.as_fd()), None).step("start:notify")
}
