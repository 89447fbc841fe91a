//! A layer while it is put together: entries by path, so that it is written in order and the same each time.

use std::collections::BTreeMap;

/// The time of every entry, in seconds since 1970: layers do not depend on when they were built.
const MTIME: u64 = 1_700_000_000;

/// What lies at a path.
#[derive(Clone)]
pub(crate) enum Kind {
    Directory,
    File,
    Symlink(String),
    Hardlink(String),
}

/// One file, directory or link.
#[derive(Clone)]
pub(crate) struct Entry {
    /// Relative to the root, without `./`.
    pub(crate) path: String,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) data: Vec<u8>,
}

/// One layer of an image.
#[derive(Clone, Default)]
pub(crate) struct Layer(BTreeMap<String, Entry>);

impl Layer {
    pub(crate) fn directory(&mut self, path: &str, mode: u32) {
        self.put(path, Kind::Directory, mode, Vec::new());
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, data: Vec<u8>) {
        self.put(path, Kind::File, mode, data);
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) {
        self.put(path, Kind::Symlink(target.to_owned()), 0o777, Vec::new());
    }

    /// Takes a package's entries, except those below the prefixes in `left_out`.
    pub(crate) fn add(&mut self, entries: Vec<Entry>, left_out: &[&str]) {
        for entry in entries {
            if !left_out.iter().any(|prefix| entry.path.starts_with(prefix)) {
                self.0.insert(entry.path.clone(), entry);
            }
        }
    }

    fn put(&mut self, path: &str, kind: Kind, mode: u32, data: Vec<u8>) {
        let entry = Entry { path: path.to_owned(), kind, mode, uid: 0, gid: 0, data };
        self.0.insert(path.to_owned(), entry);
    }

    /// The layer as a tar archive.
    pub(crate) fn tar(&self) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for entry in self.0.values() {
            append(&mut archive, entry).expect("writing to memory does not fail");
        }
        archive.into_inner().expect("writing to memory does not fail")
    }
}

fn append(archive: &mut tar::Builder<Vec<u8>>, entry: &Entry) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(entry.mode);
    header.set_uid(entry.uid);
    header.set_gid(entry.gid);
    header.set_mtime(MTIME);
    header.set_size(entry.data.len() as u64);
    match &entry.kind {
        Kind::Directory => {
            header.set_entry_type(tar::EntryType::Directory);
            archive.append_data(&mut header, format!("{}/", entry.path), std::io::empty())
        }
        Kind::File => archive.append_data(&mut header, &entry.path, entry.data.as_slice()),
        Kind::Symlink(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            archive.append_link(&mut header, &entry.path, target)
        }
        Kind::Hardlink(target) => {
            header.set_entry_type(tar::EntryType::Link);
            archive.append_link(&mut header, &entry.path, target)
        }
    }
}
