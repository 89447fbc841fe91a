//! `strata`: the command line of the container engine.
//!
//! It holds no logic that another client would need: it reads what was typed, asks engined, shows the answer.
//! cli (typed → meant) → engine (the connection) → session (a program's streams) ; terminal, output, trace (shown).

mod cli;
mod engine;
mod error;
mod output;
mod session;
mod sys;
mod terminal;
mod trace;

use std::ffi::OsString;

use error::{Error, ExitRule};

fn main() {
    let began_ns = strata_trace::now_ns();
    terminal::raw::leave_on_panic();
    let typed: Vec<OsString> = std::env::args_os().collect();
    let (rule, result) = cli::run(typed, began_ns);
    terminal::raw::leave();
    std::process::exit(exit_code(rule, result));
}

/// Tells an error, and says what the process ends with. `exit` then drops no runtime: nothing is left to do, and a thread
/// may be blocked on a reader that does not read.
fn exit_code(rule: ExitRule, result: Result<u8, Error>) -> i32 {
    match result {
        Ok(code) => code.into(),
        // As every program at the left of a pipe ends when the right one has gone.
        Err(error) if error.is_broken_pipe() => sys::die_of(libc::SIGPIPE),
        Err(error) => {
            error::report(&error);
            error.exit_code(rule).into()
        }
    }
}
