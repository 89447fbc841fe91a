//! How often and after what pause a request is made again.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Attempts at a document or a token, the first one included: a person waits for it.
pub(crate) const DOCUMENT_ATTEMPTS: u32 = 4;
/// Attempts at a blob without any byte arriving in between.
pub(crate) const BLOB_ATTEMPTS: u32 = 6;
/// The pause after the first failure; it doubles with each further one.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// No pause is longer.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A registry that asks for a longer pause than this (`Retry-After`) is not waited for.
pub(crate) const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// Failures in a row, and what to do after the next.
#[derive(Debug)]
pub(crate) struct Attempts {
    failed: u32,
    most: u32,
}

impl Attempts {
    pub(crate) fn new(most: u32) -> Attempts {
        Attempts { failed: 0, most }
    }

    /// Something arrived: the failures so far do not count any more.
    pub(crate) fn progressed(&mut self) {
        self.failed = 0;
    }

    /// Counts a failure: the pause before the next attempt, or `None` when it was the last one.
    pub(crate) fn failed(&mut self) -> Option<Duration> {
        self.failed += 1;
        (self.failed < self.most).then(|| pause(self.failed, RandomState::new().hash_one(0)))
    }
}

/// The pause after the `failed`th failure: half of the doubled time is certain, the rest is by chance, so that clients
/// that failed together do not come back together.
fn pause(failed: u32, random: u64) -> Duration {
    let whole = PAUSE_FIRST.saturating_mul(1 << (failed - 1).min(16)).min(PAUSE_MAX);
    let half_ms = u64::try_from(whole.as_millis() / 2).unwrap_or(u64::MAX);
    whole / 2 + Duration::from_millis(random % (half_ms + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        for random in [0, 1, u64::MAX, 12345] {
            for failed in 1..40 {
                let whole = (100u128 << (failed - 1).min(16)).min(5000);
                let pause = pause(failed, random).as_millis();
                assert!((whole / 2..=whole).contains(&pause), "{failed}: {pause}");
            }
        }
    }

    #[test]
    fn attempts_end_and_progress_starts_them_anew() {
        let mut attempts = Attempts::new(3);
        assert!(attempts.failed().is_some());
        assert!(attempts.failed().is_some());
        attempts.progressed();
        assert!(attempts.failed().is_some());
        assert!(attempts.failed().is_some());
        assert!(attempts.failed().is_none());
    }
}
