//! `lowrun pause` and `lowrun resume`.

use super::Global;
use super::args::{Command, Typed};
use crate::fault::{Code, Fault, Result};
use crate::state::{Container, Status};

pub(super) const PAUSE: Command = Command {
    name: "pause",
    about: "freeze all processes of a container",
    description: "",
    arguments: "CONTAINER",
    flags: &[],
    count: (1, 1),
    flags_end_after: usize::MAX,
};

pub(super) const RESUME: Command = Command {
    name: "resume",
    about: "let a paused container go on",
    description: "",
    arguments: "CONTAINER",
    flags: &[],
    count: (1, 1),
    flags_end_after: usize::MAX,
};

pub(super) fn pause(global: &Global, typed: &Typed) -> Result<i32> {
    let container = Container::load(&global.root, typed.word(0)?)?;
    match container.status() {
        Status::Running | Status::Created => container.state.cgroup.freeze(true).map(|()| 0),
        _ => Err(refuse(&container, "container not running")),
    }
}

pub(super) fn resume(global: &Global, typed: &Typed) -> Result<i32> {
    let container = Container::load(&global.root, typed.word(0)?)?;
    let frozen = container.status() == Status::Paused || container.state.cgroup.is_frozen();
    if !frozen {
        return Err(refuse(&container, "container not paused"));
    }
    container.state.cgroup.freeze(false).map(|()| 0)
}

fn refuse(container: &Container, cause: &str) -> Box<Fault> {
    Fault::new(Code::ContainerNotRunning, format!("container {}", container.state.id)).cause(cause)
}
