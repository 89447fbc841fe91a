//! The task service, and the sandbox service ([`sandbox`]): what containerd and shimd ask of a shim.
//!
//! A method either answers at once, or it keeps the caller's [`Reply`] and answers when something has happened: a call
//! of the runtime has ended ([`pending`]), a process has ([`ends`]). Nothing waits in between.

mod calls;
mod checkpoint;
mod container;
mod ends;
mod pending;
mod process;
mod sandbox;

use prost::Message;
use proto_shim::service;
use strata_ttrpc::message::UNIMPLEMENTED;

pub(crate) use container::Container;
pub(crate) use process::{Exit, Key, Process, timestamp};

use crate::error::Error;
use crate::poll::Source;
use crate::server::{Call, Reply};
use crate::task::pending::Pending;
use crate::task::sandbox::Sandbox;
use crate::timers::Due;
use crate::world::World;

/// Exits of processes whose pid the runtime has not told yet. Others are of orphans that nobody asks for.
const UNCLAIMED_MAX: usize = 64;

/// What a method does about the answer.
pub(crate) enum Answer {
    /// This is it.
    Now(Vec<u8>),
    /// The method has taken the reply and gives it later.
    Later,
}

impl Answer {
    fn message(message: &impl Message) -> Answer {
        Answer::Now(message.encode_to_vec())
    }

    fn empty() -> Answer {
        Answer::Now(Vec::new())
    }
}

/// All tasks of this shim.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    sandbox: Option<Sandbox>,
    containers: Vec<Container>,
    pending: Vec<Pending>,
    unclaimed: Vec<(u32, Exit)>,
    last_key: u32,
    is_quitting: bool,
}

impl Tasks {
    /// Whether the shim was told to end.
    pub(crate) fn is_quitting(&self) -> bool {
        self.is_quitting
    }

    /// Whether there is neither a sandbox nor a container, and none is being made or removed.
    pub(crate) fn is_empty(&self) -> bool {
        self.sandbox.is_none() && self.has_no_container()
    }

    fn has_no_container(&self) -> bool {
        self.containers.is_empty() && self.pending.is_empty()
    }

    /// Ends the shim if it has nothing.
    pub(crate) fn quit_if_empty(&mut self) {
        self.is_quitting |= self.is_empty();
    }

    /// Does what a call asks for.
    pub(crate) fn handle(&mut self, call: Call, world: &mut World) {
        let step = step_of(&call.method);
        let mut reply = Some(call.reply);
        let outcome = match call.service.as_str() {
            service::TASK_V2 | service::TASK_V3 => self.dispatch(&call.method, &call.payload, &mut reply, world),
            service::SANDBOX => self.dispatch_sandbox(&call.method, &call.payload, &mut reply, world),
            other => Err(Error::Unimplemented { what: format!("service {other} is not known") }),
        };
        let Some(reply) = reply else { return };
        match outcome {
            Ok(Answer::Now(bytes)) => world.server.answer(reply, Ok(bytes), Vec::new(), &mut world.poller),
            // A method that answers later has taken the reply.
            Ok(Answer::Later) => {}
            Err(error) => world.server.answer(reply, Err(error.into_fault(step)), Vec::new(), &mut world.poller),
        }
    }

    fn dispatch(
        &mut self,
        method: &str,
        payload: &[u8],
        reply: &mut Option<Reply>,
        world: &mut World,
    ) -> Result<Answer, Error> {
        match method {
            "State" => self.state(decode(payload)?),
            "Create" => self.create(decode(payload)?, reply, world),
            "Start" => self.start(decode(payload)?, reply, world),
            "Delete" => self.delete(decode(payload)?, reply, world),
            "Pids" => self.pids(decode(payload)?),
            "Pause" => self.pause(decode(payload)?, reply, world),
            "Resume" => self.resume(decode(payload)?, reply, world),
            "Kill" => self.kill(decode(payload)?, reply, world),
            "Exec" => self.exec(decode(payload)?, world),
            "ResizePty" => self.resize_pty(decode(payload)?),
            "CloseIO" => self.close_io(decode(payload)?, world),
            "Update" => self.update(decode(payload)?, reply, world),
            "Wait" => self.wait(decode(payload)?, reply, world),
            "Stats" => self.stats(decode(payload)?),
            "Connect" => self.connect(decode(payload)?),
            "Shutdown" => self.shutdown(),
            "Checkpoint" => self.checkpoint(decode(payload)?, reply, world),
            _ => Err(Error::Unimplemented { what: format!("method {method} is not known") }),
        }
    }

    /// A descriptor of a process has something to say.
    pub(crate) fn ready(&mut self, source: Source, world: &mut World) {
        match source {
            Source::Output(key, which) => {
                self.with_io(key, world, |io, world| {
                    io.move_output(which, &mut world.poller, &mut world.timers, &mut world.scratch);
                });
                self.output_moved(key, world);
            }
            Source::Input(key) => self.with_io(key, world, |io, world| {
                io.move_input(&mut world.poller, &mut world.timers, &mut world.scratch);
            }),
            Source::Logger(key) => self.logger_ready(key, world),
            Source::LoggerEnd(key) => {
                self.with_io(key, world, |io, world| {
                    if let Some(logger) = io.logger() {
                        logger.end(&mut world.poller);
                    }
                });
                self.output_moved(key, world);
            }
            Source::Oom => self.tell_kills(world),
            Source::Listener | Source::Children | Source::Connection(_) | Source::Publisher => {}
        }
    }

    /// Nothing was done for a while: what running containers need no more leaves the host's mount table.
    pub(crate) fn hide_roots(&mut self, world: &mut World) {
        for container in &mut self.containers {
            if let Err(error) = container.hide_rootfs() {
                world.warn("take a root file system off the mount table", &error);
            }
        }
    }

    /// It is time for something.
    pub(crate) fn due(&mut self, due: Due, world: &mut World) {
        match due {
            Due::Output(key) => {
                self.with_io(key, world, |io, world| {
                    io.move_outputs(&mut world.poller, &mut world.timers, &mut world.scratch);
                });
                self.output_moved(key, world);
            }
            Due::Input(key) => self.with_io(key, world, |io, world| {
                io.move_input(&mut world.poller, &mut world.timers, &mut world.scratch);
            }),
            Due::Exit(key) => self.tell_exit(key, world),
            Due::Delete(key) => self.delete_undrained(key, world),
            Due::StopSandbox => self.force_sandbox(),
            Due::Publish | Due::Trim | Due::Abandoned | Due::Quit => {}
        }
    }

    /// What need not be done before the answer is out.
    pub(crate) fn after_answers(&mut self, world: &mut World) {
        for container in &mut self.containers {
            if let Err(error) = container.look() {
                world.warn("look at the container's cgroup", &error);
            }
            if let Err(error) = container.watch_kills(&mut world.poller) {
                world.warn("watch the container's memory", &error);
            }
        }
        self.settle_sandbox(world);
    }

    fn with_io(&mut self, key: Key, world: &mut World, act: impl FnOnce(&mut crate::stdio::Io, &mut World)) {
        if let Some(io) = self.process(key).and_then(|process| process.io.as_mut()) {
            act(io, world);
        }
    }

    fn next_key(&mut self) -> Key {
        self.last_key += 1;
        Key::new(self.last_key)
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, Error> {
        self.containers
            .iter_mut()
            .find(|container| container.id == id)
            .ok_or_else(|| Error::NotFound { what: format!("container {id} was not created") })
    }

    fn container_of(&mut self, key: Key) -> Option<&mut Container> {
        self.containers.iter_mut().find(|container| container.all().any(|process| process.key == key))
    }

    fn process(&mut self, key: Key) -> Option<&mut Process> {
        self.containers.iter_mut().flat_map(Container::processes).find(|process| process.key == key)
    }
}

/// The step of a run that a method belongs to.
fn step_of(method: &str) -> &'static str {
    match method {
        "Create" | "CreateSandbox" => "create",
        "Start" | "StartSandbox" => "start",
        "Exec" => "exec",
        "Kill" | "StopSandbox" => "kill",
        "Delete" | "ShutdownSandbox" => "delete",
        "Pause" => "pause",
        "Resume" => "resume",
        "Update" => "update",
        "Checkpoint" => "checkpoint",
        _ => "watch",
    }
}

fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, Error> {
    M::decode(payload).map_err(|error| Error::Invalid { what: format!("the request does not parse: {error}") })
}

const _: () = assert!(UNIMPLEMENTED == strata_fault::GrpcCode::Unimplemented as i32);
