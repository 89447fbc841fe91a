//! shimd and its shim beside Debian's containerd with its own shim and runc.

mod api;
mod crowd;
mod floor;
mod layers;
mod output;
pub(crate) mod served;
mod store;
mod tasks;

use std::cell::RefCell;

use crate::contestant::Contestant;
use crate::measure::{Pair, median};
use crate::report::{Owed, Row};

/// What is done in turn and compared: task, what it is, unit, what is owed, warm-up, runs.
const COMPARED: [(&str, &str, &str, Owed, usize, usize); 5] = [
    ("daemon-pss", "shimd idle, Pss", "KiB", Owed::times(0.3), 0, 1),
    ("ctr-run", "`ctr run --rm` of `true`", "ms", Owed::times(0.4), 2, 20),
    ("task", "create, start, wait and delete of a task through the API, one client", "ms", Owed::times(0.35), 2, 30),
    ("task-16", "the same, 16 clients, tasks in a second", "/s", Owed::at_least_times(3.0), 1, 5),
    ("unpack", "unpacking a gzip layer of 121 MB on one processor", "MB/s", Owed::at_least_times(1.5), 1, 5),
];

/// Images that are pulled: the end of their tasks' names, and what they are.
const IMAGES: [(&str, &str); 2] =
    [("gzip", "5 gzip layers, 209 MB, 607 MB unpacked"), ("zstd", "one zstd layer, 321 MB, 1 GB unpacked")];
/// What a pull cannot be quicker than, each by itself.
const FLOOR: [&str; 3] = ["download", "digest", "write"];
const PULLS: usize = 3;

/// Measures them; `wanted` is empty for all.
pub(crate) fn rows(wanted: &[String]) -> Vec<Row> {
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|row| row == name);
    let (ours, theirs) = (RefCell::new(Contestant::start("shimd")), RefCell::new(Contestant::start("containerd")));
    let mut rows = Vec::new();
    for (task, what, unit, owed, warm_up, runs) in COMPARED.into_iter().filter(|row| is_wanted(row.0)) {
        eprintln!("measuring {what}");
        let (ask_ours, ask_theirs) = (|| ours.borrow_mut().ask(task), || theirs.borrow_mut().ask(task));
        let pair = Pair::interleaved(warm_up, runs, ask_ours, ask_theirs);
        rows.push(Row::of_pair(what.to_owned(), unit, &pair, owed));
    }
    let (mut ours, mut theirs) = (ours.into_inner(), theirs.into_inner());
    for (kind, what) in IMAGES.into_iter().filter(|(kind, _)| is_wanted(&format!("pull-{kind}"))) {
        rows.extend(pull_rows(&mut ours, &mut theirs, kind, what));
    }
    if is_wanted("crowd") {
        rows.extend(crowd_rows(&mut ours, &mut theirs));
    }
    if is_wanted("output") {
        rows.extend(output_rows(&mut ours));
    }
    if is_wanted("store") {
        rows.extend(store_rows(&mut ours));
    }
    ours.end();
    theirs.end();
    rows
}

/// Pulls of one image by `ctr` and by Transfer, which Debian's containerd has not, and the floor, in turn.
fn pull_rows(ours: &mut Contestant, theirs: &mut Contestant, kind: &str, what: &str) -> Vec<Row> {
    let (mut by_ctr, mut by_transfer, mut floor) = (Vec::new(), Vec::new(), FLOOR.map(|_| Vec::new()));
    for round in 1..=PULLS {
        eprintln!("measuring pulls of {what}, round {round} of {PULLS}");
        let reference = theirs.ask(&format!("pull-{kind}"));
        by_ctr.push((ours.ask(&format!("pull-{kind}")), reference));
        by_transfer.push((ours.ask(&format!("transfer-{kind}")), reference));
        for (figures, part) in floor.iter_mut().zip(FLOOR) {
            figures.push(ours.ask(&format!("{part}-{kind}")));
        }
    }
    let [download, digest, write] = floor.map(|figures| median(&figures));
    let busy = ours.ask(&format!("busy-{kind}"));
    let by_transfer = Pair::of(by_transfer.into_iter());
    let parts = format!(
        "the same by Transfer, against the slowest of download ({download:.0} ms), decompression and hashing \
         over the processors ({digest:.0} ms), writing ({write:.0} ms); all three keep the processors busy for {busy:.0} ms"
    );
    let slowest = download.max(digest).max(write);
    let ctr = format!("`ctr images pull` of {what}");
    let transfer = "the same by Transfer, against `ctr images pull` of theirs".to_owned();
    vec![
        Row::of_pair(ctr, "ms", &Pair::of(by_ctr.into_iter()), Owed::times(0.4)),
        Row::of_pair(transfer, "ms", &by_transfer, Owed::times(0.4)),
        Row::of(parts, "ms", by_transfer.ours(), slowest, 1.2),
    ]
}

/// 1, 100 and 500 running containers.
fn crowd_rows(ours: &mut Contestant, theirs: &mut Contestant) -> Vec<Row> {
    let mut compare = |task: &str, what: &str, unit, owed| {
        eprintln!("measuring {what}");
        let pair = Pair::of([at_once(ours, theirs, task)].into_iter());
        Row::of_pair(what.to_owned(), unit, &pair, owed)
    };
    let mut rows = Vec::new();
    for count in ["1", "100", "500"] {
        let what =
            format!("a shim with a running container after an exec and 10 MB of output, beside {count} such, Pss");
        rows.push(compare(&format!("shims-{count}"), &what, "KiB", Owed::times(0.04).and_at_most(512.0)));
    }
    rows.push(compare("daemon-pss", "shimd with 500 running containers, Pss", "KiB", Owed::times(0.3)));
    eprintln!("measuring the restart beside 500 running containers");
    let restart = Pair::of([(ours.ask("restart"), theirs.ask("restart"))].into_iter());
    let what = "restart of shimd with 500 running containers until it lists them".to_owned();
    rows.push(Row::of_pair(what, "ms", &restart, Owed::at_most(500.0)));
    at_once(ours, theirs, "disperse");
    rows
}

/// Both do something that takes time and is not about time.
fn at_once(ours: &mut Contestant, theirs: &mut Contestant, task: &str) -> (f64, f64) {
    std::thread::scope(|scope| {
        let ours = scope.spawn(|| ours.ask(task));
        let theirs = theirs.ask(task);
        (ours.join().expect("our contestant answers"), theirs)
    })
}

fn output_rows(ours: &mut Contestant) -> Vec<Row> {
    eprintln!("measuring output through the log");
    let figures: Vec<(f64, f64)> = (0..3).map(|_| (ours.ask("output"), ours.ask("output-growth"))).collect();
    let (speed, growth): (Vec<f64>, Vec<f64>) = figures.into_iter().unzip();
    let growth = growth.into_iter().fold(0.0, f64::max);
    let what = "2 GB of short lines through the log, to a reader that compares each byte".to_owned();
    vec![
        Row::alone(what, "MB/s", median(&speed), Owed::at_least(300.0)),
        Row::alone("growth of the shim's highest memory meanwhile".to_owned(), "KiB", growth, Owed::at_most(64.0)),
    ]
}

/// A store that is filled by tenths. Only ours: what is owed is told in milliseconds, and filling theirs takes minutes.
fn store_rows(ours: &mut Contestant) -> Vec<Row> {
    eprintln!("measuring a store of 10,000 containers and 1,000 images");
    ours.ask("fill");
    let few = ours.ask("list");
    while ours.ask("fill") < store::CONTAINERS as f64 / 2.0 {}
    let half = ours.ask("list");
    while ours.ask("fill") < store::CONTAINERS as f64 {}
    let one = ours.ask("inspect");
    let many = ours.ask("list");
    ours.ask("empty");
    let what = "one of 10,000 containers and 1,000 images, by id, name or filter, 99 of 100 within".to_owned();
    let all = format!("listing 10,000 containers, each, against each of 5,000 (of 1,000: {few:.2} µs)");
    vec![Row::alone(what, "ms", one, Owed::at_most(10.0)), Row::of(all, "µs", many, half, 1.2)]
}
