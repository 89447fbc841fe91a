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
    publish(tasks, task, &exit);
    task.end.send_replace(End::Died(exit));
    // It may be the connection that died: then others still have the shim. Last, as that takes a while to find out.
    // Whoever deletes the task meanwhile looks after the socket, too, but not for long; one of a sandbox is the
    // sandbox's.
    task.endpoint.remove_socket_in_the_end().await;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Store;
    use crate::event::Events;
    use crate::filter::Filters;
    use crate::name::Namespace;
    use crate::sandbox::controller::Controller;
    use crate::shim::bundle::Kind;
    use crate::shim::shims::tests::shims;
    use crate::shim::{Connection, Endpoint, Shim};

    #[tokio::test]
    async fn an_exit_is_told_before_it_is_known_whether_the_socket_is_served() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path()).unwrap());
        let (events, shims) = (Arc::new(Events::new()), Arc::new(shims(directory.path())));
        let controller = Arc::new(Controller::new(store.clone(), shims.clone()));
        let tasks = Arc::new(Tasks::new(store, events.clone(), shims.clone(), controller));
        let endpoint = Endpoint::at(&directory.path().join("socket"));
        let listener = tokio::net::UnixListener::bind(endpoint.path().unwrap()).unwrap();
        let shim = Shim::connect(&endpoint, "c").await.unwrap();
        let (connection, _) = listener.accept().await.unwrap();
        let namespace = Namespace::parse("n").unwrap();
        let bundle = shims.make_bundle(Kind::Task, &namespace, "c", None).unwrap().disarm();
        let subject = OwnedSubject { namespace, id: "c".to_owned(), program: "/bin/true".into() };
        let task = Task::new(subject, bundle, Connection { endpoint, shim, log: None, is_of_sandbox: false }, 0);
        let mut told = events.subscribe(Filters::default());
        tokio::spawn(watch(tasks, Arc::new(task)));
        drop(connection);
        tokio::select! {
            biased;
            event = told.next() => assert_eq!(event.unwrap().unwrap().topic, topic::TASK_EXIT),
            _ = listener.accept() => panic!("somebody waits for what listens here to end"),
        }
    }
}
