//! Containers: each is owned by one task, and everybody else holds a [`Container`], which is its mailbox and its window.
//!
//! ```text
//!   front doors ── Container ──mailbox──▶ actor ──▶ start, ending, removal ──▶ supervisor, network, store
//!                     ▲                     │
//!                     └────── view ─────────┘      (what lists, inspections and waits look at: it never blocks)
//! ```
//!
//! | file | what |
//! | --- | --- |
//! | `wanted` | a request whose values are possible |
//! | `create` | from a request to a container that is made: step 4 and 5 |
//! | `actor` | the task: orders, ends, timers |
//! | `start`, `ending`, `removal` | what the actor does, in phases |
//! | `state`, `exit`, `record` | pure: states, ends, what is kept |
//! | `streams`, `output`, `stdin`, `exec` | what the program reads and writes |
//! | `recovery` | what a start of the engine makes of what it finds |

mod actor;
pub(crate) mod create;
mod ending;
pub(crate) mod exec;
pub(crate) mod exit;
pub(crate) mod files;
pub(crate) mod id;
pub(crate) mod output;
pub(crate) mod record;
pub(crate) mod recovery;
mod removal;
mod start;
pub(crate) mod state;
pub(crate) mod stdin;
mod streams;
mod undo;
pub(crate) mod wanted;
mod watch;

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use strata_fault::Fault;
use tokio::sync::{RwLock, mpsc, oneshot, watch as watching};
use tracing::Span;

use self::exit::Exit;
use self::files::Files;
use self::id::{ContainerId, Name};
use self::output::{Follower, Wish};
use self::record::Fixed;
use self::state::{Life, Phase};
use self::stdin::Stdin;
use super::error::Error;
use super::event::Kind;
use super::means::Means;
use super::signal::Signal;
use crate::network::Endpoint;

/// Orders that may wait for one container; who sends more waits to send.
const MAILBOX: usize = 16;
/// How long a kill waits for the end of the program: as long as Docker does.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// What everybody may see of a container, at one moment.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) fixed: Arc<Fixed>,
    pub(crate) life: Life,
    pub(crate) endpoint: Option<Arc<Endpoint>>,
    /// How many runs have ended, since the engine started; with a start that failed counted as one.
    pub(crate) ends: u64,
    /// Everything of it is removed.
    pub(crate) is_gone: bool,
}

/// What the supervisor told about the run that is going on.
#[derive(Clone, Copy, Debug, Default)]
struct News {
    out_of_memory: bool,
    exited: bool,
}

/// A container.
#[derive(Clone)]
pub(crate) struct Container(Arc<Handle>);

struct Handle {
    fixed: Arc<Fixed>,
    files: Files,
    mailbox: mpsc::Sender<Command>,
    view: watching::Receiver<View>,
    news: watching::Sender<News>,
    stdin: Stdin,
    /// Held by readers of the log, wanted by its removal.
    log: Arc<RwLock<()>>,
    /// The size of the terminal that the next run begins with.
    size: Mutex<Option<(u32, u32)>>,
}

/// An order, and on whose behalf it is carried out.
struct Command {
    order: Order,
    span: Span,
}

type Reply = oneshot::Sender<Result<(), Fault>>;

enum Order {
    Start(Reply),
    Stop { signal: Option<Signal>, timeout_s: Option<u32>, reply: Reply },
    Kill { signal: Signal, reply: Reply },
    Remove { force: bool, reply: Reply },
}

/// Which state is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// Not running, now or later.
    NotRunning,
    /// The end of the run that is going on, or of the next one.
    NextExit,
    /// Nothing is left of it.
    Removed,
}

impl Container {
    pub(crate) fn id(&self) -> &ContainerId {
        &self.0.fixed.id
    }

    pub(crate) fn name(&self) -> &Name {
        &self.0.fixed.name
    }

    pub(crate) fn fixed(&self) -> &Arc<Fixed> {
        &self.0.fixed
    }

    pub(crate) fn files(&self) -> &Files {
        &self.0.files
    }

    pub(crate) fn stdin(&self) -> &Stdin {
        &self.0.stdin
    }

    pub(crate) fn view(&self) -> View {
        self.0.view.borrow().clone()
    }

    /// Has the program started; it runs when this returns.
    pub(crate) async fn start(&self) -> Result<(), Fault> {
        self.order(Order::Start).await
    }

    /// Has the program end: the stop signal, and a kill when the time is over.
    pub(crate) async fn stop(&self, signal: Option<Signal>, timeout_s: Option<u32>) -> Result<(), Fault> {
        self.order(|reply| Order::Stop { signal, timeout_s, reply }).await
    }

    /// Sends a signal. After SIGKILL it waits for the end, so that a removal may follow.
    pub(crate) async fn kill(&self, signal: Signal) -> Result<(), Fault> {
        self.order(|reply| Order::Kill { signal, reply }).await?;
        if signal == Signal::KILL {
            let mut view = self.0.view.clone();
            let is_down = view.wait_for(|view| !matches!(view.life.phase, Phase::Running { .. }));
            // One that cannot be killed, as it hangs in the kernel, is left to the caller.
            let _ = tokio::time::timeout(KILL_PATIENCE, is_down).await;
        }
        Ok(())
    }

    /// Removes it. When this returns its name, ports and address are free and it is on no list.
    pub(crate) async fn remove(&self, force: bool) -> Result<(), Fault> {
        self.order(|reply| Order::Remove { force, reply }).await
    }

    async fn order(&self, order: impl FnOnce(Reply) -> Order) -> Result<(), Fault> {
        let (reply, answer) = oneshot::channel();
        let command = Command { order: order(reply), span: Span::current() };
        let gone = || Fault::from(Error::Gone { container: self.id().short().to_owned() });
        self.0.mailbox.send(command).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Returns when what is awaited has come, with the last end.
    pub(crate) async fn wait(&self, awaited: Awaited) -> Option<Exit> {
        let mut view = self.0.view.clone();
        let ends = view.borrow().ends;
        let has_come = |view: &View| {
            view.is_gone
                || match awaited {
                    Awaited::NotRunning => !view.life.phase.is_up(),
                    Awaited::NextExit => view.ends > ends,
                    Awaited::Removed => false,
                }
        };
        match view.wait_for(has_come).await {
            Ok(view) => view.life.exit.clone(),
            // The actor has ended: what it said last holds.
            Err(_) => self.0.view.borrow().life.exit.clone(),
        }
    }

    /// The end of the run after the `ends`th.
    pub(crate) async fn end_of_run(&self, ends: u64) -> Option<Exit> {
        let mut view = self.0.view.clone();
        match view.wait_for(|view| view.ends > ends || view.is_gone).await {
            Ok(view) => view.life.exit.clone(),
            Err(_) => self.0.view.borrow().life.exit.clone(),
        }
    }

    /// A reader of its output. The log stays as long as the reader lives.
    pub(crate) fn follow(&self, means: &Means, wish: Wish) -> Result<Follower, Error> {
        let gone = || Error::Gone { container: self.id().short().to_owned() };
        let guard = Arc::clone(&self.0.log).try_read_owned().map_err(|_| gone())?;
        Follower::open(self.id(), self.0.files.log(), self.0.view.clone(), &means.logs, wish, guard)
    }

    /// Sets the size of the program's terminal, now or when it has one.
    pub(crate) async fn resize(&self, means: &Means, size: (u32, u32)) -> Result<(), Fault> {
        if !self.0.fixed.wanted.tty {
            return Err(Error::NoTerminal { container: self.id().short().to_owned() }.into());
        }
        *self.0.size.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(size);
        match self.view().life.phase {
            Phase::Running { .. } => means.client.resize_task(self.id().as_str(), "", size).await,
            _ => Ok(()),
        }
    }

    /// Tells everybody that a client follows its output.
    pub(crate) fn emit_attach(&self, means: &Means) {
        let attributes =
            [("image".to_owned(), self.0.fixed.wanted.image.clone()), ("name".to_owned(), self.name().to_string())];
        means.events.emit(Kind::Container, "attach", self.id().as_str(), attributes.into_iter().collect());
    }

    /// The kernel killed something in it for its memory limit.
    pub(crate) fn note_out_of_memory(&self) {
        self.0.news.send_modify(|news| news.out_of_memory = true);
    }

    /// The supervisor told that its program has ended; what it told before is known by now.
    pub(crate) fn note_exit(&self) {
        self.0.news.send_modify(|news| news.exited = true);
    }
}
