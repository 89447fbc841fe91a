//! The small logger that a stock shim starts for a container, in place of what our shim does itself.
//!
//! containerd's contract for logging programs: the container's stdout and stderr are descriptors 3 and 4; descriptor 5 is
//! closed when the program is ready; the arguments are the keys and values of the address's query. What is written is
//! the same log, with one difference to our shim's: a disk that is full is tried again from time to time.
//!
//! It lives exactly as long as the container's output.

use std::fs::File;
use std::io::{self, Read};
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

/// The address of the log, if this program was started to write one.
pub(crate) fn asked() -> Option<String> {
    let mut arguments = std::env::args().skip(1);
    let key = arguments.next()?;
    (key == KEY).then(|| arguments.next().unwrap_or_default())
}

/// Writes the log until both streams have ended.
pub(crate) fn run(target: &str) -> ExitCode {
    match copy_all(target) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("engined log-writer: {}", Chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn copy_all(target: &str) -> Result<(), Box<dyn std::error::Error>> {
    let target = Target::parse(target)?;
    let mut writer = Writer::open(&target, now_ns())?;
    let mut sources = vec![(Stream::Stdout, sys::inherited(3)), (Stream::Stderr, sys::inherited(4))];
    // Closing it tells the shim that we are ready.
    drop(sys::inherited(5));
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
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    until_taken(|| writer.finish(now_ns()));
    Ok(())
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
