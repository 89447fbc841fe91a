//! `strata completion SHELL`: the script that completes commands and flags.

use clap::{ArgMatches, Command};
use clap_complete::Shell;

use super::Call;
use super::arguments::{Arity, rest, with_help, words};
use crate::error::Error;
use crate::output;

/// The flags.
pub(super) fn flags(command: Command) -> Command {
    with_help(command.arg(rest("words")), true)
}

/// Runs it.
pub(super) async fn run(matches: ArgMatches, _call: Call) -> Result<u8, Error> {
    let shells = words(&matches, "words", "completion", Arity::Exactly(1))?;
    let shell: Shell = shells[0].parse().map_err(|_| Error::Arity {
        message: format!("there is no completion for the shell '{}'", shells[0]),
        hint: "bash, zsh, fish, elvish and powershell are supported".to_owned(),
    })?;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut super::command(), "strata", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}
