//! Writing tar archives: ustar headers, with a PAX header before where one does not hold an entry.

use std::io::{self, Write};

use super::header::BLOCK;
use super::{Entry, Kind};

/// Most of an octal field of 8 and of 12 bytes.
const OCTAL_7: u64 = 0o7_777_777;
const OCTAL_11: u64 = 0o77_777_777_777;
const NAME_LEN: usize = 100;

/// Writes entries one after the other.
pub(crate) struct ArchiveWriter<W> {
    out: W,
}

impl<W: Write> ArchiveWriter<W> {
    pub(crate) fn new(out: W) -> ArchiveWriter<W> {
        ArchiveWriter { out }
    }

    /// Writes the header of `entry`; `entry.size` bytes of data must follow.
    pub(crate) fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        let records = pax_records(entry);
        if !records.is_empty() {
            let header = Entry {
                path: b"PaxHeaders/entry".to_vec(),
                link: Vec::new(),
                kind: Kind::File,
                mode: 0o644,
                uid: 0,
                gid: 0,
                size: records.len() as u64,
                extents: None,
                xattrs: Vec::new(),
                ..entry.clone()
            };
            self.out.write_all(&block(&header, b'x'))?;
            self.data(&records)?;
            self.end(records.len() as u64)?;
        }
        self.out.write_all(&block(entry, type_flag(&entry.kind)))
    }

    pub(crate) fn data(&mut self, data: &[u8]) -> io::Result<()> {
        self.out.write_all(data)
    }

    /// Fills up the last block of an entry with `size` bytes of data.
    pub(crate) fn end(&mut self, size: u64) -> io::Result<()> {
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        self.out.write_all(&[0; BLOCK][..padding as usize])
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }
}

fn type_flag(kind: &Kind) -> u8 {
    match kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::CharDevice { .. } => b'3',
        Kind::BlockDevice { .. } => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    }
}

/// What does not fit into the header.
fn pax_records(entry: &Entry) -> Vec<u8> {
    let mut records = Vec::new();
    let mut add = |key: &[u8], value: &[u8]| add_record(&mut records, key, value);
    if entry.path.len() > NAME_LEN {
        add(b"path", &entry.path);
    }
    if entry.link.len() > NAME_LEN {
        add(b"linkpath", &entry.link);
    }
    if u64::from(entry.uid) > OCTAL_7 {
        add(b"uid", entry.uid.to_string().as_bytes());
    }
    if u64::from(entry.gid) > OCTAL_7 {
        add(b"gid", entry.gid.to_string().as_bytes());
    }
    if entry.size > OCTAL_11 {
        add(b"size", entry.size.to_string().as_bytes());
    }
    if !(0..=OCTAL_11 as i64).contains(&entry.modified.seconds) {
        add(b"mtime", entry.modified.seconds.to_string().as_bytes());
    }
    for (name, value) in &entry.xattrs {
        add(&[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    records
}

/// A record's length counts its own digits.
fn add_record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    records.extend(length.to_string().as_bytes());
    records.push(b' ');
    records.extend(key);
    records.push(b'=');
    records.extend(value);
    records.push(b'\n');
}

fn block(entry: &Entry, type_flag: u8) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let (path, link) = (&entry.path[..entry.path.len().min(NAME_LEN)], &entry.link[..entry.link.len().min(NAME_LEN)]);
    block[..path.len()].copy_from_slice(path);
    octal(&mut block[100..108], u64::from(entry.mode), OCTAL_7);
    octal(&mut block[108..116], u64::from(entry.uid), OCTAL_7);
    octal(&mut block[116..124], u64::from(entry.gid), OCTAL_7);
    octal(&mut block[124..136], entry.size, OCTAL_11);
    octal(&mut block[136..148], u64::try_from(entry.modified.seconds).unwrap_or_default(), OCTAL_11);
    block[156] = type_flag;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    if let Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } = entry.kind {
        octal(&mut block[329..337], u64::from(major), OCTAL_7);
        octal(&mut block[337..345], u64::from(minor), OCTAL_7);
    }
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut block[148..155], sum, OCTAL_7);
    block
}

/// Digits and a NUL; what is too large stands in the PAX header, and here is zero.
fn octal(field: &mut [u8], number: u64, most: u64) {
    let number = if number > most { 0 } else { number };
    let width = field.len() - 1;
    let text = format!("{number:0width$o}");
    field[..width].copy_from_slice(&text.as_bytes()[text.len() - width..]);
}

#[cfg(test)]
mod tests {
    use super::super::{Archive, Time};
    use super::*;
    use proptest::prelude::*;

    fn kind() -> impl Strategy<Value = Kind> {
        prop_oneof![
            Just(Kind::File),
            Just(Kind::HardLink),
            Just(Kind::Symlink),
            Just(Kind::Directory),
            Just(Kind::Fifo),
            (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| Kind::CharDevice { major, minor }),
        ]
    }

    prop_compose! {
        fn entry()(
            kind in kind(),
            path in "[a-z/]{1,200}",
            link in "[a-z./]{1,150}",
            mode in 0u32..0o10000,
            uid in 0u32..u32::MAX,
            seconds in -10_000i64..10_000_000_000,
            xattr in proptest::collection::vec(any::<u8>(), 0..300),
        ) -> Entry {
            let is_link = matches!(kind, Kind::HardLink | Kind::Symlink);
            // A file whose name ends in a slash is a directory to readers of old archives.
            let path = path.trim_end_matches('/');
            Entry {
                path: if path.is_empty() { b"x".to_vec() } else { path.as_bytes().to_vec() },
                link: if is_link { link.into_bytes() } else { Vec::new() },
                size: if kind == Kind::File { xattr.len() as u64 } else { 0 },
                kind,
                mode,
                uid,
                gid: uid / 2,
                modified: Time { seconds, nanoseconds: 0 },
                extents: None,
                xattrs: vec![(b"user.x".to_vec(), xattr)],
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(entries in proptest::collection::vec(entry(), 0..5)) {
            let mut writer = ArchiveWriter::new(Vec::new());
            for entry in &entries {
                writer.begin(entry).unwrap();
                writer.data(&entry.xattrs[0].1[..entry.size as usize]).unwrap();
                writer.end(entry.size).unwrap();
            }
            let bytes = writer.finish().unwrap();
            let mut archive = Archive::new(io::Cursor::new(bytes));
            for entry in &entries {
                let read = archive.next_entry().unwrap().unwrap();
                prop_assert_eq!(format!("{entry:?}"), format!("{read:?}"));
            }
            prop_assert!(archive.next_entry().unwrap().is_none());
        }
    }
}
