//! A server for services whose calls are answered one after the other.
//!
//! The calls of one connection run in the order in which they came, each after the answer to the one before: shimd's
//! events service wants exactly that, because a shim's events have an order. Connections run side by side.

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::frame::{self, Decoder, KIND_REQUEST, KIND_RESPONSE};
use crate::message::{INVALID_ARGUMENT, RESOURCE_EXHAUSTED, Request, Response, Status};
use crate::socket::short_name;

/// Bytes read at once.
const READ_LEN: usize = 4 << 10;
/// Pause after a failed accept (out of file descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The services behind a socket.
pub trait Handler: Send + Sync + 'static {
    /// Answers one call with the encoded message of the method.
    fn call(&self, request: Request) -> impl Future<Output = Result<Vec<u8>, Status>> + Send;
}

/// A listening socket at `path`, however long the path is. Permissions are the caller's business.
///
/// # Errors
/// The socket cannot be made there.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let (name, _directory) = short_name(path)?;
    UnixListener::bind(name)
}

/// Serves every connection on `listener`, until the future is dropped.
pub async fn serve<H: Handler>(listener: UnixListener, handler: Arc<H>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(serve_connection(stream, handler.clone()))),
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Answers the calls of one connection until the peer closes it; what breaks it is the peer's business.
async fn serve_connection<H: Handler>(mut stream: UnixStream, handler: Arc<H>) {
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; READ_LEN];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => decoder.push(&buffer[..count]),
        }
        while let Some((id, request)) = next_call(&mut decoder) {
            let outcome = match request {
                Ok(request) => handler.call(request).await,
                Err(status) => Err(status),
            };
            if stream.write_all(&answer(id, outcome)).await.is_err() {
                return;
            }
        }
    }
}

/// The next request in `decoder`, or what is wrong with it. Frames of other kinds are skipped.
fn next_call(decoder: &mut Decoder) -> Option<(u32, Result<Request, Status>)> {
    loop {
        match decoder.next()? {
            Ok((header, payload)) if header.kind == KIND_REQUEST => {
                let request =
                    Request::decode(payload).map_err(|error| Status::new(INVALID_ARGUMENT, error.to_string()));
                return Some((header.stream, request));
            }
            Ok(_) => {}
            Err(oversized) => {
                return Some((oversized.stream, Err(Status::new(RESOURCE_EXHAUSTED, oversized.to_string()))));
            }
        }
    }
}

fn answer(stream: u32, outcome: Result<Vec<u8>, Status>) -> Vec<u8> {
    let response = match outcome {
        Ok(payload) => Response { payload, ..Response::default() },
        Err(status) => Response { status: Some(status.into_bytes()), ..Response::default() },
    };
    let mut bytes = Vec::new();
    if let Err(oversized) = frame::append(&mut bytes, stream, KIND_RESPONSE, &response) {
        return answer(stream, Err(Status::new(RESOURCE_EXHAUSTED, oversized.to_string())));
    }
    bytes
}
