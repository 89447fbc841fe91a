//! The file of a container's state: lines of JSON, to which others are added.
//!
//! ```text
//! {"format":1,"id":…,"init":null,…}    before anything else is made, and again when its cgroup is known to be kept
//! {"init":{"pid":…,…}}                 when the first process is known
//! ```
//!
//! The last whole state counts, with the process that is named behind it. A first line that is not whole yet, or never
//! will be, is none: nothing has been made then.
//!
//! Who makes the file makes the container. The file is locked from then on until the container is whole: the host side lets
//! go of it when the process is named, the container side when nothing is left that it needs the host side for. So a process
//! that is named behind a lock may be neither entered nor started, whatever has become of the host side.
//!
//! A second file that is renamed over the first would do too, but costs an inode more: on ext4 that is a search which passes
//! over all that were freed within the last seconds, and a write-back that the removal waits for.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Dir, Identity, State};
use crate::cgroup::Cgroup;
use crate::fault::{Attempt, Code, Fault, Result};
use crate::sys::{Call, Failure};

/// Version of the state file; another one is not understood.
pub(super) const FORMAT: u32 = 1;
pub(super) const NAME: &str = "state.json";

/// A line that names the first process of the state before it.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Named {
    init: Identity,
}

/// The state file of who makes the container, locked.
#[derive(Debug)]
pub struct StateFile {
    file: File,
    path: PathBuf,
}

impl StateFile {
    /// Makes the state file in a directory. `None` if that is another's to do: then the directory has been removed, or is one
    /// that another has made meanwhile.
    pub(super) fn claim(dir: &Dir) -> crate::sys::Result<Option<StateFile>> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&dir.fd, NAME, flags, Mode::from_raw_mode(0o600)) {
            Err(Errno::NOENT | Errno::EXIST) => return Ok(None),
            result => result.call("openat")?,
        };
        rustix::fs::flock(&file, FlockOperation::LockExclusive).call("flock")?;
        Ok(Some(StateFile { file: file.into(), path: dir.path.join(NAME) }))
    }

    /// The descriptor, as the container side knows it: by its copy the file stays locked until that is closed.
    pub fn number(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Adds a state.
    pub fn save(&mut self, state: &State) -> Result<()> {
        self.append(state)
    }

    /// Adds the first process of the state that was saved last, and lets go of the file.
    pub fn save_init(mut self, init: &Identity) -> Result<()> {
        self.append(&Named { init: init.clone() })
    }

    fn append(&mut self, line: &impl Serialize) -> Result<()> {
        let attempted = || format!("write {}", self.path.display());
        let mut line = serde_json::to_vec(line)
            .map_err(|error| Fault::new(Code::StateInvalid, attempted()).cause(error.to_string()))?;
        line.push(b'\n');
        self.file.write_all(&line).call("write").attempt(Code::StateInvalid, attempted)
    }
}

/// The text of the state file; `ENOENT` if nothing in it is whole.
pub(crate) fn read_state(dir: &Dir) -> crate::sys::Result<Vec<u8>> {
    read(dir).map(|(text, _)| text)
}

/// As [`read_state`]; `None` while the container is made or removed.
///
/// The locks are looked at after the text was read: who wrote it had them then, and who has let go of them is done.
pub(super) fn read_settled(dir: &Dir) -> crate::sys::Result<Option<Vec<u8>>> {
    let read = read(dir);
    if read.as_ref().is_ok_and(|(_, file)| is_locked(file)) || dir.is_locked() {
        return Ok(None);
    }
    read.map(|(text, _)| Some(text))
}

/// Whether the container side is at work still.
pub(super) fn is_half_made(dir: &Dir) -> bool {
    open(dir).is_ok_and(|file| is_locked(&file))
}

/// The file is this process's alone: closed, it is unlocked.
fn is_locked(file: &File) -> bool {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
}

fn open(dir: &Dir) -> crate::sys::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(&dir.fd, NAME, flags, Mode::empty()).call("openat").map(File::from)
}

fn read(dir: &Dir) -> crate::sys::Result<(Vec<u8>, File)> {
    let (mut text, mut file) = (Vec::with_capacity(4096), open(dir)?);
    file.read_to_end(&mut text).call("read")?;
    if text.contains(&b'\n') { Ok((text, file)) } else { Err(Failure { call: "read", errno: Errno::NOENT }) }
}

/// Reads the text of the state file at `path`.
pub fn parse_state(path: &Path, text: &[u8]) -> Result<State> {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    let damaged = |cause: String| {
        Fault::new(Code::StateInvalid, format!("read {}", path.join(NAME).display()))
            .cause(cause)
            .hint("`lowrun delete --force` removes what is left of the container")
    };
    let (line, named) = last_lines(text);
    let head: Head = serde_json::from_slice(line).map_err(|error| damaged(error.to_string()))?;
    if head.format != FORMAT {
        return Err(damaged(format!("format {} is of another version of lowrun", head.format)));
    }
    let mut state: State = serde_json::from_slice(line).map_err(|error| damaged(error.to_string()))?;
    state.init = named.or(state.init.take());
    Ok(state)
}

/// What can be read of a state that as a whole cannot.
pub(crate) struct Remains {
    pub(crate) init: Option<Identity>,
    pub(crate) cgroup: Option<Cgroup>,
}

impl Remains {
    pub(crate) fn read(text: &[u8]) -> Remains {
        let (line, named) = last_lines(text);
        let value: serde_json::Value = serde_json::from_slice(line).unwrap_or_default();
        let init = named.or_else(|| serde_json::from_value(value["init"].clone()).ok());
        Remains { init, cgroup: serde_json::from_value(value["cgroup"].clone()).ok() }
    }
}

/// The last whole state (where nothing is whole, all there is), and who is named behind it.
fn last_lines(text: &[u8]) -> (&[u8], Option<Identity>) {
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(text, |end| &text[..end]);
    let (before, last) = split_last(whole);
    match serde_json::from_slice::<Named>(last) {
        Ok(named) => (split_last(before).1, Some(named.init)),
        Err(_) => (last, None),
    }
}

/// What stands before the last line, and that line.
fn split_last(text: &[u8]) -> (&[u8], &[u8]) {
    match text.iter().rposition(|byte| *byte == b'\n') {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (b"", text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_file_of_another_version_is_told_as_such() {
        let fault = parse_state(Path::new("/s"), br#"{"format":99,"new":true}"#).unwrap_err();
        assert!(fault.one_line().contains("another version"), "{}", fault.one_line());
        assert_eq!(parse_state(Path::new("/s"), b"{").unwrap_err().code, Code::StateInvalid);
    }

    #[test]
    fn the_last_whole_line_counts() {
        for (text, line) in [("", ""), ("a", "a"), ("a\n", "a"), ("a\nb\n", "b"), ("a\nb\nc", "b"), ("\n", "")] {
            assert_eq!(last_lines(text.as_bytes()), (line.as_bytes(), None), "{text:?}");
        }
        let init = Identity::of(rustix::process::getpid()).unwrap();
        let named = serde_json::to_string(&Named { init: init.clone() }).unwrap();
        assert_eq!(last_lines(format!("a\nb\n{named}\n").as_bytes()), (&b"b"[..], Some(init)));
        assert_eq!(last_lines(format!("a\nb\n{named}").as_bytes()), (&b"b"[..], None));
    }

    #[test]
    fn a_first_line_that_is_not_whole_is_none() {
        let root = tempfile::tempdir().unwrap();
        let (dir, _file) = Dir::create(root.path(), "c1").unwrap();
        for (text, is_there) in [("", false), ("{\"format\":1", false), ("{}\n", true), ("{}\n{", true)] {
            std::fs::write(dir.path().join(NAME), text).unwrap();
            assert_eq!(read_state(&dir).is_ok(), is_there, "{text:?}");
        }
    }
}
