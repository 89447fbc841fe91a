//! The streams of a container: what comes (from Run, Attach or Exec, as one kind of event) and what goes (input, in the
//! message of each).

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::Stream;
use proto_engine::{
    AttachEvent, AttachOpen, AttachRequest, CreateResponse, ExecEvent, ExecOpen, ExecRequest, Exit, Input, Output,
    PullProgress, RunEvent, RunOpen, RunRequest, attach_event, attach_request, exec_event, exec_request, run_event,
    run_request,
};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::{Engine, failure};
use crate::error::Error;

/// Pieces of input that may wait for the connection.
const INPUT_QUEUE: usize = 4;

/// Something that happened to a container, whichever call told it.
#[derive(Debug)]
pub(crate) enum Event {
    Pull(PullProgress),
    Created(CreateResponse),
    Started,
    /// The attachment stands.
    Attached,
    Output(Output),
    Exited(Exit),
}

/// Where input is put; it outlives a connection.
pub(crate) type InputSender = mpsc::Sender<Input>;

/// What a connection takes its input from; the next connection goes on with what this one left.
#[derive(Clone)]
pub(crate) struct Inputs(Arc<Mutex<mpsc::Receiver<Input>>>);

/// A queue of input for a program.
pub(crate) fn inputs() -> (InputSender, Inputs) {
    let (sender, receiver) = mpsc::channel(INPUT_QUEUE);
    (sender, Inputs(Arc::new(Mutex::new(receiver))))
}

impl Inputs {
    fn poll(&self, context: &mut Context<'_>) -> Poll<Option<Input>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).poll_recv(context)
    }
}

/// The messages of a call: `open`, then input as it comes. `R` is the call's own message.
struct Requests<R> {
    open: Option<R>,
    inputs: Inputs,
    wrap: fn(Input) -> R,
}

impl<R: Unpin> Stream for Requests<R> {
    type Item = R;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<R>> {
        if let Some(open) = self.open.take() {
            return Poll::Ready(Some(open));
        }
        self.inputs.poll(context).map(|input| input.map(self.wrap))
    }
}

/// The events of one call.
pub(crate) enum Events {
    Run(Streaming<RunEvent>),
    Attach(Streaming<AttachEvent>),
    Exec(Streaming<ExecEvent>),
}

impl Engine {
    /// Makes and starts a container, and attaches unless detached.
    pub(crate) async fn run(&mut self, open: RunOpen, inputs: Inputs) -> Result<Events, Error> {
        let open = RunRequest { kind: Some(run_request::Kind::Open(open)) };
        let wrap = |input| RunRequest { kind: Some(run_request::Kind::Input(input)) };
        let request = self.request(Requests { open: Some(open), inputs, wrap });
        let answer = self.containers().run(request).await;
        self.answer("run", answer).map(Events::Run)
    }

    /// Follows a container's output, and feeds its input.
    pub(crate) async fn attach(&mut self, open: AttachOpen, inputs: Inputs) -> Result<Events, Error> {
        let open = AttachRequest { kind: Some(attach_request::Kind::Open(open)) };
        let wrap = |input| AttachRequest { kind: Some(attach_request::Kind::Input(input)) };
        let request = self.request(Requests { open: Some(open), inputs, wrap });
        let answer = self.containers().attach(request).await;
        self.answer("attach", answer).map(Events::Attach)
    }

    /// Runs one more program in a container.
    pub(crate) async fn exec(&mut self, open: ExecOpen, inputs: Inputs) -> Result<Events, Error> {
        let open = ExecRequest { kind: Some(exec_request::Kind::Open(open)) };
        let wrap = |input| ExecRequest { kind: Some(exec_request::Kind::Input(input)) };
        let request = self.request(Requests { open: Some(open), inputs, wrap });
        let answer = self.containers().exec(request).await;
        self.answer("exec", answer).map(Events::Exec)
    }

    /// The next event of `events`; `None` at the orderly end. Spans go to the recorder.
    pub(crate) async fn next(&mut self, events: &mut Events) -> Result<Option<Event>, Error> {
        loop {
            let (during, item) = match events {
                Events::Run(stream) => ("run", stream.message().await.map(|event| event.map(of_run))),
                Events::Attach(stream) => ("attach", stream.message().await.map(|event| event.map(of_attach))),
                Events::Exec(stream) => ("exec", stream.message().await.map(|event| event.map(of_exec))),
            };
            match item {
                Ok(Some(Item::Event(event))) => return Ok(Some(event)),
                Ok(Some(Item::Spans(bytes))) => self.take_span_bytes(&bytes),
                // A newer engined may say more than this client knows.
                Ok(Some(Item::Nothing)) => {}
                Ok(None) => {
                    self.take_stream_trailers(events).await;
                    return Ok(None);
                }
                Err(status) => return Err(self.stream_failure(during, status)),
            }
        }
    }

    fn take_span_bytes(&mut self, bytes: &[u8]) {
        if let Some(recorder) = &mut self.recorder {
            recorder.take_bytes(bytes);
        }
    }

    async fn take_stream_trailers(&mut self, events: &mut Events) {
        if self.recorder.is_none() {
            return;
        }
        let trailers = match events {
            Events::Run(stream) => stream.trailers().await,
            Events::Attach(stream) => stream.trailers().await,
            Events::Exec(stream) => stream.trailers().await,
        };
        if let Ok(Some(metadata)) = trailers {
            self.take_spans(&metadata);
        }
    }

    fn stream_failure(&mut self, during: &'static str, status: Status) -> Error {
        self.take_spans(status.metadata());
        failure(during, status)
    }
}

/// A message of a call.
enum Item {
    Event(Event),
    Spans(Vec<u8>),
    Nothing,
}

fn of_run(event: RunEvent) -> Item {
    use run_event::Kind;
    match event.kind {
        Some(Kind::Pull(progress)) => Item::Event(Event::Pull(progress)),
        Some(Kind::Created(created)) => Item::Event(Event::Created(created)),
        Some(Kind::Started(_)) => Item::Event(Event::Started),
        Some(Kind::Output(output)) => Item::Event(Event::Output(output)),
        Some(Kind::Exited(exit)) => Item::Event(Event::Exited(exit)),
        Some(Kind::Spans(bytes)) => Item::Spans(bytes),
        None => Item::Nothing,
    }
}

fn of_attach(event: AttachEvent) -> Item {
    use attach_event::Kind;
    match event.kind {
        Some(Kind::Opened(_)) => Item::Event(Event::Attached),
        Some(Kind::Output(output)) => Item::Event(Event::Output(output)),
        Some(Kind::Exited(exit)) => Item::Event(Event::Exited(exit)),
        None => Item::Nothing,
    }
}

fn of_exec(event: ExecEvent) -> Item {
    use exec_event::Kind;
    match event.kind {
        Some(Kind::Started(_)) => Item::Event(Event::Started),
        Some(Kind::Output(output)) => Item::Event(Event::Output(output)),
        Some(Kind::Exited(exit)) => Item::Event(Event::Exited(exit)),
        Some(Kind::Spans(bytes)) => Item::Spans(bytes),
        None => Item::Nothing,
    }
}
