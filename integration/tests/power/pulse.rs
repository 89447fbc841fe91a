//! Whether this process stood still for a while: somebody stopped it, or the machine slept. What had a deadline then missed it, and
//! nothing is learned of who was asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const BEAT: Duration = Duration::from_millis(50);
/// Between two beats of a process that runs, however busy the machine is.
const STILL: Duration = Duration::from_secs(3);

/// Beats as long as it exists.
pub(crate) struct Pulse {
    longest_ms: Arc<AtomicU64>,
}

impl Pulse {
    pub(crate) fn start() -> Pulse {
        let longest_ms = Arc::<AtomicU64>::default();
        let weak = Arc::downgrade(&longest_ms);
        std::thread::spawn(move || {
            let mut last = Instant::now();
            while let Some(longest_ms) = weak.upgrade() {
                let pause = last.elapsed().as_millis();
                longest_ms.fetch_max(u64::try_from(pause).unwrap_or(u64::MAX), Ordering::Relaxed);
                last = Instant::now();
                drop(longest_ms);
                std::thread::sleep(BEAT);
            }
        });
        Pulse { longest_ms }
    }

    /// Whether it stood still since this was asked last.
    pub(crate) fn has_paused(&self) -> bool {
        // A process that goes on again has its first beat first.
        std::thread::sleep(2 * BEAT);
        u128::from(self.longest_ms.swap(0, Ordering::Relaxed)) >= STILL.as_millis()
    }
}
