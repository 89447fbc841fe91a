//! A run on a machine where much is going on: a thousand other containers, five thousand mounts.

use std::fs;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::Field;
use super::subject::Subject;
use crate::measure::median;
use crate::report::Row;

const MOUNTS: usize = 5000;
/// Half of the thousand are each runtime's own: what grows may be its directory of states, too.
const CONTAINERS_EACH: usize = 500;
const RUNS: usize = 40;
/// In turn, so that each comes as often after each other one: what a run leaves to the kernel (the freeing of five thousand
/// mounts, for one) takes processor time from whoever comes next.
const ORDERS: [[usize; 3]; 2] = [[0, 1, 2], [0, 2, 1]];

/// Milliseconds of a run of each.
struct Figures {
    ours: f64,
    crun: f64,
    floor: f64,
}

/// By how much a run grows.
pub(super) fn rows(field: &Field, crun: &Subject) -> Vec<Row> {
    let alone = figures(field, crun);
    let place = field.work.join("mounts");
    make_mounts(&place);
    let ours = leave_running(field, &field.ours);
    let theirs = leave_running(field, crun);
    let crowded = figures(field, crun);
    ours.iter().for_each(|id| field.ours.remove(id));
    theirs.iter().for_each(|id| crun.remove(id));
    umount2(&place, MntFlags::MNT_DETACH).expect("unmount the five thousand");
    let growth = |pick: fn(&Figures) -> f64| pick(&crowded) - pick(&alone);
    let ours = growth(|figures| figures.ours);
    let row = |against: &str, theirs, owed| {
        let what = format!("growth of a run by 1,000 containers and 5,000 mounts, against {against}");
        Row::of(what, "ms", ours, theirs, owed)
    };
    vec![row("the floor's", growth(|figures| figures.floor), 1.2), row("crun's", growth(|figures| figures.crun), 1.0)]
}

fn figures(field: &Field, crun: &Subject) -> Figures {
    let run: [&dyn Fn() -> f64; 3] = [&|| field.run_ms(&field.ours), &|| field.run_ms(crun), &|| field.floor_ms()];
    let mut all = [Vec::new(), Vec::new(), Vec::new()];
    for order in ORDERS.iter().cycle().take(RUNS) {
        for &which in order {
            all[which].push(run[which]());
        }
    }
    let [ours, crun, floor] = all.map(|figures| median(&figures));
    Figures { ours, crun, floor }
}

/// Five thousand mounts below one, in this process's own mount namespace.
fn make_mounts(place: &Path) {
    let none: Option<&str> = None;
    fs::create_dir_all(place).expect("create a directory");
    mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), none).expect("mount a tmpfs");
    for index in 0..MOUNTS {
        let target = place.join(index.to_string());
        fs::create_dir(&target).expect("create a directory");
        mount(Some(&target), &target, none, MsFlags::MS_BIND, none).expect("bind a directory");
    }
}

fn leave_running(field: &Field, subject: &Subject) -> Vec<String> {
    (0..CONTAINERS_EACH).map(|_| subject.leave_running(&field.sleeping)).collect()
}
