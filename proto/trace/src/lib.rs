//! The spans of one request, as they cross Strata's seams.
//!
//! A caller that wants a trace sends a W3C `traceparent` with the sampled flag: as gRPC metadata, as ttrpc metadata, or
//! to lowrun in the environment (`TRACEPARENT`). The callee hands its spans back with the answer: in the gRPC trailer
//! [`SPANS_TRAILER`], in the ttrpc response's extension field, or as lines of lowrun's log. So nobody needs a collector
//! to see where the time of a run went, and nothing is measured when nobody asked.
//!
//! Times are of `CLOCK_MONOTONIC` on the one machine that all layers share; they need no adjustment between processes.

#[cfg(feature = "collect")]
pub mod collect;

use std::fmt;

use prost::Message;

/// gRPC trailer with an encoded [`Spans`].
pub const SPANS_TRAILER: &str = "strata-spans-bin";
/// gRPC and ttrpc metadata key, and (in capitals) environment variable, of the trace context.
pub const TRACEPARENT: &str = "traceparent";
/// Most spans that one answer hands back: a gRPC trailer is a header, and headers are bounded.
pub const SPANS_MAX: usize = 128;

/// One timed piece of work.
#[derive(Clone, PartialEq, Message)]
pub struct Span {
    /// What was done, a standard term: `pull`, `assemble`, `clone`, `pivot`.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The layer's word as in `strata_fault::Layer`.
    #[prost(string, tag = "2")]
    pub layer: String,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    #[prost(uint64, tag = "3")]
    pub start_ns: u64,
    /// Nanoseconds.
    #[prost(uint64, tag = "4")]
    pub duration_ns: u64,
    /// What it was done to (an image, a path), for people; empty when there is nothing to say.
    #[prost(string, tag = "5")]
    pub detail: String,
}

/// The spans that come with one answer.
#[derive(Clone, PartialEq, Message)]
pub struct Spans {
    /// In the order in which they ended.
    #[prost(message, repeated, tag = "1")]
    pub spans: Vec<Span>,
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A W3C trace context (<https://www.w3.org/TR/trace-context/>, version 00).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    trace: u128,
    parent: u64,
    sampled: bool,
}

impl TraceParent {
    /// A sampled context of a new trace; `trace` and `parent` are random and not zero.
    pub fn sampled(trace: u128, parent: u64) -> TraceParent {
        TraceParent { trace: trace.max(1), parent: parent.max(1), sampled: true }
    }

    /// Reads `00-<32 hex>-<16 hex>-<2 hex>`; `None` for anything else.
    pub fn parse(text: &str) -> Option<TraceParent> {
        let mut parts = text.split('-');
        let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if version != "00" || parts.next().is_some() || trace.len() != 32 || parent.len() != 16 || flags.len() != 2 {
            return None;
        }
        let trace = u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)?;
        let parent = u64::from_str_radix(parent, 16).ok().filter(|id| *id != 0)?;
        Some(TraceParent { trace, parent, sampled: u8::from_str_radix(flags, 16).ok()? & 1 == 1 })
    }

    /// Whether the caller wants the spans.
    pub fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// The trace's id, 32 hex digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace)
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.parent, u8::from(self.sampled))
    }
}

impl fmt::Debug for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparent_is_read_and_written() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parsed = TraceParent::parse(text).unwrap();
        assert!(parsed.is_sampled());
        assert_eq!(parsed.to_string(), text);
    }

    #[test]
    fn what_is_not_a_traceparent_is_refused() {
        for text in ["", "00-0-0-01", "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "00-x-y-z"] {
            assert_eq!(TraceParent::parse(text), None, "{text}");
        }
        let zero = format!("00-{}-{}-01", "0".repeat(32), "0".repeat(16));
        assert_eq!(TraceParent::parse(&zero), None);
    }
}
