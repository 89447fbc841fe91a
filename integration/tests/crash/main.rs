//! Nothing is lost when something dies: kill -9 of a daemon, of a shim, of the runtime, at many points of what they do;
//! then all is as it should be, and nothing is left.
//!
//! The points are of three kinds. *Moments* sweep over the time that an operation takes. *System calls* are exact: strace
//! sends SIGKILL when the process enters its n-th call of a kind, for n = 1, 2, 3 … until the operation no longer gets that
//! far. *Failpoints* are before and after each call of the shim and of the runtime, by programs that stand in their place
//! (`integration/failpoints/`). None needs a hook in the product. `STRATA_CRASH_ROUNDS` repeats each sweep (default: once).

mod failpoints;
mod gap;
mod shim;
mod strace;
mod sweep;
mod victim;
mod whole;

pub(crate) use strace::Strace;
pub(crate) use victim::Victim;
pub(crate) use whole::{Lists, assert_promise, assert_whole};

/// How often each sweep is repeated.
pub(crate) fn rounds() -> u32 {
    std::env::var("STRATA_CRASH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1)
}
