//! A power cut at any point: images that are listed are right, what was promised is there, a pull heals the rest.
//!
//! ```text
//!   supervisor -> ext4 -> loop device -> [recorder]      once, over a story of pulls, commits and removals
//!   [cut] -> image of the disk -> loop device -> ext4 -> supervisor -> [verdict]      for each of the points
//! ```
//! The same over the snapshotter `native`, whose snapshots are whole copies. `STRATA_POWER_POINTS` says how many points
//! there are (and a tenth of that over `native`), `STRATA_POWER_SEED` which ones; with `SUBJECT=theirs` the power fails
//! Debian's containerd, and what is found is told and not judged.

mod bench;
mod cut;
mod image;
mod pulse;
mod recorder;
mod story;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use integration::{Subject, programs, skip};

use bench::{Bench, Snapshotter, Victim};
use cut::{Disk, Fault, Random};
use pulse::Pulse;
use recorder::{Operation, Recorder};
use story::Done;
use verdict::{Findings, Wrong, examine};

const DISK_SIZE: usize = 160 << 20;
/// Points of the short form.
const POINTS: usize = 24;
/// Points of one recording: each is another story, for time does not pass twice in the same way.
const POINTS_OF_RECORDING: usize = 100;
/// Points over the snapshotter `native` in the short form.
const COPY_POINTS: usize = 6;
/// Else it has one of so many.
const COPY_SHARE: usize = 10;
const WEAK_POINTS: usize = 8;
/// How often a point is looked at while the test was stopped meanwhile.
const LOOKS: usize = 10;

#[test]
fn a_power_cut_leaves_every_image_whole() {
    assert_whole(Snapshotter::Overlayfs, number("STRATA_POWER_POINTS", POINTS));
}

#[test]
fn a_power_cut_leaves_every_copy_whole() {
    assert_whole(Snapshotter::Native, number("STRATA_POWER_POINTS", COPY_SHARE * COPY_POINTS) / COPY_SHARE);
}

fn assert_whole(snapshotter: Snapshotter, points: usize) {
    let victim = match Subject::chosen() {
        Subject::Ours => Victim::Shimd,
        Subject::Theirs => Victim::Containerd,
    };
    let Some(findings) = power_cuts(victim, snapshotter, points) else { return };
    let lines: Vec<String> = findings.iter().map(|(wrong, what)| format!("{wrong:?}: {what}")).collect();
    assert!(victim == Victim::Containerd || findings.is_empty(), "{}", lines.join("\n"));
}

/// The test can fail: syncs that do nothing lose what was promised.
#[test]
fn a_supervisor_that_does_not_sync_is_found_out() {
    let Some(findings) = power_cuts(Victim::WeakShimd, Snapshotter::Overlayfs, WEAK_POINTS) else { return };
    assert!(findings.iter().any(|(wrong, _)| *wrong != Wrong::Disk), "nothing was found");
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Cuts at `points` points of one or more recordings, and gives everything that was wrong.
fn power_cuts(victim: Victim, snapshotter: Snapshotter, points: usize) -> Option<Findings> {
    if let Some(reason) = skip::obstacle() {
        skip(reason);
        return None;
    }
    if ["ctr", "docker-registry", "mkfs.ext4"].iter().any(|program| programs::peer(program).is_none()) {
        skip("ctr, docker-registry or mkfs.ext4 is not installed: run 'make setup'");
        return None;
    }
    let mut random = Random(number("STRATA_POWER_SEED", 1) as u64);
    let mut tally = Tally::default();
    let mut left = points;
    while left > 0 {
        let now = left.min(POINTS_OF_RECORDING);
        record_and_replay(Bench::set_up(victim, snapshotter), now, &mut random, &mut tally);
        left -= now;
    }
    let who = format!("{victim:?}, {}", snapshotter.name());
    eprintln!("{who}: cut at {points} points; points at which something was wrong: {:?}", tally.bad_points);
    Some(tally.findings)
}

/// What was found so far.
#[derive(Default)]
struct Tally {
    findings: Findings,
    bad_points: BTreeMap<Wrong, usize>,
}

impl Tally {
    fn add(&mut self, at: &str, findings: Findings) {
        let kinds: BTreeSet<Wrong> = findings.iter().map(|(wrong, _)| *wrong).collect();
        kinds.into_iter().for_each(|wrong| *self.bad_points.entry(wrong).or_default() += 1);
        findings.iter().for_each(|(wrong, what)| eprintln!("{at}: {wrong:?}: {what}"));
        self.findings.extend(findings.into_iter().map(|(wrong, what)| (wrong, format!("{at}: {what}"))));
    }
}

fn record_and_replay(bench: Bench, points: usize, random: &mut Random, tally: &mut Tally) {
    let mut bench = bench;
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let (log, story) = record(&mut bench);
        replay(&mut bench, &log, &story, points, random, tally);
    }));
    bench.remove();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn record(bench: &mut Bench) -> (Vec<Operation>, Vec<Done>) {
    let recorder = Recorder::mount(&bench.path("recorder"), DISK_SIZE);
    let file = recorder.file();
    let options = ["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", "-J", "size=8", "-m", "0"];
    let made = bench.host("mkfs.ext4", &[&options[..], &[file.to_str().expect("text")]].concat());
    assert_eq!(made.code, 0, "{}", made.errors());
    bench.mount_disk(&file).unwrap_or_else(|error| panic!("mount the recorded disk: {error}"));
    let first = recorder.position();
    bench.start().unwrap_or_else(|error| panic!("{error}"));
    let mut story = story::tell(bench, &recorder);
    bench.stop();
    let last = recorder.position();
    bench.unmount_disk();
    // Before the supervisor first ran there was nothing to lose.
    story.insert(0, Done { position: first, images: Vec::new() });
    let mut log = recorder.finish();
    log.truncate(last);
    (log, story)
}

fn replay(bench: &mut Bench, log: &[Operation], story: &[Done], points: usize, random: &mut Random, tally: &mut Tally) {
    let first = story[0].position;
    let mut cuts: Vec<usize> = (0..points).map(|_| first + 1 + random.below(log.len() - first)).collect();
    cuts.sort_unstable();
    let mut disk = Disk::new(log, DISK_SIZE);
    let pulse = Pulse::start();
    // A file system of memory.
    let image = Path::new("/run/cut.img");
    for (index, cut) in cuts.into_iter().enumerate() {
        let mut fault = Fault::any(random);
        let mut look = |fault| {
            disk.write_image(cut, fault, random, image);
            restart(bench, story, cut, image, ["a", "b"][index % 2])
        };
        let mut findings = undisturbed(&pulse, || look(fault));
        if is_torn_superblock(fault, &findings) {
            fault = Fault::Cut;
            findings = undisturbed(&pulse, || look(fault));
        }
        tally.add(&format!("cut {cut} of {} ({fault:?})", log.len()), findings);
    }
}

/// Looks, again where something was wrong and the test had been stopped.
fn undisturbed(pulse: &Pulse, mut look: impl FnMut() -> Findings) -> Findings {
    for _ in 1..LOOKS {
        let findings = look();
        if findings.is_empty() || !pulse.has_paused() {
            return findings;
        }
    }
    look()
}

/// ext4's superblocks, its journal's too, are two sectors with one checksum: torn apart, there is no file system any more,
/// and nothing to be learned of who used it.
fn is_torn_superblock(fault: Fault, findings: &Findings) -> bool {
    matches!((fault, &findings[..]), (Fault::Torn, [(Wrong::Disk, _)]))
}

/// The machine boots with what the disk holds.
fn restart(bench: &mut Bench, story: &[Done], cut: usize, image: &Path, healing: &str) -> Findings {
    bench.boot();
    if let Err(error) = bench.mount_disk(image) {
        return vec![(Wrong::Disk, error)];
    }
    let findings = match bench.start() {
        Ok(()) => examine(bench, story, cut, healing),
        Err(error) => vec![(Wrong::Store, error)],
    };
    bench.stop();
    bench.unmount_disk();
    findings
}
