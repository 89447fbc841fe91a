//! The whole stack beside Debian's dockerd, containerd and runc.

use std::cell::RefCell;
use std::time::Duration;

use crate::contestant::Contestant;
use crate::measure::{Pair, median};
use crate::report::Row;

/// Rows of whole stacks: task, what it is, unit, what is owed, warm-up, runs.
const ROWS: [(&str, &str, &str, f64, usize, usize); 8] = [
    ("run-bridge", "`run --rm busybox true`, bridge", "ms", 0.2, 2, 20),
    ("run-none", "`run --rm --network none busybox true`", "ms", 0.2, 2, 20),
    ("exec", "`exec` of `true`", "ms", 0.2, 2, 20),
    ("shim-pss", "a shim with a running container, Pss", "KiB", 0.1, 0, 1),
    ("daemons-pss", "the two daemons idle, Pss", "KiB", 0.25, 0, 1),
    ("pull", "pull and unpack of 5 gzip layers, 180 MB, 600 MB unpacked", "ms", 0.5, 0, 3),
    ("output", "200 MB of output in the foreground, to a file", "ms", 0.2, 0, 3),
    ("fifty", "50 containers started at once", "ms", 0.2, 0, 3),
];

/// After so long all that is done behind the start of a container is done.
const SETTLED: Duration = Duration::from_secs(10);
/// How often containers are added and removed for it.
const ROUNDS: usize = 3;
/// After so long the kernel has put away what 300 containers were.
const EMPTIED: Duration = Duration::from_secs(15);

/// Measures them; `wanted` is empty for all.
pub(crate) fn rows(wanted: &[String]) -> Vec<Row> {
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|row| row == name);
    let (ours, theirs) = (RefCell::new(Contestant::start("ours")), RefCell::new(Contestant::start("theirs")));
    ours.borrow_mut().ask("start-bench");
    theirs.borrow_mut().ask("start-bench");
    let mut rows = Vec::new();
    for (task, what, unit, owed, warm_up, runs) in ROWS.into_iter().filter(|row| is_wanted(row.0)) {
        eprintln!("measuring {what}");
        let (ask_ours, ask_theirs) = (|| ours.borrow_mut().ask(task), || theirs.borrow_mut().ask(task));
        let pair = Pair::interleaved(warm_up, runs, ask_ours, ask_theirs);
        rows.push(Row::new(what.to_owned(), unit, &pair, owed));
    }
    theirs.into_inner().end();
    let mut ours = ours.into_inner();
    if is_wanted("growth") {
        rows.push(growth(&mut ours));
    }
    ours.end();
    rows
}

/// A `run` with 0, 100 and 300 containers running, against itself. The machine becomes slower and faster meanwhile, so that
/// it is done in rounds, and each figure beside 300 is compared with those beside none before it and after it.
fn growth(ours: &mut Contestant) -> Row {
    let (mut none, mut hundred, mut many) = (vec![beside(ours, 0.0)], Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        eprintln!("measuring a run beside 0, 100 and 300 running containers, round {round} of {ROUNDS}");
        hundred.push(beside(ours, 100.0));
        many.push(beside(ours, 300.0));
        ours.ask("remove-more");
        std::thread::sleep(EMPTIED);
        none.push(beside(ours, 0.0));
    }
    let around = none.windows(2).map(|pair| f64::midpoint(pair[0], pair[1]));
    let pair = Pair::of(many.iter().copied().zip(around));
    let figures = |figures: &[f64]| figures.iter().map(|ms| format!("{ms:.1}")).collect::<Vec<_>>().join(", ");
    let what = format!(
        "`run --rm busybox true` beside 300 running containers ({}), against beside none ({}; beside 100: {}), in rounds",
        figures(&many),
        figures(&none),
        figures(&hundred)
    );
    Row::new(what, "ms", &pair, 1.15)
}

/// Milliseconds of a `run` beside so many containers.
fn beside(ours: &mut Contestant, wanted: f64) -> f64 {
    while wanted > 0.0 && ours.ask("add-fifty") < wanted {}
    // Beside containers that run, not beside those that have just been started.
    std::thread::sleep(SETTLED);
    let figures: Vec<f64> = (0..40).map(|_| ours.ask("run-bridge")).collect();
    median(&figures)
}
