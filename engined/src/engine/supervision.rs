//! Hearing what the supervisor tells of its own accord.
//!
//! It is a help, not the truth: each end of a program is also waited for. What comes here alone is that the kernel killed
//! something for its memory, and that an end is everything there was to tell.

use std::sync::Arc;
use std::time::Duration;

use strata_fault::Fault;

use super::means::Means;
use crate::containerd::events::TaskEvent;

/// The first pause before the supervisor is asked for its events again.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Listens as long as the engine lives.
pub(super) async fn listen(means: Arc<Means>) {
    let mut pause = PAUSE_MIN;
    loop {
        match listen_once(&means, &mut pause).await {
            Ok(()) => tracing::debug!("the supervisor ended its stream of events"),
            Err(fault) => tracing::debug!(%fault, causes = ?fault.causes, "listen to the supervisor's events"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

async fn listen_once(means: &Means, pause: &mut Duration) -> Result<(), Fault> {
    let mut events = means.client.subscribe().await?;
    *pause = PAUSE_MIN;
    while let Some(event) = events.next().await? {
        route(means, &event);
    }
    Ok(())
}

/// An event of a container of others, or of an exec, is nobody's.
fn route(means: &Means, event: &TaskEvent) {
    match event {
        TaskEvent::OutOfMemory { container } => {
            if let Some(container) = means.roster.by_id(container) {
                container.note_out_of_memory();
            }
        }
        TaskEvent::Exited { container, exec, .. } if exec.is_empty() => {
            if let Some(container) = means.roster.by_id(container) {
                container.note_exit();
            }
        }
        TaskEvent::Exited { .. } => {}
    }
}
