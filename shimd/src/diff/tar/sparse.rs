//! Sparse files: which parts of a file an archive holds.

use super::header::{BLOCK, number};
use super::{malformed, pax};
use crate::error::Result;

/// Most extents of one file.
const EXTENTS_MAX: usize = 1 << 18;
/// An offset and a length, 12 bytes each, in GNU's headers.
pub(super) const PAIR: usize = 24;

/// Data at a place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// A sparse file as PAX records tell it; without extents they stand in the data.
pub(super) struct Form {
    pub(super) real_size: u64,
    pub(super) extents: Option<Vec<Extent>>,
}

/// Adds the pairs in a field of a GNU header, up to the first empty one.
pub(super) fn add_pairs(field: &[u8], extents: &mut Vec<Extent>) -> Result<()> {
    for pair in field.chunks_exact(PAIR) {
        if pair[0] == 0 || pair[12] == 0 {
            break;
        }
        let part = |bytes: &[u8]| u64::try_from(number(bytes)?).map_err(|_| malformed("its sparse map is negative"));
        extents.push(Extent { offset: part(&pair[..12])?, length: part(&pair[12..])? });
    }
    check_count(extents.len())
}

/// Adds the pairs of a block that continues a GNU sparse header; tells whether another follows.
pub(super) fn add_gnu_block(block: &[u8; BLOCK], extents: &mut Vec<Extent>) -> Result<bool> {
    add_pairs(&block[..21 * PAIR], extents)?;
    Ok(block[21 * PAIR] != 0)
}

/// Form 0.1: `offset,length,offset,length,…`.
pub(super) fn from_list(list: &[u8]) -> Result<Vec<Extent>> {
    if list.is_empty() {
        return Ok(Vec::new());
    }
    from_numbers(&pax::numbers(list, b',')?)
}

pub(super) fn from_numbers(numbers: &[u64]) -> Result<Vec<Extent>> {
    check_count(numbers.len() / 2)?;
    pax::pairs(numbers)
}

fn check_count(count: usize) -> Result<()> {
    if count > EXTENTS_MAX {
        return Err(malformed(format!("its sparse map has more than {EXTENTS_MAX} parts")));
    }
    Ok(())
}

/// The map of form 1.0: a count and then that many pairs, each number on a line, padded to whole blocks.
#[derive(Default)]
pub(super) struct TextMap {
    /// Digits of a number that the last block cut off.
    partial: Vec<u8>,
    wanted: Option<usize>,
    numbers: Vec<u64>,
}

impl TextMap {
    pub(super) fn is_complete(&self) -> bool {
        self.wanted.is_some_and(|wanted| self.numbers.len() == wanted)
    }

    pub(super) fn add(&mut self, block: &[u8]) -> Result<()> {
        for byte in block {
            if self.is_complete() {
                return Ok(());
            }
            match byte {
                b'\n' => self.end_number()?,
                b'0'..=b'9' if self.partial.len() < 20 => self.partial.push(*byte),
                _ => return Err(malformed("its sparse map is malformed")),
            }
        }
        Ok(())
    }

    fn end_number(&mut self) -> Result<()> {
        let number = pax::decimal(&std::mem::take(&mut self.partial))?;
        if self.wanted.is_some() {
            self.numbers.push(number);
            return Ok(());
        }
        let count = usize::try_from(number).unwrap_or(usize::MAX);
        check_count(count)?;
        self.wanted = Some(count * 2);
        Ok(())
    }

    pub(super) fn into_extents(self) -> Vec<Extent> {
        self.numbers.chunks_exact(2).map(|pair| Extent { offset: pair[0], length: pair[1] }).collect()
    }
}

/// A map is in order, lies in the file and is as long as the stored data.
pub(super) fn check(extents: &[Extent], real_size: u64, stored: u64) -> Result<()> {
    let mut end = 0;
    let mut sum = 0u64;
    for extent in extents {
        let next = extent.offset.checked_add(extent.length).filter(|next| *next <= real_size);
        match next {
            Some(next) if extent.offset >= end => end = next,
            _ => return Err(malformed("its sparse map does not fit the file")),
        }
        sum += extent.length;
    }
    if sum == stored { Ok(()) } else { Err(malformed("its sparse map does not fit the stored data")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_in_text_may_be_cut_anywhere() {
        let text = b"2\n0\n5\n100\n7\n";
        for cut in 0..text.len() {
            let mut map = TextMap::default();
            map.add(&text[..cut]).unwrap();
            assert!(!map.is_complete());
            map.add(&text[cut..]).unwrap();
            let extents = map.into_extents();
            assert_eq!(extents, [Extent { offset: 0, length: 5 }, Extent { offset: 100, length: 7 }]);
        }
    }

    #[test]
    fn maps_are_checked() {
        let at = |offset, length| Extent { offset, length };
        assert!(check(&[at(0, 5), at(10, 5)], 15, 10).is_ok());
        assert!(check(&[at(0, 5), at(4, 5)], 15, 10).is_err());
        assert!(check(&[at(0, 5), at(11, 5)], 15, 10).is_err());
        assert!(check(&[at(0, 5)], 15, 10).is_err());
        assert!(check(&[at(u64::MAX, 5)], 15, 5).is_err());
        assert!(from_list(b"0,5,7").is_err());
    }
}
