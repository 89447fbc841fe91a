//! Calls of the runtime: from the wish to what comes of it.
//!
//! [`Tasks::run`] starts the runtime; when its process has ended, [`Tasks::complete`] does the rest and answers the
//! caller. A runtime that cannot be started at all goes the same way, so that there is one place for each failure.

use std::fs;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::Message;
use proto_shim::events::{TaskCreate, TaskDelete, TaskExecStarted, TaskPaused, TaskResumed, TaskStart};
use proto_shim::task::{CreateTaskResponse, StartResponse};
use proto_shim::topic;
use rustix::fs::MemfdFlags;
use strata_fault::Fault;
use strata_trace::Span;

use super::Tasks;
use super::calls::{delete_response, wait_response};
use super::checkpoint::{self, Save};
use super::container::{Container, read_pid};
use super::process::{Exit, Key, Phase, timestamp};
use crate::error::Error;
use crate::lowrun::{self, Call, Outcome};
use crate::server::Reply;
use crate::stdio::above_stdio;
use crate::world::World;

/// Exit status of a container that was deleted before it ran: as if killed.
pub(super) const KILLED: u32 = 128 + 9;

/// What the runtime is called for.
#[derive(Debug)]
pub(crate) enum Purpose {
    Create(TaskCreate),
    Start,
    /// The same once more, as the runtime was killed meanwhile: nobody else can tell whether the container waits still.
    StartAgain,
    /// To start an exec.
    Exec,
    Pause,
    Resume,
    /// With this JSON.
    Update(Vec<u8>),
    Kill {
        signal: u32,
        all: bool,
    },
    /// To end what is left when the init has ended.
    KillRest,
    Delete,
    /// To save the container's processes.
    Checkpoint(Save),
    /// To start a container that is made of a checkpoint.
    Restore,
    /// To end and remove one that runs and that the shim can do nothing with.
    GiveUp,
}

impl Purpose {
    fn step(&self) -> &'static str {
        match self {
            Purpose::Create(_) => "create",
            Purpose::Start | Purpose::StartAgain => "start",
            Purpose::Exec => "exec",
            Purpose::Pause => "pause",
            Purpose::Resume => "resume",
            Purpose::Update(_) => "update",
            Purpose::Kill { .. } | Purpose::KillRest => "kill",
            Purpose::Delete | Purpose::GiveUp => "delete",
            Purpose::Checkpoint(_) => "checkpoint",
            Purpose::Restore => "restore",
        }
    }
}

/// A wish.
#[derive(Debug)]
pub(crate) struct Job {
    /// The process that it is about.
    pub(crate) key: Key,
    pub(crate) purpose: Purpose,
    pub(crate) reply: Option<Reply>,
    /// Of the work that was done before.
    pub(crate) spans: Vec<Span>,
}

/// A runtime at work.
#[derive(Debug)]
pub(crate) struct Pending {
    job: Job,
    /// `None` while a logger is awaited.
    call: Option<Call>,
}

/// What the caller is told.
pub(super) type Completed = Result<Vec<u8>, Error>;

impl Tasks {
    /// Calls the runtime.
    pub(super) fn run(&mut self, job: Job, world: &mut World) {
        let step = job.purpose.step();
        if self.is_made_later(&job) {
            return self.complete(job, Outcome { result: Ok(()), spans: Vec::new() }, world);
        }
        match self.call(&job, world) {
            Ok(call) => self.pending.push(Pending { job, call: Some(call) }),
            Err(error) => {
                let result = Err(Box::new(error.into_fault(step)));
                self.complete(job, Outcome { result, spans: Vec::new() }, world);
            }
        }
    }

    fn call(&mut self, job: &Job, world: &World) -> Result<Call, Error> {
        let gone = || Error::NotFound { what: "the container was removed".to_owned() };
        let container = self.container_of(job.key).ok_or_else(gone)?;
        let log = container.next_log();
        let command = command(container, job);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let input = match &job.purpose {
            Purpose::Update(json) => Some(file_of(json)?),
            _ => None,
        };
        let trace = job.reply.as_ref().and_then(Reply::trace);
        let bundle = container.bundle.clone();
        let stdio = stdio(container, job, input.as_ref(), &world.null);
        let call = container.runtime.call(&bundle, &command, stdio, trace, log)?;
        container.calls += 1;
        Ok(call)
    }

    /// Keeps a job until the container's logger is ready.
    pub(super) fn await_logger(&mut self, job: Job, world: &mut World) {
        let key = job.key;
        let logger = self.process(key).and_then(|process| process.io.as_mut()).and_then(crate::stdio::Io::logger);
        let awaited = logger.map_or(Ok(()), |logger| logger.await_ready(key, &mut world.poller));
        match awaited {
            Ok(()) => self.pending.push(Pending { job, call: None }),
            Err(error) => self.give_up(job, error, world),
        }
    }

    /// A logger says that it is ready, or it has ended.
    pub(super) fn logger_ready(&mut self, key: Key, world: &mut World) {
        let is_it = |pending: &Pending| pending.call.is_none() && pending.job.key == key;
        let Some(at) = self.pending.iter().position(is_it) else { return };
        let job = self.pending.swap_remove(at).job;
        let logger = self.process(key).and_then(|process| process.io.as_mut()).and_then(crate::stdio::Io::logger);
        match logger.map_or(Ok(()), |logger| logger.is_ready(&mut world.poller)) {
            Ok(()) => self.run(job, world),
            Err(error) => self.give_up(job, error, world),
        }
    }

    fn give_up(&mut self, job: Job, error: Error, world: &mut World) {
        let result = Err(Box::new(error.into_fault(job.purpose.step())));
        self.complete(job, Outcome { result, spans: Vec::new() }, world);
    }

    /// A child has ended: if it was a runtime, its job is completed.
    pub(super) fn runtime_ended(&mut self, pid: u32, status: u32, world: &mut World) -> bool {
        let is_it = |pending: &Pending| pending.call.as_ref().is_some_and(|call| call.pid == pid);
        let Some(at) = self.pending.iter().position(is_it) else { return false };
        let Pending { mut job, call } = self.pending.swap_remove(at);
        let Some(call) = call else { return false };
        if let Some(container) = self.container_of(job.key) {
            container.calls -= 1;
        }
        let was_killed = lowrun::was_killed(status);
        let outcome = call.outcome(status, job.purpose.step());
        if was_killed && matches!(job.purpose, Purpose::Start) {
            job.purpose = Purpose::StartAgain;
            job.spans.extend(outcome.spans);
            self.run(job, world);
        } else {
            self.complete(job, outcome, world);
        }
        true
    }

    /// Whether the runtime is about to send a signal to a process.
    pub(super) fn is_being_killed(&self, key: Key) -> bool {
        self.pending.iter().any(|pending| pending.job.key == key && matches!(pending.job.purpose, Purpose::Kill { .. }))
    }

    /// Whether the runtime is saving a container.
    pub(super) fn is_being_saved(&self, key: Key) -> bool {
        self.pending
            .iter()
            .any(|pending| pending.job.key == key && matches!(pending.job.purpose, Purpose::Checkpoint(_)))
    }

    /// Whether the runtime is about to tell the pid of a new process.
    pub(super) fn expects_a_pid(&self) -> bool {
        self.pending
            .iter()
            .any(|pending| matches!(pending.job.purpose, Purpose::Create(_) | Purpose::Exec | Purpose::Restore))
    }

    fn complete(&mut self, job: Job, outcome: Outcome, world: &mut World) {
        let Job { key, purpose, reply, mut spans } = job;
        spans.extend(outcome.spans);
        let step = purpose.step();
        let result = outcome.result.map_err(Error::Told);
        let completed = match purpose {
            Purpose::Create(event) => self.created(key, event, result, world),
            Purpose::Start => self.started(key, result, world),
            Purpose::StartAgain => self.started(key, unless_started(result), world),
            Purpose::Exec => self.exec_started(key, result, world),
            Purpose::Pause => self.paused(key, true, result, world),
            Purpose::Resume => self.paused(key, false, result, world),
            Purpose::Delete => self.deleted(key, result, world),
            Purpose::Kill { .. } => killed(result),
            Purpose::Checkpoint(save) => self.saved(key, save, result, world),
            Purpose::Restore => self.restored(key, result, world),
            Purpose::Update(_) => result.map(|()| Vec::new()),
            // Those who are gone cannot be killed, and nobody waits for an answer.
            Purpose::KillRest | Purpose::GiveUp => Ok(Vec::new()),
        };
        if let Some(reply) = reply {
            let completed = completed.map_err(|error| error.into_fault(step));
            world.server.answer(reply, completed, spans, &mut world.poller);
        }
        self.settle(key, world);
        if !self.expects_a_pid() {
            self.unclaimed.clear();
        }
    }

    /// The exit of a process that ended before the runtime told its pid, or before it was said to have started.
    fn settle(&mut self, key: Key, world: &mut World) {
        let Some(process) = self.process(key) else { return };
        if let Phase::Starting(_) | Phase::Creating = process.phase {
            return;
        }
        let pid = process.pid;
        if pid != 0
            && let Some(at) = self.unclaimed.iter().position(|(unclaimed, _)| *unclaimed == pid)
        {
            let (_, exit) = self.unclaimed.swap_remove(at);
            self.process_ended(key, exit, world);
        }
    }

    fn created(&mut self, key: Key, event: TaskCreate, result: Result<(), Error>, world: &mut World) -> Completed {
        let made = result.and_then(|()| self.take_created(key, world));
        match made {
            Ok(pid) => {
                world.publisher.publish(topic::TASK_CREATE, timestamp(), &TaskCreate { pid, ..event });
                Ok(CreateTaskResponse { pid }.encode_to_vec())
            }
            Err(error) => {
                self.remove(key, world);
                Err(error)
            }
        }
    }

    fn take_created(&mut self, key: Key, world: &mut World) -> Result<u32, Error> {
        let gone = || Error::NotFound { what: "the container was removed".to_owned() };
        let container = self.container_of(key).ok_or_else(gone)?;
        if container.checkpoint.is_some() {
            container.init.phase = Phase::Created;
            return Ok(0);
        }
        let pid = read_pid(&container.pid_file(""))?;
        container.init.pid = pid;
        container.init.phase = Phase::Created;
        if let Some(io) = &mut container.init.io {
            io.begin(&mut world.poller, &mut world.timers, &mut world.scratch)?;
        }
        Ok(pid)
    }

    /// Forgets a container and undoes what the shim did for it.
    fn remove(&mut self, key: Key, world: &mut World) {
        let Some(at) = self.containers.iter().position(|container| container.init.key == key) else { return };
        let mut container = self.containers.swap_remove(at);
        for process in container.processes() {
            if let Some(mut io) = process.io.take() {
                io.close(&mut world.poller);
            }
        }
        if let Some(kernel) = &mut container.kernel {
            kernel.cgroup.unwatch(&mut world.poller);
        }
        match container.take_rootfs() {
            Ok(handle) => world.lingering.extend(handle),
            Err(error) => world.warn("unmount the root file system", &error),
        }
        let exit = container.init.exit().unwrap_or_else(|| Exit::now(KILLED));
        for reply in container.init.waiting.drain(..) {
            world.server.answer(reply, Ok(wait_response(exit).encode_to_vec()), Vec::new(), &mut world.poller);
        }
    }

    pub(super) fn started(&mut self, key: Key, result: Result<(), Error>, world: &mut World) -> Completed {
        let Some(container) = self.container_of(key) else { return Ok(Vec::new()) };
        let early = match container.init.phase {
            Phase::Starting(exit) => exit,
            _ => None,
        };
        let pid = container.init.pid;
        let id = container.id.clone();
        container.init.phase = if result.is_ok() { Phase::Running } else { Phase::Created };
        if result.is_ok() {
            world.publisher.publish(topic::TASK_START, timestamp(), &TaskStart { container_id: id, pid });
        }
        if let Some(exit) = early {
            self.process_ended(key, exit, world);
        }
        result.map(|()| StartResponse { pid }.encode_to_vec())
    }

    fn exec_started(&mut self, key: Key, result: Result<(), Error>, world: &mut World) -> Completed {
        let Some(container) = self.container_of(key) else { return Ok(Vec::new()) };
        // Its job is done, and it lies in the bundle.
        let _ = fs::remove_file(container.exec_file(key));
        let made = result.and_then(|()| take_exec(container, key, world));
        match made {
            Ok((exec_id, pid)) => {
                let event = TaskExecStarted { container_id: container.id.clone(), exec_id, pid };
                world.publisher.publish(topic::TASK_EXEC_STARTED, timestamp(), &event);
                Ok(StartResponse { pid }.encode_to_vec())
            }
            Err(error) => {
                if let Some(process) = self.process(key) {
                    process.phase = Phase::Created;
                    if let Some(mut io) = process.io.take() {
                        io.close(&mut world.poller);
                    }
                }
                self.exec_gone(key, world);
                Err(error)
            }
        }
    }

    fn paused(&mut self, key: Key, is_paused: bool, result: Result<(), Error>, world: &mut World) -> Completed {
        result?;
        if let Some(container) = self.container_of(key) {
            container.is_paused = is_paused;
            let container_id = container.id.clone();
            if is_paused {
                world.publisher.publish(topic::TASK_PAUSED, timestamp(), &TaskPaused { container_id });
            } else {
                world.publisher.publish(topic::TASK_RESUMED, timestamp(), &TaskResumed { container_id });
            }
        }
        Ok(Vec::new())
    }

    fn deleted(&mut self, key: Key, result: Result<(), Error>, world: &mut World) -> Completed {
        match result {
            // A runtime that does not know the container has nothing of it left.
            Err(error) if !error.told().is_some_and(lowrun::says_gone) => return Err(error),
            _ => {}
        }
        let Some(container) = self.container_of(key) else { return Ok(Vec::new()) };
        if container.init.exit().is_none() {
            container.init.phase = Phase::Stopped(Exit::now(KILLED));
        }
        let id = container.id.clone();
        let response = delete_response(&container.init);
        self.remove(key, world);
        let event = TaskDelete {
            container_id: id,
            pid: response.pid,
            exit_status: response.exit_status,
            exited_at: response.exited_at,
            id: String::new(),
        };
        world.publisher.publish(topic::TASK_DELETE, timestamp(), &event);
        Ok(response.encode_to_vec())
    }
}

fn killed(result: Result<(), Error>) -> Completed {
    match result {
        Ok(()) => Ok(Vec::new()),
        Err(error) if error.told().is_some_and(says_finished) => {
            Err(Error::NotFound { what: "process already finished".to_owned() })
        }
        Err(error) => Err(error),
    }
}

/// How runc and its likes say that there is nothing to kill.
fn says_finished(fault: &Fault) -> bool {
    let words = &fault.message;
    lowrun::says_gone(fault)
        || fault.code == strata_fault::code::CONTAINER_NOT_RUNNING
        || words.contains("process already finished")
        || words.contains("no such process")
        || words.contains("container not running")
}

fn take_exec(container: &mut Container, key: Key, world: &mut World) -> Result<(String, u32), Error> {
    let gone = || Error::NotFound { what: "the exec was removed".to_owned() };
    let exec_id = container.execs.iter().find(|exec| exec.key == key).ok_or_else(gone)?.exec_id.clone();
    let pid_file = container.pid_file(&exec_id);
    let pid = read_pid(&pid_file)?;
    // It has been read, and it lies in the bundle.
    let _ = fs::remove_file(pid_file);
    let process = container.process(&exec_id)?;
    process.pid = pid;
    process.phase = Phase::Running;
    if let Some(io) = &mut process.io {
        io.begin(&mut world.poller, &mut world.timers, &mut world.scratch)?;
        io.begin_input(&mut world.poller, &mut world.timers, &mut world.scratch)?;
    }
    Ok((exec_id, pid))
}

/// A second start is refused where the first one had come far enough.
fn unless_started(result: Result<(), Error>) -> Result<(), Error> {
    result.or_else(|error| if error.told().is_some_and(lowrun::says_running) { Ok(()) } else { Err(error) })
}

/// The runtime's command line for a job, without the global flags.
fn command(container: &Container, job: &Job) -> Vec<String> {
    let id = container.id.clone();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
    let mut command = match &job.purpose {
        Purpose::Create(_) => create_command(container),
        Purpose::Exec => exec_command(container, job.key),
        Purpose::Start | Purpose::StartAgain => words(&["start"]),
        Purpose::Pause => words(&["pause"]),
        Purpose::Resume => words(&["resume"]),
        Purpose::Update(_) => words(&["update", "--resources", "-"]),
        Purpose::Kill { all: false, .. } => words(&["kill"]),
        Purpose::Kill { all: true, .. } | Purpose::KillRest => words(&["kill", "--all"]),
        Purpose::Delete => words(&["delete"]),
        Purpose::Checkpoint(save) => save.command(container),
        Purpose::Restore => checkpoint::restore_command(container),
        Purpose::GiveUp => words(&["delete", "--force"]),
    };
    command.push(id);
    match job.purpose {
        Purpose::Kill { signal, .. } => command.push(signal.to_string()),
        Purpose::KillRest => command.push("9".to_owned()),
        _ => {}
    }
    command
}

fn create_command(container: &Container) -> Vec<String> {
    let mut command = vec!["create".to_owned(), "--bundle".to_owned(), container.bundle.display().to_string()];
    command.extend(["--pid-file".to_owned(), container.pid_file("").display().to_string()]);
    let console = container.init.io.as_ref().and_then(crate::stdio::Io::console_socket);
    command.extend(console.into_iter().flat_map(|path| ["--console-socket".to_owned(), path.to_owned()]));
    let options = container.runtime.options();
    command.extend(options.no_pivot_root.then(|| "--no-pivot".to_owned()));
    command.extend(options.no_new_keyring.then(|| "--no-new-keyring".to_owned()));
    command
}

fn exec_command(container: &Container, key: Key) -> Vec<String> {
    let process = container.execs.iter().find(|exec| exec.key == key);
    let exec_id = process.map_or("", |process| process.exec_id.as_str());
    let mut command = vec!["exec".to_owned(), "--detach".to_owned()];
    command.extend(["--process".to_owned(), container.exec_file(key).display().to_string()]);
    command.extend(["--pid-file".to_owned(), container.pid_file(exec_id).display().to_string()]);
    let console = process.and_then(|process| process.io.as_ref()).and_then(crate::stdio::Io::console_socket);
    command.extend(console.into_iter().flat_map(|path| ["--console-socket".to_owned(), path.to_owned()]));
    command
}

/// The runtime's stdio: the process's own where it makes one, because it passes them on.
fn stdio<'a>(
    container: &'a Container,
    job: &Job,
    input: Option<&'a OwnedFd>,
    null: &'a OwnedFd,
) -> [BorrowedFd<'a>; 3] {
    let io = match job.purpose {
        Purpose::Create(_) | Purpose::Restore => container.init.io.as_ref(),
        Purpose::Exec => container.execs.iter().find(|exec| exec.key == job.key).and_then(|exec| exec.io.as_ref()),
        _ => None,
    };
    if let Some(ends) = io.and_then(crate::stdio::Io::ends) {
        return ends;
    }
    let [stdin, stdout, stderr] = lowrun::null_stdio(null);
    [input.map_or(stdin, AsFd::as_fd), stdout, stderr]
}

/// A file without a name that holds `bytes`, to be read from its beginning.
fn file_of(bytes: &[u8]) -> Result<OwnedFd, Error> {
    let failed = |source| Error::System { what: "make a file in memory".to_owned(), source };
    let file = rustix::fs::memfd_create("resources", MemfdFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    let mut file = fs::File::from(above_stdio(file).map_err(failed)?);
    file.write_all(bytes).and_then(|()| file.rewind()).map_err(failed)?;
    Ok(file.into())
}
