//! The trace in the format that Perfetto and chrome://tracing read: JSON, a complete event per span, a track per layer.

use super::Trace;
use crate::output::json;
use crate::output::value::Value;

/// The layers in the order of the way down, each a track.
const TRACKS: [&str; 9] =
    ["client", "engine", "registry", "network", "supervisor", "shim", "runtime", "kernel", "application"];

/// The whole document.
pub(super) fn document(trace: &Trace) -> String {
    let names = TRACKS.iter().enumerate().map(|(track, layer)| {
        Value::structure([
            ("name", "thread_name".into()),
            ("ph", "M".into()),
            ("pid", Value::Int(1)),
            ("tid", Value::Int(track as i64 + 1)),
            ("args", Value::structure([("name", (*layer).into())])),
        ])
    });
    let spans = trace.spans.iter().map(|span| {
        Value::structure([
            ("name", span.name.as_str().into()),
            ("cat", span.layer.as_str().into()),
            ("ph", "X".into()),
            ("ts", micros(span.start_ns.saturating_sub(trace.began_ns))),
            ("dur", micros(span.duration_ns)),
            ("pid", Value::Int(1)),
            ("tid", Value::Int(track(&span.layer))),
            ("args", Value::structure([("detail", span.detail.as_str().into())])),
        ])
    });
    let document = Value::structure([
        ("displayTimeUnit", "ms".into()),
        (
            "otherData",
            Value::structure([("command", trace.command.as_str().into()), ("trace", trace.id.as_str().into())]),
        ),
        ("traceEvents", Value::list(names.chain(spans))),
    ]);
    format!("{}\n", json::compact(&document))
}

fn track(layer: &str) -> i64 {
    TRACKS.iter().position(|known| *known == layer).map_or(TRACKS.len() as i64 + 1, |track| track as i64 + 1)
}

fn micros(ns: u64) -> Value {
    Value::Float(ns as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn it_is_json_with_an_event_per_span() {
        let document: serde_json::Value = serde_json::from_str(&document(&sample())).unwrap();
        let events = document["traceEvents"].as_array().unwrap();
        let spans: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
        assert_eq!(spans.len(), sample().spans.len());
        assert_eq!((spans[1]["name"].as_str(), spans[1]["ts"].as_f64()), (Some("validate"), Some(900.0)));
    }
}
