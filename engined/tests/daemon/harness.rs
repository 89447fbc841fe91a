//! A stack of real daemons in namespaces of its own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use nix::sched::{CloneFlags, unshare};
use proto_engine::containers_client::ContainersClient;
use proto_engine::images_client::ImagesClient;
use proto_engine::system_client::SystemClient;
use proto_engine::{self as wire};
use strata_fault::{Fault, Layer};
use tokio::net::UnixStream;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Status, Streaming};

use crate::image;

/// How long a daemon may take to answer, on a machine that is busy with other tests.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long what is done behind the answers may take.
const SETTLE_PATIENCE: Duration = Duration::from_secs(20);

/// Who supervises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Below {
    /// Debian's containerd, its shim, and runc.
    Stock,
    /// shimd, our shim, and lowrun.
    Ours,
}

/// Runs a test above both supervisors, each as a test of its own.
macro_rules! above_both {
    ($($(#[$attribute:meta])* async fn $name:ident($stack:ident: &mut Stack) $body:block)*) => {
        $(mod $name {
            #[allow(unused_imports, reason = "not every test needs all of its module's")]
            use super::*;

            async fn test($stack: &mut Stack) $body

            #[test]
            fn stock() {
                crate::harness::in_a_world(crate::harness::Below::Stock, async |stack| test(stack).await);
            }

            #[test]
            fn ours() {
                crate::harness::in_a_world(crate::harness::Below::Ours, async |stack| test(stack).await);
            }
        })*
    };
}

pub(crate) use above_both;

/// Runs `test` with a stack of its own, or says why it cannot.
pub(crate) fn in_a_world(below: Below, test: impl AsyncFnOnce(&mut Stack)) {
    let programs = match Programs::find(below) {
        Ok(programs) => programs,
        Err(missing) => return eprintln!("skipped: {missing}"),
    };
    // Only this thread moves; the daemons are its children, and the runtime stays on it.
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("make namespaces");
    make_private();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("start a runtime");
    runtime.block_on(async {
        let mut stack = Stack::start(below, programs).await;
        test(&mut stack).await;
        stack.finish().await;
    });
}

fn make_private() {
    use rustix::mount::MountPropagationFlags;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .expect("make / private");
    // The loopback of the new namespace is down; published ports are asked for over it.
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(status.is_ok_and(|status| status.success()), "set the loopback up");
}

/// The programs of one supervisor.
struct Programs {
    supervisor: PathBuf,
    /// Directory with the shim, for the supervisor's search path.
    shims: PathBuf,
    runtime: PathBuf,
}

impl Programs {
    fn find(below: Below) -> Result<Programs, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("needs root".to_owned());
        }
        if image::busybox().is_none() {
            return Err("needs a static busybox".to_owned());
        }
        match below {
            Below::Stock => Ok(Programs {
                supervisor: in_path("containerd")?,
                shims: in_path("containerd-shim-runc-v2")?.parent().map(Path::to_owned).unwrap_or_default(),
                runtime: in_path("runc")?,
            }),
            Below::Ours => {
                let beside = Path::new(env!("CARGO_BIN_EXE_engined")).parent().expect("a program is in a directory");
                let built = |name: &str| {
                    let path = beside.join(name);
                    if path.exists() { Ok(path) } else { Err(format!("needs {name} to be built beside engined")) }
                };
                built("containerd-shim-strata-v1")?;
                Ok(Programs { supervisor: built("shimd")?, shims: beside.to_owned(), runtime: built("lowrun")? })
            }
        }
    }
}

fn in_path(name: &str) -> Result<PathBuf, String> {
    let directories = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let found = directories.iter().map(|directory| Path::new(directory).join(name)).find(|path| path.exists());
    found.ok_or_else(|| format!("needs {name}"))
}

/// A supervisor and an engine, with one image.
pub(crate) struct Stack {
    pub(crate) below: Below,
    root: tempfile::TempDir,
    instance: String,
    programs: Programs,
    supervisor: Option<Child>,
    engine: Option<Child>,
    channel: Option<Channel>,
}

/// The image that every stack has.
pub(crate) const IMAGE: &str = "localhost/busybox:latest";

impl Stack {
    async fn start(below: Below, programs: Programs) -> Stack {
        let root = tempfile::Builder::new().prefix("engined-").tempdir().expect("make a directory");
        let instance = format!("t{:06x}", rand24());
        let mut stack = Stack { below, root, instance, programs, supervisor: None, engine: None, channel: None };
        for directory in ["etc", "run", "lib", "bin"] {
            fs::create_dir(stack.path(directory)).expect("make a directory");
        }
        symlink(&stack.programs.shims, stack.path("bin/shims")).expect("link the shims");
        stack.start_supervisor();
        image::import(&stack.supervisor_channel().await, IMAGE).await;
        stack.start_engine();
        stack.until_answering().await;
        stack
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    pub(crate) fn start_supervisor(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.path("supervisor.log")).expect("open a log");
        let mut command = Command::new(&self.programs.supervisor);
        match self.below {
            Below::Stock => {
                let config = self.path("etc/containerd.toml");
                fs::write(&config, self.containerd_config()).expect("write a configuration");
                command.arg("--config").arg(config);
            }
            Below::Ours => {
                command.arg("--root").arg(self.path("lib/shimd")).arg("--state").arg(self.path("run/shimd"));
                command.arg("--address").arg(self.socket_below());
            }
        }
        let search = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.programs.shims.display());
        command.env("PATH", search).stdin(Stdio::null()).stdout(log.try_clone().expect("share a log")).stderr(log);
        self.supervisor = Some(command.spawn().expect("start the supervisor"));
    }

    fn containerd_config(&self) -> String {
        let plugins = [
            "grpc.v1.cri",
            "snapshotter.v1.aufs",
            "snapshotter.v1.btrfs",
            "snapshotter.v1.zfs",
            "snapshotter.v1.devmapper",
        ];
        let disabled: Vec<String> = plugins.iter().map(|plugin| format!("\"io.containerd.{plugin}\"")).collect();
        format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [{}]\n[grpc]\naddress = {:?}\n",
            self.path("lib/containerd"),
            self.path("run/containerd"),
            disabled.join(", "),
            self.socket_below()
        )
    }

    fn socket_below(&self) -> PathBuf {
        self.path("run/below.sock")
    }

    pub(crate) fn start_engine(&mut self) {
        let config = self.path("etc/engined.toml");
        fs::write(&config, self.engine_config()).expect("write a configuration");
        let log = fs::File::options().create(true).append(true).open(self.path("engined.log")).expect("open a log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_engined"));
        command.arg("--config").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.engine = Some(command.spawn().expect("start engined"));
        self.channel = None;
    }

    fn engine_config(&self) -> String {
        let runtime = match self.below {
            Below::Stock => "io.containerd.runc.v2",
            Below::Ours => "io.containerd.strata.v1",
        };
        format!(
            "root = {:?}\nstate = {:?}\naddress = {:?}\ncontainerd = {:?}\ninstance = {:?}\nruntime = {runtime:?}\n\
             log_level = \"info,engined=debug\"\n\
             [runtime_options]\nbinary_name = {:?}\n[network]\nip_forward = false\nprepared = 1\nsubnet = \"10.213.0.0/24\"\n",
            self.path("lib/engined"),
            self.path("run/engined"),
            self.socket(),
            self.socket_below(),
            self.instance,
            self.programs.runtime,
        )
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("run/engined.sock")
    }

    async fn supervisor_channel(&self) -> Channel {
        let started = Instant::now();
        while UnixStream::connect(self.socket_below()).await.is_err() {
            assert!(started.elapsed() < START_PATIENCE, "the supervisor does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        channel(self.socket_below())
    }

    pub(crate) async fn until_answering(&mut self) {
        let started = Instant::now();
        while UnixStream::connect(self.socket()).await.is_err() {
            if started.elapsed() > START_PATIENCE {
                panic!("engined does not answer:\n{}", self.engine_log());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.channel = Some(channel(self.socket()));
    }

    pub(crate) fn engine_log(&self) -> String {
        fs::read_to_string(self.path("engined.log")).unwrap_or_default()
    }

    /// SIGKILL.
    pub(crate) fn kill_engine(&mut self) {
        kill(&mut self.engine);
        self.channel = None;
    }

    /// SIGKILL.
    pub(crate) fn kill_supervisor(&mut self) {
        kill(&mut self.supervisor);
    }

    pub(crate) fn connection(&self) -> Channel {
        self.channel.clone().expect("the engine answers")
    }

    pub(crate) fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.connection()).max_decoding_message_size(16 << 20)
    }

    pub(crate) fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.connection())
    }

    pub(crate) fn system(&self) -> SystemClient<Channel> {
        SystemClient::new(self.connection())
    }

    /// One run, read to its end.
    pub(crate) async fn run(&self, open: wire::RunOpen) -> Result<Ran, Status> {
        self.run_with(open, Vec::new()).await
    }

    /// One run with input, read to its end.
    pub(crate) async fn run_with(&self, open: wire::RunOpen, input: Vec<wire::input::Kind>) -> Result<Ran, Status> {
        let requests = std::iter::once(wire::run_request::Kind::Open(open))
            .chain(input.into_iter().map(|kind| wire::run_request::Kind::Input(wire::Input { kind: Some(kind) })))
            .map(|kind| wire::RunRequest { kind: Some(kind) });
        // The stream of requests stays open: an end of it would be the client's going.
        let requests = tokio_stream::iter(requests.collect::<Vec<_>>()).chain(tokio_stream::pending());
        Ran::of(self.containers().run(requests).await?.into_inner()).await
    }

    /// Runs a shell's line in the foreground.
    pub(crate) async fn shell(&self, line: &str) -> Ran {
        self.run(foreground(&["sh", "-c", line])).await.unwrap_or_else(|status| panic!("{line}: {}", words(&status)))
    }

    /// Starts a container that goes on, and its id.
    pub(crate) async fn detached(&self, name: &str, line: &str) -> String {
        let mut open = detached(name, &["sh", "-c", line]);
        open.spec.as_mut().expect("there is one").auto_remove = false;
        self.run(open).await.unwrap_or_else(|status| panic!("{line}: {}", words(&status))).id
    }

    pub(crate) async fn inspect(&self, name: &str) -> wire::ContainerDetail {
        let request = wire::InspectContainerRequest { container: name.to_owned() };
        let answer = self.containers().inspect(request).await.unwrap_or_else(|status| panic!("{}", words(&status)));
        answer.into_inner().container.expect("an inspection has a container")
    }

    pub(crate) async fn state(&self, name: &str) -> wire::State {
        self.inspect(name).await.summary.and_then(|summary| summary.state).expect("a container has a state")
    }

    pub(crate) async fn wait(&self, name: &str) -> wire::Exit {
        let request = wire::WaitRequest { container: name.to_owned(), condition: 0 };
        let answer = self.containers().wait(request).await.unwrap_or_else(|status| panic!("{}", words(&status)));
        answer.into_inner().exit.expect("a wait ends with an exit")
    }

    pub(crate) async fn remove(&self, name: &str) -> Result<(), Status> {
        let request = wire::RemoveRequest { container: name.to_owned(), force: true };
        self.containers().remove(request).await.map(drop)
    }

    pub(crate) async fn list(&self) -> Vec<wire::ContainerSummary> {
        let request = wire::ListContainersRequest { all: true, ..Default::default() };
        self.containers().list(request).await.expect("list containers").into_inner().containers
    }

    /// All of a container's log.
    pub(crate) async fn logs(&self, request: wire::LogsRequest) -> String {
        let mut stream = self.containers().logs(request).await.expect("ask for logs").into_inner();
        let mut text = Vec::new();
        while let Some(event) = stream.message().await.expect("read logs") {
            text.extend_from_slice(&event.output.unwrap_or_default().data);
        }
        String::from_utf8(text).expect("the log is text")
    }

    /// Waits for something that is done behind the answers.
    pub(crate) async fn settled(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let started = Instant::now();
        while !is_so() {
            if started.elapsed() > SETTLE_PATIENCE {
                panic!("not settled: {what}\n{}", self.engine_log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Nothing of containers is left in the engine's directories.
    pub(crate) async fn clean(&self) {
        for directory in ["lib/engined/containers", "run/engined/containers", "run/engined/execs", "run/engined/netns"]
        {
            let path = self.path(directory);
            self.settled(directory, || fs::read_dir(&path).map_or(0, Iterator::count) == 0).await;
        }
    }

    /// Removes everything, and looks for what is left.
    async fn finish(mut self) {
        for container in self.list().await {
            self.remove(&container.id).await.unwrap_or_else(|status| panic!("{}", words(&status)));
        }
        self.clean().await;
        let (containers, snapshots) = image::left(&self.supervisor_channel().await).await;
        assert!(containers.is_empty(), "containers are left in the supervisor: {containers:?}");
        assert!(snapshots.is_empty(), "snapshots are left in the supervisor: {snapshots:?}");
        terminate(&mut self.engine).await;
        terminate(&mut self.supervisor).await;
        let root = self.root.path().to_owned();
        let started = Instant::now();
        while let [first, ..] = processes_of(&root)[..] {
            let line = fs::read(format!("/proc/{first}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            assert!(started.elapsed() < SETTLE_PATIENCE, "process {first} is left: {line}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.remove_cgroups();
    }

    fn remove_cgroups(&self) {
        let name = format!("strata-{}", self.instance);
        let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else { return };
        let nested = hierarchies.flatten().map(|entry| entry.path().join(&name));
        for cgroup in nested.chain([Path::new("/sys/fs/cgroup").join(&name)]) {
            if cgroup.is_dir() {
                fs::remove_dir(&cgroup).unwrap_or_else(|error| panic!("{}: {error}", cgroup.display()));
            }
        }
    }
}

impl Drop for Stack {
    /// A test that failed leaves no process.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- engined's log\n{}", self.engine_log());
        }
        kill(&mut self.engine);
        kill(&mut self.supervisor);
        for pid in processes_of(self.root.path()) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

fn kill(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

async fn terminate(child: &mut Option<Child>) {
    let Some(mut child) = child.take() else { return };
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("send SIGTERM");
    let started = Instant::now();
    while child.try_wait().expect("wait for a daemon").is_none() {
        assert!(started.elapsed() < START_PATIENCE, "a daemon does not end when it is told to");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Processes that have the directory on their command lines: shims and loggers.
fn processes_of(root: &Path) -> Vec<i32> {
    let needle = root.to_string_lossy().into_owned();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let own = std::process::id() as i32;
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != own && String::from_utf8_lossy(&line).contains(&needle)
    })
    .collect()
}

fn rand24() -> u32 {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).expect("random bytes");
    u32::from_le_bytes(bytes) & 0x00ff_ffff
}

fn channel(socket: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
}

/// A run of a program that is removed when it has ended.
pub(crate) fn foreground(command: &[&str]) -> wire::RunOpen {
    wire::RunOpen {
        spec: Some(wire::ContainerSpec {
            image: IMAGE.to_owned(),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            network: Some(wire::Network { mode: wire::network::Mode::None.into(), ports: Vec::new() }),
            auto_remove: true,
            ..Default::default()
        }),
        pull: wire::PullPolicy::Never.into(),
        ..Default::default()
    }
}

/// A run that goes on.
pub(crate) fn detached(name: &str, command: &[&str]) -> wire::RunOpen {
    let mut open = foreground(command);
    open.detach = true;
    open.spec.as_mut().expect("there is one").name = name.to_owned();
    open
}

/// The spec of a request, to be changed.
pub(crate) fn spec(open: &mut wire::RunOpen) -> &mut wire::ContainerSpec {
    open.spec.as_mut().expect("there is one")
}

/// What a run told.
#[derive(Debug, Default)]
pub(crate) struct Ran {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) started: bool,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Where a reader would go on.
    pub(crate) next: u64,
    pub(crate) exit: Option<wire::Exit>,
    pub(crate) spans: Vec<u8>,
}

impl Ran {
    async fn of(mut stream: Streaming<wire::RunEvent>) -> Result<Ran, Status> {
        let mut ran = Ran::default();
        while let Some(event) = stream.message().await? {
            ran.take(event.kind.expect("an event is of some kind"));
        }
        Ok(ran)
    }

    pub(crate) fn take(&mut self, kind: wire::run_event::Kind) {
        use wire::run_event::Kind;
        match kind {
            Kind::Pull(_) => {}
            Kind::Created(created) => {
                self.id = created.id;
                self.name = created.name;
            }
            Kind::Started(_) => self.started = true,
            Kind::Output(output) => self.output(&output),
            Kind::Exited(exit) => self.exit = Some(exit),
            Kind::Spans(spans) => self.spans = spans,
        }
    }

    pub(crate) fn output(&mut self, output: &wire::Output) {
        assert_eq!(output.lost, 0, "a foreground reader loses nothing");
        match output.stream() {
            wire::Stream::Stderr => self.stderr.extend_from_slice(&output.data),
            _ => self.stdout.extend_from_slice(&output.data),
        }
        self.next = output.next;
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn code(&self) -> u32 {
        self.exit.as_ref().expect("the run has ended").code
    }
}

/// The fault that a refusal carries.
pub(crate) fn fault(status: &Status) -> Fault {
    Fault::from_grpc(status, Layer::Client, "none")
}

/// A refusal in words.
pub(crate) fn words(status: &Status) -> String {
    let fault = fault(status);
    format!("{} {} {}: {}", fault.layer, fault.step, fault.code, fault.one_line())
}
