//! Podman and Buildah in a lab of their own: engines without a daemon, over the runtime of a test's choice, as root or as
//! an unprivileged user. All they keep lies in the site; the machine's own storage and settings are not looked at.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::call::{Call, Output};
use crate::lab::Lab;
use crate::leak::{self, Kind, Leak, Snapshot};
use crate::skip::{obstacle, skip, test_name};
use crate::supervisor::pack;
use crate::terminal::Terminal;
use crate::{programs, wait};

/// Who runs the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    Root,
    /// A user of the lab's, with [`SUBORDINATE_IDS`].
    Unprivileged,
}

/// The unprivileged caller, who is in the lab's passwd alone.
const ACCOUNT: &str = "tester";
const ACCOUNT_ID: u32 = 4242;
/// What subuid(5) and subgid(5) give to it: first and count.
pub const SUBORDINATE_IDS: (u32, u32) = (524_288, 65_536);
/// The machine's files that the lab covers with its own.
const ACCOUNT_FILES: [&str; 4] = ["passwd", "group", "subuid", "subgid"];

/// The name of the image that is there from the start.
pub const BUSYBOX: &str = "localhost/busybox:latest";

/// Runs a test of Podman and Buildah over `runtime`; then nothing may be left.
pub fn daemonless(caller: Caller, runtime: &Path, test: impl FnOnce(&Daemonless)) {
    if let Some(reason) = obstacle() {
        return skip(reason);
    }
    for program in ["podman", "buildah", "newuidmap"] {
        if programs::peer(program).is_none() {
            return skip(&format!("{program} is not installed: run 'make setup'"));
        }
    }
    assert!(runtime.exists(), "{} is missing: run 'make build'", runtime.display());
    let engine = Daemonless::start(caller, runtime);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        engine.import_busybox();
        let baseline = engine.settled();
        test(&engine);
        baseline
    }));
    match outcome {
        Ok(baseline) => {
            let leaks = engine.finish(&baseline);
            assert!(leaks.is_empty(), "{} left behind:\n{}", test_name(), leak::report(&leaks));
        }
        Err(panic) => {
            engine.remove();
            std::panic::resume_unwind(panic)
        }
    }
}

/// The engines in their lab.
pub struct Daemonless {
    lab: Lab,
    caller: Caller,
    runtime: PathBuf,
}

impl Daemonless {
    fn start(caller: Caller, runtime: &Path) -> Daemonless {
        let lab = Lab::enter();
        // The checkout may be where another user cannot look.
        let name = runtime.file_name().expect("a program has a name");
        let copy = lab.site().path("etc").join(name);
        fs::copy(runtime, &copy).unwrap_or_else(|error| panic!("copy {}: {error}", runtime.display()));
        let engine = Daemonless { lab, caller, runtime: copy };
        engine.configure();
        if caller == Caller::Unprivileged {
            engine.make_account();
        }
        engine
    }

    /// Cgroups by files, for there is no systemd here; limits that a caller without CAP_SYS_RESOURCE may set.
    fn configure(&self) {
        let site = self.lab.site();
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\nrunroot = \"{}\"\ngraphroot = \"{}\"\n",
            site.path("run/storage").display(),
            site.path("lib/storage").display()
        );
        let containers = format!(
            "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\ntmp_dir = \"{}\"\n\
             [containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
             init_path = \"/usr/bin/tini-static\"\n[network]\nnetwork_backend = \"cni\"\n",
            site.path("run/libpod").display()
        );
        site.write_config("storage.conf", &storage).unwrap_or_else(|error| panic!("{error}"));
        site.write_config("containers.conf", &containers).unwrap_or_else(|error| panic!("{error}"));
    }

    /// The caller's account and its subordinate ids, in files that cover the machine's in this mount namespace.
    fn make_account(&self) {
        let site = self.lab.site();
        let (first, count) = SUBORDINATE_IDS;
        let home = site.path("home").display().to_string();
        let lines = [
            format!("{ACCOUNT}:x:{ACCOUNT_ID}:{ACCOUNT_ID}::{home}:/bin/sh\n"),
            format!("{ACCOUNT}:x:{ACCOUNT_ID}:\n"),
            format!("{ACCOUNT}:{first}:{count}\n"),
            format!("{ACCOUNT}:{first}:{count}\n"),
        ];
        for (name, line) in ACCOUNT_FILES.iter().zip(lines) {
            let place = Path::new("/etc").join(name);
            let own = fs::read_to_string(&place).unwrap_or_else(|error| panic!("read {}: {error}", place.display()));
            let cover = site.write_config(name, &(own + &line)).unwrap_or_else(|error| panic!("{error}"));
            let none: Option<&str> = None;
            mount(Some(&cover), &place, none, MsFlags::MS_BIND, none).expect("cover a file of /etc");
        }
        for directory in ["run", "lib", "tmp", "home"] {
            chown(site.path(directory), Some(ACCOUNT_ID), Some(ACCOUNT_ID)).expect("give a directory to the caller");
        }
    }

    /// A path in the lab's directory.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.lab.site().path(relative)
    }

    /// The runtime, where the caller can execute it.
    pub fn runtime(&self) -> String {
        self.runtime.display().to_string()
    }

    /// The parent of the containers' cgroups.
    pub fn cgroup(&self) -> String {
        format!("/strata-{}", self.lab.site().instance())
    }

    fn command(&self, program: &str) -> Command {
        let site = self.lab.site();
        let mut command = site.command(&programs::peer(program).expect("it was looked for"));
        command.env("CONTAINERS_CONF", site.path("etc/containers.conf"));
        command.env("CONTAINERS_STORAGE_CONF", site.path("etc/storage.conf"));
        command.env("XDG_RUNTIME_DIR", site.path("run"));
        if self.caller == Caller::Unprivileged {
            command.env("USER", ACCOUNT).uid(ACCOUNT_ID).gid(ACCOUNT_ID);
        }
        command
    }

    fn podman_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command("podman");
        command.arg("--runtime").arg(&self.runtime).args(arguments);
        command
    }

    /// A call of `podman --runtime …`.
    pub fn call(&self, arguments: &[&str]) -> Call {
        Call::new(self.podman_command(arguments))
    }

    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.call(arguments).output()
    }

    /// Runs podman, expects it to succeed, and returns its output.
    #[track_caller]
    pub fn text(&self, arguments: &[&str]) -> String {
        self.run(arguments).ok().text()
    }

    /// `podman run` of busybox in the lab's cgroup and, as there is no network to speak of, in an empty network.
    pub fn container(&self, flags: &[&str], program: &[&str]) -> Call {
        self.container_of(BUSYBOX, flags, program)
    }

    /// The same of another image.
    pub fn container_of(&self, image: &str, flags: &[&str], program: &[&str]) -> Call {
        let (group, head) = (self.cgroup(), self.call(&["run", "--network", "none"]));
        // An unprivileged caller has no cgroup of version 1.
        let head = if self.caller == Caller::Root { head.args(&["--cgroup-parent", &group]) } else { head };
        head.args(flags).args(&[image]).args(program)
    }

    /// What `podman inspect --format` says of a container.
    #[track_caller]
    pub fn inspect(&self, container: &str, format: &str) -> String {
        self.text(&["inspect", "--format", format, container])
    }

    /// Podman in a terminal of 80 columns and 24 rows.
    #[track_caller]
    pub fn terminal(&self, arguments: &[&str]) -> Terminal {
        Terminal::start(self.podman_command(arguments), 24, 80)
    }

    /// Is the caller root?
    pub fn is_root(&self) -> bool {
        self.caller == Caller::Root
    }

    /// A call of buildah, which names its runtime with each `run` and `build`.
    pub fn buildah(&self, arguments: &[&str]) -> Call {
        let mut command = self.command("buildah");
        command.env("BUILDAH_ISOLATION", "oci").env("BUILDAH_RUNTIME", &self.runtime).args(arguments);
        Call::new(command)
    }

    fn import_busybox(&self) {
        let archive = self.path("tmp/busybox.tar");
        pack(&programs::images().join("busybox"), &archive);
        let id = self.text(&["pull", "-q", &format!("oci-archive:{}", archive.display())]);
        self.text(&["tag", &id, BUSYBOX]);
        // The first container brings what later ones find: locks, directories, a parent cgroup.
        self.container(&["--rm"], &["true"]).output().ok();
    }

    /// What there is once the first container has gone for good: Podman cleans up after the end of `run`.
    fn settled(&self) -> Snapshot {
        let mut before = self.look();
        wait::until("podman has cleaned up", || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let now = self.look();
            let is_same = now == before;
            before = now;
            is_same.then_some(())
        });
        before
    }

    /// What there is outside, and where runtimes and engines keep what belongs to a container.
    fn look(&self) -> Snapshot {
        self.lab.look(&[], &[&self.path("run"), Path::new("/run")])
    }

    fn finish(self, baseline: &Snapshot) -> Vec<Leak> {
        self.remove_all();
        self.buildah(&["rm", "--all"]).output().ok();
        let mut leaks = Vec::new();
        wait::poll(std::time::Duration::from_secs(5), || {
            leaks = baseline.grown_to(&self.look());
            leaks.retain(|leak| !self.is_kept(leak));
            leaks.is_empty().then_some(())
        });
        if self.caller == Caller::Unprivileged {
            // It ends the process that keeps the user namespace for the next call.
            self.run(&["system", "migrate"]).ok();
        }
        self.uncover_account_files();
        leaks.extend(self.lab.leaks(|leak| self.is_kept(leak)));
        self.lab.remove();
        leaks
    }

    /// Podman 4.3 may unmount a container's shared memory at its end and at its removal at the same time: one of the two
    /// then fails, over any runtime, and comes off the next time.
    fn remove_all(&self) {
        for kind in [&["pod"][..], &[]] {
            let command = [kind, &["rm", "--all", "--force", "--time", "0"]].concat();
            wait::until_true("podman removes what is left", || self.run(&command).code == 0);
        }
    }

    /// What Podman keeps for the containers to come (and, over any runtime, of a pod's cgroups those that hold no limits),
    /// and lowrun its compiled seccomp profiles.
    fn is_kept(&self, leak: &Leak) -> bool {
        let last = leak.what.rsplit('/').next().unwrap_or_default();
        match leak.kind {
            Kind::Cgroup => {
                let is_of_pod =
                    last.len() == 64 && ["/systemd/", "/unified/"].iter().any(|part| leak.what.contains(part));
                leak.what.ends_with(&self.cgroup()) || last == "conmon" || is_of_pod
            }
            Kind::File => leak.what.contains("/@seccomp"),
            // The overlay driver mounts its directory on itself, and the last podman to end may leave it so.
            Kind::Mount => leak.what.starts_with(&format!("{} (", self.path("lib/storage/overlay").display())),
            _ => false,
        }
    }

    fn uncover_account_files(&self) {
        if self.caller == Caller::Unprivileged {
            for name in ACCOUNT_FILES {
                umount2(&Path::new("/etc").join(name), MntFlags::MNT_DETACH).expect("uncover a file of /etc");
            }
        }
    }

    fn remove(self) {
        self.uncover_account_files();
        self.lab.remove();
    }
}
