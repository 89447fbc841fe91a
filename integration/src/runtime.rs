//! An OCI runtime under test: lowrun, or with `SUBJECT=theirs` Debian's runc; and bundles for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::call::{Call, Output};
use crate::lab::Lab;
use crate::skip::{obstacle, skip, test_name};
use crate::stack::Subject;
use crate::{leak, process, programs};

/// Runs a test of the runtime that `SUBJECT` names in a lab of its own; then nothing may be left.
pub fn runtime(test: impl FnOnce(&Runtime)) {
    let program = match Subject::chosen() {
        Subject::Ours => programs::ours().join("lowrun"),
        Subject::Theirs => match programs::peer("runc") {
            Some(program) => program,
            None => return skip("runc is not installed: run 'make setup'"),
        },
    };
    if let Some(reason) = obstacle() {
        return skip(reason);
    }
    assert!(program.exists(), "{} is missing: run 'make build'", program.display());
    let runtime = Runtime { lab: Lab::enter(), program };
    let reaper = Reaper::start();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&runtime)));
    let leaks = if outcome.is_ok() { runtime.lab.leaks(|_| false) } else { Vec::new() };
    runtime.lab.remove();
    reaper.end();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
    assert!(leaks.is_empty(), "{} left behind:\n{}", test_name(), leak::report(&leaks));
}

/// Fetches dead processes of containers, as the shim above a runtime does: the kernel does not let a PID namespace's first
/// process go before all others are fetched, and a detached exec's parent is outside. The harness's own children, which
/// are in no such namespace, are left to whoever waits for them.
struct Reaper {
    over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Reaper {
    fn start() -> Reaper {
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                reap_container_processes();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Reaper { over, thread }
    }

    fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("the reaper does not panic");
    }
}

fn reap_container_processes() {
    let me = std::process::id() as i32;
    let dead = process::all().into_iter().filter(|process| process.parent == me && process.state == 'Z');
    for process in dead.filter(|process| process::is_in_inner_pid_namespace(process.pid)) {
        let _ = waitpid(Pid::from_raw(process.pid), Some(WaitPidFlag::WNOHANG));
    }
}

/// The runtime, with a state directory of its own.
pub struct Runtime {
    lab: Lab,
    program: PathBuf,
}

impl Runtime {
    pub fn is_ours(&self) -> bool {
        Subject::chosen() == Subject::Ours
    }

    /// A call with `--root`.
    pub fn call(&self, arguments: &[&str]) -> Call {
        let mut command = self.command();
        command.args(arguments);
        Call::new(command)
    }

    /// The program with `--root`, for whoever adds the rest.
    pub fn command(&self) -> Command {
        let mut command = self.lab.site().command(&self.program);
        command.arg("--root").arg(self.path("run/runtime"));
        command
    }

    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.call(arguments).output()
    }

    /// A path in the lab's directory.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.lab.site().path(relative)
    }

    /// An id that no other test uses: cgroups and leaks are known by it.
    pub fn id(&self, name: &str) -> String {
        format!("{}-{name}", self.lab.site().instance())
    }

    /// A bundle of busybox whose program is `arguments`, with the runtime's own default config.
    pub fn bundle(&self, name: &str, arguments: &[&str]) -> Bundle {
        let bundle = Bundle { path: self.path(&format!("tmp/{name}")) };
        unpack_busybox(&bundle.path.join("rootfs"));
        self.call(&["spec", "--bundle", &bundle.text()]).output().ok();
        let group = format!("/{}", self.id(name));
        bundle.edit(|config| {
            config["process"]["args"] = json!(arguments);
            config["process"]["terminal"] = json!(false);
            config["root"]["readonly"] = json!(false);
            config["linux"]["cgroupsPath"] = json!(group);
        });
        bundle
    }

    /// The pid that `state` tells, and its status.
    #[track_caller]
    pub fn state(&self, id: &str) -> Value {
        let text = self.run(&["state", id]).ok().text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("state is not JSON ({error}): {text}"))
    }
}

/// A directory with `config.json` and `rootfs`.
pub struct Bundle {
    path: PathBuf,
}

impl Bundle {
    pub fn text(&self) -> String {
        self.path.display().to_string()
    }

    /// Changes `config.json`.
    pub fn edit(&self, change: impl FnOnce(&mut Value)) {
        let path = self.path.join("config.json");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
        let mut config = serde_json::from_str(&text).expect("config.json is JSON");
        change(&mut config);
        fs::write(&path, config.to_string()).expect("write config.json");
    }

    /// Writes `config.json` as it is given.
    pub fn write(&self, text: &str) {
        fs::write(self.path.join("config.json"), text).expect("write config.json");
    }
}

/// Unpacks the one layer of the image busybox.
fn unpack_busybox(rootfs: &Path) {
    fs::create_dir_all(rootfs).expect("the bundle's directory");
    let blobs = programs::images().join("busybox/blobs/sha256");
    let entries =
        fs::read_dir(&blobs).unwrap_or_else(|error| panic!("read {}: {error} (run 'make images')", blobs.display()));
    let largest = entries.flatten().max_by_key(|entry| entry.metadata().map_or(0, |data| data.len())).expect("a layer");
    let layer = flate2::read::GzDecoder::new(fs::File::open(largest.path()).expect("open the layer"));
    tar::Archive::new(layer).unpack(rootfs).expect("unpack the layer");
}
