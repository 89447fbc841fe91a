//! The standard input and outputs of a process: where they come from, where they go, and the moving of bytes between.
//!
//! ```text
//! container ──pipe or terminal──▶ Output ──▶ FIFO | file | the container's log
//! container ◀─pipe or terminal─── Input  ◀── FIFO
//! container ──pipe──▶ logger (a program; the shim stays out of the way)
//! ```
//! Nothing here waits: each end is moved along when the kernel says that it can be.

mod console;
mod input;
mod logger;
mod output;

use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use strata_log::{Stream, Target, Writer};

pub(crate) use console::Console;
use input::Input;
pub(crate) use logger::Logger;
use output::{Output, Sink};

use crate::error::Error;
use crate::poll::{Interest, Poller, Source, Token};
use crate::task::Key;
use crate::timers::{Due, Timers};

/// Bytes read from a container at once.
const SCRATCH_LEN: usize = 64 << 10;
/// Output that could not be put away is offered again after this.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Descriptors below this may be places in a program to be started.
const FIRST_FREE: i32 = 10;
/// How often it is looked for the reader of a FIFO, and the pause between.
const READER_LOOKS: u32 = 200;
const READER_PAUSE: Duration = Duration::from_millis(1);

/// What a client asks for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) terminal: bool,
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// For whom a process's stdio is opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    pub(crate) container: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) bundle: &'a Path,
    pub(crate) key: Key,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// A buffer that is there while it is used.
#[derive(Debug, Default)]
pub(crate) struct Scratch(Vec<u8>);

impl Scratch {
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        self.0.resize(SCRATCH_LEN, 0);
        &mut self.0
    }

    pub(crate) fn release(&mut self) {
        self.0 = Vec::new();
    }
}

/// What is waited for on behalf of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// There is nothing to move.
    Empty,
    /// What there is cannot be put away yet.
    Full,
    /// As `Full`, and no descriptor tells when that changes.
    Later,
    /// More may be moved at once; others come first.
    More,
    /// The end.
    Ended,
}

/// Which registration stands for a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watch {
    Nothing,
    From(Token),
    To(Token),
}

/// The stdio of one process.
#[derive(Debug)]
pub(crate) struct Io {
    key: Key,
    /// For the process; dropped when the runtime has them.
    ends: Option<[OwnedFd; 3]>,
    outputs: Vec<Output>,
    input: Option<Input>,
    log: Option<Writer>,
    console: Option<Console>,
    logger: Option<Logger>,
}

impl Io {
    /// Opens everything that `request` names.
    pub(crate) fn open(request: &Request, owner: Owner<'_>, null: &OwnedFd) -> Result<Io, Error> {
        let mut io =
            Io { key: owner.key, ends: None, outputs: Vec::new(), input: None, log: None, console: None, logger: None };
        if request.stdout.starts_with(logger::SCHEME) && !request.terminal {
            io.open_logger(request, owner, null)?;
        } else {
            io.open_ends(request, owner, null)?;
        }
        Ok(io)
    }

    fn open_logger(&mut self, request: &Request, owner: Owner<'_>, null: &OwnedFd) -> Result<(), Error> {
        let (logger, [stdout, stderr]) = Logger::start(&request.stdout, owner.container, owner.namespace, null)?;
        let stdin = self.open_stdin(request, owner, null)?;
        self.logger = Some(logger);
        self.ends = Some([stdin, stdout, stderr]);
        Ok(())
    }

    fn open_ends(&mut self, request: &Request, owner: Owner<'_>, null: &OwnedFd) -> Result<(), Error> {
        let sinks = self.open_sinks(request)?;
        if request.terminal {
            self.console = Some(Console::listen(owner.bundle, owner.key)?);
            self.outputs.extend(sinks.into_iter().flatten().take(1).map(Output::of_terminal));
            if !request.stdin.is_empty() {
                self.input = Some(Input::new(&request.stdin));
            }
            self.ends = Some([duplicate(null)?, duplicate(null)?, duplicate(null)?]);
            return Ok(());
        }
        let stdin = self.open_stdin(request, owner, null)?;
        let [stdout, stderr] = sinks;
        self.ends = Some([stdin, self.open_output(stdout, owner, null)?, self.open_output(stderr, owner, null)?]);
        Ok(())
    }

    fn open_stdin(&mut self, request: &Request, owner: Owner<'_>, null: &OwnedFd) -> Result<OwnedFd, Error> {
        if request.stdin.is_empty() {
            return duplicate(null);
        }
        let (read, write) = pipe(owner)?;
        self.input = Some(Input::new(&request.stdin).into_pipe(write)?);
        Ok(read)
    }

    fn open_output(&mut self, sink: Option<Sink>, owner: Owner<'_>, null: &OwnedFd) -> Result<OwnedFd, Error> {
        let Some(sink) = sink else { return duplicate(null) };
        let (read, write) = pipe(owner)?;
        self.outputs.push(Output::of_pipe(read, sink)?);
        Ok(write)
    }

    fn open_sinks(&mut self, request: &Request) -> Result<[Option<Sink>; 2], Error> {
        let stdout = self.open_sink(&request.stdout, Stream::Stdout)?;
        if request.terminal {
            return Ok([stdout, None]);
        }
        if self.log.is_some() && request.stderr == request.stdout {
            return Ok([stdout, Some(Sink::Log(Stream::Stderr))]);
        }
        if self.log.is_some() && request.stderr.starts_with(strata_log::SCHEME) {
            return Err(Error::Invalid { what: "stdout and stderr name different logs".to_owned() });
        }
        Ok([stdout, self.open_sink(&request.stderr, Stream::Stderr)?])
    }

    fn open_sink(&mut self, uri: &str, stream: Stream) -> Result<Option<Sink>, Error> {
        match uri.split_once("://") {
            None if uri.is_empty() => Ok(None),
            None => open_path(uri).map(Some),
            Some(("fifo", path)) => open_path(path).map(Some),
            Some(("file", path)) => open_new_file(Path::new(path)).map(Some),
            Some(_) if uri.starts_with(strata_log::SCHEME) => {
                let target = Target::parse(uri).map_err(|source| Error::Invalid { what: source.to_string() })?;
                self.log = Some(Writer::open(&target, now_ns()).map_err(|source| Error::Log { source })?);
                Ok(Some(Sink::Log(stream)))
            }
            Some((scheme, _)) => Err(Error::Invalid { what: format!("stdio of the unknown scheme {scheme:?}") }),
        }
    }

    /// The descriptors for the process.
    pub(crate) fn ends(&self) -> Option<[BorrowedFd<'_>; 3]> {
        let [stdin, stdout, stderr] = self.ends.as_ref()?;
        Some([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])
    }

    /// Where the runtime is to send the terminal.
    pub(crate) fn console_socket(&self) -> Option<&str> {
        self.console.as_ref().map(Console::path)
    }

    /// The program that is to take the output; it says when it is ready.
    pub(crate) fn logger(&mut self) -> Option<&mut Logger> {
        self.logger.as_mut()
    }

    /// The process has its ends: begins to move bytes.
    pub(crate) fn begin(
        &mut self,
        poller: &mut Poller,
        timers: &mut Timers,
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        self.ends = None;
        if let Some(console) = &mut self.console {
            let master = console.receive()?;
            for output in &mut self.outputs {
                output.take_terminal(duplicate(master)?);
            }
            if let Some(input) = self.input.take() {
                self.input = Some(input.into_terminal(duplicate(master)?)?);
            }
        }
        self.move_outputs(poller, timers, scratch);
        Ok(())
    }

    /// The process is about to be started: takes input for it.
    pub(crate) fn begin_input(
        &mut self,
        poller: &mut Poller,
        timers: &mut Timers,
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        if let Some(input) = &mut self.input {
            input.open()?;
        }
        self.move_input(poller, timers, scratch);
        Ok(())
    }

    /// Moves all outputs along.
    pub(crate) fn move_outputs(&mut self, poller: &mut Poller, timers: &mut Timers, scratch: &mut Scratch) {
        for which in 0..self.outputs.len() as u8 {
            self.move_output(which, poller, timers, scratch);
        }
    }

    /// Moves one output along and waits for what it needs next.
    pub(crate) fn move_output(&mut self, which: u8, poller: &mut Poller, timers: &mut Timers, scratch: &mut Scratch) {
        let Some(output) = self.outputs.get_mut(usize::from(which)) else { return };
        let progress = output.advance(self.log.as_mut(), scratch);
        let is_watched = output.watch(progress, Source::Output(self.key, which), poller);
        if progress == Progress::Later || !is_watched {
            timers.set_once(Due::Output(self.key), RETRY_PAUSE);
        }
        self.end_log(timers);
    }

    /// Says in the log that it is complete, once it is.
    fn end_log(&mut self, timers: &mut Timers) {
        if !self.is_drained() {
            return;
        }
        let Some(log) = &mut self.log else { return };
        match log.finish(now_ns()) {
            Ok(()) => self.log = None,
            Err(_) => timers.set_once(Due::Output(self.key), RETRY_PAUSE),
        }
    }

    /// Moves the input along.
    pub(crate) fn move_input(&mut self, poller: &mut Poller, timers: &mut Timers, scratch: &mut Scratch) {
        let Some(input) = &mut self.input else { return };
        let progress = input.advance(scratch);
        if !input.watch(progress, Source::Input(self.key), poller) {
            timers.set_once(Due::Input(self.key), RETRY_PAUSE);
        }
        if progress == Progress::Ended {
            self.input = None;
        }
    }

    /// No more input will come: what is in the FIFO is the rest.
    pub(crate) fn close_input(
        &mut self,
        poller: &mut Poller,
        timers: &mut Timers,
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        if let Some(input) = &mut self.input {
            input.close();
        }
        self.begin_input(poller, timers, scratch)
    }

    /// Whether all output was taken to its end.
    pub(crate) fn is_drained(&self) -> bool {
        self.outputs.iter().all(Output::is_ended) && self.logger.as_ref().is_none_or(Logger::has_ended)
    }

    /// The process has ended: nobody reads its input, and no reader of the log holds back what its pipes still have.
    pub(crate) fn process_ended(&mut self, poller: &mut Poller) {
        if let Some(input) = self.input.take() {
            input.forget(poller);
        }
        if let Some(log) = &mut self.log {
            log.ignore_readers();
        }
    }

    /// Sets the size of the terminal, if there is one.
    pub(crate) fn resize(&self, width: u16, height: u16) -> Result<(), Error> {
        self.console.as_ref().map_or(Ok(()), |console| console.resize(width, height))
    }

    /// Lets go of everything. A log is told to be complete: nothing more will be written.
    pub(crate) fn close(&mut self, poller: &mut Poller) {
        for output in &mut self.outputs {
            output.watch(Progress::Ended, Source::Output(self.key, 0), poller);
        }
        self.outputs.clear();
        if let Some(input) = self.input.take() {
            input.forget(poller);
        }
        if let Some(mut log) = self.log.take() {
            // A full disk may refuse even this; readers learn from the container's state then.
            let _ = log.finish(now_ns());
        }
        self.console = None;
        self.ends = None;
        if let Some(logger) = self.logger.take() {
            logger.stop(poller);
        }
    }
}

/// Nanoseconds since 1970.
fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A pipe whose ends may be given to a program; they belong to the user that the options name.
fn pipe(owner: Owner<'_>) -> Result<(OwnedFd, OwnedFd), Error> {
    let failed = |source: io::Error| Error::System { what: "make a pipe".to_owned(), source };
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    if owner.uid != 0 || owner.gid != 0 {
        let (uid, gid) = (rustix::fs::Uid::from_raw(owner.uid), rustix::fs::Gid::from_raw(owner.gid));
        // Both ends are one inode.
        rustix::fs::fchown(&read, Some(uid), Some(gid)).map_err(|error| failed(error.into()))?;
    }
    Ok((above_stdio(read).map_err(failed)?, above_stdio(write).map_err(failed)?))
}

/// The descriptor, or a copy of it where its number might be a place in a program to be started.
pub(crate) fn above_stdio(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() >= FIRST_FREE {
        return Ok(fd);
    }
    Ok(rustix::io::fcntl_dupfd_cloexec(&fd, FIRST_FREE)?)
}

fn duplicate(fd: &OwnedFd) -> Result<OwnedFd, Error> {
    rustix::io::fcntl_dupfd_cloexec(fd, FIRST_FREE)
        .map_err(|error| Error::System { what: "duplicate a descriptor".to_owned(), source: error.into() })
}

fn failed(attempt: &str, path: &str, source: impl Into<io::Error>) -> Error {
    Error::Stdio { what: format!("{attempt} {path:?}"), source: source.into() }
}

/// A FIFO, opened for both directions so that a reader that goes away does not matter; or a file.
fn open_path(path: &str) -> Result<Sink, Error> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let _writer = await_reader(path);
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed("open", path, error))?;
    let stat = rustix::fs::fstat(&fd).map_err(|error| failed("stat", path, error))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => Ok(Sink::Fifo(fd)),
        _ => open_file(path, OFlags::empty()),
    }
}

/// Waits until somebody reads a FIFO, and returns what shows it. Clients open theirs before they ask for a container,
/// but those of containerd on a thread that may be late; what a short program wrote would be gone with the last writer
/// before they came. containerd's own shim waits for ever.
fn await_reader(path: &str) -> Option<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    for _ in 0..READER_LOOKS {
        match rustix::fs::open(path, flags, Mode::empty()) {
            Err(Errno::NXIO) => std::thread::sleep(READER_PAUSE),
            // Whatever else is wrong is told by who opens it to write.
            outcome => return outcome.ok(),
        }
    }
    None
}

fn open_new_file(path: &Path) -> Result<Sink, Error> {
    let text = path.to_string_lossy();
    if let Some(parent) = path.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(parent);
        made.map_err(|error| failed("make the directory of", &text, error))?;
    }
    open_file(&text, OFlags::CREATE)
}

fn open_file(path: &str, create: OFlags) -> Result<Sink, Error> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOCTTY | create;
    let mode = Mode::from_raw_mode(0o644);
    rustix::fs::open(path, flags, mode).map(Sink::File).map_err(|error| failed("open", path, error))
}

/// Registers what `progress` waits for, and nothing else; `false` when the kernel refuses.
fn watch(
    current: &mut Watch,
    wanted: Progress,
    ends: [Option<BorrowedFd<'_>>; 2],
    source: Source,
    poller: &mut Poller,
) -> bool {
    let is_right = matches!(
        (*current, wanted),
        (Watch::From(_), Progress::Empty | Progress::More)
            | (Watch::To(_), Progress::Full)
            | (Watch::Nothing, Progress::Later | Progress::Ended)
    );
    if is_right {
        return true;
    }
    let [from, to] = ends;
    match (*current, from, to) {
        (Watch::From(token), Some(from), _) => poller.remove(token, from),
        (Watch::To(token), _, Some(to)) => poller.remove(token, to),
        _ => {}
    }
    let added = match (wanted, from, to) {
        (Progress::Empty | Progress::More, Some(from), _) => poller.add(from, source, Interest::Read).map(Watch::From),
        (Progress::Full, _, Some(to)) => poller.add(to, source, Interest::Write).map(Watch::To),
        _ => Ok(Watch::Nothing),
    };
    *current = *added.as_ref().unwrap_or(&Watch::Nothing);
    added.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_comes_late_misses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let (sender, said) = std::sync::mpsc::channel();
        let late = path.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            sender.send(std::fs::read(late).unwrap()).unwrap();
        });
        let Ok(Sink::Fifo(fifo)) = open_path(path.to_str().unwrap()) else { panic!("no FIFO") };
        rustix::io::write(&fifo, b"all").unwrap();
        drop(fifo);
        assert_eq!(said.recv_timeout(Duration::from_secs(5)).unwrap(), b"all");
    }
}
