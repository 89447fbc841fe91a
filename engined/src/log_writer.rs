//! The small logger that a stock shim starts for a container, in place of what our shim does itself.
//!
//! By containerd's contract for logging programs the container's stdout and stderr are descriptors 3 and 4; descriptor 5
//! is closed when the program is ready; the arguments are the keys and values of the address's query. Started by the
//! engine itself it is told the paths of two FIFOs instead. What is written is the same log, with one difference to our
//! shim's: a disk that is full is tried again from time to time.
//!
//! It lives exactly as long as the container's output.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags};
use strata_log::{Held, Stream, Target, Writer};

use crate::daemon::Chain;
use crate::sys;

/// The key of the query, and so the first argument.
const KEY: &str = "log-writer";
/// Bytes that are read at once: what a pipe holds.
const READ_MAX: usize = 64 << 10;
/// How often a log that cannot be written is tried again.
const HELD_PAUSE: Duration = Duration::from_millis(50);

/// What this program was started to write.
pub(crate) struct Task {
    target: String,
    /// FIFOs of stdout and stderr; `None`: the descriptors that a shim passes.
    fifos: Option<[PathBuf; 2]>,
}

/// The log that this program was started to write, if it was.
pub(crate) fn asked() -> Option<Task> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != KEY {
        return None;
    }
    let target = arguments.next().unwrap_or_default().to_string_lossy().into_owned();
    let fifos = arguments.next().zip(arguments.next()).map(|(stdout, stderr)| [stdout.into(), stderr.into()]);
    Some(Task { target, fifos })
}

/// Writes the log until both streams have ended.
pub(crate) fn run(task: &Task) -> ExitCode {
    match copy_all(task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("engined log-writer: {}", Chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn copy_all(task: &Task) -> Result<(), Box<dyn std::error::Error>> {
    let target = Target::parse(&task.target)?;
    let mut writer = Writer::open(&target, now_ns())?;
    let mut sources = match &task.fifos {
        Some([stdout, stderr]) => vec![(Stream::Stdout, opened(stdout)?), (Stream::Stderr, opened(stderr)?)],
        None => passed(),
    };
    let mut buffer = vec![0; READ_MAX];
    while !sources.is_empty() {
        let readable = readable(&sources)?;
        // From the last: removing one moves only those behind it.
        for index in readable.into_iter().rev() {
            let (stream, file) = &mut sources[index];
            match file.read(&mut buffer) {
                // EIO is how a terminal ends.
                Ok(0) => drop(sources.remove(index)),
                Err(error) if error.raw_os_error() == Some(libc::EIO) => drop(sources.remove(index)),
                Ok(length) => append(&mut writer, *stream, &buffer[..length]),
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    until_taken(|| writer.finish(now_ns()));
    Ok(())
}

fn passed() -> Vec<(Stream, File)> {
    let sources = vec![(Stream::Stdout, sys::inherited(3)), (Stream::Stderr, sys::inherited(4))];
    // Closing it tells the shim that we are ready.
    drop(sys::inherited(5));
    sources
}

/// Opens a FIFO whose writer may come later: polled, it is silent until one has come.
fn opened(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?.into())
}

/// Which of the sources can be read without waiting, in order.
fn readable(sources: &[(Stream, File)]) -> io::Result<Vec<usize>> {
    let mut fds: Vec<PollFd<'_>> = sources.iter().map(|(_, file)| PollFd::new(file, PollFlags::IN)).collect();
    match rustix::event::poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(fds.iter().enumerate().filter(|(_, fd)| !fd.revents().is_empty()).map(|(index, _)| index).collect())
}

/// Appends all of it: while the log cannot take it, the container waits.
fn append(writer: &mut Writer, stream: Stream, bytes: &[u8]) {
    let mut taken = 0;
    until_taken(|| writer.append(stream, now_ns(), &bytes[taken..]).inspect_err(|held| taken += held.taken));
}

fn until_taken(mut attempt: impl FnMut() -> Result<(), Held>) {
    while attempt().is_err() {
        std::thread::sleep(HELD_PAUSE);
    }
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
