//! What a runtime says in its JSON log: why it failed, and, when it was asked to tell, where the time went.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::Deserialize;
use strata_fault::{Fault, GrpcCode, Layer, code};
use strata_trace::{SPANS_MAX, Span};

/// Most bytes of a log that are looked at; the end counts.
const READ_MAX: u64 = 256 << 10;

/// One line of the log. runc and crun write the first two; the others are lowrun's.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    level: String,
    msg: String,
    layer: String,
    step: String,
    code: String,
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
    span: String,
    detail: String,
    start_ns: u64,
    duration_ns: u64,
}

/// What was found.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Told {
    /// From the last error line.
    pub(crate) fault: Option<Fault>,
    /// In the order of the lines.
    pub(crate) spans: Vec<Span>,
}

/// Reads the log at `path` from `offset` on; `step` is what the runtime was asked to do. A log that cannot be read says
/// nothing: the runtime may never have come so far.
pub(crate) fn read(path: &Path, offset: u64, step: &str) -> Told {
    parse(&bytes(path, offset).unwrap_or_default(), step)
}

fn bytes(path: &Path, offset: u64) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let end = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(offset.max(end.saturating_sub(READ_MAX))))?;
    let mut bytes = Vec::new();
    file.take(READ_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn parse(bytes: &[u8], step: &str) -> Told {
    let mut told = Told::default();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Ok(line) = serde_json::from_slice::<Line>(line) else { continue };
        if !line.span.is_empty() {
            if told.spans.len() < SPANS_MAX {
                told.spans.push(span(line));
            }
        } else if matches!(line.level.as_str(), "error" | "fatal" | "panic") {
            told.fault = Some(fault(line, step));
        }
    }
    told
}

fn span(line: Line) -> Span {
    let layer = if line.layer.is_empty() { Layer::Runtime.as_str().to_owned() } else { line.layer };
    Span { name: line.span, layer, start_ns: line.start_ns, duration_ns: line.duration_ns, detail: line.detail }
}

fn fault(line: Line, step: &str) -> Fault {
    match Layer::parse(&line.layer) {
        Some(layer) if !line.code.is_empty() => {
            let mut fault = Fault::new(layer, line.step, line.code, line.message);
            fault.causes = line.causes;
            fault.hint = line.hint;
            fault
        }
        _ => foreign(&line.msg, step),
    }
}

/// A fault in the words of a runtime that says no more than words, with the beginning that containerd's clients know
/// from its own shim.
pub(crate) fn foreign(words: &str, step: &str) -> Fault {
    let fault = Fault::new(Layer::Runtime, step, guessed(words), format!("OCI runtime {step} failed: {words}"));
    // containerd's shim gives these no class, and its clients print it.
    fault.grpc(GrpcCode::Unknown)
}

/// What runc's and crun's words mean for the exit status of a client.
fn guessed(words: &str) -> &'static str {
    let is_about_command = words.contains("exec: ") || words.contains("executable file");
    if words.contains("executable file not found") || is_about_command && words.contains("no such file or directory") {
        code::COMMAND_NOT_FOUND
    } else if is_about_command && words.to_ascii_lowercase().contains("permission denied") {
        code::COMMAND_NOT_EXECUTABLE
    } else {
        code::UNKNOWN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowruns_last_error_counts_and_is_whole() {
        let log = br#"{"level":"warning","msg":"x"}
{"level":"error","msg":"a: b","layer":"runtime","step":"create","code":"X","message":"first"}
{"level":"error","msg":"m: c","layer":"kernel","step":"create:mounts","code":"NO_SPACE","message":"m","causes":["c"],"hint":"h"}
{"level":"error","msg":"torn"#;
        let fault = parse(log, "create").fault.unwrap();
        assert_eq!(fault, Fault::new(Layer::Kernel, "create:mounts", code::NO_SPACE, "m").cause("c").hint("h"));
    }

    #[test]
    fn runcs_words_are_kept_and_understood() {
        let log = br#"{"level":"error","msg":"runc create failed: unable to start container process: exec: \"nope\": executable file not found in $PATH","time":"2024-01-01T00:00:00Z"}"#;
        let fault = parse(log, "create").fault.unwrap();
        assert_eq!((fault.layer, fault.code.as_str()), (Layer::Runtime, code::COMMAND_NOT_FOUND));
        assert!(fault.message.starts_with("OCI runtime create failed: runc create failed: unable"), "{fault}");
        assert_eq!(guessed("exec: \"/x\": permission denied"), code::COMMAND_NOT_EXECUTABLE);
        assert_eq!(guessed("exec: \"/x\": stat /x: no such file or directory"), code::COMMAND_NOT_FOUND);
        assert_eq!(guessed("mount /x: no such file or directory"), code::UNKNOWN);
    }

    #[test]
    fn spans_are_taken_in_order() {
        let log = br#"{"level":"debug","msg":"span","span":"clone","layer":"runtime","start_ns":5,"duration_ns":7}
{"level":"debug","msg":"span","span":"mounts","start_ns":6,"duration_ns":1}"#;
        let spans = parse(log, "create").spans;
        assert_eq!((spans[0].name.as_str(), spans[0].start_ns, spans[0].duration_ns), ("clone", 5, 7));
        assert_eq!((spans[1].name.as_str(), spans[1].layer.as_str()), ("mounts", "runtime"));
    }

    #[test]
    fn a_log_that_is_not_there_says_nothing() {
        assert_eq!(read(Path::new("/nonexistent/log.json"), 0, "create"), Told::default());
    }
}
