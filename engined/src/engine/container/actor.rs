//! The task that owns a container: it alone changes it, one thing after the other.
//!
//! It waits for whichever comes first: an order, the end of the program, the time of a restart, the time to kill what was
//! told to stop. What it does is in [`super::start`], [`super::ending`] and [`super::removal`]; what may follow what is in
//! [`super::state`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use strata_fault::Fault;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::Instrument;

use super::create::Birth;
use super::record::{Fixed, Record};
use super::start::Ahead;
use super::state::{Event, Life, Phase, Then, Unfit};
use super::undo::{PAUSE_MIN, Undo};
use super::watch::End;
use super::{Command, Container, Order, Reply, View};
use crate::engine::error::Error;
use crate::engine::event::Kind;
use crate::engine::means::Means;
use crate::engine::signal::Signal;
use crate::network::Endpoint;

/// How long a program may take to stop when nobody says otherwise: as long as Docker gives it.
const STOP_TIMEOUT_S: u32 = 10;

pub(super) struct Actor {
    pub(super) means: Arc<Means>,
    pub(super) container: Container,
    pub(super) fixed: Arc<Fixed>,
    pub(super) life: Life,
    pub(super) endpoint: Option<Arc<Endpoint>>,
    pub(super) ends: u64,
    pub(super) is_gone: bool,
    orders: mpsc::Receiver<Command>,
    window: watch::Sender<View>,
    /// Tells of the end of the run that is going on.
    pub(super) end: Option<oneshot::Receiver<End>>,
    pub(super) restart_at: Option<Instant>,
    pub(super) kill_at: Option<Instant>,
    /// What could not be undone yet, and when it is tried again.
    pub(super) rest: Undo,
    pub(super) tidy_at: Option<Instant>,
    pub(super) tidy_pause: Duration,
    /// Who waits for the end.
    pub(super) stops: Vec<Reply>,
    /// Who waits for the removal.
    pub(super) removals: Vec<Reply>,
}

/// What the actor was woken by.
enum Woken {
    Order(Command),
    Ended(End),
    RestartDue,
    KillDue,
    TidyDue,
}

impl Actor {
    pub(super) fn new(
        means: Arc<Means>,
        container: Container,
        life: Life,
        orders: mpsc::Receiver<Command>,
        window: watch::Sender<View>,
    ) -> Actor {
        Actor {
            fixed: Arc::clone(container.fixed()),
            means,
            container,
            life,
            endpoint: None,
            ends: 0,
            is_gone: false,
            orders,
            window,
            end: None,
            restart_at: None,
            kill_at: None,
            rest: Undo::default(),
            tidy_at: None,
            tidy_pause: PAUSE_MIN,
            stops: Vec::new(),
            removals: Vec::new(),
        }
    }

    /// The life of a new container, from its making to its removal.
    pub(super) async fn live(mut self, birth: Birth) {
        if self.be_born(birth).await {
            self.go_on().await;
        }
    }

    /// The life of a container that is there, to its removal.
    pub(super) async fn go_on(mut self) {
        while !self.is_leaving() {
            match self.woken().await {
                Woken::Order(command) => self.carry_out(command).await,
                Woken::Ended(end) => self.ended(end).await,
                Woken::RestartDue => self.restart().await,
                Woken::KillDue => {
                    self.kill_at = None;
                    self.kill_now().await;
                }
                Woken::TidyDue => self.tidy().await,
            }
        }
        // Orders that come now are answered that it is gone.
        self.orders.close();
        self.remove_rest().await;
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.life.phase == Phase::Removing
    }

    async fn woken(&mut self) -> Woken {
        let ended = async {
            let end = self.end.as_mut()?;
            match end.await {
                Ok(end) => Some(end),
                // A watcher that is gone without a word has died with the runtime, as this task will.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            // First what has happened, then what is wanted.
            biased;
            Some(end) = ended => Woken::Ended(end),
            () = at(self.kill_at) => Woken::KillDue,
            () = at(self.tidy_at) => Woken::TidyDue,
            () = at(self.restart_at) => Woken::RestartDue,
            Some(command) = self.orders.recv() => Woken::Order(command),
        }
    }

    async fn carry_out(&mut self, command: Command) {
        let span = command.span;
        match command.order {
            Order::Start(reply) => {
                let outcome = self.start_by_order().instrument(span).await;
                let _ = reply.send(outcome);
            }
            Order::Stop { signal, timeout_s, reply } => self.stop(signal, timeout_s, reply).instrument(span).await,
            Order::Kill { signal, reply } => {
                let outcome = self.kill(signal).instrument(span).await;
                let _ = reply.send(outcome);
            }
            Order::Remove { force, reply } => self.remove(force, reply).instrument(span).await,
        }
    }

    async fn start_by_order(&mut self) -> Result<(), Fault> {
        match self.happen(Event::Start)? {
            Then::Begin => {
                self.restart_at = None;
                self.keep_or_tell();
                self.begin(Ahead::default()).await
            }
            _ => Ok(()),
        }
    }

    async fn restart(&mut self) {
        self.restart_at = None;
        if self.happen(Event::RestartDue).ok() != Some(Then::Begin) {
            return;
        }
        self.keep_or_tell();
        if let Err(fault) = self.begin(Ahead::default()).await {
            tracing::warn!(container = %self.fixed.id, %fault, causes = ?fault.causes, "start it again");
        }
    }

    async fn stop(&mut self, signal: Option<Signal>, timeout_s: Option<u32>, reply: Reply) {
        match self.happen(Event::Stop) {
            Err(fault) => drop(reply.send(Err(fault))),
            Ok(Then::End) => {
                let timeout = timeout_s.or(self.fixed.wanted.stop_timeout_s).unwrap_or(STOP_TIMEOUT_S);
                self.keep_or_tell();
                self.publish();
                self.kill_at = Some(Instant::now() + Duration::from_secs(timeout.into()));
                self.stops.push(reply);
                let signal = signal.unwrap_or(self.fixed.program.stop_signal);
                if let Err(fault) = self.signal(signal).await {
                    tracing::warn!(container = %self.fixed.id, %fault, causes = ?fault.causes, "send the stop signal");
                }
            }
            Ok(_) => {
                self.restart_at = None;
                self.keep_or_tell();
                self.publish();
                let _ = reply.send(Ok(()));
            }
        }
    }

    async fn kill(&mut self, signal: Signal) -> Result<(), Fault> {
        let Phase::Running { .. } = self.life.phase else {
            let container = self.fixed.id.short().to_owned();
            return Err(Error::NotRunning { attempt: "send a signal", container }.into());
        };
        // A signal that is meant to end it is the end of its restarts, as in Docker.
        if signal == Signal::KILL || signal == self.fixed.program.stop_signal {
            self.life.killed_by_hand();
            self.keep_or_tell();
        }
        self.signal(signal).await
    }

    async fn signal(&self, signal: Signal) -> Result<(), Fault> {
        self.emit("kill", &[("signal", signal.number().to_string().as_str())]);
        // One that has ended meanwhile needs no signal.
        self.means.client.kill_task(self.fixed.id.as_str(), "", signal.number(), false).await.map(drop)
    }

    async fn remove(&mut self, force: bool, reply: Reply) {
        match self.happen(Event::Remove { force }) {
            Err(fault) => drop(reply.send(Err(fault))),
            Ok(Then::Kill) => {
                self.removals.push(reply);
                self.publish();
                self.kill_now().await;
            }
            Ok(Then::Remove) => {
                self.removals.push(reply);
                self.leave().await;
            }
            Ok(_) => drop(reply.send(Ok(()))),
        }
    }

    /// Lets an event happen; the refusal names the container.
    pub(super) fn happen(&mut self, event: Event) -> Result<Then, Fault> {
        let attempt = match event {
            Event::Remove { .. } => "remove",
            Event::Start => "start",
            _ => "stop",
        };
        let wanted = &self.fixed.wanted;
        self.life.on(event, wanted.restart, wanted.auto_remove).map_err(|unfit| {
            let container = self.fixed.id.short().to_owned();
            Fault::from(match unfit {
                Unfit::Running => Error::Running { attempt, container },
                Unfit::BeingRemoved => Error::BeingRemoved { container },
            })
        })
    }

    /// Shows everybody how it is now.
    pub(super) fn publish(&self) {
        self.window.send_replace(View {
            fixed: Arc::clone(&self.fixed),
            life: self.life.clone(),
            endpoint: self.endpoint.clone(),
            ends: self.ends,
            is_gone: self.is_gone,
        });
    }

    /// Keeps the record.
    pub(super) fn keep(&self) -> Result<(), Error> {
        let record = Record {
            fixed: Arc::clone(&self.fixed),
            life: self.life.clone(),
            boot: self.means.settings.boot_id.clone(),
        };
        record.keep(&self.means.store)
    }

    /// Keeps the record of what has happened already; a failure cannot undo that.
    pub(super) fn keep_or_tell(&self) {
        if let Err(error) = self.keep() {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(container = %self.fixed.id, %error, cause, "what happened may be forgotten at a restart");
        }
    }

    /// Tells everybody of an event, with what Docker's events say of a container.
    pub(super) fn emit(&self, action: &'static str, more: &[(&str, &str)]) {
        let mut attributes: BTreeMap<String, String> =
            self.fixed.labels().into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        attributes.insert("image".to_owned(), self.fixed.wanted.image.clone());
        attributes.insert("name".to_owned(), self.fixed.name.to_string());
        attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        self.means.events.emit(Kind::Container, action, self.fixed.id.as_str(), attributes);
    }
}

/// At that time, or never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
