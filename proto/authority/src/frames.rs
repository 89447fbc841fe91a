//! The frames of a connection, as its bytes come: those that carry headers are looked into, all others counted past.
//! What is no HTTP/2 is passed on as it is; who reads it will say so.

use crate::block::Block;

/// Bytes that a client sends before its first frame.
const PREFACE_LEN: usize = 24;
const HEADER_LEN: usize = 9;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Bytes of a frame's priority.
const PRIORITY_LEN: usize = 5;

#[derive(Debug)]
pub(crate) struct Frames {
    at: At,
    block: Block,
}

#[derive(Debug)]
enum At {
    /// So many bytes are nothing to look at.
    Past(usize),
    /// The header of a frame, of which so many bytes have come.
    Header([u8; HEADER_LEN], usize),
    Headers(Inside),
}

/// Within a frame of headers.
#[derive(Clone, Copy, Debug)]
struct Inside {
    /// Bytes that are still to come of it.
    left: usize,
    /// Bytes before the block.
    priority: usize,
    padding: Padding,
    is_last: bool,
}

#[derive(Clone, Copy, Debug)]
enum Padding {
    /// Its length is the next byte.
    Told,
    Known(usize),
}

impl Default for Frames {
    fn default() -> Frames {
        Frames { at: At::Past(PREFACE_LEN), block: Block::default() }
    }
}

impl Frames {
    /// Goes on with what has come.
    pub(crate) fn pass(&mut self, mut data: &mut [u8]) {
        while !data.is_empty() {
            let count = self.step(data);
            data = &mut data[count..];
        }
    }

    /// Takes bytes from the front, at least one; says how many.
    fn step(&mut self, data: &mut [u8]) -> usize {
        match &mut self.at {
            At::Past(left) => {
                let count = data.len().min(*left);
                *left -= count;
                if *left == 0 {
                    self.at = At::Header([0; HEADER_LEN], 0);
                }
                count
            }
            At::Header(header, have) => {
                header[*have] = data[0];
                *have += 1;
                if *have == HEADER_LEN {
                    self.at = begun(*header);
                }
                1
            }
            At::Headers(inside) => {
                let is_over = inside.step(&mut self.block, &mut data[0]);
                if is_over {
                    if inside.is_last {
                        self.block = Block::default();
                    }
                    self.at = At::Header([0; HEADER_LEN], 0);
                }
                1
            }
        }
    }
}

/// What comes after the header of a frame.
fn begun(header: [u8; HEADER_LEN]) -> At {
    let [high, middle, low, kind, flags, ..] = header;
    let left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
    let has = |flag: u8| kind == HEADERS && flags & flag != 0;
    match kind {
        _ if left == 0 => At::Header([0; HEADER_LEN], 0),
        HEADERS | CONTINUATION => At::Headers(Inside {
            left,
            priority: if has(PRIORITY) { PRIORITY_LEN } else { 0 },
            padding: if has(PADDED) { Padding::Told } else { Padding::Known(0) },
            is_last: flags & END_HEADERS != 0,
        }),
        _ => At::Past(left),
    }
}

impl Inside {
    /// Takes a byte; says whether it was the frame's last.
    fn step(&mut self, block: &mut Block, byte: &mut u8) -> bool {
        match self.padding {
            Padding::Told => self.padding = Padding::Known(usize::from(*byte)),
            Padding::Known(_) if self.priority > 0 => self.priority -= 1,
            Padding::Known(padding) if self.left > padding => block.step(byte),
            Padding::Known(_) => {}
        }
        self.left -= 1;
        self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// A field whose name has an index, and whose value is no longer than 126 bytes.
    fn field(first: u8, value: &[u8]) -> Vec<u8> {
        [&[first, u8::try_from(value.len()).unwrap()], value].concat()
    }

    fn connection(host: &[u8]) -> Vec<u8> {
        let spelt = [&b"\x40\x0a:authority"[..], &field(0, host)[1..], b"\x40\x0a:authoritx\x01%"].concat();
        let host = [spelt, field(0x41, host)].concat();
        // A method, a path and a name of their own, a new size of the table.
        let fields = [
            &[0x83, 0x3f, 0xe1, 0x1f][..],
            &field(0x44, b"/a%2F"),
            b"\x00\x02%%\x03%%%",
            &host,
            &[0xbe, 0x0f, 0x11, 1, b'%'],
        ]
        .concat();
        let (left, right) = fields.split_at(fields.len() / 2);
        let padded = [&[3][..], b"%%%%%", &fields, b"%%%"].concat();
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, b""),
            frame(HEADERS, END_HEADERS, &fields),
            frame(0, 1, b"%%%%%%"),
            frame(HEADERS, 0, left),
            frame(CONTINUATION, END_HEADERS, right),
            frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &padded),
            frame(6, 0, b"%%%%%%%%"),
            frame(HEADERS, END_HEADERS, &host),
        ]
        .concat()
    }

    proptest! {
        #[test]
        fn hosts_alone_lose_their_percent_signs(cuts in proptest::collection::vec(1_usize..40, 0..60)) {
            let mut data = connection(b"run%2Fc%2Fshimd.sock");
            let mut frames = Frames::default();
            let mut rest = data.as_mut_slice();
            for cut in cuts {
                let (now, later) = rest.split_at_mut(cut.min(rest.len()));
                frames.pass(now);
                rest = later;
            }
            frames.pass(rest);
            prop_assert_eq!(data, connection(b"run_2Fc_2Fshimd.sock"));
        }

        #[test]
        fn nothing_else_hurts(mut data in proptest::collection::vec(any::<u8>(), 0..2000)) {
            Frames::default().pass(&mut data);
        }
    }

    #[test]
    fn long_hosts_too() {
        let long = |sign: u8| {
            let host = [&[b'a'; 300][..], &[sign], b"2Fx"].concat();
            frame(HEADERS, END_HEADERS, &[&[0x41, 0x7f, 0xb1, 0x01], host.as_slice()].concat())
        };
        let mut data = [&[0; PREFACE_LEN][..], &long(b'%')].concat();
        Frames::default().pass(&mut data);
        assert_eq!(data[PREFACE_LEN..], long(b'_'));
    }
}
