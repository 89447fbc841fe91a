//! What is asked of one task's processes: passed to the shim, and answered by it.

use prost_types::{Any, Timestamp};
use proto_shim::process::{ProcessInfo, Status};
use proto_shim::task as shim;

use super::{Exit, Task};
use crate::clock;
use crate::error::{Error, Result};

/// What a process is doing, as the shim says.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) pid: u32,
    pub(crate) status: Status,
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
    pub(crate) exit_status: u32,
    pub(crate) exited_at: Option<Timestamp>,
}

/// An additional process in a container.
pub(crate) struct Exec {
    pub(crate) exec_id: String,
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
    pub(crate) spec: Option<Any>,
}

impl Task {
    fn not_dead(&self) -> Result<()> {
        match self.died() {
            None => Ok(()),
            Some(_) => Err(Error::ShimDied { id: self.id.clone() }),
        }
    }

    /// Starts the init process, or an exec; gives the pid.
    pub(crate) async fn start(&self, exec_id: &str) -> Result<u32> {
        self.not_dead()?;
        let request = shim::StartRequest { id: self.id.clone(), exec_id: exec_id.to_owned() };
        let response: shim::StartResponse = self.shim.call("start", "Start", &request).await?;
        if exec_id.is_empty() {
            // One that is made of a checkpoint has no process before.
            self.note_pid(response.pid);
        }
        Ok(response.pid)
    }

    /// The state of the init process, or of an exec. Of a dead shim's container it is stopped.
    pub(crate) async fn state(&self, exec_id: &str) -> Result<State> {
        if let (Some(exit), true) = (self.died(), exec_id.is_empty()) {
            return Ok(State::of_dead(&exit));
        }
        self.not_dead()?;
        let request = shim::StateRequest { id: self.id.clone(), exec_id: exec_id.to_owned() };
        match self.shim.call::<_, shim::StateResponse>("report", "State", &request).await {
            Ok(response) => {
                if exec_id.is_empty() {
                    self.note_pid(response.pid);
                }
                Ok(State::of(response))
            }
            Err(Error::ShimDied { .. }) if exec_id.is_empty() => Ok(State::of_dead(&self.death().await?)),
            Err(error) => Err(error),
        }
    }

    /// Waits for the end of the init process, or of an exec.
    pub(crate) async fn wait(&self, exec_id: &str) -> Result<Exit> {
        if let Some(exit) = self.died() {
            return Ok(exit);
        }
        let request = shim::WaitRequest { id: self.id.clone(), exec_id: exec_id.to_owned() };
        match self.shim.call::<_, shim::WaitResponse>("watch", "Wait", &request).await {
            Ok(response) => Ok(Exit {
                pid: if exec_id.is_empty() { self.pid() } else { 0 },
                status: response.exit_status,
                at: response.exited_at.unwrap_or_else(clock::now),
                shim_died: false,
            }),
            Err(Error::ShimDied { .. }) => self.death().await,
            Err(error) => Err(error),
        }
    }

    /// What to tell who could not delete the task: shims say all kinds of things of one that still runs.
    pub(super) async fn why_not_deleted(&self, error: Error) -> Error {
        match self.state("").await {
            Ok(State { status: Status::Running | Status::Paused | Status::Pausing, .. }) => {
                Error::refused(format!("task {:?}", self.id), "it must be stopped before it is deleted")
            }
            _ => error,
        }
    }

    /// Forgets an exec that has ended; with an empty id, the init process.
    pub(crate) async fn delete_process(&self, exec_id: &str) -> Result<Exit> {
        self.not_dead()?;
        let request = shim::DeleteRequest { id: self.id.clone(), exec_id: exec_id.to_owned() };
        let response: shim::DeleteResponse = self.shim.call("delete", "Delete", &request).await?;
        Ok(Exit {
            pid: response.pid,
            status: response.exit_status,
            at: response.exited_at.unwrap_or_else(clock::now),
            shim_died: false,
        })
    }

    pub(crate) async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<()> {
        // What died with its shim was killed: that is what the caller wants, and what a shim says of an ended process.
        if self.died().is_some() {
            return Err(Error::not_found("running process of task", &self.id));
        }
        let request = shim::KillRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), signal, all };
        self.shim.call("kill", "Kill", &request).await
    }

    pub(crate) async fn exec(&self, exec: Exec) -> Result<()> {
        self.not_dead()?;
        let request = shim::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.exec_id,
            terminal: exec.terminal,
            stdin: exec.stdin,
            stdout: exec.stdout,
            stderr: exec.stderr,
            spec: exec.spec,
        };
        self.shim.call("create", "Exec", &request).await
    }

    pub(crate) async fn resize(&self, exec_id: &str, width: u32, height: u32) -> Result<()> {
        self.not_dead()?;
        let request = shim::ResizePtyRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), width, height };
        self.shim.call("watch", "ResizePty", &request).await
    }

    pub(crate) async fn close_io(&self, exec_id: &str, stdin: bool) -> Result<()> {
        self.not_dead()?;
        let request = shim::CloseIoRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), stdin };
        self.shim.call("watch", "CloseIO", &request).await
    }

    pub(crate) async fn pause(&self) -> Result<()> {
        self.not_dead()?;
        self.shim.call("pause", "Pause", &shim::PauseRequest { id: self.id.clone() }).await
    }

    pub(crate) async fn resume(&self) -> Result<()> {
        self.not_dead()?;
        self.shim.call("resume", "Resume", &shim::ResumeRequest { id: self.id.clone() }).await
    }

    pub(crate) async fn pids(&self) -> Result<Vec<ProcessInfo>> {
        self.not_dead()?;
        let response: shim::PidsResponse =
            self.shim.call("report", "Pids", &shim::PidsRequest { id: self.id.clone() }).await?;
        Ok(response.processes)
    }

    pub(crate) async fn update(&self, update: shim::UpdateTaskRequest) -> Result<()> {
        self.not_dead()?;
        self.shim.call("update", "Update", &update).await
    }

    /// Saves the processes as images in `path`.
    pub(crate) async fn checkpoint(&self, path: &str, options: Option<Any>) -> Result<()> {
        self.not_dead()?;
        let request = shim::CheckpointTaskRequest { id: self.id.clone(), path: path.to_owned(), options };
        self.shim.call("checkpoint", "Checkpoint", &request).await
    }

    /// Measurements, in the form of the cgroup version in use.
    pub(crate) async fn stats(&self) -> Result<Option<Any>> {
        self.not_dead()?;
        let response: shim::StatsResponse =
            self.shim.call("report", "Stats", &shim::StatsRequest { id: self.id.clone() }).await?;
        Ok(response.stats)
    }
}

impl State {
    fn of(response: shim::StateResponse) -> State {
        State {
            pid: response.pid,
            status: response.status(),
            stdin: response.stdin,
            stdout: response.stdout,
            stderr: response.stderr,
            terminal: response.terminal,
            exit_status: response.exit_status,
            exited_at: response.exited_at,
        }
    }

    fn of_dead(exit: &Exit) -> State {
        State {
            status: Status::Stopped,
            exit_status: exit.status,
            exited_at: Some(exit.at),
            ..State::unknown(exit.pid)
        }
    }

    /// Of a task whose shim does not answer.
    pub(crate) fn unknown(pid: u32) -> State {
        State {
            pid,
            status: Status::Unknown,
            stdin: String::new(),
            stdout: String::new(),
            stderr: String::new(),
            terminal: false,
            exit_status: 0,
            exited_at: None,
        }
    }
}
