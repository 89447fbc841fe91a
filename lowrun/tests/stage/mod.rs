//! What every test of the real program needs: a bundle around a tiny static root file system, the runtime under test,
//! and a look at the machine afterwards.
//!
//! `SUBJECT_RUNTIME=/usr/sbin/runc` runs the same tests on runc: where lowrun's behaviour is meant to be runc's, that
//! is how it is proven. What is lowrun's own asks [`Stage::is_ours`]; a lowrun elsewhere, as in a guest that has not built
//! it, is named by `SUBJECT_RUNTIME` and `SUBJECT_IS_LOWRUN=1`. With `SUBJECT_SYSTEMD_CGROUP=1` the cgroups are systemd's.

#![allow(dead_code, unreachable_pub, reason = "each test file is a program of its own and uses a part of this")]

use std::ffi::OsStr;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::{Value, json};

/// Where Debian's busybox-static puts its program.
const BUSYBOX: &str = "/bin/busybox";
/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Whether systemd makes the cgroups of the runtime under test.
pub fn by_systemd() -> bool {
    std::env::var_os("SUBJECT_SYSTEMD_CGROUP").is_some()
}

/// Whether the machine has cgroup v2 alone.
pub fn is_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// One test's bundle, state root and cgroup; on drop all of it is removed, and what a container left is a failure.
pub struct Stage {
    pub dir: tempfile::TempDir,
    pub config: Value,
    /// The runtime under test, if not the usual one.
    pub program: Option<PathBuf>,
    name: String,
}

/// A stage, or `None` (and a word about it) where the test cannot run.
pub fn stage() -> Option<Stage> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return None;
    }
    if !Path::new(BUSYBOX).exists() {
        eprintln!("skipped: needs {BUSYBOX} (busybox-static)");
        return None;
    }
    let name = format!("lowrun-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let dir = tempfile::Builder::new().prefix("lowrun-").tempdir().unwrap();
    let rootfs = dir.path().join("bundle/rootfs");
    for sub in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
        std::fs::create_dir_all(rootfs.join(sub)).unwrap();
    }
    // By another process: what another test of this program forks meanwhile would have the copy open for writing until it
    // executes its own program, and nobody could execute the copy.
    assert!(Command::new("cp").arg(BUSYBOX).arg(rootfs.join("bin/busybox")).status().unwrap().success());
    for applet in [
        "sh", "true", "false", "ls", "cat", "sleep", "mount", "id", "ps", "echo", "mkdir", "env", "pwd", "stat",
        "grep", "kill", "hostname", "touch", "readlink", "tty", "stty", "mknod", "head", "seq", "wc", "chmod", "ip",
        "dd", "test", "tr",
    ] {
        symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    std::fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nu:x:1000:1000:u:/home/u:/bin/sh\n")
        .unwrap();
    let config = config(&if by_systemd() { format!(":test:{name}") } else { format!("/{name}/c") });
    Some(Stage { dir, config, program: None, name })
}

/// A config.json close to that of `runc spec`, without a terminal.
fn config(cgroup: &str) -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": ["true"],
            "env": ["PATH=/bin:/usr/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": "staged",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
              "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
              "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] },
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

impl Stage {
    /// Whether lowrun itself is under test.
    pub fn is_ours(&self) -> bool {
        std::env::var_os("SUBJECT_RUNTIME").is_none() || std::env::var_os("SUBJECT_IS_LOWRUN").is_some()
    }

    /// Whether another runtime is under test that is known to do otherwise; says why.
    pub fn differs(&self, why: &str) -> bool {
        if !self.is_ours() {
            eprintln!("skipped: {why}");
        }
        !self.is_ours()
    }

    /// Whether the runtime under test says by `features` that it cannot do something; says so.
    pub fn lacks(&self, feature: &str) -> bool {
        let mut command = self.command();
        command.arg("features");
        let features: Value = serde_json::from_str(&self.finish(command).out).unwrap_or_default();
        let lacks = features.pointer(feature) != Some(&json!(true));
        if lacks {
            eprintln!("skipped: the runtime under test has no {feature}");
        }
        lacks
    }

    /// Gives the root file system to another user, and lets everybody reach it.
    pub fn own_rootfs(&self, id: u32) {
        let mut command = Command::new("chown");
        command.args(["-R", &format!("{id}:{id}")]).arg(self.rootfs());
        assert!(command.status().unwrap().success());
        for dir in [self.dir.path().to_owned(), self.bundle()] {
            std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
    }

    /// The root file system of the bundle.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.path().join("bundle/rootfs")
    }

    /// The bundle.
    pub fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    /// The state root.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.name
    }

    /// Sets the program.
    pub fn args(&mut self, args: &[&str]) {
        self.config["process"]["args"] = json!(args);
    }

    /// Sets the program to a shell script.
    pub fn script(&mut self, script: &str) {
        self.args(&["sh", "-c", script]);
    }

    /// Adds a mount at the end.
    pub fn mount(&mut self, destination: &str, kind: &str, source: &str, options: &[&str]) {
        let mount = json!({ "destination": destination, "type": kind, "source": source, "options": options });
        self.config["mounts"].as_array_mut().unwrap().push(mount);
    }

    /// Makes the namespace of a kind joined, shared (`None`) or, with an empty path, new.
    pub fn namespace(&mut self, kind: &str, path: Option<&str>) {
        let namespaces = self.config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != kind);
        match path {
            None => {}
            Some("") => namespaces.push(json!({ "type": kind })),
            Some(path) => namespaces.push(json!({ "type": kind, "path": path })),
        }
    }

    /// The command line of the runtime under test, up to the command.
    pub fn command(&self) -> Command {
        let usual = || std::env::var_os("SUBJECT_RUNTIME").unwrap_or_else(|| env!("CARGO_BIN_EXE_lowrun").into());
        let program = self.program.clone().unwrap_or_else(|| usual().into());
        let mut command = Command::new(program);
        command.arg("--root").arg(self.root()).stdin(Stdio::null()).current_dir(self.bundle());
        if by_systemd() {
            command.arg("--systemd-cgroup");
        }
        command
    }

    /// Uses a copy of the runtime that no other test executes; gives its path.
    pub fn own_program(&mut self) -> PathBuf {
        let copy = self.dir.path().join("runtime");
        std::fs::copy(self.command().get_program(), &copy).unwrap();
        self.program = Some(copy.clone());
        copy
    }

    /// Runs a command of the runtime under test to its end. Output goes through files, because a created container
    /// keeps the caller's stdout open.
    pub fn call<S: AsRef<OsStr>>(&self, words: &[S]) -> Outcome {
        self.write_config();
        let mut command = self.command();
        command.args(words);
        self.finish(command)
    }

    /// As [`Stage::call`], by a shell that first does what `preparation` says: limits, descriptors.
    pub fn call_after<S: AsRef<OsStr>>(&self, preparation: &str, words: &[S]) -> Outcome {
        self.write_config();
        let call = self.command();
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{preparation}; exec \"$0\" \"$@\"")]);
        shell.arg(call.get_program()).args(call.get_args()).args(words);
        shell.stdin(Stdio::null()).current_dir(self.bundle());
        self.finish(shell)
    }

    /// Makes a user namespace whose root is `id` on the host, and gives it the root file system.
    pub fn user_namespace(&mut self, id: u32) {
        self.namespace("user", Some(""));
        let map = json!([{ "containerID": 0, "hostID": id, "size": 65_536 }]);
        self.config["linux"]["uidMappings"] = map.clone();
        self.config["linux"]["gidMappings"] = map;
        let rootfs = self.rootfs();
        let owner = format!("{id}:{id}");
        assert!(Command::new("chown").args(["-hR", &owner]).arg(&rootfs).status().unwrap().success());
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(self.dir.path(), open).unwrap();
    }

    /// Runs a prepared command to its end.
    pub fn finish(&self, mut command: Command) -> Outcome {
        let (out, err) = (self.dir.path().join("stdout"), self.dir.path().join("stderr"));
        command.stdout(std::fs::File::create(&out).unwrap()).stderr(std::fs::File::create(&err).unwrap());
        // Another test's fork may hold a program open that was just copied, until it executes its own.
        let begun = Instant::now();
        let status = loop {
            match command.status() {
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy && begun.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                result => break result.unwrap(),
            }
        };
        Outcome {
            status: status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&std::fs::read(&out).unwrap()).into_owned(),
            err: String::from_utf8_lossy(&std::fs::read(&err).unwrap()).into_owned(),
        }
    }

    /// Writes config.json as it stands.
    pub fn write_config(&self) {
        std::fs::write(self.bundle().join("config.json"), self.config.to_string()).unwrap();
    }

    /// `run` in the foreground.
    pub fn run(&self) -> Outcome {
        self.call(&["run", self.id()])
    }

    /// `run`, whose failure is a failure of the test.
    pub fn output(&self) -> String {
        let outcome = self.run();
        assert_eq!(outcome.status, 0, "{outcome:?}");
        outcome.out
    }

    /// `run --detach`, whose failure is a failure of the test.
    pub fn detached(&self) {
        self.call(&["run", "--detach", self.id()]).ok();
    }

    /// `exec` of a shell script.
    pub fn exec(&self, script: &str) -> Outcome {
        self.call(&["exec", self.id(), "sh", "-c", script])
    }

    /// The status that `state` tells.
    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap_or_default().to_owned()
    }

    /// The document that `state` prints.
    pub fn state(&self) -> Value {
        let outcome = self.call(&["state", self.id()]).ok();
        serde_json::from_str(&outcome.out).unwrap()
    }

    /// Kills and removes the container.
    pub fn delete(&self) {
        self.call(&["delete", "--force", self.id()]).ok();
    }

    /// The log of a call with `--log-format json`: its error lines.
    pub fn logged(&self, words: &[&str]) -> (Outcome, Vec<Value>) {
        self.write_config();
        let log = self.dir.path().join("log");
        let _ = std::fs::remove_file(&log);
        let mut command = self.command();
        command.arg("--log").arg(&log).args(["--log-format", "json"]).args(words);
        let outcome = self.finish(command);
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        (outcome, text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    }

    /// The container's cgroup, from the root of each hierarchy.
    pub fn cgroup_path(&self) -> String {
        if by_systemd() { format!("system.slice/test-{}.scope", self.name) } else { format!("{}/c", self.name) }
    }

    /// Every directory of the container's cgroup that is there.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let top = Path::new("/sys/fs/cgroup");
        let hierarchies = std::fs::read_dir(top).unwrap().flatten().map(|entry| entry.path());
        for hierarchy in hierarchies.chain([top.to_owned()]) {
            let dir = hierarchy.join(self.cgroup_path());
            if dir.is_dir() {
                found.push(dir);
            }
        }
        found
    }

    /// A file of the container's cgroup: its v1 controller and name, and its v2 name.
    pub fn cgroup_file(&self, controller: &str, v1: &str, v2: &str) -> String {
        let below = self.cgroup_path();
        let v1 = Path::new("/sys/fs/cgroup").join(controller).join(&below).join(v1);
        let v2 = Path::new("/sys/fs/cgroup").join(&below).join(v2);
        let path = if v1.exists() { v1 } else { v2 };
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
    }

    /// What a container left behind, in words.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found: Vec<String> = self.cgroups().iter().map(|dir| format!("cgroup {}", dir.display())).collect();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here = self.dir.path().to_str().unwrap();
        found.extend(mounts.lines().filter(|line| line.contains(here)).map(|line| format!("mount {line}")));
        let states = std::fs::read_dir(self.root()).into_iter().flatten().flatten();
        let is_state = |name: &str| !name.starts_with('@');
        found.extend(
            states
                .filter_map(|e| e.file_name().into_string().ok())
                .filter(|n| is_state(n))
                .map(|n| format!("state {n}")),
        );
        found
    }

    /// The container and the call left nothing.
    pub fn is_clean(&self) {
        assert_eq!(self.leftovers(), Vec::<String>::new());
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let mut command = self.command();
        let _ = command.args(["delete", "--force", self.id()]).stderr(Stdio::null()).status();
        let left = self.leftovers();
        for dir in self.cgroups() {
            let _ = std::fs::remove_dir(&dir);
        }
        let top = Path::new("/sys/fs/cgroup");
        let hierarchies = std::fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path());
        for hierarchy in hierarchies.chain([top.to_owned()]) {
            let _ = std::fs::remove_dir(hierarchy.join(&self.name));
        }
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left behind: {left:?}");
        }
    }
}

/// A bind mount of the test's own, taken away when this goes.
pub struct Bound(PathBuf);

impl Bound {
    /// Binds a directory.
    pub fn new(source: &Path, target: &Path) -> Bound {
        rustix::mount::mount_bind(source, target).unwrap();
        Bound(target.to_owned())
    }

    /// As [`Bound::new`], read-only.
    pub fn readonly(source: &Path, target: &Path) -> Bound {
        let bound = Bound::new(source, target);
        let flags = rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::RDONLY;
        rustix::mount::mount_remount(target, flags, c"").unwrap();
        bound
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// What a call gave.
#[derive(Debug)]
pub struct Outcome {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Outcome {
    /// It succeeded.
    #[track_caller]
    pub fn ok(self) -> Outcome {
        assert_eq!(self.status, 0, "{self:?}");
        self
    }

    /// It failed with this status, and its words hold these.
    #[track_caller]
    pub fn fails(self, status: i32, words: &str) -> Outcome {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.err.contains(words), "{words:?} is not in {self:?}");
        self
    }
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Outcome {
        Outcome {
            status: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Receives the listener of a filter and what comes with it.
pub fn take_listener(stream: &UnixStream) -> (Value, OwnedFd) {
    let mut words = vec![0; 8192];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut words)], &mut control, RecvFlags::CMSG_CLOEXEC)
            .unwrap();
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    (serde_json::from_slice(&words[..received.bytes]).unwrap(), fd.expect("a descriptor"))
}

/// Waits until something holds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
