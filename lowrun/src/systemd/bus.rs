//! A connection to systemd: a socket, a greeting, calls and their answers, the signal that a job is done.
//!
//! Two doors, in this order, as systemctl has them: systemd's own socket, which needs no broker and is there before one;
//! where that is missing or closed, the bus. Root's are the machine's, everybody else's are those of the user's own manager.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::wire::{Call, HEAD, Kind, Message, Value, message_length};
use crate::fault::{Attempt, Code, Fault, Result};
use crate::sys;

const PRIVATE_SOCKET: &str = "/run/systemd/private";
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
/// How long systemd may take for an answer, or for a job.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest line of the greeting.
const LINE_MAX: usize = 1024;
/// Most signals that are kept while another answer is awaited.
const SIGNALS_MAX: usize = 256;

const SYSTEMD: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// A connection.
#[derive(Debug)]
pub struct Bus {
    socket: UnixStream,
    serial: u32,
    /// Signals that came while an answer was awaited.
    signals: VecDeque<Message>,
    /// How long an answer may take.
    patience: Duration,
    /// When what is under way must be done, however much comes meanwhile.
    deadline: Instant,
}

/// An answer that says no.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// `org.freedesktop.systemd1.NoSuchUnit`.
    pub name: String,
    pub message: String,
}

impl Refusal {
    /// Whether the error is this one of systemd's.
    pub fn is(&self, name: &str) -> bool {
        self.name.strip_prefix("org.freedesktop.systemd1.").is_some_and(|own| own == name)
    }

    /// The words for a fault.
    pub fn words(&self) -> String {
        format!("{}: {}", self.name, self.message)
    }
}

/// The answer of a call: the strings in it.
pub type Answer = std::result::Result<Vec<String>, Refusal>;

impl Bus {
    /// Connects to the system's manager, or to the user's own.
    pub fn connect(of_user: bool) -> Result<Bus> {
        let (own, broker) = if of_user { user_doors()? } else { (PRIVATE_SOCKET.into(), SYSTEM_BUS.into()) };
        match Bus::open(&own, false) {
            Err(_) if broker.exists() => Bus::open(&broker, true),
            result => result,
        }
    }

    fn open(path: &Path, is_broker: bool) -> Result<Bus> {
        let attempted = || format!("connect to systemd at {}", path.display());
        let open = || -> std::io::Result<UnixStream> {
            let socket = UnixStream::connect(path)?;
            socket.set_write_timeout(Some(PATIENCE))?;
            Ok(socket)
        };
        let socket = sys::Call::call(open(), "connect")
            .attempt(Code::CgroupFailed, attempted)
            .map_err(|fault| fault.hint("--systemd-cgroup needs a running systemd"))?;
        let mut bus = Bus::over(socket, PATIENCE);
        bus.greet().attempt(Code::CgroupFailed, attempted)?;
        if is_broker {
            bus.join_broker()?;
        }
        Ok(bus)
    }

    pub(super) fn over(socket: UnixStream, patience: Duration) -> Bus {
        Bus { socket, serial: 0, signals: VecDeque::new(), patience, deadline: Instant::now() + patience }
    }

    /// No name is claimed: systemd takes the one that the kernel tells, which is right in a user namespace too.
    fn greet(&mut self) -> sys::Result<()> {
        let refused = sys::Failure { call: "auth", errno: Errno::ACCESS };
        sys::Call::call(self.socket.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n"), "write")?;
        loop {
            let line = self.read_line()?;
            match line.split(' ').next() {
                Some("OK") => return Ok(()),
                Some("DATA") => {}
                _ => return Err(refused),
            }
        }
    }

    fn read_line(&mut self) -> sys::Result<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() > LINE_MAX {
                return Err(sys::Failure { call: "auth", errno: Errno::PROTO });
            }
            let mut byte = [0];
            self.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// A broker wants to know its clients, and passes on only the signals that were asked for. systemd's own socket
    /// tells everything.
    fn join_broker(&mut self) -> Result<()> {
        const BROKER: &str = "org.freedesktop.DBus";
        const RULE: &str = "type='signal',interface='org.freedesktop.systemd1.Manager',member='JobRemoved',path='/org/freedesktop/systemd1'";
        let to_broker = |member| Call { destination: BROKER, path: "/org/freedesktop/DBus", interface: BROKER, member };
        let attempted = || "greet the message bus";
        let all = [
            self.send(to_broker("Hello"), &[])?,
            self.send(to_broker("AddMatch"), &[Value::text(RULE)])?,
            self.ask("Subscribe", &[])?,
        ];
        for answer in all {
            answer.map_err(|refusal| Fault::new(Code::CgroupFailed, attempted()).cause(refusal.words()))?;
        }
        Ok(())
    }

    /// Calls a method of the manager.
    pub fn ask(&mut self, member: &str, arguments: &[Value]) -> Result<Answer> {
        self.send(Call { destination: SYSTEMD, path: OBJECT, interface: MANAGER, member }, arguments)
    }

    /// A property of the manager that is a string.
    pub fn property(&mut self, name: &str) -> Result<Answer> {
        let interface = "org.freedesktop.DBus.Properties";
        let call = Call { destination: SYSTEMD, path: OBJECT, interface, member: "Get" };
        self.send(call, &[Value::text(MANAGER), Value::text(name)])
    }

    /// As [`Bus::property`], of the unit at `path`.
    pub fn unit_property(&mut self, path: &str, name: &str) -> Result<Answer> {
        let interface = "org.freedesktop.DBus.Properties";
        let call = Call { destination: SYSTEMD, path, interface, member: "Get" };
        self.send(call, &[Value::text("org.freedesktop.systemd1.Unit"), Value::text(name)])
    }

    fn send(&mut self, call: Call<'_>, arguments: &[Value]) -> Result<Answer> {
        let attempted = || format!("call {} of systemd", call.member);
        self.deadline = Instant::now() + self.patience;
        self.serial += 1;
        let serial = self.serial;
        sys::Call::call(self.socket.write_all(&call.to_bytes(serial, arguments)), "write")
            .attempt(Code::CgroupFailed, attempted)?;
        loop {
            let message = self.receive().attempt(Code::CgroupFailed, attempted)?;
            match message.kind {
                Kind::Return if message.reply_serial == serial => return Ok(Ok(message.texts())),
                Kind::Error if message.reply_serial == serial => {
                    let text = message.texts().into_iter().next().unwrap_or_default();
                    return Ok(Err(Refusal { name: message.error_name, message: text }));
                }
                Kind::Signal if self.signals.len() < SIGNALS_MAX => self.signals.push_back(message),
                _ => {}
            }
        }
    }

    fn receive(&mut self) -> sys::Result<Message> {
        let damaged = sys::Failure { call: "read", errno: Errno::BADMSG };
        let mut bytes = vec![0; HEAD];
        self.read_exact(&mut bytes)?;
        let head: [u8; HEAD] = bytes[..].try_into().map_err(|_| damaged)?;
        bytes.resize(message_length(&head).ok_or(damaged)?, 0);
        self.read_exact(&mut bytes[HEAD..])?;
        Message::parse(&bytes).ok_or(damaged)
    }

    /// As [`Read::read_exact`], before the deadline.
    fn read_exact(&mut self, mut into: &mut [u8]) -> sys::Result<()> {
        let failed = |errno| sys::Failure { call: "read", errno };
        while !into.is_empty() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(failed(Errno::TIMEDOUT));
            }
            sys::Call::call(self.socket.set_read_timeout(Some(left)), "setsockopt")?;
            match self.socket.read(into) {
                Ok(0) => return Err(failed(Errno::PIPE)),
                Ok(length) => into = &mut into[length..],
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Err(failed(Errno::TIMEDOUT)),
                Err(error) => return sys::Call::call(Err(error), "read"),
            }
        }
        Ok(())
    }

    /// Waits for the end of a job; gives its result, `done` when all went well.
    pub fn wait_for(&mut self, job: &str) -> Result<String> {
        let attempted = || format!("wait for systemd's {job}");
        self.deadline = Instant::now() + self.patience;
        loop {
            let message = match self.signals.pop_front() {
                Some(message) => message,
                None => self.receive().attempt(Code::CgroupFailed, attempted)?,
            };
            if message.kind != Kind::Signal || message.member != "JobRemoved" {
                continue;
            }
            // `uoss`: the number, the job, the unit, the result.
            if let [path, _, result] = &message.texts()[..]
                && path == job
            {
                return Ok(result.clone());
            }
        }
    }
}

/// Where a user's manager has its own socket and where its bus is: pam_systemd and the manager agree on it.
fn user_doors() -> Result<(PathBuf, PathBuf)> {
    let dir = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()).ok_or_else(|| {
        Fault::new(Code::CgroupFailed, "connect to the user's systemd")
            .cause("XDG_RUNTIME_DIR is not set")
            .hint("log in as the user, or run `loginctl enable-linger`")
    })?;
    let dir = Path::new(&dir);
    Ok((dir.join("systemd/private"), dir.join("bus")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_without_end_do_not_move_the_deadline() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut bus = Bus::over(ours, Duration::from_millis(300));
        // A message of another kind, over and over, each long before the deadline.
        let call = Call { destination: "d", path: "/p", interface: "i", member: "m" };
        let noise = call.to_bytes(1, &[]);
        let talker = std::thread::spawn(move || {
            while (&theirs).write_all(&noise).is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let begun = Instant::now();
        let fault = bus.ask("Reload", &[]).unwrap_err();
        assert!(fault.one_line().contains("timed out"), "{}", fault.one_line());
        assert!(bus.wait_for("/job/1").is_err());
        assert!(begun.elapsed() < Duration::from_secs(5));
        drop(bus);
        talker.join().unwrap();
    }
}
