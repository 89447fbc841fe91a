//! shimd, its shim, the runtime and the registry helper are killed before and after each effect that they have on the
//! world: while a task is created, started, entered, killed and deleted, a container removed, a layer unpacked and
//! committed, a snapshot copied, an image pulled, and one collected. Afterwards, within two seconds, the store says
//! what the kernel does, every call answers, and exit codes are exact.
//!
//! Each step is first done once while a debugger ([`tracer`]) writes down what it does to the world ([`effects`]). Then
//! each kind of effect of each program is a place to be killed at, before and after; a round takes one occurrence of
//! it, the next round another. `STRATA_CRASHES` says how many rounds there are (`make test-crashes`: 25), or from which
//! to which: `10..25`. With `STRATA_CRASH_POINT` each round is that one point: `Shim rename 2 KillAfter`. Without both
//! a handful of the points is taken by chance.

mod effects;
mod orphans;
#[path = "../rig/mod.rs"]
mod rig;
mod tracer;
mod world;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use effects::Role;
use proto_containerd::process::Status as ProcessStatus;
use rig::chance::Chance;
use tracer::{Harm, Point, Report, Tracer};
use world::{CODE, Step, World};

/// Points of a step in the short form, that are met.
const FEW: usize = 6;
/// Any call answers within this.
const ANSWER: Duration = Duration::from_secs(15);
/// What is done off the reply's path comes within this.
const LATE: Duration = Duration::from_millis(60);
/// SIGKILL, as a shell tells it.
const KILLED: u32 = 137;
/// Of an end that nobody saw.
const UNKNOWN: u32 = 255;

macro_rules! steps {
    ($($name:ident $step:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { sweep(Step::$step).await })*
    };
}

steps! {
    a_task_is_created Create
    a_task_is_started Start
    a_task_is_entered Exec
    a_task_is_killed Kill
    a_task_is_deleted Delete
    a_container_is_removed Remove
    a_layer_is_unpacked Snapshot
    a_snapshot_is_copied Copy
    an_image_is_pulled Pull
    an_image_is_collected Collect
}

macro_rules! errors {
    ($($name:ident $step:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() { fail(Step::$step).await })*
    };
}

errors! {
    writes_fail_while_a_layer_is_unpacked Snapshot
    writes_fail_while_a_snapshot_is_copied Copy
    writes_fail_while_an_image_is_pulled Pull
    writes_fail_while_a_task_is_created Create
    writes_fail_while_a_container_is_removed Remove
}

/// What a disk can refuse.
const WRITES: [&str; 10] =
    ["mkdir", "mknod", "create", "rename", "link", "symlink", "store", "sync", "write-file", "copy-file"];

/// Each write of shimd's fails once, for want of space and by an error of the disk.
async fn fail(step: Step) {
    rig::insist_on_ours();
    orphans::adopt();
    if !rig::can_run_containers() || !tracer::CAN_FAIL {
        return;
    }
    let mut world = World::new(step).await;
    let report = hunt(&mut world, step, "first", None).await;
    finish(&world, step, "first", &report, "undisturbed").await;
    let mut met = 0;
    for ((role, effect), often) in count(&report) {
        if role != Role::Shimd || !WRITES.contains(&effect.as_str()) {
            continue;
        }
        for number in 0..often {
            let errno = if number % 2 == 0 { libc::ENOSPC } else { libc::EIO };
            let point = Point { role, effect: effect.clone(), count: number + 1, harm: Harm::Fail(errno) };
            met += usize::from(meet(&mut world, step, &format!("{effect}{number}"), &point).await);
        }
    }
    assert!(met > 0);
    println!("{step:?}: {met} writes failed");
}

/// What did not succeed says what it was, and a full disk says that it is one.
fn assert_told(step: Step, point: Option<&Point>, outcome: Result<Option<u32>, tonic::Status>) {
    let Err(status) = outcome else { return };
    eprintln!("{step:?}, {point:?}: {:?} {:?}", status.code(), status.message());
    let is_full = point.is_some_and(|point| point.harm == Harm::Fail(libc::ENOSPC));
    assert_eq!(status.code() == tonic::Code::ResourceExhausted, is_full, "{step:?}, {point:?}: {status:?}");
}

async fn sweep(step: Step) {
    rig::insist_on_ours();
    orphans::adopt();
    if !rig::can_run_containers() {
        return;
    }
    let mut world = World::new(step).await;
    let report = hunt(&mut world, step, "first", None).await;
    assert!(report.killed.is_empty());
    finish(&world, step, "first", &report, "undisturbed").await;
    let kinds = count(&report);
    eprintln!("{step:?}: {kinds:?}");
    let (points, enough) = choose(&kinds);
    let (mut met, mut chosen) = (0, 0);
    for (number, point) in points.iter().enumerate() {
        if met == enough {
            break;
        }
        chosen += 1;
        met += usize::from(meet(&mut world, step, &format!("c{number}"), point).await);
    }
    println!("{step:?}: {met} of {chosen} points met");
    // How often a kind occurs differs from time to time: messages come together, and what is done off the reply's path
    // may come when nobody looks any more.
    assert!(met > 0, "no point was met");
}

/// One point; whether it was met.
async fn meet(world: &mut World, step: Step, id: &str, point: &Point) -> bool {
    let began = Instant::now();
    let report = hunt(world, step, id, Some(point)).await;
    finish(world, step, id, &report, &format!("{step:?}, {point} (killed: {:?})", report.killed)).await;
    eprintln!("{point}: {:?} killed, {:?}", report.killed, began.elapsed());
    !report.killed.is_empty() || report.has_failed
}

/// How often each program has which effect.
fn count(report: &Report) -> BTreeMap<(Role, String), usize> {
    let mut kinds = BTreeMap::new();
    report.effects.iter().for_each(|effect| *kinds.entry(effect.clone()).or_default() += 1);
    kinds
}

/// The points, and how many that are met are enough.
fn choose(kinds: &BTreeMap<(Role, String), usize>) -> (Vec<Point>, usize) {
    if let Some(rounds) = rounds() {
        let point = std::env::var("STRATA_CRASH_POINT").ok();
        let point = point.map(|text| Point::parse(&text).expect("a point: Shim rename 2 KillAfter"));
        let of_round = |round| point.clone().map_or_else(|| points(kinds, round), |point| vec![point]);
        return (rounds.flat_map(of_round).collect(), usize::MAX);
    }
    let mut chance = Chance::new();
    let all: Vec<Point> = (0..8).flat_map(|round| points(kinds, round)).collect();
    let some = (0..2 * FEW).map(|_| all[chance.below(all.len() as u64) as usize].clone()).collect();
    (some, FEW)
}

/// The rounds that were asked for.
fn rounds() -> Option<Range<usize>> {
    let text = std::env::var("STRATA_CRASHES").ok()?;
    let (from, to) = text.split_once("..").unwrap_or(("0", &text));
    Some(from.parse().ok()?..to.parse().ok()?)
}

/// All points of a round.
fn points(kinds: &BTreeMap<(Role, String), usize>, round: usize) -> Vec<Point> {
    let mut points = Vec::new();
    for ((role, effect), often) in kinds {
        let count = 1 + round % often;
        let both: &[Harm] = &[Harm::KillBothBefore, Harm::KillBothAfter];
        let harms = [Harm::KillBefore, Harm::KillAfter].iter().chain(if *role == Role::Shim { both } else { &[] });
        points.extend(harms.map(|harm| Point { role: *role, effect: effect.clone(), count, harm: *harm }));
    }
    points
}

/// Does a step under the eyes of the tracer; shimd is up again afterwards.
async fn hunt(world: &mut World, step: Step, id: &str, point: Option<&Point>) -> Report {
    world.prepare(step, id).await;
    let shim = world.lab.find_shim(id).map(|pid| pid.as_raw_nonzero().get());
    let pids: Vec<i32> = std::iter::once(world.lab.pid().cast_signed()).chain(shim).collect();
    let tracer = Tracer::attach(&pids, point);
    let outcome = tokio::time::timeout(ANSWER, world.act(step, id)).await;
    let outcome = outcome.unwrap_or_else(|_| panic!("{step:?}, {point:?}: no answer within {ANSWER:?}"));
    tokio::time::sleep(LATE).await;
    let report = tracer.finish();
    if report.has_failed {
        assert_told(step, point, outcome);
    } else if report.killed.is_empty() {
        let code = outcome.unwrap_or_else(|status| panic!("{step:?}, {point:?}: nobody was killed, and {status:?}"));
        assert!(
            code.is_none_or(|code| code == if step == Step::Exec { 4 } else { CODE }),
            "{step:?} {point:?} {code:?}"
        );
    } else if let Ok(Some(code)) = outcome {
        let is_exact = code == if step == Step::Exec { 4 } else { CODE };
        let died = report.killed.contains(&Role::Shim) && [KILLED, UNKNOWN].contains(&code);
        // The runtime becomes the program that is entered with.
        let was_it = step == Step::Exec && report.killed.contains(&Role::Runtime) && code == KILLED;
        assert!(is_exact || died || was_it, "{step:?}, {point:?}: {code}");
    }
    if report.has_failed {
        world.assert_answers().await;
    }
    // What a failed write left on the disk, unseen, goes with the next start.
    if report.killed.contains(&Role::Shimd) || report.has_failed {
        world.lab.kill();
        world.lab.up().await;
    }
    report
}

/// The store is true, the container goes on to its end as if nothing had been, and then nothing is left.
async fn finish(world: &World, step: Step, id: &str, report: &Report, point: &str) {
    world.assert_true(id, point).await;
    let within = tokio::time::timeout(ANSWER, async {
        if let Some((status, _)) = world.task(id).await {
            end(world, step, id, status, report, point).await;
        }
        world.clear(step, id, point).await;
    });
    within.await.unwrap_or_else(|_| panic!("{point}: no answer within {ANSWER:?}"));
}

async fn end(world: &World, step: Step, id: &str, status: ProcessStatus, report: &Report, point: &str) {
    let must = |what: &str, done: Result<u32, tonic::Status>| {
        done.unwrap_or_else(|status| panic!("{point}: {what}: {status:?}"))
    };
    let mut is_running = status == ProcessStatus::Running;
    if status == ProcessStatus::Created {
        // The container's program is not there yet, and has set no trap.
        must("start", world.start(id).await.map(|()| 0));
        tokio::time::sleep(Duration::from_millis(50)).await;
        is_running = true;
    }
    if is_running {
        let killed = world.kill(id).await;
        if step != Step::Kill {
            must("kill", killed.map(|()| 0));
        }
    }
    let code = must("wait", world.wait(id).await);
    let is_exact = code == CODE;
    let was_told = is_running || matches!(step, Step::Kill | Step::Delete | Step::Remove);
    let died = report.killed.contains(&Role::Shim) && [KILLED, UNKNOWN].contains(&code);
    // What waits to be started is the runtime still, and the program later.
    let was_it = report.killed.contains(&Role::Runtime) && matches!(step, Step::Create | Step::Start) && code == KILLED;
    assert!(is_exact && was_told || died || was_it, "{point}: it ended with {code}");
    assert_eq!(must("delete", world.delete(id).await), code, "{point}");
}
