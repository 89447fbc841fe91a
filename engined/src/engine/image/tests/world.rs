//! What the tests stand on: a supervisor and a registry of their own, with images made here.
//!
//! The supervisor is Debian's containerd or our shimd; each test runs over both. What is not installed or not built is
//! named, and the test passes by.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use strata_registry::{Digest, media_type};
use tempfile::TempDir;

use crate::containerd::Client;

/// The namespace of a test.
pub(super) const NAMESPACE: &str = "strata-test";

/// A program that is ended when it is dropped.
struct Daemon(Child);

impl Daemon {
    fn start(command: &mut Command, log: &Path) -> Daemon {
        let log = fs::File::create(log).unwrap();
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        Daemon(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        for _ in 0..100 {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for(what: &str, log: &Path, mut is_there: impl FnMut() -> bool) {
    for _ in 0..200 {
        if is_there() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{what} does not come up: {}", fs::read_to_string(log).unwrap_or_default());
}

fn is_installed(program: &str) -> bool {
    let there = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !there {
        eprintln!("skipped: {program} is not installed");
    }
    there
}

/// Which program plays the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Theirs,
    Ours,
}

/// A supervisor with directories of its own.
pub(super) struct Supervisor {
    daemon: Option<Daemon>,
    kind: Kind,
    directory: TempDir,
}

impl Supervisor {
    /// `None`, with a word about it, where it cannot be had.
    pub(super) fn start(kind: Kind) -> Option<Supervisor> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: a supervisor needs root");
            return None;
        }
        if kind == Kind::Theirs && !(is_installed("containerd") && is_installed("ctr")) {
            return None;
        }
        if kind == Kind::Ours && !shimd().exists() {
            eprintln!("skipped: {} is not built", shimd().display());
            return None;
        }
        let directory = tempfile::Builder::new().prefix("engined-image-").tempdir().unwrap();
        let mut supervisor = Supervisor { daemon: None, kind, directory };
        supervisor.up();
        Some(supervisor)
    }

    pub(super) fn up(&mut self) {
        let path = self.directory.path();
        let mut command = match self.kind {
            Kind::Theirs => containerd(path),
            Kind::Ours => ours(path),
        };
        let log = path.join("log");
        self.daemon = Some(Daemon::start(&mut command, &log));
        let socket = self.socket();
        wait_for("the supervisor", &log, || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    }

    /// A disk of that many MiB of its own for what it keeps; to be called on one that was just started.
    pub(super) fn with_disk(&mut self, size_mib: u32) {
        self.daemon = None;
        let root = self.directory.path().join("root");
        fs::remove_dir_all(&root).unwrap();
        fs::create_dir(&root).unwrap();
        let options = format!("size={size_mib}m,mode=700");
        let made = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&root).status();
        assert!(made.unwrap().success());
        self.up();
    }

    pub(super) fn grow_disk(&self, size_mib: u32) {
        let options = format!("remount,size={size_mib}m");
        let root = self.directory.path().join("root");
        assert!(Command::new("mount").args(["-o", &options]).arg(root).status().unwrap().success());
    }

    /// Ends it as a crash does, and starts it again.
    pub(super) fn crash(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.0.kill().unwrap();
            daemon.0.wait().unwrap();
        }
        self.up();
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.path().join("sock")
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub(super) fn client(&self) -> Client {
        Client::new(&self.socket(), NAMESPACE).unwrap()
    }

    /// What containerd's own client sees.
    pub(super) fn ctr(&self, arguments: &[&str]) -> String {
        let output = Command::new("ctr")
            .args(["--address".as_ref(), self.socket().as_os_str()])
            .args(["--namespace", NAMESPACE])
            .args(arguments)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "ctr {arguments:?}: {}\n{}", text(&output.stderr), self.log());
        text(&output.stdout)
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.daemon = None;
        // Nothing is mounted there but in the tests that asked for it.
        let root = self.directory.path().join("root");
        let _ = Command::new("umount").arg("-q").arg(root).stderr(Stdio::null()).status();
    }
}

/// Where cargo put shimd, beside this test.
fn shimd() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    here.parent().and_then(Path::parent).unwrap().join("shimd")
}

fn containerd(path: &Path) -> Command {
    let config = format!(
        "version = 2\nroot = '{0}/root'\nstate = '{0}/state'\n\
         disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.snapshotter.v1.devmapper', \
         'io.containerd.snapshotter.v1.btrfs', 'io.containerd.snapshotter.v1.zfs', 'io.containerd.snapshotter.v1.aufs']\n\
         [grpc]\naddress = '{0}/sock'\n[ttrpc]\naddress = '{0}/sock.ttrpc'\n",
        path.display()
    );
    fs::write(path.join("config.toml"), config).unwrap();
    let mut command = Command::new("containerd");
    command.arg("--config").arg(path.join("config.toml"));
    command
}

fn ours(path: &Path) -> Command {
    let mut command = Command::new(shimd());
    command.arg("--root").arg(path.join("root"));
    command.arg("--state").arg(path.join("state"));
    command.arg("--address").arg(path.join("sock"));
    command
}

/// Debian's registry, with a directory of its own.
pub(super) struct Registry {
    _daemon: Daemon,
    pub(super) port: u16,
    directory: TempDir,
}

impl Registry {
    pub(super) fn start() -> Option<Registry> {
        if !(is_installed("docker-registry") && is_installed("skopeo")) {
            return None;
        }
        let directory = tempfile::Builder::new().prefix("engined-registry-").tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}/data}}}}\n\
             http: {{addr: '127.0.0.1:{port}'}}\n",
            directory.path().display(),
        );
        fs::write(directory.path().join("config.yml"), config).unwrap();
        let log = directory.path().join("log");
        let mut command = Command::new("docker-registry");
        let daemon = Daemon::start(command.arg("serve").arg(directory.path().join("config.yml")), &log);
        wait_for("the registry", &log, || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(Registry { _daemon: daemon, port, directory })
    }

    pub(super) fn name(&self, name: &str) -> String {
        format!("localhost:{}/{name}", self.port)
    }

    pub(super) fn push(&self, layout: &Layout, name: &str) {
        let status = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--all", "--preserve-digests", "--dest-tls-verify=false"])
            .arg(format!("oci:{}", layout.0.path().display()))
            .arg(format!("docker://{}", self.name(name)))
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// The file that holds a blob.
    pub(super) fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let blobs = self.directory.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }
}

/// How a layer is packed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Packing {
    Gzip,
    Zstd,
    Plain,
}

/// A layer: its tar, and how it is packed.
#[derive(Clone)]
pub(super) struct Layer {
    tar: Vec<u8>,
    packing: Packing,
}

impl Layer {
    /// A layer that holds these files.
    pub(super) fn new(packing: Packing, files: &[(&str, &[u8])]) -> Layer {
        let directory = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let tar = Command::new("tar")
            .arg("-C")
            .arg(directory.path())
            .args(["--sort=name", "--mtime=@0", "-cf", "-", "."])
            .output();
        Layer { tar: tar.unwrap().stdout, packing }
    }

    pub(super) fn diff_id(&self) -> String {
        Digest::of(&self.tar).to_string()
    }

    fn packed(&self) -> (&'static str, Vec<u8>) {
        match self.packing {
            Packing::Plain => (media_type::OCI_LAYER, self.tar.clone()),
            Packing::Gzip => (media_type::OCI_LAYER_GZIP, piped("gzip", &self.tar)),
            Packing::Zstd => (media_type::OCI_LAYER_ZSTD, piped("zstd", &self.tar)),
        }
    }
}

fn piped(tool: &str, bytes: &[u8]) -> Vec<u8> {
    let input = tempfile::NamedTempFile::new().unwrap();
    fs::write(input.path(), bytes).unwrap();
    let output = Command::new(tool).arg("-c").stdin(input.reopen().unwrap()).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// An OCI image layout in a directory.
pub(super) struct Layout(TempDir);

/// What a made image is known by.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) entry: Value,
    pub(super) id: String,
    /// Digests of the layers' blobs.
    pub(super) layers: Vec<String>,
}

impl Layout {
    pub(super) fn new() -> Layout {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
        fs::write(directory.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Layout(directory)
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        fs::write(self.0.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    pub(super) fn image(&self, architecture: &str, layers: &[Layer]) -> Made {
        self.image_with(architecture, layers, layers.iter().map(Layer::diff_id).collect())
    }

    /// With diff ids that need not be right.
    pub(super) fn image_with(&self, architecture: &str, layers: &[Layer], diff_ids: Vec<String>) -> Made {
        let config = json!({"architecture": architecture, "os": "linux", "created": "2026-02-03T04:05:06Z",
            "config": {"Cmd": ["/bin/true"], "Labels": {"a": "b"}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = self.blob(media_type::OCI_CONFIG, config.to_string().as_bytes());
        let blobs: Vec<Value> = layers
            .iter()
            .map(|layer| {
                let (media_type, bytes) = layer.packed();
                self.blob(media_type, &bytes)
            })
            .collect();
        let text = |value: &Value| value["digest"].as_str().unwrap().to_owned();
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config,
            "layers": blobs});
        let mut entry = self.blob(media_type::OCI_MANIFEST, manifest.to_string().as_bytes());
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        Made { entry, id: text(&config), layers: blobs.iter().map(text).collect() }
    }

    /// What the layout's one name stands for.
    pub(super) fn name(&self, entry: &Value) {
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry]});
        fs::write(self.0.path().join("index.json"), index.to_string()).unwrap();
    }

    pub(super) fn index(&self, images: &[&Made]) -> Value {
        let manifests: Vec<&Value> = images.iter().map(|made| &made.entry).collect();
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests});
        self.blob(media_type::OCI_INDEX, index.to_string().as_bytes())
    }
}

/// Bytes that look like chance and are the same each time.
pub(super) fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..count).map(|_| next()).collect()
}
