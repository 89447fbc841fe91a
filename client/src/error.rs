//! What can go wrong in the client, and how it is told.
//!
//! Inside the client an error is an [`Error`]; where it is shown it becomes a `Fault` (the form errors have on every
//! seam): one line `strata: layer: step: message`, then its causes and a hint, or one JSON object when STRATA_ERRORS=json.
//! What engined said is passed on unchanged. Exit codes are docker's.

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;

use strata_fault::{Fault, GrpcCode, Layer, code};

use crate::output::json;
use crate::output::value::Value;

/// Exit code of a flag that is wrong, and of a run that the engine could not make.
pub(crate) const EXIT_ENGINE: u8 = 125;
const EXIT_CANNOT_INVOKE: u8 = 126;
const EXIT_NOT_FOUND: u8 = 127;
/// Exit code of every other failure.
pub(crate) const EXIT_FAILURE: u8 = 1;

/// Chooses the form errors are printed in; the value `json` is the only one.
const FORMAT_VARIABLE: &str = "STRATA_ERRORS";

/// A failure of the client.
#[derive(Debug)]
pub(crate) enum Error {
    /// A flag or command that is not there, or a flag whose value is not accepted.
    Usage { message: String, hint: Option<String> },
    /// Too few or too many words, which docker does not count as a wrong flag.
    Arity { message: String, hint: String },
    /// Flags or a state that do not go together.
    Refused { message: String, hint: Option<String> },
    /// A file that the person named.
    File { attempted: &'static str, path: PathBuf, source: io::Error },
    /// A file that the person named, whose content is not accepted.
    Content { attempted: &'static str, path: PathBuf, why: String },
    /// The daemon's address is not one that the client speaks.
    Address(String),
    /// Nobody answers at the daemon's address.
    Connect { path: PathBuf, source: io::Error },
    /// The HTTP/2 connection could not be set up.
    Handshake { path: PathBuf, source: hyper::Error },
    /// What engined, or a layer below it, said.
    Engine(Box<Fault>),
    /// The connection to engined ended in the middle of something.
    Broken { during: &'static str, source: tonic::Status },
    /// A connection that broke and could not be set up again.
    GaveUp { after_s: u64, source: Box<Error> },
    /// The terminal or one of the standard streams.
    Terminal { attempted: &'static str, source: io::Error },
    /// A `--format` that does not parse or does not fit what it is applied to.
    Template(String),
    /// A credential helper that Docker's configuration names.
    Credentials { attempted: String, why: String },
    /// A program's terminal cannot be fed from what is no terminal.
    NotTerminal,
    /// Said already, item by item.
    Reported(u8),
}

/// Which commands' exit codes tell apart why a program could not start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitRule {
    /// `run`: 127 and 126 for a program that is not there or cannot be executed, else 125.
    Run,
    /// `exec`: the same two, else 1.
    Exec,
    /// Whatever fails is 1.
    Plain,
}

impl Error {
    /// A flag whose value is not accepted, in docker's words.
    pub(crate) fn flag_value(flag: &str, value: &str, why: impl fmt::Display) -> Error {
        Error::Usage { message: format!("invalid argument \"{value}\" for \"{flag}\" flag: {why}"), hint: None }
    }

    pub(crate) fn refused(message: impl Into<String>) -> Error {
        Error::Refused { message: message.into(), hint: None }
    }

    /// Standard output is gone because its reader went: nothing to tell anybody.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Error::Terminal { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }

    /// The code of the fault behind this error, for commands that act upon it.
    pub(crate) fn code(&self) -> &str {
        match self {
            Error::Engine(fault) => &fault.code,
            _ => "",
        }
    }

    /// docker's exit code for this error.
    pub(crate) fn exit_code(&self, rule: ExitRule) -> u8 {
        match self {
            Error::Usage { .. } => EXIT_ENGINE,
            Error::Arity { .. } | Error::NotTerminal => EXIT_FAILURE,
            Error::Reported(code) => *code,
            Error::Broken { .. } | Error::GaveUp { .. } => EXIT_ENGINE,
            Error::Engine(fault) if rule != ExitRule::Plain && fault.code == code::COMMAND_NOT_FOUND => EXIT_NOT_FOUND,
            Error::Engine(fault) if rule != ExitRule::Plain && fault.code == code::COMMAND_NOT_EXECUTABLE => {
                EXIT_CANNOT_INVOKE
            }
            _ if rule == ExitRule::Run => EXIT_ENGINE,
            _ => EXIT_FAILURE,
        }
    }

    /// This error in the form of every seam.
    pub(crate) fn fault(&self) -> Fault {
        let invalid = |message: &str| Fault::new(Layer::Client, "parse", code::INVALID_ARGUMENT, message);
        match self {
            Error::Usage { message, hint } | Error::Refused { message, hint } => {
                Fault { hint: hint.clone(), ..invalid(message) }
            }
            Error::Arity { message, hint } => invalid(message).hint(hint),
            Error::File { attempted, path, source } => {
                Fault::new(Layer::Client, "parse", file_code(source), format!("{attempted} {}", path.display()))
                    .caused_by(source)
            }
            Error::Content { attempted, path, why } => invalid(&format!("{attempted} {}", path.display())).cause(why),
            Error::Address(address) => invalid(&format!("the daemon's address \"{address}\" is not a unix socket"))
                .hint("write it as unix:///path/to/engined.sock, in --host or STRATA_HOST"),
            Error::Connect { path, source } => connect_fault(path, source),
            Error::Handshake { path, source } => Fault::new(
                Layer::Client,
                "connect",
                code::DAEMON_UNREACHABLE,
                format!("speak HTTP/2 with engined at {}", path.display()),
            )
            .caused_by(source)
            .hint("is it engined's socket? STRATA_HOST or --host names it"),
            Error::Engine(fault) => (**fault).clone(),
            Error::Broken { during, source } => broken_fault(during, source),
            Error::GaveUp { after_s, source } => gave_up_fault(*after_s, &source.fault()),
            Error::Terminal { attempted, source } => {
                Fault::new(Layer::Client, "watch", "TERMINAL", *attempted).caused_by(source)
            }
            Error::Template(why) => invalid("parse the template of --format").cause(why),
            Error::Credentials { attempted, why } => {
                Fault::new(Layer::Client, "validate", "CREDENTIALS", attempted).cause(why)
            }
            Error::NotTerminal => {
                invalid("cannot attach stdin to a TTY-enabled container because stdin is not a terminal")
                    .hint("leave out -t")
            }
            Error::Reported(_) => Fault::new(Layer::Client, "report", code::UNKNOWN, "some of it failed"),
        }
    }
}

fn file_code(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => code::PERMISSION_DENIED,
        _ => code::INVALID_ARGUMENT,
    }
}

fn connect_fault(path: &std::path::Path, source: &io::Error) -> Fault {
    let shown = path.display();
    let (word, hint) = match source.kind() {
        io::ErrorKind::PermissionDenied => (
            code::PERMISSION_DENIED,
            "the socket belongs to root and its group: use sudo, or become a member of that group".to_owned(),
        ),
        io::ErrorKind::NotFound => (
            code::DAEMON_UNREACHABLE,
            "there is no such socket: start engined, or name its socket with --host or STRATA_HOST".to_owned(),
        ),
        io::ErrorKind::ConnectionRefused => (
            code::DAEMON_UNREACHABLE,
            "the socket is there but nobody listens: engined has ended; start it again".to_owned(),
        ),
        _ => (code::DAEMON_UNREACHABLE, "is engined running? --host or STRATA_HOST names its socket".to_owned()),
    };
    Fault::new(Layer::Client, "connect", word, format!("connect to engined at {shown}")).caused_by(source).hint(hint)
}

fn broken_fault(during: &str, source: &tonic::Status) -> Fault {
    let mut fault = Fault::new(
        Layer::Client,
        during,
        code::DAEMON_UNREACHABLE,
        format!("the connection to engined ended during {during}"),
    );
    fault.grpc = GrpcCode::Unavailable;
    fault.causes.push(source.message().to_owned());
    let mut next = std::error::Error::source(source);
    while let Some(cause) = next {
        let text = cause.to_string();
        if fault.causes.last() != Some(&text) {
            fault.causes.push(text);
        }
        next = cause.source();
    }
    fault
}

fn gave_up_fault(after_s: u64, last: &Fault) -> Fault {
    let mut fault = Fault::new(
        Layer::Client,
        "watch",
        code::DAEMON_UNREACHABLE,
        format!("lost the connection to engined and could not restore it in {after_s} s"),
    )
    .cause(&last.message)
    .hint("the container goes on without it; when engined is back, `strata attach` and `strata logs` find it");
    fault.causes.extend(last.causes.iter().cloned());
    fault
}

/// Prints `error` on standard error in the form that is asked for.
pub(crate) fn report(error: &Error) {
    if !matches!(error, Error::Reported(_)) {
        print(&error.fault());
    }
}

/// Prints `fault` on standard error in the form that is asked for.
pub(crate) fn print(fault: &Fault) {
    crate::terminal::raw::leave();
    let text = if std::env::var_os(FORMAT_VARIABLE).is_some_and(|form| form == "json") {
        in_json(fault)
    } else {
        in_words(fault)
    };
    // Nobody is left to tell when standard error is closed.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

fn in_words(fault: &Fault) -> String {
    let mut text = format!("strata: {}: {}: {}\n", fault.layer, fault.step, fault.message);
    for cause in &fault.causes {
        text.push_str(&format!("  cause: {}\n", cause.replace('\n', "\n         ")));
    }
    if let Some(hint) = &fault.hint {
        text.push_str(&format!("  hint: {}\n", hint.replace('\n', "\n        ")));
    }
    text
}

fn in_json(fault: &Fault) -> String {
    let words = |text: &str| Value::from(text);
    let object = Value::structure([
        ("layer", words(fault.layer.as_str())),
        ("step", words(&fault.step)),
        ("code", words(&fault.code)),
        ("message", words(&fault.message)),
        ("causes", Value::list(fault.causes.iter().map(|cause| words(cause)))),
        ("hint", fault.hint.as_deref().map_or(Value::Null, words)),
    ]);
    format!("{}\n", json::compact(&object))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_told_with_its_causes_and_hint() {
        let fault = Fault::new(Layer::Kernel, "create:mounts", code::MOUNT_SOURCE_MISSING, "mount /x on /y")
            .cause("open_tree(/x)")
            .cause("no such file")
            .hint("create /x");
        assert_eq!(
            in_words(&fault),
            "strata: kernel: create:mounts: mount /x on /y\n  cause: open_tree(/x)\n  cause: no such file\n  hint: create /x\n"
        );
        assert_eq!(
            in_json(&fault),
            "{\"layer\":\"kernel\",\"step\":\"create:mounts\",\"code\":\"MOUNT_SOURCE_MISSING\",\"message\":\"mount /x on /y\",\
             \"causes\":[\"open_tree(/x)\",\"no such file\"],\"hint\":\"create /x\"}\n"
        );
    }

    #[test]
    fn exit_codes_are_dockers() {
        let engine = |word: &str| Error::Engine(Box::new(Fault::new(Layer::Runtime, "start", word, "x")));
        for (error, codes) in [
            (engine(code::COMMAND_NOT_FOUND), [127, 127, 1]),
            (engine(code::COMMAND_NOT_EXECUTABLE), [126, 126, 1]),
            (engine(code::IMAGE_NOT_FOUND), [125, 1, 1]),
            (Error::Usage { message: String::new(), hint: None }, [125, 125, 125]),
            (Error::Arity { message: String::new(), hint: String::new() }, [1, 1, 1]),
            (Error::refused("x"), [125, 1, 1]),
        ] {
            let of = [ExitRule::Run, ExitRule::Exec, ExitRule::Plain].map(|rule| error.exit_code(rule));
            assert_eq!(of, codes, "{error:?}");
        }
    }

    #[test]
    fn an_unreachable_daemon_is_told_in_plain_words() {
        let at = |kind: io::ErrorKind| Error::Connect { path: "/run/x.sock".into(), source: kind.into() }.fault();
        assert_eq!(at(io::ErrorKind::NotFound).code, code::DAEMON_UNREACHABLE);
        assert_eq!(at(io::ErrorKind::PermissionDenied).code, code::PERMISSION_DENIED);
        assert!(at(io::ErrorKind::ConnectionRefused).hint.unwrap().contains("nobody listens"));
        assert_eq!(at(io::ErrorKind::NotFound).message, "connect to engined at /run/x.sock");
    }
}
