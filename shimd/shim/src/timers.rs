//! Things to be done later. There are few, so they are a list.

use std::time::Duration;

use strata_trace::now_ns;

use crate::task::Key;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Connect to where events are published, again.
    Publish,
    /// Offer held-back output to the log, again.
    Output(Key),
    /// Look for input, where the kernel refused to tell.
    Input(Key),
    /// The process has ended long enough ago: its exit is told although its output is not at its end.
    Exit(Key),
    /// The container is deleted although its output was not taken.
    Delete(Key),
    /// The sandbox was asked to stop long enough ago: its containers are killed.
    StopSandbox,
    /// Nothing was done for a while: give memory back.
    Trim,
    /// Nobody ever asked this shim for a container: end.
    Abandoned,
    /// The last events could not be published: end all the same.
    Quit,
}

/// The list.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    pending: Vec<(u64, Due)>,
}

impl Timers {
    /// Does `due` after `delay`. What was to be done earlier under the same name is forgotten.
    pub(crate) fn set(&mut self, due: Due, delay: Duration) {
        self.clear(due);
        self.pending.push((now_ns() + delay.as_nanos() as u64, due));
    }

    /// Whether `due` is to be done.
    pub(crate) fn has(&self, due: Due) -> bool {
        self.pending.iter().any(|(_, pending)| *pending == due)
    }

    /// Does `due` after `delay`, unless it is to be done already.
    pub(crate) fn set_once(&mut self, due: Due, delay: Duration) {
        if !self.has(due) {
            self.set(due, delay);
        }
    }

    pub(crate) fn clear(&mut self, due: Due) {
        self.pending.retain(|(_, pending)| *pending != due);
    }

    /// How long to wait for the next one.
    pub(crate) fn until_next(&self) -> Option<Duration> {
        let next = self.pending.iter().map(|(at, _)| *at).min()?;
        Some(Duration::from_nanos(next.saturating_sub(now_ns())))
    }

    /// One that is due now.
    pub(crate) fn pop(&mut self) -> Option<Due> {
        if self.pending.is_empty() {
            return None;
        }
        let now = now_ns();
        let at = self.pending.iter().position(|(at, _)| *at <= now)?;
        Some(self.pending.remove(at).1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_is_due_once() {
        let mut timers = Timers::default();
        timers.set(Due::Trim, Duration::ZERO);
        timers.set(Due::Trim, Duration::ZERO);
        timers.set_once(Due::Publish, Duration::from_secs(60));
        timers.set_once(Due::Publish, Duration::ZERO);
        assert_eq!(timers.until_next(), Some(Duration::ZERO));
        assert_eq!((timers.pop(), timers.pop()), (Some(Due::Trim), None));
        assert!(timers.until_next().unwrap() > Duration::from_secs(50));
        timers.clear(Due::Publish);
        assert_eq!(timers.until_next(), None);
    }
}
