//! Signals: passed on to the program when there is no terminal (docker's `--sig-proxy`), acted upon when there is one.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// What is passed on: all that docker passes on and that the kernel lets a process catch, but for those of job control
/// between a process and its child (CHLD), of a lost reader (PIPE) and of faults in this program.
const PROXIED: [(i32, &str); 21] = [
    (libc::SIGHUP, "HUP"),
    (libc::SIGINT, "INT"),
    (libc::SIGQUIT, "QUIT"),
    (libc::SIGTRAP, "TRAP"),
    (libc::SIGABRT, "ABRT"),
    (libc::SIGUSR1, "USR1"),
    (libc::SIGUSR2, "USR2"),
    (libc::SIGALRM, "ALRM"),
    (libc::SIGTERM, "TERM"),
    (libc::SIGCONT, "CONT"),
    (libc::SIGTSTP, "TSTP"),
    (libc::SIGTTIN, "TTIN"),
    (libc::SIGTTOU, "TTOU"),
    (libc::SIGURG, "URG"),
    (libc::SIGXCPU, "XCPU"),
    (libc::SIGXFSZ, "XFSZ"),
    (libc::SIGVTALRM, "VTALRM"),
    (libc::SIGPROF, "PROF"),
    (libc::SIGWINCH, "WINCH"),
    (libc::SIGIO, "IO"),
    (libc::SIGPWR, "PWR"),
];
/// What ends the client while it holds a terminal in raw mode.
const ENDING: [(i32, &str); 4] =
    [(libc::SIGHUP, "HUP"), (libc::SIGINT, "INT"), (libc::SIGQUIT, "QUIT"), (libc::SIGTERM, "TERM")];

/// A signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caught {
    pub(crate) number: i32,
    /// Without SIG.
    pub(crate) name: &'static str,
}

/// Catches the signals that are passed on to a program.
pub(crate) fn proxied() -> io::Result<mpsc::Receiver<Caught>> {
    catch(&PROXIED)
}

/// Catches the signals that matter with a terminal: those that end the client, a new size, and coming back from a stop.
pub(crate) fn of_terminal() -> io::Result<mpsc::Receiver<Caught>> {
    let mut wanted = ENDING.to_vec();
    wanted.push((libc::SIGWINCH, "WINCH"));
    wanted.push((libc::SIGCONT, "CONT"));
    catch(&wanted)
}

/// Catches a new size of the terminal.
pub(crate) fn of_size() -> io::Result<mpsc::Receiver<Caught>> {
    catch(&[(libc::SIGWINCH, "WINCH")])
}

fn catch(wanted: &[(i32, &'static str)]) -> io::Result<mpsc::Receiver<Caught>> {
    let (sender, receiver) = mpsc::channel(64);
    for &(number, name) in wanted {
        let stream = signal(SignalKind::from_raw(number))?;
        tokio::spawn(forward(stream, Caught { number, name }, sender.clone()));
    }
    Ok(receiver)
}

async fn forward(mut stream: Signal, caught: Caught, to: mpsc::Sender<Caught>) {
    while stream.recv().await.is_some() {
        if to.send(caught).await.is_err() {
            return;
        }
    }
}
