//! The end of a run: what is told of it, and what is taken apart.

use std::time::Duration;

use tokio::time::Instant;

use super::actor::Actor;
use super::exit::{Exit, Problem};
use super::state::{Event, Then};
use super::watch::End;
use crate::engine::sandbox;
use crate::engine::signal::Signal;

/// How long the supervisor may take to tell what else it knows of an end. It tells in order, and an out-of-memory kill
/// before the end; only the two ways by which we hear of them are not ordered.
const NEWS_PATIENCE: Duration = Duration::from_secs(1);
/// The status of a program that SIGKILL ended.
const KILLED: u32 = 137;
/// The status of an end that nobody saw.
const UNSEEN: u32 = 255;

impl Actor {
    /// The program has ended.
    pub(super) async fn ended(&mut self, end: End) {
        self.end = None;
        self.kill_at = None;
        let exit = self.exit(end).await;
        let Ok(then) = self.happen(Event::Ended(exit.clone())) else { return };
        self.ends += 1;
        self.emit_end(&exit);
        if then == Then::Remove {
            // Its name, ports and address are free before anybody hears of the end.
            self.leave().await;
            return self.answer_stops();
        }
        self.disconnect().await;
        self.keep_or_tell();
        self.publish();
        self.answer_stops();
        self.container.stdin().shut().await;
        self.clear_run().await;
        if let Then::RestartIn(pause) = then {
            self.restart_at = Some(Instant::now() + pause);
        }
    }

    /// What the end means, and whose doing it was.
    async fn exit(&self, end: End) -> Exit {
        let ended = match end {
            End::Unseen { at, problem } => return Exit::unseen(at.into(), problem),
            End::Seen(ended) => ended,
        };
        let limit = self.fixed.wanted.resources.memory;
        if let Some(fault) = &ended.fault {
            let problem = Problem::from(fault);
            let unseen = Exit::unseen(ended.at.into(), problem);
            // What the kernel told of it is exact, whoever died.
            return Exit { code: ended.status, unknown: ended.status == UNSEEN, ..unseen };
        }
        let may_be = limit.is_some() || ended.status == KILLED;
        let out_of_memory = ended.out_of_memory || (may_be && self.heard_of_memory().await);
        Exit::seen(ended.status, ended.at.into(), out_of_memory, limit)
    }

    /// Whether the supervisor told of an out-of-memory kill in this run.
    async fn heard_of_memory(&self) -> bool {
        let mut news = self.container.0.news.subscribe();
        if tokio::time::timeout(NEWS_PATIENCE, news.wait_for(|news| news.exited)).await.is_err() {
            tracing::debug!(container = %self.fixed.id, "the supervisor told nothing more of the end");
        }
        self.container.0.news.borrow().out_of_memory
    }

    fn emit_end(&self, exit: &Exit) {
        if exit.oom_killed {
            self.emit("oom", &[]);
        }
        let code = exit.code.to_string();
        self.emit("die", &[("exitCode", code.as_str())]);
        if !self.stops.is_empty() {
            self.emit("stop", &[]);
        }
    }

    /// Takes the container off the network.
    pub(super) async fn disconnect(&mut self) {
        if self.endpoint.take().is_some() {
            sandbox::emit(&self.means, "disconnect", self.fixed.id.as_str());
        }
        if let Err(fault) = sandbox::disconnect(&self.means, &self.fixed.sandbox).await {
            tracing::warn!(container = %self.fixed.id, %fault, causes = ?fault.causes, "take it off the network");
        }
    }

    fn answer_stops(&mut self) {
        for reply in self.stops.drain(..) {
            let _ = reply.send(Ok(()));
        }
    }

    /// Kills the program and all that it started.
    pub(super) async fn kill_now(&mut self) {
        let killed = self.means.client.kill_task(self.fixed.id.as_str(), "", Signal::KILL.number(), true).await;
        if let Err(fault) = killed {
            tracing::warn!(container = %self.fixed.id, %fault, causes = ?fault.causes, "kill the program");
            // Once more, until it has ended: somebody waits for it.
            self.kill_at = Some(Instant::now() + Duration::from_secs(1));
        }
    }
}
