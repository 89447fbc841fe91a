//! The writer: appends records, begins segments, removes old ones, holds back.
//!
//! ```text
//!            append            append: no space, reader too far behind, I/O error
//! Writing ──────────▶ Writing ────────────────────────────────────────▶ Held
//!    ▲                                                                    │
//!    └────────────────────── append again, and it fits ───────────────────┘
//! ```
//! Held is no error: the caller keeps the bytes, stops reading the container's pipe and offers them again later.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::format::{
    Kind, RECORD_HEADER_LEN, RECORD_MAX, RecordHeader, SEGMENT_HEADER_LEN, STATE_AT, SegmentHeader, State, Stream,
};
use crate::segment::{self, Opened, Segment, failed};
use crate::{Error, Limits, PINNED_MAX, Target, pin};

/// Why the container is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The file system, or a quota, is full.
    Space,
    /// A pinned reader is more than [`PINNED_MAX`] behind.
    Reader,
    /// The file system failed with this error number.
    Failure(i32),
}

impl Hold {
    fn from_errno(error: Errno) -> Hold {
        match error {
            Errno::NOSPC | Errno::DQUOT => Hold::Space,
            other => Hold::Failure(other.raw_os_error()),
        }
    }

    const fn state(self) -> State {
        match self {
            Hold::Space => State::HeldBySpace,
            Hold::Reader => State::HeldByReader,
            Hold::Failure(_) => State::HeldByError,
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hold::Space => f.write_str("no space for the container's log"),
            Hold::Reader => f.write_str("a pinned reader of the container's log is too far behind"),
            Hold::Failure(errno) => {
                write!(f, "the container's log cannot be written: {}", io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

/// Not everything was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// So many bytes of the payload are in the log; offer the others again.
    pub taken: usize,
    /// Why.
    pub hold: Hold,
}

/// The one writer of a log. Dropping it without [`Writer::finish`] is what a crash looks like.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    /// Locked: one writer at a time.
    directory: OwnedFd,
    segment: Segment,
    /// Offsets of the segments before the open one.
    older: VecDeque<u64>,
    limits: Limits,
    /// Where the next record goes.
    offset: u64,
    /// Bytes of output before it.
    position: u64,
    state: State,
    heeds_readers: bool,
}

impl Writer {
    /// Opens the log that `target` names, making it where there is none. After a crash the record that was cut off is
    /// removed.
    ///
    /// # Errors
    /// Another writer has it, its last segment is not of this format, or the file system refuses.
    pub fn open(target: &Target, now_ns: u64) -> Result<Writer, Error> {
        let path = target.directory.clone();
        let directory = make_directory(&path)?;
        let mut older = VecDeque::from(segment::list(directory.as_fd()).map_err(|error| list_failed(&path, error))?);
        let (segment, offset, position) = match last_segment(&directory, &path, &mut older)? {
            Some(segment) => resume(&path, segment)?,
            None => begin(&directory, &path, 0, 0, now_ns)?,
        };
        let state = State::from_number(segment.header.state).unwrap_or(State::HeldByError);
        let limits = target.limits;
        let mut writer =
            Writer { path, directory, segment, older, limits, offset, position, state, heeds_readers: true };
        writer.set_state(State::Writing);
        Ok(writer)
    }

    /// The offset after the last record.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes of output that the log has ever held.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// From now on no reader holds the container back: the program has ended, and what its pipes still hold is little.
    pub fn ignore_readers(&mut self) {
        self.heeds_readers = false;
    }

    /// Appends output. The bytes are in the kernel's hands when this returns; the process may die, they do not.
    ///
    /// # Errors
    /// Not an error of the log but a state: see [`Held`].
    pub fn append(&mut self, stream: Stream, now_ns: u64, payload: &[u8]) -> Result<(), Held> {
        let mut taken = 0;
        for part in payload.chunks(RECORD_MAX) {
            self.record(Kind::Output(stream), now_ns, part).map_err(|hold| Held { taken, hold })?;
            taken += part.len();
        }
        Ok(())
    }

    /// Notes that the output of this run is complete, so that those who follow it stop.
    ///
    /// # Errors
    /// As [`Writer::append`]; readers hold nothing back here.
    pub fn finish(&mut self, now_ns: u64) -> Result<(), Held> {
        self.ignore_readers();
        self.record(Kind::End, now_ns, &[]).map_err(|hold| Held { taken: 0, hold })?;
        self.set_state(State::Ended);
        Ok(())
    }

    fn record(&mut self, kind: Kind, time_ns: u64, payload: &[u8]) -> Result<(), Hold> {
        let written = self.make_room(payload.len(), time_ns).and_then(|()| self.write(kind, time_ns, payload));
        match written {
            Ok(()) => self.set_state(State::Writing),
            Err(hold) => self.set_state(hold.state()),
        }
        written
    }

    /// Begins another segment when the record would make this one too long.
    fn make_room(&mut self, payload_len: usize, now_ns: u64) -> Result<(), Hold> {
        let used = self.offset - self.segment.header.offset;
        let needed = (RECORD_HEADER_LEN + payload_len) as u64;
        if used + needed <= self.limits.segment_bytes || used <= SEGMENT_HEADER_LEN as u64 {
            return Ok(());
        }
        self.remove_old()?;
        let (segment, offset, _) = begin(&self.directory, &self.path, self.offset, self.position, now_ns)
            .map_err(|error| Hold::from_errno(errno_of(&error)))?;
        self.older.push_back(self.segment.header.offset);
        self.segment = segment;
        self.offset = offset;
        self.state = State::Writing;
        Ok(())
    }

    /// Removes the oldest segments while the log is too long and nobody pins them.
    fn remove_old(&mut self) -> Result<(), Hold> {
        while let Some(&oldest) = self.older.front() {
            if self.offset - oldest <= self.limits.keep_bytes {
                break;
            }
            let next = self.older.get(1).copied().unwrap_or(self.segment.header.offset);
            match self.lowest_pin()? {
                Some(pinned) if pinned < next && self.heeds_readers => {
                    return if self.offset - pinned > PINNED_MAX { Err(Hold::Reader) } else { Ok(()) };
                }
                Some(pinned) if pinned < next => return Ok(()),
                _ => self.remove(oldest)?,
            }
        }
        Ok(())
    }

    fn lowest_pin(&self) -> Result<Option<u64>, Hold> {
        pin::lowest(self.directory.as_fd()).map_err(|error| Hold::Failure(error.raw_os_error().unwrap_or(0)))
    }

    fn remove(&mut self, oldest: u64) -> Result<(), Hold> {
        match rustix::fs::unlinkat(&self.directory, segment::name(oldest), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(Hold::from_errno(error)),
        }
        self.older.pop_front();
        Ok(())
    }

    /// Writes one record in place. What a full disk cut off is no record to any reader, and is written over next time.
    fn write(&mut self, kind: Kind, time_ns: u64, payload: &[u8]) -> Result<(), Hold> {
        let header = RecordHeader { kind, length: payload.len() as u32, time_ns, position: self.position };
        let head = header.to_bytes(self.offset, payload);
        let at = self.offset - self.segment.header.offset;
        write_all_at(&self.segment.file, &head, payload, at).map_err(Hold::from_errno)?;
        self.offset += (RECORD_HEADER_LEN + payload.len()) as u64;
        self.position += payload.len() as u64;
        Ok(())
    }

    /// Tells readers and people what the writer does. The bytes exist already, so a full disk does not refuse them.
    fn set_state(&mut self, state: State) {
        if self.state == state {
            return;
        }
        if rustix::io::pwrite(&self.segment.file, &(state as u32).to_le_bytes(), STATE_AT).is_ok() {
            self.state = state;
        }
    }
}

fn write_all_at(file: &OwnedFd, head: &[u8], payload: &[u8], at: u64) -> Result<(), Errno> {
    let whole = head.len() + payload.len();
    let mut done = 0;
    while done < whole {
        let slices =
            [IoSlice::new(&head[done.min(head.len())..]), IoSlice::new(&payload[done.saturating_sub(head.len())..])];
        match rustix::io::pwritev(file, &slices, at + done as u64) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn make_directory(path: &Path) -> Result<OwnedFd, Error> {
    let io_failed = |attempt, error: Errno| Error::Io { attempt, path: path.to_owned(), source: error.into() };
    let directory = match segment::open_directory(path) {
        Err(Errno::NOENT) => {
            rustix::fs::mkdir(path, Mode::RWXU).map_err(|error| io_failed("make directory", error))?;
            segment::open_directory(path)
        }
        other => other,
    };
    let directory = directory.map_err(|error| io_failed("open directory", error))?;
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(directory),
        Err(Errno::WOULDBLOCK) => Err(Error::Busy { path: path.to_owned() }),
        Err(error) => Err(io_failed("lock", error)),
    }
}

fn list_failed(path: &Path, source: io::Error) -> Error {
    Error::Io { attempt: "list", path: path.to_owned(), source }
}

/// Takes the last whole segment off `offsets`. One without a header was being made when its writer died: it is empty.
fn last_segment(directory: &OwnedFd, path: &Path, offsets: &mut VecDeque<u64>) -> Result<Option<Segment>, Error> {
    while let Some(offset) = offsets.pop_back() {
        match Segment::open(directory.as_fd(), path, offset, OFlags::RDWR)? {
            Opened::Segment(segment) => return Ok(Some(segment)),
            Opened::Absent => {}
            Opened::Headless => rustix::fs::unlinkat(directory, segment::name(offset), AtFlags::empty())
                .map_err(|error| failed("remove", path, offset, error))?,
        }
    }
    Ok(None)
}

/// Goes on after the last whole record of `segment`.
fn resume(path: &Path, segment: Segment) -> Result<(Segment, u64, u64), Error> {
    let base = segment.header.offset;
    let (offset, position) = segment::end_of_records(&segment).map_err(|error| failed("read", path, base, error))?;
    let len = segment.len().map_err(|error| failed("stat", path, base, error))?;
    if len > offset - base {
        rustix::fs::ftruncate(&segment.file, offset - base).map_err(|error| failed("truncate", path, base, error))?;
    }
    Ok((segment, offset, position))
}

/// Makes the segment that begins at `offset`; nothing is left of it when that fails.
fn begin(
    directory: &OwnedFd,
    path: &Path,
    offset: u64,
    position: u64,
    created_ns: u64,
) -> Result<(Segment, u64, u64), Error> {
    let name = segment::name(offset);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, &name, flags, Mode::RUSR | Mode::WUSR | Mode::RGRP)
        .map_err(|error| failed("make", path, offset, error))?;
    let header = SegmentHeader { offset, position, created_ns, state: State::Writing as u32 };
    if let Err(error) = write_all_at(&file, &header.to_bytes(), &[], 0) {
        // The write is the error to report; a headless segment is removed at the next open, too.
        let _ = rustix::fs::unlinkat(directory, &name, AtFlags::empty());
        return Err(failed("write", path, offset, error));
    }
    Ok((Segment { file, header }, offset + SEGMENT_HEADER_LEN as u64, position))
}

fn errno_of(error: &Error) -> Errno {
    Errno::from_raw_os_error(error.raw_os_error().unwrap_or_else(|| Errno::IO.raw_os_error()))
}
