//! Where a program's streams go: input from a FIFO, output into the log.
//!
//! ```text
//!   our shim                        strata-log://DIR            the shim writes the log itself
//!   a stock shim                    binary://engined?…          the shim starts our logger
//!   a stock shim, stdin, no tty     FIFOs ─▶ our logger         with binary:// such a shim gives the program no stdin
//! ```

use std::path::{Path, PathBuf};
use std::process::Stdio as Inherit;

use strata_log::Target;
use tokio::net::unix::pipe;
use tokio::process::Command;

use super::files::Files;
use super::stdin::{make_fifo, open_writer};
use super::wanted::Wanted;
use crate::containerd::tasks::Stdio;
use crate::engine::error::Error;
use crate::engine::means::LogSettings;

/// What a logger is told first; see `log_writer`.
const LOG_WRITER: &str = "log-writer";

/// The streams of a program that is about to be created. To be dropped when the shim has opened them.
pub(super) struct Streams {
    stdio: Stdio,
    /// Keep the logger's FIFOs from ending before the shim has opened them.
    _until_opened: Vec<pipe::Sender>,
}

impl Streams {
    pub(super) fn open(settings: &LogSettings, files: &Files, wanted: &Wanted) -> Result<Streams, Error> {
        let target = Target { directory: files.log(), limits: settings.limits }.to_string();
        let stdin = wanted.open_stdin.then(|| files.stdin());
        match &settings.writer {
            Some(program) if wanted.open_stdin && !wanted.tty => Streams::of_fifos(program, &target, files, stdin),
            Some(program) => Ok(Streams::of_address(&binary_address(program, &target), stdin, wanted.tty)),
            None => Ok(Streams::of_address(&target, stdin, wanted.tty)),
        }
    }

    /// What the supervisor is told.
    pub(super) fn stdio(&self) -> Stdio {
        self.stdio.clone()
    }

    fn of_address(output: &str, stdin: Option<PathBuf>, terminal: bool) -> Streams {
        let stdio = Stdio {
            stdin: text(stdin.as_deref()),
            stdout: output.to_owned(),
            // A terminal has one stream.
            stderr: if terminal { String::new() } else { output.to_owned() },
            terminal,
        };
        Streams { stdio, _until_opened: Vec::new() }
    }

    fn of_fifos(program: &Path, target: &str, files: &Files, stdin: Option<PathBuf>) -> Result<Streams, Error> {
        let (stdout, stderr) = (files.stdout(), files.stderr());
        let mut until_opened = Vec::new();
        for fifo in [&stdout, &stderr] {
            make_fifo(fifo)?;
            until_opened.push(open_writer(fifo)?);
        }
        start_logger(program, target, &stdout, &stderr)?;
        let stdio = Stdio {
            stdin: text(stdin.as_deref()),
            stdout: text(Some(&stdout)),
            stderr: text(Some(&stderr)),
            terminal: false,
        };
        Ok(Streams { stdio, _until_opened: until_opened })
    }
}

fn text(path: Option<&Path>) -> String {
    path.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Starts a logger that lives as long as the streams, also beyond the engine.
fn start_logger(program: &Path, target: &str, stdout: &Path, stderr: &Path) -> Result<(), Error> {
    let mut command = Command::new(program);
    command.arg(LOG_WRITER).arg(target).arg(stdout).arg(stderr);
    command.env_clear().current_dir("/").stdin(Inherit::null()).stdout(Inherit::null());
    // A group of its own: a signal to the engine's, such as a terminal's Ctrl-C, is not meant for it.
    command.process_group(0);
    let mut logger = command.spawn().map_err(|error| Error::file("start logger", program, error))?;
    tokio::spawn(async move { logger.wait().await });
    Ok(())
}

/// containerd's form of a logging program: each key and value of the query become arguments.
fn binary_address(program: &Path, target: &str) -> String {
    let mut address = format!("binary://{}?{LOG_WRITER}=", program.display());
    for byte in target.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => address.push(byte.into()),
            _ => address.push_str(&format!("%{byte:02X}")),
        }
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::container::wanted::tests::plain;
    use strata_log::Limits;

    fn stdio(writer: Option<&str>, tty: bool, open_stdin: bool) -> Stdio {
        let settings =
            LogSettings { limits: Limits { segment_bytes: 5, keep_bytes: 6 }, writer: writer.map(PathBuf::from) };
        let wanted = Wanted { tty, open_stdin, ..plain("x") };
        Streams::open(&settings, &Files::new(Path::new("/r"), Path::new("/s"), "c"), &wanted).unwrap().stdio()
    }

    #[test]
    fn output_goes_into_the_log_by_either_shim() {
        let ours = stdio(None, false, false);
        assert_eq!(ours.stdout, "strata-log:///r/containers/c/log?segment_bytes=5&keep_bytes=6");
        assert_eq!((ours.stderr.as_str(), ours.stdin.as_str()), (ours.stdout.as_str(), ""));
        let stock = stdio(Some("/bin/engined"), true, true);
        assert_eq!(
            stock.stdout,
            "binary:///bin/engined?log-writer=strata-log%3A///r/containers/c/log%3Fsegment_bytes%3D5%26keep_bytes%3D6"
        );
        assert_eq!((stock.stderr.as_str(), stock.stdin.as_str()), ("", "/s/containers/c/stdin"));
    }
}
