//! Running a command line with pipes: input given, both outputs kept, an end within a limit.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

const LIMIT: Duration = Duration::from_secs(90);

/// What a command line said and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// As a shell would say it: the exit status, or 128 + n when signal n ended the client itself.
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text, without the last line end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end_matches('\n').to_owned()
    }

    /// Standard error as text.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// This, when it ended with 0.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn ok(self) -> Output {
        self.code(0)
    }

    /// This, when it ended with `code`.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn code(self, code: i32) -> Output {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.text(), self.errors());
        self
    }
}

/// A command line that is about to run.
pub struct Call {
    command: Command,
    input: Option<Vec<u8>>,
    limit: Duration,
}

impl Call {
    pub fn new(command: Command) -> Call {
        Call { command, input: None, limit: LIMIT }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, arguments: &[&str]) -> Call {
        self.command.args(arguments);
        self
    }

    /// Sets a variable of the client's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Call {
        self.command.env(name, value);
        self
    }

    /// What its standard input holds; without this it is `/dev/null`.
    #[must_use]
    pub fn input(mut self, input: &[u8]) -> Call {
        self.input = Some(input.to_vec());
        self
    }

    /// How long it may take.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Call {
        self.limit = limit;
        self
    }

    /// The command itself, for who wants to start it in another way.
    pub fn into_command(self) -> Command {
        self.command
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be started or does not end within the limit.
    #[track_caller]
    pub fn output(self) -> Output {
        let limit = self.limit;
        let what = format!("{:?}", self.command);
        match self.start().end_within(limit) {
            Ok(output) => output,
            Err(output) => {
                panic!("not over after {limit:?}: {what}\nstdout: {}\nstderr: {}", output.text(), output.errors())
            }
        }
    }

    /// Starts it and returns. Without an input of its own its standard input stays open, see [`Running::write`].
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn start(mut self) -> Running {
        let has_input = self.input.is_some();
        self.command.stdin(if has_input { Stdio::piped() } else { Stdio::null() });
        let mut running = Running::start(self.command);
        if let (Some(input), Some(stdin)) = (self.input, running.stdin.take()) {
            std::thread::spawn(move || feed(stdin, &input));
        }
        running
    }

    /// Starts it with an input that [`Running::write`] feeds.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn start_with_open_input(mut self) -> Running {
        self.command.stdin(Stdio::piped());
        Running::start(self.command)
    }
}

/// A client that went away before it had read all its input is no error of the feeder.
fn feed(mut stdin: ChildStdin, input: &[u8]) {
    let _ = stdin.write_all(input);
}

/// A command line that runs.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Collected,
    stderr: Collected,
}

impl Running {
    #[track_caller]
    fn start(mut command: Command) -> Running {
        crate::sys::die_with_parent(&mut command);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        crate::process::await_by_hand(child.id() as i32);
        let stdout = Collected::from(child.stdout.take().expect("stdout is a pipe"));
        let stderr = Collected::from(child.stderr.take().expect("stderr is a pipe"));
        Running { stdin: child.stdin.take(), child, stdout, stderr }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Feeds its input.
    ///
    /// # Panics
    /// When its input is closed.
    #[track_caller]
    pub fn write(&mut self, input: &[u8]) {
        let stdin = self.stdin.as_mut().expect("an open input");
        stdin.write_all(input).and_then(|()| stdin.flush()).expect("write to the client");
    }

    /// Ends its input.
    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    /// Sends the client a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid()), signal);
    }

    /// Waits until its standard output holds `text`.
    ///
    /// # Panics
    /// When it does not in time.
    #[track_caller]
    pub fn expect(&self, text: &str) {
        if wait::poll(wait::PATIENCE, || self.stdout.holds(text).then_some(())).is_none() {
            panic!("no {text:?} in the output: {:?}; stderr: {:?}", self.stdout.text(), self.stderr.text());
        }
    }

    /// Standard output so far.
    pub fn stdout_so_far(&self) -> Vec<u8> {
        self.stdout.bytes.lock().expect("no reader panics").clone()
    }

    /// Is it over?
    pub fn is_over(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When that takes too long.
    #[track_caller]
    pub fn end(self) -> Output {
        match self.end_within(LIMIT) {
            Ok(output) => output,
            Err(output) => panic!("not over after {LIMIT:?}: stdout {} stderr {}", output.text(), output.errors()),
        }
    }

    /// The output at its end.
    ///
    /// # Errors
    /// What there was when it had to be killed, because it took longer than `limit`.
    pub fn end_within(mut self, limit: Duration) -> Result<Output, Output> {
        self.stdin = None;
        let status = wait::poll(limit, || {
            // What the client waits for may wait for them.
            crate::process::reap_orphans();
            self.child.try_wait().ok().flatten()
        });
        let Some(status) = status else {
            let _ = self.child.kill();
            let _ = self.child.wait();
            return Err(Output { code: -1, stdout: self.stdout.so_far(), stderr: self.stderr.so_far() });
        };
        Ok(Output { code: shell_code(status), stdout: self.stdout.all(), stderr: self.stderr.all() })
    }
}

/// A shell's `$?`.
pub(crate) fn shell_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// What a pipe has brought, read by a thread so that the writer never waits.
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Collected {
    fn from(mut pipe: impl Read + Send + 'static) -> Collected {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&bytes);
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                sink.lock().expect("no reader panics").extend_from_slice(&buffer[..count]);
            }
        });
        Collected { bytes, reader: Some(reader) }
    }

    fn holds(&self, text: &str) -> bool {
        self.text().contains(text)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("no reader panics")).into_owned()
    }

    fn so_far(&self) -> Vec<u8> {
        self.bytes.lock().expect("no reader panics").clone()
    }

    /// Everything up to the pipe's end. A grandchild that keeps the pipe open is not waited for longer than a moment.
    fn all(&mut self) -> Vec<u8> {
        let reader = self.reader.take().expect("asked once");
        let _ = wait::poll(Duration::from_secs(5), || reader.is_finished().then_some(()));
        self.so_far()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Call {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        Call::new(command)
    }

    #[test]
    fn both_outputs_the_input_and_the_code_arrive() {
        let out = shell("cat; echo wrong >&2; exit 7").input(b"\0binary\xff").output();
        assert_eq!(
            (out.code, out.stdout.as_slice(), out.stderr.as_slice()),
            (7, &b"\0binary\xff"[..], &b"wrong\n"[..])
        );
    }

    #[test]
    fn a_signal_is_128_and_its_number() {
        assert_eq!(shell("kill -TERM $$").output().code, 143);
    }

    #[test]
    #[should_panic(expected = "not over after")]
    fn a_command_that_hangs_is_found_out() {
        shell("sleep 60").limit(Duration::from_millis(50)).output();
    }

    #[test]
    fn an_open_input_is_fed_bit_by_bit() {
        let mut cat = {
            let command = Command::new("/bin/cat");
            Call::new(command).start_with_open_input()
        };
        cat.write(b"one");
        cat.expect("one");
        cat.write(b"two");
        cat.close_input();
        assert_eq!(cat.end().text(), "onetwo");
    }
}
