//! Programs, started by a thread that has few descriptors.
//!
//! A child begins with a copy of its parent's table of descriptors, and `exec` closes them one by one. shimd holds about
//! four for each container, so beside 300 containers that took 0.4 ms of every run, and more beside more. Tables belong to
//! threads: the one here has a table of its own (`unshare(CLONE_FILES)`, unshare(2)), which stays as small as it was at
//! shimd's start. What a child shall have on its standard streams crosses over a socket, as to another process.
//!
//! The thread knows no descriptor of shimd but its end of that socket, so it must not use anything that holds one: it
//! logs nothing and wakes no task of the runtime. Whoever asks waits for it, which is no longer than a `vfork` takes.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use crate::sys;

/// Standard input, output and error.
const STREAMS: usize = 3;

/// The thread, as the others know it.
pub(crate) struct Spawner(Mutex<Line>);

/// One program at a time is started over it.
struct Line {
    socket: OwnedFd,
    orders: Sender<Command>,
    started: Receiver<io::Result<u32>>,
}

/// A program that was started. It is reaped whether or not somebody waits for it.
pub(crate) struct Child {
    /// Closed when all is written.
    stdin: Option<pipe::Sender>,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
    pidfd: OwnedFd,
    end: JoinHandle<io::Result<ExitStatus>>,
}

impl Spawner {
    /// Starts the thread. The earlier, the fewer descriptors there are to be forgotten.
    ///
    /// # Errors
    /// When the thread or its table cannot be made.
    pub(crate) fn start() -> io::Result<Spawner> {
        let (ours, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let (orders, taken) = channel();
        let (answers, started) = channel();
        std::thread::Builder::new().name("spawner".to_owned()).spawn(move || {
            let private = sys::keep_descriptor_alone(its.as_fd());
            let is_private = private.is_ok();
            if answers.send(private.map(|()| 0)).is_ok() && is_private {
                serve(its.as_fd(), &taken, &answers);
            }
        })?;
        started.recv().map_err(|_| gone())??;
        Ok(Spawner(Mutex::new(Line { socket: ours, orders, started })))
    }

    /// Starts a program with pipes for its three streams.
    ///
    /// # Errors
    /// Those of execve(2), and of making pipes.
    pub(crate) fn spawn(&self, command: Command) -> io::Result<Child> {
        let (its_stdin, stdin) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stdout, its_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, its_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        let pid = self.order(command, &[its_stdin.as_fd(), its_stdout.as_fd(), its_stderr.as_fd()])?;
        // Nobody else waits for it: the pid stays its own until it is reaped below.
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        let end = tokio::spawn(reap(pidfd.try_clone()?));
        Ok(Child {
            stdin: Some(pipe::Sender::from_owned_fd(stdin)?),
            stdout: pipe::Receiver::from_owned_fd(stdout)?,
            stderr: pipe::Receiver::from_owned_fd(stderr)?,
            pidfd,
            end,
        })
    }

    fn order(&self, command: Command, streams: &[BorrowedFd<'_>; STREAMS]) -> io::Result<Pid> {
        let line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        send(line.socket.as_fd(), streams)?;
        line.orders.send(command).map_err(|_| gone())?;
        let pid = line.started.recv().map_err(|_| gone())??;
        Pid::from_raw(pid.cast_signed()).ok_or_else(gone)
    }
}

impl Child {
    /// Writes `input` to it, reads what it says, of either stream at most `limit` bytes, and waits for its end.
    pub(crate) async fn converse(&mut self, input: &[u8], limit: usize) -> io::Result<Output> {
        if let Some(mut stdin) = self.stdin.take() {
            // It need not read it.
            let _ = stdin.write_all(input).await;
        }
        let (stdout, stderr) =
            tokio::try_join!(read_bounded(&mut self.stdout, limit), read_bounded(&mut self.stderr, limit))?;
        let status = (&mut self.end).await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
        Ok(Output { status, stdout, stderr })
    }

    /// Kills it; it is reaped in the background.
    pub(crate) fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

async fn read_bounded(from: &mut pipe::Receiver, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(256);
    from.take(limit as u64).read_to_end(&mut bytes).await?;
    // What is beyond the bound is read and forgotten: a full pipe would stop the child.
    tokio::io::copy(from, &mut tokio::io::sink()).await?;
    Ok(bytes)
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the thread that starts programs has ended")
}

async fn reap(pidfd: OwnedFd) -> io::Result<ExitStatus> {
    let pidfd = sys::readable(pidfd)?;
    // A pidfd is readable when its process is a zombie.
    drop(pidfd.readable().await?);
    let status =
        waitid(WaitId::PidFd(pidfd.get_ref().as_fd()), WaitIdOptions::EXITED)?.ok_or(io::ErrorKind::WouldBlock)?;
    Ok(ExitStatus::from_raw(raw(&status)))
}

/// The status as wait(2) encodes it.
fn raw(status: &WaitIdStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code << 8,
        (None, signal) => signal.unwrap_or_default(),
    }
}

/// What the thread does until shimd ends.
fn serve(socket: BorrowedFd<'_>, orders: &Receiver<Command>, started: &Sender<io::Result<u32>>) {
    while let Ok(mut command) = orders.recv() {
        let outcome = receive(socket).and_then(|[stdin, stdout, stderr]| {
            let command = command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(Stdio::from(stderr));
            command.spawn().map(|child| child.id())
        });
        // The streams are closed before the answer goes: the command holds them.
        drop(command);
        if started.send(outcome).is_err() {
            return;
        }
    }
}

fn send(socket: BorrowedFd<'_>, streams: &[BorrowedFd<'_>; STREAMS]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STREAMS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(streams)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(socket, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<[OwnedFd; STREAMS]> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STREAMS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [IoSliceMut::new(&mut [0])], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    // Fewer than were sent arrive where the table is full.
    rights.flatten().collect::<Vec<_>>().try_into().map_err(|_| rustix::io::Errno::MFILE.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    async fn output(child: &mut Child, input: &str) -> Output {
        child.converse(input.as_bytes(), 16).await.unwrap()
    }

    #[tokio::test]
    async fn a_program_gets_its_streams_and_its_status_comes_back() {
        let spawner = Spawner::start().unwrap();
        let mut child = spawner.spawn(shell("read word; echo $word; echo wrong >&2; exit 7")).unwrap();
        let output = output(&mut child, "right\n").await;
        assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"right\n"[..], &b"wrong\n"[..]));
        assert_eq!(output.status.code(), Some(7));
    }

    #[tokio::test]
    async fn of_a_flood_the_begin_is_kept() {
        let spawner = Spawner::start().unwrap();
        let mut child = spawner.spawn(shell("yes | head -c 1000000")).unwrap();
        assert_eq!(output(&mut child, "").await.stdout, b"y\ny\ny\ny\ny\ny\ny\ny\n");
    }

    #[tokio::test]
    async fn a_killed_program_ends_by_the_signal() {
        let spawner = Spawner::start().unwrap();
        let mut child = spawner.spawn(shell("exec sleep 1000")).unwrap();
        child.kill();
        assert_eq!(output(&mut child, "").await.status.signal(), Some(libc::SIGKILL));
    }

    #[tokio::test]
    async fn what_cannot_be_executed_is_an_error_and_the_next_is_started() {
        let spawner = Spawner::start().unwrap();
        let error = spawner.spawn(Command::new("/there/is/no/such/program")).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let mut child = spawner.spawn(shell("exit 3")).unwrap();
        assert_eq!(output(&mut child, "").await.status.code(), Some(3));
    }

    #[tokio::test]
    async fn the_thread_knows_none_of_the_descriptors_of_the_others() {
        // Inherited on purpose: were the table shared, the child would have it.
        let leak = std::fs::File::open("/dev/null").unwrap();
        rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
        let spawner = Spawner::start().unwrap();
        let mut child = spawner.spawn(shell("ls /proc/self/fd | wc -l")).unwrap();
        // The three streams and that of `ls` for the directory.
        assert_eq!(output(&mut child, "").await.stdout, b"4\n");
    }
}
