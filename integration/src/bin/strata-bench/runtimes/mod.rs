//! lowrun beside crun, runc and the floor on the same bundles.
//!
//! The floor (integration/bench/floor.c) makes the same isolation by the fewest system calls: what a runtime takes beyond
//! it is the runtime's own.

mod bundle;
mod crowd;
mod subject;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use self::bundle::bundle;
use self::subject::{Stages, Subject};
use crate::measure::{Pair, median, ms, timed};
use crate::report::Row;

const RUNS: usize = 60;
const WARM_UP: usize = 3;
const PARALLEL_LOOPS: usize = 8;
const RUNS_OF_A_LOOP: usize = 100;
/// Where the states of containers are, below the working directory.
const RUN: &str = "run";
const MIB: f64 = 1024.0 * 1024.0;
/// The most that the stripped static program may have, in MiB.
const SIZE_LIMIT: f64 = 3.0;

/// What everything is measured with.
pub(crate) struct Field {
    ours: Subject,
    floor: PathBuf,
    launch: PathBuf,
    work: PathBuf,
    bundle: PathBuf,
    sleeping: PathBuf,
}

/// Measures what a runtime alone costs. A peer named `crun` is what most is owed against.
pub(crate) fn rows(ours: &Path, peers: &[(String, PathBuf)], work: &Path) -> Vec<Row> {
    let profile = default_seccomp();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("become a subreaper");
    hide_hybrid_hierarchy();
    mount_run(work);
    let field = Field::new(ours, work);
    let mut rows = vec![field.run_beside_floor()];
    for (name, program) in peers {
        let peer = Subject::new(program, work, name);
        rows.extend(field.run_beside(name, &peer));
        if name == "crun" {
            rows.extend(field.owed_against_crun(&peer));
        }
    }
    rows.push(field.seccomp(&profile));
    let size = std::fs::metadata(ours).expect("the program").len() as f64 / MIB;
    rows.push(Row::of(
        "size of `lowrun`, static and stripped, against the limit".to_owned(),
        "MiB",
        size,
        SIZE_LIMIT,
        1.0,
    ));
    umount2(&work.join(RUN), MntFlags::MNT_DETACH).expect("unmount the tmpfs");
    rows
}

/// crun refuses to run where controllers lie on both versions of cgroups. In a mount namespace of their own all contestants
/// see version 1 alone.
fn hide_hybrid_hierarchy() {
    let unified = Path::new("/sys/fs/cgroup/unified");
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).expect("unshare the mount namespace: be root");
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("make the mounts private");
    if unified.exists() {
        umount2(unified, MntFlags::MNT_DETACH).expect("unmount cgroup v2");
    }
}

/// The runtimes' roots lie on a tmpfs, as `/run` does on a machine.
fn mount_run(work: &Path) {
    let run = work.join(RUN);
    std::fs::create_dir(&run).expect("make the directory for states");
    mount(Some("tmpfs"), &run, Some("tmpfs"), MsFlags::empty(), Some("mode=711")).expect("mount a tmpfs");
}

/// The default seccomp profile as engined writes it into a container's spec, taken from a real one.
fn default_seccomp() -> Value {
    let read = |stack: &mut integration::Stack| {
        let image = stack.busybox().to_owned();
        let id = stack.detached(&[&image, "sleep", "1000"]);
        let bundle = stack.site().path("run/shimd/io.containerd.runtime.v2.task/strata").join(&id);
        let spec = std::fs::read(bundle.join("config.json")).expect("read the container's spec");
        let spec: Value = serde_json::from_slice(&spec).expect("a spec is JSON");
        spec["linux"]["seccomp"].clone()
    };
    let (give, take) = std::sync::mpsc::channel();
    // A stack's thread enters namespaces of its own.
    let stack = std::thread::spawn(move || integration::ours(|stack| give.send(read(stack)).expect("somebody waits")));
    stack.join().expect("a stack for the default profile");
    let profile: Value = take.recv().expect("the profile");
    assert!(profile.is_object(), "engined's containers have no seccomp profile");
    profile
}

fn compiled(work: &Path, name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench").join(format!("{name}.c"));
    let program = work.join(name);
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-static", "-no-pie", "-o"]).arg(&program).arg(&source);
    assert!(compiler.status().expect("run cc").success(), "{compiler:?}");
    program
}

impl Field {
    fn new(ours: &Path, work: &Path) -> Field {
        Field {
            ours: Subject::new(ours, work, "ours"),
            floor: compiled(work, "floor"),
            launch: compiled(work, "launch"),
            work: work.to_owned(),
            bundle: bundle(work, "true", &["/bin/true"], None),
            sleeping: bundle(work, "sleep", &["/bin/sleep", "1000000"], None),
        }
    }

    /// Milliseconds of one pass of the floor.
    fn floor_ms(&self) -> f64 {
        let mut command = Command::new(&self.floor);
        command.arg(self.bundle.join("rootfs")).arg(format!("floor-{}", std::process::id()));
        ms(timed(&mut command).wall)
    }

    fn run_ms(&self, subject: &Subject) -> f64 {
        ms(subject.run(&self.bundle).wall)
    }

    fn run_beside_floor(&self) -> Row {
        let pair = Pair::interleaved(WARM_UP, RUNS, || self.run_ms(&self.ours), || self.floor_ms());
        Row::new("`lowrun run` of `true`, against the floor".to_owned(), "ms", &pair, 1.5)
    }

    /// Wall and processor time of a run.
    fn run_beside(&self, name: &str, peer: &Subject) -> Vec<Row> {
        let processor = RefCell::new((Vec::new(), Vec::new()));
        let ours = || {
            let cost = self.ours.run(&self.bundle);
            processor.borrow_mut().0.push(ms(cost.processor));
            ms(cost.wall)
        };
        let theirs = || {
            let cost = peer.run(&self.bundle);
            processor.borrow_mut().1.push(ms(cost.processor));
            ms(cost.wall)
        };
        let wall = Pair::interleaved(WARM_UP, RUNS, ours, theirs);
        let (ours, theirs) = processor.into_inner();
        let owed = if name == "crun" { 0.6 } else { 0.25 };
        let of_processor = format!("processor time of the same, against {name}");
        vec![
            Row::new(format!("`lowrun run` of `true`, against {name}"), "ms", &wall, owed),
            Row::of(of_processor, "ms", median(&ours), median(&theirs), 0.6),
        ]
    }

    fn owed_against_crun(&self, crun: &Subject) -> Vec<Row> {
        let mut rows = self.stages_beside(crun);
        rows.push(self.exec_beside(crun));
        let (ours, theirs) =
            (self.ours.peak_kib(&self.launch, &self.bundle), crun.peak_kib(&self.launch, &self.bundle));
        rows.push(Row::of("peak memory of a run, against crun".to_owned(), "KiB", ours, theirs, 1.0));
        rows.push(self.parallel_beside(crun));
        rows.extend(crowd::rows(self, crun));
        rows
    }

    fn stages_beside(&self, crun: &Subject) -> Vec<Row> {
        let mut all: Vec<(Stages, Stages)> = Vec::new();
        for _ in 0..RUNS {
            all.push((self.ours.stages(&self.bundle), crun.stages(&self.bundle)));
        }
        let row = |name: &str, pick: fn(&Stages) -> f64| {
            let pair = Pair::of(all.iter().map(|pair| (pick(&pair.0), pick(&pair.1))));
            Row::new(format!("`{name}`, against crun"), "ms", &pair, 0.7)
        };
        vec![
            row("create", |stages| stages.create),
            row("start", |stages| stages.start),
            row("delete", |stages| stages.delete),
        ]
    }

    fn exec_beside(&self, crun: &Subject) -> Row {
        let (ours, theirs) = (self.ours.leave_running(&self.sleeping), crun.leave_running(&self.sleeping));
        let pair = Pair::interleaved(WARM_UP, RUNS, || ms(self.ours.exec(&ours).wall), || ms(crun.exec(&theirs).wall));
        self.ours.remove(&ours);
        crun.remove(&theirs);
        Row::new("`exec` of `true`, against crun".to_owned(), "ms", &pair, 0.6)
    }

    /// The time of 8 loops of 100 runs each, side by side.
    fn parallel_beside(&self, crun: &Subject) -> Row {
        let pair = Pair::interleaved(0, 3, || self.loops_ms(&self.ours), || self.loops_ms(crun));
        Row::new("8 parallel loops of 100 runs, against crun".to_owned(), "ms", &pair, 0.667)
    }

    fn loops_ms(&self, subject: &Subject) -> f64 {
        let start = Instant::now();
        let mut loops = Vec::new();
        for _ in 0..PARALLEL_LOOPS {
            let mut shell = Command::new("/bin/sh");
            let script = r#"id=$1; shift; i=0; while [ $i -lt LIMIT ]; do i=$((i + 1)); "$@" $id-$i || exit 1; done"#;
            let script = script.replace("LIMIT", &RUNS_OF_A_LOOP.to_string());
            let run = subject.command("run");
            shell.arg("-c").arg(script).arg("sh").arg(subject.fresh_id()).arg(run.get_program()).args(run.get_args());
            shell.arg("--bundle").arg(&self.bundle);
            loops.push(shell.spawn().expect("start a loop"));
        }
        for mut each in loops {
            assert!(each.wait().expect("wait for a loop").success(), "a loop of runs failed");
        }
        ms(start.elapsed())
    }

    /// A run with the default seccomp profile beside one without; the first compiles it and is not counted.
    fn seccomp(&self, profile: &Value) -> Row {
        let with = bundle(&self.work, "seccomp", &["/bin/true"], Some(profile));
        let pair = Pair::interleaved(WARM_UP, RUNS, || ms(self.ours.run(&with).wall), || self.run_ms(&self.ours));
        let what = format!("`{}` with the default seccomp profile, against without", "lowrun run");
        Row::new(what, "ms", &pair, 1.1)
    }
}
