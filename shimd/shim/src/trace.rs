//! The shim's own spans.

use strata_fault::Layer;
use strata_trace::{Span, now_ns};

/// What was begun at `begun_ns` and ends now.
pub(crate) fn span(name: &str, begun_ns: u64) -> Span {
    Span {
        name: name.to_owned(),
        layer: Layer::Shim.as_str().to_owned(),
        start_ns: begun_ns,
        duration_ns: now_ns().saturating_sub(begun_ns),
        detail: String::new(),
    }
}
