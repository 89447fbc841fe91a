//! A program's streams between engined and this terminal: output to the standard streams, input and signals the other way,
//! until it exits or the person detaches.
//!
//! ```text
//!   Run ──► pull*, created ──► started ──► output* ──► exited ──► end        follow() is the loop over these
//!                     │                       │ broken
//!                     └── begin(): raw mode,  └── resume(): connect again with back-off, Attach at the last
//!                         input, signals          Output.next; nothing is lost or doubled
//! ```
//!
//! Used by run, attach, start and exec; an exec cannot be found again after a break and ends with an error.

pub(crate) mod exit;
mod input;

use std::io;
use std::time::Duration;

use proto_engine::{
    AttachOpen, Exit, InspectContainerRequest, Output, StartRequest, Stream, WindowSize, state::Status,
};
use strata_fault::code;
use strata_trace::now_ns;
use tokio::sync::mpsc;

use crate::engine::reconnect::{Patience, may_pass};
use crate::engine::stream::{Event, Events, InputSender, Inputs, inputs};
use crate::engine::{Engine, told};
use crate::error::Error;
use crate::terminal::detach::DetachKeys;
use crate::terminal::raw::{self, RawMode};
use crate::terminal::signals::Caught;
use crate::terminal::sink::Sink;
use crate::terminal::size;

/// How long the end of the stream may lag behind the exit: the container is being removed.
const END_WAIT: Duration = Duration::from_secs(10);

/// Which standard streams are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attached {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

/// How a session is led.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) attached: Attached,
    pub(crate) tty: bool,
    /// Pass signals on to the program; never with a terminal, which passes keys.
    pub(crate) proxy_signals: bool,
    pub(crate) detach_keys: DetachKeys,
}

/// How a session ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Exited(Exit),
    /// The person left; the container goes on.
    Detached,
    /// A signal told the client to leave while it held the terminal; the container goes on.
    Left(Caught),
    /// The stream ended without an exit: detached runs do.
    Ended,
}

/// The program of a session.
#[derive(Clone, Debug)]
pub(crate) enum Program {
    /// A container's, which is being started; its id.
    Starting(String),
    /// A container's, which has been started; its id.
    Started(String),
    /// One more in a container; it cannot be found again after a break.
    Exec,
}

impl Program {
    fn container(&self) -> Option<&String> {
        match self {
            Program::Starting(id) | Program::Started(id) => Some(id),
            Program::Exec => None,
        }
    }
}

/// Something that happened on this side.
#[derive(Debug)]
pub(crate) enum Local {
    Detached,
    Left(Caught),
    InputFailed(io::Error),
    /// The shell gave the terminal back.
    Resumed,
}

/// The streams of one program.
pub(crate) struct Session {
    options: Options,
    /// Once it is known; what a break is mended by.
    program: Option<Program>,
    /// Where the log goes on after what was written.
    next: u64,
    stdout: Sink,
    stderr: Sink,
    inputs: Inputs,
    sender: Option<InputSender>,
    pumps: Vec<tokio::task::JoinHandle<()>>,
    local: Option<mpsc::Receiver<Local>>,
    raw: Option<RawMode>,
    said_lost: bool,
    started_ns: u64,
}

impl Session {
    pub(crate) fn new(options: Options) -> Session {
        let (sender, inputs) = inputs();
        Session {
            options,
            program: None,
            next: 0,
            stdout: Sink::stdout(),
            stderr: Sink::stderr(),
            inputs,
            sender: Some(sender),
            pumps: Vec::new(),
            local: None,
            raw: None,
            said_lost: false,
            started_ns: now_ns(),
        }
    }

    /// What the call takes its input from.
    pub(crate) fn inputs(&self) -> Inputs {
        self.inputs.clone()
    }

    /// The terminal's size, when the program has one.
    pub(crate) fn window(&self) -> Option<WindowSize> {
        if self.options.tty { size::window() } else { None }
    }

    /// Where in the log this session is.
    pub(crate) fn set_position(&mut self, next: u64) {
        self.next = next;
    }

    /// Tells the program the terminal's size, which the one who started it did not know.
    pub(crate) fn send_size(&self) {
        if let (Some(size), Some(sender)) = (self.window(), &self.sender) {
            let message = proto_engine::Input { kind: Some(proto_engine::input::Kind::Resize(size)) };
            // The queue is empty but for what was typed this instant; a size that does not fit is no loss.
            let _ = sender.try_send(message);
        }
    }

    /// The container is there: from now on keys, input and signals are for its program, and a break is mended.
    pub(crate) fn begin(&mut self, engine: &Engine, program: Program) -> Result<(), Error> {
        if self.local.is_some() {
            return Ok(());
        }
        let failed = |attempted| move |source| Error::Terminal { attempted, source };
        let interactive = self.options.tty && self.options.attached.stdin && raw::stdin_is_terminal();
        if interactive {
            self.raw = Some(RawMode::enter().map_err(failed("put the terminal into raw mode"))?);
        }
        let (tell, local) = mpsc::channel(4);
        self.local = Some(local);
        let container = program.container().cloned();
        self.program = Some(program);
        let Some(sender) = self.sender.clone() else { return Ok(()) };
        if self.options.attached.stdin {
            let keys = interactive.then(|| self.options.detach_keys.clone());
            let pump = input::pump_stdin(sender.clone(), keys, tell.clone());
            self.pumps.push(pump.map_err(failed("read standard input"))?);
        }
        let resize = self.options.tty.then_some(sender);
        let pump = match (container, resize) {
            // With the terminal in raw mode keys reach the program; a signal is meant for the client.
            (_, Some(to)) if interactive => Some(input::pump_terminal_signals(to, tell)),
            (Some(id), resize) if self.options.proxy_signals => {
                Some(input::pump_signals(engine.control(), id, resize, tell))
            }
            (_, Some(to)) => Some(input::pump_size(to)),
            (_, None) => None,
        };
        if let Some(pump) = pump {
            self.pumps.push(pump.map_err(failed("catch signals"))?);
        }
        Ok(())
    }

    /// Follows the events until the end. `first` sees each event that is not the session's own.
    pub(crate) async fn follow(
        &mut self,
        engine: &mut Engine,
        mut events: Events,
        first: &mut (dyn FnMut(&mut Session, &Engine, Event) -> Result<(), Error> + Send),
    ) -> Result<Outcome, Error> {
        self.started_ns = now_ns();
        loop {
            let next = tokio::select! {
                next = engine.next(&mut events) => next,
                local = heard(&mut self.local) => match self.act(local)? {
                    Some(outcome) => return Ok(outcome),
                    None => continue,
                },
            };
            match next {
                Ok(Some(Event::Output(output))) => {
                    if let Some(outcome) = self.write(output).await? {
                        return Ok(outcome);
                    }
                }
                Ok(Some(Event::Exited(exit))) => return self.end(engine, events, exit).await,
                Ok(Some(event)) => {
                    if matches!(event, Event::Started) {
                        self.started();
                    }
                    first(self, engine, event)?;
                }
                Ok(None) => {
                    self.finish().await?;
                    return Ok(Outcome::Ended);
                }
                Err(error) => match self.mend(engine, error).await? {
                    Mended::Events(again) => events = again,
                    Mended::Over(outcome) => return Ok(outcome),
                },
            }
        }
    }

    /// Writes output; detaching and leaving are possible also while a slow reader holds it up.
    async fn write(&mut self, output: Output) -> Result<Option<Outcome>, Error> {
        if output.lost > 0 {
            crate::error::print(&lost(output.lost));
            self.raw.iter().for_each(RawMode::renew);
        }
        let is_stderr = output.stream() == Stream::Stderr;
        let wanted = if is_stderr { self.options.attached.stderr } else { self.options.attached.stdout };
        if wanted && !output.data.is_empty() {
            let sink = if is_stderr { &mut self.stderr } else { &mut self.stdout };
            let writing = sink.write(output.data);
            tokio::pin!(writing);
            loop {
                tokio::select! {
                    written = &mut writing => {
                        written.map_err(output_failed)?;
                        break;
                    }
                    local = heard(&mut self.local) => {
                        if let Some(outcome) = over(&local, &self.raw)? {
                            return Ok(Some(outcome));
                        }
                    }
                }
            }
        }
        self.next = output.next;
        Ok(None)
    }

    fn started(&mut self) {
        self.started_ns = now_ns();
        if let Some(Program::Starting(id)) = &self.program {
            self.program = Some(Program::Started(id.clone()));
        }
    }

    fn act(&mut self, local: Local) -> Result<Option<Outcome>, Error> {
        over(&local, &self.raw)
    }

    /// The program has exited: gives the terminal back, writes what is left and waits for the orderly end.
    async fn end(&mut self, engine: &mut Engine, mut events: Events, exit: Exit) -> Result<Outcome, Error> {
        let exited_ns = now_ns();
        self.stop_input();
        let written = self.finish().await;
        let rest = async { while let Ok(Some(_)) = engine.next(&mut events).await {} };
        // The exit is known; neither a break nor a slow removal changes it.
        let _ = tokio::time::timeout(END_WAIT, rest).await;
        written?;
        if let Some(recorder) = &mut engine.recorder {
            recorder.add_between("watch", self.started_ns, exited_ns);
            recorder.add("report", exited_ns);
        }
        Ok(Outcome::Exited(exit))
    }

    /// Gives the terminal back and writes what is left.
    async fn finish(&mut self) -> Result<(), Error> {
        let (stdout, stderr) = (self.stdout.finish().await, self.stderr.finish().await);
        self.raw = None;
        stdout.and(stderr).map_err(output_failed)
    }

    /// No more input: the call's own side ends.
    fn stop_input(&mut self) {
        self.sender = None;
        self.pumps.drain(..).for_each(|pump| pump.abort());
    }

    /// After a break: connects again and goes on where the output stopped. Other errors, and breaks of what cannot be
    /// found again, come back.
    async fn mend(&mut self, engine: &mut Engine, error: Error) -> Result<Mended, Error> {
        let Some(program) = self.program.clone().filter(|program| program.container().is_some() && may_pass(&error))
        else {
            self.stop_input();
            // The error that ended it matters more than one of writing what was left.
            let _ = self.finish().await;
            return Err(error);
        };
        self.say_lost();
        let open = AttachOpen {
            container: program.container().cloned().unwrap_or_default(),
            offset: self.next,
            from_start: self.next == 0,
            no_stdin: !self.options.attached.stdin,
        };
        let resumed = {
            let starting = matches!(program, Program::Starting(_));
            let resuming = resume(engine, open, self.inputs.clone(), (error, starting));
            tokio::pin!(resuming);
            loop {
                tokio::select! {
                    resumed = &mut resuming => break resumed,
                    local = heard(&mut self.local) => {
                        if let Some(outcome) = over(&local, &self.raw)? {
                            return Ok(Mended::Over(outcome));
                        }
                    }
                }
            }
        };
        if matches!(self.program, Some(Program::Starting(_))) {
            self.started();
        }
        resumed.map(Mended::Events)
    }

    fn say_lost(&mut self) {
        if !self.said_lost {
            self.said_lost = true;
            let end = if self.raw.is_some() { "\r\n" } else { "\n" };
            eprint!("strata: the connection to engined is lost; the container goes on, connecting again{end}");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop_input();
    }
}

enum Mended {
    Events(Events),
    Over(Outcome),
}

/// Connects and attaches until it succeeds or patience ends. A container that was being started when engined died may
/// never have come to it; then it is started now, else the attachment would wait for ever.
async fn resume(
    engine: &mut Engine,
    open: AttachOpen,
    inputs: Inputs,
    (broken, starting): (Error, bool),
) -> Result<Events, Error> {
    let mut patience = Patience::new();
    let mut last = broken;
    loop {
        patience.wait(last).await?;
        engine.reconnect(&mut patience).await?;
        let started = if starting { start_if_created(engine, &open.container).await } else { Ok(()) };
        let attached = match started {
            Ok(()) => engine.attach(open.clone(), inputs.clone()).await,
            Err(error) => Err(error),
        };
        match attached {
            Ok(events) => return Ok(events),
            Err(error) if may_pass(&error) => last = error,
            Err(error) if error.code() == code::CONTAINER_NOT_FOUND => return Err(gone(&open.container)),
            Err(error) => return Err(error),
        }
    }
}

/// After a break during a detached start: connects again and makes sure that the container is started.
pub(crate) async fn finish_start(engine: &mut Engine, container: &str, broken: Error) -> Result<(), Error> {
    let mut patience = Patience::new();
    let mut last = broken;
    loop {
        patience.wait(last).await?;
        engine.reconnect(&mut patience).await?;
        match start_if_created(engine, container).await {
            Err(error) if may_pass(&error) => last = error,
            answer => return answer,
        }
    }
}

async fn start_if_created(engine: &Engine, container: &str) -> Result<(), Error> {
    let request = InspectContainerRequest { container: container.to_owned() };
    let detail = told("inspect", engine.containers().inspect(request).await)?.container.unwrap_or_default();
    let state = detail.summary.and_then(|summary| summary.state).unwrap_or_default();
    if state.status() != Status::Created {
        return Ok(());
    }
    let request = StartRequest { container: container.to_owned() };
    told("start", engine.containers().start(request).await).map(drop)
}

/// The next thing that happens on this side; never, before the session has begun or after its pumps ended.
async fn heard(local: &mut Option<mpsc::Receiver<Local>>) -> Local {
    if let Some(receiver) = local
        && let Some(local) = receiver.recv().await
    {
        return local;
    }
    std::future::pending().await
}

/// The end that something on this side means, if it means one.
fn over(local: &Local, raw: &Option<RawMode>) -> Result<Option<Outcome>, Error> {
    match local {
        Local::Detached => Ok(Some(Outcome::Detached)),
        Local::Left(caught) => Ok(Some(Outcome::Left(*caught))),
        Local::InputFailed(source) => {
            let source = source.raw_os_error().map_or_else(|| source.kind().into(), io::Error::from_raw_os_error);
            Err(Error::Terminal { attempted: "read standard input", source })
        }
        Local::Resumed => {
            raw.iter().for_each(RawMode::renew);
            Ok(None)
        }
    }
}

fn output_failed(source: io::Error) -> Error {
    Error::Terminal { attempted: "write the program's output", source }
}

fn gone(container: &str) -> Error {
    Error::Refused {
        message: format!(
            "container {container} ended and was removed while the connection to engined was lost: its exit code is not known"
        ),
        hint: None,
    }
}

fn lost(bytes: u64) -> strata_fault::Fault {
    strata_fault::Fault::new(
        strata_fault::Layer::Client,
        "watch",
        "OUTPUT_LOST",
        format!("{bytes} bytes of the container's output were rotated away before they could be shown"),
    )
}
