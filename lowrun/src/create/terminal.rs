//! A terminal in the foreground: bytes between the caller's terminal and the container's, size changes, raw mode.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, OutputModes, Termios};

use super::wait;
use crate::channel::receive_descriptor;
use crate::fault::{Attempt, Code, Fault, Result};
use crate::sys::{self, Call};

/// Bytes read at once.
const CHUNK: usize = 32 * 1024;
/// Most bytes of input that wait for a program that does not read.
const BACKLOG_MAX: usize = 256 * 1024;

/// How long a terminal that nobody has open is not looked at.
const CLOSED_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// The container's terminal, seen from outside.
pub struct Terminal {
    master: OwnedFd,
    /// The caller's settings, to be put back; `None` if stdin is no terminal.
    saved: Option<Termios>,
}

impl Terminal {
    /// Takes the master from the socket that the container side sent it through, and makes the caller's terminal raw.
    pub fn receive(socket: &OwnedFd) -> Result<Terminal> {
        let attempted = || "receive the terminal";
        let (_, master) = receive_descriptor(socket.as_fd(), &mut [0; 64]).attempt(Code::SystemError, attempted)?;
        let missing = || Fault::new(Code::SystemError, attempted()).cause("no descriptor came");
        let master = master.ok_or_else(missing)?;
        let stdin = rustix::stdio::stdin();
        let saved = rustix::termios::tcgetattr(stdin).ok();
        if let Some(saved) = &saved {
            let mut raw = saved.clone();
            raw.make_raw();
            // The container's terminal ends lines by a line feed alone: see `init::console`.
            raw.output_modes |= OutputModes::OPOST;
            rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw)
                .call("tcsetattr")
                .attempt(Code::SystemError, || "make the terminal raw")?;
        }
        let terminal = Terminal { master, saved };
        terminal.copy_size();
        Ok(terminal)
    }

    fn copy_size(&self) {
        // Without a terminal on stdin the container's keeps the size that it has.
        if let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdin()) {
            let _ = rustix::termios::tcsetwinsize(&self.master, size);
        }
    }

    /// Carries bytes and signals until the process has ended, then what output is left; gives the exit status.
    pub fn relay(&mut self, pidfd: BorrowedFd<'_>, signals: &OwnedFd) -> Result<i32> {
        let mut input = Input::default();
        loop {
            if let Some(status) = wait::try_reap(pidfd)? {
                self.drain();
                return Ok(status);
            }
            let [from_stdin, master, signal] = self.poll(&input, signals)?;
            if signal.contains(PollFlags::IN) {
                // It may have told of the end, which nothing will tell again: that is looked at before anything waits.
                self.take_signal(pidfd, signals)?;
                continue;
            }
            if master.contains(PollFlags::IN) {
                self.copy_output();
            } else if master.contains(PollFlags::HUP) {
                // Every slave is closed, which is told for as long as it is so: till somebody opens `/dev/console`
                // again, or the end, a pause from looking.
                pause(signals)?;
            }
            if !from_stdin.is_empty() {
                input.read();
            }
            if master.contains(PollFlags::OUT) {
                input.write(&self.master);
            }
        }
    }

    fn poll(&self, input: &Input, signals: &OwnedFd) -> Result<[PollFlags; 3]> {
        let stdin = rustix::stdio::stdin();
        let waiting = !input.bytes.is_empty();
        let reads = !input.ended && input.bytes.len() < BACKLOG_MAX;
        let mut fds = vec![
            PollFd::new(&self.master, if waiting { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN }),
            PollFd::new(signals, PollFlags::IN),
        ];
        // A stdin that has ended is ready for ever, whatever is asked of it: it is not looked at again.
        if reads {
            fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
        }
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => {
                let failure = sys::Failure { call: "poll", errno };
                return Err(Fault::of(Code::SystemError, "wait for the terminal", failure));
            }
        }
        let from_stdin = fds.get(2).map_or(PollFlags::empty(), PollFd::revents);
        Ok([from_stdin, fds[0].revents(), fds[1].revents()])
    }

    fn take_signal(&self, pidfd: BorrowedFd<'_>, signals: &OwnedFd) -> Result<()> {
        match sys::signal::next(signals.as_fd()).attempt(Code::SystemError, || "wait for the program")? {
            libc::SIGWINCH => self.copy_size(),
            signal => wait::hand_on(pidfd, signal),
        }
        Ok(())
    }

    /// Whether there may be more.
    fn copy_output(&self) -> bool {
        let mut chunk = vec![0; CHUNK];
        match rustix::io::read(&self.master, &mut chunk) {
            Ok(0) | Err(_) => false,
            Ok(length) => write_all(rustix::stdio::stdout(), &chunk[..length]),
        }
    }

    /// What the program wrote before its end and nobody read yet.
    fn drain(&self) {
        let _ = rustix::io::ioctl_fionbio(&self.master, true);
        while self.copy_output() {}
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, saved);
        }
    }
}

/// What was typed and not read yet.
#[derive(Default)]
struct Input {
    bytes: VecDeque<u8>,
    ended: bool,
}

impl Input {
    fn read(&mut self) {
        let mut chunk = vec![0; CHUNK];
        match rustix::io::read(rustix::stdio::stdin(), &mut chunk) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            Ok(0) | Err(_) => {
                // The end of a pipe is control-D on a terminal.
                self.bytes.push_back(4);
                self.ended = true;
            }
            Ok(length) => self.bytes.extend(&chunk[..length]),
        }
    }

    fn write(&mut self, master: &OwnedFd) {
        let (first, _) = self.bytes.as_slices();
        // Less than a terminal's line buffer at a time, so that the write does not wait for the program.
        let length = first.len().min(1024);
        if let Ok(written) = rustix::io::write(master, &first[..length]) {
            self.bytes.drain(..written);
        }
    }
}

/// Until a signal comes, but not long.
fn pause(signals: &OwnedFd) -> Result<()> {
    let mut polled = [PollFd::new(signals, PollFlags::IN)];
    match rustix::event::poll(&mut polled, Some(&CLOSED_PAUSE)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(Fault::of(Code::SystemError, "wait for the terminal", sys::Failure { call: "poll", errno })),
    }
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}
