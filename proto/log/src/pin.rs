//! Pins: how a reader that must not lose anything says so.
//!
//! A pin is a file in `pins/` with the reader's offset in its first eight bytes, and a lock (`flock`, which belongs to
//! the open file as OFD locks do) that the reader holds. The lock ends with the reader, however that ends, and so does
//! the pin. `pins/` is a directory of its own so that a reader which watches the log is not woken by pins that move.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::Error;

const PINS: &str = "pins";
/// Not yet locked: no writer looks at it.
const UNFINISHED: char = '.';

/// A reader's pin; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Pin {
    pins: OwnedFd,
    name: String,
    file: OwnedFd,
    offset: u64,
}

impl Pin {
    /// Pins everything from `offset` on.
    pub(crate) fn new(directory: BorrowedFd<'_>, path: &Path, offset: u64) -> Result<Pin, Error> {
        create(directory, offset).map_err(|error| Error::Io {
            attempt: "make a pin in",
            path: path.join(PINS),
            source: error.into(),
        })
    }

    /// Lets go of everything before `offset`.
    pub(crate) fn advance(&mut self, offset: u64) -> io::Result<()> {
        if offset != self.offset {
            rustix::io::pwrite(&self.file, &offset.to_le_bytes(), 0)?;
            self.offset = offset;
        }
        Ok(())
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // Should this fail, the writer removes the file when it sees that nobody holds the lock.
        let _ = rustix::fs::unlinkat(&self.pins, &self.name, AtFlags::empty());
    }
}

fn create(directory: BorrowedFd<'_>, offset: u64) -> Result<Pin, Errno> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    match rustix::fs::mkdirat(directory, PINS, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let pins = rustix::fs::openat(directory, PINS, flags, Mode::empty())?;
    loop {
        let name = format!("{:x}-{:x}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let unfinished = format!("{UNFINISHED}{name}");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&pins, &unfinished, flags, Mode::RUSR | Mode::WUSR)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        rustix::io::pwrite(&file, &offset.to_le_bytes(), 0)?;
        // A process of the same number may have left a file, or may live in another pid namespace.
        match rustix::fs::renameat_with(&pins, &unfinished, &pins, &name, rustix::fs::RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(Pin { pins, name, file, offset }),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The lowest offset that a living reader pins. Pins of the dead are removed.
pub(crate) fn lowest(directory: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let pins = match rustix::fs::openat(directory, PINS, flags, Mode::empty()) {
        Ok(pins) => pins,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut lowest = None;
    for entry in Dir::read_from(&pins)? {
        let entry = entry?;
        if entry.file_name().to_bytes().first() == Some(&(UNFINISHED as u8)) {
            continue;
        }
        if let Some(offset) = living(pins.as_fd(), entry.file_name())? {
            lowest = Some(lowest.map_or(offset, |low: u64| low.min(offset)));
        }
    }
    Ok(lowest)
}

/// The offset of a pin whose reader lives.
fn living(pins: BorrowedFd<'_>, name: &std::ffi::CStr) -> io::Result<Option<u64>> {
    let file = match rustix::fs::openat(pins, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            // Nobody else removes it in between: its reader is dead, and there is one writer.
            rustix::fs::unlinkat(pins, name, AtFlags::empty())?;
            Ok(None)
        }
        Err(Errno::WOULDBLOCK) => {
            let mut bytes = [0; 8];
            let count = rustix::io::pread(&file, &mut bytes, 0)?;
            Ok((count == bytes.len()).then_some(u64::from_le_bytes(bytes)))
        }
        Err(error) => Err(error.into()),
    }
}

/// Where pins are, for messages.
pub(crate) fn directory(log: &Path) -> PathBuf {
    log.join(PINS)
}
