//! Where lowrun's words go: the log file of `--log` (runc's text or JSON form) or stderr.
//!
//! The JSON lines are runc's, `{"level","msg","time"}`, and an error's has Strata's fields beside them; the last error
//! line is what a caller reads. One line is one `write(2)` to a file opened for appending, so that the host side and the
//! container side of one lowrun may write to the same file.

use std::cell::{Cell, OnceCell};
use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use serde::Serialize;

use crate::fault::{Attempt, Code, Fault, Result};
use crate::sys::Call;

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `time="…" level=error msg="…"`.
    #[default]
    Text,
    /// One object per line.
    Json,
}

/// How grave a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Debug,
    Info,
    Warning,
    Error,
}

/// The log of one invocation.
#[derive(Debug, Default)]
pub struct Log {
    file: Option<OwnedFd>,
    format: Format,
    debug: bool,
    /// The command, where lowrun stands in for runc and was called by that name.
    of_runc: OnceCell<&'static str>,
    /// Whether the descriptor of `file` is one of stderr by now.
    is_let_go: Cell<bool>,
}

#[derive(Serialize)]
struct Line<'a> {
    level: Level,
    msg: &'a str,
    time: &'a str,
    #[serde(flatten)]
    fault: Option<&'a Fault>,
}

impl Log {
    /// Opens `path` for appending; without a path lines go to stderr.
    pub fn open(path: Option<&OsString>, format: Format, debug: bool) -> Result<Log> {
        let file = path.map(open_append).transpose()?;
        Ok(Log { file, format, debug, ..Log::default() })
    }

    /// From here on a person is told of faults in the frame of runc's sentences, which scripts look for.
    pub fn speak_as_runc(&self, command: &'static str) {
        // Said once, by the one command of an invocation.
        let _ = self.of_runc.set(command);
    }

    /// Writes an error with all its fields, and in any case one line to stderr.
    pub fn fault(&self, fault: &Fault) {
        let line = fault.one_line();
        if self.file.is_some() || self.format == Format::Json {
            self.write(Level::Error, &line, Some(fault));
        }
        let hint = fault.hint.as_ref().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
        if self.file.is_some() || self.format == Format::Text {
            put(None, &format!("{}{hint}\n", self.spoken(fault, &line)));
        }
    }

    /// What stderr is told. Of a program that the kernel refuses to execute, the same as from runc: there the container's
    /// own stderr gets the words, and people know them from the container's log.
    fn spoken(&self, fault: &Fault, line: &str) -> String {
        match (fault.causes.last(), self.of_runc.get()) {
            (Some(refusal), _) if fault.step == "start:exec" => refusal.clone(),
            // The word "error" is what scripts go by.
            (_, None) => format!("lowrun: error: {}: {line}", fault.step),
            (_, Some(command)) if self.file.is_some() => framed(command, &fault.step, line),
            // Without a log, runc's stderr is the log.
            (_, Some(command)) => {
                let line = framed(command, &fault.step, line);
                text_line(Level::Error, &line, &rfc3339(SystemTime::now(), 0)).unwrap_or(line)
            }
        }
    }

    /// Something that a person should know and that stops nothing.
    pub fn warn(&self, message: &str) {
        self.write(Level::Warning, message, None);
    }

    /// Whether debug lines are wanted.
    pub fn is_debug(&self) -> bool {
        self.debug
    }

    /// What `--debug` shows.
    pub fn debug(&self, message: &str) {
        if self.debug {
            self.write(Level::Debug, message, None);
        }
    }

    /// A line that is JSON already (the spans of a trace); only for a log file.
    pub fn raw(&self, lines: &str) {
        if self.file.is_some() && !self.is_let_go.get() {
            put(self.file.as_ref(), lines);
        }
    }

    /// The log file's descriptor.
    pub fn descriptor(&self) -> Option<RawFd> {
        self.file.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Lets go of the file, which nobody who looks into this process may find. Faults are told on stderr from here on, and
    /// nothing else is. The number stays taken: what had it next would be written to.
    pub fn let_go(&self) -> crate::sys::Result<()> {
        let Some(file) = self.descriptor() else { return Ok(()) };
        crate::sys::process::replace(file, rustix::stdio::stderr())?;
        self.is_let_go.set(true);
        Ok(())
    }

    fn write(&self, level: Level, message: &str, fault: Option<&Fault>) {
        if self.is_let_go.get() {
            return;
        }
        let time = rfc3339(SystemTime::now(), 0);
        let line = match self.format {
            Format::Json => serde_json::to_string(&Line { level, msg: message, time: &time, fault }),
            Format::Text => text_line(level, message, &time),
        };
        // Nothing here fails to serialise; were it so, the message itself is better than silence.
        put(self.file.as_ref(), &(line.unwrap_or_else(|_| message.to_owned()) + "\n"));
    }
}

fn open_append(path: &OsString) -> Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))
        .call("open")
        .attempt(Code::InvalidArgument, || format!("open the log {}", path.display()))
}

fn text_line(level: Level, message: &str, time: &str) -> serde_json::Result<String> {
    let level = serde_json::to_string(&level)?;
    Ok(format!("time={time:?} level={} msg={}", level.trim_matches('"'), serde_json::to_string(message)?))
}

/// As runc says which command failed, and whether on the container's side of it.
fn framed(command: &str, step: &str, line: &str) -> String {
    let (_, part) = step.split_once(':').unwrap_or_default();
    let command = match command {
        "create" | "run" | "restore" => format!("runc {command} failed: "),
        "exec" => "exec failed: ".to_owned(),
        _ => String::new(),
    };
    let side = match part {
        _ if command.is_empty() => "",
        "mounts" => "unable to start container process: error during container init: error mounting: ",
        "cgroup" => "unable to start container process: unable to apply cgroup configuration: ",
        "program" | "exec" => "unable to start container process: ",
        "init" | "devices" | "pivot" | "console" | "sysctl" | "masks" | "process" | "user" => {
            "unable to start container process: error during container init: "
        }
        _ => "",
    };
    format!("{command}{side}{line}")
}

/// A log that cannot be written to has nowhere to be reported: the exit status still tells.
fn put(file: Option<&OwnedFd>, line: &str) {
    let _ = match file {
        Some(file) => rustix::io::write(file, line.as_bytes()),
        None => rustix::io::write(rustix::stdio::stderr(), line.as_bytes()),
    };
}

/// `2026-11-23T21:06:07Z`, with `digits` (0 or 9) of the second's fraction.
pub fn rfc3339(time: SystemTime, digits: usize) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days as i64);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    let fraction = if digits == 0 { String::new() } else { format!(".{:09}", since.subsec_nanos()) };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// Year, month and day of a day number since 1970, in the Gregorian calendar (years counted from March, so that the
/// leap day is the last of its year).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> String {
        rfc3339(UNIX_EPOCH + Duration::from_secs(seconds), 0)
    }

    #[test]
    fn times_are_rfc3339() {
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_795_467_967), "2026-11-23T21:06:07Z");
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_nanos(1_000_000_007), 9), "1970-01-01T00:00:01.000000007Z");
    }

    #[test]
    fn under_the_name_of_runc_a_person_reads_its_sentences() {
        let said = |command: Option<&'static str>, fault: &Fault| {
            let log = Log::default();
            command.into_iter().for_each(|command| log.speak_as_runc(command));
            log.spoken(fault, &fault.one_line())
        };
        let fault = Fault::new(Code::MountFailed, "bind a at b").cause("operation not permitted").at("create:mounts");
        let frame = "level=error msg=\"runc run failed: unable to start container process: error during container init: \
                     error mounting: bind a at b: operation not permitted\"";
        assert!(said(Some("run"), &fault).ends_with(frame), "{}", said(Some("run"), &fault));
        assert!(said(Some("delete"), &fault).ends_with("msg=\"bind a at b: operation not permitted\""));
        assert_eq!(said(None, &fault), "lowrun: error: create:mounts: bind a at b: operation not permitted");
        let fault = Fault::new(Code::CommandNotFound, "exec: \"x\"").at("exec:program");
        let expected = "exec failed: unable to start container process: exec: \"x\"";
        assert_eq!(framed("exec", &fault.step, &fault.one_line()), expected);
        let fault =
            Fault::new(Code::CgroupFailed, "make cgroup /a").cause("mkdir: permission denied").at("create:cgroup");
        let frame = "runc run failed: unable to start container process: unable to apply cgroup configuration: make \
                     cgroup /a: mkdir: permission denied";
        assert_eq!(framed("run", &fault.step, &fault.one_line()), frame);
        let refused = Fault::new(Code::CommandNotExecutable, "exec: \"x\"").cause("exec x: no").at("start:exec");
        assert_eq!(said(Some("create"), &refused), "exec x: no");
    }

    #[test]
    fn an_error_line_has_the_fields_of_runc_and_of_strata() {
        let fault = Fault::new(Code::SpecInvalid, "mounts[0]").cause("no destination").at("create:plan");
        let line = Line { level: Level::Error, msg: &fault.one_line(), time: "t", fault: Some(&fault) };
        let value = serde_json::to_value(&line).unwrap();
        assert_eq!(value["level"], "error");
        assert_eq!(value["msg"], "mounts[0]: no destination");
        assert_eq!(value["step"], "create:plan");
        assert_eq!(value["code"], "SPEC_INVALID");
        assert_eq!(value["layer"], "runtime");
        assert_eq!(value["causes"][0], "no destination");
    }
}
