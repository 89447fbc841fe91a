//! The trace as one page that needs nothing else: the spans as JSON, and timeline.html around them, which draws them.

use super::Trace;
use super::steps::rows;
use crate::output::json;
use crate::output::value::Value;

/// The page; `@DATA@` is where the trace goes.
const PAGE: &str = include_str!("timeline.html");
const PLACE: &str = "@DATA@";

/// The whole page.
pub(super) fn page(trace: &Trace) -> String {
    let (before, after) = PAGE.split_once(PLACE).unwrap_or((PAGE, ""));
    // `<` is escaped, so that no text of a span can end the script element.
    format!("{before}{}{after}", json::compact_escaped(&data(trace)))
}

fn data(trace: &Trace) -> Value {
    let spans = rows(trace).into_iter().map(|row| {
        Value::structure([
            ("step", row.number.into()),
            ("depth", Value::Int(row.depth as i64)),
            ("name", row.span.name.as_str().into()),
            ("layer", row.span.layer.as_str().into()),
            ("start", row.span.start_ns.saturating_sub(trace.began_ns).into()),
            ("took", row.span.duration_ns.into()),
            ("detail", row.span.detail.as_str().into()),
        ])
    });
    Value::structure([
        ("command", trace.command.as_str().into()),
        ("trace", trace.id.as_str().into()),
        ("total", trace.total_ns().into()),
        ("spans", Value::list(spans)),
    ])
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn the_page_holds_the_spans_and_asks_nobody() {
        let mut trace = sample();
        trace.command = "strata run </script><b>".to_owned();
        let page = page(&trace);
        assert!(page.contains("\"name\":\"mounts\""));
        assert!(!page.contains("</script><b>") && !page.contains(PLACE));
        for outside in ["http://", "https://", "src=", "@import", "fetch("] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
