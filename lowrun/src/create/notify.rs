//! `NOTIFY_SOCKET`: the readiness that a program tells by sd_notify(3), handed on to who started lowrun.
//!
//! The container gets a directory of its own, `ROOT/ID/notify`, at `/run/notify`; in it lowrun binds a socket while the
//! program is started, and waits there until it says `READY=` or ends. So a service manager of the host is never
//! reachable from inside.
//!
//! ```text
//! program -- READY=1 --> /run/notify/notify.sock (lowrun) -- READY=1, MAINPID=pid --> $NOTIFY_SOCKET of lowrun
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::event::PollFlags;
use rustix::fs::Mode;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::Pid;

use super::wait;
use crate::fault::{Attempt, Code, Result};
use crate::plan::Plan;
use crate::plan::mounts::{AttrChange, MountKind, MountPlan};
use crate::sys::mount::{MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};
use crate::sys::{self, Call};

/// The directory below the state's, and the socket in it.
const DIR: &str = "notify";
const SOCKET: &str = "notify.sock";
/// Where the container sees the directory.
const INSIDE: &str = "/run/notify";
/// Most bytes of one notification that are looked at.
const MESSAGE_MAX: usize = 4096;

/// The socket of the caller, if the caller waits for readiness.
pub fn of_caller() -> Option<String> {
    std::env::var("NOTIFY_SOCKET").ok().filter(|path| !path.is_empty())
}

/// Gives the container of a plan the directory of the socket.
pub fn add_to(plan: &mut Plan, state_dir: &Path) {
    let attr = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    plan.mounts.push(MountPlan {
        index: plan.mounts.len(),
        destination: PathBuf::from(INSIDE),
        kind: MountKind::Bind { source: state_dir.join(DIR), recursive: false },
        attr: AttrChange { set: attr, clear: 0 },
        recursive_attr: AttrChange::default(),
        propagation: Vec::new(),
        id_map: None,
    });
    plan.process.env.push(format!("NOTIFY_SOCKET={INSIDE}/{SOCKET}"));
}

/// Whether the container of this directory has one.
pub fn is_in(state_dir: &Path) -> bool {
    state_dir.join(DIR).is_dir()
}

/// Makes the directory.
pub fn make_dir(state_dir: &Path) -> Result<()> {
    let path = state_dir.join(DIR);
    rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755))
        .call("mkdir")
        .attempt(Code::StateInvalid, || format!("make {}", path.display()))
}

/// Where the program's notifications arrive; `None` for a container that was made without.
pub fn bind(state_dir: &Path) -> Result<Option<OwnedFd>> {
    let dir = state_dir.join(DIR);
    if !dir.is_dir() {
        return Ok(None);
    }
    let path = dir.join(SOCKET);
    let bind = || -> sys::Result<OwnedFd> {
        let socket = datagram_socket()?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).call("bind")?).call("bind")?;
        // The program may run as anybody.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).call("chmod")?;
        Ok(socket)
    };
    bind().attempt(Code::StateInvalid, || format!("bind {}", path.display())).map(Some)
}

/// Waits until the program is ready, and tells the caller; or until it ends. `signals` are handed on meanwhile.
pub fn hand_on(socket: &OwnedFd, process: (Pid, BorrowedFd<'_>), signals: Option<&OwnedFd>) -> Result<()> {
    let Some(caller) = of_caller() else { return Ok(()) };
    let (pid, pidfd) = process;
    loop {
        let mut others = vec![(socket.as_fd(), PollFlags::IN)];
        others.extend(signals.map(|signals| (signals.as_fd(), PollFlags::IN)));
        let (has_ended, seen) =
            sys::pidfd::poll(pidfd, &others, None).attempt(Code::SystemError, || "wait for readiness")?;
        let is_ready = |index: usize| seen.get(index).is_some_and(|flags| !flags.is_empty());
        if is_ready(0) && says_ready(socket) {
            return tell(&caller, pid).attempt(Code::InvalidArgument, || format!("notify {caller}"));
        }
        if let Some(signals) = signals.filter(|_| is_ready(1)) {
            let signal = sys::signal::next(signals.as_fd()).attempt(Code::SystemError, || "wait for readiness")?;
            wait::hand_on(pidfd, signal);
        }
        if has_ended {
            return Ok(());
        }
    }
}

fn says_ready(socket: &OwnedFd) -> bool {
    let mut message = [0; MESSAGE_MAX];
    let length = rustix::net::recv(socket, &mut message[..], RecvFlags::DONTWAIT).map_or(0, |(length, _)| length);
    message[..length].split(|byte| *byte == b'\n').any(|line| line.starts_with(b"READY="))
}

fn tell(caller: &str, pid: Pid) -> sys::Result<()> {
    let address = match caller.strip_prefix('@') {
        Some(name) => SocketAddrUnix::new_abstract_name(name.as_bytes()),
        None => SocketAddrUnix::new(caller),
    }
    .call("sendto")?;
    let message = format!("READY=1\nMAINPID={}\n", pid.as_raw_nonzero());
    rustix::net::sendto(&datagram_socket()?, message.as_bytes(), SendFlags::NOSIGNAL, &address).call("sendto").map(drop)
}

fn datagram_socket() -> sys::Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).call("socket")
}
