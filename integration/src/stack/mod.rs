//! A stack under test: a registry with images, and the daemons of one subject.
//!
//! [`flow`] is for behaviours that are Docker's: it runs on ours, or with `SUBJECT=theirs` on Debian's dockerd.
//! [`ours()`] is for what only ours has. After each test the stack removes the containers that the test left, and then
//! nothing else may be left: see `Stack::finish`.

pub mod ours;
pub mod theirs;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub use ours::{Ours, Settings, Supervisor};
pub use theirs::Theirs;

use crate::call::{Call, Output};
use crate::daemon::Daemon;
use crate::lab::Lab;
use crate::leak::{self, Leak, Snapshot};
use crate::registry::{Access, Registry};
use crate::site::Site;
use crate::skip::{obstacle, skip, test_name};
use crate::terminal::Terminal;
use crate::{process, programs, wait};

/// The images that every registry of a test holds.
const IMAGES: [&str; 5] = ["busybox", "nginx", "noexec", "nouser", "stubborn"];

/// The parents of what containers have in the daemons' state.
const KEPT_DIRECTORIES: [&str; 7] = [
    "run/engined/containers",
    "run/engined/execs",
    "run/engined/lowrun",
    "run/engined/lowrun/strata",
    "run/shimd/io.containerd.runtime.v2.task",
    "run/shimd/io.containerd.runtime.v2.task/strata",
    "run/shimd/io.containerd.sandbox.controller.v1.shim",
];
/// lowrun's compiled seccomp profiles, for the containers to come.
const SECCOMP_CACHE: &str = "run/engined/lowrun/strata/@seccomp";

/// What `SUBJECT` says for Debian's dockerd over lowrun.
const OVER_LOWRUN: &str = "theirs-over-lowrun";

/// Who is under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    Ours,
    /// Debian's dockerd, through its own command line.
    Theirs,
}

impl Subject {
    /// What `SUBJECT` says; ours when it says nothing.
    ///
    /// # Panics
    /// When it says something else.
    pub fn chosen() -> Subject {
        match std::env::var("SUBJECT").as_deref() {
            Err(_) | Ok("" | "ours") => Subject::Ours,
            Ok("theirs" | OVER_LOWRUN) => Subject::Theirs,
            Ok(other) => panic!("SUBJECT is {other:?}: it must be ours, theirs or {OVER_LOWRUN}"),
        }
    }
}

/// Runs a test of a behaviour that is Docker's on the subject that `SUBJECT` names, with busybox pulled.
pub fn flow(test: impl FnOnce(&mut Stack)) {
    match Subject::chosen() {
        Subject::Ours => ours(test),
        Subject::Theirs => theirs(test),
    }
}

/// Runs a test on our daemons, with busybox pulled.
pub fn ours(test: impl FnOnce(&mut Stack)) {
    ours_with(Settings::default(), test);
}

/// Runs a test on our daemons as `settings` say.
pub fn ours_with(settings: Settings, test: impl FnOnce(&mut Stack)) {
    if Subject::chosen() == Subject::Theirs {
        return skip("a test of ours alone");
    }
    if let Some(path) = programs::missing_of_ours() {
        panic!("{} is missing: run 'make build'", path.display());
    }
    on_stack(|site, registry| Ours::start(site, registry, settings).map(Backend::Ours), test);
}

/// Runs a test on Debian's dockerd, or with `SUBJECT=theirs-over-lowrun` on one whose containers lowrun makes.
pub fn theirs(test: impl FnOnce(&mut Stack)) {
    if std::env::var("SUBJECT").as_deref() == Ok(OVER_LOWRUN) {
        return theirs_over("lowrun", test);
    }
    on_docker(Theirs::start, test);
}

/// Runs a test on Debian's dockerd with a program of ours in runc's place.
pub fn theirs_over(runtime: &str, test: impl FnOnce(&mut Stack)) {
    let path = programs::ours().join(runtime);
    assert!(path.exists(), "{} is missing: run 'make build'", path.display());
    on_docker(|site| Theirs::start_over(site, runtime), test);
}

/// Runs a test on Debian's dockerd with those flags of its command line.
pub fn theirs_with(flags: &[&str], test: impl FnOnce(&mut Stack)) {
    on_docker(|site| Theirs::start_with(site, flags), test);
}

/// Runs a test on Debian's dockerd with shimd in containerd's place.
pub fn theirs_on_shimd(test: impl FnOnce(&mut Stack)) {
    let path = programs::ours().join("shimd");
    assert!(path.exists(), "{} is missing: run 'make build'", path.display());
    on_docker(Theirs::start_on_shimd, test);
}

fn on_docker(start: impl FnOnce(&Site) -> Result<Theirs, String>, test: impl FnOnce(&mut Stack)) {
    if programs::peer("dockerd").is_none() {
        return skip("dockerd is not installed: run 'make setup'");
    }
    on_stack(|site, _| start(site).map(Backend::Theirs), test);
}

fn on_stack(start: impl FnOnce(&Site, &Registry) -> Result<Backend, String>, test: impl FnOnce(&mut Stack)) {
    if let Some(reason) = obstacle() {
        return skip(reason);
    }
    let mut stack = Stack::start(start);
    stack.run(&["pull", "-q", &stack.busybox.clone()]).ok();
    // The first container brings what later ones find: caches, parent directories, a parent cgroup.
    stack.run(&["run", "--rm", &stack.busybox.clone(), "true"]).ok();
    stack.settle();
    stack.baseline = Some(stack.look());
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&mut stack)));
    let leaks = match outcome {
        Ok(()) => stack.finish(),
        Err(panic) => {
            stack.abandon();
            std::panic::resume_unwind(panic)
        }
    };
    assert!(leaks.is_empty(), "{} left behind:\n{}", test_name(), leak::report(&leaks));
}

/// Whether a test may have pulled images, which stay in the supervisor's stores when its containers are gone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Images {
    AreTheSame,
    MayHaveCome,
}

enum Backend {
    Ours(Ours),
    Theirs(Theirs),
}

impl Backend {
    /// Whether so many ports of the bridge may be there without a container.
    fn may_have_ports(&self, count: usize) -> bool {
        matches!(self, Backend::Ours(ours) if ours.may_have_ports(count))
    }

    fn client(&self, site: &Site) -> Command {
        match self {
            Backend::Ours(ours) => ours.client(site),
            Backend::Theirs(theirs) => theirs.client(site),
        }
    }

    fn daemons(&mut self) -> Vec<&mut Daemon> {
        match self {
            Backend::Ours(ours) => ours.daemons(),
            Backend::Theirs(theirs) => theirs.daemons(),
        }
    }

    /// Takes away what outlives the daemons; Docker cannot do that.
    fn clean_up(&self) -> Option<Leak> {
        let Backend::Ours(ours) = self else { return None };
        ours.clean_up().err().map(|what| Leak { kind: leak::Kind::Link, what })
    }

    /// The directories in which a removed container leaves nothing.
    fn directories(&self, site: &Site) -> Vec<PathBuf> {
        match self {
            Backend::Ours(_) => Ours::directories(site),
            Backend::Theirs(_) => Theirs::directories(site),
        }
    }

    /// The directories that gain no entry by a removed container; what lies below is too much to look at.
    fn stores(&self, site: &Site) -> Vec<PathBuf> {
        match self {
            Backend::Ours(_) => Ours::stores(site),
            Backend::Theirs(_) => Vec::new(),
        }
    }
}

/// A running stack in a lab of its own.
pub struct Stack {
    lab: Lab,
    registry: Registry,
    backend: Backend,
    busybox: String,
    baseline: Option<Snapshot>,
}

impl Stack {
    fn start(start: impl FnOnce(&Site, &Registry) -> Result<Backend, String>) -> Stack {
        let lab = Lab::enter();
        let registry =
            Registry::start(lab.site(), "registry", Access::Anyone).unwrap_or_else(|error| panic!("{error}"));
        for image in IMAGES {
            registry
                .add(&programs::images().join(image), image, "latest")
                .unwrap_or_else(|error| panic!("{image}: {error}"));
        }
        let backend = start(lab.site(), &registry).unwrap_or_else(|error| panic!("{error}"));
        let busybox = format!("{}/busybox", registry.host());
        Stack { lab, registry, backend, busybox, baseline: None }
    }

    pub fn site(&self) -> &Site {
        self.lab.site()
    }

    pub fn registry(&mut self) -> &mut Registry {
        &mut self.registry
    }

    pub fn subject(&self) -> Subject {
        match self.backend {
            Backend::Ours(_) => Subject::Ours,
            Backend::Theirs(_) => Subject::Theirs,
        }
    }

    pub fn is_ours(&self) -> bool {
        self.subject() == Subject::Ours
    }

    /// Our daemons.
    ///
    /// # Panics
    /// When the subject is not ours.
    pub fn daemons(&mut self) -> &mut Ours {
        match &mut self.backend {
            Backend::Ours(ours) => ours,
            Backend::Theirs(_) => panic!("this stack is theirs"),
        }
    }

    /// The name of the image busybox at the registry; it is pulled already.
    pub fn busybox(&self) -> &str {
        &self.busybox
    }

    /// The name of an image at the registry.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.host())
    }

    /// A call of the subject's command line.
    pub fn call(&self, arguments: &[&str]) -> Call {
        Call::new(self.backend.client(self.site())).args(arguments)
    }

    /// Runs the subject's command line to its end.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.call(arguments).output()
    }

    /// Runs it, expects it to succeed, and returns its output.
    #[track_caller]
    pub fn text(&self, arguments: &[&str]) -> String {
        self.run(arguments).ok().text()
    }

    /// Starts `run -d` with these arguments and returns the id.
    #[track_caller]
    pub fn detached(&self, arguments: &[&str]) -> String {
        let mut all = vec!["run", "-d"];
        all.extend(arguments);
        self.text(&all)
    }

    /// What `inspect --format` says of a container.
    #[track_caller]
    pub fn inspect(&self, container: &str, format: &str) -> String {
        self.text(&["inspect", "--format", format, container])
    }

    /// Starts the subject's command line in a terminal of 80 columns and 24 rows.
    #[track_caller]
    pub fn terminal(&self, arguments: &[&str]) -> Terminal {
        let mut command = self.backend.client(self.site());
        command.args(arguments);
        Terminal::start(command, 24, 80)
    }

    /// Compiles `tests/programs/<name>.c` into a static program that a container can mount, and returns its path.
    #[track_caller]
    pub fn compiled(&self, name: &str) -> String {
        let program = self.site().path("tmp").join(name).display().to_string();
        let source = format!("{}/tests/programs/{name}.c", env!("CARGO_MANIFEST_DIR"));
        let compiled = Command::new("cc").args(["-static", "-O1", "-o", &program, &source]).status().expect("run cc");
        assert!(compiled.success(), "cc {source}: {compiled}");
        program
    }

    /// A command with the client's surroundings, for a script that calls it as `$CLI`.
    pub fn shell(&self, script: &str) -> Call {
        let client = self.backend.client(self.site());
        let mut command = self.site().command(Path::new("/bin/sh"));
        for (name, value) in client.get_envs().filter_map(|(name, value)| Some((name, value?))) {
            command.env(name, value);
        }
        command.env("CLI", client.get_program()).arg("-c").arg(script);
        Call::new(command)
    }

    /// What there is now: outside, and below the daemons' directories.
    fn look(&mut self) -> Snapshot {
        process::reap_orphans();
        let mut daemons: Vec<i32> = self.backend.daemons().iter().map(|daemon| daemon.pid()).collect();
        daemons.push(self.registry.pid());
        let directories = self.backend.directories(self.lab.site());
        let directories: Vec<&Path> = directories.iter().map(PathBuf::as_path).collect();
        let mut snapshot = self.lab.look(&daemons, &directories);
        snapshot.add_entries(&self.backend.stores(self.lab.site()));
        snapshot
    }

    /// Removes the containers that are left, looks for what else is left, ends the daemons, looks again, and takes
    /// everything away. Returns what should not have been there.
    fn finish(mut self) -> Vec<Leak> {
        let listed = self.text(&["ps", "-aq"]);
        for container in listed.lines() {
            self.run(&["rm", "-f", container]).ok();
        }
        let mut leaks = self.leaks_beside_daemons(Images::MayHaveCome);
        leaks.extend(self.end_daemons());
        leaks.extend(self.backend.clean_up());
        leaks.extend(self.lab.leaks(|leak| self.outlives_daemons(leak)));
        if !leaks.is_empty() {
            self.print_logs();
        }
        self.lab.remove();
        leaks
    }

    /// With the daemons running and no container left, all is as it was before the test. What is removed off the reply
    /// path may take a moment.
    fn leaks_beside_daemons(&mut self, images: Images) -> Vec<Leak> {
        let Some(baseline) = self.baseline.clone() else { return Vec::new() };
        let stores = match images {
            Images::AreTheSame => Vec::new(),
            Images::MayHaveCome => self.backend.stores(self.lab.site()),
        };
        let is_of_image = |leak: &Leak| stores.iter().any(|store| Path::new(&leak.what).starts_with(store));
        let mut leaks = Vec::new();
        wait::poll(Duration::from_secs(5), || {
            leaks = baseline.grown_to(&self.look());
            leaks.retain(|leak| !self.is_passing(leak) && !self.outlives_containers(leak) && !is_of_image(leak));
            leaks.is_empty().then_some(())
        });
        leaks
    }

    /// Waits until nothing changes any more: some things are taken apart off the reply path.
    fn settle(&mut self) {
        let mut before = self.look();
        wait::poll(Duration::from_secs(2), || {
            std::thread::sleep(Duration::from_millis(20));
            let now = self.look();
            let is_same = now == before;
            before = now;
            is_same.then_some(())
        });
    }

    /// In the middle of a test that pulls nothing, with no container left: all is as it was at the test's begin.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn assert_nothing_left(&mut self, when: &str) {
        let leaks = self.leaks_beside_daemons(Images::AreTheSame);
        assert!(leaks.is_empty(), "{when}: left behind:\n{}", leak::report(&leaks));
    }

    /// Daemons keep connections and open files for a while: a descriptor without a name of its own is no leak here. That
    /// their number does not grow from container to container is a test of its own. (And dockerd's are not ours to judge.)
    fn is_passing(&self, leak: &Leak) -> bool {
        leak.kind == leak::Kind::Descriptor && (!self.is_ours() || !leak.what.contains('/'))
    }

    fn end_daemons(&mut self) -> Vec<Leak> {
        let mut leaks = Vec::new();
        for daemon in self.backend.daemons() {
            if let Err(error) = daemon.terminate() {
                leaks.push(Leak { kind: leak::Kind::Process, what: error });
            }
        }
        self.registry.stop();
        leaks
    }

    /// What the first container brings and is kept for the others: the cgroup and the directories that are the parents of
    /// theirs.
    fn outlives_containers(&self, leak: &Leak) -> bool {
        let last = leak.what.rsplit('/').next().unwrap_or_default();
        match leak.kind {
            // BuildKit keeps a parent for its builds.
            leak::Kind::Cgroup => last.ends_with(self.site().instance()) || (!self.is_ours() && last == "buildkit"),
            leak::Kind::File => self.is_kept(Path::new(&leak.what)),
            // Docker pins the host's own network namespace for the first container that uses it.
            leak::Kind::Mount => !self.is_ours() && leak.what.contains("/netns/default "),
            leak::Kind::Link => leak::is_port(leak) && self.backend.may_have_ports(leak::ports()),
            _ => false,
        }
    }

    fn is_kept(&self, path: &Path) -> bool {
        let is_parent = KEPT_DIRECTORIES.iter().any(|kept| self.site().path(kept) == path);
        is_parent || path.starts_with(self.site().path(SECCOMP_CACHE))
    }

    /// Docker leaves its bridge and its chains for the next dockerd.
    fn outlives_daemons(&self, leak: &Leak) -> bool {
        match leak.kind {
            leak::Kind::Link => !self.is_ours() && leak.what == "docker0",
            leak::Kind::Nftables => !self.is_ours(),
            _ => self.outlives_containers(leak),
        }
    }

    /// After a failed test: shows the logs and takes everything away.
    fn abandon(mut self) {
        self.print_logs();
        for daemon in self.backend.daemons() {
            daemon.kill();
        }
        self.registry.stop();
        self.lab.remove();
    }

    fn print_logs(&mut self) {
        for daemon in self.backend.daemons() {
            eprintln!("---- end of the log of {}\n{}", daemon.name(), daemon.log_tail(40));
        }
    }
}
