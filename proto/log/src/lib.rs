//! The log of a container: what it wrote to stdout and stderr, byte for byte, with the time and the stream.
//!
//! One writer (the shim, or the small logger that stands in for it over a foreign shim) and any number of readers
//! (`logs`, `attach`, `run` in the foreground). They share nothing but a directory, so each may die and come back:
//!
//! ```text
//! DIR/0000000000000000.seg     segments, named by the offset of their first byte, in hexadecimal
//! DIR/0000000001000000.seg     the last one is written to; the oldest go when the log exceeds `keep_bytes`
//! DIR/pins/<random>            one per reader that must not lose anything: a file lock and the reader's offset
//! ```
//!
//! An *offset* is a position in all the segments ever written, laid end to end. It never changes its meaning: a reader
//! that lost its connection, its process or its machine's patience goes on where it was. The format of segments and
//! records is in [`format`](mod@format), the writer's promises are in [`Writer`], the reader's in [`Reader`].
//!
//! Nothing here logs, sleeps or starts a thread, and nothing is synced to disk: after a power cut the container is dead
//! too, and what the file system kept is readable up to the first damaged record.

#![forbid(unsafe_code)]

pub mod format;
mod pin;
mod reader;
mod segment;
mod target;
mod watch;
mod writer;

use std::fmt;
use std::io;
use std::path::PathBuf;

pub use format::{State, Stream};
pub use reader::{Batch, Next, Reader, Record, Start};
pub use target::{SCHEME, Target};
pub use watch::{WatchId, Watcher};
pub use writer::{Held, Hold, Writer};

/// How large a log may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A segment is closed before it would exceed this.
    pub segment_bytes: u64,
    /// The oldest segments are removed when all together exceed this.
    pub keep_bytes: u64,
}

/// Bytes that a pinned reader may be behind before the writer holds the container back.
pub const PINNED_MAX: u64 = 64 << 20;

impl Default for Limits {
    fn default() -> Limits {
        Limits { segment_bytes: 16 << 20, keep_bytes: 64 << 20 }
    }
}

/// Why a log cannot be opened, read or written.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a file of the log failed.
    Io { attempt: &'static str, path: PathBuf, source: io::Error },
    /// Another writer has the log open.
    Busy { path: PathBuf },
    /// A segment is not of this format or version.
    Foreign { path: PathBuf },
    /// There is no record at that offset.
    NoRecord { offset: u64 },
    /// The URI does not name a log.
    Target { uri: String, reason: &'static str },
}

impl Error {
    /// The error number behind it, if a system call failed.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Error::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { attempt, path, .. } => write!(f, "{attempt} {}", path.display()),
            Error::Busy { path } => write!(f, "the log {} has a writer already", path.display()),
            Error::Foreign { path } => write!(f, "{} is not a segment of a container log", path.display()),
            Error::NoRecord { offset } => write!(f, "no record of the log begins at offset {offset}"),
            Error::Target { uri, reason } => write!(f, "log address {uri:?}: {reason}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
