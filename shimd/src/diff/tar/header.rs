//! One header block.
//!
//! ```text
//!   0 name 100 | 100 mode 8 | 108 uid 8 | 116 gid 8 | 124 size 12 | 136 mtime 12 | 148 checksum 8 | 156 type 1
//! 157 link 100 | 257 magic 6, version 2 | 265 uname 32 | 297 gname 32 | 329 devmajor 8 | 337 devminor 8
//! ustar: 345 prefix 155       GNU: 386 sparse 4 * 24 | 482 extended 1 | 483 real size 12
//! ```

use super::sparse::{self, Extent};
use super::{Entry, Kind, Time, malformed};
use crate::error::Result;

pub(super) const BLOCK: usize = 512;

/// A header whose checksum is right.
pub(super) struct Header([u8; BLOCK]);

impl Header {
    pub(super) fn parse(block: [u8; BLOCK]) -> Result<Header> {
        let header = Header(block);
        let stated = number(header.field(148, 8))?;
        // The checksum field itself counts as spaces. Very old writers added signed bytes.
        let (unsigned, signed) = block.iter().enumerate().fold((0i64, 0i64), |(unsigned, signed), (at, byte)| {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            (unsigned + i64::from(byte), signed + i64::from(byte as i8))
        });
        if stated != unsigned && stated != signed {
            return Err(malformed("the checksum of a header is wrong"));
        }
        Ok(header)
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn size(&self) -> Result<u64> {
        u64::try_from(number(self.field(124, 12))?).map_err(|_| malformed("a size is negative"))
    }

    /// The entry as this header alone tells it.
    pub(super) fn entry(&self) -> Result<Entry> {
        Ok(Entry {
            kind: self.kind()?,
            path: self.name(),
            link: text(self.field(157, 100)),
            mode: (number(self.field(100, 8))? & 0o7777) as u32,
            uid: id(number(self.field(108, 8))?)?,
            gid: id(number(self.field(116, 8))?)?,
            modified: Time { seconds: number(self.field(136, 12))?, nanoseconds: 0 },
            size: 0,
            extents: None,
            xattrs: Vec::new(),
        })
    }

    /// Whether the entry may be one from before POSIX, when a directory was a file whose name ends in a slash.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self.type_flag(), b'0' | 0)
    }

    fn kind(&self) -> Result<Kind> {
        Ok(match self.type_flag() {
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice { major: self.device(329)?, minor: self.device(337)? },
            b'4' => Kind::BlockDevice { major: self.device(329)?, minor: self.device(337)? },
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(malformed(format!("entry type {:?} is not known", char::from(other)))),
        })
    }

    fn device(&self, at: usize) -> Result<u32> {
        u32::try_from(number(self.field(at, 8))?).map_err(|_| malformed("a device number is out of range"))
    }

    fn name(&self) -> Vec<u8> {
        let name = text(self.field(0, 100));
        let prefix = if self.is_ustar() { text(self.field(345, 155)) } else { Vec::new() };
        if prefix.is_empty() { name } else { [prefix.as_slice(), b"/", &name].concat() }
    }

    fn is_ustar(&self) -> bool {
        self.field(257, 8) == b"ustar\x0000"
    }

    fn is_gnu(&self) -> bool {
        self.field(257, 8) == b"ustar  \0"
    }

    /// The first extents of a GNU sparse file, and whether more blocks of them follow.
    pub(super) fn gnu_sparse(&self) -> Result<Option<(Vec<Extent>, bool)>> {
        if self.type_flag() != b'S' {
            return Ok(None);
        }
        if !self.is_gnu() {
            return Err(malformed("a sparse file stands in an archive that is not of GNU's form"));
        }
        let mut extents = Vec::new();
        sparse::add_pairs(self.field(386, 4 * sparse::PAIR), &mut extents)?;
        Ok(Some((extents, self.0[482] != 0)))
    }

    pub(super) fn gnu_real_size(&self) -> Result<u64> {
        u64::try_from(number(self.field(483, 12))?).map_err(|_| malformed("a size is negative"))
    }

    fn field(&self, at: usize, length: usize) -> &[u8] {
        &self.0[at..at + length]
    }
}

/// The bytes before the first NUL.
pub(super) fn text(field: &[u8]) -> Vec<u8> {
    field.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// A user or group id; the kernel reserves -1.
pub(super) fn id(number: i64) -> Result<u32> {
    u32::try_from(number).ok().filter(|id| *id != u32::MAX).ok_or_else(|| malformed("an owner is out of range"))
}

/// A number: octal digits between spaces and NULs, or, when the first bit is set, big-endian two's complement.
pub(super) fn number(field: &[u8]) -> Result<i64> {
    if field[0] & 0x80 != 0 {
        return binary(field);
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|byte| !matches!(byte, b'0'..=b'7')).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    if !rest.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Err(malformed("a number in a header is not octal"));
    }
    digits.iter().try_fold(0i64, |value, digit| {
        value
            .checked_mul(8)
            .and_then(|value| value.checked_add(i64::from(digit - b'0')))
            .ok_or_else(|| malformed("a number in a header is out of range"))
    })
}

fn binary(field: &[u8]) -> Result<i64> {
    // The first bit only marks the form; the second is the sign.
    let mut bytes = field.to_vec();
    let negative = bytes[0] & 0x40 != 0;
    bytes[0] = if negative { bytes[0] | 0x80 } else { bytes[0] & 0x7f };
    let fill = if negative { 0xff } else { 0 };
    let start = bytes.len().saturating_sub(8);
    if bytes[..start].iter().any(|byte| *byte != fill) {
        return Err(malformed("a number in a header is out of range"));
    }
    let value =
        bytes[start..].iter().fold(if negative { -1i64 } else { 0 }, |value, byte| value << 8 | i64::from(*byte));
    if (value < 0) == negative { Ok(value) } else { Err(malformed("a number in a header is out of range")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(number(b"   644 \0").unwrap(), 0o644);
        assert_eq!(number(b"\0\0\0\0\0\0\0\0").unwrap(), 0);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]).unwrap(), 0x102);
        assert_eq!(number(&[0xff; 12]).unwrap(), -1);
        assert!(number(b"12x4567\0").is_err());
        assert!(number(b"7 7\0\0\0\0\0").is_err());
        assert!(number(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn owners_are_32_bits_and_not_minus_one() {
        assert!(id(-1).is_err());
        assert!(id(i64::from(u32::MAX)).is_err());
        assert_eq!(id(65534).unwrap(), 65534);
    }
}
