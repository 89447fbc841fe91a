//! Segments as files, and a window that moves over one.

use std::ffi::CStr;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::Error;
use crate::format::{self, Cut, Kind, RECORD_HEADER_LEN, RecordHeader, SEGMENT_HEADER_LEN, STATE_AT, SegmentHeader};

/// Bytes of the windows of readers: a syscall for each fourth of a megabyte, and it still fits a second-level cache.
const WINDOW_LEN: usize = 256 << 10;

/// The file name of the segment that begins at `offset`.
pub(crate) fn name(offset: u64) -> String {
    format!("{offset:016x}.seg")
}

fn offset_of(name: &CStr) -> Option<u64> {
    let digits = name.to_str().ok()?.strip_suffix(".seg")?;
    if digits.len() == 16 { u64::from_str_radix(digits, 16).ok() } else { None }
}

/// The offsets of all segments in `directory`, ascending.
pub(crate) fn list(directory: BorrowedFd<'_>) -> io::Result<Vec<u64>> {
    let mut offsets = Vec::new();
    for entry in Dir::read_from(directory)? {
        offsets.extend(offset_of(entry?.file_name()));
    }
    offsets.sort_unstable();
    Ok(offsets)
}

/// Opens the directory of a log.
pub(crate) fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// An [`Error::Io`] for the segment at `offset`.
pub(crate) fn failed(attempt: &'static str, directory: &Path, offset: u64, error: impl Into<io::Error>) -> Error {
    Error::Io { attempt, path: directory.join(name(offset)), source: error.into() }
}

/// An open segment with a whole header.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) file: OwnedFd,
    pub(crate) header: SegmentHeader,
}

/// What opening a segment found.
pub(crate) enum Opened {
    Segment(Segment),
    /// No file of that name.
    Absent,
    /// The file has no whole header: it is being made, or a crash left it.
    Headless,
}

impl Segment {
    pub(crate) fn open(directory: BorrowedFd<'_>, path: &Path, offset: u64, access: OFlags) -> Result<Opened, Error> {
        let file = match rustix::fs::openat(directory, name(offset), access | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(Opened::Absent),
            Err(error) => return Err(failed("open", path, offset, error)),
        };
        let mut bytes = [0; SEGMENT_HEADER_LEN];
        let count = read_at(file.as_fd(), &mut bytes, 0).map_err(|error| failed("read", path, offset, error))?;
        if count < SEGMENT_HEADER_LEN {
            return Ok(Opened::Headless);
        }
        match SegmentHeader::from_bytes(&bytes) {
            Some(header) if header.offset == offset => Ok(Opened::Segment(Segment { file, header })),
            _ => Err(Error::Foreign { path: path.join(name(offset)) }),
        }
    }

    /// Offset of the first record.
    pub(crate) fn first_record(&self) -> u64 {
        self.header.offset + SEGMENT_HEADER_LEN as u64
    }

    /// The state that stands in the file now.
    pub(crate) fn state(&self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        read_at(self.file.as_fd(), &mut bytes, STATE_AT)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Whether the writer has removed it: it is readable as long as it is open.
    pub(crate) fn is_removed(&self) -> io::Result<bool> {
        Ok(rustix::fs::fstat(&self.file)?.st_nlink == 0)
    }

    pub(crate) fn len(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(&self.file)?.st_size as u64)
    }
}

/// Reads until `bytes` are full or the file ends.
fn read_at(file: BorrowedFd<'_>, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(file, &mut bytes[done..], at + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

/// Records that a window stepped over.
pub(crate) struct Taken {
    bytes: Range<usize>,
    /// Of the first of them.
    pub(crate) offset: u64,
    /// Bytes of output up to their end.
    pub(crate) position: u64,
}

/// A stretch of a segment in memory.
#[derive(Debug)]
pub(crate) struct Window {
    bytes: Vec<u8>,
    begin: usize,
    end: usize,
    /// Of `bytes[begin]`.
    offset: u64,
}

impl Window {
    pub(crate) fn at(offset: u64) -> Window {
        Window { bytes: Vec::new(), begin: 0, end: 0, offset }
    }

    /// The offset of the next byte.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Goes to another offset and forgets what was read.
    pub(crate) fn seek(&mut self, offset: u64) {
        (self.begin, self.end, self.offset) = (0, 0, offset);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.begin == self.end
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.begin..self.end]
    }

    /// What the next bytes are.
    pub(crate) fn cut(&self) -> Cut<'_> {
        format::cut(self.rest(), self.offset)
    }

    pub(crate) fn skip_record(&mut self, header: RecordHeader) {
        let length = RECORD_HEADER_LEN + header.length as usize;
        self.begin += length;
        self.offset += length as u64;
    }

    /// Steps over all whole records of output that are here; `None` when there are none.
    pub(crate) fn take_output(&mut self) -> Option<Taken> {
        let (from, offset) = (self.begin, self.offset);
        let mut position = None;
        while let Cut::Record(header @ RecordHeader { kind: Kind::Output(_), .. }, _) = self.cut() {
            position = Some(header.position + u64::from(header.length));
            self.skip_record(header);
        }
        position.map(|position| Taken { bytes: from..self.begin, offset, position })
    }

    /// The bytes of what was taken; the window was not filled since.
    pub(crate) fn taken(&self, taken: &Taken) -> &[u8] {
        &self.bytes[taken.bytes.clone()]
    }

    /// Reads on; the number of new bytes, 0 at the end of the file.
    pub(crate) fn fill(&mut self, segment: &Segment) -> io::Result<usize> {
        self.bytes.copy_within(self.begin..self.end, 0);
        self.end -= self.begin;
        self.begin = 0;
        let wanted = match self.cut() {
            Cut::Short(whole) => whole.max(WINDOW_LEN),
            _ => WINDOW_LEN,
        };
        if self.bytes.len() < wanted {
            self.bytes.resize(wanted, 0);
        }
        let at = self.offset + self.end as u64 - segment.header.offset;
        let count = read_at(segment.file.as_fd(), &mut self.bytes[self.end..], at)?;
        self.end += count;
        Ok(count)
    }

    /// The next record, reading on where needed; `None` where whole records end.
    pub(crate) fn next_record(&mut self, segment: &Segment) -> io::Result<Option<RecordHeader>> {
        loop {
            match self.cut() {
                Cut::Record(header, _) => return Ok(Some(header)),
                Cut::Damaged => return Ok(None),
                Cut::Short(_) => {}
            }
            if self.fill(segment)? == 0 {
                return Ok(None);
            }
        }
    }

    /// The payload of the record that [`Window::next_record`] just found.
    pub(crate) fn payload(&self, header: RecordHeader) -> &[u8] {
        &self.rest()[RECORD_HEADER_LEN..RECORD_HEADER_LEN + header.length as usize]
    }
}

/// Where whole records end in `segment`, and the position there.
pub(crate) fn end_of_records(segment: &Segment) -> io::Result<(u64, u64)> {
    if let Some(end) = clean_end(segment)? {
        return Ok(end);
    }
    let mut window = Window::at(segment.first_record());
    let mut position = segment.header.position;
    while let Some(header) = window.next_record(segment)? {
        window.skip_record(header);
        position = header.position;
        if let Kind::Output(_) = header.kind {
            position += u64::from(header.length);
        }
    }
    Ok((window.offset(), position))
}

/// The end of a segment whose last bytes are the record that ends a run: no need to look at the others.
fn clean_end(segment: &Segment) -> io::Result<Option<(u64, u64)>> {
    let len = segment.len()?;
    let Some(at) = len.checked_sub(RECORD_HEADER_LEN as u64).filter(|at| *at >= SEGMENT_HEADER_LEN as u64) else {
        return Ok(None);
    };
    let mut bytes = [0; RECORD_HEADER_LEN];
    read_at(segment.file.as_fd(), &mut bytes, at)?;
    match format::cut(&bytes, segment.header.offset + at) {
        Cut::Record(RecordHeader { kind: Kind::End, position, .. }, _) => {
            Ok(Some((segment.header.offset + len, position)))
        }
        _ => Ok(None),
    }
}
