//! Programs, started by a thread that has few descriptors.
//!
//! A child begins with a copy of its parent's table of descriptors, and `exec` closes them one by one. shimd holds
//! about four for each container, so beside 300 containers that took 0.4 ms of every run, and more beside more. Tables
//! belong to threads: the one here has a table of its own (`unshare(CLONE_FILES)`, unshare(2)), which stays as small as
//! it was at shimd's start. What a child shall have on its standard streams crosses over a socket, as to another
//! process.
//!
//! The thread knows no descriptor of shimd but its end of that socket, so it must not use anything that holds one: it
//! logs nothing and wakes no task of the runtime. A thread that may block waits for its answer.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, WaitOptions, kill_process, pidfd_open,
    pidfd_send_signal, waitid, waitpid,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use crate::sys;

/// Standard input, output and error.
const STREAMS: usize = 3;

/// How long a zombie that cannot be reaped yet (a debugger has it) is left alone.
const REAP_PAUSE: Duration = Duration::from_millis(10);

/// The thread, as the others know it.
pub(crate) struct Spawner(Arc<Mutex<Line>>);

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
    pidfd: Arc<AsyncFd<OwnedFd>>,
    end: JoinHandle<io::Result<ExitStatus>>,
    is_killed_on_drop: bool,
}

impl Spawner {
    /// Starts the thread. The earlier, the fewer descriptors there are to be forgotten.
    ///
    /// # Errors
    /// When the thread or its table cannot be made.
    pub(crate) fn start() -> io::Result<Spawner> {
        let (socket, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let (orders, taken) = channel();
        let (answers, started) = channel();
        sys::start_with_own_descriptors("spawner", its, move |socket| serve(socket.as_fd(), &taken, &answers))?;
        Ok(Spawner(Arc::new(Mutex::new(Line { socket, orders, started }))))
    }

    /// Starts a program with pipes for its three streams; `command` says nothing of them.
    ///
    /// An `exec` may hang (a program on a network file system): so it is waited for where waiting is allowed.
    ///
    /// # Errors
    /// Those of execve(2), and of making pipes.
    pub(crate) async fn spawn(&self, command: Command) -> io::Result<Child> {
        let line = self.0.clone();
        tokio::task::spawn_blocking(move || line.lock().unwrap_or_else(PoisonError::into_inner).spawn(command))
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

impl Line {
    fn spawn(&self, command: Command) -> io::Result<Child> {
        let (its_stdin, stdin) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stdout, its_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, its_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        let stdin = Some(pipe::Sender::from_owned_fd(stdin)?);
        let (stdout, stderr) = (pipe::Receiver::from_owned_fd(stdout)?, pipe::Receiver::from_owned_fd(stderr)?);
        let pid = self.order(command, &[its_stdin.as_fd(), its_stdout.as_fd(), its_stderr.as_fd()])?;
        drop((its_stdin, its_stdout, its_stderr));
        // Nobody else waits for it: the pid is its own until it is reaped.
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(io::Error::from).and_then(sys::readable);
        let pidfd = Arc::new(pidfd.inspect_err(|_| give_up(pid))?);
        let end = tokio::spawn(reap(pidfd.clone()));
        Ok(Child { stdin, stdout, stderr, pidfd, end, is_killed_on_drop: false })
    }

    fn order(&self, command: Command, streams: &[BorrowedFd<'_>; STREAMS]) -> io::Result<Pid> {
        send(self.socket.as_fd(), streams)?;
        self.orders.send(command).map_err(|_| gone())?;
        let pid = self.started.recv().map_err(|_| gone())??;
        Pid::from_raw(pid.cast_signed()).ok_or_else(gone)
    }
}

/// Of a program that cannot be watched nothing stays.
fn give_up(pid: Pid) {
    let _ = kill_process(pid, Signal::KILL);
    let _ = waitpid(Some(pid), WaitOptions::empty());
}

impl Child {
    /// Has it killed when nobody waits for it any more.
    pub(crate) fn killed_on_drop(mut self) -> Child {
        self.is_killed_on_drop = true;
        self
    }

    /// Writes `input` to it, reads what it says, of either stream at most `limit` bytes, and waits for its end.
    pub(crate) async fn converse(&mut self, input: &[u8], limit: usize) -> io::Result<Output> {
        if let Some(mut stdin) = self.stdin.take() {
            // It need not read it.
            let _ = stdin.write_all(input).await;
        }
        let (stdout, stderr) =
            tokio::try_join!(read_bounded(&mut self.stdout, limit), read_bounded(&mut self.stderr, limit))?;
        let status = (&mut self.end).await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
        self.is_killed_on_drop = false;
        Ok(Output { status, stdout, stderr })
    }

    /// Kills it; it is reaped in the background.
    pub(crate) fn kill(&self) {
        // One that was reaped is no more to be killed.
        let _ = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.is_killed_on_drop {
            self.kill();
        }
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

async fn reap(pidfd: Arc<AsyncFd<OwnedFd>>) -> io::Result<ExitStatus> {
    loop {
        // A pidfd is readable when its process is a zombie, also while a tracer keeps its parent from reaping it.
        drop(pidfd.readable().await?);
        match waitid(WaitId::PidFd(pidfd.get_ref().as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)? {
            Some(status) => return Ok(ExitStatus::from_raw(raw(&status))),
            None => tokio::time::sleep(REAP_PAUSE).await,
        }
    }
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
        let mut child = spawner.spawn(shell("read word; echo $word; echo wrong >&2; exit 7")).await.unwrap();
        let output = output(&mut child, "right\n").await;
        assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"right\n"[..], &b"wrong\n"[..]));
        assert_eq!(output.status.code(), Some(7));
    }

    #[tokio::test]
    async fn of_a_flood_the_begin_is_kept() {
        let spawner = Spawner::start().unwrap();
        let mut child = spawner.spawn(shell("yes | head -c 1000000")).await.unwrap();
        assert_eq!(output(&mut child, "").await.stdout, b"y\ny\ny\ny\ny\ny\ny\ny\n");
    }

    #[tokio::test]
    async fn a_killed_program_ends_by_the_signal() {
        let spawner = Spawner::start().unwrap();
        let mut child = spawner.spawn(shell("exec sleep 1000")).await.unwrap();
        child.kill();
        assert_eq!(output(&mut child, "").await.status.signal(), Some(libc::SIGKILL));
    }

    #[tokio::test]
    async fn what_cannot_be_executed_is_an_error_and_the_next_is_started() {
        let spawner = Spawner::start().unwrap();
        let error = spawner.spawn(Command::new("/there/is/no/such/program")).await.err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let mut child = spawner.spawn(shell("exit 3")).await.unwrap();
        assert_eq!(output(&mut child, "").await.status.code(), Some(3));
    }

    #[tokio::test]
    async fn the_thread_knows_none_of_the_descriptors_of_the_others() {
        // Inherited on purpose: were the table shared, the child would have it.
        let leak = std::fs::File::open("/dev/null").unwrap();
        rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
        let spawner = Spawner::start().unwrap();
        let mut child = spawner.spawn(shell("ls /proc/self/fd | wc -l")).await.unwrap();
        // The three streams and that of `ls` for the directory.
        assert_eq!(output(&mut child, "").await.stdout, b"4\n");
    }

    #[tokio::test]
    async fn one_that_nobody_waits_for_is_killed_where_that_was_wanted() {
        let spawner = Spawner::start().unwrap();
        let child = spawner.spawn(shell("exec sleep 1000")).await.unwrap().killed_on_drop();
        let pidfd = child.pidfd.clone();
        drop(child);
        let ended = tokio::time::timeout(Duration::from_secs(10), pidfd.readable()).await;
        assert!(ended.is_ok(), "it lives on");
    }
}
