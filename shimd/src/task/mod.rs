//! Tasks: the processes of containers, each container watched by a shim of its own.
//!
//! The registry knows one [`Task`] per container that has one. Most requests go straight to the shim, side by side: the
//! shim answers what the kernel says, nothing is cached here that could be wrong. What belongs to shimd is the task's
//! life, and one tokio task ([`watch`]) owns that:
//!
//! ```text
//!             create              shim's connection ends
//!   (free) ---------> Live ---------------------------------> Dead (exit known, or recorded as unknown)
//!     ^                 | delete                                | delete
//!     |                 v                                       v
//!     +-------------- Leaving (the shim goes) <-----------------+
//! ```
//! A request that hangs in one shim hangs alone. An id is free for a new task only when the shim before is gone.

mod create;
mod process;
mod recover;
mod rootfs;
mod watch;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message;
use prost_types::{Any, Timestamp};
use proto_shim::{events, topic};
use tokio::sync::watch as channel;

use crate::db::Store;
use crate::error::{Chain, Error, Result};
use crate::event::{Envelope, Events};
use crate::name::{Namespace, check_identifier};
use crate::sandbox::controller::Controller;
use crate::shim::bundle::{Bundle, Kind};
use crate::shim::log::LogCopy;
use crate::shim::shims::SHUTDOWN_TIMEOUT;
use crate::shim::{Endpoint, Shim, Shims, runtime};
use crate::trace;
pub(crate) use create::{Checkpoint, Creation};
pub(crate) use process::{Exec, State};

/// How long it may take after it has said that it will.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// How a process ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Exit {
    pub(crate) pid: u32,
    pub(crate) status: u32,
    pub(crate) at: Timestamp,
    /// The shim died before it could tell; `status` is what is known of the end.
    pub(crate) shim_died: bool,
}

/// Namespace and container id.
type Key = (Namespace, String);

/// The tasks of all namespaces.
pub(crate) struct Tasks {
    pub(crate) store: Arc<Store>,
    pub(crate) events: Arc<Events>,
    shims: Arc<Shims>,
    sandboxes: Arc<Controller>,
    entries: Mutex<HashMap<Key, Entry>>,
}

enum Entry {
    /// Somebody is making it, or cleaning up what an earlier shimd left of it; the channel closes when that is over.
    Creating(channel::Receiver<()>),
    Known(Arc<Task>),
    /// The shim is going; the channel closes when it is gone.
    Leaving(channel::Receiver<()>),
}

/// A container's processes, and the shim that watches them.
pub(crate) struct Task {
    pub(crate) namespace: Namespace,
    pub(crate) id: String,
    bundle: Bundle,
    program: PathBuf,
    endpoint: Endpoint,
    shim: Shim,
    _log: Option<LogCopy>,
    /// The shim is the sandbox's, and stays when the task goes.
    is_of_sandbox: bool,
    /// The init process.
    pid: AtomicU32,
    /// Tells how the init process ended even when nobody is left who could.
    pidfd: Mutex<Option<OwnedFd>>,
    /// Set once the task is being deleted: then the end of the shim is no accident.
    leaving: AtomicBool,
    /// What became of the shim.
    end: channel::Sender<End>,
}

/// What became of a shim.
#[derive(Clone, Debug)]
enum End {
    /// It lives.
    NotYet,
    /// It went because its task was deleted.
    Dismissed,
    /// It died; what was left of its container is cleaned up, and ended so.
    Died(Exit),
}

impl Tasks {
    pub(crate) fn new(store: Arc<Store>, events: Arc<Events>, shims: Arc<Shims>, sandboxes: Arc<Controller>) -> Tasks {
        Tasks { store, events, shims, sandboxes, entries: Mutex::default() }
    }

    /// The task of a container.
    pub(crate) fn find(&self, namespace: &Namespace, id: &str) -> Result<Arc<Task>> {
        match self.entries().get(&(namespace.clone(), id.to_owned())) {
            Some(Entry::Known(task)) => Ok(task.clone()),
            _ => Err(Error::not_found("task", id)),
        }
    }

    /// What the shim of a runtime says of itself: an encoded `RuntimeInfo`.
    pub(crate) async fn runtime_info(&self, runtime: &str, options: Option<&Any>) -> Result<Vec<u8>> {
        let program = runtime::find(runtime, &self.shims.launcher.search_path)?;
        self.shims.launcher.info(&program, options).await
    }

    /// All tasks of a namespace, in order of their ids.
    pub(crate) fn all(&self, namespace: &Namespace) -> Vec<Arc<Task>> {
        let mut tasks: Vec<Arc<Task>> = self
            .entries()
            .values()
            .filter_map(|entry| match entry {
                Entry::Known(task) if task.namespace == *namespace => Some(task.clone()),
                _ => None,
            })
            .collect();
        tasks.sort_by(|a, b| a.id.cmp(&b.id));
        tasks
    }

    /// Refuses where a container has a task, or is just getting one: its record must not go before. What is left of a
    /// task whose shim died goes along.
    pub(crate) fn check_unused(self: &Arc<Self>, namespace: &Namespace, id: &str) -> Result<()> {
        let task = match self.entries().get(&(namespace.clone(), id.to_owned())) {
            None | Some(Entry::Leaving(_)) => return Ok(()),
            Some(Entry::Known(task)) if task.died().is_some() => task.clone(),
            Some(_) => return Err(Error::refused(format!("container {id:?}"), "it has a task")),
        };
        self.dismiss(&task);
        Ok(())
    }

    /// Deletes a task whose init process has ended, and lets its shim go. Once begun it is finished, whether the caller
    /// still waits or not. One that is just being made is waited for: whoever had asked for it may have died meanwhile,
    /// and wants it gone.
    pub(crate) async fn delete(self: &Arc<Self>, namespace: &Namespace, id: &str) -> Result<Exit> {
        self.made(namespace, id).await;
        let task = self.find(namespace, id)?;
        let tasks = self.clone();
        trace::detached(async move { tasks.delete_found(&task).await }).await
    }

    async fn delete_found(self: &Arc<Self>, task: &Arc<Task>) -> Result<Exit> {
        let exit = match task.died() {
            Some(exit) => exit,
            None => match task.delete_process("").await {
                Err(Error::ShimDied { .. }) => task.death().await?,
                // An earlier shimd had it deleted, and died before it let the shim go.
                Err(error) if error.is_not_found() => {
                    self.dismiss(task);
                    return Err(error);
                }
                Err(error) => return Err(task.why_not_deleted(error).await),
                Ok(exit) => exit,
            },
        };
        self.dismiss(task);
        Ok(exit)
    }

    /// Takes a task off the list. Its shim ends behind, and then its bundle goes, by which a start of shimd would find
    /// the shim; the id is free after that. Nothing happens where somebody else was quicker.
    fn dismiss(self: &Arc<Self>, task: &Arc<Task>) {
        if task.leaving.swap(true, Ordering::AcqRel) {
            return;
        }
        let (gone, leaving) = channel::channel(());
        let key = (task.namespace.clone(), task.id.clone());
        self.entries().insert(key.clone(), Entry::Leaving(leaving));
        let (tasks, task) = (self.clone(), task.clone());
        tokio::spawn(async move {
            task.shut_down().await;
            tasks.shims.discard(&task.bundle);
            task.end.send_replace(End::Dismissed);
            tasks.entries().remove(&key);
            drop(gone);
        });
    }

    /// Waits while the task is being made.
    async fn made(&self, namespace: &Namespace, id: &str) {
        let making = match self.entries().get(&(namespace.clone(), id.to_owned())) {
            Some(Entry::Creating(making)) => making.clone(),
            _ => return,
        };
        closed(making).await;
    }

    /// Keeps of a shim's events what must be known later.
    pub(crate) fn hear(&self, envelope: &Envelope) {
        if envelope.topic != topic::TASK_OOM {
            return;
        }
        let (Ok(namespace), Ok(event)) =
            (Namespace::parse(&envelope.namespace), events::TaskOom::decode(envelope.event.value.as_slice()))
        else {
            return;
        };
        if check_identifier("container", &event.container_id).is_err() {
            return;
        }
        let noted = self.shims.bundle(Kind::Task, &namespace, &event.container_id).note_kill_for_memory();
        if let Err(error) = noted {
            tracing::warn!(id = event.container_id, error = %Chain(&error), "keep that memory ran out");
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for the end of a channel that never says anything.
async fn closed(mut channel: channel::Receiver<()>) {
    let _ = channel.changed().await;
}

impl Task {
    /// Pid of the init process.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Whether the kernel killed for memory in the container.
    pub(crate) fn had_kill_for_memory(&self) -> bool {
        self.bundle.had_kill_for_memory()
    }

    /// How the task ended, if its shim died.
    pub(crate) fn died(&self) -> Option<Exit> {
        match &*self.end.borrow() {
            End::Died(exit) => Some(exit.clone()),
            End::NotYet | End::Dismissed => None,
        }
    }

    /// After the connection to the shim ended: waits until what is left of a dead shim's container is cleaned up. The
    /// error is that the task was deleted.
    pub(crate) async fn death(&self) -> Result<Exit> {
        let mut end = self.end.subscribe();
        let seen = end.wait_for(|end| !matches!(end, End::NotYet)).await.map(|end| end.clone());
        match seen {
            Ok(End::Died(exit)) => Ok(exit),
            // The sender lives in `self`: it does not go while this waits.
            _ => Err(Error::not_found("task", &self.id)),
        }
    }

    /// Tells the shim to end, and waits for that within bounds: until then its socket is not free for the next.
    async fn shut_down(&self) {
        if self.is_of_sandbox {
            return;
        }
        if !self.shim.is_closed() {
            let request = proto_shim::task::ShutdownRequest { id: self.id.clone(), now: false };
            let told = self.shim.call_within::<_, ()>(Some(SHUTDOWN_TIMEOUT), "delete", "Shutdown", &request).await;
            match told {
                // A shim may end before it has answered.
                Ok(()) | Err(Error::ShimDied { .. }) => {}
                Err(error) => tracing::warn!(id = %self.id, error = %Chain(&error), "shut a shim down"),
            }
        }
        // A shim of several containers answers and stays.
        if tokio::time::timeout(END_TIMEOUT, self.shim.closed()).await.is_ok() {
            // Another shim of its group may have come in its place.
            self.endpoint.remove_unserved_socket().await;
        }
    }
}
