//! The one owner of a task's life: notices that a shim is gone, and cleans up after it.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use proto_shim::{events, topic};
use tokio::net::unix::pipe;
use tokio::task::AbortHandle;

use super::bundle::Bundle;
use super::create::OwnedSubject;
use super::{End, Exit, Task, Tasks};
use crate::clock;
use crate::error::{Chain, Error};
use crate::sys;

/// What is recorded where nobody saw the end: no status that a process chose could be told from it by chance.
const UNKNOWN_STATUS: u32 = 255;
/// Longest line of a shim's own log that is passed on.
const LOG_LINE_MAX: usize = 8 << 10;

/// Watches a task until it is deleted or its shim dies.
pub(super) async fn watch(tasks: Arc<Tasks>, task: Arc<Task>) {
    task.shim.closed().await;
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
    let said = match tasks.clean_up(&subject, &task.bundle).await {
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
    task.endpoint.remove_socket();
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

/// Passes what a shim writes to its log FIFO on to shimd's own log, as long as it is held.
pub(super) struct LogCopy(AbortHandle);

impl Drop for LogCopy {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl LogCopy {
    /// Begins to read; a FIFO that cannot be opened is told in the log and is no reason to fail.
    pub(super) fn start(bundle: &Bundle, id: &str) -> Option<LogCopy> {
        // Open for writing, too: then there is no end of file before the shim has opened it.
        match pipe::OpenOptions::new().read_write(true).open_receiver(bundle.log()) {
            Ok(log) => Some(LogCopy(tokio::spawn(copy_lines(log, id.to_owned())).abort_handle())),
            Err(error) => {
                let error = Error::io(format!("open {}", bundle.log().display()), error);
                tracing::warn!(error = %Chain(&error), "read the log of a shim");
                None
            }
        }
    }
}

/// Between two lines nothing is kept: most shims never write any.
async fn copy_lines(log: pipe::Receiver, id: String) {
    let mut line = Vec::new();
    while log.readable().await.is_ok() {
        let mut chunk = [0; 1024];
        match log.try_read(&mut chunk) {
            Ok(count) => take_lines(&chunk[..count], &mut line, &id),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

fn take_lines(mut chunk: &[u8], line: &mut Vec<u8>, id: &str) {
    while let Some(end) = chunk.iter().position(|byte| *byte == b'\n') {
        add(line, &chunk[..end]);
        tracing::info!(target: "shim", id, "{}", String::from_utf8_lossy(&std::mem::take(line)));
        chunk = &chunk[end + 1..];
    }
    add(line, chunk);
}

fn add(line: &mut Vec<u8>, bytes: &[u8]) {
    let room = LOG_LINE_MAX.saturating_sub(line.len());
    line.extend_from_slice(&bytes[..bytes.len().min(room)]);
}
