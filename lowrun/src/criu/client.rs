//! A conversation with `criu swrk`: CRIU as a child that serves one connection, over a socket pair of whole messages.
//!
//! ```text
//! lowrun                          criu swrk FD
//!   | ---- request ----------------> |
//!   | <--- notify (script, pid) ---- |  as often as it likes; a descriptor may come with it
//!   | ---- notify, done -----------> |
//!   | <--- answer ------------------ |
//! ```
//!
//! Descriptors that a request names are lowrun's own: CRIU opens them through lowrun's `/proc`. Only inherited ones
//! are CRIU's.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType};
use rustix::process::Pid;

use super::wire::{Message, Value, fields};
use crate::channel::receive_descriptor;
use crate::fault::{Attempt, Code, Fault, Result};
use crate::path;
use crate::sys::{self, Call};

/// Most bytes of an answer.
const ANSWER_MAX: usize = 64 * 1024;

/// What is asked (`criu_req_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Dump = 1,
    Restore = 2,
    PreDump = 4,
    FeatureCheck = 9,
    Version = 10,
}

/// The type of a notification and of its answer.
const NOTIFY: u64 = 6;

/// What CRIU said (`criu_resp`).
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    kind: u64,
    success: bool,
    /// Of the restored process, as seen here.
    pub pid: Option<i32>,
    errno: i32,
    error: String,
    /// As 31701 for 3.17.1.
    pub version: u32,
    pub tracks_memory: bool,
    pub has_lazy_pages: bool,
    notification: Option<Notification>,
}

/// A moment of CRIU's work.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Notification {
    pub script: String,
    pub pid: i32,
}

/// A running CRIU.
pub(super) struct Client {
    socket: OwnedFd,
    child: Child,
}

impl Client {
    /// Starts CRIU. Only the processes that it restores need lowrun's stdio, and descriptors `inherited`.
    pub(super) fn start(restores: bool, inherited: &[OwnedFd]) -> Result<Client> {
        let attempted = || "run criu";
        let (socket, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .call("socketpair")
                .attempt(Code::SystemError, attempted)?;
        path::close_on_exec_from(3, None);
        for fd in inherited.iter().chain([&theirs]) {
            rustix::io::fcntl_setfd(fd, FdFlags::empty()).call("fcntl").attempt(Code::SystemError, attempted)?;
        }
        let mut command = Command::new("criu");
        command.args(["swrk", &theirs.as_raw_fd().to_string()]);
        if !restores {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        }
        sys::signal::unblock_in(&mut command);
        let child = command.spawn().call("execve").map_err(|failure| match failure.errno {
            rustix::io::Errno::NOENT => Fault::new(Code::Unsupported, attempted())
                .cause("criu is not installed: it is in no directory of $PATH")
                .hint("install the package criu (3.0 or later)"),
            _ => Fault::of(Code::SystemError, attempted(), failure),
        })?;
        Ok(Client { socket, child })
    }

    /// CRIU's own process.
    pub(super) fn pid(&self) -> Result<Pid> {
        let missing = || Fault::new(Code::SystemError, "run criu").cause("it has no pid");
        Pid::from_raw(self.child.id() as i32).ok_or_else(missing)
    }

    /// Asks, answers notifications by `notified`, gives the answer.
    pub(super) fn ask(
        &self,
        ask: Ask,
        request: &Message,
        notified: &mut dyn FnMut(&Notification, Option<OwnedFd>) -> Result<()>,
    ) -> Result<Answer> {
        let mut whole = Message::default();
        whole.number(1, ask as u64);
        self.send(&[whole.as_bytes(), request.as_bytes()].concat())?;
        loop {
            let (answer, descriptor) = self.receive()?;
            if !answer.success {
                return Err(failed(ask, &answer));
            }
            match &answer.notification {
                Some(notification) if answer.kind == NOTIFY => {
                    notified(notification, descriptor)?;
                    self.send(Message::default().number(1, NOTIFY).flag(3, true).as_bytes())?;
                }
                _ if answer.kind == ask as u64 => return Ok(answer),
                _ => return Err(Fault::new(Code::SystemError, "ask criu").cause("it answered something else")),
            }
        }
    }

    /// Says goodbye and waits for the end.
    pub(super) fn end(mut self, ask: Ask) -> Result<()> {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
        let status = self.child.wait().call("waitid").attempt(Code::SystemError, || "wait for criu")?;
        // After a pre-dump it waits for a dump, and does not like that none comes.
        if status.success() || ask == Ask::PreDump {
            return Ok(());
        }
        Err(Fault::new(Code::SystemError, "criu failed").cause(status.to_string()))
    }

    fn send(&self, bytes: &[u8]) -> Result<()> {
        rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL)
            .call("send")
            .attempt(Code::SystemError, || "ask criu")
            .map(drop)
    }

    fn receive(&self) -> Result<(Answer, Option<OwnedFd>)> {
        let mut buffer = vec![0; ANSWER_MAX];
        let (length, descriptor) = receive_descriptor(self.socket.as_fd(), &mut buffer)
            .attempt(Code::SystemError, || "read what criu answers")?;
        if length == 0 {
            return Err(Fault::new(Code::SystemError, "read what criu answers").cause("criu died"));
        }
        let nonsense = || Fault::new(Code::SystemError, "read what criu answers").cause("it is no answer");
        Ok((Answer::parse(&buffer[..length]).ok_or_else(nonsense)?, descriptor))
    }
}

impl Drop for Client {
    /// One that was not ended is ended by force; what it had begun it takes back, as its connection is gone.
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn failed(ask: Ask, answer: &Answer) -> Box<Fault> {
    let kind = match ask {
        Ask::Dump => "DUMP",
        Ask::PreDump => "PRE_DUMP",
        Ask::Restore => "RESTORE",
        Ask::FeatureCheck => "FEATURE_CHECK",
        Ask::Version => "VERSION",
    };
    let message =
        format!("criu failed: type {} errno {}", if answer.kind == NOTIFY { "NOTIFY" } else { kind }, answer.errno);
    let fault = Fault::new(Code::CheckpointFailed, message);
    if answer.error.is_empty() { fault } else { fault.cause(answer.error.clone()) }
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<Answer> {
        let mut answer = Answer::default();
        for (field, value) in fields(bytes)? {
            match (field, value) {
                (1, Value::Number(kind)) => answer.kind = kind,
                (2, Value::Number(success)) => answer.success = success != 0,
                (4, Value::Bytes(restored)) => {
                    answer.pid =
                        fields(restored)?.iter().find(|(field, _)| *field == 1).map(|(_, pid)| pid.number() as i32);
                }
                (5, Value::Bytes(notification)) => answer.notification = Some(Notification::parse(notification)?),
                (7, Value::Number(errno)) => answer.errno = errno as i32,
                (8, Value::Bytes(features)) => {
                    let features = fields(features)?;
                    let has = |wanted| features.iter().any(|(field, value)| *field == wanted && value.number() != 0);
                    answer.tracks_memory = has(1);
                    answer.has_lazy_pages = has(2);
                }
                (9, text) => answer.error = text.text(),
                (10, Value::Bytes(version)) => answer.version = parse_version(version)?,
                _ => {}
            }
        }
        Some(answer)
    }
}

impl Notification {
    fn parse(bytes: &[u8]) -> Option<Notification> {
        let mut notification = Notification::default();
        for (field, value) in fields(bytes)? {
            match field {
                1 => notification.script = value.text(),
                2 => notification.pid = value.number() as i32,
                _ => {}
            }
        }
        Some(notification)
    }
}

/// `criu_version`: a build from git counts as the next minor version.
fn parse_version(bytes: &[u8]) -> Option<u32> {
    let (mut major, mut minor, mut sub, mut is_git) = (0, 0, 0, false);
    for (field, value) in fields(bytes)? {
        match field {
            1 => major = value.number() as u32,
            2 => minor = value.number() as u32,
            3 => is_git = true,
            4 => sub = value.number() as u32,
            _ => {}
        }
    }
    Some(if is_git { major * 10_000 + (minor + 1) * 100 } else { major * 10_000 + minor * 100 + sub })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_one_number() {
        let mut version = Message::default();
        version.number(1, 3).number(2, 17).number(4, 1);
        let mut answer = Message::default();
        answer.number(1, 10).flag(2, true).message(10, &version);
        assert_eq!(Answer::parse(answer.as_bytes()).unwrap().version, 31_701);
        version.text(3, "v3.17-12-gabc");
        assert_eq!(parse_version(version.as_bytes()), Some(31_800));
    }

    #[test]
    fn a_failure_is_told_with_its_errno_and_words() {
        let mut answer = Message::default();
        answer.number(1, 2).flag(2, false).signed(7, 17).text(9, "no luck");
        let fault = failed(Ask::Restore, &Answer::parse(answer.as_bytes()).unwrap());
        assert_eq!(fault.one_line(), "criu failed: type RESTORE errno 17: no luck");
    }

    #[test]
    fn a_notification_has_its_script_and_pid() {
        let mut notification = Message::default();
        notification.text(1, "post-restore").number(2, 42);
        let mut answer = Message::default();
        answer.number(1, NOTIFY).flag(2, true).message(5, &notification);
        let answer = Answer::parse(answer.as_bytes()).unwrap();
        assert_eq!(answer.notification, Some(Notification { script: "post-restore".to_owned(), pid: 42 }));
    }
}
