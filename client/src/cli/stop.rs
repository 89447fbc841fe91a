//! `strata stop`: the stop signal, then SIGKILL.

use clap::{ArgMatches, Command};
use proto_engine::StopRequest;

use super::Call;
use super::arguments::{Arity, parsed, rest, said, text, with_help, words};
use super::each::each;
use super::value::number;
use crate::engine::told;
use crate::error::Error;

/// The flags.
pub(super) fn flags(command: Command) -> Command {
    let command = command
        .arg(text("signal", "string").short('s').help("Signal to send to the container"))
        .arg(text("timeout", "int").short('t').alias("time").help("Seconds to wait before killing the container"))
        .arg(rest("words"));
    with_help(command, true)
}

/// Runs it.
pub(super) async fn run(matches: ArgMatches, call: Call) -> Result<u8, Error> {
    let names = words(&matches, "words", "stop", Arity::AtLeast(1))?;
    let timeout_s = parsed(&matches, "timeout", "-t, --timeout", timeout)?;
    let signal = said(&matches, "signal").unwrap_or_default();
    let engine = call.connect().await?;
    each(&names, |name| async {
        let request = StopRequest { container: name.clone(), timeout_s, signal: signal.to_owned() };
        told("stop", engine.containers().stop(request).await)?;
        Ok(name)
    })
    .await
}

/// Seconds; -1 waits for ever, as far as a count of seconds can.
fn timeout(text: &str) -> super::value::Parsed<u32> {
    if text == "-1" { Ok(u32::MAX) } else { number::seconds(text) }
}
