//! What goes from this side to the program: standard input, the terminal's size, signals. Each is a task of its own.

use std::io;

use proto_engine::{Input, KillRequest, input};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Local;
use crate::engine::Control;
use crate::engine::stream::InputSender;
use crate::terminal::detach::{DetachKeys, Matcher, Typed};
use crate::terminal::signals::{self, Caught};
use crate::terminal::size;
use crate::terminal::stdin::Stdin;

/// Sends standard input until its end, or until the keys that detach are typed.
pub(super) fn pump_stdin(
    to: InputSender,
    keys: Option<DetachKeys>,
    tell: mpsc::Sender<Local>,
) -> io::Result<JoinHandle<()>> {
    let stdin = Stdin::open()?;
    Ok(tokio::spawn(async move {
        let ended = match keys {
            Some(keys) => pump_typed(stdin, &to, Matcher::new(keys)).await,
            None => pump_bytes(stdin, &to).await,
        };
        match ended {
            // Of the input or of the session: then nobody listens.
            Ok(Ended::Input) => drop(to.send(message(input::Kind::CloseStdin(true))).await),
            Ok(Ended::Session) => {}
            Ok(Ended::Detached) => drop(tell.send(Local::Detached).await),
            Err(error) => drop(tell.send(Local::InputFailed(error)).await),
        }
    }))
}

enum Ended {
    Input,
    Session,
    Detached,
}

async fn pump_bytes(mut stdin: Stdin, to: &InputSender) -> io::Result<Ended> {
    loop {
        let bytes = stdin.read().await?;
        if bytes.is_empty() {
            return Ok(Ended::Input);
        }
        if to.send(message(input::Kind::Stdin(bytes.into()))).await.is_err() {
            return Ok(Ended::Session);
        }
    }
}

async fn pump_typed(mut stdin: Stdin, to: &InputSender, mut matcher: Matcher) -> io::Result<Ended> {
    loop {
        let bytes = stdin.read().await?;
        let at_end = bytes.is_empty();
        let (typed, detached) = match matcher.feed(&bytes) {
            Typed::Input(_) if at_end => (matcher.finish(), false),
            Typed::Input(typed) => (typed, false),
            Typed::Detach(typed) => (typed, true),
        };
        if !typed.is_empty() && to.send(message(input::Kind::Stdin(typed))).await.is_err() {
            return Ok(Ended::Session);
        }
        match (detached, at_end) {
            (true, _) => return Ok(Ended::Detached),
            (_, true) => return Ok(Ended::Input),
            _ => {}
        }
    }
}

/// With a terminal: its size goes to the program; what ends the client, and coming back from a stop, to the session.
pub(super) fn pump_terminal_signals(to: InputSender, tell: mpsc::Sender<Local>) -> io::Result<JoinHandle<()>> {
    let mut caught = signals::of_terminal()?;
    Ok(tokio::spawn(async move {
        while let Some(signal) = caught.recv().await {
            let ended = match signal.number {
                libc::SIGWINCH => send_size(&to).await,
                libc::SIGCONT => tell.send(Local::Resumed).await.is_err() || send_size(&to).await,
                _ => tell.send(Local::Left(signal)).await.is_err(),
            };
            if ended {
                return;
            }
        }
    }))
}

/// The terminal's size alone.
pub(super) fn pump_size(to: InputSender) -> io::Result<JoinHandle<()>> {
    let mut caught = signals::of_size()?;
    Ok(tokio::spawn(async move {
        while caught.recv().await.is_some() {
            if send_size(&to).await {
                return;
            }
        }
    }))
}

/// Whether the session is over.
async fn send_size(to: &InputSender) -> bool {
    match size::window() {
        Some(size) => to.send(message(input::Kind::Resize(size))).await.is_err(),
        None => false,
    }
}

/// Without a terminal: signals go to the program, by a request on a connection of their own. In the stream they would
/// wait behind input that the program does not read.
pub(super) fn pump_signals(
    mut control: Control,
    container: String,
    resize: Option<InputSender>,
    tell: mpsc::Sender<Local>,
) -> io::Result<JoinHandle<()>> {
    let mut caught = signals::proxied()?;
    Ok(tokio::spawn(async move {
        while let Some(signal) = caught.recv().await {
            if let (libc::SIGWINCH, Some(to)) = (signal.number, &resize) {
                send_size(to).await;
                continue;
            }
            let request = KillRequest { container: container.clone(), signal: signal.name.to_owned() };
            // A program that has just ended is no longer there for a signal: not worth a word. An engined that is away
            // cannot pass it on; then a signal that means "end" ends the client.
            if control.kill(request).await.is_err() && ends(signal) && tell.send(Local::Left(signal)).await.is_err() {
                return;
            }
        }
    }))
}

fn ends(signal: Caught) -> bool {
    matches!(signal.number, libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT)
}

fn message(kind: input::Kind) -> Input {
    Input { kind: Some(kind) }
}
