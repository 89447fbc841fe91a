//! The container's terminal: a pair in the container's own devpts, whose master goes to the caller.
//!
//! The slave is taken from the master by an ioctl, not by a path: what an image or another process puts at
//! `/dev/pts/0` or `/dev/console` is never opened.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, makedev};
use rustix::io::Errno;
use rustix::net::SocketAddrUnix;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, OutputModes};

use crate::channel::send_descriptor;
use crate::fault::{Attempt, Code, Fault, Result};
use crate::path::{self, Root};
use crate::spec::ConsoleSize;
use crate::sys::{self, Call, Failure, mount};

/// Makes the terminal, sends its master through `socket`, and makes it stdin, stdout and stderr and the controlling
/// terminal. With `mounts`, it is also `/dev/console`.
pub fn attach(root: &Root, socket: BorrowedFd<'_>, size: Option<ConsoleSize>, mounts: bool) -> Result<()> {
    let attempted = || "make the terminal";
    let master = open_master(root)?;
    let unlock = rustix::pty::unlockpt(&master).call("ioctl(TIOCSPTLCK)");
    unlock.attempt(Code::SystemError, attempted)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)
        .call("ioctl(TIOCGPTPEER)")
        .attempt(Code::SystemError, attempted)?;
    if let Some(size) = size {
        let winsize = rustix::termios::Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&master, winsize)
            .call("ioctl(TIOCSWINSZ)")
            .attempt(Code::SystemError, attempted)?;
    }
    if is_of_lowrun(socket) {
        end_lines_once(master.as_fd()).attempt(Code::SystemError, attempted)?;
    }
    if mounts {
        mount_console(root, slave.as_fd()).attempt(Code::MountFailed, || "mount /dev/console")?;
    }
    send_descriptor(socket, b"/dev/ptmx", master.as_fd())
        .attempt(Code::SystemError, || "send the terminal through the console socket")?;
    take(slave.as_fd()).attempt(Code::SystemError, attempted)
}

fn open_master(root: &Root) -> Result<OwnedFd> {
    const DEVPTS_MAGIC: u64 = 0x1cd1;
    let attempted = || "open /dev/pts/ptmx";
    let master = root
        .open(Path::new("/dev/pts/ptmx"), OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK)
        .or_else(|failure| match failure.errno {
            Errno::NOENT => root.open(Path::new("/dev/ptmx"), OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK),
            _ => Err(failure),
        })
        .attempt(Code::MountFailed, attempted)?;
    let stat = path::stat(master.as_fd()).attempt(Code::MountFailed, attempted)?;
    let kind = rustix::fs::fstatfs(&master).call("fstatfs").attempt(Code::MountFailed, attempted)?.f_type as u64;
    if stat.st_mode & libc::S_IFMT != libc::S_IFCHR || stat.st_rdev != makedev(5, 2) || kind != DEVPTS_MAGIC {
        return Err(Fault::new(Code::RootfsUnsafe, attempted()).cause("it is not a terminal multiplexer"));
    }
    // It was opened without waiting, in case it was a FIFO; its reader expects a waiting one.
    rustix::fs::fcntl_setfl(&master, OFlags::RDWR).call("fcntl").attempt(Code::SystemError, attempted)?;
    Ok(master)
}

/// Whether lowrun itself gets the master, to carry bytes in the foreground: then the socket is one of a pair, whose
/// peer has no name.
fn is_of_lowrun(socket: BorrowedFd<'_>) -> bool {
    let Ok(peer) = rustix::net::getpeername(socket) else { return false };
    let peer = peer.and_then(|address| SocketAddrUnix::try_from(address).ok());
    peer.is_none_or(|address| address.path_bytes().is_none() && address.abstract_name().is_none_or(<[u8]>::is_empty))
}

/// As runc: the container's terminal ends lines by a line feed alone, and the caller's, if it is one, adds the carriage
/// return: so output that goes to a file or a pipe is what the program wrote.
fn end_lines_once(master: BorrowedFd<'_>) -> sys::Result<()> {
    let mut settings = rustix::termios::tcgetattr(master).call("tcgetattr")?;
    settings.output_modes.remove(OutputModes::ONLCR);
    rustix::termios::tcsetattr(master, OptionalActions::Now, &settings).call("tcsetattr")
}

fn mount_console(root: &Root, slave: BorrowedFd<'_>) -> sys::Result<()> {
    let dev = root.open(Path::new("/dev"), OFlags::PATH | OFlags::DIRECTORY)?;
    let flags = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat(&dev, "console", flags, Mode::from_raw_mode(0o666)) {
        Ok(_) => {}
        // A device node that cannot be opened still is a place to mount on.
        Err(Errno::NXIO | Errno::ACCESS | Errno::NODEV | Errno::PERM | Errno::IO) => {}
        Err(errno) => return Err(Failure { call: "openat", errno }),
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = rustix::fs::openat(&dev, "console", flags, Mode::empty()).call("openat")?;
    let tree = mount::clone_handle(slave, false)?;
    mount::attach(tree.as_fd(), place.as_fd())
}

/// Makes a terminal stdin, stdout and stderr, and the session's own.
fn take(slave: BorrowedFd<'_>) -> sys::Result<()> {
    rustix::stdio::dup2_stdin(slave).call("dup3")?;
    rustix::stdio::dup2_stdout(slave).call("dup3")?;
    rustix::stdio::dup2_stderr(slave).call("dup3")?;
    rustix::process::ioctl_tiocsctty(slave).call("ioctl(TIOCSCTTY)")
}
