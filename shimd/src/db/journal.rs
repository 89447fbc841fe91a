//! The journal of the store: what was changed since redb was last made durable.
//!
//! ```text
//! entry:      length u32 | crc32 of the body u32 | body
//! body:       seq u64 | operations
//! operation:  kind u8 (1 put, 2 remove) | table u8 | key length u32 | key | [put: value length u32 | value]
//! ```
//! Numbers are little-endian. Entries have ascending sequence numbers; the first that is not whole ends the journal.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::Table;
use crate::error::{Error, Result};

const HEADER_LEN: usize = 8;
const PUT: u8 = 1;
const REMOVE: u8 = 2;

/// One change of one key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Put { table: Table, key: Vec<u8>, value: Vec<u8> },
    Remove { table: Table, key: Vec<u8> },
}

impl Operation {
    pub(super) fn table(&self) -> Table {
        match self {
            Operation::Put { table, .. } | Operation::Remove { table, .. } => *table,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Operation::Put { table, key, value } => {
                out.extend([PUT, *table as u8]);
                encode_bytes(out, key);
                encode_bytes(out, value);
            }
            Operation::Remove { table, key } => {
                out.extend([REMOVE, *table as u8]);
                encode_bytes(out, key);
            }
        }
    }
}

fn encode_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend(bytes);
}

/// The operations of one write.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) seq: u64,
    pub(super) operations: Vec<Operation>,
}

impl Entry {
    fn decode(mut body: &[u8]) -> Option<Entry> {
        let seq = u64::from_le_bytes(take(&mut body, 8)?.try_into().ok()?);
        let mut operations = Vec::new();
        while !body.is_empty() {
            let head = take(&mut body, 2)?;
            let table = Table::from_number(head[1])?;
            let key = take_bytes(&mut body)?;
            operations.push(match head[0] {
                PUT => Operation::Put { table, key, value: take_bytes(&mut body)? },
                REMOVE => Operation::Remove { table, key },
                _ => return None,
            });
        }
        Some(Entry { seq, operations })
    }
}

fn take<'a>(from: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (head, rest) = from.split_at_checked(count)?;
    *from = rest;
    Some(head)
}

fn take_bytes(from: &mut &[u8]) -> Option<Vec<u8>> {
    let length = u32::from_le_bytes(take(from, 4)?.try_into().ok()?);
    take(from, length as usize).map(<[u8]>::to_vec)
}

/// The file, open for appending.
pub(super) struct Journal {
    file: Arc<File>,
    length: u64,
    /// Number of the last write.
    pub(super) seq: u64,
}

impl Journal {
    /// Opens or makes the journal at `path`, and reads what is in it.
    pub(super) fn open(path: &Path) -> Result<(Journal, Vec<Entry>)> {
        let failed = |source| Error::io(format!("open {}", path.display()), source);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let (entries, length) = read_entries(&bytes);
        Ok((Journal { file: Arc::new(file), length: length as u64, seq: 0 }, entries))
    }

    /// Appends one entry whole, or, when that fails, nothing.
    pub(super) fn append(&mut self, operations: &[Operation]) -> Result<()> {
        let bytes = encode_entry(self.seq + 1, operations);
        if let Err(source) = self.file.write_all_at(&bytes, self.length) {
            // A short write is overwritten by the next entry; until then its checksum is wrong.
            return Err(Error::io("append to the metadata journal", source));
        }
        self.length += bytes.len() as u64;
        self.seq += 1;
        Ok(())
    }

    /// Takes back the last entry, which began at `length`.
    pub(super) fn retract(&mut self, length: u64) -> Result<()> {
        self.seq -= 1;
        self.truncate(length)
    }

    /// Forgets everything behind `length`.
    pub(super) fn truncate(&mut self, length: u64) -> Result<()> {
        self.file.set_len(length).map_err(|source| Error::io("truncate the metadata journal", source))?;
        self.length = length;
        Ok(())
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// The file, to be synced outside of locks.
    pub(super) fn file(&self) -> Arc<File> {
        self.file.clone()
    }
}

fn encode_entry(seq: u64, operations: &[Operation]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    bytes.extend(seq.to_le_bytes());
    for operation in operations {
        operation.encode(&mut bytes);
    }
    let length = (bytes.len() - HEADER_LEN) as u32;
    let crc = crc32fast::hash(&bytes[HEADER_LEN..]);
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The whole entries in `bytes`, and where they end.
fn read_entries(bytes: &[u8]) -> (Vec<Entry>, usize) {
    let mut entries: Vec<Entry> = Vec::new();
    let mut rest = bytes;
    loop {
        let before = rest.len();
        let entry = next_entry(&mut rest).filter(|entry| entries.last().is_none_or(|last| last.seq < entry.seq));
        match entry {
            Some(entry) => entries.push(entry),
            None => return (entries, bytes.len() - before),
        }
    }
}

fn next_entry(rest: &mut &[u8]) -> Option<Entry> {
    let length = u32::from_le_bytes(take(rest, 4)?.try_into().ok()?);
    let crc = u32::from_le_bytes(take(rest, 4)?.try_into().ok()?);
    let body = take(rest, length as usize)?;
    if crc32fast::hash(body) == crc { Entry::decode(body) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn operation() -> impl Strategy<Value = Operation> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
        prop_oneof![
            (bytes(), bytes()).prop_map(|(key, value)| Operation::Put { table: Table::Containers, key, value }),
            bytes().prop_map(|key| Operation::Remove { table: Table::Leases, key }),
        ]
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(writes in proptest::collection::vec(proptest::collection::vec(operation(), 1..4), 0..6), cut in 0usize..8) {
            let mut bytes = Vec::new();
            let mut ends = vec![0];
            for (index, operations) in writes.iter().enumerate() {
                bytes.extend(encode_entry(index as u64 + 1, operations));
                ends.push(bytes.len());
            }
            let kept = bytes.len().saturating_sub(cut);
            let (entries, end) = read_entries(&bytes[..kept]);
            let whole = ends.iter().filter(|end| **end <= kept).count() - 1;
            prop_assert_eq!(entries.len(), whole);
            prop_assert_eq!(end, ends[whole]);
            for (entry, operations) in entries.iter().zip(&writes) {
                prop_assert_eq!(&entry.operations, operations);
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            read_entries(&bytes);
        }
    }

    #[test]
    fn an_older_entry_behind_a_newer_one_is_no_part_of_it() {
        let mut bytes = encode_entry(7, &[Operation::Remove { table: Table::Leases, key: vec![1] }]);
        let end = bytes.len();
        bytes.extend(encode_entry(3, &[Operation::Remove { table: Table::Leases, key: vec![1] }]));
        let (entries, length) = read_entries(&bytes);
        assert_eq!((entries.len(), length), (1, end));
    }
}
