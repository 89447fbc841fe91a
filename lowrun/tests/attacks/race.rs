//! The racer: who shares a volume swaps what is in it while a container is made.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::stage::PATIENCE;

/// How long each race is run, in seconds; 2 if nobody says.
const SECONDS: &str = "LOWRUN_RACE_SECONDS";

/// Exchanges two names as fast as it can, until dropped.
pub(crate) struct Racer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Racer {
    pub(crate) fn new(one: PathBuf, other: PathBuf) -> Racer {
        let stop = Arc::new(AtomicBool::new(false));
        let until = stop.clone();
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let _ = renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE);
            }
        });
        Racer { stop, thread: Some(thread) }
    }

    /// Exchanges an entry of `dir` with a symlink to `target` beside it.
    pub(crate) fn against_symlink(dir: &Path, name: &str, target: &Path) -> Racer {
        let link = dir.join("swapped-in");
        std::os::unix::fs::symlink(target, &link).unwrap();
        Racer::new(dir.join(name), link)
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Calls `round`, which says whether its container was made, for as long as races run; at least one must be.
pub(crate) fn rounds(mut round: impl FnMut() -> bool) {
    let seconds = std::env::var(SECONDS).ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let (begun, mut made, mut refused) = (Instant::now(), 0, 0);
    while begun.elapsed() < Duration::from_secs(seconds) || made == 0 && begun.elapsed() < PATIENCE {
        *if round() { &mut made } else { &mut refused } += 1;
    }
    eprintln!("{made} containers made, {refused} refused under the race");
    assert!(made > 0, "no container was made: nothing is proved");
}

/// Tries the naive step until it falls, as it must.
#[track_caller]
pub(crate) fn falls(mut step: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !step() {
        assert!(begun.elapsed() < PATIENCE, "an attack that does nothing proves nothing");
    }
}
