//! A shimd of its own for each test: real process, real socket, a directory that goes with the test.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use prost_types::Any;
use proto_containerd::services::containers::containers_client::ContainersClient;
use proto_containerd::services::content::content_client::ContentClient;
use proto_containerd::services::content::{WriteAction, WriteContentRequest, WriteContentResponse};
use proto_containerd::services::diff::diff_client::DiffClient;
use proto_containerd::services::events::events_client::EventsClient;
use proto_containerd::services::images::images_client::ImagesClient;
use proto_containerd::services::leases::leases_client::LeasesClient;
use proto_containerd::services::sandbox::controller_client::ControllerClient;
use proto_containerd::services::sandbox::store_client::StoreClient;
use proto_containerd::services::snapshots::snapshots_client::SnapshotsClient;
use proto_containerd::services::snapshots::{CommitSnapshotRequest, PrepareSnapshotRequest};
use proto_containerd::services::streaming::streaming_client::StreamingClient;
use proto_containerd::services::tasks::tasks_client::TasksClient;
use proto_containerd::services::transfer::transfer_client::TransferClient;
use proto_containerd::services::{containers, diff, leases};
use proto_containerd::types::{Descriptor, Mount};
use proto_containerd::{LEASE_HEADER, NAMESPACE_HEADER, json_type};
use sha2::{Digest, Sha256};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

pub(crate) const SNAPSHOTTER: &str = "overlayfs";
pub(crate) const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// The lease of a lab that has one.
const LEASE: &str = "lab";
/// How long anything may take that is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Where our own shim and runtime were built, for tests that cannot do with others.
static BESIDE: OnceLock<PathBuf> = OnceLock::new();

/// Directory of our own shim and runtime, if the tests shall use these instead of containerd's and runc.
pub(crate) fn ours() -> Option<PathBuf> {
    std::env::var_os("STRATA_BIN").map(PathBuf::from).or_else(|| BESIDE.get().cloned())
}

/// From now on all tests of this process use our own shim and runtime, as built beside shimd unless `STRATA_BIN` names
/// others.
pub(crate) fn insist_on_ours() {
    let directory = Path::new(env!("CARGO_BIN_EXE_shimd")).parent().unwrap();
    BESIDE.get_or_init(|| directory.to_owned());
}

/// Whether tests of containers can run here; says so if not.
pub(crate) fn can_run_containers() -> bool {
    let (shim, runtime) = match ours() {
        Some(directory) => (directory.join("containerd-shim-strata-v1"), directory.join("lowrun")),
        None => ("/usr/bin/containerd-shim-runc-v2".into(), "/usr/sbin/runc".into()),
    };
    let missing = [
        (!rustix::process::geteuid().is_root(), "root"),
        (!Path::new("/bin/busybox").exists(), "/bin/busybox"),
        (!shim.exists(), "a shim"),
        (!runtime.exists(), "a runtime"),
    ];
    for (is_missing, what) in missing {
        if is_missing {
            eprintln!("skipped: this test needs {what}");
        }
    }
    missing.iter().all(|(is_missing, _)| !is_missing)
}

pub(crate) fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: this test needs root");
    }
    is_root
}

/// Adds the headers that every request has.
#[derive(Clone)]
pub(crate) struct Headers {
    namespace: String,
    lease: Option<String>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(NAMESPACE_HEADER, self.namespace.parse().unwrap());
        if let Some(lease) = &self.lease {
            request.metadata_mut().insert(LEASE_HEADER, lease.parse().unwrap());
        }
        Ok(request)
    }
}

pub(crate) type Connection = InterceptedService<Channel, Headers>;

/// A running shimd, or the original.
pub(crate) struct Lab {
    pub(crate) directory: tempfile::TempDir,
    child: Option<Child>,
    /// The program of a containerd that runs in place of shimd.
    theirs: Option<PathBuf>,
    lease: Option<&'static str>,
}

impl Lab {
    pub(crate) async fn start() -> Lab {
        let directory = tempfile::Builder::new().prefix("shimd-").tempdir().unwrap();
        let mut lab = Lab { directory, child: None, theirs: None, lease: None };
        lab.up().await;
        lab
    }

    /// A lab whose requests are made under a lease: what they make is not collected before it is linked to anything.
    pub(crate) async fn start_with_lease() -> Lab {
        Lab::start().await.leased().await
    }

    /// The same of a containerd 2.x, where `make setup` has put one.
    pub(crate) async fn start_theirs_with_lease() -> Option<Lab> {
        let path = "../target/peers/containerd.root/usr/bin/containerd";
        let Ok(program) = Path::new(env!("CARGO_MANIFEST_DIR")).join(path).canonicalize() else {
            eprintln!("skipped: there is no containerd 2.x: run 'make setup'");
            return None;
        };
        let directory = tempfile::Builder::new().prefix("shimd-").tempdir().unwrap();
        let mut lab = Lab { directory, child: None, theirs: Some(program), lease: None };
        lab.up().await;
        Some(lab.leased().await)
    }

    async fn leased(self) -> Lab {
        let mut lab = self;
        let request = leases::CreateRequest { id: LEASE.to_owned(), labels: HashMap::new() };
        lab.leases().await.create(request).await.unwrap();
        lab.lease = Some(LEASE);
        lab
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("run/shimd.sock")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Starts the daemon, and waits until it answers.
    pub(crate) async fn up(&mut self) {
        std::fs::create_dir_all(self.path("run")).unwrap();
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = self.theirs.as_ref().map_or_else(|| self.shimd(), |program| self.containerd(program));
        self.child = Some(command.stdin(Stdio::null()).stderr(log).spawn().unwrap());
        let began = Instant::now();
        while tokio::net::UnixStream::connect(self.socket()).await.is_err() {
            assert!(began.elapsed() < PATIENCE, "shimd does not answer: {}", self.log());
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("shimd ended with {status}: {}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn shimd(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shimd"));
        command.arg("--root").arg(self.path("lib")).arg("--state").arg(self.path("run/shimd"));
        command.arg("--address").arg(self.socket()).args(["--log-level", "debug"]);
        command.args(ours().iter().flat_map(|directory| [OsStr::new("--shim-path"), directory.as_os_str()]));
        command
    }

    fn containerd(&self, program: &Path) -> Command {
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n[grpc]\naddress = {:?}\n",
            self.path("lib"),
            self.path("run/shimd"),
            self.socket()
        );
        std::fs::write(self.path("containerd.toml"), config).unwrap();
        let path = std::env::join_paths(ours().into_iter().chain(["/usr/sbin".into(), "/usr/bin".into()])).unwrap();
        let mut command = Command::new(program);
        command.arg("--config").arg(self.path("containerd.toml")).env("PATH", path);
        command
    }

    /// Kills the daemon as suddenly as can be.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Asks the daemon to end.
    pub(crate) fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success(), "{}", self.log());
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub(crate) async fn connect(&self) -> Connection {
        self.connect_as("default", self.lease).await
    }

    pub(crate) async fn connect_as(&self, namespace: &str, lease: Option<&str>) -> Connection {
        let path = self.socket();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://shimd").connect_with_connector(connector).await.unwrap();
        let headers = Headers { namespace: namespace.to_owned(), lease: lease.map(str::to_owned) };
        InterceptedService::new(channel, headers)
    }

    pub(crate) async fn content(&self) -> ContentClient<Connection> {
        ContentClient::new(self.connect().await)
    }

    pub(crate) async fn snapshots(&self) -> SnapshotsClient<Connection> {
        SnapshotsClient::new(self.connect().await)
    }

    pub(crate) async fn diff(&self) -> DiffClient<Connection> {
        DiffClient::new(self.connect().await)
    }

    pub(crate) async fn tasks(&self) -> TasksClient<Connection> {
        TasksClient::new(self.connect().await)
    }

    pub(crate) async fn transfer(&self) -> TransferClient<Connection> {
        TransferClient::new(self.connect().await)
    }

    pub(crate) async fn streaming(&self) -> StreamingClient<Connection> {
        StreamingClient::new(self.connect().await)
    }

    pub(crate) async fn sandboxes(&self) -> StoreClient<Connection> {
        StoreClient::new(self.connect().await)
    }

    pub(crate) async fn controller(&self) -> ControllerClient<Connection> {
        ControllerClient::new(self.connect().await)
    }

    pub(crate) async fn containers(&self) -> ContainersClient<Connection> {
        ContainersClient::new(self.connect().await)
    }

    pub(crate) async fn images(&self) -> ImagesClient<Connection> {
        ImagesClient::new(self.connect().await)
    }

    pub(crate) async fn leases(&self) -> LeasesClient<Connection> {
        LeasesClient::new(self.connect().await)
    }

    pub(crate) async fn events(&self) -> EventsClient<Connection> {
        EventsClient::new(self.connect().await)
    }

    /// Writes a blob in messages of 64 KiB; the first bears `labels`.
    pub(crate) async fn write(
        &self,
        reference: &str,
        data: &[u8],
        labels: HashMap<String, String>,
    ) -> Result<WriteContentResponse, Status> {
        let expected = digest(data);
        let mut messages = vec![WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: reference.to_owned(),
            total: data.len() as i64,
            expected: expected.clone(),
            labels,
            ..Default::default()
        }];
        messages.extend(data.chunks(64 << 10).scan(0, |offset, chunk| {
            let message = WriteContentRequest {
                action: WriteAction::Write.into(),
                offset: *offset,
                data: chunk.to_vec().into(),
                ..Default::default()
            };
            *offset += chunk.len() as i64;
            Some(message)
        }));
        messages.push(WriteContentRequest {
            action: WriteAction::Commit.into(),
            total: data.len() as i64,
            offset: data.len() as i64,
            expected,
            ..Default::default()
        });
        self.send(messages).await
    }

    /// Sends a write stream and gives the last answer.
    pub(crate) async fn send(&self, messages: Vec<WriteContentRequest>) -> Result<WriteContentResponse, Status> {
        let stream = tokio_stream::iter(messages);
        let mut answers = self.content().await.write(stream).await?.into_inner();
        let mut last = None;
        while let Some(answer) = answers.message().await? {
            last = Some(answer);
        }
        Ok(last.unwrap())
    }

    pub(crate) async fn prepare(&self, key: &str, parent: &str) -> Vec<Mount> {
        let request = PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        };
        self.snapshots().await.prepare(request).await.unwrap().into_inner().mounts
    }

    pub(crate) async fn commit(&self, key: &str, name: &str) {
        let request = CommitSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels: HashMap::from([("containerd.io/gc.root".to_owned(), "test".to_owned())]),
            parent: String::new(),
        };
        self.snapshots().await.commit(request).await.unwrap();
    }

    /// Applies a blob of `size` bytes to `mounts`, and gives the diff id.
    pub(crate) async fn apply(&self, digest: &str, size: usize, mounts: Vec<Mount>) -> Result<String, Status> {
        let descriptor = Descriptor {
            media_type: GZIP_LAYER.to_owned(),
            digest: digest.to_owned(),
            size: size as i64,
            annotations: HashMap::new(),
        };
        let request = diff::ApplyRequest { diff: Some(descriptor), mounts, ..Default::default() };
        Ok(self.diff().await.apply(request).await?.into_inner().applied.unwrap().digest)
    }

    /// A committed snapshot called `name` with a busybox in it.
    pub(crate) async fn busybox(&self, name: &str) {
        let layer = gzip(&busybox_layer());
        self.write("busybox", &layer, HashMap::new()).await.unwrap();
        let mounts = self.prepare("busybox-tmp", "").await;
        self.apply(&digest(&layer), layer.len(), mounts).await.unwrap();
        self.commit("busybox-tmp", name).await;
    }

    /// A container record of a program, and its snapshot; gives the mounts.
    pub(crate) async fn container(&self, id: &str, parent: &str, arguments: &[&str]) -> Vec<Mount> {
        self.container_in("", id, parent, arguments).await
    }

    /// The same, of a sandbox.
    pub(crate) async fn container_in(&self, sandbox: &str, id: &str, parent: &str, arguments: &[&str]) -> Vec<Mount> {
        let mounts = self.prepare(id, parent).await;
        let container = containers::Container {
            id: id.to_owned(),
            runtime: Some(containers::container::Runtime {
                name: if ours().is_some() { "io.containerd.strata.v1" } else { "io.containerd.runc.v2" }.to_owned(),
                options: Some(self.runtime_options()),
            }),
            spec: Some(spec(id, arguments)),
            snapshotter: SNAPSHOTTER.to_owned(),
            snapshot_key: id.to_owned(),
            sandbox: sandbox.to_owned(),
            ..Default::default()
        };
        let request = containers::CreateContainerRequest { container: Some(container) };
        self.containers().await.create(request).await.unwrap();
        mounts
    }

    /// The runtime keeps its state beside everything else of this test.
    pub(crate) fn runtime_options(&self) -> Any {
        let options = proto_shim::runc::Options { root: self.path("runc").display().to_string(), ..Default::default() };
        proto_shim::any(&options)
    }
}

impl Lab {
    /// Asserts that of containers and sandboxes nothing is left: bundles, sockets, mounts, shims.
    pub(crate) async fn assert_nothing_left(&self) {
        let count = |path: &Path| std::fs::read_dir(path).map_or(0, Iterator::count);
        let directories =
            ["io.containerd.runtime.v2.task/default", "io.containerd.sandbox.controller.v1.shim/default", "s", "trash"];
        let left = || -> usize { directories.iter().map(|name| count(&self.path("run/shimd").join(name))).sum() };
        eventually("bundles and sockets go", || left() == 0).await;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.directory.path().to_str().unwrap()), "{mounts}");
        assert_eq!(count(&self.path("runc/default")), 0);
        eventually("shims go", || self.strays().is_empty()).await;
    }

    /// The shim of a container or sandbox: the process that was started with its id and this shimd's address.
    pub(crate) fn shim_pid(&self, id: &str) -> rustix::process::Pid {
        self.find_shim(id).unwrap_or_else(|| panic!("the shim of {id} does not run"))
    }

    pub(crate) fn find_shim(&self, id: &str) -> Option<rustix::process::Pid> {
        let address = self.socket().display().to_string();
        let wanted = [address.as_str(), id];
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let pid = pids.find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            words[0].windows(15).any(|part| part == b"containerd-shim")
                && wanted.iter().all(|word| words.contains(&word.as_bytes()))
        });
        rustix::process::Pid::from_raw(pid?)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the log of shimd:\n{}", self.log());
            self.sweep();
        }
    }
}

impl Lab {
    /// Processes of this lab but for its shimd: their command lines name its directory.
    pub(crate) fn strays(&self) -> Vec<i32> {
        let directory = self.directory.path().display().to_string();
        let own = [std::process::id(), self.child.as_ref().map_or(0, Child::id)];
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| !own.contains(&(*pid as u32)))
            .filter(|pid| {
                let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                line.contains(&directory)
            })
            .collect()
    }

    /// Removes what a failed test has left: containers with their shims, and mounts.
    fn sweep(&self) {
        use rustix::process::{Pid, Signal, kill_process};
        let kill = |pid: i32| Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
        for pid in self.strays() {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            for pid in children.split_whitespace().filter_map(|child| child.parse().ok()).chain([pid]) {
                kill(pid);
            }
        }
        let directory = self.directory.path().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let targets = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        for target in targets.filter(|path| path.starts_with(&directory)) {
            let _ = rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

pub(crate) fn digest(data: &[u8]) -> String {
    let hex: String = Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, data).unwrap();
    encoder.finish().unwrap()
}

/// A layer of files: path, contents.
pub(crate) fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o755);
        header.set_mtime(1_000_000_000);
        builder.append_data(&mut header, path, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn busybox_layer() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for directory in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        builder.append_data(&mut header, directory, std::io::empty()).unwrap();
    }
    builder.append_path_with_name("/bin/busybox", "bin/busybox").unwrap();
    for applet in ["sh", "true", "echo", "sleep", "cat", "kill", "ls"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Link);
        // containerd gives the file the mode of each of its links.
        header.set_mode(0o755);
        header.set_size(0);
        builder.append_link(&mut header, format!("bin/{applet}"), "bin/busybox").unwrap();
    }
    builder.into_inner().unwrap()
}

fn spec(id: &str, arguments: &[&str]) -> Any {
    let namespaces: Vec<_> =
        ["pid", "ipc", "uts", "mount", "network"].iter().map(|kind| serde_json::json!({ "type": kind })).collect();
    let spec = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": process(arguments),
        "root": { "path": "rootfs" },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": { "cgroupsPath": format!("/shimd-test-{}-{id}", std::process::id()), "namespaces": namespaces },
    });
    Any { type_url: json_type::SPEC.to_owned(), value: serde_json::to_vec(&spec).unwrap() }
}

pub(crate) fn process(arguments: &[&str]) -> serde_json::Value {
    serde_json::json!({
        "user": { "uid": 0, "gid": 0 },
        "args": arguments,
        "env": ["PATH=/bin"],
        "cwd": "/",
    })
}

pub(crate) fn process_any(arguments: &[&str]) -> Any {
    Any { type_url: json_type::PROCESS.to_owned(), value: serde_json::to_vec(&process(arguments)).unwrap() }
}

/// Polls until something is so.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "it never came: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
