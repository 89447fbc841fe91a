//! Measuring whole processes: wall time, processor time and peak memory of a command, interleaved with a peer's.
//!
//! Two commands are compared in turn, A B A B …, so that a machine whose speed drifts slows both. What is quoted is the
//! median of each and the median of the ratios pair by pair.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};

/// What one run of a command cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) wall: Duration,
    /// User and system time of the command and of all that it waited for.
    pub(crate) processor: Duration,
}

/// Runs `command` to its end.
///
/// # Panics
/// When it cannot be started or fails: a benchmark of a failure says nothing.
pub(crate) fn timed(command: &mut Command) -> Cost {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let before = children_time();
    let start = Instant::now();
    let status = command.status().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    let wall = start.elapsed();
    assert!(status.success(), "{command:?} ended with {status}");
    Cost { wall, processor: children_time() - before }
}

fn children_time() -> Duration {
    processor_time(UsageWho::RUSAGE_CHILDREN)
}

/// User and system time of this process, with all its threads.
pub(crate) fn own_time() -> Duration {
    processor_time(UsageWho::RUSAGE_SELF)
}

fn processor_time(who: UsageWho) -> Duration {
    let usage = getrusage(who).expect("getrusage");
    let micros = |time: nix::sys::time::TimeVal| Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000);
    micros(usage.user_time()) + micros(usage.system_time())
}

/// The figures of two contestants over the same number of runs.
pub(crate) struct Pair {
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

impl Pair {
    /// Runs the two in turn `runs` times, after `warm_up` uncounted turns. Each returns its figure.
    pub(crate) fn interleaved(
        warm_up: usize,
        runs: usize,
        mut ours: impl FnMut() -> f64,
        mut theirs: impl FnMut() -> f64,
    ) -> Pair {
        let mut pair = Pair { ours: Vec::new(), theirs: Vec::new() };
        for turn in 0..warm_up + runs {
            let (a, b) = (ours(), theirs());
            if turn >= warm_up {
                pair.ours.push(a);
                pair.theirs.push(b);
            }
        }
        pair
    }

    /// Figures that were taken in turn elsewhere.
    pub(crate) fn of(figures: impl Iterator<Item = (f64, f64)>) -> Pair {
        let (ours, theirs) = figures.unzip();
        Pair { ours, theirs }
    }

    pub(crate) fn ours(&self) -> f64 {
        median(&self.ours)
    }

    pub(crate) fn theirs(&self) -> f64 {
        median(&self.theirs)
    }

    /// The median of ours/theirs, pair by pair.
    pub(crate) fn ratio(&self) -> f64 {
        let ratios: Vec<f64> = self.ours.iter().zip(&self.theirs).map(|(a, b)| a / b).collect();
        median(&ratios)
    }
}

/// The middle figure.
///
/// # Panics
/// When there is none.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Milliseconds.
pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// A process's proportional share of memory in KiB (`/proc/PID/smaps_rollup`, proc(5)).
pub(crate) fn pss_kib(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find(|line| line.starts_with("Pss:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
