//! The bytes of a segment: a header, then records. Numbers are little-endian.
//!
//! ```text
//! segment header, 40 bytes
//!   0  magic "strlog\x01\n"
//!   8  offset of the segment's first byte (this one), as in its name
//!  16  position: bytes of output before this segment
//!  24  time of its creation, nanoseconds since 1970
//!  32  state of the writer, see `State`: the one field that is written again; that of the last segment counts
//!  36  zero
//!
//! record, 24 bytes and the payload
//!   0  length of the payload (24 bits) and kind (8 bits): 1 stdout, 2 stderr, 4 end of a run's output
//!   4  check: CRC-32 over the record's offset (8 bytes), the rest of the header (bytes 0..4, 8..24) and the payload
//!   8  time, nanoseconds since 1970
//!  16  position: bytes of output before this record
//! ```
//!
//! The check covers the offset so that bytes which a container prints can never pass for records. A record that is
//! longer than what is left of the file, or whose check is wrong, was cut off by a crash or is being written now.

/// What a segment begins with; the digit is the version.
pub const MAGIC: [u8; 8] = *b"strlog\x01\n";
/// Bytes of a segment's header.
pub const SEGMENT_HEADER_LEN: usize = 40;
/// Where in a segment's header the writer's state is.
pub const STATE_AT: u64 = 32;
/// Bytes of a record's header.
pub const RECORD_HEADER_LEN: usize = 24;
/// Most bytes of one record's payload: a writer cuts longer ones.
pub const RECORD_MAX: usize = 1 << 20;

/// Which of a program's two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Stream {
    /// File descriptor 1, or a terminal.
    Stdout = 1,
    /// File descriptor 2.
    Stderr = 2,
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Output.
    Output(Stream),
    /// All output of a run has been written. Another run may follow.
    End,
}

impl Kind {
    const fn number(self) -> u8 {
        match self {
            Kind::Output(stream) => stream as u8,
            Kind::End => 4,
        }
    }

    const fn from_number(number: u8) -> Option<Kind> {
        match number {
            1 => Some(Kind::Output(Stream::Stdout)),
            2 => Some(Kind::Output(Stream::Stderr)),
            4 => Some(Kind::End),
            _ => None,
        }
    }
}

/// What the writer is doing, for people and readers; kept in the header of the last segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// It writes what comes.
    Writing = 0,
    /// The file system is full: the container is held back until it is not.
    HeldBySpace = 1,
    /// A pinned reader is too far behind: the container is held back until it has read.
    HeldByReader = 2,
    /// The file system failed in another way: the container is held back until it does not.
    HeldByError = 3,
    /// The output of the last run is complete.
    Ended = 4,
}

impl State {
    /// The state of that number.
    pub const fn from_number(number: u32) -> Option<State> {
        match number {
            0 => Some(State::Writing),
            1 => Some(State::HeldBySpace),
            2 => Some(State::HeldByReader),
            3 => Some(State::HeldByError),
            4 => Some(State::Ended),
            _ => None,
        }
    }
}

/// The head of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Offset of the segment's first byte.
    pub offset: u64,
    /// Bytes of output before it.
    pub position: u64,
    /// Nanoseconds since 1970.
    pub created_ns: u64,
    /// A [`State`], or one of a later version.
    pub state: u32,
}

impl SegmentHeader {
    /// As it stands in the file.
    pub fn to_bytes(self) -> [u8; SEGMENT_HEADER_LEN] {
        let mut bytes = [0; SEGMENT_HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.position.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.created_ns.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.state.to_le_bytes());
        bytes
    }

    /// Reads a header; `None` when the magic is another.
    pub fn from_bytes(bytes: &[u8; SEGMENT_HEADER_LEN]) -> Option<SegmentHeader> {
        if bytes[..8] != MAGIC {
            return None;
        }
        let state = [bytes[32], bytes[33], bytes[34], bytes[35]];
        Some(SegmentHeader {
            offset: u64_at(bytes, 8),
            position: u64_at(bytes, 16),
            created_ns: u64_at(bytes, 24),
            state: u32::from_le_bytes(state),
        })
    }
}

/// The head of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// What follows.
    pub kind: Kind,
    /// Bytes of the payload, at most [`RECORD_MAX`].
    pub length: u32,
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// Bytes of output before this record.
    pub position: u64,
}

impl RecordHeader {
    /// As it stands in the file at `offset`, with the check over `payload`.
    pub fn to_bytes(self, offset: u64, payload: &[u8]) -> [u8; RECORD_HEADER_LEN] {
        let mut bytes = [0; RECORD_HEADER_LEN];
        bytes[..4].copy_from_slice(&(self.length | u32::from(self.kind.number()) << 24).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.time_ns.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.position.to_le_bytes());
        let check = check(offset, &bytes, payload);
        bytes[4..8].copy_from_slice(&check.to_le_bytes());
        bytes
    }
}

/// What [`cut`] found at the beginning of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Cut<'a> {
    /// A whole record, its payload, and the bytes after it begin at `RECORD_HEADER_LEN + payload.len()`.
    Record(RecordHeader, &'a [u8]),
    /// More bytes are needed: so many in all.
    Short(usize),
    /// These bytes are no record.
    Damaged,
}

/// Reads the record that `bytes` begin with; they stand at `offset` in the log.
pub fn cut(bytes: &[u8], offset: u64) -> Cut<'_> {
    let Some(head) = bytes.first_chunk::<RECORD_HEADER_LEN>() else {
        return Cut::Short(RECORD_HEADER_LEN);
    };
    let Some(header) = unchecked(head) else {
        return Cut::Damaged;
    };
    let whole = RECORD_HEADER_LEN + header.length as usize;
    let Some(payload) = bytes.get(RECORD_HEADER_LEN..whole) else {
        return Cut::Short(whole);
    };
    let stored = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    if stored == check(offset, head, payload) { Cut::Record(header, payload) } else { Cut::Damaged }
}

/// Reads a record of bytes that [`cut`] has found to be whole; `None` at their end.
pub(crate) fn cut_checked(bytes: &[u8]) -> Option<(RecordHeader, &[u8])> {
    let header = unchecked(bytes.first_chunk()?)?;
    Some((header, bytes.get(RECORD_HEADER_LEN..RECORD_HEADER_LEN + header.length as usize)?))
}

/// A record's header whose check has not been looked at; `None` when no check could save it.
fn unchecked(head: &[u8; RECORD_HEADER_LEN]) -> Option<RecordHeader> {
    let word = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let length = word & 0x00ff_ffff;
    let kind = Kind::from_number((word >> 24) as u8)?;
    (length as usize <= RECORD_MAX).then(|| RecordHeader {
        kind,
        length,
        time_ns: u64_at(head, 8),
        position: u64_at(head, 16),
    })
}

fn check(offset: u64, head: &[u8; RECORD_HEADER_LEN], payload: &[u8]) -> u32 {
    let mut covered = [0; 28];
    covered[..8].copy_from_slice(&offset.to_le_bytes());
    covered[8..12].copy_from_slice(&head[..4]);
    covered[12..28].copy_from_slice(&head[8..]);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&covered);
    crc.update(payload);
    crc.finalize()
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(offset: u64, payload: &[u8]) -> Vec<u8> {
        let header =
            RecordHeader { kind: Kind::Output(Stream::Stderr), length: payload.len() as u32, time_ns: 5, position: 6 };
        let mut bytes = header.to_bytes(offset, payload).to_vec();
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn a_record_counts_only_at_its_own_offset() {
        let bytes = record(40, b"hello");
        assert!(matches!(cut(&bytes, 40), Cut::Record(header, b"hello") if header.position == 6));
        assert_eq!(cut(&bytes, 41), Cut::Damaged);
        assert_eq!(cut(&bytes[..28], 40), Cut::Short(29));
        assert_eq!(cut(&bytes[..3], 40), Cut::Short(RECORD_HEADER_LEN));
        assert_eq!(cut(&[0; 64], 40), Cut::Damaged);
    }

    #[test]
    fn a_segment_header_is_read_back() {
        let header = SegmentHeader { offset: 1, position: 2, created_ns: 3, state: State::Ended as u32 };
        assert_eq!(SegmentHeader::from_bytes(&header.to_bytes()), Some(header));
        assert_eq!(SegmentHeader::from_bytes(&[0; SEGMENT_HEADER_LEN]), None);
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_seen(
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            offset: u64, bit: prop::sample::Index,
        ) {
            let mut bytes = record(offset, &payload);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!matches!(cut(&bytes, offset), Cut::Record(..)));
        }

        #[test]
        fn any_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), offset: u64) {
            cut(&bytes, offset);
        }
    }
}
