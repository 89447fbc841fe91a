//! The journal: changes that redb does not have yet, appended one `write` at a time.
//!
//! ```text
//! entry   0  length of what follows the check, 32 bits, little-endian
//!         4  CRC-32 of what follows
//!         8  table, 8 bits
//!         9  1: put, 0: remove
//!        10  length of the key, 16 bits
//!        12  key, then the value
//! ```
//!
//! The last entry may be cut off; nothing that its author was told depends on it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{Change, Changes, StoreError, Table};

const NAME: &str = "engined.journal";
const HEAD: usize = 8;

/// The journal's file, open to be appended to.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Journal {
    /// Opens it, and reads what a predecessor left.
    pub(super) fn open(directory: &Path) -> Result<(Journal, Changes), StoreError> {
        let path = directory.join(NAME);
        let open = || OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path);
        let mut file = open().map_err(|error| StoreError::new("open", &path, error))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|error| StoreError::new("read", &path, error))?;
        let (changes, whole) = replay(&bytes);
        // What follows a cut-off entry must not be taken for a part of it.
        file.set_len(whole as u64).map_err(|error| StoreError::new("shorten", &path, error))?;
        Ok((Journal { path, file, length: whole as u64 }, changes))
    }

    pub(super) fn len(&self) -> u64 {
        self.length
    }

    /// Appends an entry: all of it, or nothing.
    pub(super) fn append(&mut self, table: Table, key: &str, value: Option<&[u8]>) -> Result<(), StoreError> {
        let entry = entry(table, key, value);
        match self.file.write(&entry) {
            Ok(written) if written == entry.len() => {
                self.length += written as u64;
                Ok(())
            }
            outcome => {
                let why = outcome.err().unwrap_or_else(|| std::io::Error::from_raw_os_error(libc::ENOSPC));
                // A half entry would hide those that follow it.
                self.file.set_len(self.length).map_err(|error| StoreError::new("shorten", &self.path, error))?;
                Err(StoreError::new("append to", &self.path, why))
            }
        }
    }

    /// Empties it.
    pub(super) fn clear(&mut self) -> Result<(), StoreError> {
        self.file.set_len(0).map_err(|error| StoreError::new("empty", &self.path, error))?;
        self.length = 0;
        Ok(())
    }

    /// Replaces its entries by these, at once.
    pub(super) fn rewrite(&mut self, changes: &Changes) -> Result<(), StoreError> {
        let aside = self.path.with_extension("new");
        let mut bytes = Vec::new();
        for ((table, key), change) in changes {
            bytes.extend_from_slice(&entry(*table, key, change.as_deref()));
        }
        let replace = || -> std::io::Result<File> {
            let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&aside)?;
            file.set_len(0)?;
            file.write_all(&bytes)?;
            std::fs::rename(&aside, &self.path)?;
            Ok(file)
        };
        self.file = replace().map_err(|error| StoreError::new("rewrite", &self.path, error))?;
        self.length = bytes.len() as u64;
        Ok(())
    }
}

fn entry(table: Table, key: &str, value: Option<&[u8]>) -> Vec<u8> {
    let mut body = Vec::with_capacity(4 + key.len() + value.map_or(0, <[u8]>::len));
    body.push(table as u8);
    body.push(u8::from(value.is_some()));
    body.extend_from_slice(&(key.len() as u16).to_le_bytes());
    body.extend_from_slice(key.as_bytes());
    body.extend_from_slice(value.unwrap_or_default());
    let mut bytes = Vec::with_capacity(HEAD + body.len());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    bytes.append(&mut body);
    bytes
}

/// The changes in order, and how many bytes of whole entries there are.
fn replay(bytes: &[u8]) -> (Changes, usize) {
    let mut changes = Changes::new();
    let mut at = 0;
    while let Some((key, change, next)) = read_entry(bytes, at) {
        changes.insert(key, change);
        at = next;
    }
    (changes, at)
}

fn read_entry(bytes: &[u8], at: usize) -> Option<((Table, String), Change, usize)> {
    let word = |at: usize| -> Option<u32> { Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?)) };
    let length = word(at)? as usize;
    let body = bytes.get(at + HEAD..(at + HEAD).checked_add(length)?)?;
    if word(at + 4)? != crc32fast::hash(body) {
        return None;
    }
    let table = Table::from_number(*body.first()?)?;
    let is_put = *body.get(1)? == 1;
    let key_length = usize::from(u16::from_le_bytes([*body.get(2)?, *body.get(3)?]));
    let key = String::from_utf8(body.get(4..4 + key_length)?.to_vec()).ok()?;
    let change = is_put.then(|| body[4 + key_length..].to_vec());
    Some(((table, key), change, at + HEAD + length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_cut_off_entry_is_not_read() {
        let mut bytes = entry(Table::Containers, "a", Some(b"1"));
        let whole = bytes.len();
        bytes.extend_from_slice(&entry(Table::Sandboxes, "b", None)[..9]);
        let (changes, length) = replay(&bytes);
        assert_eq!(length, whole);
        assert_eq!(changes[&(Table::Containers, "a".to_owned())], Some(b"1".to_vec()));
    }

    #[test]
    fn the_rest_after_a_rewrite_is_what_was_pending() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(directory.path()).unwrap();
        journal.append(Table::Containers, "a", Some(b"1")).unwrap();
        journal.rewrite(&Changes::from([((Table::Containers, "b".to_owned()), Some(b"2".to_vec()))])).unwrap();
        journal.append(Table::Containers, "c", None).unwrap();
        let (_, changes) = Journal::open(directory.path()).unwrap();
        let mut keys: Vec<_> = changes.keys().map(|(_, key)| key.clone()).collect();
        keys.sort();
        assert_eq!(keys, ["b", "c"]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (_, whole) = replay(&bytes);
            prop_assert!(whole <= bytes.len());
        }

        #[test]
        fn entries_are_read_back(entries in proptest::collection::vec(("[a-z]{0,4}", any::<Option<Vec<u8>>>()), 0..20)) {
            let mut bytes = Vec::new();
            let mut expected = Changes::new();
            for (key, value) in &entries {
                bytes.extend_from_slice(&entry(Table::Containers, key, value.as_deref()));
                expected.insert((Table::Containers, key.clone()), value.clone());
            }
            let (changes, whole) = replay(&bytes);
            prop_assert_eq!(whole, bytes.len());
            prop_assert_eq!(changes, expected);
        }
    }
}
