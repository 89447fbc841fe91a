//! The client on a pseudo-terminal: raw mode and its end, keys, size, signals.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::fake::Fake;
use crate::support::strata;

/// A terminal with a client on it.
struct Terminal {
    /// The person's end.
    person: File,
    /// The program's end, kept open to look at its modes.
    program: File,
    child: Child,
    seen: String,
}

impl Terminal {
    fn start(fake: &Fake, line: &str) -> Terminal {
        let person: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let name = ptsname(&person, Vec::new()).unwrap();
        let program = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        tcsetwinsize(&person, Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let end = || Stdio::from(program.try_clone().unwrap());
        let mut command = strata(fake);
        let child = command.args(line.split(' ')).stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        Terminal { person: person.into(), program, child, seen: String::new() }
    }

    fn type_keys(&mut self, keys: &[u8]) {
        self.person.write_all(keys).unwrap();
    }

    /// Reads until `text` is on the screen.
    #[track_caller]
    fn expect(&mut self, text: &str) {
        let begun = Instant::now();
        while !self.seen.contains(text) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{text:?} not in {:?}", self.seen);
            self.read_some();
        }
    }

    fn read_some(&mut self) {
        let person = self.person.as_fd();
        let mut fds = [PollFd::new(&person, PollFlags::IN)];
        let wait = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        if poll(&mut fds, Some(&wait)).unwrap() > 0 {
            let mut buffer = [0; 4096];
            let length = self.person.read(&mut buffer).unwrap_or(0);
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.program)
            .unwrap()
            .local_modes
            .intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    fn wait_raw(&self) {
        let begun = Instant::now();
        while !self.is_raw() {
            assert!(begun.elapsed() < Duration::from_secs(20), "never in raw mode");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The exit code; the terminal must be as it was.
    #[track_caller]
    fn end(mut self) -> (Option<i32>, String) {
        let begun = Instant::now();
        let status = loop {
            self.read_some();
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "it does not end: {:?}", self.seen);
        };
        self.read_some();
        let modes = tcgetattr(&self.program).unwrap().local_modes;
        assert!(modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG), "left raw: {modes:?}");
        (status.code(), self.seen)
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }
}

#[test]
fn keys_go_to_the_program_and_the_terminal_comes_back() {
    let fake = Fake::start();
    let mut terminal = Terminal::start(&fake, "run -it --rm cat");
    terminal.wait_raw();
    terminal.type_keys(b"hello\x03\r");
    terminal.expect("hello\x03\r");
    terminal.type_keys(b"\x04");
    assert_eq!(terminal.end().0, Some(0));
    let open = fake.shared().run.clone().unwrap();
    assert_eq!(open.size.map(|size| (size.width, size.height)), Some((100, 24)));
}

#[test]
fn detach_keys_leave_the_container() {
    for (line, keys) in
        [("run -it cat", &b"\x10\x11"[..]), ("run -it --detach-keys a,b cat", b"ab"), ("exec -it web cat", b"\x10\x11")]
    {
        let fake = Fake::start();
        let mut terminal = Terminal::start(&fake, line);
        terminal.wait_raw();
        terminal.type_keys(b"x\x10y");
        terminal.expect("x\x10y");
        terminal.type_keys(keys);
        assert_eq!(terminal.end().0, Some(0), "{line}");
    }
}

#[test]
fn a_new_size_is_told() {
    let fake = Fake::start();
    let mut terminal = Terminal::start(&fake, "run -it cat");
    terminal.wait_raw();
    tcsetwinsize(&terminal.person, Winsize { ws_row: 50, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    // The pump may not be there yet when raw mode is.
    while !fake.shared().resizes.contains(&(120, 50)) {
        terminal.signal(Signal::WINCH);
        std::thread::sleep(Duration::from_millis(20));
    }
    terminal.type_keys(b"\x04");
    assert_eq!(terminal.end().0, Some(0));
}

#[test]
fn a_signal_restores_the_terminal() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::INT, 130), (Signal::QUIT, 131)] {
        let fake = Fake::start();
        let mut terminal = Terminal::start(&fake, "run -it cat");
        terminal.wait_raw();
        terminal.type_keys(b"up\r");
        terminal.expect("up\r");
        terminal.signal(signal);
        assert_eq!(terminal.end().0, Some(code));
    }
}

#[test]
fn a_program_that_cannot_start_restores_the_terminal() {
    let fake = Fake::start();
    let terminal = Terminal::start(&fake, "run -it nocommand");
    let (code, seen) = terminal.end();
    assert_eq!(code, Some(127));
    assert!(seen.contains("strata: runtime: start: run \"nope\"\r\n"), "{seen:?}");
}

#[test]
fn a_lost_connection_is_said_without_spoiling_the_screen() {
    let mut fake = Fake::start();
    fake.shared().break_after = Some(1);
    let mut terminal = Terminal::start(&fake, "run -it cat");
    terminal.wait_raw();
    terminal.type_keys(b"one\r");
    terminal.expect("one\r");
    fake.wait_for_break();
    fake.die();
    terminal.expect("connecting again\r\n");
    assert!(terminal.is_raw());
    terminal.type_keys(b"\x10\x11");
    assert_eq!(terminal.end().0, Some(0));
}

#[test]
fn progress_is_drawn_in_place() {
    let fake = Fake::start();
    let layer = |name: &str, phase: proto_engine::pull_progress::Phase| proto_engine::PullProgress {
        digest: format!("sha256:{}", name.repeat(32)),
        phase: phase.into(),
        current: 5_000_000,
        total: 10_000_000,
        image: "docker.io/library/cat:latest".to_owned(),
    };
    use proto_engine::pull_progress::Phase;
    fake.shared().pull = vec![
        layer("ab", Phase::Downloading),
        layer("cd", Phase::Downloading),
        layer("ab", Phase::Done),
        layer("cd", Phase::Done),
    ];
    let terminal = Terminal::start(&fake, "pull cat");
    let (code, seen) = terminal.end();
    assert_eq!(code, Some(0));
    assert!(seen.contains("abababababab: Downloading 5MB/10MB") && seen.contains("\x1b[2A"), "{seen:?}");
    assert!(seen.contains("cdcdcdcdcdcd: Pull complete"), "{seen:?}");
}
