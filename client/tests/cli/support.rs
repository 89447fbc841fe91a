//! Running the client and looking at what it did.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::fake::Fake;

/// The client, pointed at `fake`, with nothing of the person who runs the tests.
pub(crate) fn strata(fake: &Fake) -> Command {
    let mut command = strata_at(&fake.socket());
    command.env("HOME", fake.folder());
    command
}

/// The client, pointed at a socket.
pub(crate) fn strata_at(socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
    command
        .env_clear()
        .env("STRATA_HOST", format!("unix://{}", socket.display()))
        .env("HOME", "/nonexistent")
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("TZ", "UTC")
        .env("STRATA_RECONNECT_TIMEOUT", "10")
        .stdin(Stdio::null());
    command
}

/// Runs `strata` with the words of `line`.
pub(crate) fn run(fake: &Fake, line: &str) -> Ended {
    Ended::of(strata(fake).args(line.split(' ')).output().expect("strata runs"))
}

/// Runs `strata` with the words of `line` and `input` on its standard input.
pub(crate) fn run_with_input(fake: &Fake, line: &str, input: &[u8]) -> Ended {
    let mut child = strata(fake)
        .args(line.split(' '))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("strata runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("no panic").expect("it reads all");
    Ended::of(output)
}

/// What came of a call.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) bytes: Vec<u8>,
}

impl Ended {
    pub(crate) fn of(output: Output) -> Ended {
        Ended {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            bytes: output.stdout,
        }
    }

    /// Holds the call to an exit code, what it printed and what it complained of.
    #[track_caller]
    pub(crate) fn is(&self, code: i32, out: &str, err: &str) {
        assert_eq!((self.code, self.out.as_str(), self.err.as_str()), (code, out, err));
    }
}
