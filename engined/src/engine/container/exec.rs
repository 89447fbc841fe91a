//! One more program in a running container.
//!
//! Its streams are FIFOs that the engine makes and reads: nothing of them is kept. A program whose client has gone goes on;
//! what it writes is then read and dropped, so that it does not wait for ever.
//!
//! ```text
//!   exec ─▶ FIFOs, user, process ─▶ add ─▶ start ─▶ keeper: output ─▶ client (or nobody)
//!                                                          end ─▶ drain ─▶ exit ─▶ delete, unlink
//! ```

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use strata_fault::Fault;
use strata_log::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{Mutex, mpsc, oneshot};
use tracing::Instrument;

use super::exit::Exit;
use super::id::fill_random;
use super::output::Piece;
use super::state::Phase;
use super::stdin::{make_fifo, open_writer};
use super::wanted::{ContainerPath, EnvVar};
use super::{Container, files};
use crate::containerd::Client;
use crate::containerd::tasks::{ExecProcess, Stdio};
use crate::engine::error::{Error, Field};
use crate::engine::means::Means;
use crate::engine::signal::Signal;
use crate::engine::spec::passwd::{self, UserFiles};
use crate::engine::spec::program::{self, Program};
use crate::engine::spec::user::{self, User, UserSpec};
use crate::engine::spec::{self};
use crate::engine::stamp::Stamp;
use crate::engine::step::step;

/// Bytes that are read at once: what a pipe holds.
const READ_MAX: usize = 64 << 10;
/// Pieces of output that may wait for the client.
const WAITING_MAX: usize = 16;
/// How long after the program's end its streams may stay silent and open: what it started may hold them.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// What somebody wants to run in a container.
#[derive(Clone, Debug)]
pub(crate) struct ExecWanted {
    pub(crate) command: Vec<String>,
    pub(crate) tty: bool,
    pub(crate) open_stdin: bool,
    pub(crate) env: Vec<EnvVar>,
    pub(crate) working_dir: Option<ContainerPath>,
    pub(crate) user: Option<UserSpec>,
    pub(crate) privileged: bool,
    /// Nobody reads its output.
    pub(crate) detach: bool,
    pub(crate) size: Option<(u32, u32)>,
}

/// A program that runs.
pub(crate) struct Exec {
    pub(crate) id: String,
    pub(crate) input: ExecInput,
    /// Ends with the program's output.
    pub(crate) output: mpsc::Receiver<Piece>,
    /// After the output.
    pub(crate) exit: oneshot::Receiver<Exit>,
}

/// The client's hold on a program.
#[derive(Clone)]
pub(crate) struct ExecInput {
    client: Client,
    container: Container,
    id: String,
    stdin: Arc<Mutex<Option<pipe::Sender>>>,
    path: PathBuf,
}

impl ExecInput {
    /// Writes to its input, as fast as it reads.
    pub(crate) async fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        let mut slot = self.stdin.lock().await;
        let Some(writer) = slot.as_mut() else {
            return Err(Error::StdinClosed { container: self.container.id().short().to_owned() });
        };
        writer.write_all(bytes).await.map_err(|error| Error::file("write to FIFO", &self.path, error))
    }

    /// Ends its input, after what was written.
    pub(crate) async fn close(&self) -> Result<(), Fault> {
        match self.stdin.lock().await.take() {
            Some(_) => self.client.close_stdin(self.container.id().as_str(), &self.id).await,
            None => Ok(()),
        }
    }

    pub(crate) async fn resize(&self, size: (u32, u32)) -> Result<(), Fault> {
        self.client.resize_task(self.container.id().as_str(), &self.id, size).await
    }

    pub(crate) async fn signal(&self, signal: Signal) -> Result<(), Fault> {
        self.client.kill_task(self.container.id().as_str(), &self.id, signal.number(), false).await.map(drop)
    }
}

/// The FIFOs of one exec; they go when this is dropped.
struct Pipes {
    directory: PathBuf,
    stdin: Option<PathBuf>,
    stdout: Option<PathBuf>,
    stderr: Option<PathBuf>,
}

impl Pipes {
    fn make(state: &Path, id: &str, wanted: &ExecWanted) -> Result<Pipes, Error> {
        let directory = state.join("execs").join(id);
        files::make_directory(&directory)?;
        let fifo = |name: &str, is_wanted: bool| is_wanted.then(|| directory.join(name));
        let pipes = Pipes {
            stdin: fifo("stdin", wanted.open_stdin),
            stdout: fifo("stdout", !wanted.detach),
            stderr: fifo("stderr", !wanted.detach && !wanted.tty),
            directory,
        };
        for path in [&pipes.stdin, &pipes.stdout, &pipes.stderr].into_iter().flatten() {
            make_fifo(path)?;
        }
        Ok(pipes)
    }

    fn stdio(&self, terminal: bool) -> Stdio {
        let text =
            |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        Stdio { stdin: text(&self.stdin), stdout: text(&self.stdout), stderr: text(&self.stderr), terminal }
    }
}

impl Drop for Pipes {
    fn drop(&mut self) {
        if let Err(error) = files::remove_tree(&self.directory) {
            tracing::warn!(%error, "remove the FIFOs of an exec");
        }
    }
}

/// A stream to be read, and a writer that keeps it from ending before the shim has opened it.
struct Source {
    stream: Stream,
    receiver: pipe::Receiver,
    _until_started: pipe::Sender,
}

fn open_source(stream: Stream, path: &Option<PathBuf>) -> Result<Option<Source>, Error> {
    let Some(path) = path else { return Ok(None) };
    let receiver = pipe::OpenOptions::new().open_receiver(path);
    let receiver = receiver.map_err(|error| Error::file("open FIFO", path, error))?;
    Ok(Some(Source { stream, receiver, _until_started: open_writer(path)? }))
}

/// Starts a program in a running container.
pub(crate) async fn exec(means: &Arc<Means>, container: &Container, wanted: ExecWanted) -> Result<Exec, Fault> {
    let Phase::Running { pid } = container.view().life.phase else {
        let container = container.id().short().to_owned();
        return Err(Error::NotRunning { attempt: "run a program", container }.into());
    };
    let process = process(means, container, &wanted, pid).instrument(step!("configure")).await?;
    let id = new_id();
    let pipes = Pipes::make(&means.settings.state, &id, &wanted)?;
    let stdin = pipes.stdin.as_deref().map(open_writer).transpose()?;
    let sources = [open_source(Stream::Stdout, &pipes.stdout)?, open_source(Stream::Stderr, &pipes.stderr)?];
    add_and_start(means, container, &id, &wanted, process, &pipes).await?;
    let (to_client, output) = mpsc::channel(WAITING_MAX);
    let (to_exit, exit) = oneshot::channel();
    let input = ExecInput {
        client: means.client.clone(),
        container: container.clone(),
        id: id.clone(),
        stdin: Arc::new(Mutex::new(stdin)),
        path: pipes.stdin.clone().unwrap_or_default(),
    };
    emit(means, container, "exec_start", &id, &wanted.command);
    let keeper = Keeper { means: Arc::clone(means), container: container.clone(), id: id.clone(), _pipes: pipes };
    let readers = sources.map(|source| source.map(|Source { stream, receiver, .. }| (stream, receiver)));
    tokio::spawn(keeper.keep(readers, to_client, to_exit).instrument(tracing::Span::current()));
    Ok(Exec { id, input, output, exit })
}

fn new_id() -> String {
    let mut random = [0; 16];
    fill_random(&mut random);
    random.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn add_and_start(
    means: &Means,
    container: &Container,
    id: &str,
    wanted: &ExecWanted,
    process: Vec<u8>,
    pipes: &Pipes,
) -> Result<(), Fault> {
    let (client, container_id) = (&means.client, container.id().as_str());
    let added = ExecProcess {
        container: container_id.to_owned(),
        exec: id.to_owned(),
        process,
        stdio: pipes.stdio(wanted.tty),
    };
    emit(means, container, "exec_create", id, &wanted.command);
    client.exec_task(added).instrument(step!("create")).await?;
    if let Err(fault) = client.start_task(container_id, id).instrument(step!("start")).await {
        if let Err(left) = client.delete_exec(container_id, id).await {
            tracing::debug!(fault = %left, "an exec that did not start goes with its container");
        }
        return Err(fault);
    }
    if let Some(size) = wanted.size.filter(|_| wanted.tty)
        && let Err(fault) = client.resize_task(container_id, id, size).await
    {
        tracing::debug!(%fault, "set the size of an exec's terminal");
    }
    Ok(())
}

/// The process as the runtime is told.
async fn process(means: &Means, container: &Container, wanted: &ExecWanted, pid: u32) -> Result<Vec<u8>, Fault> {
    let fixed = container.fixed();
    if wanted.command.first().is_none_or(String::is_empty) {
        return Err(Error::invalid(Field::Command, "", "a program and its arguments").into());
    }
    let of_container = &fixed.program;
    let user = match &wanted.user {
        Some(spec) => user_in(container, spec.clone(), pid).await?,
        None => of_container.user.clone(),
    };
    let home = wanted.user.as_ref().and(user.home.clone());
    let program = Program {
        args: wanted.command.clone(),
        env: program::exec_env(&of_container.env, &wanted.env, wanted.tty, home.as_deref()),
        cwd: wanted.working_dir.as_ref().map_or(&of_container.cwd[..], ContainerPath::as_str).to_owned(),
        user,
        ..of_container.clone()
    };
    let mut like = fixed.wanted.clone();
    like.tty = wanted.tty;
    let caps = match wanted.privileged {
        true => means.machine.bounding,
        false => spec::capabilities(&fixed.wanted, &means.machine)?,
    };
    Ok(spec::render_exec(&like, &program, wanted.size, caps)?)
}

/// The user as the running container knows it: its files may have changed since it was made.
async fn user_in(container: &Container, spec: UserSpec, pid: u32) -> Result<User, Fault> {
    let image = container.fixed().wanted.image.clone();
    let resolved = tokio::task::spawn_blocking(move || -> Result<User, Error> {
        let files = files_of_process(pid, &image)?;
        user::resolve(&spec, &files.passwd, &files.group, &image)
    });
    match resolved.await {
        Ok(user) => Ok(user?),
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

/// passwd and group in the root of a process. Should the process have ended and its number be another's, the exec that
/// this is for fails by itself.
fn files_of_process(pid: u32, image: &str) -> Result<UserFiles, Error> {
    let root = format!("/proc/{pid}/root");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root_fd = rustix::fs::open(&root, flags, Mode::empty()).map_err(|error| Error::file("open", &root, error))?;
    passwd::read_in(root_fd.as_fd(), image)
}

fn emit(means: &Means, container: &Container, action: &'static str, id: &str, command: &[String]) {
    let fixed = container.fixed();
    let attributes = [
        ("image".to_owned(), fixed.wanted.image.clone()),
        ("name".to_owned(), fixed.name.to_string()),
        ("execID".to_owned(), id.to_owned()),
        ("command".to_owned(), command.join(" ")),
    ];
    means.events.emit(
        crate::engine::event::Kind::Container,
        action,
        fixed.id.as_str(),
        attributes.into_iter().collect(),
    );
}

/// Owns a program from its start to its end, whether a client listens or not.
struct Keeper {
    means: Arc<Means>,
    container: Container,
    id: String,
    /// They go with the keeper.
    _pipes: Pipes,
}

impl Keeper {
    async fn keep(
        self,
        readers: [Option<(Stream, pipe::Receiver)>; 2],
        to_client: mpsc::Sender<Piece>,
        to_exit: oneshot::Sender<Exit>,
    ) {
        let (client, container) = (&self.means.client, self.container.id().as_str());
        let ended = tokio::sync::watch::Sender::new(false);
        let [stdout, stderr] = readers.map(|reader| pump(reader, &to_client, ended.subscribe()));
        let wait = async {
            let end = wait(client, container, &self.id).await;
            ended.send_replace(true);
            end
        };
        let (exit, (), ()) = tokio::join!(wait, stdout, stderr);
        drop(to_client);
        if let Err(fault) = client.delete_exec(container, &self.id).await {
            tracing::debug!(%fault, "an exec that has ended goes with its container");
        }
        emit(&self.means, &self.container, "exec_die", &self.id, &[]);
        // Nobody may wait for it any more.
        let _ = to_exit.send(exit);
    }
}

async fn wait(client: &Client, container: &str, id: &str) -> Exit {
    match client.wait_task(container, id).await {
        Ok(ended) => Exit::seen(ended.status, ended.at.into(), false, None),
        // The supervisor was restarted, or the container has ended: nobody keeps the exit code of an exec.
        Err(fault) => Exit::unseen(Stamp::now(), (&fault).into()),
    }
}

/// Reads a stream to its end, or until it is silent though the program has ended.
async fn pump(
    reader: Option<(Stream, pipe::Receiver)>,
    to: &mpsc::Sender<Piece>,
    mut ended: tokio::sync::watch::Receiver<bool>,
) {
    let Some((stream, mut receiver)) = reader else { return };
    let mut buffer = vec![0; READ_MAX];
    loop {
        let silent = async {
            // An error means that the sender is gone, which it is only after the end.
            let _ = ended.wait_for(|ended| *ended).await;
            tokio::time::sleep(DRAIN_PATIENCE).await;
        };
        let read = tokio::select! {
            read = receiver.read(&mut buffer) => read,
            () = silent => return,
        };
        let length = match read {
            Ok(0) => return,
            Ok(length) => length,
            Err(error) => return tracing::warn!(%error, "read the output of an exec"),
        };
        let piece = Piece::Output { stream, data: buffer[..length].to_vec(), next: 0, at: Stamp::now() };
        // Without a client it is dropped, so that the program does not wait for ever.
        let _ = to.send(piece).await;
    }
}
