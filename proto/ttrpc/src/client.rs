//! A client: many calls at once over one connection.
//!
//! A call writes its frame itself, in the caller's task; one task per connection reads the answers and hands them out.
//! When the connection ends, all calls that wait fail at once. A call whose future is dropped is forgotten; its answer,
//! should one come, is ignored.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message;
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::AbortHandle;

use crate::frame::{self, Decoder, KIND_REQUEST, KIND_RESPONSE};
use crate::message::{KeyValue, OK, Request, Response, Status};
use crate::socket::short_name;

/// Bytes that wait for a peer which does not read; beyond, calls fail.
const UNSENT_MAX: usize = 16 << 20;
/// Bytes read at once.
const READ_LEN: usize = 16 << 10;

/// A connection to a ttrpc server; clones share it, and it closes with the last of them.
#[derive(Clone)]
pub struct Client {
    connection: Arc<Connection>,
}

/// What goes with a request.
#[derive(Clone, Debug, Default)]
pub struct CallOptions {
    /// Sent as the request's metadata.
    pub metadata: Vec<(String, String)>,
    /// The call fails after this time; the server is told, too.
    pub timeout: Option<Duration>,
}

/// The answer to a call.
#[derive(Clone, Debug)]
pub struct Reply<M> {
    /// The method's answer.
    pub message: M,
    /// Our extension: the encoded spans of the call, if it was traced and the peer is ours.
    pub spans: Option<Vec<u8>>,
}

/// Why a call has no answer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CallError {
    /// The server said so.
    Status(Status),
    /// The connection ended before the answer; what the request did is unknown.
    Closed(Option<Arc<io::Error>>),
    /// The time of [`CallOptions::timeout`] is over; what the request did is unknown.
    TimedOut,
    /// The request is longer than ttrpc allows; it was not sent.
    Oversized(frame::Oversized),
    /// The peer does not read what it is sent.
    NotReading,
    /// The answer is not the message that the method returns.
    Undecodable(prost::DecodeError),
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            CallError::Status(status) => status.message(),
            CallError::Closed(_) => "the ttrpc connection closed before the answer",
            CallError::TimedOut => "no answer over ttrpc in time",
            CallError::Oversized(_) => "send a ttrpc request",
            CallError::NotReading => "the ttrpc peer does not read its requests",
            CallError::Undecodable(_) => "decode a ttrpc answer",
        })
    }
}

impl std::error::Error for CallError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CallError::Closed(Some(error)) => Some(error.as_ref()),
            CallError::Oversized(error) => Some(error),
            CallError::Undecodable(error) => Some(error),
            _ => None,
        }
    }
}

struct Connection {
    shared: Arc<Shared>,
    reader: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

struct Shared {
    stream: UnixStream,
    state: Mutex<State>,
    /// There are unsent bytes: the reading task shall also write.
    unsent: Notify,
    closed: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    last_stream: u32,
    waiting: HashMap<u32, oneshot::Sender<Result<Response, CallError>>>,
    unsent: Vec<u8>,
    closed: Option<Option<Arc<io::Error>>>,
}

impl Client {
    /// Connects to the unix socket at `path`, however long the path is.
    ///
    /// # Errors
    /// Nobody listens there, or it may not be opened.
    pub async fn connect(path: &Path) -> io::Result<Client> {
        let (name, directory) = short_name(path)?;
        let stream = UnixStream::connect(name).await?;
        drop(directory);
        Ok(Client::from_stream(stream))
    }

    /// A client on a connected socket.
    pub fn from_stream(stream: UnixStream) -> Client {
        let shared = Arc::new(Shared {
            stream,
            state: Mutex::default(),
            unsent: Notify::new(),
            closed: watch::Sender::new(false),
        });
        let reader = tokio::spawn(run(shared.clone())).abort_handle();
        Client { connection: Arc::new(Connection { shared, reader }) }
    }

    /// Calls `method` of `service`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call<Q: Message, A: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &Q,
        options: &CallOptions,
    ) -> Result<Reply<A>, CallError> {
        let envelope = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec(),
            timeout_nano: options.timeout.map_or(0, |time| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)),
            metadata: options.metadata.iter().map(|(key, value)| key_value(key, value)).collect(),
        };
        let response = within(options.timeout, self.exchange(&envelope)).await?;
        let message = A::decode(response.payload.as_slice()).map_err(CallError::Undecodable)?;
        Ok(Reply { message, spans: response.spans })
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.connection.shared.lock().closed.is_some()
    }

    /// Resolves when the connection ends.
    pub async fn closed(&self) {
        let mut closed = self.connection.shared.closed.subscribe();
        // The sender lives in `shared`, which `self` holds: waiting cannot fail.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    async fn exchange(&self, envelope: &Request) -> Result<Response, CallError> {
        let shared = &self.connection.shared;
        let (stream, answer) = shared.send(envelope)?;
        let _forget = Forget { shared, stream };
        let response = answer.await.unwrap_or(Err(CallError::Closed(None)))?;
        match response.status.clone().map(Status::from_bytes).transpose().map_err(CallError::Undecodable)? {
            Some(status) if status.code() != OK => Err(CallError::Status(status)),
            _ => Ok(response),
        }
    }
}

fn key_value(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: value.to_owned() }
}

async fn within<T>(limit: Option<Duration>, call: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
    match limit {
        Some(limit) => tokio::time::timeout(limit, call).await.unwrap_or(Err(CallError::TimedOut)),
        None => call.await,
    }
}

/// Frees a stream when its call ends in whatever way.
struct Forget<'a> {
    shared: &'a Shared,
    stream: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared.lock().waiting.remove(&self.stream);
    }
}

type Answer = oneshot::Receiver<Result<Response, CallError>>;

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers the request and writes as much of it as the socket takes now. Numbering and writing share one lock:
    /// servers refuse stream ids that do not grow.
    fn send(&self, envelope: &Request) -> Result<(u32, Answer), CallError> {
        let mut state = self.lock();
        if let Some(error) = &state.closed {
            return Err(CallError::Closed(error.clone()));
        }
        if state.unsent.len() > UNSENT_MAX {
            return Err(CallError::NotReading);
        }
        let stream = if state.last_stream == 0 { 1 } else { state.last_stream.wrapping_add(2) };
        let was_idle = state.unsent.is_empty();
        frame::append(&mut state.unsent, stream, KIND_REQUEST, envelope).map_err(CallError::Oversized)?;
        state.last_stream = stream;
        let (sender, answer) = oneshot::channel();
        state.waiting.insert(stream, sender);
        // An error here shows itself to the reading task, which fails every call in one place.
        if was_idle && (self.flush(&mut state).is_err() || !state.unsent.is_empty()) {
            self.unsent.notify_one();
        }
        Ok((stream, answer))
    }

    fn flush(&self, state: &mut State) -> io::Result<()> {
        while !state.unsent.is_empty() {
            match self.stream.try_write(&state.unsent) {
                Ok(count) if count == state.unsent.len() => state.unsent = Vec::new(),
                Ok(count) => drop(state.unsent.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn has_unsent(&self) -> bool {
        !self.lock().unsent.is_empty()
    }

    /// Reads what is there; `false` when the peer closed.
    fn receive(&self, decoder: &mut Decoder, buffer: &mut [u8]) -> io::Result<bool> {
        loop {
            match self.stream.try_read(buffer) {
                Ok(0) => return Ok(false),
                Ok(count) => decoder.push(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            }
            self.hand_out(decoder);
        }
    }

    fn hand_out(&self, decoder: &mut Decoder) {
        while let Some(next) = decoder.next() {
            let (stream, answer) = match next {
                Ok((header, _)) if header.kind != KIND_RESPONSE => continue,
                Ok((header, payload)) => (header.stream, Response::decode(payload).map_err(CallError::Undecodable)),
                Err(oversized) => (oversized.stream, Err(CallError::Oversized(oversized))),
            };
            if let Some(sender) = self.lock().waiting.remove(&stream) {
                let _ = sender.send(answer);
            }
        }
    }

    fn close(&self, error: Option<io::Error>) {
        let error = error.map(Arc::new);
        let waiting = {
            let mut state = self.lock();
            state.closed = Some(error.clone());
            std::mem::take(&mut state.waiting)
        };
        for sender in waiting.into_values() {
            let _ = sender.send(Err(CallError::Closed(error.clone())));
        }
        self.closed.send_replace(true);
    }
}

async fn run(shared: Arc<Shared>) {
    let result = serve(&shared).await;
    shared.close(result.err());
}

async fn serve(shared: &Shared) -> io::Result<()> {
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; READ_LEN];
    loop {
        tokio::select! {
            readable = shared.stream.readable() => {
                readable?;
                if !shared.receive(&mut decoder, &mut buffer)? {
                    return Ok(());
                }
            }
            writable = shared.stream.writable(), if shared.has_unsent() => {
                writable?;
                let mut state = shared.lock();
                shared.flush(&mut state)?;
            }
            () = shared.unsent.notified() => {}
        }
    }
}
