//! The channel between the host side (`create`) and the container side (`init`) of one lowrun.
//!
//! A socket pair of whole messages. The two ends have swapped types, so that a message in the wrong direction does not
//! compile. The container side closes its end before the program is executed, and what it has to say after that it says
//! by `sys::last_word`: end of file without a fault is success.
//!
//! ```text
//! host                                    container
//!   |  (clone3)                              |
//!   | <------------- Init { pid } ---------- |  only when a helper had to join namespaces first
//!   | -------------- Continue -------------> |  only then, and only of an exec: the helper has been heard
//!   | -------------- Mapped ---------------> |  only with a new user namespace: ids are mapped
//!   | ------ Source { descriptor } --------> |  only in a user namespace: a copy of each bind mount's source
//!   | -------------- Cgroup ---------------> |  cgroups are made, limited, and the state is written
//!   | <---------- Source { index } --------- |  only in a user namespace: a source that earlier mounts may have made
//!   | ------ Source { descriptor } --------> |
//!   | <------------- Hooks ----------------- |  only with prestart or createRuntime hooks: mounts are made
//!   | -------------- Continue -------------> |
//!   | <------------- Limits ---------------- |  only in a user namespace: rlimits need the host's privilege
//!   | -------------- Continue -------------> |
//!   | <------------- Listener { fd } ------- |  only with a seccomp listener
//!   | -------------- Hand -----------------> |  only where the host side turns out not to get it by itself
//!   | <--------- (the descriptor) ---------- |  then, or at once where the host side has no privilege
//!   | -------------- Continue -------------> |
//!   | <------------- Ready ----------------- |  create: waits at the FIFO from here on
//!   | <------------- Fault ----------------- |  at any time, and then the end
//! ```
//!
//! The container side may die at any time, and whoever may look into it could keep its end open: so the host side waits
//! for its process too, and once it is ready not for ever.

use std::cell::{Cell, RefCell};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

use crate::fault::{Attempt, Code, Fault, Result};
use crate::sys::last_word::{self, LastWord};
use crate::sys::{self, Call, Failure};

/// Most bytes of one message: a fault with long paths.
pub const MESSAGE_MAX: usize = last_word::TEXT_MAX;
/// How long a process that is ready may take until it is the program. After that it is taken for started: what is slow
/// is the file system of the program then.
const READY_PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of one text, and most causes, of a fault that would not fit.
const TEXT_MAX: usize = 1024;
const CAUSES_MAX: usize = 6;

/// What the host side says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToInit {
    Mapped = 1,
    Cgroup = 2,
    Continue = 3,
    /// With a copy of a mount.
    Source = 4,
    /// The listener cannot be taken: it is to be sent.
    Hand = 5,
}

/// What the container side says.
#[derive(Debug, Deserialize, Serialize)]
pub enum FromInit {
    Init {
        pid: i32,
    },
    /// Asks for the source of this mount.
    Source {
        index: usize,
    },
    Hooks,
    Limits,
    /// A descriptor to be taken out of the process; without a number it comes as the next message.
    Listener {
        fd: Option<i32>,
    },
    Ready,
    Fault(Box<Fault>),
}

/// The host side's end.
#[derive(Debug)]
pub struct HostEnd {
    socket: OwnedFd,
    last: LastWord,
    is_ready: Cell<bool>,
}

/// The container side's end.
#[derive(Debug)]
pub struct InitEnd {
    socket: RefCell<Option<OwnedFd>>,
    last: LastWord,
}

/// A new channel. Each side must drop the other's end after the clone.
pub fn pair() -> Result<(HostEnd, InitEnd)> {
    let (host, init) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .call("socketpair")
        .attempt(Code::SystemError, || "make the channel")?;
    let last = LastWord::new().attempt(Code::SystemError, || "make the channel")?;
    let init = InitEnd { socket: RefCell::new(Some(init)), last: last.clone() };
    Ok((HostEnd { socket: host, last, is_ready: Cell::new(false) }, init))
}

impl HostEnd {
    /// Says something; a container side that is gone will be noticed by [`HostEnd::receive`].
    pub fn send(&self, message: ToInit) {
        let _ = rustix::net::send(&self.socket, &[message as u8], rustix::net::SendFlags::NOSIGNAL);
    }

    /// As [`HostEnd::send`], with a descriptor.
    pub fn send_descriptor(&self, message: ToInit, descriptor: BorrowedFd<'_>) {
        let _ = send_descriptor(self.socket.as_fd(), &[message as u8], descriptor);
    }

    /// The next message of `process`; `None` when it has executed the program, is gone, or has been ready for long.
    pub fn receive(&self, process: BorrowedFd<'_>) -> Result<Option<FromInit>> {
        let attempted = || "read the channel";
        let patience = self.is_ready.get().then_some(READY_PATIENCE);
        if !is_heard(&self.socket, process, patience).attempt(Code::SystemError, attempted)? {
            return Ok(None);
        }
        // Room for the longest message, whose pages are touched by a long one only.
        let mut buffer = Vec::with_capacity(MESSAGE_MAX);
        let length = read(&self.socket, &mut buffer).attempt(Code::SystemError, attempted)?;
        if length == 0 {
            match self.last.is_armed().then(|| self.last.wait(READY_PATIENCE)).flatten() {
                Some(text) => buffer = text,
                None => {
                    sys::pidfd::await_program(process);
                    return Ok(None);
                }
            }
        }
        let message = decode(&buffer);
        self.is_ready.set(self.is_ready.get() || matches!(message, Some(FromInit::Ready)));
        message.map(Some).ok_or_else(|| Fault::new(Code::SystemError, attempted()).cause("not a message"))
    }
}

impl HostEnd {
    /// The fault that a process which has ended told after it was ready; whatever else there is, is no word of lowrun's.
    pub fn last_fault(&self, process: BorrowedFd<'_>) -> Option<Box<Fault>> {
        let mut buffer = Vec::with_capacity(MESSAGE_MAX);
        if !is_heard(&self.socket, process, Some(Duration::ZERO)).is_ok_and(|heard| heard)
            || !read(&self.socket, &mut buffer).is_ok_and(|length| length > 0)
        {
            buffer = self.last.text()?;
        }
        match decode(&buffer) {
            Some(FromInit::Fault(fault)) => Some(fault),
            _ => None,
        }
    }

    /// Waits, not for ever, until a process that is ready has become the program or has ended.
    pub fn await_program(&self, process: BorrowedFd<'_>) {
        let _ = is_heard(&self.socket, process, Some(READY_PATIENCE));
        if self.last.is_armed() {
            self.last.wait(READY_PATIENCE);
        }
    }

    /// Has the container side send what it has offered, where it cannot be taken.
    pub fn ask_for_offer(&self, process: BorrowedFd<'_>) -> sys::Result<OwnedFd> {
        self.send(ToInit::Hand);
        self.receive_offer(process)
    }

    /// The descriptor that the container side sends.
    pub fn receive_offer(&self, process: BorrowedFd<'_>) -> sys::Result<OwnedFd> {
        let gone = Failure { call: "recvmsg", errno: Errno::PIPE };
        if !is_heard(&self.socket, process, None)? {
            return Err(gone);
        }
        receive_descriptor(self.socket.as_fd(), &mut [0])?.1.ok_or(gone)
    }
}

/// Waits until the socket has a message or its end; false if the process has ended without, or patience has.
fn is_heard(socket: &OwnedFd, process: BorrowedFd<'_>, patience: Option<Duration>) -> sys::Result<bool> {
    let deadline = patience.map(|patience| Instant::now() + patience);
    let others = [(socket.as_fd(), PollFlags::IN)];
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let (has_ended, seen) = sys::pidfd::poll(process, &others, left)?;
        if !seen[0].is_empty() {
            return Ok(true);
        }
        if has_ended {
            // What it said just before its end may have come after the look at the socket.
            let (_, seen) = sys::pidfd::poll(process, &others, Some(Duration::ZERO))?;
            return Ok(!seen[0].is_empty());
        }
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(false);
        }
    }
}

impl InitEnd {
    /// Ends the conversation; what is said from here on is a fault of its own.
    pub fn close(&self) {
        self.socket.take();
    }

    /// Has what the process says after [`InitEnd::close`] reach the host side all the same; false where it cannot be.
    pub fn outlive(&self) -> bool {
        self.last.arm().is_ok()
    }

    /// Whether [`InitEnd::outlive`] has succeeded.
    pub fn is_outlived(&self) -> bool {
        self.last.is_armed()
    }

    /// Whether the host side is gone.
    pub fn is_abandoned(&self) -> bool {
        let socket = self.socket.borrow();
        let Some(socket) = &*socket else { return true };
        let mut polled = [PollFd::new(socket, PollFlags::empty())];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(rustix::event::poll(&mut polled, Some(&now)), Ok(1..)) && polled[0].revents().contains(PollFlags::HUP)
    }

    /// The descriptor, unless it is closed.
    pub fn descriptor(&self) -> Option<std::os::fd::RawFd> {
        self.socket.borrow().as_ref().map(std::os::fd::AsRawFd::as_raw_fd)
    }

    fn with<T>(&self, attempted: &'static str, act: impl FnOnce(&OwnedFd) -> sys::Result<T>) -> Result<T> {
        let socket = self.socket.borrow();
        let closed = Failure { call: "channel", errno: Errno::PIPE };
        socket.as_ref().ok_or(closed).and_then(act).attempt(Code::SystemError, || attempted)
    }

    /// Says something. Only `write(2)`, which every seccomp profile allows.
    pub fn send(&self, message: &FromInit) -> Result<()> {
        let text = encode(message)
            .map_err(|error| Fault::new(Code::SystemError, "write the channel").cause(error.to_string()))?;
        if self.socket.borrow().is_none() {
            return self.last.say(&text).attempt(Code::SystemError, || "leave a last word");
        }
        self.with("write the channel", |socket| rustix::io::write(socket, &text).call("write").map(drop))
    }

    /// Says that all is ready; whether anybody was there to hear it.
    pub fn send_ready(&self) -> Result<bool> {
        let text = encode(&FromInit::Ready)
            .map_err(|error| Fault::new(Code::SystemError, "write the channel").cause(error.to_string()))?;
        self.with("write the channel", |socket| match rustix::io::write(socket, &text) {
            Err(Errno::PIPE | Errno::CONNRESET) => Ok(false),
            result => result.call("write").map(|_| true),
        })
    }

    /// Waits for exactly this word.
    pub fn expect(&self, message: ToInit) -> Result<()> {
        let mut buffer = Vec::with_capacity(1);
        let length = self.with("read the channel", |socket| read(socket, &mut buffer))?;
        if length == 1 && buffer[0] == message as u8 {
            return Ok(());
        }
        Err(Fault::new(Code::SystemError, "wait for the host side").cause("it is gone"))
    }

    /// Waits for exactly this word and the descriptor that comes with it.
    pub fn expect_descriptor(&self, message: ToInit) -> Result<OwnedFd> {
        let mut word = [0; 1];
        let (length, descriptor) =
            self.with("read the channel", |socket| receive_descriptor(socket.as_fd(), &mut word))?;
        let gone = || Fault::new(Code::SystemError, "wait for the host side").cause("it is gone");
        descriptor.filter(|_| length == 1 && word[0] == message as u8).ok_or_else(gone)
    }

    /// Offers a descriptor that the host side takes out of this process, or is sent, before it lets it on.
    pub fn offer(&self, descriptor: BorrowedFd<'_>) -> Result<()> {
        self.send(&FromInit::Listener { fd: Some(descriptor.as_raw_fd()) })?;
        let mut word = Vec::with_capacity(1);
        self.with("read the channel", |socket| read(socket, &mut word))?;
        match word.first() {
            Some(word) if *word == ToInit::Continue as u8 => Ok(()),
            Some(word) if *word == ToInit::Hand as u8 => self.hand(descriptor),
            _ => Err(Fault::new(Code::SystemError, "wait for the host side").cause("it is gone")),
        }
    }

    /// As [`InitEnd::offer`], where the host side is known to have no right to take it. Sent before anything is read: a
    /// filter may hold a `read(2)` until somebody has its listener.
    pub fn hand_over(&self, descriptor: BorrowedFd<'_>) -> Result<()> {
        self.send(&FromInit::Listener { fd: None })?;
        self.hand(descriptor)
    }

    fn hand(&self, descriptor: BorrowedFd<'_>) -> Result<()> {
        self.with("send the listener", |socket| send_descriptor(socket.as_fd(), b"0", descriptor))?;
        self.expect(ToInit::Continue)
    }

    /// Says something and waits to be let on.
    pub fn ask(&self, message: &FromInit) -> Result<()> {
        self.send(message)?;
        self.expect(ToInit::Continue)
    }
}

/// Sends one descriptor with some bytes.
pub fn send_descriptor(socket: BorrowedFd<'_>, words: &[u8], descriptor: BorrowedFd<'_>) -> sys::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    rustix::net::sendmsg(socket, &[IoSlice::new(words)], &mut control, SendFlags::NOSIGNAL).call("sendmsg").map(drop)
}

/// Receives bytes (how many, is told) and, if one came with them, a descriptor.
pub fn receive_descriptor(socket: BorrowedFd<'_>, words: &mut [u8]) -> sys::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(words)];
    let length = loop {
        match rustix::net::recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR | Errno::CONNRESET) => {}
            result => break result.call("recvmsg")?.bytes,
        }
    };
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok((length, descriptor))
}

fn read(socket: &OwnedFd, buffer: &mut Vec<u8>) -> sys::Result<usize> {
    loop {
        match rustix::io::read(socket.as_fd(), rustix::buffer::spare_capacity(buffer)) {
            // Reset: the other side ended with a message of ours unread. That is told once, and first; what it said
            // before its end is still there to be read.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Err(errno) => return Err(Failure { call: "read", errno }),
            Ok(length) => return Ok(length),
        }
    }
}

/// A message as it is sent. A fault may repeat words of the spec or of the image, which have no bound: it is shortened
/// until it fits, because the host side can do nothing with a part of a message.
pub fn encode(message: &FromInit) -> serde_json::Result<Vec<u8>> {
    let text = serde_json::to_vec(message)?;
    match message {
        FromInit::Fault(fault) if text.len() > MESSAGE_MAX => {
            serde_json::to_vec(&FromInit::Fault(Box::new(shortened(fault))))
        }
        _ => Ok(text),
    }
}

/// Nine texts of [`TEXT_MAX`] bytes fit also when each byte is escaped to six.
fn shortened(fault: &Fault) -> Fault {
    let start = |text: &String| {
        let end = (0..=TEXT_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
        text[..end.unwrap_or(0)].to_owned()
    };
    Fault {
        step: start(&fault.step),
        message: start(&fault.message),
        causes: fault.causes.iter().take(CAUSES_MAX).map(start).collect(),
        hint: fault.hint.as_ref().map(start),
        ..*fault
    }
}

/// A message from the container side; what is not one is refused, whoever wrote it.
pub fn decode(text: &[u8]) -> Option<FromInit> {
    serde_json::from_slice(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A handle on this process, which does not end meanwhile.
    fn lives() -> OwnedFd {
        let flags = rustix::process::PidfdFlags::empty();
        rustix::process::pidfd_open(rustix::process::getpid(), flags).unwrap()
    }

    impl HostEnd {
        fn hear(&self) -> Option<FromInit> {
            self.receive(lives().as_fd()).unwrap()
        }
    }

    #[test]
    fn an_end_that_somebody_keeps_open_keeps_nobody_waiting() {
        let (host, init) = pair().unwrap();
        let mut process = std::process::Command::new("true").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&process);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        init.send(&FromInit::Hooks).unwrap();
        process.wait().unwrap();
        assert!(matches!(host.receive(pidfd.as_fd()), Ok(Some(FromInit::Hooks))), "what it said is heard");
        assert!(matches!(host.receive(pidfd.as_fd()), Ok(None)));
        let patience = Some(Duration::from_millis(20));
        assert_eq!(is_heard(&host.socket, lives().as_fd(), patience), Ok(false));
        init.send(&FromInit::Ready).unwrap();
        assert!(matches!(host.hear(), Some(FromInit::Ready)) && host.is_ready.get());
    }

    #[test]
    fn a_fault_crosses_whole_and_a_closed_end_is_the_end() {
        let (host, init) = pair().unwrap();
        let fault = Fault::new(Code::MountFailed, "mount proc at /proc").cause("why").at("create:mounts");
        init.send(&FromInit::Fault(fault)).unwrap();
        let Some(FromInit::Fault(fault)) = host.hear() else { panic!("no fault") };
        assert_eq!((fault.step.as_str(), fault.causes.len()), ("create:mounts", 1));
        drop(init);
        assert!(host.hear().is_none());
    }

    #[test]
    fn a_fault_of_any_length_arrives() {
        let (host, init) = pair().unwrap();
        let long = "\u{1}".repeat(1_000_000) + "é";
        let mut fault = Fault::new(Code::MountFailed, long.clone()).hint(long.clone()).at(&long);
        fault.causes = vec![long; 20];
        init.send(&FromInit::Fault(fault)).unwrap();
        let Some(FromInit::Fault(fault)) = host.hear() else { panic!("no fault") };
        assert_eq!((fault.code, fault.message.len()), (Code::MountFailed, TEXT_MAX));
    }

    #[test]
    fn the_container_side_waits_for_the_word_it_expects() {
        let (host, init) = pair().unwrap();
        host.send(ToInit::Cgroup);
        init.expect(ToInit::Cgroup).unwrap();
        drop(host);
        assert!(init.expect(ToInit::Continue).is_err());
    }

    #[test]
    fn nonsense_is_no_message() {
        for text in [&b""[..], b"{}", b"\xff", b"{\"Moon\":1}"] {
            assert!(decode(text).is_none());
        }
    }
}
