//! Running a command line in a terminal of its own, and typing into it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::pty::{Winsize, openpty};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage};

use crate::call::shell_code;
use crate::wait;

/// A command with its terminal. Dropping it hangs up.
pub struct Terminal {
    child: Child,
    master: File,
    seen: Arc<Mutex<Vec<u8>>>,
    /// How much of `seen` earlier expectations have used up.
    used: usize,
}

impl Terminal {
    /// Starts `command` as the leader of a session whose terminal has that size.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Terminal {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).expect("openpty");
        crate::sys::die_with_parent(&mut command);
        crate::sys::lead_terminal_session(&mut command);
        command.stdin(stdio(&pair.slave)).stdout(stdio(&pair.slave)).stderr(stdio(&pair.slave));
        let child = command.spawn().unwrap_or_else(|error| panic!("start {command:?} in a terminal: {error}"));
        crate::process::await_by_hand(child.id() as i32);
        // The command holds the slave's descriptors too; with them the master would never see the end.
        drop((command, pair.slave));
        let master = File::from(pair.master);
        let seen = Arc::new(Mutex::new(Vec::new()));
        collect(master.try_clone().expect("duplicate the master"), Arc::clone(&seen));
        Terminal { child, master, seen, used: 0 }
    }

    /// Types.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn send(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("type into the terminal");
    }

    /// Waits until `text` appears after what earlier expectations found, and returns what came before it.
    ///
    /// # Panics
    /// When it does not appear in time.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let found = wait::poll(wait::PATIENCE, || {
            let rest = self.unused();
            rest.find(text).map(|at| (rest[..at].to_owned(), at + text.len()))
        });
        let Some((before, length)) = found else { panic!("no {text:?} on the terminal but {:?}", self.unused()) };
        self.used += length;
        before
    }

    /// Changes the size, as a window that is dragged does.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(self.master.as_fd(), size).expect("set the terminal's size");
    }

    /// Does the terminal echo and edit lines, as it did at the start?
    pub fn is_cooked(&self) -> bool {
        let modes = rustix::termios::tcgetattr(self.master.as_fd()).expect("ask for the terminal's modes").local_modes;
        modes.contains(rustix::termios::LocalModes::ICANON | rustix::termios::LocalModes::ECHO)
    }

    /// Everything on the terminal so far.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().expect("no reader panics")).into_owned()
    }

    /// Waits for the command's end and returns its code.
    ///
    /// # Panics
    /// When that takes too long.
    #[track_caller]
    pub fn end(&mut self) -> i32 {
        let status = wait::poll(wait::PATIENCE, || self.child.try_wait().ok().flatten());
        shell_code(status.unwrap_or_else(|| panic!("the command goes on; the terminal shows {:?}", self.screen())))
    }

    /// Lossy text keeps byte positions only for valid UTF-8, which is what a terminal is given here.
    fn unused(&self) -> String {
        let seen = self.seen.lock().expect("no reader panics");
        String::from_utf8_lossy(&seen[self.used.min(seen.len())..]).into_owned()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Receives a terminal's master over a console socket, as a shim does (runc's `docs/terminals.md`).
///
/// # Panics
/// When no descriptor comes.
pub fn receive_master(socket: &UnixStream) -> File {
    let mut name = [0; 4096];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = rustix::net::RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(socket, &mut [std::io::IoSliceMut::new(&mut name)], &mut control, flags).expect("receive");
    let rights = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    File::from(rights.expect("the terminal's master"))
}

fn stdio(fd: &OwnedFd) -> Stdio {
    Stdio::from(fd.try_clone().expect("duplicate the terminal"))
}

/// Reads until the last holder of the terminal's other side is gone (then a read fails with EIO).
fn collect(mut master: File, seen: Arc<Mutex<Vec<u8>>>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = master.read(&mut buffer) {
            seen.lock().expect("no reader panics").extend_from_slice(&buffer[..count]);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell() -> Terminal {
        let mut command = Command::new("/bin/sh");
        command.env("PS1", "ready> ");
        Terminal::start(command, 24, 80)
    }

    #[test]
    fn a_shell_answers_and_ends() {
        let mut terminal = shell();
        terminal.expect("ready> ");
        terminal.send("echo $((6 * 7))\n");
        terminal.expect("\n42");
        terminal.send("exit 3\n");
        assert_eq!(terminal.end(), 3);
    }

    #[test]
    fn it_has_a_size_that_changes() {
        let mut terminal = shell();
        terminal.expect("ready> ");
        terminal.resize(33, 101);
        terminal.send("stty size\n");
        terminal.expect("33 101");
        assert!(terminal.is_cooked());
    }

    #[test]
    fn control_c_interrupts() {
        let mut terminal = shell();
        terminal.expect("ready> ");
        terminal.send("sleep 100\n");
        terminal.expect("sleep 100");
        std::thread::sleep(std::time::Duration::from_millis(200));
        terminal.send("\u{3}");
        terminal.expect("ready> ");
    }
}
