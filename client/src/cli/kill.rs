//! `strata kill`: a signal.

use clap::{ArgMatches, Command};
use proto_engine::KillRequest;

use super::Call;
use super::arguments::{Arity, rest, said, text, with_help, words};
use super::each::each;
use crate::engine::told;
use crate::error::Error;

/// The flags.
pub(super) fn flags(command: Command) -> Command {
    let signal = text("signal", "string").short('s').help("Signal to send to the container (default KILL)");
    with_help(command.arg(signal).arg(rest("words")), true)
}

/// Runs it.
pub(super) async fn run(matches: ArgMatches, call: Call) -> Result<u8, Error> {
    let names = words(&matches, "words", "kill", Arity::AtLeast(1))?;
    let signal = said(&matches, "signal").unwrap_or_default();
    let engine = call.connect().await?;
    each(&names, |name| async {
        let request = KillRequest { container: name.clone(), signal: signal.to_owned() };
        told("kill", engine.containers().kill(request).await)?;
        Ok(name)
    })
    .await
}
