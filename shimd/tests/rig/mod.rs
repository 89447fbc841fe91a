//! A shimd of its own for each test: real process, real socket, a directory that goes with the test.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod asked;
pub(crate) mod chance;
mod clients;
pub(crate) mod documents;
mod leftovers;
mod parts;
pub(crate) mod registry;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use proto_containerd::services::leases;
use proto_containerd::{LEASE_HEADER, NAMESPACE_HEADER};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

#[allow(unused_imports, reason = "each test file uses a part of it")]
pub(crate) use parts::{digest, gzip, layer, process, process_any};

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
        let directory = leftovers::directory();
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
        Some(Lab::start_of(program).await)
    }

    /// The same of Debian's containerd.
    pub(crate) async fn start_debians_with_lease() -> Option<Lab> {
        let program = Path::new("/usr/bin/containerd");
        if !is_root() || !program.exists() {
            eprintln!("skipped: there is no containerd of Debian's: run 'make setup'");
            return None;
        }
        Some(Lab::start_of(program.to_owned()).await)
    }

    async fn start_of(program: PathBuf) -> Lab {
        let mut lab = Lab { directory: leftovers::directory(), child: None, theirs: Some(program), lease: None };
        lab.up().await;
        lab.leased().await
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
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.internal.v1.opt']\n[grpc]\naddress = {:?}\n",
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
        // With the first request: where nobody listens any more, that fails.
        let channel = Endpoint::from_static("http://shimd").connect_with_connector_lazy(connector);
        let headers = Headers { namespace: namespace.to_owned(), lease: lease.map(str::to_owned) };
        InterceptedService::new(channel, headers)
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

/// Polls until something is so.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "it never came: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
