//! Raw mode of the terminal on standard input, undone on every way out: by the guard, before an error is printed, and by
//! the panic hook (a program built with `panic = "abort"` runs no destructors).

use std::io;
use std::sync::{Mutex, PoisonError};

use rustix::termios::{self, OptionalActions, Termios};

/// The terminal as it was, while it is in raw mode.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode for as long as it lives.
pub(crate) struct RawMode(());

impl RawMode {
    /// Enters raw mode: no echo, no lines, no signals from keys, no processing of output.
    pub(crate) fn enter() -> io::Result<RawMode> {
        let stdin = rustix::stdio::stdin();
        let before = termios::tcgetattr(stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        let mut saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner);
        saved.get_or_insert(before);
        termios::tcsetattr(stdin, OptionalActions::Now, &raw)?;
        Ok(RawMode(()))
    }

    /// Enters it again after a shell took the terminal back (SIGTSTP and SIGCONT).
    pub(crate) fn renew(&self) {
        let stdin = rustix::stdio::stdin();
        if let Ok(mut attributes) = termios::tcgetattr(stdin) {
            attributes.make_raw();
            // The terminal may be gone; then nobody sees how it is set.
            let _ = termios::tcsetattr(stdin, OptionalActions::Now, &attributes);
        }
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        leave();
    }
}

/// Gives the terminal back as it was. Does nothing outside raw mode.
pub(crate) fn leave() {
    let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = saved {
        // The terminal may be gone; then nobody sees how it is set.
        let _ = termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &before);
    }
}

/// Whether standard input is a terminal.
pub(crate) fn stdin_is_terminal() -> bool {
    termios::isatty(rustix::stdio::stdin())
}

/// Makes a panic give the terminal back before it prints.
pub(crate) fn leave_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // The panic may have happened under the lock.
        if let Ok(mut saved) = SAVED.try_lock()
            && let Some(before) = saved.take()
        {
            let _ = termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &before);
        }
        print(panic);
    }));
}
