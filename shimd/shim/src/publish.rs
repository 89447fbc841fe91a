//! Publishing events to containerd, or shimd: in order, and as soon as somebody listens.
//!
//! ```text
//!            an event comes            connected, sent          answered: the next one
//! Idle ────────────────────▶ (connect) ───────────────▶ Waiting ───────────────────────▶ Idle or Waiting
//!                                │ nobody listens          │ the connection broke
//!                                ▼                         ▼
//!                             Resting ◀────────────────────┘        after a pause: connect again
//! ```
//! One event is on its way at a time: servers handle the calls of a connection side by side, and order is a promise.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::{Message, Name};
use proto_shim::events_ttrpc::ForwardRequest;
use proto_shim::types::Envelope;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use strata_ttrpc::Request;
use strata_ttrpc::frame::{self, Decoder, KIND_REQUEST, KIND_RESPONSE};
use strata_ttrpc::message::{KeyValue, OK, Response, Status};

use crate::poll::{Interest, Poller, Source, Token};
use crate::timers::{Due, Timers};

/// Events that wait while nobody listens; the oldest goes when there is one more. A supervisor that was away so long
/// asks for the state of things, which has the exit codes.
const QUEUE_MAX: usize = 1024;
/// How often an event that the server refuses is sent.
const REFUSALS_MAX: u32 = 3;
/// Pauses between attempts to connect.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Bytes of an answer that are read at once.
const READ_LEN: usize = 512;

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    token: Token,
    decoder: Decoder,
    stream: u32,
    /// Of the frame that is being sent.
    unsent: Vec<u8>,
    waits_to_write: bool,
}

impl Connection {
    fn flush(&mut self, poller: &mut Poller) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match rustix::net::send(&self.socket, &self.unsent, SendFlags::NOSIGNAL) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => break,
                Err(error) => return Err(error.into()),
            }
        }
        let waits = !self.unsent.is_empty();
        if waits != self.waits_to_write {
            let interest = if waits { Interest::ReadWrite } else { Interest::Read };
            poller.change(self.token, &self.socket, interest)?;
            self.waits_to_write = waits;
        }
        Ok(())
    }
}

/// The queue and where it goes.
#[derive(Debug)]
pub(crate) struct Publisher {
    address: PathBuf,
    namespace: String,
    /// Encoded [`ForwardRequest`]s.
    queue: VecDeque<Vec<u8>>,
    connection: Option<Connection>,
    /// The first of the queue was sent and not yet answered.
    is_waiting: bool,
    refusals: u32,
    pause: Duration,
}

impl Publisher {
    /// Publishes to the ttrpc socket at `address`; with an empty one, nowhere.
    pub(crate) fn new(address: &Path, namespace: &str) -> Publisher {
        Publisher {
            address: address.to_owned(),
            namespace: namespace.to_owned(),
            queue: VecDeque::new(),
            connection: None,
            is_waiting: false,
            refusals: 0,
            pause: PAUSE_MIN,
        }
    }

    /// Forgets what nobody took.
    pub(crate) fn give_up(&mut self) {
        self.queue.clear();
    }

    /// Whether everything was taken.
    pub(crate) fn is_done(&self) -> bool {
        self.queue.is_empty()
    }

    /// Queues an event. It is sent by [`Publisher::advance`].
    pub(crate) fn publish<M: Message + Name>(&mut self, topic: &str, at: prost_types::Timestamp, event: &M) {
        if self.address.as_os_str().is_empty() {
            return;
        }
        if self.queue.len() >= QUEUE_MAX {
            // The first may be on its way: its answer must find it.
            self.queue.remove(usize::from(self.is_waiting));
        }
        let envelope = Envelope {
            timestamp: Some(at),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(proto_shim::any(event)),
        };
        self.queue.push_back(ForwardRequest { envelope: Some(envelope) }.encode_to_vec());
    }

    /// Sends the next event if that can be done now.
    pub(crate) fn advance(&mut self, poller: &mut Poller, timers: &mut Timers) {
        if self.is_waiting || self.queue.is_empty() {
            return;
        }
        if self.connection.is_none() {
            match connect(&self.address, poller) {
                Ok(connection) => self.connection = Some(connection),
                Err(_) => {
                    timers.set_once(Due::Publish, self.pause);
                    return;
                }
            }
        }
        self.send_first();
        self.flush(poller, timers);
    }

    /// The connection has something to say.
    pub(crate) fn ready(&mut self, poller: &mut Poller, timers: &mut Timers) {
        let mut buffer = [0; READ_LEN];
        while let Some(connection) = &mut self.connection {
            match rustix::net::recv(&connection.socket, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((0, _)) => return self.disconnect(poller, timers),
                Ok((count, _)) => connection.decoder.push(&buffer[..count]),
                Err(Errno::WOULDBLOCK) => break,
                Err(Errno::INTR) => continue,
                Err(_) => return self.disconnect(poller, timers),
            }
            self.take_answers();
        }
        self.flush(poller, timers);
        self.advance(poller, timers);
    }

    fn send_first(&mut self) {
        let (Some(connection), Some(payload)) = (&mut self.connection, self.queue.front()) else { return };
        connection.stream = if connection.stream == 0 { 1 } else { connection.stream.wrapping_add(2) };
        let request = Request {
            service: proto_shim::service::EVENTS.to_owned(),
            method: "Forward".to_owned(),
            payload: payload.clone(),
            timeout_nano: 0,
            metadata: vec![KeyValue { key: "containerd-namespace-ttrpc".to_owned(), value: self.namespace.clone() }],
        };
        if frame::append(&mut connection.unsent, connection.stream, KIND_REQUEST, &request).is_err() {
            // No event of a shim is four megabytes long; one that is could never be sent.
            self.queue.pop_front();
            return;
        }
        self.is_waiting = true;
    }

    fn flush(&mut self, poller: &mut Poller, timers: &mut Timers) {
        let Some(connection) = &mut self.connection else { return };
        if connection.flush(poller).is_err() {
            self.disconnect(poller, timers);
        }
    }

    fn take_answers(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        while let Some(next) = connection.decoder.next() {
            let Ok((header, payload)) = next else { continue };
            if header.kind != KIND_RESPONSE || header.stream != connection.stream || !self.is_waiting {
                continue;
            }
            self.is_waiting = false;
            self.refusals += 1;
            if is_taken(payload) || self.refusals >= REFUSALS_MAX {
                self.queue.pop_front();
                self.refusals = 0;
            }
            self.pause = PAUSE_MIN;
        }
    }

    /// Forgets the connection; the event that was on its way is sent again, perhaps for the second time.
    fn disconnect(&mut self, poller: &mut Poller, timers: &mut Timers) {
        if let Some(connection) = self.connection.take() {
            poller.remove(connection.token, &connection.socket);
        }
        self.is_waiting = false;
        if !self.queue.is_empty() {
            timers.set_once(Due::Publish, self.pause);
        }
    }

    /// The pause before the next attempt is over.
    pub(crate) fn try_again(&mut self, poller: &mut Poller, timers: &mut Timers) {
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        self.advance(poller, timers);
    }
}

fn is_taken(payload: &[u8]) -> bool {
    let Ok(response) = Response::decode(payload) else { return false };
    match response.status.map(Status::from_bytes) {
        None => true,
        Some(Ok(status)) => status.code() == OK,
        Some(Err(_)) => false,
    }
}

/// A connection; a local socket connects at once or not at all.
fn connect(address: &Path, poller: &mut Poller) -> io::Result<Connection> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    crate::socket::with_short_name(address, |name| Ok(rustix::net::connect(&socket, &SocketAddrUnix::new(name)?)?))?;
    let token = poller.add(&socket, Source::Publisher, Interest::Read)?;
    Ok(Connection { socket, token, decoder: Decoder::default(), stream: 0, unsent: Vec::new(), waits_to_write: false })
}
