//! Waiting for what happens in another process, with a limit and a text for when it does not.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// Long enough for anything that works, also on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Asks again and again until there is an answer; `None` when `limit` has passed.
pub fn poll<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= end {
            return None;
        }
        sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// [`poll`] for as long as [`PATIENCE`].
///
/// # Panics
/// When there is no answer by then.
#[track_caller]
pub fn until<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    match poll(PATIENCE, ask) {
        Some(answer) => answer,
        None => panic!("waited {PATIENCE:?} in vain: {what}"),
    }
}

/// Waits until `is_so`.
///
/// # Panics
/// When it is not by then.
#[track_caller]
pub fn until_true(what: &str, mut is_so: impl FnMut() -> bool) {
    until(what, || is_so().then_some(()));
}
