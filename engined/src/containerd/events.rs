//! What the supervisor tells of its own accord: processes that ended, and containers that ran out of memory.

use std::time::SystemTime;

use proto_containerd::events::{TaskExit, TaskOom};
use proto_containerd::services::events::SubscribeRequest;
use proto_containerd::types::Envelope;
use strata_fault::Fault;

use super::{Client, answer};

/// Something that happened to a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TaskEvent {
    /// The kernel killed something in the container for the sake of its memory limit.
    OutOfMemory { container: String },
    /// A process ended; `exec` is empty for the container's own program.
    Exited { container: String, exec: String, status: u32, at: SystemTime },
}

/// A stream of [`TaskEvent`]s.
pub(crate) struct TaskEvents(tonic::Streaming<Envelope>);

impl Client {
    /// Events from now on.
    pub(crate) async fn subscribe(&self) -> Result<TaskEvents, Fault> {
        // Each filter is an alternative; the topics are containerd's.
        let filters = vec!["topic==\"/tasks/exit\"".to_owned(), "topic==\"/tasks/oom\"".to_owned()];
        answer("watch", self.events().subscribe(SubscribeRequest { filters }).await).map(TaskEvents)
    }
}

impl TaskEvents {
    /// The next one; `None` when the supervisor ended the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<TaskEvent>, Fault> {
        loop {
            let message = self.0.message().await.map(tonic::Response::new);
            let Some(envelope) = answer("watch", message)? else { return Ok(None) };
            if let Some(event) = understood(&envelope) {
                return Ok(Some(event));
            }
        }
    }
}

/// An envelope of another kind, or one that does not decode, is passed over: events are a help, not the truth.
fn understood(envelope: &Envelope) -> Option<TaskEvent> {
    let any = envelope.event.as_ref()?;
    if let Ok(Some(oom)) = proto_containerd::from_any::<TaskOom>(any) {
        return Some(TaskEvent::OutOfMemory { container: oom.container_id });
    }
    let exit = proto_containerd::from_any::<TaskExit>(any).ok()??;
    let at = exit.exited_at.and_then(|stamp| SystemTime::try_from(stamp).ok()).unwrap_or_else(SystemTime::now);
    // The id of the container's own program is the container's.
    let exec = if exit.id == exit.container_id { String::new() } else { exit.id };
    Some(TaskEvent::Exited { container: exit.container_id, exec, status: exit.exit_status, at })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope<M: prost::Message + prost::Name>(message: &M) -> Envelope {
        Envelope { event: Some(proto_containerd::any(message)), ..Default::default() }
    }

    #[test]
    fn exits_of_programs_and_of_execs() {
        let exit = TaskExit {
            container_id: "c".to_owned(),
            id: "c".to_owned(),
            pid: 1,
            exit_status: 7,
            exited_at: Some(prost_types::Timestamp { seconds: 5, nanos: 0 }),
        };
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(5);
        let expected =
            |exec: &str| TaskEvent::Exited { container: "c".to_owned(), exec: exec.to_owned(), status: 7, at };
        assert_eq!(understood(&envelope(&exit)), Some(expected("")));
        assert_eq!(understood(&envelope(&TaskExit { id: "e".to_owned(), ..exit })), Some(expected("e")));
    }

    #[test]
    fn what_is_not_asked_for_is_passed_over() {
        assert_eq!(understood(&Envelope::default()), None);
        let other = proto_containerd::events::ContainerDelete { id: "c".to_owned() };
        assert_eq!(understood(&envelope(&other)), None);
    }
}
