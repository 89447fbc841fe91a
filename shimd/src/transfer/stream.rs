//! Streams that clients open under a name of their own, and that another request of theirs then refers to: bytes of
//! archives in both directions, progress, questions for credentials.
//!
//! ```text
//!   client --Stream(id)--> Streams --take(id)--> the transfer that named it
//! ```
//! Bytes are sent only as far as their reader has said that it takes them ([`WindowUpdate`]).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{self, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use prost_types::Any;
use proto_containerd::types::transfer::{Data, WindowUpdate};
use tokio::sync::mpsc;

use crate::error::{Error, Result};
use crate::name::{Namespace, check_name};

/// Messages of one stream that wait, in either direction, and bytes of one: what a client may have shimd hold.
pub(crate) const QUEUE: usize = 16;
pub(crate) const MESSAGE_MAX: usize = 256 << 10;
/// Streams that wait to be taken, of all namespaces.
const WAITING_MAX: usize = 128;
/// Bytes that a client may send ahead.
const WINDOW: i32 = 1 << 20;
/// Bytes of one message to a client.
const CHUNK: usize = 32 << 10;
/// How long the end of an export waits for its client to have read all.
const READ_PATIENCE: Duration = Duration::from_secs(2);

/// A client's end of a stream, as the server holds it. It ends for the client when it is dropped.
pub(crate) struct Stream {
    /// Ends with the client's half; an error says that the client went away in the middle.
    pub(crate) incoming: mpsc::Receiver<io::Result<Any>>,
    pub(crate) outgoing: mpsc::Sender<Any>,
}

/// The streams that nobody has taken yet.
#[derive(Default)]
pub(crate) struct Streams(Mutex<HashMap<(Namespace, String), Stream>>);

impl Streams {
    /// Keeps a stream until it is taken.
    pub(crate) fn offer(&self, namespace: &Namespace, id: &str, stream: Stream) -> Result<()> {
        check_name("stream", id)?;
        let mut streams = self.lock();
        if streams.len() >= WAITING_MAX {
            streams.retain(|_, stream| !stream.outgoing.is_closed());
        }
        if streams.len() >= WAITING_MAX {
            return Err(Error::Busy { what: format!("{WAITING_MAX} streams") });
        }
        match streams.entry((namespace.clone(), id.to_owned())) {
            Entry::Occupied(taken) if !taken.get().outgoing.is_closed() => Err(Error::exists("stream", id)),
            Entry::Occupied(mut gone) => {
                gone.insert(stream);
                Ok(())
            }
            Entry::Vacant(free) => {
                free.insert(stream);
                Ok(())
            }
        }
    }

    /// Takes a stream that its client has opened.
    pub(crate) fn take(&self, namespace: &Namespace, id: &str) -> Result<Stream> {
        self.lock().remove(&(namespace.clone(), id.to_owned())).ok_or_else(|| Error::not_found("stream", id))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Namespace, String), Stream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes that a client sends. Blocks: for a thread of its own.
pub(crate) struct StreamReader {
    stream: Stream,
    current: Bytes,
    /// Bytes that the client may still send.
    window: i32,
}

impl StreamReader {
    pub(crate) fn new(stream: Stream) -> StreamReader {
        StreamReader { stream, current: Bytes::new(), window: 0 }
    }

    fn widen(&mut self) {
        if self.window <= WINDOW / 2 {
            let update = WindowUpdate { update: WINDOW - self.window };
            // A client that has sent all reads no more.
            let _ = self.stream.outgoing.blocking_send(proto_containerd::any(&update));
            self.window = WINDOW;
        }
    }

    /// The next piece; `None` at the end.
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        self.widen();
        let Some(message) = self.stream.incoming.blocking_recv() else { return Ok(None) };
        let data: Data = message_of(&message?)?;
        let length = i32::try_from(data.data.len()).unwrap_or(i32::MAX);
        if length > self.window {
            let why = "more bytes on a stream than were asked for";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        self.window -= length;
        Ok(Some(data.data.into()))
    }
}

impl Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.next()? {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let count = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// Takes bytes to a client. Blocks: for a thread of its own.
pub(crate) struct StreamWriter {
    stream: Stream,
    window: usize,
}

impl StreamWriter {
    pub(crate) fn new(stream: Stream) -> StreamWriter {
        StreamWriter { stream, window: 0 }
    }

    fn widen(&mut self, message: io::Result<Any>) -> io::Result<()> {
        let update: WindowUpdate = message_of(&message?)?;
        self.window += usize::try_from(update.update).unwrap_or(0);
        Ok(())
    }

    /// Waits until the client has read all: an answer that overtook the last bytes would let it end without them. A
    /// client asks for more when it has read what it had.
    pub(crate) fn finish(mut self) {
        let deadline = Instant::now() + READ_PATIENCE;
        while Instant::now() < deadline && self.stream.incoming.is_empty() && !self.stream.incoming.is_closed() {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.stream.incoming.close();
    }
}

impl Write for StreamWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        while let Ok(message) = self.stream.incoming.try_recv() {
            self.widen(message)?;
        }
        while self.window == 0 {
            let message = self.stream.incoming.blocking_recv();
            self.widen(message.ok_or(io::ErrorKind::BrokenPipe)?)?;
        }
        let count = data.len().min(self.window).min(CHUNK);
        let piece = proto_containerd::any(&Data { data: data[..count].to_vec() });
        self.stream.outgoing.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.window -= count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The message that must be in `any`.
fn message_of<M: prost::Message + prost::Name + Default>(any: &Any) -> io::Result<M> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let message = proto_containerd::from_any(any).map_err(|error| invalid(error.to_string()))?;
    message.ok_or_else(|| invalid(format!("{:?} on a stream of bytes", any.type_url)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Stream, mpsc::Sender<io::Result<Any>>, mpsc::Receiver<Any>) {
        let (client, incoming) = mpsc::channel(QUEUE);
        let (outgoing, to_client) = mpsc::channel(QUEUE);
        (Stream { incoming, outgoing }, client, to_client)
    }

    #[test]
    fn a_name_is_taken_once_and_free_when_its_client_is_gone() {
        let (streams, ns) = (Streams::default(), Namespace::parse("ns").unwrap());
        let (first, _client, to_client) = pair();
        streams.offer(&ns, "a", first).unwrap();
        assert!(matches!(streams.offer(&ns, "a", pair().0), Err(Error::Exists { .. })));
        drop(to_client);
        let (second, _client, _to_client) = pair();
        streams.offer(&ns, "a", second).unwrap();
        streams.take(&ns, "a").unwrap();
        assert!(streams.take(&ns, "a").err().unwrap().is_not_found());
        assert!(streams.take(&Namespace::parse("other").unwrap(), "a").is_err());
    }

    #[test]
    fn a_reader_lets_its_client_send_and_sees_the_end() {
        let (stream, client, mut to_client) = pair();
        for part in ["he", "", "llo"] {
            let data = Data { data: part.as_bytes().to_vec() };
            client.blocking_send(Ok(proto_containerd::any(&data))).unwrap();
        }
        drop(client);
        let mut text = String::new();
        StreamReader::new(stream).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        let update: WindowUpdate = message_of(&to_client.blocking_recv().unwrap()).unwrap();
        assert_eq!(update.update, WINDOW);
    }

    #[test]
    fn a_client_that_sends_more_than_was_asked_for_is_refused() {
        let (stream, client, _to_client) = pair();
        let piece = |length: i32| Ok(proto_containerd::any(&Data { data: vec![0; length.unsigned_abs() as usize] }));
        client.blocking_send(piece(WINDOW)).unwrap();
        client.blocking_send(piece(WINDOW + 1)).unwrap();
        drop(client);
        let mut reader = StreamReader::new(stream);
        let mut within = vec![0; WINDOW.unsigned_abs() as usize];
        reader.read_exact(&mut within).unwrap();
        assert!(reader.read(&mut within).is_err());
    }

    #[test]
    fn a_client_that_breaks_off_is_an_error_and_no_end() {
        let (stream, client, _to_client) = pair();
        client.blocking_send(Err(io::ErrorKind::ConnectionReset.into())).unwrap();
        drop(client);
        assert!(StreamReader::new(stream).read_to_end(&mut Vec::new()).is_err());
    }

    #[test]
    fn a_writer_sends_no_more_than_its_client_takes() {
        let (stream, client, mut to_client) = pair();
        client.blocking_send(Ok(proto_containerd::any(&WindowUpdate { update: 3 }))).unwrap();
        let mut writer = StreamWriter::new(stream);
        assert_eq!(writer.write(b"hello").unwrap(), 3);
        let data: Data = message_of(&to_client.blocking_recv().unwrap()).unwrap();
        assert_eq!(data.data, b"hel");
        drop(client);
        assert_eq!(writer.write(b"lo").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
