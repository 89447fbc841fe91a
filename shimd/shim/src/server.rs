//! The ttrpc server: connections, the calls that come over them, and the answers.
//!
//! It decides nothing: it turns bytes into [`Call`]s and [`Reply`]s into bytes. An answer to a connection that has
//! closed in the meantime goes nowhere; what was asked for was done all the same.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use prost::Message;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use strata_fault::{DETAILS, Fault};
use strata_trace::{SPANS_MAX, Span, Spans, TRACEPARENT, TraceParent};
use strata_ttrpc::frame::{self, Decoder, KIND_REQUEST, KIND_RESPONSE};
use strata_ttrpc::message::{INVALID_ARGUMENT, RESOURCE_EXHAUSTED};
use strata_ttrpc::{Request, Response, Status};

use crate::poll::{Interest, Poller, Source, Token};

/// Connections at once: a supervisor makes one for each container of a group or sandbox, a person with a tool a few.
const CONNECTIONS_MAX: usize = 512;
/// Bytes that wait for a peer which does not read; then its connection is closed.
const UNSENT_MAX: usize = 8 << 20;
/// Bytes read at once.
const READ_LEN: usize = 4 << 10;

/// Somebody waits for the answer to a call.
#[derive(Debug)]
pub(crate) struct Reply {
    connection: u32,
    stream: u32,
    trace: Option<TraceParent>,
    /// The caller reads faults.
    wants_details: bool,
}

impl Reply {
    /// The context of the caller's trace, if it wants one.
    pub(crate) fn trace(&self) -> Option<TraceParent> {
        self.trace
    }
}

/// A call of a method.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) service: String,
    pub(crate) method: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) reply: Reply,
}

#[derive(Debug)]
struct Connection {
    number: u32,
    socket: OwnedFd,
    token: Token,
    decoder: Decoder,
    unsent: Vec<u8>,
    waits_to_write: bool,
    is_broken: bool,
}

/// The listening socket and its connections.
#[derive(Debug)]
pub(crate) struct Server {
    /// With the path of its socket; `None` when no more connections are wanted.
    listener: Option<(OwnedFd, PathBuf, Token)>,
    connections: Vec<Connection>,
    last: u32,
}

impl Server {
    /// Serves on a socket that listens and does not block.
    pub(crate) fn new(listener: OwnedFd, path: &Path, poller: &mut Poller) -> io::Result<Server> {
        let token = poller.add(&listener, Source::Listener, Interest::Read)?;
        Ok(Server { listener: Some((listener, path.to_owned(), token)), connections: Vec::new(), last: 0 })
    }

    /// Takes no more connections: from now on another shim may have the socket's name.
    pub(crate) fn stop_listening(&mut self, poller: &mut Poller) {
        if let Some((listener, path, token)) = self.listener.take() {
            poller.remove(token, &listener);
            // Whoever comes now finds nobody; the supervisor removes it, too.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Whether anybody is connected.
    pub(crate) fn is_alone(&self) -> bool {
        self.connections.is_empty()
    }

    /// Whether an answer to `reply` would go anywhere.
    pub(crate) fn reaches(&self, reply: &Reply) -> bool {
        self.connections.iter().any(|connection| connection.number == reply.connection)
    }

    /// Takes a new connection.
    pub(crate) fn accept(&mut self, poller: &mut Poller) -> io::Result<()> {
        let Some((listener, _, _)) = &self.listener else { return Ok(()) };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match rustix::net::accept_with(listener, flags) {
            Ok(socket) => socket,
            Err(Errno::WOULDBLOCK | Errno::CONNABORTED | Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if self.connections.len() >= CONNECTIONS_MAX {
            return Ok(());
        }
        self.last += 1;
        let token = poller.add(&socket, Source::Connection(self.last), Interest::Read)?;
        self.connections.push(Connection {
            number: self.last,
            socket,
            token,
            decoder: Decoder::default(),
            unsent: Vec::new(),
            waits_to_write: false,
            is_broken: false,
        });
        Ok(())
    }

    /// Reads from a connection, and writes what waited. Returns the calls that came.
    pub(crate) fn serve(&mut self, number: u32, poller: &mut Poller) -> Vec<Call> {
        let Some(at) = self.connections.iter().position(|connection| connection.number == number) else {
            return Vec::new();
        };
        let connection = &mut self.connections[at];
        let calls = connection.receive();
        connection.flush(poller);
        if connection.is_broken {
            let connection = self.connections.swap_remove(at);
            poller.remove(connection.token, &connection.socket);
        }
        calls
    }

    /// Answers a call.
    pub(crate) fn answer(
        &mut self,
        reply: Reply,
        outcome: Result<Vec<u8>, Fault>,
        spans: Vec<Span>,
        poller: &mut Poller,
    ) {
        let connection = self.connections.iter_mut().find(|connection| connection.number == reply.connection);
        let Some(connection) = connection else { return };
        let mut response = match outcome {
            Ok(payload) => Response { payload, ..Response::default() },
            Err(fault) => Response { status: Some(status(&fault, reply.wants_details)), ..Response::default() },
        };
        if reply.trace.is_some() {
            response.spans = Some(encoded(spans));
        }
        connection.send(reply.stream, &response);
        connection.flush(poller);
    }
}

fn status(fault: &Fault, with_details: bool) -> Vec<u8> {
    if with_details { fault.to_status_bytes() } else { fault.to_plain_status_bytes() }
}

fn encoded(mut spans: Vec<Span>) -> Vec<u8> {
    spans.truncate(SPANS_MAX);
    Spans { spans }.encode_to_vec()
}

impl Connection {
    fn receive(&mut self) -> Vec<Call> {
        let mut buffer = [0; READ_LEN];
        loop {
            match rustix::net::recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((0, _)) => self.is_broken = true,
                Ok((count, _)) => {
                    self.decoder.push(&buffer[..count]);
                    // A short read emptied the socket; level-triggered events bring the rest.
                    if count == buffer.len() {
                        continue;
                    }
                }
                Err(Errno::WOULDBLOCK) => {}
                Err(Errno::INTR) => continue,
                Err(_) => self.is_broken = true,
            }
            return self.calls();
        }
    }

    fn calls(&mut self) -> Vec<Call> {
        let mut calls = Vec::new();
        let mut refused = Vec::new();
        while let Some(next) = self.decoder.next() {
            match next {
                Ok((header, _)) if header.kind != KIND_REQUEST => {}
                Ok((header, _)) if header.stream % 2 == 0 => {
                    refused.push((header.stream, Status::new(INVALID_ARGUMENT, "a client's stream ids are odd")));
                }
                Ok((header, payload)) => match Request::decode(payload) {
                    Ok(request) => calls.push(call(self.number, header.stream, request)),
                    Err(error) => refused.push((header.stream, Status::new(INVALID_ARGUMENT, error.to_string()))),
                },
                Err(oversized) => {
                    refused.push((oversized.stream, Status::new(RESOURCE_EXHAUSTED, oversized.to_string())));
                }
            }
        }
        for (stream, status) in refused {
            self.send(stream, &Response { status: Some(status.into_bytes()), ..Response::default() });
        }
        calls
    }

    fn send(&mut self, stream: u32, response: &Response) {
        if let Err(oversized) = frame::append(&mut self.unsent, stream, KIND_RESPONSE, response) {
            let status = Status::new(RESOURCE_EXHAUSTED, oversized.to_string());
            let short = Response { status: Some(status.into_bytes()), ..Response::default() };
            // A status of one sentence is within the bound.
            let _ = frame::append(&mut self.unsent, stream, KIND_RESPONSE, &short);
        }
    }

    fn flush(&mut self, poller: &mut Poller) {
        let mut sent = 0;
        while sent < self.unsent.len() {
            match rustix::net::send(&self.socket, &self.unsent[sent..], SendFlags::NOSIGNAL) {
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => break,
                Err(_) => {
                    self.is_broken = true;
                    break;
                }
            }
        }
        self.unsent.drain(..sent);
        self.is_broken |= self.unsent.len() > UNSENT_MAX;
        if self.unsent.is_empty() {
            self.unsent = Vec::new();
        }
        self.wait_to_write(!self.unsent.is_empty(), poller);
    }

    fn wait_to_write(&mut self, waits: bool, poller: &mut Poller) {
        if waits == self.waits_to_write {
            return;
        }
        self.waits_to_write = waits;
        let interest = if waits { Interest::ReadWrite } else { Interest::Read };
        self.is_broken |= poller.change(self.token, &self.socket, interest).is_err();
    }
}

fn call(connection: u32, stream: u32, request: Request) -> Call {
    let trace = request.metadata(TRACEPARENT).and_then(TraceParent::parse).filter(TraceParent::is_sampled);
    let wants_details = request.metadata(DETAILS).is_some();
    Call {
        service: request.service,
        method: request.method,
        payload: request.payload,
        reply: Reply { connection, stream, trace, wants_details },
    }
}
