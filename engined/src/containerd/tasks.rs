//! Tasks: running containers and the programs that were added to them.

use std::time::SystemTime;

use proto_containerd::process::{Process, Status as Wire};
use proto_containerd::services::tasks as rpc;
use proto_containerd::types::Mount;
use strata_fault::Fault;

use super::{Client, answer, answer_if_found};

/// Where a task's streams go: paths of FIFOs, addresses of logs, or nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stdio {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// Response metadata of shimd: why the end is not the shim's own word. Others do not send it.
const FAULT_HEADER: &str = "strata-fault-bin";

/// Response metadata of shimd: the kernel killed for memory in the container.
const OOM_HEADER: &str = "strata-oom";

/// How a process ended, as its parent saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// 128 + n for signal n.
    pub(crate) status: u32,
    pub(crate) at: SystemTime,
    /// Why its parent could not see it: then the status is what else is known, or 255.
    pub(crate) fault: Option<Fault>,
    /// The supervisor knows that the kernel killed for memory. It may yet tell so by an event.
    pub(crate) out_of_memory: bool,
}

/// What a process does now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Now {
    /// Set up, waiting to be started.
    Created,
    Running,
    Paused,
    Stopped(Ended),
    /// The supervisor does not know.
    Unknown,
}

/// A task as the supervisor lists it.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) container: String,
    pub(crate) pid: u32,
    pub(crate) now: Now,
}

impl From<Process> for Task {
    fn from(process: Process) -> Task {
        let ended =
            || Ended { status: process.exit_status, at: time(process.exited_at), fault: None, out_of_memory: false };
        let now = match Wire::try_from(process.status) {
            Ok(Wire::Created) => Now::Created,
            Ok(Wire::Running) => Now::Running,
            Ok(Wire::Paused | Wire::Pausing) => Now::Paused,
            Ok(Wire::Stopped) => Now::Stopped(ended()),
            Ok(Wire::Unknown) | Err(_) => Now::Unknown,
        };
        // `Get` names the container in `id`, a list in `container_id` or in `id`, by version.
        let container = if process.container_id.is_empty() { process.id } else { process.container_id };
        Task { container, pid: process.pid, now }
    }
}

fn time(stamp: Option<prost_types::Timestamp>) -> SystemTime {
    stamp.and_then(|stamp| SystemTime::try_from(stamp).ok()).unwrap_or_else(SystemTime::now)
}

fn told_fault(metadata: &tonic::metadata::MetadataMap) -> Option<Fault> {
    let bytes = metadata.get_bin(FAULT_HEADER)?.to_bytes().ok()?;
    Fault::from_status_bytes(&bytes).ok().flatten()
}

/// One more program in a container.
#[derive(Clone, Debug)]
pub(crate) struct ExecProcess {
    pub(crate) container: String,
    pub(crate) exec: String,
    /// An OCI process as JSON.
    pub(crate) process: Vec<u8>,
    pub(crate) stdio: Stdio,
}

impl Client {
    /// Has the runtime set up a container, and its program wait to be started. The answer is the program's pid.
    pub(crate) async fn create_task(&self, container: &str, rootfs: Vec<Mount>, stdio: Stdio) -> Result<u32, Fault> {
        let request = rpc::CreateTaskRequest {
            container_id: container.to_owned(),
            rootfs,
            stdin: stdio.stdin,
            stdout: stdio.stdout,
            stderr: stdio.stderr,
            terminal: stdio.terminal,
            ..Default::default()
        };
        Ok(answer("create", self.tasks().create(request).await)?.pid)
    }

    /// Starts a container's program, or with `exec` another one that was added.
    pub(crate) async fn start_task(&self, container: &str, exec: &str) -> Result<u32, Fault> {
        let request = rpc::StartRequest { container_id: container.to_owned(), exec_id: exec.to_owned() };
        Ok(answer("start", self.tasks().start(request).await)?.pid)
    }

    /// Returns when the process has ended, and its output with it.
    pub(crate) async fn wait_task(&self, container: &str, exec: &str) -> Result<Ended, Fault> {
        let request = rpc::WaitRequest { container_id: container.to_owned(), exec_id: exec.to_owned() };
        let result = self.tasks().wait(request).await;
        let fault = result.as_ref().ok().and_then(|response| told_fault(response.metadata()));
        let out_of_memory = result.as_ref().is_ok_and(|response| response.metadata().contains_key(OOM_HEADER));
        let response = answer("watch", result)?;
        Ok(Ended { status: response.exit_status, at: time(response.exited_at), fault, out_of_memory })
    }

    /// Ends a task's bookkeeping, and its shim; one that is gone is no error.
    pub(crate) async fn delete_task(&self, container: &str) -> Result<(), Fault> {
        let request = rpc::DeleteTaskRequest { container_id: container.to_owned() };
        answer_if_found("remove", self.tasks().delete(request).await).map(drop)
    }

    /// As [`Client::delete_task`], for a program that was added.
    pub(crate) async fn delete_exec(&self, container: &str, exec: &str) -> Result<(), Fault> {
        let request = rpc::DeleteProcessRequest { container_id: container.to_owned(), exec_id: exec.to_owned() };
        answer_if_found("remove", self.tasks().delete_process(request).await).map(drop)
    }

    /// Sends a signal; `false` when the process is gone already. `all` means every process of the container.
    pub(crate) async fn kill_task(&self, container: &str, exec: &str, signal: u32, all: bool) -> Result<bool, Fault> {
        let request = rpc::KillRequest { container_id: container.to_owned(), exec_id: exec.to_owned(), signal, all };
        Ok(answer_if_found("kill", self.tasks().kill(request).await)?.is_some())
    }

    /// Every task of our namespace.
    pub(crate) async fn list_tasks(&self) -> Result<Vec<Task>, Fault> {
        let response = answer("recover", self.tasks().list(rpc::ListTasksRequest::default()).await)?;
        Ok(response.tasks.into_iter().map(Task::from).collect())
    }

    /// Adds a program to a running container; it waits to be started.
    pub(crate) async fn exec_task(&self, process: ExecProcess) -> Result<(), Fault> {
        let request = rpc::ExecProcessRequest {
            container_id: process.container,
            stdin: process.stdio.stdin,
            stdout: process.stdio.stdout,
            stderr: process.stdio.stderr,
            terminal: process.stdio.terminal,
            spec: Some(prost_types::Any {
                type_url: proto_containerd::json_type::PROCESS.to_owned(),
                value: process.process,
            }),
            exec_id: process.exec,
        };
        answer("create", self.tasks().exec(request).await).map(drop)
    }

    /// Ends the process's input, once it has read what is on its way.
    pub(crate) async fn close_stdin(&self, container: &str, exec: &str) -> Result<(), Fault> {
        let request = rpc::CloseIoRequest { container_id: container.to_owned(), exec_id: exec.to_owned(), stdin: true };
        answer_if_found("watch", self.tasks().close_io(request).await).map(drop)
    }

    /// Sets the size of the process's terminal.
    pub(crate) async fn resize_task(&self, container: &str, exec: &str, size: (u32, u32)) -> Result<(), Fault> {
        let request = rpc::ResizePtyRequest {
            container_id: container.to_owned(),
            exec_id: exec.to_owned(),
            width: size.0,
            height: size.1,
        };
        answer("resize", self.tasks().resize_pty(request).await).map(drop)
    }
}
