//! `--trace`: the spans of one request, from every layer, shown as the table of a run's ten steps, as a page for a browser
//! or as a file for Perfetto.
//!
//! The client marks its requests with a sampled traceparent; engined hands the spans of all layers back. The client adds
//! its own: parse, watch, report.

mod chrome;
mod html;
mod steps;
mod table;

use std::io::Write;
use std::path::{Path, PathBuf};

use prost::Message;
use strata_trace::{SPANS_TRAILER, Span, Spans, TRACEPARENT, TraceParent, now_ns};
use tonic::metadata::{MetadataMap, MetadataValue};

use crate::error::Error;

const CLIENT: &str = "client";

/// Where a trace goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// The table, on standard error.
    Terminal,
    /// A page or Perfetto's format, by the file's ending.
    File(PathBuf),
}

impl Destination {
    /// Reads the value of `--trace`.
    pub(crate) fn parse(text: &str) -> Result<Destination, String> {
        if is_file(text) {
            return Ok(Destination::File(text.into()));
        }
        Err("the file's name must end in .html (a timeline for a browser) or .json (for Perfetto)".to_owned())
    }
}

/// Whether a word can be the file of `--trace`.
pub(crate) fn is_file(word: &str) -> bool {
    let ending = Path::new(word).extension();
    ending.is_some_and(|ending| ending == "html" || ending == "json")
}

/// Gathers spans.
pub(crate) struct Recorder {
    parent: TraceParent,
    spans: Vec<Span>,
    began_ns: u64,
}

impl Recorder {
    /// A recorder of a call that began at `began_ns`.
    pub(crate) fn new(began_ns: u64) -> Recorder {
        let mut random = [0u8; 24];
        // Ids need not be secret; where the kernel has no random bytes yet, zeros become ones.
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK);
        let (trace, parent) = random.split_at(16);
        let trace = trace.iter().fold(0u128, |id, byte| id << 8 | u128::from(*byte));
        let parent = parent.iter().fold(0u64, |id, byte| id << 8 | u64::from(*byte));
        Recorder { parent: TraceParent::sampled(trace, parent), spans: Vec::new(), began_ns }
    }

    /// Puts the trace context into a request.
    pub(crate) fn mark(&self, metadata: &mut MetadataMap) {
        if let Ok(value) = MetadataValue::try_from(self.parent.to_string()) {
            metadata.insert(TRACEPARENT, value);
        }
    }

    /// Takes the spans that came as metadata.
    pub(crate) fn take_trailer(&mut self, metadata: &MetadataMap) {
        let bytes = metadata.get_bin(SPANS_TRAILER).and_then(|value| value.to_bytes().ok());
        if let Some(bytes) = bytes {
            self.take_bytes(&bytes);
        }
    }

    /// Takes encoded spans; what is not readable is somebody else's.
    pub(crate) fn take_bytes(&mut self, bytes: &[u8]) {
        if let Ok(more) = Spans::decode(bytes) {
            // engined may send them as a message and in the trailer too.
            self.spans.extend(more.spans.into_iter().filter(|span| !self.spans.contains(span)).collect::<Vec<_>>());
        }
    }

    /// Adds a span of the client that began at `start_ns` and ends now.
    pub(crate) fn add(&mut self, name: &str, start_ns: u64) {
        self.add_between(name, start_ns, now_ns());
    }

    /// Adds a span of the client.
    pub(crate) fn add_between(&mut self, name: &str, start_ns: u64, end_ns: u64) {
        let duration_ns = end_ns.saturating_sub(start_ns);
        let (name, layer) = (name.to_owned(), CLIENT.to_owned());
        self.spans.push(Span { name, layer, start_ns, duration_ns, detail: String::new() });
    }

    /// Shows or writes what was gathered.
    pub(crate) fn finish(self, command: &str, destination: &Destination) -> Result<(), Error> {
        let trace = Trace {
            command: command.to_owned(),
            id: self.parent.trace_id(),
            began_ns: self.began_ns,
            spans: self.spans,
        };
        match destination {
            Destination::Terminal => std::io::stderr()
                .lock()
                .write_all(table::text(&trace).as_bytes())
                .map_err(|source| Error::Terminal { attempted: "write the trace to standard error", source }),
            Destination::File(path) => {
                let html = path.extension().is_some_and(|ending| ending == "html");
                let text = if html { html::page(&trace) } else { chrome::document(&trace) };
                std::fs::write(path, text).map_err(|source| Error::File {
                    attempted: "write the trace to",
                    path: path.clone(),
                    source,
                })
            }
        }
    }
}

/// A call and its spans.
pub(crate) struct Trace {
    /// As it was typed.
    command: String,
    /// 32 hex digits.
    id: String,
    began_ns: u64,
    spans: Vec<Span>,
}

impl Trace {
    /// From the beginning of the call to the end of its last span.
    fn total_ns(&self) -> u64 {
        let end = self.spans.iter().map(end_ns).max().unwrap_or(self.began_ns);
        end.saturating_sub(self.began_ns)
    }
}

fn end_ns(span: &Span) -> u64 {
    span.start_ns.saturating_add(span.duration_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run as the layers would tell it, microseconds after its beginning at 1 ms.
    pub(super) fn sample() -> Trace {
        let span = |name: &str, layer: &str, at_us: u64, took_us: u64, detail: &str| Span {
            name: name.to_owned(),
            layer: layer.to_owned(),
            start_ns: 1_000_000 + at_us * 1000,
            duration_ns: took_us * 1000,
            detail: detail.to_owned(),
        };
        Trace {
            command: "strata run --trace busybox true".to_owned(),
            id: "0af7651916cd43dd8448eb211c80319c".to_owned(),
            began_ns: 1_000_000,
            spans: vec![
                span("parse", "client", 0, 800, ""),
                span("validate", "engine", 900, 200, "busybox"),
                span("configure", "engine", 1100, 300, ""),
                span("take-over", "supervisor", 1400, 400, ""),
                span("assemble", "supervisor", 1800, 600, ""),
                span("connect", "network", 1850, 500, "bridge"),
                span("create", "engine", 2400, 3000, ""),
                span("create", "shim", 2600, 2700, ""),
                span("clone", "runtime", 2800, 400, ""),
                span("mounts", "runtime", 3200, 900, "12 mounts <&>"),
                span("start", "shim", 5400, 700, ""),
                span("watch", "client", 6100, 3000, ""),
                span("report", "client", 9100, 100, ""),
            ],
        }
    }

    #[test]
    fn spans_come_from_metadata_once() {
        let mut recorder = Recorder::new(0);
        let spans = Spans { spans: sample().spans };
        let mut metadata = MetadataMap::new();
        metadata.insert_bin(SPANS_TRAILER, MetadataValue::from_bytes(&spans.encode_to_vec()));
        recorder.take_trailer(&metadata);
        recorder.take_trailer(&metadata);
        recorder.take_bytes(b"\xff\xff");
        assert_eq!(recorder.spans.len(), spans.spans.len());
        let mut metadata = MetadataMap::new();
        recorder.mark(&mut metadata);
        let sent = metadata.get(TRACEPARENT).unwrap().to_str().unwrap();
        assert!(TraceParent::parse(sent).unwrap().is_sampled());
    }

    #[test]
    fn the_file_decides_the_form() {
        assert_eq!(Destination::parse("a.html"), Ok(Destination::File("a.html".into())));
        assert_eq!(Destination::parse("/x/a.json"), Ok(Destination::File("/x/a.json".into())));
        assert!(Destination::parse("a.txt").is_err());
        assert!(!is_file("busybox"));
    }
}
