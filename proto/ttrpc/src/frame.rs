//! Frames: a header of ten bytes and a payload.
//!
//! ```text
//! 0        4           8      9       10
//! | length | stream id | kind | flags | payload (length bytes)
//! ```
//! Numbers are big-endian. A client numbers its streams 1, 3, 5, …; each number is used once per connection.

use std::ops::Range;

/// Bytes of a header.
pub const HEADER_LEN: usize = 10;
/// Most bytes of a payload; longer ones are skipped and refused, as containerd's implementation does.
pub const PAYLOAD_MAX: usize = 4 << 20;
/// What a decoder keeps allocated between frames; more is given back.
const IDLE_CAPACITY: usize = 4 << 10;

/// Opens a call; the payload is a [`crate::Request`].
pub const KIND_REQUEST: u8 = 1;
/// Ends a call; the payload is a [`crate::Response`].
pub const KIND_RESPONSE: u8 = 2;
/// Part of a streaming call.
pub const KIND_DATA: u8 = 3;

/// What stands before each payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the payload.
    pub length: u32,
    /// Which call this belongs to.
    pub stream: u32,
    /// One of the `KIND_` numbers, or one of a later protocol.
    pub kind: u8,
    /// Flags of streaming calls; zero here.
    pub flags: u8,
}

impl Header {
    /// The header as it goes over the wire.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&self.length.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.stream.to_be_bytes());
        bytes[8] = self.kind;
        bytes[9] = self.flags;
        bytes
    }

    /// The header in the first bytes of `bytes`; `None` when there are too few.
    pub fn from_bytes(bytes: &[u8]) -> Option<Header> {
        let bytes: &[u8; HEADER_LEN] = bytes.get(..HEADER_LEN)?.try_into().ok()?;
        let [l0, l1, l2, l3, s0, s1, s2, s3, kind, flags] = *bytes;
        Some(Header {
            length: u32::from_be_bytes([l0, l1, l2, l3]),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            kind,
            flags,
        })
    }
}

/// Appends a frame whose payload is `message` to `out`.
///
/// # Errors
/// The message is longer than [`PAYLOAD_MAX`]; nothing was appended.
pub fn append<M: prost::Message>(out: &mut Vec<u8>, stream: u32, kind: u8, message: &M) -> Result<(), Oversized> {
    let length = message.encoded_len();
    if length > PAYLOAD_MAX {
        return Err(Oversized { stream, length: length as u64 });
    }
    out.reserve(HEADER_LEN + length);
    out.extend_from_slice(&Header { length: length as u32, stream, kind, flags: 0 }.to_bytes());
    message.encode_raw(out);
    Ok(())
}

/// A frame that is longer than [`PAYLOAD_MAX`]; a decoder skips it and goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oversized {
    /// The call it would belong to.
    pub stream: u32,
    /// Bytes it would have.
    pub length: u64,
}

impl std::fmt::Display for Oversized {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "message of {} bytes exceeds ttrpc's bound of {PAYLOAD_MAX}", self.length)
    }
}

impl std::error::Error for Oversized {}

/// Cuts a stream of bytes into frames.
///
/// Push what was read, then call [`Decoder::next`] until it says `None`.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Bytes not yet handed out begin at `start`.
    bytes: Vec<u8>,
    start: usize,
    /// Bytes of an oversized payload that are still to come.
    skip: usize,
}

impl Decoder {
    /// Takes bytes as they came from the peer.
    pub fn push(&mut self, mut bytes: &[u8]) {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        bytes = &bytes[skipped..];
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    #[expect(clippy::should_implement_trait, reason = "the frame borrows from the decoder, an Iterator cannot")]
    pub fn next(&mut self) -> Option<Result<(Header, &[u8]), Oversized>> {
        let rest = &self.bytes[self.start..];
        let Some(header) = Header::from_bytes(rest) else {
            self.rest();
            return None;
        };
        let length = header.length as usize;
        if length > PAYLOAD_MAX {
            self.discard(length);
            return Some(Err(Oversized { stream: header.stream, length: length as u64 }));
        }
        if rest.len() < HEADER_LEN + length {
            self.bytes.reserve(HEADER_LEN + length - (self.bytes.len() - self.start));
            return None;
        }
        let payload = self.take(HEADER_LEN + length);
        Some(Ok((header, &self.bytes[payload])))
    }

    /// Whether a frame has begun and not ended: a peer that closes now cut it off.
    pub fn is_mid_frame(&self) -> bool {
        self.skip > 0 || self.bytes.len() > self.start
    }

    fn take(&mut self, frame_len: usize) -> Range<usize> {
        let payload = self.start + HEADER_LEN..self.start + frame_len;
        self.start += frame_len;
        payload
    }

    fn discard(&mut self, length: usize) {
        self.start += HEADER_LEN;
        let here = length.min(self.bytes.len() - self.start);
        self.start += here;
        self.skip = length - here;
    }

    /// Gives back what a burst made grow.
    fn rest(&mut self) {
        if self.start == self.bytes.len() && self.bytes.capacity() > IDLE_CAPACITY {
            self.bytes = Vec::new();
            self.start = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(stream: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Header { length: payload.len() as u32, stream, kind, flags: 0 }.to_bytes().to_vec();
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn header_is_big_endian() {
        let header = Header { length: 0x0102, stream: 3, kind: KIND_REQUEST, flags: 0 };
        assert_eq!(header.to_bytes(), [0, 0, 1, 2, 0, 0, 0, 3, 1, 0]);
        assert_eq!(Header::from_bytes(&header.to_bytes()), Some(header));
        assert_eq!(Header::from_bytes(&[0; 9]), None);
    }

    #[test]
    fn an_oversized_frame_is_skipped_and_the_next_one_read() {
        let long = PAYLOAD_MAX + 1;
        let mut bytes = Header { length: long as u32, stream: 1, kind: 1, flags: 0 }.to_bytes().to_vec();
        bytes.resize(HEADER_LEN + long, b'x');
        bytes.extend(frame(3, KIND_REQUEST, b"hello"));
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();
        for part in bytes.chunks(100_000) {
            decoder.push(part);
            while let Some(next) = decoder.next() {
                seen.push(next.map(|(header, payload)| (header.stream, payload.to_vec())));
            }
        }
        assert_eq!(seen, [Err(Oversized { stream: 1, length: long as u64 }), Ok((3, b"hello".to_vec()))]);
        assert!(!decoder.is_mid_frame());
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..20),
            cut in 1usize..400,
        ) {
            let bytes: Vec<u8> =
                payloads.iter().enumerate().flat_map(|(at, payload)| frame(at as u32, KIND_DATA, payload)).collect();
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for part in bytes.chunks(cut) {
                decoder.push(part);
                while let Some(next) = decoder.next() {
                    seen.push(next.unwrap().1.to_vec());
                }
            }
            prop_assert_eq!(seen, payloads);
        }

        #[test]
        fn any_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while decoder.next().is_some() {}
        }
    }
}
