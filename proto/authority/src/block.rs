//! A block of headers in the form of HPACK (RFC 7541), as far as it takes to find the values of `:authority` in it. What
//! the tables hold is not followed: a value that was changed on its way in is in them as it was changed.

/// The index of the name in the table that everybody has. The C library spells it out all the same.
const AUTHORITY_INDEX: u64 = 1;
const AUTHORITY: &[u8] = b":authority";
/// A length or an index that takes more bits than this is none.
const SHIFT_MAX: u32 = 28;

#[derive(Debug, Default)]
pub(crate) struct Block {
    at: At,
    /// So far as the name has come.
    is_authority: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum At {
    #[default]
    Field,
    /// A number that did not end with its first byte.
    Number {
        of: Number,
        value: u64,
        shift: u32,
    },
    Length(Part),
    Text {
        part: Part,
        left: u64,
    },
    /// What comes is no block of headers.
    Lost,
}

/// What a number is.
#[derive(Clone, Copy, Debug)]
enum Number {
    /// A field that is in a table, or the size of one.
    Whole,
    /// The index of a name; 0 is before one that is spelt out.
    Name,
    Length {
        part: Part,
        is_packed: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Name,
    Value,
}

impl Block {
    pub(crate) fn step(&mut self, byte: &mut u8) {
        self.at = match self.at {
            At::Field => self.field(*byte),
            At::Number { of, value, shift } => self.more(*byte, of, value, shift),
            At::Length(part) => self.number(*byte, 0x7f, Number::Length { part, is_packed: *byte & 0x80 != 0 }),
            At::Text { part, left } => {
                self.text(part, left, byte);
                if left > 1 { At::Text { part, left: left - 1 } } else { part.end() }
            }
            At::Lost => At::Lost,
        };
    }

    /// A byte of a text of which `left` bytes are to come.
    fn text(&mut self, part: Part, left: u64, byte: &mut u8) {
        match part {
            Part::Name if self.is_authority => {
                self.is_authority = AUTHORITY.iter().rev().nth(left as usize - 1) == Some(&*byte);
            }
            Part::Value if self.is_authority && *byte == b'%' => *byte = b'_',
            _ => {}
        }
    }

    fn field(&mut self, first: u8) -> At {
        match first {
            0x80.. => self.number(first, 0x7f, Number::Whole),
            0x40.. => self.number(first, 0x3f, Number::Name),
            0x20.. => self.number(first, 0x1f, Number::Whole),
            _ => self.number(first, 0x0f, Number::Name),
        }
    }

    /// A number begins in the low bits of a byte.
    fn number(&mut self, byte: u8, mask: u8, of: Number) -> At {
        let value = u64::from(byte & mask);
        if byte & mask == mask { At::Number { of, value, shift: 0 } } else { self.known(of, value) }
    }

    fn more(&mut self, byte: u8, of: Number, value: u64, shift: u32) -> At {
        let value = value + (u64::from(byte & 0x7f) << shift);
        match byte & 0x80 {
            0 => self.known(of, value),
            _ if shift < SHIFT_MAX => At::Number { of, value, shift: shift + 7 },
            _ => At::Lost,
        }
    }

    fn known(&mut self, of: Number, value: u64) -> At {
        match of {
            Number::Whole => At::Field,
            Number::Name => {
                self.is_authority = value == AUTHORITY_INDEX;
                At::Length(if value == 0 { Part::Name } else { Part::Value })
            }
            Number::Length { part, is_packed } => {
                self.is_authority = !is_packed
                    && match part {
                        Part::Name => value == AUTHORITY.len() as u64,
                        Part::Value => self.is_authority,
                    };
                if value == 0 { part.end() } else { At::Text { part, left: value } }
            }
        }
    }
}

impl Part {
    /// What comes after it.
    fn end(self) -> At {
        match self {
            Part::Name => At::Length(Part::Value),
            Part::Value => At::Field,
        }
    }
}
