//! A supervisor under test, asked by Debian's `ctr`: shimd, or with `SUBJECT=theirs` Debian's containerd; and the two
//! crosswise, as any shim and any runtime must do under either.

use std::fs;
use std::path::{Path, PathBuf};

use crate::call::{Call, Output};
use crate::daemon::Daemon;
use crate::lab::Lab;
use crate::leak::{self, Kind, Leak};
use crate::registry::{Access, Registry};
use crate::skip::{obstacle, skip, test_name};
use crate::stack::theirs::{start_containerd_program, start_containerd_with};
use crate::stack::{Subject, ours};
use crate::terminal::Terminal;
use crate::{programs, wait};

/// The daemon that `ctr` asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemonship {
    Shimd,
    Containerd,
    /// 2.x.
    NewerContainerd,
}

/// Runs a test on the supervisor that `SUBJECT` names.
pub fn supervisor(test: impl FnOnce(&mut Supervised)) {
    match Subject::chosen() {
        Subject::Ours => supervised_by(Daemonship::Shimd, test),
        Subject::Theirs => supervised_by(Daemonship::Containerd, test),
    }
}

/// Runs a test on shimd or on a containerd 2.x, as `SUBJECT` says, asked by the `ctr` of 2.x.
pub fn newer_supervisor(test: impl FnOnce(&mut Supervised)) {
    let Some(ctr) = programs::newer_peer("ctr") else {
        return skip("there is no containerd 2.x: run 'make setup'");
    };
    let daemonship = match Subject::chosen() {
        Subject::Ours => Daemonship::Shimd,
        Subject::Theirs => Daemonship::NewerContainerd,
    };
    asked_by(ctr, daemonship, test);
}

/// Runs a test on a containerd 2.x, asked by its own `ctr`.
pub fn newer_containerd(test: impl FnOnce(&mut Supervised)) {
    match programs::newer_peer("ctr") {
        Some(ctr) => asked_by(ctr, Daemonship::NewerContainerd, test),
        None => skip("there is no containerd 2.x: run 'make setup'"),
    }
}

fn asked_by(ctr: PathBuf, daemonship: Daemonship, test: impl FnOnce(&mut Supervised)) {
    supervised_by(daemonship, |supervised| {
        supervised.ctr = ctr;
        test(supervised);
    });
}

/// Runs a test on one of them, with busybox imported; then nothing may be left.
pub fn supervised_by(daemonship: Daemonship, test: impl FnOnce(&mut Supervised)) {
    supervised_with(daemonship, &programs::ours(), test);
}

/// The same, with the shims of a directory before all others.
pub fn supervised_with(daemonship: Daemonship, shims: &Path, test: impl FnOnce(&mut Supervised)) {
    if let Some(reason) = obstacle() {
        return skip(reason);
    }
    let Some(ctr) = programs::peer("ctr") else {
        return skip("containerd is not installed: run 'make setup'");
    };
    let mut supervised = Supervised::start(daemonship, shims, ctr);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        supervised.import_busybox();
        test(&mut supervised);
    }));
    if let Err(panic) = outcome {
        supervised.abandon();
        std::panic::resume_unwind(panic);
    }
    let leaks = supervised.finish();
    assert!(leaks.is_empty(), "{} left behind:\n{}", test_name(), leak::report(&leaks));
}

/// The daemon in its lab.
pub struct Supervised {
    lab: Lab,
    daemon: Daemon,
    daemonship: Daemonship,
    socket: PathBuf,
    shims: PathBuf,
    ctr: PathBuf,
}

impl Supervised {
    fn start(daemonship: Daemonship, shims: &Path, ctr: PathBuf) -> Supervised {
        let lab = Lab::enter();
        let name = if daemonship == Daemonship::Shimd { "shimd" } else { "containerd" };
        let socket = lab.site().path(&format!("run/{name}.sock"));
        let daemon = start_daemon(&lab, daemonship, shims);
        Supervised { lab, daemon, daemonship, socket, shims: shims.to_path_buf(), ctr }
    }

    pub fn is_ours(&self) -> bool {
        self.daemonship == Daemonship::Shimd
    }

    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// SIGKILL, and a new one.
    ///
    /// # Panics
    /// When the new one is not ready.
    pub fn kill_and_restart(&mut self) {
        self.daemon.kill();
        self.restart();
    }

    /// A new one in place of one that has ended.
    ///
    /// # Panics
    /// When it is not ready.
    pub fn restart(&mut self) {
        self.daemon = start_daemon(&self.lab, self.daemonship, &self.shims);
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A path in the lab's directory.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.lab.site().path(relative)
    }

    /// The containerd namespace of the tests. Cgroups carry it.
    pub fn namespace(&self) -> &str {
        self.lab.site().instance()
    }

    /// The imported image.
    pub fn busybox(&self) -> &'static str {
        "example.org/busybox:latest"
    }

    /// A call of `ctr`.
    pub fn ctr(&self, arguments: &[&str]) -> Call {
        Call::new(self.command()).args(arguments)
    }

    fn command(&self) -> std::process::Command {
        let mut command = self.lab.site().command(&self.ctr);
        command.arg("--address").arg(&self.socket).args(["--namespace", self.namespace()]);
        command
    }

    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.ctr(arguments).output()
    }

    #[track_caller]
    pub fn text(&self, arguments: &[&str]) -> String {
        self.run(arguments).ok().text()
    }

    /// A shell in the lab, for what `ctr` tells the user to do.
    pub fn shell(&self, script: &str) -> Call {
        let mut command = self.lab.site().command(Path::new("/bin/sh"));
        command.args(["-c", script]);
        Call::new(command)
    }

    /// An empty registry in the lab.
    ///
    /// # Panics
    /// When it does not start.
    pub fn registry(&self) -> Registry {
        Registry::start(self.lab.site(), "registry", Access::Anyone).unwrap_or_else(|error| panic!("{error}"))
    }

    /// `ctr` in a terminal.
    pub fn terminal(&self, arguments: &[&str]) -> Terminal {
        let mut command = self.command();
        command.args(arguments);
        Terminal::start(command, 24, 80)
    }

    /// Waits until the task has a status, as `ctr tasks ls` shows it.
    #[track_caller]
    pub fn wait_for_status(&self, id: &str, status: &str) {
        wait::until(&format!("{id} is {status}"), || (self.task_status(id).as_deref() == Some(status)).then_some(()));
    }

    /// Deletes a task that has ended; `ctr` tells its exit code in a warning.
    #[track_caller]
    pub fn assert_deleted_with(&self, id: &str, code: u32) {
        let out = self.run(&["tasks", "delete", id]).ok();
        assert!(out.errors().contains(&format!("exit code {code}")), "{}", out.errors());
    }

    /// The status of a task.
    pub fn task_status(&self, id: &str) -> Option<String> {
        let text = self.text(&["tasks", "ls"]);
        let row = text.lines().skip(1).find(|line| line.split_whitespace().next() == Some(id))?;
        row.split_whitespace().nth(2).map(str::to_owned)
    }

    fn import_busybox(&self) {
        let archive = self.path("tmp/busybox.tar");
        pack(&programs::images().join("busybox"), &archive);
        self.run(&["images", "import", "--base-name", "example.org/busybox", &archive.display().to_string()]).ok();
    }

    fn finish(mut self) -> Vec<Leak> {
        for id in self.text(&["tasks", "ls", "-q"]).lines() {
            self.run(&["tasks", "delete", "--force", id]);
        }
        for id in self.text(&["containers", "ls", "-q"]).lines() {
            self.run(&["containers", "delete", id]).ok();
        }
        let mut leaks = Vec::new();
        if let Err(what) = self.daemon.terminate() {
            leaks.push(Leak { kind: Kind::Process, what });
        }
        let namespace = self.namespace().to_owned();
        // `ctr run` puts a container into the cgroup `/<namespace>/<id>`; the parent stays.
        leaks.extend(self.lab.leaks(|leak| leak.kind == Kind::Cgroup && leak.what.ends_with(&format!("/{namespace}"))));
        if !leaks.is_empty() {
            eprintln!("---- end of the log\n{}", self.daemon.log_tail(40));
        }
        self.lab.remove();
        leaks
    }

    fn abandon(mut self) {
        eprintln!("---- end of the log\n{}", self.daemon.log_tail(40));
        self.daemon.kill();
        self.lab.remove();
    }
}

fn start_daemon(lab: &Lab, daemonship: Daemonship, shims: &Path) -> Daemon {
    let path = format!("{}:/usr/bin:/usr/sbin:/bin:/sbin", shims.display());
    let daemon = match daemonship {
        Daemonship::Containerd => start_containerd_with(lab.site(), &[("PATH", &path)]),
        Daemonship::NewerContainerd => {
            let program = programs::newer_peer("containerd").expect("it was looked for");
            start_containerd_program(lab.site(), &program, &[("PATH", &path)])
        }
        Daemonship::Shimd => ours::start_shimd(lab.site(), shims),
    };
    daemon.unwrap_or_else(|error| panic!("{error}"))
}

/// Packs an OCI layout into an archive that `images import` takes.
pub(crate) fn pack(layout: &Path, archive: &Path) {
    let mut builder = tar::Builder::new(fs::File::create(archive).expect("create the archive"));
    builder.append_dir_all(".", layout).unwrap_or_else(|error| panic!("pack {}: {error}", layout.display()));
    builder.finish().expect("finish the archive");
}
