//! What a start of the engine makes of what it finds: records, the supervisor's tasks, containers and snapshots, files.
//!
//! Nothing is trusted for having been written. A container runs if its task runs; what the record says of it is then the
//! history. What no record names is removed, and what a record names is brought to where the record and the world agree:
//!
//! | record | task | becomes |
//! | --- | --- | --- |
//! | any but removing | runs | running, and its end is waited for |
//! | starting, running | has ended | the same: the shim kept its end |
//! | created, exited, restarting | has ended | as recorded: its end was dealt with, and only the task is left |
//! | any but removing | set up, not started | not started; what was under way is undone |
//! | starting | none | the same |
//! | running | none | ended, unknown how |
//! | restarting | none | started again |
//! | created, exited | none | as it is |
//! | removing | any | removed |
//! | none | any | removed, and taken off the network |

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use strata_fault::Fault;
use tokio::time::Instant;

use super::actor::Actor;
use super::create::unborn;
use super::exit::{Exit, Problem};
use super::files::{make_lasting_place, remove_tree};
use super::record::{Loaded, Record};
use super::state::{Life, Phase};
use super::undo::clear_task;
use super::wanted::RestartPolicy;
use super::watch;
use crate::containerd::is_unreachable;
use crate::containerd::tasks::{Now, Task};
use crate::engine::means::{INSTANCE_LABEL, Means};
use crate::engine::sandbox::{self, Sandbox};
use crate::engine::stamp::Stamp;
use crate::engine::start::SUPERVISOR_PAUSE;
use crate::network::Endpoint;
use crate::store::{Store, Table};

/// The connected sandboxes of an earlier life, by id.
pub(crate) fn load_sandboxes(store: &Store) -> Result<HashMap<String, Sandbox>, crate::store::StoreError> {
    let rows = store.load(Table::Sandboxes)?;
    let parsed = rows.into_iter().filter_map(|(id, bytes)| match serde_json::from_slice(&bytes) {
        Ok(sandbox) => Some((id, sandbox)),
        Err(error) => {
            tracing::error!(sandbox = id, %error, "a sandbox's record cannot be read: its network is made anew");
            None
        }
    });
    Ok(parsed.collect())
}

/// Brings records and world to agree. When this returns every container is on the lists, as it is.
pub(crate) async fn recover(
    means: &Arc<Means>,
    loaded: Loaded,
    sandboxes: &HashMap<String, Sandbox>,
) -> Result<(), Fault> {
    let tasks = reached(|| means.client.list_tasks()).await?;
    let mut tasks: HashMap<String, Task> = tasks.into_iter().map(|task| (task.container.clone(), task)).collect();
    let known: HashSet<String> =
        loaded.records.iter().map(|record| record.fixed.id.to_string()).chain(loaded.unreadable).collect();
    reached(|| remove_strangers(means, &known)).await?;
    disconnect_strangers(means, &known, sandboxes).await;
    for record in loaded.records {
        let id = record.fixed.id.to_string();
        let endpoint = sandboxes.get(&record.fixed.sandbox).map(|sandbox| Arc::new(sandbox.endpoint.clone()));
        take_in(means, record, tasks.remove(&id), endpoint).await;
    }
    remove_files(means, &known);
    if let Err(error) = make_lasting_place(&means.settings.root) {
        tracing::warn!(%error, "make a place for containers");
    }
    Ok(())
}

/// Asks the supervisor again and again while it cannot be reached: it may be killed just now, too.
async fn reached<T>(ask: impl AsyncFn() -> Result<T, Fault>) -> Result<T, Fault> {
    loop {
        match ask().await {
            Err(fault) if is_unreachable(&fault) => tracing::warn!("the supervisor went away: it is asked again"),
            outcome => return outcome,
        }
        tokio::time::sleep(SUPERVISOR_PAUSE).await;
    }
}

/// Containers and snapshots of ours that no record names: a creation that was cut off.
async fn remove_strangers(means: &Means, known: &HashSet<String>) -> Result<(), Fault> {
    let (client, instance) = (&means.client, &means.settings.instance);
    for id in client.list_containers(INSTANCE_LABEL, instance).await? {
        if !known.contains(&id) {
            tracing::info!(container = id, "removed: it was never wholly made");
            clear_task(client, &id).await?;
            client.delete_container(&id).await?;
        }
    }
    let snapshotter = &means.settings.snapshotter;
    for key in client.list_snapshots(snapshotter, INSTANCE_LABEL, instance).await? {
        if !known.contains(&key) {
            tracing::info!(snapshot = key, "removed: nobody's");
            client.remove_snapshot(snapshotter, &key).await?;
        }
    }
    Ok(())
}

/// Places on the network of containers that were never wholly made: their sandbox was recorded first. One that cannot be
/// taken off does not keep the engine from its start.
async fn disconnect_strangers(means: &Means, known: &HashSet<String>, sandboxes: &HashMap<String, Sandbox>) {
    for id in sandboxes.keys().filter(|id| !known.contains(*id)) {
        tracing::info!(sandbox = id, "disconnected: no container lives in it");
        if let Err(fault) = sandbox::disconnect(means, id).await {
            tracing::warn!(sandbox = id, %fault, causes = ?fault.causes, "take it off the network");
        }
    }
}

/// What one record and what was found of it come to.
enum Verdict {
    /// It runs, or has ended while nobody watched: the supervisor tells which.
    Watch {
        pid: u32,
    },
    /// Its start was cut off before the program ran.
    Undo,
    /// Its program is gone, and nobody knows how it ended.
    Lost {
        boot_is_same: bool,
    },
    /// It waits to be started again.
    Restart,
    Leave,
    Remove,
}

fn verdict(life: &Life, task: Option<&Task>, boot_is_same: bool) -> Verdict {
    match (life.phase, task.map(|task| (&task.now, task.pid))) {
        (Phase::Removing, _) => Verdict::Remove,
        (_, Some((Now::Created, _))) | (Phase::Starting, None) => Verdict::Undo,
        (_, Some((Now::Running | Now::Paused | Now::Unknown, pid)))
        | (Phase::Starting | Phase::Running { .. }, Some((Now::Stopped(_), pid))) => Verdict::Watch { pid },
        (Phase::Running { .. }, None) => Verdict::Lost { boot_is_same },
        (Phase::Restarting, None | Some((Now::Stopped(_), _))) => Verdict::Restart,
        (Phase::Created | Phase::Exited, None | Some((Now::Stopped(_), _))) => Verdict::Leave,
    }
}

async fn take_in(means: &Arc<Means>, record: Record, task: Option<Task>, endpoint: Option<Arc<Endpoint>>) {
    let boot_is_same = record.boot == means.settings.boot_id;
    let verdict = verdict(&record.life, task.as_ref(), boot_is_same);
    let mut life = record.life;
    if let Verdict::Watch { pid } = verdict {
        life.phase = Phase::Running { pid };
        life.started.get_or_insert_with(Stamp::now);
    }
    let wanted_restart = record.fixed.wanted.restart;
    let (container, mut actor) = unborn(means, record.fixed, life, None);
    if !matches!(verdict, Verdict::Remove) {
        means.roster.take_in(container);
    }
    if task.is_some() && matches!(verdict, Verdict::Restart | Verdict::Leave) {
        actor.clear_run().await;
    }
    match verdict {
        Verdict::Watch { .. } => {
            if let Some(endpoint) = &endpoint {
                means.network.settled(endpoint);
            }
            actor.endpoint = endpoint;
            actor.watch_end();
            actor.publish();
        }
        Verdict::Undo => actor.undo_start(wanted_restart).await,
        Verdict::Lost { boot_is_same } => actor.lost(boot_is_same),
        Verdict::Restart => actor.restart_at = Some(Instant::now()),
        Verdict::Leave => {
            if endpoint.is_some() {
                actor.disconnect().await;
            }
            if actor.life.starts_with_engine(wanted_restart) {
                actor.life.phase = Phase::Restarting;
                actor.restart_at = Some(Instant::now());
            }
        }
        Verdict::Remove => {
            if endpoint.is_some() {
                actor.disconnect().await;
            }
        }
    }
    tokio::spawn(actor.go_on());
}

impl Actor {
    /// A start that the engine's end cut off: nothing of it may stay.
    /// The restart policy holds as before.
    async fn undo_start(&mut self, policy: RestartPolicy) {
        let was_restart = self.life.phase == Phase::Starting && self.life.restart_count > 0;
        self.clear_run().await;
        self.disconnect().await;
        let problem = Problem::new(
            strata_fault::Layer::Engine,
            "start",
            "START_INTERRUPTED",
            "the engine ended while the container was being started",
        );
        self.life.phase = Phase::Starting;
        self.settle_refused(Exit { code: 128, unknown: false, ..Exit::unseen(Stamp::now(), problem) }).await;
        if self.life.tries_again(policy, was_restart) {
            self.restart_at = Some(Instant::now());
            self.keep_or_tell();
            self.publish();
        }
    }

    /// The program is gone: its end is told like any other.
    fn lost(&mut self, boot_is_same: bool) {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let _ = sender.send(watch::lost(boot_is_same));
        self.end = Some(receiver);
    }
}

/// Directories of containers and execs that nobody knows.
fn remove_files(means: &Means, known: &HashSet<String>) {
    let settings = &means.settings;
    remove_unknown(&settings.root.join("containers"), known);
    remove_unknown(&settings.state.join("containers"), known);
    // Nobody reads the streams of an exec that an earlier life began.
    remove_unknown(&settings.state.join("execs"), &HashSet::new());
}

fn remove_unknown(directory: &Path, known: &HashSet<String>) {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => return tracing::warn!(directory = %directory.display(), %error, "look for what nobody knows"),
    };
    for entry in entries.flatten() {
        let is_known = entry.file_name().to_str().is_some_and(|name| known.contains(name));
        if !is_known && let Err(error) = remove_tree(&entry.path()) {
            tracing::warn!(%error, "remove what nobody knows");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::tasks::Ended;
    use std::time::SystemTime;

    fn task(now: Now) -> Task {
        Task { container: "c".to_owned(), pid: 7, now }
    }

    fn life(phase: Phase) -> Life {
        let mut life = Life::default();
        life.phase = phase;
        life
    }

    #[test]
    fn the_table() {
        let stopped = Now::Stopped(Ended { status: 0, at: SystemTime::now(), fault: None, out_of_memory: false });
        let running = Phase::Running { pid: 7 };
        for now in [Now::Running, Now::Paused, Now::Unknown] {
            for phase in [Phase::Created, Phase::Starting, running, Phase::Exited, Phase::Restarting] {
                assert!(matches!(verdict(&life(phase), Some(&task(now.clone())), true), Verdict::Watch { pid: 7 }));
            }
        }
        let of_ended = |phase| verdict(&life(phase), Some(&task(stopped.clone())), true);
        assert!(matches!(of_ended(running), Verdict::Watch { .. }));
        assert!(matches!(of_ended(Phase::Starting), Verdict::Watch { .. }));
        assert!(matches!(of_ended(Phase::Exited), Verdict::Leave));
        assert!(matches!(of_ended(Phase::Restarting), Verdict::Restart));
        assert!(matches!(verdict(&life(Phase::Starting), None, true), Verdict::Undo));
        assert!(matches!(verdict(&life(Phase::Created), Some(&task(Now::Created)), true), Verdict::Undo));
        assert!(matches!(verdict(&life(running), None, false), Verdict::Lost { boot_is_same: false }));
        assert!(matches!(verdict(&life(Phase::Restarting), None, true), Verdict::Restart));
        assert!(matches!(verdict(&life(Phase::Exited), None, true), Verdict::Leave));
        assert!(matches!(verdict(&life(Phase::Removing), Some(&task(stopped)), true), Verdict::Remove));
    }
}
