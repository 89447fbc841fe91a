//! A blob as a stream of bytes that are checked while they pass.
//!
//! The bytes are handed on as they arrive, and hashed on a thread of their own meanwhile; the end of the stream is only
//! given when digest and size are right. So a reader may store, decompress and unpack as they come, if it makes the
//! result visible only after the end.
//!
//! A connection that breaks or stalls is made anew from where it broke (`Range`). A registry that cannot do this sends
//! the blob from its start and what was had is thrown away. Dropping the stream ends the transfer.

use std::time::Instant;

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::digest::{Digest, Hasher};
use crate::document::Descriptor;
use crate::error::{Error, Problem};
use crate::repository::{Repository, pause_or_fail};
use crate::resolve::Sources;
use crate::retry::{Attempts, BLOB_ATTEMPTS};
use crate::transport::Answer;

/// So many bytes in a row without a failure count as progress, after which earlier failures do not count.
const PROGRESS: u64 = 64 << 10;
/// Most broken connections of one blob, whatever the progress between them.
const RESUMES_MAX: u32 = 1000;
/// A peer that sends, but less than this in the time of a stall, is treated as one that sends nothing.
const TRICKLE: u64 = 4 << 10;
/// Below this size a blob is hashed where it is read: a thread would cost more.
const HASH_INLINE_MAX: u64 = 256 << 10;
/// Chunks that may wait to be hashed; the reader waits when the hash is further behind. A chunk may be as large as one
/// read from a connection, so this bounds the memory of a transfer.
const HASH_QUEUE: usize = 4;

/// A blob under way.
pub struct Blob {
    sources: Sources,
    descriptor: Descriptor,
    /// Which source is asked.
    source: usize,
    /// Bytes given to the reader, and before those the ones that it had.
    offset: u64,
    body: Option<Body>,
    attempts: Attempts,
    resumes: u32,
    verifier: Verifier,
    finished: bool,
}

/// A connection that gives the blob's bytes.
struct Body {
    incoming: Incoming,
    host: String,
    /// Bytes to throw away before the first new one.
    skip: u64,
    /// Bytes since the connection stands.
    received: u64,
    /// For telling a trickle from a flow.
    window: Window,
}

struct Window {
    since: Instant,
    bytes: u64,
}

impl Blob {
    pub(crate) fn new(sources: Sources, descriptor: Descriptor, offset: u64) -> Blob {
        // Of a blob whose start somebody else has, the digest cannot be checked here.
        let verifier = if offset == 0 { Verifier::new(&descriptor) } else { Verifier::None };
        let attempts = Attempts::new(BLOB_ATTEMPTS);
        Blob { sources, descriptor, source: 0, offset, body: None, attempts, resumes: 0, verifier, finished: false }
    }

    /// What is fetched.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Where the next bytes stand in the blob.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next bytes, never empty. `None`: all bytes are there, so many as promised and, for a stream that began at 0,
    /// with the digest that was promised.
    ///
    /// # Errors
    /// The blob cannot be had: see [`Problem`]. The stream is of no more use then.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        self.next_or_problem().await.map_err(|problem| {
            Error::new(format!("fetch layer {} of {}", self.descriptor.digest, self.sources.name), problem)
        })
    }

    async fn next_or_problem(&mut self) -> Result<Option<Bytes>, Problem> {
        if self.finished {
            return Ok(None);
        }
        if self.offset == self.descriptor.size {
            // Nothing to ask for: an empty blob, or one that the reader has but for its commit.
            return self.finish().await;
        }
        loop {
            match self.read_some().await {
                Ok(Some(bytes)) => {
                    self.verifier.update(&bytes).await;
                    return Ok(Some(bytes));
                }
                Ok(None) => return self.finish().await,
                Err(problem) => self.recover(problem).await?,
            }
        }
    }

    async fn finish(&mut self) -> Result<Option<Bytes>, Problem> {
        self.body = None;
        self.finished = true;
        let expected = &self.descriptor.digest;
        match std::mem::replace(&mut self.verifier, Verifier::None).finish().await {
            Some(actual) if actual != *expected => Err(Problem::Digest { expected: expected.clone(), actual }),
            _ => Ok(None),
        }
    }

    /// New bytes from the present connection, which is made if there is none.
    async fn read_some(&mut self) -> Result<Option<Bytes>, Problem> {
        if self.body.is_none() {
            self.body = Some(self.open().await?);
        }
        let repository = &self.sources.repositories[self.source];
        let body = self.body.as_mut().expect("it was just made");
        loop {
            let Some(mut bytes) = body.next(repository).await? else { return self.ended() };
            let skipped = body.skip.min(bytes.len() as u64);
            body.skip -= skipped;
            drop(bytes.split_to(usize::try_from(skipped).unwrap_or(usize::MAX)));
            if bytes.is_empty() {
                continue;
            }
            if body.received >= PROGRESS {
                self.attempts.progressed();
            }
            self.offset += bytes.len() as u64;
            if self.offset > self.descriptor.size {
                return Err(Problem::Size { expected: self.descriptor.size, actual: self.descriptor.size + 1 });
            }
            return Ok(Some(bytes));
        }
    }

    /// The registry says that this is all. A cut connection does not come here: it is an error of the transport.
    fn ended(&self) -> Result<Option<Bytes>, Problem> {
        if self.offset == self.descriptor.size {
            return Ok(None);
        }
        Err(Problem::Size { expected: self.descriptor.size, actual: self.offset })
    }

    async fn open(&self) -> Result<Body, Problem> {
        let repository = &self.sources.repositories[self.source];
        let answer = repository.open_blob(&self.descriptor.digest, self.offset).await?;
        let start = body_start(&answer, self.offset)?;
        self.check_length(&answer, start)?;
        let window = Window { since: Instant::now(), bytes: 0 };
        Ok(Body {
            incoming: answer.response.into_body(),
            host: answer.host,
            skip: self.offset - start,
            received: 0,
            window,
        })
    }

    /// A wrong size that is announced is known before the first byte.
    fn check_length(&self, answer: &Answer, start: u64) -> Result<(), Problem> {
        let header = answer.response.headers().get(CONTENT_LENGTH);
        let length: Option<u64> = header.and_then(|value| value.to_str().ok()?.parse().ok());
        match length.map(|length| length.saturating_add(start)) {
            Some(actual) if actual != self.descriptor.size => {
                Err(Problem::Size { expected: self.descriptor.size, actual })
            }
            _ => Ok(()),
        }
    }

    /// Makes ready for another attempt: at the same source while it may help, then at the next one.
    async fn recover(&mut self, problem: Problem) -> Result<(), Problem> {
        self.body = None;
        self.resumes += 1;
        if self.resumes > RESUMES_MAX {
            return Err(problem);
        }
        match pause_or_fail(problem, &mut self.attempts).await {
            Err(problem) if self.source + 1 < self.sources.repositories.len() && self.may_go_on_elsewhere(&problem) => {
                tracing::info!(%problem, layer = %self.descriptor.digest, "a mirror does not serve a layer");
                self.source += 1;
                self.attempts = Attempts::new(BLOB_ATTEMPTS);
                Ok(())
            }
            result => result,
        }
    }

    /// Bytes beyond the size were given to nobody, but those before are perhaps wrong as well.
    fn may_go_on_elsewhere(&self, problem: &Problem) -> bool {
        self.offset == 0 || !matches!(problem, Problem::Size { .. })
    }
}

impl Body {
    async fn next(&mut self, repository: &Repository) -> Result<Option<Bytes>, Problem> {
        let transport = repository.transport();
        let bytes = transport.next_bytes(&mut self.incoming, &self.host).await?;
        let count = bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        self.received += count;
        self.window.bytes += count;
        if self.window.bytes >= TRICKLE {
            self.window = Window { since: Instant::now(), bytes: 0 };
        } else if self.window.since.elapsed() > transport.stall && bytes.is_some() {
            return Err(Problem::Stalled { host: self.host.clone(), waited: transport.stall });
        }
        Ok(bytes)
    }
}

/// Where in the blob the body of `answer` begins, when `offset` was asked for.
fn body_start(answer: &Answer, offset: u64) -> Result<u64, Problem> {
    if answer.response.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(0);
    }
    let range = answer.response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if range_start(range) == Some(offset) {
        return Ok(offset);
    }
    Err(Problem::Protocol(format!("it sends the range {range:?} when asked for the bytes from {offset} on")))
}

/// The first position in `bytes 5-9/10`.
fn range_start(range: &str) -> Option<u64> {
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

/// Hashes what passes.
enum Verifier {
    None,
    Inline(Box<Hasher>),
    Thread { chunks: mpsc::Sender<Bytes>, digest: JoinHandle<Digest> },
}

impl Verifier {
    fn new(descriptor: &Descriptor) -> Verifier {
        let mut hasher = Hasher::new(descriptor.digest.algorithm());
        if descriptor.size <= HASH_INLINE_MAX {
            return Verifier::Inline(Box::new(hasher));
        }
        let (chunks, mut queue) = mpsc::channel::<Bytes>(HASH_QUEUE);
        // It ends when the sender is dropped, with the blob at the latest.
        let digest = tokio::task::spawn_blocking(move || {
            while let Some(chunk) = queue.blocking_recv() {
                hasher.update(&chunk);
            }
            hasher.finish()
        });
        Verifier::Thread { chunks, digest }
    }

    async fn update(&mut self, bytes: &Bytes) {
        match self {
            Verifier::None => {}
            Verifier::Inline(hasher) => hasher.update(bytes),
            // The thread ends early only by a panic, which `finish` then shows.
            Verifier::Thread { chunks, .. } => drop(chunks.send(bytes.clone()).await),
        }
    }

    /// The digest of what passed; `None` when nothing was hashed.
    async fn finish(self) -> Option<Digest> {
        match self {
            Verifier::None => None,
            Verifier::Inline(hasher) => Some(hasher.finish()),
            Verifier::Thread { chunks, digest } => {
                drop(chunks);
                Some(digest.await.expect("hashing does not panic"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
        assert_eq!(range_start("bytes 0-9/*"), Some(0));
        for bad in ["", "bytes */10", "items 5-9/10", "bytes x-9/10"] {
            assert_eq!(range_start(bad), None, "{bad}");
        }
    }
}
