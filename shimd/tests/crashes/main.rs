//! shimd, its shim, the runtime and the registry helper are killed before and after each effect that they have on the
//! world: while a task is created, started, entered, killed and deleted, a container removed, a layer unpacked and
//! committed, an image pulled, and one collected. Afterwards, within two seconds, the store says what the kernel does,
//! every call answers, and exit codes are exact.
//!
//! Each step is first done once while a debugger ([`tracer`]) writes down what it does to the world ([`effects`]). Then each
//! kind of effect of each program is a place to be killed at, before and after; a round takes one occurrence of it, the
//! next round another. `STRATA_CRASHES` says how many rounds there are (`make test-crashes`: 25). Without it a handful of
//! the points is taken by chance.

mod effects;
#[path = "../rig/mod.rs"]
mod rig;
mod tracer;
mod world;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use effects::Role;
use proto_containerd::process::Status as ProcessStatus;
use rig::chance::Chance;
use tracer::{Point, Report, Tracer};
use world::{CODE, Step, World};

/// Points of a step in the short form.
const FEW: u64 = 6;
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
    an_image_is_pulled Pull
    an_image_is_collected Collect
}

async fn sweep(step: Step) {
    rig::insist_on_ours();
    if !rig::can_run_containers() {
        return;
    }
    let mut world = World::new(step).await;
    let report = hunt(&mut world, step, "first", None).await;
    assert!(report.killed.is_empty());
    finish(&world, step, "first", &report, "undisturbed").await;
    let kinds = count(&report);
    eprintln!("{step:?}: {kinds:?}");
    let (mut met, mut chosen) = (0, 0);
    for (number, point) in choose(&kinds).iter().enumerate() {
        chosen += 1;
        let id = format!("c{number}");
        let began = Instant::now();
        let report = hunt(&mut world, step, &id, Some(point)).await;
        met += usize::from(!report.killed.is_empty());
        finish(&world, step, &id, &report, &format!("{step:?}, {point} (killed: {:?})", report.killed)).await;
        eprintln!("{point}: {:?} killed, {:?}", report.killed, began.elapsed());
    }
    println!("{step:?}: {met} of {chosen} points met");
    // How often a kind occurs differs a little from time to time.
    assert!(met * 10 >= chosen * 7, "{met} of {chosen} points met");
}

/// How often each program has which effect.
fn count(report: &Report) -> BTreeMap<(Role, String), usize> {
    let mut kinds = BTreeMap::new();
    report.effects.iter().for_each(|effect| *kinds.entry(effect.clone()).or_default() += 1);
    kinds
}

fn choose(kinds: &BTreeMap<(Role, String), usize>) -> Vec<Point> {
    match std::env::var("STRATA_CRASHES").ok().and_then(|rounds| rounds.parse().ok()) {
        Some(rounds) => (0..rounds).flat_map(|round| points(kinds, round)).collect(),
        None => {
            let mut chance = Chance::new();
            let all: Vec<Point> = (0..8).flat_map(|round| points(kinds, round)).collect();
            (0..FEW).map(|_| all[chance.below(all.len() as u64) as usize].clone()).collect()
        }
    }
}

/// All points of a round.
fn points(kinds: &BTreeMap<(Role, String), usize>, round: usize) -> Vec<Point> {
    let mut points = Vec::new();
    for ((role, effect), often) in kinds {
        let count = 1 + round % often;
        let with_both = [false, true].into_iter().take(if *role == Role::Shim { 2 } else { 1 });
        for both in with_both {
            points.extend([false, true].map(|after| Point { role: *role, effect: effect.clone(), count, after, both }));
        }
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
    if report.killed.is_empty() {
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
    if report.killed.contains(&Role::Shimd) {
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
    let never_began = step == Step::Start && report.killed.contains(&Role::Runtime) && !is_running;
    assert!(is_exact && was_told || died || never_began, "{point}: it ended with {code}");
    assert_eq!(must("delete", world.delete(id).await), code, "{point}");
}
