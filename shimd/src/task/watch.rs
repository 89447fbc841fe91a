//! The one owner of a task's life: notices that a shim is gone, and cleans up after it.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use proto_shim::{events, topic};

use super::{End, Exit, Task, Tasks};
use crate::shim::OwnedSubject;
use crate::{clock, sys};

/// What is recorded where nobody saw the end: no status that a process chose could be told from it by chance.
const UNKNOWN_STATUS: u32 = 255;

/// Watches a task until it is deleted or its shim dies.
pub(super) async fn watch(tasks: Arc<Tasks>, task: Arc<Task>) {
    let mut end = task.end.subscribe();
    tokio::select! {
        () = task.shim.closed() => {}
        // A shim of several containers goes on; nothing is kept for the one that went.
        () = async { drop(end.wait_for(|end| matches!(end, End::Dismissed)).await) } => return,
    }
    if task.leaving.load(Ordering::Acquire) {
        task.end.send_replace(End::Dismissed);
        return;
    }
    tracing::warn!(namespace = %task.namespace, id = %task.id, "the shim of a container died");
    bury(&tasks, &task).await;
}

/// Kills what is left of the container, publishes its end and records it.
async fn bury(tasks: &Tasks, task: &Task) {
    let subject =
        OwnedSubject { namespace: task.namespace.clone(), id: task.id.clone(), program: task.program.clone() };
    let said = match tasks.shims.clean_up(&subject, &task.bundle).await {
        Ok(response) => Some((response.exit_status, response.exited_at)),
        Err(_) => {
            kill(task);
            None
        }
    };
    let pidfd = task.pidfd.lock().unwrap_or_else(PoisonError::into_inner).take();
    // What the kernel remembers is exact; what the clean-up says is only that it killed.
    let seen = pidfd.as_ref().and_then(|pidfd| sys::exit_status(pidfd.as_fd()));
    let (status, at) = match (seen, said) {
        (Some(status), said) => (status, said.and_then(|(_, at)| at)),
        (None, Some((status, at))) => (status, at),
        (None, None) => (UNKNOWN_STATUS, None),
    };
    let exit = Exit { pid: task.pid(), status, at: at.unwrap_or_else(clock::now), shim_died: true };
    // It may be the connection that died: then others still have the shim.
    task.endpoint.remove_unserved_socket().await;
    publish(tasks, task, &exit);
    task.end.send_replace(End::Died(exit));
}

fn kill(task: &Task) {
    let pidfd = task.pidfd.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pidfd) = pidfd.as_ref() {
        // It may have ended by itself.
        let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
    }
}

fn publish(tasks: &Tasks, task: &Task, exit: &Exit) {
    let event = events::TaskExit {
        container_id: task.id.clone(),
        id: task.id.clone(),
        pid: exit.pid,
        exit_status: exit.status,
        exited_at: Some(exit.at),
    };
    tasks.events.publish(&task.namespace, topic::TASK_EXIT, &event);
}
