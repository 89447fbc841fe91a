//! Reading tar archives, strictly: ustar, PAX and GNU forms.
//!
//! Whatever GNU tar, Go's archive/tar and others read differently is refused here, because such an archive shows one
//! thing to who scans it and another to who unpacks it: a PAX size always wins over the header's, malformed PAX records
//! and global headers that would change entries are errors, and so are two long-name forms for one entry.
//!
//! This module only reads. What an entry does to a file system is decided in `unpack`.

mod header;
mod pax;
mod sparse;
pub(crate) mod write;

use std::io::{self, BufRead};

use crate::error::{Error, Result};
use header::{BLOCK, Header};
use pax::Extended;
pub(crate) use sparse::Extent;

/// Longest PAX header, in bytes: extended attributes make them long.
const PAX_MAX: u64 = 1 << 20;
/// Longest GNU long name.
const LONG_NAME_MAX: u64 = 64 << 10;

/// What an entry makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Directory,
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// A point in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// One member of an archive.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// As written: may be absolute, may hold dots.
    pub(crate) path: Vec<u8>,
    /// Target of a link.
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) modified: Time,
    /// Bytes of the file that is made.
    pub(crate) size: u64,
    /// Where the data lies in a sparse file; `None`: all of it, from the start.
    pub(crate) extents: Option<Vec<Extent>>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// The path for error messages.
    pub(crate) fn shown(&self) -> String {
        format!("layer entry {:?}", String::from_utf8_lossy(&self.path))
    }
}

/// An archive that is being read, entry by entry.
pub(crate) struct Archive<R> {
    reader: R,
    /// Data of the current entry that was not read yet.
    remaining: u64,
    /// Zero bytes behind it, up to a whole block.
    padding: u64,
}

impl<R: BufRead> Archive<R> {
    pub(crate) fn new(reader: R) -> Archive<R> {
        Archive { reader, remaining: 0, padding: 0 }
    }

    pub(crate) fn into_reader(self) -> R {
        self.reader
    }

    /// The next entry; `None` at the end. Unread data of the entry before is skipped.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut extended = Extended::default();
        loop {
            let Some(header) = self.next_header()? else {
                if extended.is_empty() {
                    return Ok(None);
                }
                return Err(malformed("it ends behind a header that announces another"));
            };
            let size = header.size()?;
            match header.type_flag() {
                b'x' => extended.add_pax(&self.metadata(size, PAX_MAX)?)?,
                b'g' => pax::check_global(&self.metadata(size, PAX_MAX)?)?,
                b'L' => extended.set_long_name(self.metadata(size, LONG_NAME_MAX)?)?,
                b'K' => extended.set_long_link(self.metadata(size, LONG_NAME_MAX)?)?,
                _ => return self.entry(&header, extended).map(Some),
            }
        }
    }

    /// Some of the current entry's data that was not consumed yet; empty at its end.
    pub(crate) fn data(&mut self) -> Result<&[u8]> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let buffer = self.reader.fill_buf().map_err(unreadable)?;
        if buffer.is_empty() {
            return Err(truncated());
        }
        let length = buffer.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        Ok(&buffer[..length])
    }

    /// Marks `count` bytes of [`Archive::data`] as read.
    pub(crate) fn consume(&mut self, count: usize) {
        self.reader.consume(count);
        self.remaining -= count as u64;
    }

    /// Reads what stands behind the end of the archive, so that a digest over the stream is whole.
    pub(crate) fn drain(&mut self) -> Result<()> {
        loop {
            let length = self.reader.fill_buf().map_err(unreadable)?.len();
            if length == 0 {
                return Ok(());
            }
            self.reader.consume(length);
        }
    }

    fn entry(&mut self, header: &Header, mut extended: Extended) -> Result<Entry> {
        let mut entry = header.entry()?;
        extended.apply(&mut entry);
        // Only the whole name tells: one that was cut to fit into the header may end in a slash by chance.
        if header.is_plain() && entry.path.ends_with(b"/") {
            entry.kind = Kind::Directory;
        }
        // The PAX size wins over the header's, always.
        let stored = match &entry.kind {
            Kind::File => extended.size.unwrap_or(header.size()?),
            // Some writers give a hard link the size of its target; nobody stores data with it.
            Kind::HardLink => 0,
            _ if extended.size.unwrap_or(header.size()?) == 0 => 0,
            _ => return Err(malformed("an entry that cannot have data has some")),
        };
        self.remaining = stored;
        self.padding = stored.next_multiple_of(BLOCK as u64) - stored;
        entry.size = stored;
        self.apply_sparse(header, &mut entry, &extended)?;
        check_names(&entry)?;
        Ok(entry)
    }

    fn apply_sparse(&mut self, header: &Header, entry: &mut Entry, extended: &Extended) -> Result<()> {
        if let Some((extents, is_extended)) = header.gnu_sparse()? {
            let mut extents = extents;
            let mut more = is_extended;
            while more {
                more = sparse::add_gnu_block(&self.block()?.ok_or_else(truncated)?, &mut extents)?;
            }
            entry.size = header.gnu_real_size()?;
            entry.extents = Some(extents);
        } else if let Some(form) = extended.sparse()? {
            if entry.kind != Kind::File {
                return Err(malformed("a sparse map belongs to something that is no file"));
            }
            entry.size = form.real_size;
            entry.extents = Some(match form.extents {
                Some(extents) => extents,
                None => self.sparse_map_in_data()?,
            });
        }
        match &entry.extents {
            Some(extents) => sparse::check(extents, entry.size, self.remaining),
            None => Ok(()),
        }
    }

    /// Form 1.0: the map stands in the first blocks of the data, as lines of decimal numbers.
    fn sparse_map_in_data(&mut self) -> Result<Vec<Extent>> {
        let mut map = sparse::TextMap::default();
        while !map.is_complete() {
            if self.remaining < BLOCK as u64 {
                return Err(malformed("its sparse map does not end"));
            }
            let block = self.block()?.ok_or_else(truncated)?;
            self.remaining -= BLOCK as u64;
            map.add(&block)?;
        }
        Ok(map.into_extents())
    }

    fn next_header(&mut self) -> Result<Option<Header>> {
        self.skip()?;
        let Some(block) = self.block()? else { return Ok(None) };
        if block.iter().any(|byte| *byte != 0) {
            return Header::parse(block).map(Some);
        }
        // Two zero blocks end an archive; some writers leave the second one out.
        match self.block()? {
            Some(second) if second.iter().any(|byte| *byte != 0) => Err(malformed("data follows a lone zero block")),
            _ => Ok(None),
        }
    }

    /// Skips what is left of the current entry.
    fn skip(&mut self) -> Result<()> {
        let mut left = std::mem::take(&mut self.remaining) + std::mem::take(&mut self.padding);
        while left > 0 {
            let length = self.reader.fill_buf().map_err(unreadable)?.len() as u64;
            if length == 0 {
                return Err(truncated());
            }
            let step = length.min(left);
            self.reader.consume(step as usize);
            left -= step;
        }
        Ok(())
    }

    /// One block; `None` where the archive ends at a block's border.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(truncated()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(error)),
            }
        }
        Ok(Some(block))
    }

    /// The data of a header that describes the next entry.
    fn metadata(&mut self, size: u64, most: u64) -> Result<Vec<u8>> {
        if size > most {
            return Err(malformed(format!("a header of {size} bytes is longer than {most}")));
        }
        let mut bytes = vec![0; size as usize];
        self.reader.read_exact(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => truncated(),
            _ => unreadable(error),
        })?;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(bytes)
    }
}

fn check_names(entry: &Entry) -> Result<()> {
    let bad = |name: &[u8]| name.contains(&0);
    if entry.path.is_empty() || bad(&entry.path) || bad(&entry.link) {
        return Err(Error::layer(entry.shown(), "its name is empty or holds a NUL"));
    }
    let is_link = matches!(entry.kind, Kind::HardLink | Kind::Symlink);
    if is_link && entry.link.is_empty() {
        return Err(Error::layer(entry.shown(), "it links to nothing"));
    }
    Ok(())
}

fn malformed(why: impl Into<String>) -> Error {
    Error::layer("read the layer's archive", why)
}

fn truncated() -> Error {
    malformed("it ends too early")
}

/// What the stream below says: a broken compression, or an unreadable file.
fn unreadable(error: io::Error) -> Error {
    match error.downcast::<crate::diff::stream::Failure>() {
        Ok(failure) => failure.into_error(),
        Err(error) => Error::io("read the layer", error),
    }
}

#[cfg(test)]
mod tests;
