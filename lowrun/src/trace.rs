//! Spans of lowrun's own work, for `strata run --trace`.
//!
//! Measured only when the environment's `TRACEPARENT` has the sampled flag, and handed back as lines of the log; or with
//! `--debug`, as lines that a person reads. The spans
//! of the container side are written by the container side: both ends append whole lines to the same file.

use std::cell::{Cell, RefCell};

use crate::log::{Log, rfc3339};

thread_local! {
    /// `None` while nobody wants spans.
    static SPANS: RefCell<Option<Vec<Span>>> = const { RefCell::new(None) };
    static IS_SAMPLED: Cell<bool> = const { Cell::new(false) };
}

struct Span {
    name: &'static str,
    start_ns: u64,
    duration_ns: u64,
}

/// Begins to collect, if `traceparent` (`00-<trace>-<parent>-<flags>`) or `debug` asks for it.
pub fn begin(traceparent: Option<&str>, debug: bool) {
    IS_SAMPLED.set(traceparent.is_some_and(is_sampled));
    if IS_SAMPLED.get() || debug {
        SPANS.set(Some(Vec::with_capacity(24)));
    }
}

fn is_sampled(traceparent: &str) -> bool {
    let parts: Vec<&str> = traceparent.split('-').collect();
    let [version, trace, parent, flags] = parts[..] else { return false };
    let hex = |text: &str, length| text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    version == "00"
        && hex(trace, 32)
        && hex(parent, 16)
        && hex(flags, 2)
        && u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1)
}

/// Runs `work` as the span `name`.
pub fn span<T>(name: &'static str, work: impl FnOnce() -> T) -> T {
    if SPANS.with_borrow(Option::is_none) {
        return work();
    }
    let start_ns = now_ns();
    let result = work();
    let span = Span { name, start_ns, duration_ns: now_ns() - start_ns };
    SPANS.with_borrow_mut(|spans| {
        if let Some(spans) = spans {
            spans.push(span);
        }
    });
    result
}

/// Forgets what was collected so far: the container side begins with a copy of the host side's spans.
pub fn forget() {
    SPANS.with_borrow_mut(|spans| {
        if let Some(spans) = spans {
            spans.clear();
        }
    });
}

/// Writes the collected spans to the log.
pub fn flush(log: &Log) {
    let Some(spans) = SPANS.with_borrow_mut(|spans| spans.as_mut().map(std::mem::take)) else { return };
    for span in &spans {
        log.debug(&format!("{}: {} µs", span.name, span.duration_ns / 1_000));
    }
    if !IS_SAMPLED.get() {
        return;
    }
    let time = rfc3339(std::time::SystemTime::now(), 0);
    let lines: String = spans
        .iter()
        .map(|span| {
            format!(
                "{{\"level\":\"debug\",\"msg\":\"span\",\"time\":\"{time}\",\"span\":\"{}\",\"layer\":\"runtime\",\
                 \"start_ns\":{},\"duration_ns\":{}}}\n",
                span.name, span.start_ns, span.duration_ns
            )
        })
        .collect();
    if !lines.is_empty() {
        log.raw(&lines);
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sampled_context_is_measured() {
        assert!(is_sampled("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        assert!(!is_sampled("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"));
        for text in ["", "01", "00-x-y-01", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-z"] {
            assert!(!is_sampled(text), "{text}");
        }
    }
}
