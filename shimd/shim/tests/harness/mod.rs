//! Drives the real shim as a supervisor does: starts it in a bundle, calls it over ttrpc, takes its events; and checks
//! that nothing is left.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prost::Message;
use proto_shim::events_ttrpc::ForwardRequest;
use proto_shim::runc;
use proto_shim::task::*;
use proto_shim::types::{Envelope, Mount};
use serde_json::{Value, json};
use strata_fault::Fault;
use strata_trace::Spans;
use strata_ttrpc::server::{self, Handler};
use strata_ttrpc::{CallError, CallOptions, Client, Request, Status};

/// The shim to test: STRATA_TEST_SHIM (any shim of containerd's protocol), else the one that was just built.
fn shim() -> PathBuf {
    let built = env!("CARGO_BIN_EXE_containerd-shim-strata-v1");
    std::env::var_os("STRATA_TEST_SHIM").map_or_else(|| PathBuf::from(built), PathBuf::from)
}

pub(crate) const NAMESPACE: &str = "shim-test";
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The runtime to test with: STRATA_TEST_RUNTIME, else lowrun if it was built beside the shim, else runc.
fn runtime() -> Option<PathBuf> {
    let asked = std::env::var_os("STRATA_TEST_RUNTIME").map(PathBuf::from);
    let beside = shim().with_file_name("lowrun");
    let candidates = [asked, Some(beside), Some("/usr/sbin/runc".into()), Some("/usr/bin/runc".into())];
    candidates.into_iter().flatten().find(|path| path.exists())
}

/// Everything that a supervisor has: a directory, an events service, and the container's parts.
pub(crate) struct Stage {
    temporary: tempfile::TempDir,
    pub(crate) id: String,
    pub(crate) runtime: PathBuf,
    pub(crate) events: Events,
    listening: Option<tokio::task::JoinHandle<()>>,
    /// What shims log into; a supervisor reads it.
    _log: Option<tokio::net::unix::pipe::Receiver>,
}

/// The events that have come.
#[derive(Clone, Default)]
pub(crate) struct Events(Arc<Mutex<Vec<Envelope>>>);

impl Handler for Events {
    async fn call(&self, request: Request) -> Result<Vec<u8>, Status> {
        let forward = ForwardRequest::decode(request.payload.as_slice()).unwrap();
        self.0.lock().unwrap().extend(forward.envelope);
        Ok(Vec::new())
    }
}

impl Events {
    pub(crate) fn topics(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|event| event.topic.trim_start_matches("/tasks/").to_owned()).collect()
    }

    /// The events of one topic.
    pub(crate) fn of<M: Message + prost::Name + Default>(&self, topic: &str) -> Vec<M> {
        let events = self.0.lock().unwrap();
        let events = events.iter().filter(|event| event.topic == topic);
        events.filter_map(|event| proto_shim::from_any(event.event.as_ref()?).ok()?).collect()
    }

    pub(crate) fn exits(&self) -> Vec<(String, u32)> {
        let exits = self.of::<proto_shim::events::TaskExit>(proto_shim::topic::TASK_EXIT);
        exits.into_iter().map(|exit| (exit.id, exit.exit_status)).collect()
    }

    pub(crate) async fn wait_for(&self, topic: &str) {
        within(async {
            while !self.topics().iter().any(|seen| seen == topic) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

impl Stage {
    /// `None`, and a word about it, where the kernel's or the runtime's part cannot be tested.
    pub(crate) async fn new(id: &str) -> Option<Stage> {
        let Some(runtime) = runtime() else {
            eprintln!("skipped: no lowrun and no runc");
            return None;
        };
        let busybox = Path::new("/bin/busybox");
        if fs::metadata("/proc/self").unwrap().uid() != 0 || !busybox.exists() {
            eprintln!("skipped: needs root and busybox-static");
            return None;
        }
        let temporary = tempfile::Builder::new().prefix("shim-test-").tempdir().unwrap();
        let mut stage = Stage {
            temporary,
            id: format!("{id}-{}", std::process::id()),
            runtime,
            events: Events::default(),
            listening: None,
            _log: None,
        };
        for directory in ["lower/bin", "lower/proc", "lower/dev", "lower/sys", "lower/tmp", "upper", "work", "bundle"] {
            fs::create_dir_all(stage.path(directory)).unwrap();
        }
        fs::copy(busybox, stage.path("lower/bin/busybox")).unwrap();
        for tool in ["sh", "cat", "sleep", "true", "yes", "head", "dd", "stty", "tty", "ls", "wc"] {
            std::os::unix::fs::symlink("busybox", stage.path("lower/bin").join(tool)).unwrap();
        }
        stage._log = Some(stage.fifo("bundle/log").1);
        stage.listen();
        Some(stage)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.temporary.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    #[allow(dead_code, reason = "the tests of tasks use all of the harness but this")]
    /// Puts a script in the runtime's place. In its text DIR is the stage's directory and REAL the runtime.
    pub(crate) fn wrap_runtime(&mut self, script: &str) {
        let text = script.replace("DIR", &self.text("")).replace("REAL", &self.runtime.display().to_string());
        self.runtime = self.path("lowrun");
        fs::write(&self.runtime, text).unwrap();
        fs::set_permissions(&self.runtime, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Serves the events service.
    pub(crate) fn listen(&mut self) {
        let listener = server::listen(&self.path("c.sock.ttrpc")).unwrap();
        self.listening = Some(tokio::spawn(server::serve(listener, Arc::new(self.events.clone()))));
    }

    /// Takes the events service away.
    pub(crate) fn stop_listening(&mut self) {
        if let Some(listening) = self.listening.take() {
            listening.abort();
        }
        fs::remove_file(self.path("c.sock.ttrpc")).unwrap();
    }

    /// Writes a config.json that runs `command`.
    pub(crate) fn configure(&self, command: &[&str], change: impl FnOnce(&mut Value)) {
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": {"uid": 0, "gid": 0},
                "args": command,
                "env": ["PATH=/bin", "TERM=xterm"],
                "cwd": "/",
                "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
                "noNewPrivileges": true
            },
            "root": {"path": "rootfs", "readonly": false},
            "hostname": "test",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]}
            ],
            "linux": {
                "cgroupsPath": format!("/shim-test/{}", self.id),
                "namespaces": [
                    {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}
                ],
                "resources": {"devices": [{"allow": true, "access": "rwm"}]}
            }
        });
        change(&mut spec);
        fs::write(self.path("bundle/config.json"), spec.to_string()).unwrap();
    }

    fn command(&self, verb: &str) -> Command {
        self.command_of(&self.id, "bundle", verb)
    }

    /// The command line for a container in its bundle.
    pub(crate) fn command_of(&self, id: &str, bundle: &str, verb: &str) -> Command {
        let mut command = Command::new(shim());
        command.current_dir(self.path(bundle));
        command.env("TTRPC_ADDRESS", self.path("c.sock.ttrpc")).env_remove("MAX_SHIM_VERSION");
        command.args(["-namespace", NAMESPACE, "-id", id, "-address"]);
        command.arg(self.path("c.sock")).args(["-publish-binary", "/bin/true", verb]);
        command
    }

    /// Starts the shim and connects to it.
    pub(crate) async fn start(&self) -> Shim {
        let output = self.command("start").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let address = String::from_utf8(output.stdout).unwrap();
        let socket = PathBuf::from(address.strip_prefix("unix://").unwrap());
        // Not every shim leaves its number.
        let pid = fs::read_to_string(self.path("bundle/shim.pid")).ok().and_then(|pid| pid.parse().ok()).unwrap_or(0);
        let client = Client::connect(&socket).await.unwrap();
        Shim { client, socket, pid, service: proto_shim::service::TASK_V2, id: self.id.clone(), traceparent: None }
    }

    /// What the supervisor calls when the shim has died.
    pub(crate) fn delete(&self) -> Output {
        self.command("delete").output().unwrap()
    }

    pub(crate) fn create_request(&self, stdout: &str, stderr: &str) -> CreateTaskRequest {
        let options = runc::Options {
            binary_name: self.runtime.to_str().unwrap().to_owned(),
            root: self.text("runtime"),
            ..runc::Options::default()
        };
        CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.text("bundle"),
            rootfs: vec![Mount {
                r#type: "overlay".to_owned(),
                source: "overlay".to_owned(),
                target: String::new(),
                options: vec![
                    "index=off".to_owned(),
                    format!("lowerdir={}", self.text("lower")),
                    format!("upperdir={}", self.text("upper")),
                    format!("workdir={}", self.text("work")),
                ],
            }],
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
            options: Some(proto_shim::any(&options)),
            ..CreateTaskRequest::default()
        }
    }

    pub(crate) fn log_uri(&self) -> String {
        format!("strata-log://{}", self.text("log"))
    }

    /// A FIFO, open for both directions.
    pub(crate) fn fifo(&self, name: &str) -> (String, tokio::net::unix::pipe::Receiver) {
        let path = self.path(name);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let receiver = tokio::net::unix::pipe::OpenOptions::new().read_write(true).open_receiver(&path).unwrap();
        (path.to_str().unwrap().to_owned(), receiver)
    }

    /// Nothing is mounted, no cgroup and no process is left.
    pub(crate) fn assert_clean(&self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(self.temporary.path().to_str().unwrap()), "a mount is left: {mounts}");
        let cgroup = format!("shim-test/{}", self.id);
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap() {
            let path = hierarchy.unwrap().path().join(&cgroup);
            assert!(!path.exists(), "{} is left", path.display());
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Ok(pid) = fs::read_to_string(self.path("bundle/shim.pid")) {
            let command_line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&command_line).contains(shim().to_str().unwrap()) {
                // A test that failed left it.
                let _ = Command::new("kill").args(["-9", &pid]).status();
                self.delete();
            }
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            // The parent of all the tests' cgroups; the last test removes it.
            let _ = fs::remove_dir(hierarchy.path().join("shim-test"));
        }
    }
}

/// A connection to a shim.
pub(crate) struct Shim {
    pub(crate) client: Client,
    pub(crate) socket: PathBuf,
    pub(crate) pid: u32,
    pub(crate) service: &'static str,
    pub(crate) id: String,
    pub(crate) traceparent: Option<String>,
}

impl Shim {
    /// Calls a method; also the spans that came with the answer.
    pub(crate) async fn traced<Q: Message, A: Message + Default>(
        &self,
        method: &str,
        request: Q,
    ) -> Result<(A, Option<Spans>), CallError> {
        let trace = self.traceparent.iter().map(|context| ("traceparent".to_owned(), context.clone()));
        let details = (strata_fault::DETAILS.to_owned(), String::new());
        let options = CallOptions { metadata: trace.chain([details]).collect(), timeout: Some(PATIENCE) };
        let reply = self.client.call(self.service, method, &request, &options).await?;
        Ok((reply.message, reply.spans.map(|bytes| Spans::decode(bytes.as_slice()).unwrap())))
    }

    pub(crate) async fn call<Q: Message, A: Message + Default>(&self, method: &str, request: Q) -> A {
        match self.traced(method, request).await {
            Ok((answer, _)) => answer,
            Err(error) => panic!("{method}: {error:?}"),
        }
    }

    /// The fault of a call that fails.
    pub(crate) async fn fault<Q: Message>(&self, method: &str, request: Q) -> Fault {
        match self.traced::<Q, ()>(method, request).await {
            Err(CallError::Status(status)) => Fault::from_status_bytes(status.as_bytes()).unwrap().expect("ours"),
            other => panic!("{method}: {other:?}"),
        }
    }

    pub(crate) async fn create(&self, request: CreateTaskRequest) -> u32 {
        self.call::<_, CreateTaskResponse>("Create", request).await.pid
    }

    pub(crate) async fn start(&self, exec_id: &str) -> u32 {
        let request = StartRequest { id: self.id.clone(), exec_id: exec_id.to_owned() };
        self.call::<_, StartResponse>("Start", request).await.pid
    }

    pub(crate) async fn wait(&self, exec_id: &str) -> u32 {
        let request = WaitRequest { id: self.id.clone(), exec_id: exec_id.to_owned() };
        self.call::<_, WaitResponse>("Wait", request).await.exit_status
    }

    pub(crate) async fn kill(&self, exec_id: &str, signal: u32) {
        let request = KillRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), signal, all: false };
        self.call::<_, ()>("Kill", request).await;
    }

    pub(crate) async fn delete(&self, exec_id: &str) -> DeleteResponse {
        self.call("Delete", DeleteRequest { id: self.id.clone(), exec_id: exec_id.to_owned() }).await
    }

    pub(crate) async fn state(&self, exec_id: &str) -> StateResponse {
        self.call("State", StateRequest { id: self.id.clone(), exec_id: exec_id.to_owned() }).await
    }

    pub(crate) async fn close_stdin(&self, exec_id: &str) {
        let request = CloseIoRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), stdin: true };
        self.call::<_, ()>("CloseIO", request).await;
    }

    pub(crate) async fn exec(&self, exec_id: &str, command: &[&str], change: impl FnOnce(&mut ExecProcessRequest)) {
        let process = json!({
            "args": command, "cwd": "/", "env": ["PATH=/bin", "TERM=xterm"], "user": {"uid": 0, "gid": 0}
        });
        let spec = prost_types::Any {
            type_url: proto_shim::json_type::PROCESS.to_owned(),
            value: process.to_string().into_bytes(),
        };
        let mut request = ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            spec: Some(spec),
            ..ExecProcessRequest::default()
        };
        change(&mut request);
        self.call::<_, ()>("Exec", request).await;
    }

    /// Ends the shim and waits until it is gone, with its socket.
    pub(crate) async fn shutdown(self) {
        self.call::<_, ()>("Shutdown", ShutdownRequest { id: self.id.clone(), now: false }).await;
        within(self.client.closed()).await;
        let begun = Instant::now();
        while Path::new(&format!("/proc/{}/root", self.pid)).exists() && !is_zombie(self.pid) {
            assert!(begun.elapsed() < PATIENCE, "the shim goes on");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(!self.socket.exists(), "the socket is left");
    }
}

/// Process 1 may take its time to reap.
pub(crate) fn is_zombie(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}
