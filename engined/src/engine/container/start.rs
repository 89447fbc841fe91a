//! Making and starting: what the actor does on the way from a request to a running program.
//!
//! Each phase says what undoes it before it is tried, so that a phase which failed half-way is undone too; the last one
//! disarms them all.

use std::sync::Arc;

use proto_containerd::types::Mount;
use strata_fault::{Fault, GrpcCode};
use tracing::Instrument;

use super::News;
use super::actor::Actor;
use super::create::{self, Birth};
use super::exit::Exit;
use super::state::{Event, Then};
use super::streams::Streams;
use super::undo::{Undo, clear_task};
use super::watch::until_end;
use crate::containerd::Client;
use crate::containerd::tasks::Stdio;
use crate::engine::error::Error;
use crate::engine::stamp::Stamp;
use crate::engine::step::step;
use crate::network::Endpoint;

/// A connection that was made, was refused, or was not tried yet.
pub(super) type Connected = Option<Result<Option<Arc<Endpoint>>, Fault>>;

/// What was made ahead of a start.
#[derive(Default)]
pub(super) struct Ahead {
    mounts: Option<Vec<Mount>>,
    connected: Connected,
}

/// Has the runtime set the container up. A task of an earlier run that nobody deleted is in the way once.
async fn create_task(client: &Client, id: &str, mounts: Vec<Mount>, stdio: Stdio) -> Result<u32, Fault> {
    match client.create_task(id, mounts.clone(), stdio.clone()).await {
        Err(fault) if fault.grpc == GrpcCode::AlreadyExists => {
            tracing::debug!(container = id, "a task of an earlier run is deleted first");
            clear_task(client, id).await?;
            client.create_task(id, mounts, stdio).await
        }
        outcome => outcome,
    }
}

impl Actor {
    /// Makes the container, and starts it if that is wanted. `false`: it was not made, and the caller was told why.
    pub(super) async fn be_born(&mut self, birth: Birth) -> bool {
        let Birth { spec, reservation, start, created, started, span } = birth;
        if start {
            // The first record says already that it is being started: should the engine die now, the next one undoes it.
            let _ = self.happen(Event::Start);
        }
        let ahead = match self.make(spec, start).instrument(span.clone()).await {
            Ok(ahead) => ahead,
            Err((fault, rest)) => {
                // The name is free before the answer says so.
                drop(reservation);
                let _ = created.send(Err(fault));
                rest.run_to_end(&self.means, &self.fixed).await;
                return false;
            }
        };
        reservation.fulfil(self.container.clone());
        self.emit("create", &[]);
        let _ = created.send(Ok(()));
        if start {
            let outcome = self.begin(ahead).instrument(span).await;
            let _ = started.send(outcome);
        }
        true
    }

    /// Steps 5, 6 and, for a start at once, 6b: they do not need each other.
    /// With a failure comes what could not be undone yet.
    async fn make(&mut self, spec: Vec<u8>, start: bool) -> Result<Ahead, (Fault, Undo)> {
        let undo = Undo { files: true, snapshot: true, container: true, network: start, task: false };
        let (means, fixed) = (Arc::clone(&self.means), Arc::clone(&self.fixed));
        let made = async {
            self.container.files().make()?;
            let connect = async { if start { Some(create::connect(&means, &fixed).await) } else { None } };
            let (mounts, taken, connected) =
                tokio::join!(create::assemble(&means, &fixed), create::take_over(&means, &fixed, spec), connect);
            let ahead = Ahead { mounts: Some(mounts?), connected };
            taken?;
            self.keep()?;
            Ok(ahead)
        };
        let outcome: Result<Ahead, Fault> = made.await;
        match outcome {
            Ok(ahead) => Ok(ahead),
            Err(fault) => Err((fault, undo.run(&means, &fixed).await)),
        }
    }

    /// Starts the program, and settles what follows from the outcome.
    pub(super) async fn begin(&mut self, ahead: Ahead) -> Result<(), Fault> {
        // What is left of the run before would be in the way.
        self.tidy().await;
        let mut undo = Undo::default();
        match self.start_phases(ahead, &mut undo).await {
            Ok(pid) => {
                // The last phase disarms: from here on the end of the program undoes all. What was left of the run before
                // went with this start, or is this run's now.
                self.rest = Undo::default();
                self.tidy().await;
                self.settle_started(pid).await;
                Ok(())
            }
            Err(fault) => {
                self.rest.add(undo);
                self.tidy().await;
                self.end = None;
                self.endpoint = None;
                self.settle_refused(Exit::refused(&fault, Stamp::now())).await;
                Err(fault)
            }
        }
    }

    async fn start_phases(&mut self, ahead: Ahead, undo: &mut Undo) -> Result<u32, Fault> {
        let (means, fixed) = (Arc::clone(&self.means), Arc::clone(&self.fixed));
        let (id, wanted) = (fixed.id.as_str(), &fixed.wanted);
        undo.network = true;
        self.endpoint = match ahead.connected {
            Some(outcome) => outcome?,
            None => create::connect(&means, &fixed).await?,
        };
        create::ensure_sources(wanted)?;
        self.write_files()?;
        let mounts = match ahead.mounts {
            Some(mounts) => mounts,
            None => self.mounts().await?,
        };
        self.container.0.news.send_replace(News::default());
        if wanted.open_stdin {
            self.container.stdin().open().await?;
        }
        let streams = Streams::open(&means.settings.log, self.container.files(), wanted)?;
        undo.task = true;
        create_task(&means.client, id, mounts, streams.stdio()).instrument(step!("create")).await?;
        // The shim has opened them.
        drop(streams);
        self.set_size().await;
        // Before the start: an end that comes at once is not missed.
        self.watch_end();
        means.client.start_task(id, "").instrument(step!("start")).await
    }

    fn write_files(&self) -> Result<(), Error> {
        let (files, wanted) = (self.container.files(), &self.fixed.wanted);
        files.make_passing(&self.fixed.hostname, wanted.network.mode, wanted.open_stdin)?;
        let address = self.endpoint.as_ref().map(|endpoint| endpoint.address.into());
        files.write_hosts(&self.fixed.hostname, address)
    }

    /// The mounts of a snapshot that was prepared before.
    async fn mounts(&self) -> Result<Vec<Mount>, Fault> {
        let (client, snapshotter) = (&self.means.client, &self.means.settings.snapshotter);
        let mounts = client.snapshot_mounts(snapshotter, self.fixed.id.as_str()).instrument(step!("assemble"));
        mounts.await?.ok_or_else(|| {
            let message = format!("the writable layer of container {} is gone", self.fixed.id.short());
            Fault::new(strata_fault::Layer::Supervisor, "assemble", "SNAPSHOT_GONE", message)
        })
    }

    /// A program that asks for its terminal's size at once gets the right one.
    async fn set_size(&self) {
        let size = *self.container.0.size.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(size) = size.filter(|_| self.fixed.wanted.tty) else { return };
        if let Err(fault) = self.means.client.resize_task(self.fixed.id.as_str(), "", size).await {
            tracing::debug!(%fault, container = %self.fixed.id, "set the size of the terminal before the start");
        }
    }

    /// Has the end of the program told to this actor.
    pub(super) fn watch_end(&mut self) {
        let (client, id) = (self.means.client.clone(), self.fixed.id.clone());
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let watch = async move {
            let end = until_end(&client, id.as_str()).await;
            let _ = sender.send(end);
        };
        tokio::spawn(watch.instrument(step!("watch")));
        self.end = Some(receiver);
    }

    async fn settle_started(&mut self, pid: u32) {
        let then = self.happen(Event::Started { pid, at: Stamp::now() });
        self.keep_or_tell();
        self.publish();
        self.emit("start", &[]);
        if let Some(endpoint) = &self.endpoint {
            self.means.network.settled(endpoint);
        }
        if then == Ok(Then::Kill) {
            self.kill_now().await;
        }
    }

    /// The program was not started: `exit` says why.
    pub(super) async fn settle_refused(&mut self, exit: Exit) {
        let then = self.happen(Event::Refused(exit));
        self.ends += 1;
        if then == Ok(Then::Remove) {
            self.leave().await;
        } else {
            self.keep_or_tell();
            self.publish();
        }
    }
}
