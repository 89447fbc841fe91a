//! The methods of the task service.

use std::path::PathBuf;
use std::time::Duration;

use proto_shim::events::{TaskCreate, TaskExecAdded, TaskIo};
use proto_shim::process::{ProcessInfo, Status};
use proto_shim::runc::{self, ProcessDetails};
use proto_shim::task::{
    CloseIoRequest, ConnectRequest, ConnectResponse, CreateTaskRequest, DeleteRequest, DeleteResponse,
    ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest,
    StartRequest, StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest,
    WaitResponse,
};
use proto_shim::topic;
use rustix::io::Errno;
use rustix::process::Pid;
use strata_trace::{Span, now_ns};

use super::checkpoint;
use super::container::Container;
use super::pending::{Job, Purpose};
use super::process::{Exit, Key, Phase, Process, timestamp};
use super::{Answer, Tasks};
use crate::error::Error;
use crate::lowrun::{Options, Runtime};
use crate::server::Reply;
use crate::stdio::{Io, Request};
use crate::world::World;
use crate::{cgroup, rootfs, trace};

/// How long Delete waits for output that a client does not take, as containerd's own shim does.
const DELETE_PATIENCE: Duration = Duration::from_secs(10);

/// Callers of Wait for one process at once.
pub(super) const WAITING_MAX: usize = 1024;

impl Tasks {
    /// Mounts the root file system, opens the stdio and has the runtime make the container.
    pub(super) fn create(
        &mut self,
        request: CreateTaskRequest,
        reply: &mut Option<Reply>,
        world: &mut World,
    ) -> Result<Answer, Error> {
        if self.container(&request.id).is_ok() {
            return Err(Error::Exists { what: format!("container {} exists", request.id) });
        }
        self.check_sandbox_takes()?;
        let key = self.next_key();
        let mut spans = Vec::new();
        let mut container = prepare(&request, key, world, &mut spans)?;
        let has_logger = container.init.io.as_mut().and_then(Io::logger).is_some();
        self.containers.push(container);
        let job = Job { key, purpose: Purpose::Create(create_event(request)), reply: reply.take(), spans };
        if has_logger {
            self.await_logger(job, world);
        } else {
            self.run(job, world);
        }
        Ok(Answer::Later)
    }

    pub(super) fn start(
        &mut self,
        request: StartRequest,
        reply: &mut Option<Reply>,
        world: &mut World,
    ) -> Result<Answer, Error> {
        if request.exec_id.is_empty() {
            return self.start_init(&request.id, reply, world);
        }
        let namespace = world.namespace.clone();
        let container = self.container(&request.id)?;
        container.check_takes_execs(&request.id)?;
        let key = container.process(&request.exec_id)?.key;
        let owner = container.owner(&namespace, key);
        let process = container.execs.iter().find(|process| process.key == key);
        let Some(process) = process.filter(|process| process.phase == Phase::Created) else {
            return Err(Error::State { what: format!("exec {} was started", request.exec_id), is_running: true });
        };
        let io = Io::open(&process.request, owner, &world.null)?;
        write_exec_file(container.exec_file(key), process)?;
        let process = container.process(&request.exec_id)?;
        (process.io, process.phase) = (Some(io), Phase::Starting(None));
        self.run(Job { key, purpose: Purpose::Exec, reply: reply.take(), spans: Vec::new() }, world);
        Ok(Answer::Later)
    }

    fn start_init(&mut self, id: &str, reply: &mut Option<Reply>, world: &mut World) -> Result<Answer, Error> {
        self.container(id)?;
        self.check_sandbox_takes()?;
        let container = self.container(id)?;
        if container.init.phase != Phase::Created {
            return Err(Error::State {
                what: format!("container {id} does not wait to be started"),
                is_running: container.init.is_alive(),
            });
        }
        if container.checkpoint.is_some() {
            return self.restore(id, reply, world);
        }
        // After this the init may end at any moment, and what it is in would not be known any more.
        if let Err(error) = container.look() {
            world.warn("look at the container's cgroup", &error);
        }
        if let Some(io) = &mut container.init.io {
            io.begin_input(&mut world.poller, &mut world.timers, &mut world.scratch)?;
        }
        container.init.phase = Phase::Starting(None);
        let key = container.init.key;
        self.run(Job { key, purpose: Purpose::Start, reply: reply.take(), spans: Vec::new() }, world);
        Ok(Answer::Later)
    }

    pub(super) fn exec(&mut self, request: ExecProcessRequest, world: &mut World) -> Result<Answer, Error> {
        let key = self.next_key();
        let container = self.container(&request.id)?;
        if request.exec_id.is_empty() || request.exec_id.contains('/') || request.exec_id.starts_with('.') {
            return Err(Error::Invalid { what: format!("exec id {:?}", request.exec_id) });
        }
        if container.process(&request.exec_id).is_ok() {
            return Err(Error::Exists { what: format!("exec {} exists", request.exec_id) });
        }
        container.check_takes_execs(&request.id)?;
        let Some(spec) = request.spec else {
            return Err(Error::Invalid { what: "the exec has no process".to_owned() });
        };
        let stdio = Request {
            terminal: request.terminal,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        };
        let mut process = Process::new(key, request.exec_id.clone(), Phase::Created, stdio);
        process.spec = spec.value;
        container.execs.push(process);
        let event = TaskExecAdded { container_id: request.id, exec_id: request.exec_id };
        world.publisher.publish(topic::TASK_EXEC_ADDED, timestamp(), &event);
        Ok(Answer::empty())
    }

    pub(super) fn delete(
        &mut self,
        request: DeleteRequest,
        reply: &mut Option<Reply>,
        world: &mut World,
    ) -> Result<Answer, Error> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        if !matches!(process.phase, Phase::Created | Phase::Stopped(_)) {
            return Err(Error::State { what: format!("{} runs and cannot be deleted", request.id), is_running: true });
        }
        let key = process.key;
        if process.deleting.is_some() {
            return Err(Error::State { what: format!("{} is being deleted", request.id), is_running: false });
        }
        if matches!(process.phase, Phase::Stopped(_)) && !process.is_drained() {
            process.deleting = reply.take();
            world.timers.set(crate::timers::Due::Delete(key), DELETE_PATIENCE);
            return Ok(Answer::Later);
        }
        self.delete_now(key, reply.take(), world);
        Ok(Answer::Later)
    }

    /// Deletes a process that has ended or was never started.
    pub(super) fn delete_now(&mut self, key: Key, reply: Option<Reply>, world: &mut World) {
        world.timers.clear(crate::timers::Due::Delete(key));
        if let Some(mut io) = self.process(key).and_then(|process| process.io.take()) {
            io.close(&mut world.poller);
        }
        let Some(container) = self.container_of(key) else { return };
        if container.init.key == key {
            return self.run(Job { key, purpose: Purpose::Delete, reply, spans: Vec::new() }, world);
        }
        let Some(at) = container.execs.iter().position(|process| process.key == key) else { return };
        let process = container.execs.swap_remove(at);
        if let Some(reply) = reply {
            let response = delete_response(&process);
            world.server.answer(reply, Ok(prost::Message::encode_to_vec(&response)), Vec::new(), &mut world.poller);
        }
    }

    pub(super) fn kill(
        &mut self,
        request: KillRequest,
        reply: &mut Option<Reply>,
        world: &mut World,
    ) -> Result<Answer, Error> {
        let container = self.container(&request.id)?;
        let only_runtime = !container.runtime.is_like_runc();
        let (is_paused, key) = (container.is_paused, container.init.key);
        let process = container.process(&request.exec_id)?;
        if matches!(process.phase, Phase::Ending(_) | Phase::Stopped(_)) {
            return Err(Error::NotFound { what: "process already finished".to_owned() });
        }
        if process.pid == 0 {
            return Err(Error::State { what: "process was not started".to_owned(), is_running: false });
        }
        // A frozen process dies only when the runtime thaws it.
        if request.exec_id.is_empty() && (request.all || is_paused || only_runtime) {
            let purpose = Purpose::Kill { signal: request.signal, all: request.all };
            self.run(Job { key, purpose, reply: reply.take(), spans: Vec::new() }, world);
            return Ok(Answer::Later);
        }
        signal(process.pid, request.signal)?;
        Ok(Answer::empty())
    }

    pub(super) fn pause(
        &mut self,
        request: PauseRequest,
        reply: &mut Option<Reply>,
        world: &mut World,
    ) -> Result<Answer, Error> {
        self.run_on_running(&request.id, Purpose::Pause, reply, world)
    }

    pub(super) fn resume(
        &mut self,
        request: ResumeRequest,
        reply: &mut Option<Reply>,
        world: &mut World,
    ) -> Result<Answer, Error> {
        self.run_on_running(&request.id, Purpose::Resume, reply, world)
    }

    pub(super) fn update(
        &mut self,
        request: UpdateTaskRequest,
        reply: &mut Option<Reply>,
        world: &mut World,
    ) -> Result<Answer, Error> {
        let Some(resources) = request.resources else {
            return Err(Error::Invalid { what: "the update has no resources".to_owned() });
        };
        let key = self.container(&request.id)?.init.key;
        let purpose = Purpose::Update(resources.value);
        self.run(Job { key, purpose, reply: reply.take(), spans: Vec::new() }, world);
        Ok(Answer::Later)
    }

    fn run_on_running(
        &mut self,
        id: &str,
        purpose: Purpose,
        reply: &mut Option<Reply>,
        world: &mut World,
    ) -> Result<Answer, Error> {
        let container = self.container(id)?;
        if container.init.phase != Phase::Running {
            return Err(not_running(id));
        }
        let key = container.init.key;
        self.run(Job { key, purpose, reply: reply.take(), spans: Vec::new() }, world);
        Ok(Answer::Later)
    }

    pub(super) fn state(&mut self, request: StateRequest) -> Result<Answer, Error> {
        let container = self.container(&request.id)?;
        let (bundle, is_paused) = (container.bundle.display().to_string(), container.is_paused);
        let process = container.process(&request.exec_id)?;
        let status = match process.status() {
            Status::Running if is_paused => Status::Paused,
            status => status,
        };
        Ok(Answer::message(&StateResponse {
            id: request.id,
            bundle,
            pid: process.pid,
            status: status.into(),
            stdin: process.request.stdin.clone(),
            stdout: process.request.stdout.clone(),
            stderr: process.request.stderr.clone(),
            terminal: process.request.terminal,
            exit_status: process.exit().map_or(0, |exit| exit.status),
            exited_at: process.exit().map(|exit| exit.at),
            exec_id: request.exec_id,
        }))
    }

    pub(super) fn wait(
        &mut self,
        request: WaitRequest,
        reply: &mut Option<Reply>,
        world: &World,
    ) -> Result<Answer, Error> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        if let Some(exit) = process.exit() {
            return Ok(Answer::message(&wait_response(exit)));
        }
        // Those whose connection is gone wait no longer.
        process.waiting.retain(|reply| world.server.reaches(reply));
        if process.waiting.len() >= WAITING_MAX {
            return Err(Error::Busy { what: format!("{WAITING_MAX} callers wait for {} already", request.id) });
        }
        process.waiting.extend(reply.take());
        Ok(Answer::Later)
    }

    pub(super) fn pids(&mut self, request: PidsRequest) -> Result<Answer, Error> {
        let container = self.container(&request.id)?;
        let kernel = container.kernel.as_ref().ok_or_else(no_cgroup)?;
        let pids = kernel.cgroup.pids().map_err(|source| Error::System {
            what: format!("list the processes of container {}", request.id),
            source,
        })?;
        let processes = pids.into_iter().map(|pid| ProcessInfo { pid, info: details(container, pid) }).collect();
        Ok(Answer::message(&PidsResponse { processes }))
    }

    pub(super) fn stats(&mut self, request: StatsRequest) -> Result<Answer, Error> {
        let kernel = self.container(&request.id)?.kernel.as_ref().ok_or_else(no_cgroup)?;
        let stats = kernel.cgroup.stats().map_err(|_| no_cgroup())?;
        Ok(Answer::message(&StatsResponse { stats: Some(stats) }))
    }

    pub(super) fn resize_pty(&mut self, request: ResizePtyRequest) -> Result<Answer, Error> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        let size = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        if let Some(io) = &process.io {
            io.resize(size(request.width), size(request.height))?;
        }
        Ok(Answer::empty())
    }

    pub(super) fn close_io(&mut self, request: CloseIoRequest, world: &mut World) -> Result<Answer, Error> {
        let process = self.container(&request.id)?.process(&request.exec_id)?;
        if let Some(io) = process.io.as_mut().filter(|_| request.stdin) {
            io.close_input(&mut world.poller, &mut world.timers, &mut world.scratch)?;
        }
        Ok(Answer::empty())
    }

    pub(super) fn connect(&mut self, request: ConnectRequest) -> Result<Answer, Error> {
        let task_pid = self.container(&request.id).map_or(0, |container| container.init.pid);
        Ok(Answer::message(&ConnectResponse { shim_pid: std::process::id(), task_pid, version: String::new() }))
    }

    pub(super) fn shutdown(&mut self) -> Result<Answer, Error> {
        self.quit_if_empty();
        Ok(Answer::empty())
    }
}

/// What goes before the runtime's part, each step undone when a later one fails.
fn prepare(request: &CreateTaskRequest, key: Key, world: &World, spans: &mut Vec<Span>) -> Result<Container, Error> {
    let bundle = PathBuf::from(&request.bundle);
    if !request.parent_checkpoint.is_empty() {
        return Err(Error::Unimplemented { what: "a container made of a checkpoint and its parent".to_owned() });
    }
    let options = runc_options(request)?;
    if !options.shim_cgroup.is_empty() {
        cgroup::join(&options.shim_cgroup).map_err(|source| Error::System {
            what: format!("move the shim into the cgroup {}", options.shim_cgroup),
            source,
        })?;
    }
    let options = Options::new(&world.namespace, options);
    options.save(&bundle)?;
    let runtime = Runtime::find(options)?;
    let stdio = Request {
        terminal: request.terminal,
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
    };
    let mut container = Container {
        id: request.id.clone(),
        bundle,
        runtime,
        checkpoint: checkpoint::of(request)?,
        has_rootfs: !request.rootfs.is_empty(),
        is_rootfs_settled: false,
        hidden_rootfs: None,
        is_paused: false,
        init: Process::new(key, String::new(), Phase::Creating, stdio),
        execs: Vec::new(),
        kernel: None,
        is_watched: false,
        calls: 0,
        call_count: 0,
    };
    if container.has_rootfs {
        let begun = now_ns();
        rootfs::mount_all(&request.rootfs, &container.rootfs())?;
        spans.push(trace::span("rootfs", begun));
    }
    let begun = now_ns();
    let opened = Io::open(&container.init.request, container.owner(&world.namespace, key), &world.null);
    container.init.io = Some(opened.inspect_err(|_| container.undo_rootfs())?);
    spans.push(trace::span("stdio", begun));
    Ok(container)
}

pub(super) fn runc_options(request: &CreateTaskRequest) -> Result<runc::Options, Error> {
    let Some(any) = request.options.as_ref().filter(|any| !any.type_url.is_empty()) else {
        return Ok(runc::Options::default());
    };
    let options = proto_shim::from_any(any).map_err(|error| Error::Invalid { what: format!("options: {error}") })?;
    options.ok_or_else(|| Error::Invalid { what: format!("options of the type {}", any.type_url) })
}

fn create_event(request: CreateTaskRequest) -> TaskCreate {
    TaskCreate {
        container_id: request.id,
        bundle: request.bundle,
        rootfs: request.rootfs,
        io: Some(TaskIo {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        }),
        checkpoint: request.checkpoint,
        pid: 0,
    }
}

/// Writes what an exec runs to where the runtime reads it. The request says whether there is a terminal, and it counts.
fn write_exec_file(path: PathBuf, process: &Process) -> Result<(), Error> {
    let invalid = |error: serde_json::Error| Error::Invalid { what: format!("the process of the exec: {error}") };
    let mut spec: serde_json::Value = serde_json::from_slice(&process.spec).map_err(invalid)?;
    let Some(fields) = spec.as_object_mut() else {
        return Err(Error::Invalid { what: "the process of the exec is not an object".to_owned() });
    };
    let asked = fields.get("terminal").and_then(serde_json::Value::as_bool).unwrap_or(false);
    let rewritten = if asked == process.request.terminal {
        None
    } else {
        fields.insert("terminal".to_owned(), process.request.terminal.into());
        Some(serde_json::to_vec(&spec).map_err(invalid)?)
    };
    let bytes = rewritten.as_deref().unwrap_or(&process.spec);
    std::fs::write(&path, bytes).map_err(|source| Error::System { what: format!("write {}", path.display()), source })
}

impl Container {
    /// As with containerd's own shim a container takes them also before it is started, and not while it is paused.
    fn check_takes_execs(&self, id: &str) -> Result<(), Error> {
        match self.init.phase {
            Phase::Running if self.is_paused => {
                Err(Error::State { what: format!("container {id} is paused"), is_running: false })
            }
            Phase::Running => Ok(()),
            // One that is to be made of a checkpoint is not there yet.
            Phase::Created if self.checkpoint.is_none() => Ok(()),
            _ => Err(not_running(id)),
        }
    }
}

pub(super) fn not_running(id: &str) -> Error {
    Error::State { what: format!("container {id} is not running"), is_running: false }
}

fn no_cgroup() -> Error {
    Error::NotFound { what: "the container's cgroup does not exist".to_owned() }
}

/// Sends a signal to a child of the shim that it has not reaped: the pid is nobody else's.
fn signal(pid: u32, number: u32) -> Result<(), Error> {
    let invalid = || Error::Invalid { what: format!("signal {number}") };
    let signal = i32::try_from(number).ok().filter(|number| (0..=64).contains(number)).ok_or_else(invalid)?;
    let pid = Pid::from_raw(pid.cast_signed()).ok_or_else(invalid)?;
    let sent = match signal {
        0 => rustix::process::test_kill_process(pid),
        _ => crate::sys::signal::send(pid, signal),
    };
    match sent {
        Ok(()) => Ok(()),
        Err(Errno::SRCH) => Err(Error::NotFound { what: "process already finished".to_owned() }),
        Err(error) => Err(Error::System { what: format!("send signal {number}"), source: error.into() }),
    }
}

pub(super) fn wait_response(exit: Exit) -> WaitResponse {
    WaitResponse { exit_status: exit.status, exited_at: Some(exit.at) }
}

pub(super) fn delete_response(process: &Process) -> DeleteResponse {
    DeleteResponse {
        pid: process.pid,
        exit_status: process.exit().map_or(0, |exit| exit.status),
        exited_at: process.exit().map(|exit| exit.at),
    }
}

/// Which exec a process is the first of.
fn details(container: &Container, pid: u32) -> Option<prost_types::Any> {
    let exec = container.execs.iter().find(|exec| exec.pid == pid && exec.is_alive())?;
    Some(proto_shim::any(&ProcessDetails { exec_id: exec.exec_id.clone() }))
}
