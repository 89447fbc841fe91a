//! What must be undone when a phase fails, and is tried until it is.
//!
//! The supervisor may be dead at that moment: that is what made the phase fail. The caller is told at once; what cannot be
//! undone yet is tried again until the supervisor is back. Should the engine die first, its next start finds the rest.

use std::time::Duration;

use strata_fault::{Fault, GrpcCode};
use tokio::time::Instant;

use super::actor::Actor;
use super::files::Files;
use super::record::Fixed;
use crate::containerd::Client;
use crate::engine::means::Means;
use crate::engine::sandbox;
use crate::engine::signal::Signal;

/// How often a task that does not end yet is deleted again, and the first pause between; each further one is longer.
const DELETE_TRIES: u32 = 20;
const DELETE_PAUSE: Duration = Duration::from_millis(10);
/// The first pause before the same is tried to be undone again; each further one is twice as long.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(500);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What must be undone should a later phase fail.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Undo {
    pub(super) files: bool,
    pub(super) snapshot: bool,
    pub(super) container: bool,
    pub(super) network: bool,
    pub(super) task: bool,
}

impl Undo {
    pub(super) fn is_done(&self) -> bool {
        *self == Undo::default()
    }

    /// Takes over what else must be undone.
    pub(super) fn add(&mut self, other: Undo) {
        self.files |= other.files;
        self.snapshot |= other.snapshot;
        self.container |= other.container;
        self.network |= other.network;
        self.task |= other.task;
    }

    /// In the opposite order. It goes on past a failure, and returns what is left.
    pub(super) async fn run(self, means: &Means, fixed: &Fixed) -> Undo {
        let (id, client) = (fixed.id.as_str(), &means.client);
        let is_left = |what: &str, outcome: Result<(), Fault>| {
            outcome
                .inspect_err(|fault| tracing::warn!(container = id, %fault, causes = ?fault.causes, "undo {what}"))
                .is_err()
        };
        let task = self.task && is_left("the task", clear_task(client, id).await);
        let network = self.network && is_left("the network", sandbox::disconnect(means, &fixed.sandbox).await);
        // The task stands on both.
        let container =
            self.container && (task || is_left("the container's record", client.delete_container(id).await));
        let snapshotter = &means.settings.snapshotter;
        let snapshot =
            self.snapshot && (task || is_left("the snapshot", client.remove_snapshot(snapshotter, id).await));
        let files = Files::new(&means.settings.root, &means.settings.state, id);
        let files = self.files && (task || is_left("the files", files.remove().map_err(Fault::from)));
        Undo { files, snapshot, container, network, task }
    }

    /// Tries until nothing is left.
    pub(super) async fn run_to_end(mut self, means: &Means, fixed: &Fixed) {
        let mut pause = PAUSE_MIN;
        while !self.is_done() {
            tokio::time::sleep(pause).await;
            self = self.run(means, fixed).await;
            pause = longer(pause);
        }
    }
}

impl Actor {
    /// Undoes what is to be undone; what cannot be now is tried again later.
    pub(super) async fn tidy(&mut self) {
        if !self.rest.is_done() {
            self.rest = std::mem::take(&mut self.rest).run(&self.means, &self.fixed).await;
        }
        if self.rest.is_done() {
            (self.tidy_at, self.tidy_pause) = (None, PAUSE_MIN);
        } else {
            self.tidy_at = Some(Instant::now() + self.tidy_pause);
            self.tidy_pause = longer(self.tidy_pause);
        }
    }

    /// Takes the task of the run that is over apart, so that another may begin.
    pub(super) async fn clear_run(&mut self) {
        self.rest.task = true;
        self.tidy().await;
    }
}

fn longer(pause: Duration) -> Duration {
    (pause * 2).min(PAUSE_MAX)
}

/// Ends a task whatever it does, and waits until it is gone. None is no error.
pub(super) async fn clear_task(client: &Client, id: &str) -> Result<(), Fault> {
    let mut pause = DELETE_PAUSE;
    for _ in 0..DELETE_TRIES {
        match client.delete_task(id).await {
            Err(fault) if fault.grpc == GrpcCode::FailedPrecondition => {}
            outcome => return outcome,
        }
        // It has not ended: a start that was given up, or an end that the shim has not seen yet.
        if let Err(fault) = client.kill_task(id, "", Signal::KILL.number(), true).await {
            // Of a process that is just being made there is no pid to kill yet.
            tracing::debug!(container = id, %fault, "kill a task that is to go");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
    client.delete_task(id).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_adds_up() {
        let mut rest = Undo { task: true, ..Undo::default() };
        rest.add(Undo { network: true, ..Undo::default() });
        assert_eq!(rest, Undo { task: true, network: true, ..Undo::default() });
        rest.add(Undo::default());
        assert!(!rest.is_done());
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        let pauses: Vec<_> = std::iter::successors(Some(PAUSE_MIN), |pause| Some(longer(*pause))).take(8).collect();
        assert_eq!(pauses[1], PAUSE_MIN * 2);
        assert_eq!(pauses[7], PAUSE_MAX);
    }
}
