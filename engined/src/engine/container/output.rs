//! Following a container's output: from its log, which the shim writes, to whoever reads.
//!
//! Nothing of the output goes through the engine but to a reader. A reader that is slow holds nobody up: it has the log's
//! file between itself and the container. One in the foreground pins what it has not read (see `strata_log`), so that it
//! loses nothing.
//!
//! The log is read on the runtime's own threads: what was just written is in the page cache, and a hand-over to a thread
//! that may block costs more than the read.

use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use strata_log::{Next, Reader, Record, Start, Stream};
use tokio::sync::futures::Notified;
use tokio::sync::{OwnedRwLockReadGuard, mpsc, watch};
use tokio::time::Instant;

use super::View;
use super::id::ContainerId;
use crate::engine::error::Error;
use crate::engine::log_watch::{LogWatch, Woken};
use crate::engine::stamp::Stamp;

/// Bytes up to which records are joined into a piece: pieces become messages, and those are bounded.
const PIECE_MAX: usize = 256 << 10;
/// How long after the program's end the log may go without its last record before the reader ends all the same: the shim
/// writes it before it tells of the end, so only a shim that died leaves it out.
const LAST_RECORD_PATIENCE: Duration = Duration::from_secs(1);
/// How often a reader looks by itself, should it not be woken.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// A piece of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Output {
        stream: Stream,
        data: Vec<u8>,
        /// Where a reader goes on after this.
        next: u64,
        at: Stamp,
    },
    /// So many bytes are gone: the reader came too late.
    Lost { bytes: u64, next: u64 },
}

/// When a reader ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// With what is there now.
    Now,
    /// When the run that is going on, or the next one, has ended, and its output with it. `ends` is how many runs had
    /// ended before it.
    EndOfRun { ends: u64 },
    /// When the container does not run any more.
    Stopped,
}

/// What a reader wants.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) from: Start,
    pub(crate) until: Until,
    /// Nothing may be lost: hold the container back if need be.
    pub(crate) pinned: bool,
    /// Pieces of different times are not joined.
    pub(crate) timed: bool,
    pub(crate) not_before: Option<Stamp>,
    pub(crate) not_after: Option<Stamp>,
    pub(crate) streams: Streams,
}

/// Which outputs a reader wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Streams {
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

impl Streams {
    pub(crate) const BOTH: Streams = Streams { stdout: true, stderr: true };

    fn has(self, stream: Stream) -> bool {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }
}

impl Wish {
    /// All of the first run of a container, in the foreground.
    pub(crate) fn first_run() -> Wish {
        Wish::plain(Start::Oldest, Until::EndOfRun { ends: 0 }, true)
    }

    pub(crate) fn plain(from: Start, until: Until, pinned: bool) -> Wish {
        Wish { from, until, pinned, timed: false, not_before: None, not_after: None, streams: Streams::BOTH }
    }

    fn wants(&self, record: &Record<'_>) -> bool {
        let at = Stamp::from_ns(record.time_ns);
        self.streams.has(record.stream) && self.not_before.is_none_or(|since| at >= since)
    }

    fn is_past(&self, record: &Record<'_>) -> bool {
        self.not_after.is_some_and(|until| Stamp::from_ns(record.time_ns) > until)
    }
}

/// A reader of one container's log, positioned.
pub(crate) struct Follower {
    container: ContainerId,
    reader: Reader,
    woken: Option<Woken>,
    view: watch::Receiver<View>,
    wish: Wish,
    /// The log stays as long as this is held.
    _log: OwnedRwLockReadGuard<()>,
}

/// Why a reader ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// What was wished for has been read.
    Read,
    /// Nobody listens any more.
    Unheard,
}

impl Follower {
    /// Opens the log in `directory` where the wish begins. What is written from now on is not missed.
    pub(crate) fn open(
        container: &ContainerId,
        directory: PathBuf,
        view: watch::Receiver<View>,
        watch: &LogWatch,
        wish: Wish,
        log: OwnedRwLockReadGuard<()>,
    ) -> Result<Follower, Error> {
        let failed = |source| Error::Log { container: container.short().to_owned(), source };
        // Watched before it is read: what comes between is read.
        let woken = match wish.until {
            Until::Now => None,
            _ => Some(watch.watch(&directory).map_err(failed)?),
        };
        let reader = match wish.pinned {
            true => Reader::open_pinned(&directory, wish.from),
            false => Reader::open(&directory, wish.from),
        };
        let reader = reader.map_err(failed)?;
        Ok(Follower { container: container.clone(), reader, woken, view, wish, _log: log })
    }

    /// Sends pieces until the wish is fulfilled.
    pub(crate) async fn follow(mut self, to: &mpsc::Sender<Piece>) -> Result<Ended, Error> {
        let mut progress = Progress { is_complete: false, ended: None };
        let notify = self.woken.as_ref().map(Woken::notify);
        loop {
            let woken = notify.as_deref().map(tokio::sync::Notify::notified);
            tokio::pin!(woken);
            if let Some(woken) = woken.as_mut().as_pin_mut() {
                woken.enable();
            }
            let pieces = match self.step(&mut progress)? {
                Step::Pieces(pieces) => pieces,
                Step::Again => continue,
                Step::Past => return Ok(Ended::Read),
                Step::Nothing => {
                    if self.is_fulfilled(&mut progress) {
                        return Ok(Ended::Read);
                    }
                    let patience = progress.ended.map_or(LOOK_EVERY, |_| LAST_RECORD_PATIENCE);
                    tokio::select! {
                        () = until_woken(woken.as_pin_mut()) => {}
                        changed = self.view.changed() => {
                            // The container is gone, and its log with it: read what this reader still holds.
                            if changed.is_err() { self.wish.until = Until::Now; }
                        }
                        () = to.closed() => return Ok(Ended::Unheard),
                        () = tokio::time::sleep(patience) => {}
                    }
                    continue;
                }
            };
            for piece in pieces {
                if to.send(piece).await.is_err() {
                    return Ok(Ended::Unheard);
                }
            }
        }
    }

    fn step(&mut self, progress: &mut Progress) -> Result<Step, Error> {
        let next = self.reader.next();
        let failed = |source| Error::Log { container: self.container.short().to_owned(), source };
        Ok(match next.map_err(failed)? {
            Next::Records(batch) => {
                progress.is_complete = false;
                let mut joined = Joined { pieces: Vec::new(), timed: self.wish.timed };
                for record in batch {
                    if self.wish.is_past(&record) {
                        return Ok(if joined.pieces.is_empty() { Step::Past } else { Step::Pieces(joined.pieces) });
                    }
                    if self.wish.wants(&record) {
                        joined.add(&record);
                    }
                }
                Step::Pieces(joined.pieces)
            }
            Next::Lost { bytes } => Step::Pieces(vec![Piece::Lost { bytes, next: self.reader.offset() }]),
            Next::End { .. } => {
                progress.is_complete = true;
                Step::Again
            }
            Next::Pending => Step::Nothing,
        })
    }

    /// Whether the end that was wished for has come; the log has been read as far as it goes.
    fn is_fulfilled(&mut self, progress: &mut Progress) -> bool {
        let view = self.view.borrow_and_update();
        let is_over = match self.wish.until {
            Until::Now => return true,
            Until::EndOfRun { ends } => view.ends > ends || view.is_gone,
            Until::Stopped => !view.life.phase.is_up(),
        };
        drop(view);
        if !is_over {
            progress.ended = None;
            return false;
        }
        let since = *progress.ended.get_or_insert_with(Instant::now);
        progress.is_complete || since.elapsed() >= LAST_RECORD_PATIENCE
    }
}

/// Returns when the log grew; never when it is not watched.
async fn until_woken(woken: Option<Pin<&mut Notified<'_>>>) {
    match woken {
        Some(woken) => woken.await,
        None => std::future::pending().await,
    }
}

struct Progress {
    /// The last that was read is the end of a run's output.
    is_complete: bool,
    /// Since when the program is known to have ended.
    ended: Option<Instant>,
}

enum Step {
    Pieces(Vec<Piece>),
    Again,
    /// What follows is later than was wished for.
    Past,
    Nothing,
}

/// Records of one batch, joined where nobody can tell.
struct Joined {
    pieces: Vec<Piece>,
    timed: bool,
}

impl Joined {
    fn add(&mut self, record: &Record<'_>) {
        if let Some(Piece::Output { stream, data, next, at }) = self.pieces.last_mut() {
            let is_same = *stream == record.stream && (!self.timed || at.ns() == record.time_ns);
            if is_same && data.len() + record.payload.len() <= PIECE_MAX {
                data.extend_from_slice(record.payload);
                *next = record.next;
                return;
            }
        }
        // A record is never cut, whatever its length: a reader goes on between records, and none would be doubled.
        self.pieces.push(Piece::Output {
            stream: record.stream,
            data: record.payload.to_vec(),
            next: record.next,
            at: Stamp::from_ns(record.time_ns),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(stream: Stream, time_ns: u64, offset: u64, payload: &[u8]) -> Record<'_> {
        Record { stream, time_ns, offset, next: offset + 24 + payload.len() as u64, payload }
    }

    #[test]
    fn records_of_one_stream_are_joined() {
        let mut joined = Joined { pieces: Vec::new(), timed: false };
        joined.add(&record(Stream::Stdout, 1, 40, b"ab"));
        joined.add(&record(Stream::Stdout, 2, 66, b"cd"));
        joined.add(&record(Stream::Stderr, 3, 92, b"x"));
        let Piece::Output { data, next, .. } = &joined.pieces[0] else { panic!() };
        assert_eq!((data.as_slice(), *next, joined.pieces.len()), (&b"abcd"[..], 92, 2));
        let mut timed = Joined { pieces: Vec::new(), timed: true };
        timed.add(&record(Stream::Stdout, 1, 40, b"ab"));
        timed.add(&record(Stream::Stdout, 2, 66, b"cd"));
        assert_eq!(timed.pieces.len(), 2);
    }

    #[test]
    fn a_piece_grows_no_larger_than_its_bound() {
        let half = vec![7; PIECE_MAX / 2 + 1];
        let mut joined = Joined { pieces: Vec::new(), timed: false };
        joined.add(&record(Stream::Stdout, 1, 40, &half));
        joined.add(&record(Stream::Stdout, 1, 64 + half.len() as u64, &half));
        assert_eq!(joined.pieces.len(), 2);
    }
}
