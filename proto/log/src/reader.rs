//! The reader: whole records, in order, from wherever one wants to begin.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::Error;
use crate::format::{self, Cut, Kind, RECORD_HEADER_LEN, RecordHeader, State, Stream};
use crate::pin::{self, Pin};
use crate::segment::{self, Opened, Segment, Taken, Window, failed};

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the oldest record there is.
    Oldest,
    /// With what is written from now on.
    Newest,
    /// At an offset that a reader or writer told.
    Offset(u64),
    /// With the first record that is not older than this, in nanoseconds since 1970.
    Time(u64),
    /// With the last so many lines, of both streams together; an unfinished line counts.
    Lines(u64),
}

/// What a reader finds.
#[derive(Debug)]
pub enum Next<'a> {
    /// Output.
    Records(Batch<'a>),
    /// The log was shortened before the reader came here: at most so many bytes of output are gone.
    Lost { bytes: u64 },
    /// The output of a run is complete. More comes only if the container is started again.
    End { time_ns: u64 },
    /// Nothing for now: wait with a [`crate::Watcher`], or stop.
    Pending,
}

/// Records that were read at once; an iterator over [`Record`]s.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    offset: u64,
    bytes: &'a [u8],
    /// Bytes of the first payload that do not count.
    skip: usize,
}

/// One piece of output, as it was read from the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub stream: Stream,
    /// Nanoseconds since 1970 when it was read from the container.
    pub time_ns: u64,
    /// Where it is in the log.
    pub offset: u64,
    /// Where the next one is: a reader that begins there goes on after this record.
    pub next: u64,
    /// What the container wrote.
    pub payload: &'a [u8],
}

/// Reads a log. Any number may, also while it is written.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    directory: OwnedFd,
    segment: Option<Segment>,
    window: Window,
    /// Bytes of output before the next record, once that is known.
    position: Option<u64>,
    /// Bytes of the next record's payload that were not asked for.
    skip: usize,
    pin: Option<Pin>,
    /// To be told with the next call.
    lost: u64,
}

impl Reader {
    /// Opens the log in `directory`, which must exist; the writer may come later.
    ///
    /// # Errors
    /// The directory or a segment cannot be opened, or there is no record at the offset asked for.
    pub fn open(directory: &Path, start: Start) -> Result<Reader, Error> {
        let handle = segment::open_directory(directory).map_err(|error| Error::Io {
            attempt: "open directory",
            path: directory.to_owned(),
            source: error.into(),
        })?;
        let mut reader = Reader {
            path: directory.to_owned(),
            directory: handle,
            segment: None,
            window: Window::at(0),
            position: None,
            skip: 0,
            pin: None,
            lost: 0,
        };
        reader.go_to(start)?;
        Ok(reader)
    }

    /// As [`Reader::open`], and from then on nothing is removed that was not read. The writer holds the container back
    /// when this reader is more than [`crate::PINNED_MAX`] behind.
    ///
    /// # Errors
    /// As [`Reader::open`], or the pin cannot be made.
    pub fn open_pinned(directory: &Path, start: Start) -> Result<Reader, Error> {
        let mut reader = Reader::open(directory, start)?;
        let offset = reader.window.offset();
        reader.pin = Some(Pin::new(reader.directory.as_fd(), &reader.path, offset)?);
        Ok(reader)
    }

    /// Where the next record is.
    pub fn offset(&self) -> u64 {
        self.window.offset()
    }

    /// What the writer was doing last; `None` before it came.
    pub fn state(&self) -> Option<State> {
        State::from_number(self.segment.as_ref()?.state().ok()?)
    }

    /// The next records. Asking again says that the last ones are done with: a pin moves on then.
    ///
    /// # Errors
    /// A file cannot be read, or is not of this format.
    #[expect(clippy::should_implement_trait, reason = "what is returned borrows from the reader")]
    pub fn next(&mut self) -> Result<Next<'_>, Error> {
        self.move_pin()?;
        match self.find()? {
            Found::Output(taken) => Ok(Next::Records(self.batch(&taken))),
            Found::End(time_ns) => Ok(Next::End { time_ns }),
            Found::Lost => Ok(Next::Lost { bytes: std::mem::take(&mut self.lost) }),
            Found::Nothing => Ok(Next::Pending),
        }
    }

    fn move_pin(&mut self) -> Result<(), Error> {
        let offset = self.window.offset();
        let Some(pin) = &mut self.pin else { return Ok(()) };
        pin.advance(offset).map_err(|source| Error::Io {
            attempt: "move a pin in",
            path: pin::directory(&self.path),
            source,
        })
    }

    fn batch(&mut self, taken: &Taken) -> Batch<'_> {
        self.position = Some(taken.position);
        let skip = std::mem::take(&mut self.skip);
        Batch { offset: taken.offset, bytes: self.window.taken(taken), skip }
    }

    /// Moves to where there is something to tell.
    fn find(&mut self) -> Result<Found, Error> {
        loop {
            let Some(segment) = &self.segment else {
                if self.enter_first(self.window.offset())? {
                    continue;
                }
                return Ok(Found::Nothing);
            };
            if self.lost > 0 {
                return Ok(Found::Lost);
            }
            if let Some(taken) = self.window.take_output() {
                return Ok(Found::Output(taken));
            }
            if let Cut::Record(header, _) = self.window.cut() {
                self.window.skip_record(header);
                self.position = Some(header.position);
                return Ok(Found::End(header.time_ns));
            }
            let is_short = matches!(self.window.cut(), Cut::Short(_));
            if is_short && fill(&mut self.window, segment, &self.path)? > 0 {
                continue;
            }
            if !self.leave_segment()? {
                return Ok(Found::Nothing);
            }
        }
    }

    /// At the end of what is whole in this segment: goes to the next one if there is one.
    fn leave_segment(&mut self) -> Result<bool, Error> {
        let offset = self.window.offset();
        let is_cut_off = !self.window.is_empty();
        // What is in the window may have been half-written when it was read: the file is asked again next time.
        self.window.seek(offset);
        if self.enter(offset)? {
            return Ok(true);
        }
        let is_removed = match &self.segment {
            Some(segment) => segment.is_removed().map_err(|error| self.read_failed(error))?,
            None => true,
        };
        if is_cut_off || is_removed { self.enter_first(offset + 1) } else { Ok(false) }
    }

    /// Enters the segment that begins at `offset`, if there is one.
    fn enter(&mut self, offset: u64) -> Result<bool, Error> {
        if self.segment.as_ref().is_some_and(|segment| segment.header.offset == offset) {
            return Ok(false);
        }
        match Segment::open(self.directory.as_fd(), &self.path, offset, OFlags::RDONLY)? {
            Opened::Segment(segment) => {
                self.lost += self.position.map_or(0, |seen| segment.header.position.saturating_sub(seen));
                self.position = Some(segment.header.position);
                self.window.seek(segment.first_record());
                self.segment = Some(segment);
                Ok(true)
            }
            Opened::Absent | Opened::Headless => Ok(false),
        }
    }

    /// Enters the first segment at or after `offset`. What was skipped counts as lost.
    fn enter_first(&mut self, offset: u64) -> Result<bool, Error> {
        for candidate in self.list()?.into_iter().filter(|candidate| *candidate >= offset) {
            let unknown = self.position.is_none();
            if self.enter(candidate)? {
                if unknown {
                    self.lost += candidate - offset;
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn list(&self) -> Result<Vec<u64>, Error> {
        segment::list(self.directory.as_fd()).map_err(|source| Error::Io {
            attempt: "list",
            path: self.path.clone(),
            source,
        })
    }

    fn read_failed(&self, error: io::Error) -> Error {
        failed("read", &self.path, self.segment.as_ref().map_or(0, |segment| segment.header.offset), error)
    }

    fn go_to(&mut self, start: Start) -> Result<(), Error> {
        let segments = self.list()?;
        match start {
            Start::Oldest => self.go_to_oldest(&segments),
            Start::Newest => self.go_to_newest(&segments),
            Start::Offset(offset) => self.go_to_offset(&segments, offset),
            Start::Time(time_ns) => self.go_to_time(&segments, time_ns),
            Start::Lines(lines) => self.go_to_lines(&segments, lines),
        }
    }

    /// Opens one of the listed segments; `false` when it is gone again.
    fn begin_in(&mut self, offset: u64) -> Result<bool, Error> {
        self.position = None;
        self.segment = None;
        self.enter(offset)
    }

    fn go_to_oldest(&mut self, segments: &[u64]) -> Result<(), Error> {
        for &offset in segments {
            if self.begin_in(offset)? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn go_to_newest(&mut self, segments: &[u64]) -> Result<(), Error> {
        for &offset in segments.iter().rev() {
            if self.begin_in(offset)? {
                return self.skip_while(|_, _| true);
            }
        }
        Ok(())
    }

    fn go_to_offset(&mut self, segments: &[u64], offset: u64) -> Result<(), Error> {
        let holder = segments.iter().rev().find(|&&base| base <= offset);
        let Some(&base) = holder else {
            self.go_to_oldest(segments)?;
            // Offsets before the first segment are gone, or, where there is none, not yet written.
            if self.segment.is_none() {
                return if offset == 0 { Ok(()) } else { Err(Error::NoRecord { offset }) };
            }
            self.lost = segments.first().map_or(0, |first| first - offset);
            return Ok(());
        };
        if !self.begin_in(base)? {
            return Err(Error::NoRecord { offset });
        }
        // The very beginning of a segment is where the previous one ended: an offset that readers are told.
        if offset == base {
            return Ok(());
        }
        self.skip_while(|_, at| at < offset)?;
        if self.window.offset() == offset { Ok(()) } else { Err(Error::NoRecord { offset }) }
    }

    fn go_to_time(&mut self, segments: &[u64], time_ns: u64) -> Result<(), Error> {
        for &offset in segments.iter().rev() {
            let is_entered = self.begin_in(offset)?;
            let created = self.segment.as_ref().map(|segment| segment.header.created_ns);
            if is_entered && created.is_some_and(|created| created <= time_ns) {
                break;
            }
        }
        if self.segment.is_none() {
            return self.go_to_oldest(segments);
        }
        self.skip_while(|header, _| header.time_ns < time_ns)
    }

    /// Counts lines from the newest segment back, then skips what is too much in the segment where the count is full.
    fn go_to_lines(&mut self, segments: &[u64], wanted: u64) -> Result<(), Error> {
        let mut counted = 0;
        let mut is_last = true;
        for &offset in segments.iter().rev() {
            if !self.begin_in(offset)? {
                continue;
            }
            let (newlines, ends_open) = self.count_lines()?;
            counted += newlines + u64::from(is_last && ends_open);
            is_last = false;
            if counted >= wanted {
                self.begin_in(offset)?;
                return self.skip_lines(counted - wanted);
            }
        }
        self.go_to_oldest(segments)
    }

    /// Newlines from here to the end of the segment, and whether bytes follow the last one.
    fn count_lines(&mut self) -> Result<(u64, bool), Error> {
        let (mut newlines, mut ends_open) = (0, false);
        self.each_record(|_, _, payload| {
            newlines += newlines_in(payload);
            ends_open = payload.last().map_or(ends_open, |last| *last != b'\n');
            true
        })?;
        Ok((newlines, ends_open))
    }

    fn skip_lines(&mut self, mut lines: u64) -> Result<(), Error> {
        let mut skip = 0;
        self.each_record(|_, _, payload| {
            let here = newlines_in(payload);
            if lines == 0 || here < lines {
                lines -= here.min(lines);
                return lines > 0;
            }
            let at = after_newline(payload, lines);
            lines = 0;
            skip = if at < payload.len() { at } else { 0 };
            at == payload.len()
        })?;
        self.skip = skip;
        Ok(())
    }

    fn skip_while(&mut self, mut is_before: impl FnMut(RecordHeader, u64) -> bool) -> Result<(), Error> {
        self.each_record(|header, offset, _| is_before(header, offset))
    }

    /// Steps over records of this segment as long as `step` says so.
    fn each_record(&mut self, mut step: impl FnMut(RecordHeader, u64, &[u8]) -> bool) -> Result<(), Error> {
        let Some(segment) = &self.segment else { return Ok(()) };
        let read_failed = |error| failed("read", &self.path, segment.header.offset, error);
        while let Some(header) = self.window.next_record(segment).map_err(read_failed)? {
            if !step(header, self.window.offset(), self.window.payload(header)) {
                break;
            }
            self.window.skip_record(header);
            let length = if header.kind == Kind::End { 0 } else { u64::from(header.length) };
            self.position = Some(header.position + length);
        }
        Ok(())
    }
}

enum Found {
    Output(Taken),
    End(u64),
    Lost,
    Nothing,
}

fn fill(window: &mut Window, segment: &Segment, path: &Path) -> Result<usize, Error> {
    window.fill(segment).map_err(|error| failed("read", path, segment.header.offset, error))
}

fn newlines_in(bytes: &[u8]) -> u64 {
    // Short sums of bytes are what the compiler turns into vector instructions.
    bytes.chunks(255).map(|part| u64::from(part.iter().map(|byte| u8::from(*byte == b'\n')).sum::<u8>())).sum()
}

/// Where the byte after the `count`th newline is.
fn after_newline(bytes: &[u8], count: u64) -> usize {
    let mut newlines = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    newlines.nth(usize::try_from(count).unwrap_or(usize::MAX).saturating_sub(1)).unwrap_or(0)
}

impl Batch<'_> {
    /// Bytes of the log that it takes, more than its payloads have.
    pub fn log_bytes(&self) -> usize {
        self.bytes.len()
    }
}

impl<'a> Iterator for Batch<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        // The check was looked at when the batch was made.
        let (header, payload) = format::cut_checked(self.bytes)?;
        let Kind::Output(stream) = header.kind else { return None };
        let length = RECORD_HEADER_LEN + payload.len();
        let offset = self.offset;
        self.bytes = &self.bytes[length..];
        self.offset += length as u64;
        let skip = std::mem::take(&mut self.skip);
        Some(Record { stream, time_ns: header.time_ns, offset, next: self.offset, payload: &payload[skip..] })
    }
}
