//! Writing a blob: an ingest and its writer.
//!
//! A [`Writer`] belongs to one request. Its file work is done by a blocking task that takes [`Command`]s from a bounded
//! queue, so that reading from the socket, writing to the page cache and hashing overlap:
//!
//! ```text
//!   request (async) --Command--> worker: write, hash, tee to the unpacking --> [commit: sync, rename, record]
//! ```
//! The kernel is asked to write out as the bytes come, so that the sync at the end has little left to do. An ingest
//! that was cut off is taken up where its file ends, after hashing what is there.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use bytes::Bytes;
use prost_types::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{Claim, Content};
use crate::db::record::{Blob, Ingest, Labels};
use crate::db::{Access, Durability, Table, key};
use crate::diff::provisional::{Feed, Prospect};
use crate::error::{Chain, Error, Result};
use crate::filter::Fields;
use crate::name::{Digest, Namespace, check_labels, check_name};
use crate::{clock, lease, sys};

/// Commands on their way to the worker; a write holds as much as one message, and after a kill it is sent again.
const QUEUE: usize = 2;
/// The kernel is asked to write out each time that so many bytes have come.
const WRITE_OUT: u64 = 8 << 20;
/// Bytes read at once when what is there is hashed again.
const READ_LEN: usize = 256 << 10;

/// How far an ingest is.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) reference: String,
    pub(crate) offset: u64,
    pub(crate) total: u64,
    pub(crate) expected: String,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) updated_at: Option<Timestamp>,
}

impl Fields for Status {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        (path.first()? == "ref").then_some(Cow::Borrowed(&self.reference))
    }
}

/// What a request wants to write.
pub(crate) struct Opening {
    pub(crate) namespace: Namespace,
    pub(crate) lease: Option<String>,
    pub(crate) reference: String,
    pub(crate) expected: Option<Digest>,
    pub(crate) total: u64,
    /// Whether the bytes shall be unpacked as they come.
    pub(crate) unpack: Option<Prospect>,
}

/// How a blob shall be when it is committed.
pub(crate) struct Commit {
    pub(crate) expected: Option<Digest>,
    pub(crate) total: u64,
    pub(crate) labels: Labels,
}

enum Command {
    /// Bytes, and when they were accepted.
    Write(Bytes, SystemTime),
    /// Begin anew, from nothing.
    Reset,
    /// The digest of all bytes so far.
    Digest(oneshot::Sender<Digest>),
    Commit(Box<Commit>, oneshot::Sender<Digest>),
}

/// Writes one ingest. Dropping it leaves the ingest where it is, to be taken up again.
pub(crate) struct Writer {
    commands: mpsc::Sender<Command>,
    worker: JoinHandle<Result<()>>,
    /// Bytes accepted so far.
    offset: u64,
    started_at: Option<Timestamp>,
    updated_at: Option<Timestamp>,
}

impl Writer {
    /// Opens the ingest, or takes it up. The blob must not be there yet.
    pub(crate) async fn open(content: Arc<Content>, opening: Opening) -> Result<Writer> {
        check_name("ingest ref", &opening.reference)?;
        let (commands, receiver) = mpsc::channel(QUEUE);
        let (ready, opened) = oneshot::channel();
        let worker = tokio::task::spawn_blocking(move || work(&content, &opening, ready, receiver));
        match opened.await {
            Ok(Opened { offset, started_at, updated_at }) => {
                Ok(Writer { commands, worker, offset, started_at, updated_at })
            }
            Err(_) => Err(failure_of(worker).await),
        }
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn started_at(&self) -> Option<Timestamp> {
        self.started_at
    }

    /// When bytes were accepted the last time.
    pub(crate) fn updated_at(&self) -> Option<Timestamp> {
        self.updated_at
    }

    /// Accepts bytes; that they could not be written is told by a later call.
    pub(crate) async fn write(&mut self, data: Bytes) -> Result<()> {
        let (length, now) = (data.len() as u64, SystemTime::now());
        self.send(Command::Write(data, now)).await?;
        self.offset += length;
        self.updated_at = Some(clock::timestamp(now));
        Ok(())
    }

    /// Forgets all bytes.
    pub(crate) async fn reset(&mut self) -> Result<()> {
        self.send(Command::Reset).await?;
        self.offset = 0;
        self.updated_at = Some(clock::now());
        Ok(())
    }

    /// The digest of all bytes so far, once they are written.
    pub(crate) async fn digest(&mut self) -> Result<Digest> {
        let (sender, answer) = oneshot::channel();
        self.send(Command::Digest(sender)).await?;
        self.answer(answer).await
    }

    /// Makes the ingest a blob, and gives its digest.
    pub(crate) async fn commit(&mut self, commit: Commit) -> Result<Digest> {
        let (sender, answer) = oneshot::channel();
        self.send(Command::Commit(Box::new(commit), sender)).await?;
        self.answer(answer).await
    }

    async fn send(&mut self, command: Command) -> Result<()> {
        match self.commands.send(command).await {
            Ok(()) => Ok(()),
            Err(_) => Err(failure_of(&mut self.worker).await),
        }
    }

    async fn answer(&mut self, answer: oneshot::Receiver<Digest>) -> Result<Digest> {
        match answer.await {
            Ok(digest) => Ok(digest),
            Err(_) => Err(failure_of(&mut self.worker).await),
        }
    }
}

/// Why the worker went away.
async fn failure_of(worker: impl Future<Output = Result<Result<()>, tokio::task::JoinError>>) -> Error {
    match worker.await {
        Ok(Err(error)) => error,
        Ok(Ok(())) => Error::refused("content write", "it was committed already"),
        Err(failure) => std::panic::resume_unwind(failure.into_panic()),
    }
}

/// The worker: opens, serves commands, ends with the request or with the first failure.
fn work(
    content: &Content,
    opening: &Opening,
    ready: oneshot::Sender<Opened>,
    mut commands: mpsc::Receiver<Command>,
) -> Result<()> {
    let claim = content.claim(&opening.namespace, &opening.reference)?;
    if let Some(expected) = &opening.expected
        && hold_what_is_there(content, opening, expected)?
    {
        return Err(Error::exists("content", expected.as_str()));
    }
    let mut work = Work::open(content, opening, claim)?;
    if ready.send(work.opened()).is_err() {
        return Ok(());
    }
    while let Some(command) = commands.blocking_recv() {
        match command {
            Command::Write(data, accepted) => work.write(data, accepted)?,
            Command::Reset => work.reset()?,
            // A request that went away wants no answer.
            Command::Digest(answer) => drop(answer.send(work.digest())),
            Command::Commit(commit, answer) => {
                let digest = work.commit(*commit)?;
                drop(answer.send(digest));
                return Ok(());
            }
        }
    }
    // The request is over without a commit: the file stays, the unpacking does not.
    work.leave();
    Ok(())
}

/// Whether the blob is there. The caller will rely on it: its lease holds it, so that no collection takes it meanwhile.
fn hold_what_is_there(content: &Content, opening: &Opening, digest: &Digest) -> Result<bool> {
    if content.info(&opening.namespace, digest).is_err() {
        return Ok(false);
    }
    let entry = key(&[opening.namespace.as_str(), digest.as_str()]);
    content.store.write(Durability::Process, |writer| {
        // It may have gone since the look.
        if writer.bytes(Table::Blobs, &entry)?.is_none() {
            return Ok(false);
        }
        lease::hold(writer, &opening.namespace, opening.lease.as_deref(), lease::CONTENT, digest.as_str())?;
        Ok(true)
    })
}

/// An ingest as a request finds it.
struct Opened {
    offset: u64,
    started_at: Option<Timestamp>,
    updated_at: Option<Timestamp>,
}

struct Work<'a> {
    content: &'a Content,
    opening: &'a Opening,
    _claim: Claim<'a>,
    record: Ingest,
    file: File,
    hasher: Sha256,
    offset: u64,
    written_out: u64,
    feed: Option<Feed>,
    /// When the last bytes were accepted, which is before they were written.
    accepted: Option<SystemTime>,
    /// The bytes are here already, for another namespace: there is nothing to write.
    shared: Option<Digest>,
}

impl<'a> Work<'a> {
    fn open(content: &'a Content, opening: &'a Opening, claim: Claim<'a>) -> Result<Work<'a>> {
        let entry = key(&[opening.namespace.as_str(), &opening.reference]);
        let known: Option<Ingest> = content.store.read()?.get(&entry)?;
        let record = match known {
            Some(record) => record,
            None => begin(content, opening, &entry)?,
        };
        let file = open_file(content, &record, &opening.reference)?;
        // Whoever gave it up since the record was read found no file to remove. Whoever does so from now on finds this
        // one.
        if let Err(error) = check_not_aborted(content, opening) {
            super::remove_file(&content.ingest_path(record.directory))?;
            return Err(error);
        }
        let shared = shared(content, opening.expected.as_ref());
        // What is here already does not come by here.
        let feed = if shared.is_none() { begin_unpacking(content, opening, &file) } else { None };
        let mut work = Work {
            content,
            opening,
            _claim: claim,
            record,
            file,
            hasher: Sha256::new(),
            offset: 0,
            written_out: 0,
            feed,
            accepted: None,
            shared,
        };
        match work.shared_size() {
            Some(size) => work.offset = size,
            None => work.take_up()?,
        }
        Ok(work)
    }

    fn shared_size(&self) -> Option<u64> {
        let digest = self.shared.as_ref()?;
        std::fs::metadata(self.content.blob_path(digest)).ok().map(|file| file.len())
    }

    /// Hashes what an earlier request wrote.
    fn take_up(&mut self) -> Result<()> {
        let mut buffer = vec![0; READ_LEN];
        loop {
            let count = self.file.read(&mut buffer).map_err(|error| self.failed("read", error))?;
            if count == 0 {
                return Ok(());
            }
            self.account(&buffer[..count]);
        }
    }

    fn opened(&self) -> Opened {
        let written_at = || Some(clock::timestamp(self.file.metadata().ok()?.modified().ok()?));
        let (offset, started_at) = (self.offset, self.record.started_at);
        let updated_at = if offset > 0 { written_at().or(started_at) } else { started_at };
        Opened { offset, started_at, updated_at }
    }

    /// Whoever takes the ingest up, or asks for it, finds it as it was told to this request.
    fn leave(&self) {
        if let Some(accepted) = self.accepted {
            // Else it is the time of the write, a moment later.
            let _ = self.file.set_modified(accepted);
        }
    }

    fn write(&mut self, data: Bytes, accepted: SystemTime) -> Result<()> {
        self.accepted = Some(accepted);
        self.file.write_all(&data).map_err(|error| self.failed("write", error))?;
        self.account(&data);
        if self.offset - self.written_out >= WRITE_OUT {
            // Only a hint: the sync at the end is what counts.
            let _ = sys::begin_write_out(self.file.as_fd(), self.written_out, self.offset - self.written_out);
            self.written_out = self.offset;
        }
        Ok(())
    }

    /// Bytes that are in the file now.
    fn account(&mut self, data: &[u8]) {
        if let Some(feed) = &self.feed {
            feed.push(data.len());
        }
        self.hasher.update(data);
        self.offset += data.len() as u64;
    }

    fn reset(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(|error| self.failed("truncate", error))?;
        io::Seek::rewind(&mut self.file).map_err(|error| self.failed("rewind", error))?;
        self.hasher = Sha256::new();
        self.offset = 0;
        self.written_out = 0;
        self.shared = None;
        if self.feed.take().is_some() {
            self.feed = begin_unpacking(self.content, self.opening, &self.file);
        }
        Ok(())
    }

    fn digest(&self) -> Digest {
        match &self.shared {
            Some(digest) => digest.clone(),
            None => Digest::from_sha256(&self.hasher.clone().finalize()),
        }
    }

    fn commit(mut self, commit: Commit) -> Result<Digest> {
        let digest = self.digest();
        let outcome = self.publish(&digest, &commit);
        match (outcome, self.feed.take()) {
            (Ok(()), Some(feed)) => self.content.provisional.keep(digest.clone(), self.offset, feed),
            (Ok(()), None) => {}
            (Err(error), _) => {
                if matches!(error, Error::Exists { .. }) {
                    hold_what_is_there(self.content, self.opening, &digest)?;
                }
                return Err(self.give_up(error));
            }
        }
        Ok(digest)
    }

    /// Content that is not what was promised when it was begun will not become so: the ingest goes. After other
    /// failures it stays; a digest or a size that the commit alone named may be wrong.
    fn give_up(&self, error: Error) -> Error {
        let is_wrong = match error {
            Error::DigestMismatch { .. } => {
                self.opening.expected.as_ref().is_some_and(|promised| *promised != self.digest())
            }
            Error::SizeMismatch { .. } => self.opening.total > 0 && self.opening.total != self.offset,
            Error::Exists { .. } => true,
            _ => false,
        };
        if is_wrong
            && let Err(error) =
                self.content.forget_ingest(&self.opening.namespace, &self.opening.reference, self.record.directory)
        {
            tracing::warn!(error = %Chain(&error), "remove a wrong ingest");
        }
        error
    }

    fn publish(&mut self, digest: &Digest, commit: &Commit) -> Result<()> {
        check_labels(&commit.labels)?;
        self.check(digest, commit)?;
        if self.shared.is_none() {
            self.file.sync_data().map_err(|error| self.failed("sync", error))?;
        }
        let _publishing = self.content.publishing();
        check_not_aborted(self.content, self.opening)?;
        // Another ref may have brought the same bytes meanwhile; the rename then replaces equals by equals.
        if self.shared.is_none() {
            let path = self.content.ingest_path(self.record.directory);
            std::fs::rename(path, self.content.blob_path(digest)).map_err(|error| self.failed("publish", error))?;
        } else {
            self.content.info_of_file(digest)?;
        }
        let recorded = self.record_blob(digest, commit);
        if recorded.is_err() && self.shared.is_none() {
            self.take_back(digest);
        }
        recorded
    }

    /// What has no record is no blob: its lease has ended, or the store has no room. It is an ingest as before.
    fn take_back(&self, digest: &Digest) {
        let is_nobodys = self.content.store.read().and_then(|view| super::is_in_no_namespace(&view, digest));
        let path = self.content.ingest_path(self.record.directory);
        if is_nobodys.is_ok_and(|is_nobodys| is_nobodys)
            && let Err(error) = std::fs::rename(self.content.blob_path(digest), path)
        {
            tracing::warn!(%error, digest = digest.as_str(), "take a blob back that could not be recorded");
        }
    }

    fn check(&self, digest: &Digest, commit: &Commit) -> Result<()> {
        let what = || format!("ingest {:?}", self.opening.reference);
        if commit.total > 0 && commit.total != self.offset {
            return Err(Error::SizeMismatch { what: what(), expected: commit.total, actual: self.offset });
        }
        let expected = commit.expected.as_ref().or(self.opening.expected.as_ref());
        match expected {
            Some(expected) if expected != digest => {
                Err(Error::DigestMismatch { what: what(), expected: expected.to_string(), actual: digest.to_string() })
            }
            _ => Ok(()),
        }
    }

    fn record_blob(&self, digest: &Digest, commit: &Commit) -> Result<()> {
        let opening = self.opening;
        let now = Some(clock::now());
        let record = Blob {
            size: self.offset,
            labels: commit.labels.clone(),
            created_at: now,
            updated_at: now,
            is_unleased: opening.lease.is_none(),
        };
        self.content.store.write(Durability::Process, |writer| {
            let entry = key(&[opening.namespace.as_str(), digest.as_str()]);
            if writer.bytes(Table::Blobs, &entry)?.is_some() {
                return Err(Error::exists("content", digest.as_str()));
            }
            writer.put(&entry, &record)?;
            writer.remove(Table::Ingests, &key(&[opening.namespace.as_str(), &opening.reference]))?;
            lease::release(writer, &opening.namespace, opening.lease.as_deref(), lease::INGEST, &opening.reference)?;
            lease::hold(writer, &opening.namespace, opening.lease.as_deref(), lease::CONTENT, digest.as_str())
        })?;
        if self.shared.is_some() {
            self.remove_file();
        }
        Ok(())
    }

    fn remove_file(&self) {
        if let Err(error) = std::fs::remove_file(self.content.ingest_path(self.record.directory)) {
            tracing::warn!(error = %Chain(&error), "remove the file of an ingest");
        }
    }

    fn failed(&self, attempted: &str, source: io::Error) -> Error {
        Error::io(format!("{attempted} ingest {:?}", self.opening.reference), source)
    }
}

impl Content {
    fn info_of_file(&self, digest: &Digest) -> Result<()> {
        match std::fs::metadata(self.blob_path(digest)) {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::io(format!("look at blob {digest}"), error)),
        }
    }
}

/// The expected blob, if its bytes are here for another namespace. A file whose last record was just removed is not
/// mistaken for that: it goes within the same lock.
fn shared(content: &Content, expected: Option<&Digest>) -> Option<Digest> {
    let _publishing = content.publishing();
    expected.filter(|digest| content.info_of_file(digest).is_ok()).cloned()
}

fn begin_unpacking(content: &Content, opening: &Opening, file: &File) -> Option<Feed> {
    content.provisional.start(opening.unpack.as_ref()?, file)
}

fn begin(content: &Content, opening: &Opening, entry: &[u8]) -> Result<Ingest> {
    let record = Ingest {
        directory: content.next.fetch_add(1, Ordering::Relaxed),
        expected: opening.expected.as_ref().map(Digest::to_string).unwrap_or_default(),
        total: opening.total,
        started_at: Some(clock::now()),
    };
    content.store.write(Durability::Process, |writer| {
        writer.put(entry, &record)?;
        lease::hold(writer, &opening.namespace, opening.lease.as_deref(), lease::INGEST, &opening.reference)
    })?;
    Ok(record)
}

fn check_not_aborted(content: &Content, opening: &Opening) -> Result<()> {
    let Opening { namespace, reference, .. } = opening;
    let entry = key(&[namespace.as_str(), reference]);
    content.store.read()?.require::<Ingest>(&entry, reference).map(drop)
}

fn open_file(content: &Content, record: &Ingest, reference: &str) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(content.ingest_path(record.directory))
        .map_err(|error| Error::io(format!("open ingest {reference:?}"), error))
}
