//! Calls that last: run, attach, exec, logs. Output goes one way, input the other, until the program or the client ends.

use std::sync::Arc;

use proto_engine as wire;
use strata_fault::Fault;
use strata_log::Start;
use strata_trace::collect;
use tokio::sync::mpsc::{self, Sender};
use tonic::{Status, Streaming};
use tracing::Instrument;

use super::{trace, wanted, wire as answer};
use crate::engine::Engine;
use crate::engine::container::exec::{Exec, ExecInput};
use crate::engine::container::output::{Ended, Follower, Piece, Until, Wish};
use crate::engine::container::state::Phase;
use crate::engine::container::{Container, exec};
use crate::engine::error::{Error, Field};
use crate::engine::image::{Image, Pull};
use crate::engine::means::Means;
use crate::engine::step::step;
use crate::engine::{PullPolicy, signal::Signal};

/// Messages that may wait for a slow client; each holds 256 KiB at most.
pub(super) const MESSAGES_WAITING: usize = 8;
/// Messages of progress that may wait; a slow client misses some.
const PROGRESS_WAITING: usize = 64;

type Events<T> = Sender<Result<T, Status>>;

/// The client has gone: there is nobody to tell anything.
struct Unheard;

/// Why a session ends before its end.
enum Broken {
    Fault(Fault),
    Unheard,
}

impl From<Fault> for Broken {
    fn from(fault: Fault) -> Broken {
        Broken::Fault(fault)
    }
}

impl From<Error> for Broken {
    fn from(error: Error) -> Broken {
        Broken::Fault(error.into())
    }
}

impl From<Unheard> for Broken {
    fn from(_: Unheard) -> Broken {
        Broken::Unheard
    }
}

async fn tell<T>(to: &Events<T>, event: T) -> Result<(), Unheard> {
    to.send(Ok(event)).await.map_err(|_| Unheard)
}

/// Tells a client how its session broke, if it is still there.
async fn finish<T>(to: &Events<T>, outcome: Result<(), Broken>) {
    if let Err(Broken::Fault(fault)) = outcome {
        let _ = to.send(Err(fault.into())).await;
    }
}

/// The first message of a stream, which must open it.
pub(super) async fn first<T>(inbound: &mut Streaming<T>) -> Result<T, Status> {
    let missing = || Fault::from(Error::invalid(Field::Container, "", "a first message that opens the call"));
    inbound.message().await?.ok_or_else(|| missing().into())
}

/// The refusal of a first message of another kind.
pub(super) fn not_open() -> Status {
    Fault::from(Error::invalid(Field::Container, "input", "`open` as the first message")).into()
}

// ---- input ----

/// What the messages of a stream carry.
pub(super) trait Carries {
    fn input(self) -> Option<wire::input::Kind>;
}

macro_rules! carries {
    ($($message:ident: $kind:path),* $(,)?) => {
        $(impl Carries for wire::$message {
            fn input(self) -> Option<wire::input::Kind> {
                match self.kind? {
                    $kind(input) => input.kind,
                    _ => None,
                }
            }
        })*
    };
}

carries! {
    RunRequest: wire::run_request::Kind::Input,
    AttachRequest: wire::attach_request::Kind::Input,
    ExecRequest: wire::exec_request::Kind::Input,
}

/// Where input goes.
enum Program {
    Container { means: Arc<Means>, container: Container },
    Exec(ExecInput),
}

impl Program {
    async fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        match self {
            Program::Container { container, .. } => container.stdin().write(bytes).await,
            Program::Exec(input) => input.write(bytes).await,
        }
    }

    async fn close(&self) -> Result<(), Fault> {
        match self {
            Program::Container { means, container } => container.stdin().close(&means.client).await,
            Program::Exec(input) => input.close().await,
        }
    }

    async fn resize(&self, size: (u32, u32)) -> Result<(), Fault> {
        match self {
            Program::Container { means, container } => container.resize(means, size).await,
            Program::Exec(input) => input.resize(size).await,
        }
    }

    async fn signal(&self, signal: Signal) -> Result<(), Fault> {
        match self {
            Program::Container { container, .. } => container.kill(signal).await,
            Program::Exec(input) => input.signal(signal).await,
        }
    }

    /// Whether its input ends with this client. A terminal stays, as in Docker: who detaches from it comes back.
    fn ends_with_client(&self) -> bool {
        match self {
            Program::Container { container, .. } => {
                let wanted = &container.fixed().wanted;
                wanted.stdin_once && !wanted.tty
            }
            Program::Exec(_) => true,
        }
    }

    async fn take(&self, input: wire::input::Kind) -> Result<(), Fault> {
        use wire::input::Kind;
        match input {
            Kind::Stdin(bytes) => self.write(&bytes).await?,
            Kind::CloseStdin(true) => self.close().await?,
            Kind::CloseStdin(false) => {}
            Kind::Resize(size) => {
                if let Some(size) = wanted::size(Some(size))? {
                    self.resize(size).await?;
                }
            }
            Kind::Signal(text) => {
                if let Some(signal) = wanted::signal(&text)? {
                    self.signal(signal).await?;
                }
            }
        }
        Ok(())
    }

    /// Takes input until the client has no more. A message that cannot be carried out is passed over: the program may
    /// have ended a moment ago, which is told on the other way.
    async fn feed<T: Carries>(self, mut inbound: Streaming<T>) {
        while let Ok(Some(message)) = inbound.message().await {
            let Some(input) = message.input() else { continue };
            if let Err(fault) = self.take(input).await {
                tracing::debug!(%fault, causes = ?fault.causes, "input that came too late");
            }
        }
        if self.ends_with_client()
            && let Err(fault) = self.close().await
        {
            tracing::debug!(%fault, causes = ?fault.causes, "close the input of a program that has ended");
        }
    }
}

// ---- run ----

/// One `run`, whose first message was read.
pub(super) struct Run {
    pub(super) engine: Engine,
    pub(super) open: wire::RunOpen,
    pub(super) inbound: Streaming<wire::RunRequest>,
}

fn run_event(kind: wire::run_event::Kind) -> wire::RunEvent {
    wire::RunEvent { kind: Some(kind) }
}

impl Run {
    /// Tells everything to its end.
    pub(super) async fn serve(self, to: Events<wire::RunEvent>) {
        let outcome = self.phases(&to).await;
        finish(&to, outcome).await;
    }

    async fn phases(self, to: &Events<wire::RunEvent>) -> Result<(), Broken> {
        use wire::run_event::Kind;
        let Run { engine, open, inbound } = self;
        let policy = wanted::pull_policy(open.pull());
        let wanted = step!("validate").in_scope(|| wanted::container(open.spec, engine.means().settings.cpus))?;
        let size = wanted::size(open.size)?;
        let pull = wanted::pull(wanted.image.clone(), open.auth, "");
        let image = image(&engine, pull, policy, to).await?;
        let made = engine.run(wanted, &image, size).await?;
        let (container, means) = (made.container, engine.means());
        let created = wire::CreateResponse {
            id: container.id().to_string(),
            name: container.name().to_string(),
            warnings: Vec::new(),
        };
        // The reader stands before the program runs: a container that goes as soon as it ends is read to its end.
        let follower = if open.detach { None } else { Some(container.follow(means, Wish::first_run())?) };
        let created = tell(to, run_event(Kind::Created(created))).await;
        if let Some(started) = made.started {
            let gone = || Fault::from(Error::Gone { container: container.id().short().to_owned() });
            started.await.map_err(|_| gone())??;
        }
        let started = run_event(Kind::Started(wire::StartResponse { id: container.id().to_string() }));
        if let Some(follower) = follower {
            let program = Program::Container { means: Arc::clone(means), container: container.clone() };
            // It ends with the client, and then perhaps closes the program's input: also when this session has ended.
            let feeding = tokio::spawn(program.feed(inbound));
            created?;
            tell(to, started).await?;
            forward(follower, to, |piece| run_event(Kind::Output(answer::output(piece)))).await?;
            let exit = container.end_of_run(0).await;
            feeding.abort();
            let report = async {
                match exit {
                    Some(exit) => tell(to, run_event(Kind::Exited(answer::exit(&exit)))).await,
                    None => Ok(()),
                }
            };
            report.instrument(step!("report")).await?;
        } else {
            created?;
            tell(to, started).await?;
        }
        if let Some(collector) = collect::current() {
            tell(to, run_event(Kind::Spans(trace::encoded(&collector)))).await?;
        }
        Ok(())
    }
}

/// The image, pulled while its progress is told. A client that goes cancels the pull.
async fn image(
    engine: &Engine,
    pull: Pull,
    policy: PullPolicy,
    to: &Events<wire::RunEvent>,
) -> Result<Arc<Image>, Broken> {
    let (progress, mut told) = mpsc::channel(PROGRESS_WAITING);
    let image = engine.image_for_run(pull, policy, progress);
    tokio::pin!(image);
    loop {
        tokio::select! {
            biased;
            Some(progress) = told.recv() => {
                tell(to, run_event(wire::run_event::Kind::Pull(answer::progress(progress)))).await?;
            }
            image = &mut image => {
                while let Ok(progress) = told.try_recv() {
                    tell(to, run_event(wire::run_event::Kind::Pull(answer::progress(progress)))).await?;
                }
                return Ok(image?);
            }
            () = to.closed() => return Err(Broken::Unheard),
        }
    }
}

/// Hands pieces on until the reader has read all that was wished for, or the client has gone.
async fn forward<T>(follower: Follower, to: &Events<T>, event: impl Fn(Piece) -> T) -> Result<(), Broken> {
    let (from, mut pieces) = mpsc::channel(1);
    let read = async move { follower.follow(&from).await };
    let hand = async {
        while let Some(piece) = pieces.recv().await {
            tell(to, event(piece)).await?;
        }
        Ok::<(), Unheard>(())
    };
    let both = async { tokio::try_join!(async { Ok(read.await?) }, async { Ok::<(), Broken>(hand.await?) }) };
    tokio::select! {
        // The reader's end closes the channel, and what it sent before is handed on.
        outcome = both => match outcome? {
            (Ended::Read, ()) => Ok(()),
            (Ended::Unheard, ()) => Err(Broken::Unheard),
        },
        // A container that is silent would keep the reader, and its pin, for as long as it is.
        () = to.closed() => Err(Broken::Unheard),
    }
}

// ---- attach ----

/// One `attach`, whose first message was read.
pub(super) struct Attach {
    pub(super) engine: Engine,
    pub(super) open: wire::AttachOpen,
    pub(super) inbound: Streaming<wire::AttachRequest>,
}

fn attach_event(kind: wire::attach_event::Kind) -> wire::AttachEvent {
    wire::AttachEvent { kind: Some(kind) }
}

impl Attach {
    /// Tells everything to its end.
    pub(super) async fn serve(self, to: Events<wire::AttachEvent>) {
        let outcome = self.phases(&to).await;
        finish(&to, outcome).await;
    }

    async fn phases(self, to: &Events<wire::AttachEvent>) -> Result<(), Broken> {
        use wire::attach_event::Kind;
        let Attach { engine, open, inbound } = self;
        let container = engine.find(&open.container)?;
        let means = engine.means();
        let view = container.view();
        let from = match (open.from_start, open.offset) {
            (true, _) => Start::Oldest,
            (false, 0) => Start::Newest,
            (false, offset) => Start::Offset(offset),
        };
        // Of one that has ended the rest is told, and how it ended; of any other the run that goes on or comes.
        let is_over = view.life.phase == Phase::Exited;
        let until = if is_over { Until::Stopped } else { Until::EndOfRun { ends: view.ends } };
        let follower = container.follow(means, Wish::plain(from, until, true))?;
        let tty = view.fixed.wanted.tty;
        tell(to, attach_event(Kind::Opened(wire::AttachOpened { id: container.id().to_string(), tty }))).await?;
        container.emit_attach(means);
        let program = Program::Container { means: Arc::clone(means), container: container.clone() };
        let feeding = (!open.no_stdin).then(|| tokio::spawn(program.feed(inbound)));
        forward(follower, to, |piece| attach_event(Kind::Output(answer::output(piece)))).await?;
        let exit = if is_over { view.life.exit } else { container.end_of_run(view.ends).await };
        if let Some(feeding) = feeding {
            feeding.abort();
        }
        if let Some(exit) = exit {
            tell(to, attach_event(Kind::Exited(answer::exit(&exit)))).await?;
        }
        Ok(())
    }
}

// ---- exec ----

/// One `exec`, whose first message was read.
pub(super) struct ExecCall {
    pub(super) engine: Engine,
    pub(super) open: wire::ExecOpen,
    pub(super) inbound: Streaming<wire::ExecRequest>,
}

fn exec_event(kind: wire::exec_event::Kind) -> wire::ExecEvent {
    wire::ExecEvent { kind: Some(kind) }
}

impl ExecCall {
    /// Tells everything to its end.
    pub(super) async fn serve(self, to: Events<wire::ExecEvent>) {
        let outcome = self.phases(&to).await;
        finish(&to, outcome).await;
    }

    async fn phases(self, to: &Events<wire::ExecEvent>) -> Result<(), Broken> {
        use wire::exec_event::Kind;
        let ExecCall { engine, open, inbound } = self;
        let (name, wanted) = step!("validate").in_scope(|| wanted::exec(open))?;
        let container = engine.find(&name)?;
        let detach = wanted.detach;
        let Exec { id, input, mut output, exit } = exec::exec(engine.means(), &container, wanted).await?;
        let feeding = (!detach).then(|| tokio::spawn(Program::Exec(input).feed(inbound)));
        tell(to, exec_event(Kind::Started(wire::ExecStarted { exec_id: id }))).await?;
        if let Some(feeding) = feeding {
            while let Some(piece) = output.recv().await {
                tell(to, exec_event(Kind::Output(answer::output(piece)))).await?;
            }
            let gone = || Fault::from(Error::Gone { container: container.id().short().to_owned() });
            let exit = exit.await.map_err(|_| gone())?;
            feeding.abort();
            tell(to, exec_event(Kind::Exited(answer::exit(&exit)))).instrument(step!("report")).await?;
        }
        if let Some(collector) = collect::current() {
            tell(to, exec_event(Kind::Spans(trace::encoded(&collector)))).await?;
        }
        Ok(())
    }
}

// ---- logs ----

/// One `logs`.
pub(super) struct Logs {
    pub(super) follower: Follower,
    pub(super) tty: bool,
}

impl Logs {
    /// Tells everything to its end.
    pub(super) async fn serve(self, to: Events<wire::LogsEvent>) {
        let outcome = self.phases(&to).await;
        finish(&to, outcome).await;
    }

    async fn phases(self, to: &Events<wire::LogsEvent>) -> Result<(), Broken> {
        let tty = self.tty;
        tell(to, wire::LogsEvent { tty, ..Default::default() }).await?;
        forward(self.follower, to, |piece| {
            let at = match &piece {
                Piece::Output { at, .. } => Some(answer::time(*at)),
                Piece::Lost { .. } => None,
            };
            wire::LogsEvent { output: Some(answer::output(piece)), at, tty }
        })
        .await
    }
}
