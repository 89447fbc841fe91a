//! A daemon that the harness starts, with its log in a file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{process, wait};

/// How long a daemon may take to be ready, and to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running (or ended) daemon.
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`; its output is added to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Daemon, String> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.map_err(|error| format!("open {}: {error}", log.display()))?;
        let twin = file.try_clone().map_err(|error| format!("duplicate {}: {error}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file).stderr(twin);
        let child = command.spawn().map_err(|error| format!("start {name} ({:?}): {error}", command.get_program()))?;
        process::await_by_hand(child.id() as i32);
        Ok(Daemon { name: name.to_owned(), child, log: log.to_path_buf() })
    }

    /// Waits until `is_ready`, for as long as the daemon lives.
    ///
    /// # Errors
    /// With the end of its log, when it ended or is not ready in time.
    pub fn ready(&mut self, mut is_ready: impl FnMut() -> bool) -> Result<(), String> {
        let outcome = wait::poll(PATIENCE, || match self.child.try_wait() {
            Ok(None) => is_ready().then_some(Ok(())),
            Ok(Some(status)) => Some(Err(format!("ended with {status}"))),
            Err(error) => Some(Err(format!("is not to be waited for: {error}"))),
        });
        let outcome = outcome.unwrap_or_else(|| Err(format!("is not ready after {PATIENCE:?}")));
        outcome.map_err(|why| format!("{} {why}; its log ends:\n{}", self.name, self.log_tail(30)))
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Has it ended?
    pub fn is_over(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Everything that it has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Sends SIGTERM and waits; SIGKILL when that takes too long, which is an error.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn terminate(&mut self) -> Result<ExitStatus, String> {
        self.signal(Signal::SIGTERM);
        let ended = wait::poll(PATIENCE, || self.child.try_wait().ok().flatten());
        ended.ok_or_else(|| {
            self.kill();
            format!("{} was still there {PATIENCE:?} after SIGTERM; its log ends:\n{}", self.name, self.log_tail(30))
        })
    }

    /// SIGKILL, and the wait for it.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }

    /// Sends a signal, if it has not ended yet.
    pub fn signal(&mut self, signal: Signal) {
        if !self.is_over() {
            let _ = kill(Pid::from_raw(self.pid()), signal);
        }
    }

    /// Leaves it running for good: the caller stops it by its pid some other day.
    pub fn leave_running(self) -> i32 {
        self.pid()
    }
}
