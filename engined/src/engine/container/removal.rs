//! Removal: first what others could stumble over, while the caller waits; then the rest, for as long as it takes.

use std::sync::Arc;
use std::time::Duration;

use strata_fault::Fault;

use super::Container;
use super::actor::Actor;
use super::record::Fixed;
use super::undo::clear_task;
use crate::engine::error::Error;
use crate::engine::means::Means;
use crate::store::Table;

/// The first pause before a removal that failed is tried again; each further one is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long readers may take to read the rest of the log. A foreground reader holds the container back while it runs, so
/// there is a bound to what it can have left.
const READERS_PATIENCE: Duration = Duration::from_secs(600);

impl Actor {
    /// What the caller waits for: name, ports and address are free, and the container is on no list.
    pub(super) async fn leave(&mut self) {
        self.restart_at = None;
        self.disconnect().await;
        self.means.roster.release(&self.fixed.id, &self.fixed.name);
        // Should the engine die now, the next one finishes it.
        self.keep_or_tell();
        self.publish();
        self.emit("destroy", &[]);
        for reply in self.removals.drain(..) {
            let _ = reply.send(Ok(()));
        }
    }

    /// Removes the rest, however often it must be tried.
    pub(super) async fn remove_rest(&mut self) {
        let mut pause = PAUSE_MIN;
        while let Err(fault) = remove_all(&self.means, &self.fixed, &self.container).await {
            tracing::warn!(container = %self.fixed.id, %fault, causes = ?fault.causes, "remove: tried again later");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        self.is_gone = true;
        self.publish();
    }
}

/// The opposite order of making. Each step may be done already.
async fn remove_all(means: &Means, fixed: &Fixed, container: &Container) -> Result<(), Fault> {
    let id = fixed.id.as_str();
    clear_task(&means.client, id).await?;
    means.client.delete_container(id).await?;
    means.client.remove_snapshot(&means.settings.snapshotter, id).await?;
    let readers = tokio::time::timeout(READERS_PATIENCE, Arc::clone(&container.0.log).write_owned()).await;
    if readers.is_err() {
        tracing::warn!(container = id, "its log is removed though somebody reads it");
    }
    let files = container.files().clone();
    match tokio::task::spawn_blocking(move || files.remove()).await {
        Ok(outcome) => outcome?,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
    // Last: as long as it is there, a start of the engine goes on with the removal.
    Ok(means.store.remove(Table::Containers, id).map_err(|source| Error::Store { source })?)
}
