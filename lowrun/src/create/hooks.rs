//! Runs hooks: a program with the container's state on stdin, bounded in time.

use std::io::{Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::Pid;

use crate::fault::{Attempt, Code, Fault, Result};
use crate::path;
use crate::spec::Hook;
use crate::sys::{self, Call, Failure};

/// Most bytes of a hook's stderr that an error repeats.
const OUTPUT_MAX: usize = 4096;
/// Most bytes that are read of it between two looks at the clock.
const ROUND_MAX: usize = 16 * 4096;

/// When hooks run, as the spec calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl Point {
    /// The field of `hooks`.
    fn as_str(self) -> &'static str {
        match self {
            Point::Prestart => "prestart",
            Point::CreateRuntime => "createRuntime",
            Point::CreateContainer => "createContainer",
            Point::StartContainer => "startContainer",
            Point::Poststart => "poststart",
            Point::Poststop => "poststop",
        }
    }
}

/// Where a point's hooks run, and in what environment if they name none.
#[derive(Default)]
pub struct Place<'a> {
    /// `None` is where lowrun itself is.
    pub dir: Option<&'a Path>,
    /// `None`: as runc does on the host's side, that of lowrun itself.
    pub environment: Option<&'a [String]>,
    /// Descriptors from 3 on that are the container's program's: they stay open for it, and no hook gets them.
    pub kept: u32,
    /// `/proc` of the host, verified, where there is a handle of it already.
    pub proc: Option<BorrowedFd<'a>>,
}

/// Runs the hooks of a point one after the other; the first that fails ends it.
pub fn run(point: Point, hooks: &[Hook], state: &[u8], place: &Place<'_>) -> Result<()> {
    close_the_callers(point, hooks, place);
    hooks
        .iter()
        .enumerate()
        .try_for_each(|(index, hook)| run_one(hook, state, place).map_err(|fault| prefix((point, index), hook, fault)))
}

/// As [`run`], but every hook runs, and the faults come back: for points where an error stops nothing.
pub fn run_all(point: Point, hooks: &[Hook], state: &[u8]) -> Vec<Box<Fault>> {
    let place = Place::default();
    close_the_callers(point, hooks, &place);
    let each = hooks.iter().enumerate();
    each.filter_map(|(index, hook)| run_one(hook, state, &place).err().map(|fault| prefix((point, index), hook, fault)))
        .collect()
}

/// What the caller of lowrun has open is no hook's. Those of `startContainer` run under the container's filter, which may
/// not know the call, when all is closed already.
fn close_the_callers(point: Point, hooks: &[Hook], place: &Place<'_>) {
    if !hooks.is_empty() && point != Point::StartContainer {
        path::close_on_exec_from(3 + place.kept, place.proc);
    }
}

/// The field, then runc's words for it, by which its callers know that a hook failed.
fn prefix((point, index): (Point, usize), hook: &Hook, mut fault: Box<Fault>) -> Box<Fault> {
    let point = point.as_str();
    let message = format!("hooks.{point}[{index}]: error running {point} hook #{index}");
    let inner = std::mem::replace(&mut fault.message, message);
    fault.causes.insert(0, format!("{}: {inner}", hook.path));
    fault
}

fn run_one(hook: &Hook, state: &[u8], place: &Place<'_>) -> Result<()> {
    let mut child = spawn(hook, place, state)?;
    let mut said = Vec::new();
    let status = wait(&mut child, hook.timeout, &mut said)?;
    if status.success() {
        return Ok(());
    }
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}: {}", crate::sys::signal::description(signal)),
        (None, None) => "it ended in an unknown way".to_owned(),
    };
    let fault = Fault::new(Code::HookFailed, how);
    let said = String::from_utf8_lossy(&said);
    Err(if said.trim().is_empty() { fault } else { fault.cause(format!("stderr: {}", said.trim())) })
}

fn spawn(hook: &Hook, place: &Place<'_>, state: &[u8]) -> Result<Child> {
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    let own = Some(hook.env.as_slice()).filter(|env| !env.is_empty());
    if let Some(env) = own.or(place.environment) {
        command.env_clear().envs(env.iter().filter_map(|entry| entry.split_once('=')));
    }
    command.stdin(stdin(state)?).stdout(Stdio::null()).stderr(Stdio::piped());
    if let Some(dir) = place.dir {
        command.current_dir(dir);
    }
    sys::signal::unblock_in(&mut command);
    sys::process::close_on_exec_in(&mut command, 3..3 + place.kept);
    command.spawn().call("execve").attempt(Code::HookFailed, || "start it")
}

/// A pipe; for a state that would fill one, a file, so that a hook that does not read cannot hold its timeout up.
fn stdin(state: &[u8]) -> Result<Stdio> {
    let attempted = || "hand the state over";
    if let Some(pipe) = filled_pipe(state).attempt(Code::HookFailed, attempted)? {
        return Ok(Stdio::from(pipe));
    }
    let memory = rustix::fs::memfd_create("state", rustix::fs::MemfdFlags::CLOEXEC).call("memfd_create");
    let mut file = std::fs::File::from(memory.attempt(Code::HookFailed, attempted)?);
    let written = file.write_all(state).and_then(|()| file.rewind());
    written.call("write").attempt(Code::HookFailed, attempted)?;
    Ok(Stdio::from(file))
}

/// The end to read of a pipe with the state in it; `None` if it does not fit. Written before there is a hook: one that
/// ends without reading would make the writer's signal of it.
fn filled_pipe(state: &[u8]) -> sys::Result<Option<OwnedFd>> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).call("pipe2")?;
    rustix::fs::fcntl_setfl(&writer, OFlags::NONBLOCK).call("fcntl")?;
    match rustix::io::write(&writer, state) {
        Ok(length) if length == state.len() => Ok(Some(reader)),
        Ok(_) | Err(Errno::AGAIN) => Ok(None),
        Err(errno) => Err(Failure { call: "write", errno }),
    }
}

fn wait(child: &mut Child, timeout_s: Option<i64>, said: &mut Vec<u8>) -> Result<ExitStatus> {
    let attempted = || "wait for it";
    if let Some(stderr) = &child.stderr {
        let _ = rustix::fs::fcntl_setfl(stderr, OFlags::NONBLOCK);
    }
    // A time that ends after all clocks is none.
    let deadline =
        timeout_s.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds.unsigned_abs())));
    if !ended_before(child, deadline, said).attempt(Code::HookFailed, attempted)? {
        let _ = child.kill();
        let _ = child.wait();
        let seconds = timeout_s.unwrap_or_default();
        return Err(Fault::new(Code::HookFailed, format!("hook ran past specified timeout of {seconds}s")));
    }
    let status = child.wait().call("waitid").attempt(Code::HookFailed, attempted)?;
    if let Some(stderr) = &child.stderr {
        hear(stderr, said);
    }
    Ok(status)
}

/// Whether the hook has ended, or could not be watched. What it says is read meanwhile: a full pipe would hold it up.
/// Children that it left and that hold its stderr open are not waited for.
fn ended_before(child: &mut Child, deadline: Option<Instant>, said: &mut Vec<u8>) -> sys::Result<bool> {
    let Some(pid) = Pid::from_raw(child.id() as i32) else { return Ok(true) };
    let pidfd = match sys::pidfd::open(pid) {
        // startContainer hooks run under the container's filter, which may not know the call, and with its procfs.
        Err(_) if deadline.is_none() => return Ok(true),
        result => result?,
    };
    let mut stderr = child.stderr.take();
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let others: Vec<_> = stderr.iter().map(|stderr| (stderr.as_fd(), PollFlags::IN)).collect();
        let (has_ended, _) = sys::pidfd::poll(pidfd.as_fd(), &others, left)?;
        stderr = stderr.filter(|stderr| hear(stderr, said));
        if has_ended || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(has_ended);
        }
    }
}

/// Reads what is there, and keeps the start; whether more may come.
fn hear(stderr: &ChildStderr, said: &mut Vec<u8>) -> bool {
    let mut text = [0; OUTPUT_MAX];
    for _ in 0..ROUND_MAX / OUTPUT_MAX {
        match rustix::io::read(stderr, &mut text) {
            Ok(0) => return false,
            Ok(length) => said.extend_from_slice(&text[..length.min(OUTPUT_MAX - said.len())]),
            Err(errno) => return matches!(errno, Errno::AGAIN | Errno::INTR),
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Option<i64>) -> Hook {
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        Hook { path: "/bin/sh".to_owned(), args, env: vec![], timeout }
    }

    #[test]
    fn the_state_is_on_stdin() {
        run(Point::Prestart, &[shell("read line; test \"$line\" = state", None)], b"state\n", &Place::default())
            .unwrap();
    }

    #[test]
    fn a_failing_hook_is_told_with_its_words() {
        let fault =
            run(Point::Prestart, &[shell("echo broken >&2; exit 3", None)], b"", &Place::default()).unwrap_err();
        let line = fault.one_line();
        assert!(
            line.contains("hooks.prestart[0]") && line.contains("exit status 3") && line.contains("broken"),
            "{line}"
        );
    }

    #[test]
    fn a_hook_that_hangs_is_ended() {
        let fault = run(Point::Poststart, &[shell("exec sleep 60", Some(1))], b"", &Place::default()).unwrap_err();
        assert!(fault.one_line().contains("timeout"));
    }

    #[test]
    fn a_hook_may_say_more_than_a_pipe_holds() {
        let fault = run(
            Point::Prestart,
            &[shell("echo first >&2; head -c 200000 /dev/zero >&2; exit 4", None)],
            b"",
            &Place::default(),
        );
        let line = fault.unwrap_err().one_line();
        assert!(line.contains("exit status 4") && line.contains("first"), "{line}");
        let fault =
            run(Point::Prestart, &[shell("exec cat /dev/zero >&2", Some(1))], b"", &Place::default()).unwrap_err();
        assert!(fault.one_line().contains("timeout"));
    }

    #[test]
    fn a_timeout_after_all_clocks_is_none() {
        run(Point::Prestart, &[shell("true", Some(i64::MAX))], b"", &Place::default()).unwrap();
    }

    #[test]
    fn a_long_state_holds_no_timeout_up() {
        let state = vec![b'x'; 1 << 20];
        run(Point::Prestart, &[shell("test $(wc -c) = 1048576", None)], &state, &Place::default()).unwrap();
        let fault = run(Point::Prestart, &[shell("exec sleep 60", Some(1))], &state, &Place::default()).unwrap_err();
        assert!(fault.one_line().contains("timeout"));
    }

    #[test]
    fn the_environment_is_the_hooks_own() {
        let mut hook = shell("test \"$A\" = b -a -z \"$HOME\"", None);
        hook.env = vec!["A=b".to_owned()];
        run(Point::Prestart, &[hook], b"", &Place { environment: Some(&["HOME=/x".to_owned()]), ..Place::default() })
            .unwrap();
    }

    #[test]
    fn without_one_it_is_the_places_or_lowruns() {
        let none: &[String] = &[];
        run(Point::Prestart, &[shell("env | grep -q ^HOME=", None)], b"", &Place::default()).unwrap();
        let hook = shell("! env | grep -q ^HOME=", None);
        run(Point::CreateContainer, &[hook], b"", &Place { environment: Some(none), ..Place::default() }).unwrap();
    }
}
