//! Sites: directories to unpack layers in, made where new files are made quickly.
//!
//! ext4 puts a new directory of a top one (`layout::spread`) into the group of inodes that has the fewest directories:
//! often one that has just been emptied, where it passes over each inode that was freed within the last minutes, for
//! each new file again. That can take milliseconds for each of thousands of files, and it takes the making of the
//! directory as long: so some are made, and the quickest is it. The others stay for as long as ext4 remembers, so that
//! nobody is led there again. Nothing of it survives the process. On other file systems the first that is made is it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::{layout, tree};

/// `EXT4_SUPER_MAGIC`.
const EXT4: i64 = 0xEF53;
/// As many are made for one, at most.
const TRIES: usize = 16;
/// So many must have been made before it is known what quick is.
const LOOKS: u64 = 4;
/// Most directories that stay because they were passed over: with so many there is no search any more.
const PASSED_OVER_MAX: usize = 256;
/// How long ext4 remembers what was freed, at most.
const MEMORY: Duration = Duration::from_secs(300);

/// Where they are tried.
pub(super) struct Sites {
    directory: PathBuf,
    /// Most directories that are made for one.
    tries: usize,
    next: AtomicU64,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    count: u64,
    quickest: Duration,
    passed_over: Vec<(Instant, PathBuf)>,
}

impl Sites {
    /// Makes `directory` empty.
    pub(super) fn open(directory: PathBuf) -> Result<Sites> {
        let failed = |error| Error::io(format!("empty {}", directory.display()), error);
        tree::remove(&directory).map_err(|error| failed(error.into()))?;
        layout::make_private(&directory).map_err(failed)?;
        layout::spread(&directory);
        let is_ext4 = rustix::fs::statfs(&directory).is_ok_and(|of| of.f_type == EXT4);
        let tries = if is_ext4 { TRIES } else { 1 };
        Ok(Sites { directory, tries, next: AtomicU64::new(0), seen: Mutex::default() })
    }

    /// Makes the directory `path`.
    pub(super) fn make(&self, path: &Path) -> io::Result<()> {
        let mut made: Vec<(Duration, PathBuf)> = Vec::new();
        let tries = if self.lock().passed_over.len() < PASSED_OVER_MAX { self.tries } else { 1 };
        loop {
            let place = self.directory.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
            let began = Instant::now();
            match std::fs::create_dir(&place) {
                // One is enough.
                Err(_) if !made.is_empty() => break,
                outcome => outcome?,
            }
            let took = began.elapsed();
            made.push((took, place));
            if self.lock().is_quick(took) || made.len() == tries {
                break;
            }
        }
        made.sort();
        let mut made = made.into_iter().map(|(_, place)| place);
        let quickest = made.next().unwrap_or_default();
        let taken = std::fs::rename(&quickest, path);
        // What cannot be taken goes with those that were passed over.
        let left = made.chain(taken.is_err().then_some(quickest));
        self.lock().passed_over.extend(left.map(|place| (Instant::now(), place)));
        taken
    }

    /// Removes what was passed over long ago.
    pub(super) fn expire(&self) {
        self.remove_older(MEMORY);
    }

    fn remove_older(&self, age: Duration) {
        self.lock().passed_over.retain(|(since, place)| {
            let is_remembered = since.elapsed() < age;
            if !is_remembered && let Err(error) = std::fs::remove_dir(place) {
                tracing::warn!(directory = %place.display(), %error, "remove a directory that nobody wanted");
            }
            is_remembered
        });
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    /// Within an eighth of the quickest, which counts for less with each that comes after it: one stroke of luck must
    /// not keep all others looking. A thread that had to wait for its processor only tries again.
    fn is_quick(&mut self, took: Duration) -> bool {
        let quickest = self.quickest + self.quickest / 64;
        self.quickest = if self.count == 0 { took } else { quickest.min(took) };
        self.count += 1;
        self.count >= LOOKS && took <= self.quickest + self.quickest / 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_new_and_what_was_passed_over_stays_a_while() {
        let directory = tempfile::tempdir().unwrap();
        let sites = Sites::open(directory.path().join("sites")).unwrap();
        for name in ["first", "second"] {
            sites.make(&directory.path().join(name)).unwrap();
            assert!(directory.path().join(name).is_dir());
        }
        let count = || std::fs::read_dir(directory.path().join("sites")).unwrap().count();
        let passed_over = sites.lock().passed_over.len();
        assert_eq!(passed_over >= 3, sites.tries > 1, "nobody knew what quick is");
        assert_eq!(count(), passed_over);
        sites.expire();
        assert_eq!(count(), passed_over);
        sites.remove_older(Duration::ZERO);
        assert_eq!(count(), 0);
    }

    #[test]
    fn a_site_that_cannot_be_taken_is_not_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let sites = Sites::open(directory.path().join("sites")).unwrap();
        assert!(sites.make(&directory.path().join("no/such/place")).is_err());
        let count = || std::fs::read_dir(directory.path().join("sites")).unwrap().count();
        assert!(count() > 0);
        sites.remove_older(Duration::ZERO);
        assert_eq!(count(), 0);
    }

    #[test]
    fn quick_is_what_was_quick_before() {
        let mut seen = Seen::default();
        let mut is_quick = |micros| seen.is_quick(Duration::from_micros(micros));
        assert!(![900, 150, 150].into_iter().any(&mut is_quick), "too few to know");
        assert!(is_quick(160));
        assert!(!is_quick(400));
        assert!(is_quick(100));
        assert!(!is_quick(150));
    }
}
