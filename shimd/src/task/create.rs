//! Making a task, in phases, each with its undo: the id is claimed, the bundle made, the shim started, the container
//! created in it. The last phase hands the task to its watcher and disarms the undo.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prost_types::Any;
use proto_shim::task::{CreateTaskRequest, CreateTaskResponse, DeleteResponse};
use proto_shim::types::Mount;
use tokio::sync::watch as channel;

use super::{End, Entry, Key, Task, Tasks, closed};
use super::{rootfs, watch};
use crate::checkpoint::Saved;
use crate::db::record::Container;
use crate::db::{Access, key};
use crate::error::{Chain, Error, Result};
use crate::name::Namespace;
use crate::sandbox::controller::Sandbox;
use crate::shim::bundle::{Bundle, Kind};
use crate::shim::shims::SHUTDOWN_TIMEOUT;
use crate::shim::{Connection, OwnedSubject, runtime};
use crate::trace;

/// The directory of a checkpoint in the bundle.
const CHECKPOINT: &str = "checkpoint";

/// What a client asks for.
pub(crate) struct Creation {
    pub(crate) namespace: Namespace,
    pub(crate) id: String,
    pub(crate) rootfs: Vec<Mount>,
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
    pub(crate) checkpoint: Checkpoint,
    /// Those of the container where the client names none.
    pub(crate) options: Option<Any>,
    /// Instead of the container's runtime.
    pub(crate) runtime_path: String,
}

/// What the init process is made of, when it is not new.
pub(crate) enum Checkpoint {
    None,
    /// Images in a directory of the client's.
    Directory(String),
    /// Images in the content store.
    Saved(Saved),
}

impl Tasks {
    /// Makes a container's init process, set up and waiting, and gives its pid. Once begun it is finished or undone,
    /// whether the caller still waits or not: a shim that was started must not be forgotten.
    pub(crate) async fn create(self: &Arc<Self>, creation: Creation) -> Result<u32> {
        let tasks = self.clone();
        trace::detached(async move { tasks.create_whole(creation).await }).await
    }

    async fn create_whole(self: &Arc<Self>, creation: Creation) -> Result<u32> {
        let container: Container =
            self.store.read()?.require(&key(&[creation.namespace.as_str(), &creation.id]), &creation.id)?;
        if container.spec.is_none() {
            return Err(Error::invalid(format!("container {:?}", creation.id), "it has no spec to run"));
        }
        let claim = self.claim(&creation.namespace, &creation.id).await?;
        let sandbox = self.sandboxes.shim_for(&creation.namespace, &container.sandbox)?;
        // As for the name of a sandbox that is somebody else's.
        let of_that_name = self.shims.bundle(Kind::Sandbox, &creation.namespace, &creation.id);
        if container.sandbox != creation.id && of_that_name.exists() {
            return Err(Error::exists("a sandbox of the name of container", &creation.id));
        }
        let asked = &creation.runtime_path;
        let program = self.program(if asked.is_empty() { &container.runtime } else { asked }, sandbox.as_deref())?;
        let bundle = self.shims.make_bundle(Kind::Task, &creation.namespace, &creation.id, container.spec.as_ref())?;
        let images = creation.checkpoint.directory(&creation.namespace, &bundle.bundle).await?;
        let options = creation.options.clone().or(container.runtime_options);
        // From here on the shim's own clean-up must be run when something fails.
        let subject = OwnedSubject { namespace: creation.namespace.clone(), id: creation.id.clone(), program };
        let started = match &sandbox {
            Some(sandbox) => self.shims.join(&subject, &bundle.bundle, sandbox.endpoint()).await,
            None => self.shims.start(&subject, &bundle.bundle, options.as_ref()).await,
        };
        let connection = match started {
            Ok(connection) => connection,
            Err(error) => {
                let _ = self.shims.clean_up(&subject, &bundle.bundle).await;
                return Err(error);
            }
        };
        match create_in_shim(&connection, &creation, &bundle.bundle, (images, options)).await {
            Ok(pid) => {
                self.adopt(Task::new(subject, bundle.disarm(), connection, pid), claim);
                Ok(pid)
            }
            Err(error) => {
                self.abandon(&subject, &bundle.bundle, &connection).await;
                Err(error)
            }
        }
    }

    /// The shim's program for a runtime. In a sandbox it must be the sandbox's own, whose process it will be.
    fn program(&self, runtime: &str, sandbox: Option<&Sandbox>) -> Result<PathBuf> {
        let program = runtime::find(runtime, &self.shims.launcher.search_path)?;
        match sandbox {
            Some(sandbox) if !is_same_file(sandbox.program(), &program) => {
                let why = format!("its sandbox is held by {}, not {}", sandbox.program().display(), program.display());
                Err(Error::invalid(format!("runtime {runtime:?}"), why))
            }
            _ => Ok(program),
        }
    }

    /// Claims an id, after the shim that had it before is gone.
    async fn claim(self: &Arc<Self>, namespace: &Namespace, id: &str) -> Result<Claim> {
        let key = (namespace.clone(), id.to_owned());
        loop {
            let leaving = match self.entries().get(&key) {
                None => None,
                Some(Entry::Leaving(leaving)) => Some(leaving.clone()),
                Some(_) => return Err(Error::exists("task", id)),
            };
            match leaving {
                Some(leaving) => closed(leaving).await,
                None => {
                    if let Some(claim) = Claim::on(self, &key) {
                        return Ok(claim);
                    }
                }
            }
        }
    }

    /// Puts a task on the list, where its watcher owns it.
    pub(super) fn adopt(self: &Arc<Self>, task: Task, claim: Claim) -> Arc<Task> {
        let task = Arc::new(task);
        claim.fulfil(Entry::Known(task.clone()));
        tokio::spawn(watch::watch(self.clone(), task.clone()));
        task
    }

    /// Undoes a start: the shim is there, its container is not.
    async fn abandon(&self, subject: &OwnedSubject, bundle: &Bundle, connection: &Connection) {
        let Connection { endpoint, shim, .. } = connection;
        let request = proto_shim::task::DeleteRequest { id: subject.id.clone(), exec_id: String::new() };
        let limit = Some(SHUTDOWN_TIMEOUT);
        // A container that was never created is not found; that is well.
        let deleted = shim.call_within::<_, DeleteResponse>(limit, "create", "Delete", &request).await;
        if let Err(error) = deleted {
            tracing::debug!(id = %subject.id, error = %Chain(&error), "delete a container that was not created");
        }
        if !connection.is_of_sandbox {
            let request = proto_shim::task::ShutdownRequest { id: subject.id.clone(), now: true };
            let told = shim.call_within::<_, ()>(limit, "create", "Shutdown", &request).await;
            if told.is_ok() {
                let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, shim.closed()).await;
            }
        }
        // The runtime may have made more than it told the shim.
        let _ = self.shims.clean_up(subject, bundle).await;
        endpoint.remove_unserved_socket().await;
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    one == other || matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

impl Checkpoint {
    /// Where its images are.
    async fn directory(&self, namespace: &Namespace, bundle: &Bundle) -> Result<String> {
        Ok(match self {
            Checkpoint::None => String::new(),
            Checkpoint::Directory(path) => path.clone(),
            Checkpoint::Saved(saved) => {
                // It goes with the bundle.
                let path = bundle.path.join(CHECKPOINT);
                saved.unpack(namespace, &path).await?;
                path.display().to_string()
            }
        })
    }
}

async fn create_in_shim(
    connection: &Connection,
    creation: &Creation,
    bundle: &Bundle,
    (checkpoint, options): (String, Option<Any>),
) -> Result<u32> {
    let rootfs = rootfs::left_for_shim(&creation.rootfs, connection.endpoint.version, bundle).await?;
    let request = CreateTaskRequest {
        id: creation.id.clone(),
        bundle: bundle.path.display().to_string(),
        rootfs,
        terminal: creation.terminal,
        stdin: creation.stdin.clone(),
        stdout: creation.stdout.clone(),
        stderr: creation.stderr.clone(),
        checkpoint,
        parent_checkpoint: String::new(),
        options,
    };
    let response: CreateTaskResponse = connection.shim.call("create", "Create", &request).await?;
    Ok(response.pid)
}

impl Task {
    pub(super) fn new(subject: OwnedSubject, bundle: Bundle, connection: Connection, pid: u32) -> Task {
        Task {
            namespace: subject.namespace,
            id: subject.id,
            bundle,
            program: subject.program,
            endpoint: connection.endpoint,
            shim: connection.shim,
            _log: connection.log,
            is_of_sandbox: connection.is_of_sandbox,
            pid: AtomicU32::new(pid),
            pidfd: Mutex::new(open_pidfd(pid)),
            leaving: AtomicBool::new(false),
            end: channel::Sender::new(End::NotYet),
        }
    }
}

impl Task {
    /// Notes the init process of a task that was found by a start of shimd before its shim knew the process, or told
    /// it.
    pub(super) fn note_pid(&self, pid: u32) {
        if pid != 0 && self.pid.swap(pid, Ordering::Relaxed) != pid {
            *self.pidfd.lock().unwrap_or_else(PoisonError::into_inner) = open_pidfd(pid);
        }
    }
}

/// The process is the shim's child or ward: it cannot be reaped, and its pid cannot be another's, before the shim is
/// told to forget it.
fn open_pidfd(pid: u32) -> Option<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
}

/// An id that nobody else gets, until the task is there or the claim is dropped.
pub(super) struct Claim {
    tasks: Arc<Tasks>,
    key: Option<Key>,
    /// Whoever waits for the task waits for this to go.
    _made: channel::Sender<()>,
}

impl Claim {
    /// A claim on an id; `None` when somebody has it.
    pub(super) fn on(tasks: &Arc<Tasks>, key: &Key) -> Option<Claim> {
        use std::collections::hash_map::Entry as Place;
        match tasks.entries().entry(key.clone()) {
            Place::Occupied(_) => None,
            Place::Vacant(place) => {
                let (made, making) = channel::channel(());
                place.insert(Entry::Creating(making));
                Some(Claim { tasks: tasks.clone(), key: Some(key.clone()), _made: made })
            }
        }
    }

    fn fulfil(mut self, entry: Entry) {
        if let Some(key) = self.key.take() {
            self.tasks.entries().insert(key, entry);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.tasks.entries().remove(&key);
        }
    }
}
