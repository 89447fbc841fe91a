//! The tasks service.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future;
use prost_types::Any;
use proto_containerd::process::{Process, ProcessInfo};
use proto_containerd::services::tasks as wire;
use proto_containerd::services::tasks::tasks_server::Tasks;
use proto_containerd::types::{Descriptor, Metric, Mount as WireMount};
use proto_shim::runc;
use proto_shim::task::UpdateTaskRequest;
use strata_fault::{Fault, Layer, code};
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use super::Api;
use super::convert::descriptor;
use super::scope::{OrStatus, Scope};
use crate::checkpoint::{self, Saved};
use crate::clock;
use crate::daemon::Daemon;
use crate::error::{Error, Result as OurResult};
use crate::filter::{Fields, Filters};
use crate::name::{Digest, check_identifier};
use crate::task::{Checkpoint, Creation, Exec, Exit, State, Task};
use crate::trace;

/// Metadata of an answer about an end that the shim did not live to tell: the fault, as in a failed call.
const FAULT_HEADER: &str = "strata-fault-bin";
/// Metadata of an answer about an end: the kernel killed for memory in the container.
const OOM_HEADER: &str = "strata-oom";
/// How long a list waits for one shim.
const LIST_PATIENCE: Duration = Duration::from_secs(1);

#[tonic::async_trait]
impl Tasks for Api {
    async fn create(
        &self,
        request: Request<wire::CreateTaskRequest>,
    ) -> Result<Response<wire::CreateTaskResponse>, Status> {
        let scope = Scope::of(&request).or_status("create")?;
        let request = request.into_inner();
        let id = request.container_id.clone();
        let span = crate::span!("create", "supervisor", id);
        let creation = creation(self, scope, request).or_status("create")?;
        let created = self.tasks.create(creation).instrument(span).await;
        let failure = created.as_ref().err().map_or("", failure_of_containerd);
        let pid = created.or_status("create").map_err(|status| beginning_with(failure, &status))?;
        Ok(Response::new(wire::CreateTaskResponse { container_id: id, pid }))
    }

    async fn start(&self, request: Request<wire::StartRequest>) -> Result<Response<wire::StartResponse>, Status> {
        let task = task(self, &request, |request| &request.container_id, "start")?;
        let span = crate::span!("start", "supervisor", task.id);
        let pid = task.start(&request.get_ref().exec_id).instrument(span).await.or_status("start")?;
        Ok(Response::new(wire::StartResponse { pid }))
    }

    async fn delete(
        &self,
        request: Request<wire::DeleteTaskRequest>,
    ) -> Result<Response<wire::DeleteResponse>, Status> {
        let scope = Scope::of(&request).or_status("delete")?;
        let id = request.into_inner().container_id;
        let exit = self.tasks.delete(&scope.namespace, &id).await.or_status("delete")?;
        Ok(with_fault(deleted(String::new(), &exit), &exit, &id))
    }

    async fn delete_process(
        &self,
        request: Request<wire::DeleteProcessRequest>,
    ) -> Result<Response<wire::DeleteResponse>, Status> {
        let task = task(self, &request, |request| &request.container_id, "delete")?;
        let exec_id = request.into_inner().exec_id;
        check_identifier("exec", &exec_id).or_status("delete")?;
        let exit = task.delete_process(&exec_id).await.or_status("delete")?;
        Ok(Response::new(deleted(exec_id, &exit)))
    }

    async fn get(&self, request: Request<wire::GetRequest>) -> Result<Response<wire::GetResponse>, Status> {
        let task = task(self, &request, |request| &request.container_id, "report")?;
        let exec_id = request.into_inner().exec_id;
        let state = task.state(&exec_id).await.or_status("report")?;
        Ok(Response::new(wire::GetResponse { process: Some(process(&task, &exec_id, state)) }))
    }

    async fn list(
        &self,
        request: Request<wire::ListTasksRequest>,
    ) -> Result<Response<wire::ListTasksResponse>, Status> {
        let scope = Scope::of(&request).or_status("report")?;
        // All at once: shims that do not answer hold up the list for a moment, however many they are.
        let states = self.tasks.all(&scope.namespace).into_iter().map(|task| async move {
            let state = tokio::time::timeout(LIST_PATIENCE, task.state("")).await;
            (task, state)
        });
        let mut tasks = Vec::new();
        for (task, state) in future::join_all(states).await {
            match state {
                Ok(Ok(state)) => tasks.push(process(&task, "", state)),
                Err(_) => tasks.push(process(&task, "", State::unknown(task.pid()))),
                // It went meanwhile.
                Ok(Err(error)) => tracing::debug!(id = %task.id, %error, "list a task"),
            }
        }
        Ok(Response::new(wire::ListTasksResponse { tasks }))
    }

    async fn kill(&self, request: Request<wire::KillRequest>) -> Result<Response<()>, Status> {
        let task = task(self, &request, |request| &request.container_id, "kill")?;
        let request = request.into_inner();
        task.kill(&request.exec_id, request.signal, request.all).await.or_status("kill")?;
        Ok(Response::new(()))
    }

    async fn exec(&self, request: Request<wire::ExecProcessRequest>) -> Result<Response<()>, Status> {
        check_identifier("exec", &request.get_ref().exec_id).or_status("create")?;
        let task = task(self, &request, |request| &request.container_id, "create")?;
        let request = request.into_inner();
        let exec = Exec {
            exec_id: request.exec_id,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
            spec: request.spec,
        };
        task.exec(exec).await.or_status("create")?;
        Ok(Response::new(()))
    }

    async fn resize_pty(&self, request: Request<wire::ResizePtyRequest>) -> Result<Response<()>, Status> {
        let task = task(self, &request, |request| &request.container_id, "watch")?;
        let request = request.into_inner();
        task.resize(&request.exec_id, request.width, request.height).await.or_status("watch")?;
        Ok(Response::new(()))
    }

    async fn close_io(&self, request: Request<wire::CloseIoRequest>) -> Result<Response<()>, Status> {
        let task = task(self, &request, |request| &request.container_id, "watch")?;
        let request = request.into_inner();
        task.close_io(&request.exec_id, request.stdin).await.or_status("watch")?;
        Ok(Response::new(()))
    }

    async fn pause(&self, request: Request<wire::PauseTaskRequest>) -> Result<Response<()>, Status> {
        let task = task(self, &request, |request| &request.container_id, "pause")?;
        task.pause().await.or_status("pause")?;
        Ok(Response::new(()))
    }

    async fn resume(&self, request: Request<wire::ResumeTaskRequest>) -> Result<Response<()>, Status> {
        let task = task(self, &request, |request| &request.container_id, "resume")?;
        task.resume().await.or_status("resume")?;
        Ok(Response::new(()))
    }

    async fn list_pids(
        &self,
        request: Request<wire::ListPidsRequest>,
    ) -> Result<Response<wire::ListPidsResponse>, Status> {
        let task = task(self, &request, |request| &request.container_id, "report")?;
        let found = task.pids().await.or_status("report")?;
        let processes = found.into_iter().map(|found| ProcessInfo { pid: found.pid, info: found.info }).collect();
        Ok(Response::new(wire::ListPidsResponse { processes }))
    }

    async fn checkpoint(
        &self,
        request: Request<wire::CheckpointTaskRequest>,
    ) -> Result<Response<wire::CheckpointTaskResponse>, Status> {
        let scope = Scope::of(&request).or_status("checkpoint")?;
        let task = task(self, &request, |request| &request.container_id, "checkpoint")?;
        let wire::CheckpointTaskRequest { parent_checkpoint, options, .. } = request.into_inner();
        if !parent_checkpoint.is_empty() {
            let what = format!("checkpoint on top of {parent_checkpoint}");
            return Err(Error::Unimplemented { what }.status("checkpoint"));
        }
        let daemon = self.0.clone();
        // What the shim was told to save it saves: it is kept or removed as a whole, whether the client stays or not.
        let saved = trace::detached(async move { save(&daemon, scope, &task, options).await });
        saved.await.or_status("checkpoint").map(Response::new)
    }

    async fn update(&self, request: Request<wire::UpdateTaskRequest>) -> Result<Response<()>, Status> {
        let task = task(self, &request, |request| &request.container_id, "update")?;
        let request = request.into_inner();
        let update = UpdateTaskRequest {
            id: request.container_id,
            resources: request.resources,
            annotations: request.annotations,
        };
        task.update(update).await.or_status("update")?;
        Ok(Response::new(()))
    }

    async fn metrics(&self, request: Request<wire::MetricsRequest>) -> Result<Response<wire::MetricsResponse>, Status> {
        let scope = Scope::of(&request).or_status("report")?;
        let filters = Filters::parse(&request.get_ref().filters).or_status("report")?;
        let tasks = self.tasks.all(&scope.namespace).into_iter().filter(|task| filters.matches(task.as_ref()));
        let stats = tasks.map(|task| async move {
            let stats = tokio::time::timeout(LIST_PATIENCE, task.stats()).await;
            (task, stats)
        });
        let mut metrics = Vec::new();
        for (task, stats) in future::join_all(stats).await {
            match stats {
                Ok(Ok(data)) => metrics.push(Metric { timestamp: Some(clock::now()), id: task.id.clone(), data }),
                Ok(Err(error)) => tracing::debug!(id = %task.id, %error, "measure a task"),
                Err(_) => tracing::debug!(id = %task.id, "measure a task: its shim does not answer"),
            }
        }
        Ok(Response::new(wire::MetricsResponse { metrics }))
    }

    async fn wait(&self, request: Request<wire::WaitRequest>) -> Result<Response<wire::WaitResponse>, Status> {
        let task = task(self, &request, |request| &request.container_id, "watch")?;
        let exit = task.wait(&request.get_ref().exec_id).await.or_status("watch")?;
        let response = wire::WaitResponse { exit_status: exit.status, exited_at: Some(exit.at) };
        let mut response = with_fault(response, &exit, &task.id);
        if task.had_kill_for_memory() {
            response.metadata_mut().insert(OOM_HEADER, MetadataValue::from_static("1"));
        }
        Ok(response)
    }
}

/// How containerd's words for what went wrong at a creation begin. Clients and scripts look for them.
fn failure_of_containerd(error: &Error) -> &'static str {
    match error {
        Error::Shim(_) | Error::ShimDied { .. } => "failed to create shim task: ",
        Error::ShimStart { .. } => "failed to start shim: ",
        _ => "",
    }
}

/// The same status, whose text begins so; the fault in its details stays as it is.
fn beginning_with(beginning: &str, status: &Status) -> Status {
    let message = format!("{beginning}{}", status.message());
    let details = status.details().to_vec().into();
    Status::with_details_and_metadata(status.code(), message, details, status.metadata().clone())
}

/// The task that a request names.
fn task<T>(daemon: &Daemon, request: &Request<T>, id: impl Fn(&T) -> &String, step: &str) -> Result<Arc<Task>, Status> {
    let scope = Scope::of(request).or_status(step)?;
    daemon.tasks.find(&scope.namespace, id(request.get_ref())).or_status(step)
}

fn creation(api: &Api, scope: Scope, request: wire::CreateTaskRequest) -> OurResult<Creation> {
    check_identifier("container", &request.container_id)?;
    Ok(Creation {
        namespace: scope.namespace,
        id: request.container_id,
        rootfs: request.rootfs.into_iter().map(shim_mount).collect(),
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        terminal: request.terminal,
        checkpoint: checkpoint(api, request.checkpoint, request.options.as_ref())?,
        options: request.options,
        runtime_path: request.runtime_path,
    })
}

pub(super) fn shim_mount(mount: WireMount) -> proto_shim::types::Mount {
    proto_shim::types::Mount {
        r#type: mount.r#type,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    }
}

/// What a task is to be made of. A directory that the runtime's options name goes before the content store.
fn checkpoint(api: &Api, descriptor: Option<Descriptor>, options: Option<&Any>) -> OurResult<Checkpoint> {
    let options = options.and_then(|any| proto_shim::from_any::<runc::Options>(any).ok()?);
    if let Some(path) = options.map(|options| options.criu_image_path).filter(|path| !path.is_empty()) {
        return Ok(Checkpoint::Directory(path));
    }
    let Some(descriptor) = descriptor else { return Ok(Checkpoint::None) };
    if descriptor.media_type != checkpoint::IMAGES {
        let why = format!("its media type {:?} is not {:?}", descriptor.media_type, checkpoint::IMAGES);
        return Err(Error::invalid(format!("checkpoint {}", descriptor.digest), why));
    }
    let digest = Digest::parse(&descriptor.digest)?;
    Ok(Checkpoint::Saved(Saved { content: api.content.clone(), differ: api.differ.clone(), digest }))
}

/// Saves a task: into the directory that the options name, or else into the content store.
async fn save(
    daemon: &Daemon,
    scope: Scope,
    task: &Task,
    options: Option<Any>,
) -> OurResult<wire::CheckpointTaskResponse> {
    let named = match options.as_ref().filter(|any| !any.type_url.is_empty()) {
        None => String::new(),
        Some(any) => {
            let invalid = || Error::invalid("options", format!("they are of type {:?}", any.type_url));
            let options = proto_shim::from_any::<runc::CheckpointOptions>(any).ok().flatten();
            options.ok_or_else(invalid)?.image_path
        }
    };
    if !named.is_empty() {
        task.checkpoint(&named, options).await?;
        return Ok(wire::CheckpointTaskResponse::default());
    }
    let spec = daemon.containers.get(&scope.namespace, &task.id)?.record.spec;
    let images = daemon.checkpoints.prepare()?;
    task.checkpoint(&images.path.display().to_string(), options).await?;
    let owner = checkpoint::Owner { namespace: scope.namespace, lease: scope.lease };
    let parts = images.store(&owner, spec).await?;
    let descriptors = parts.iter().map(|part| descriptor(part.media_type, &part.digest, part.size)).collect();
    Ok(wire::CheckpointTaskResponse { descriptors })
}

fn process(task: &Task, exec_id: &str, state: State) -> Process {
    Process {
        container_id: task.id.clone(),
        id: if exec_id.is_empty() { task.id.clone() } else { exec_id.to_owned() },
        pid: state.pid,
        // The numbers of both APIs are the same.
        status: state.status.into(),
        stdin: state.stdin,
        stdout: state.stdout,
        stderr: state.stderr,
        terminal: state.terminal,
        exit_status: state.exit_status,
        exited_at: state.exited_at,
    }
}

fn deleted(id: String, exit: &Exit) -> wire::DeleteResponse {
    wire::DeleteResponse { id, pid: exit.pid, exit_status: exit.status, exited_at: Some(exit.at) }
}

/// An answer that says, to who can read it, that the end is not the shim's word.
fn with_fault<T>(message: T, exit: &Exit, id: &str) -> Response<T> {
    let mut response = Response::new(message);
    if exit.shim_died {
        let fault = Fault::new(Layer::Shim, "watch", code::SHIM_DIED, format!("the shim of container {id:?} died"));
        let value = MetadataValue::from_bytes(&fault.to_status_bytes());
        response.metadata_mut().insert_bin(FAULT_HEADER, value);
    }
    response
}

impl Fields for Task {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        match path.first()?.as_str() {
            "id" => Some(Cow::Borrowed(&self.id)),
            "namespace" => Some(Cow::Borrowed(self.namespace.as_str())),
            _ => None,
        }
    }
}
