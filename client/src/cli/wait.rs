//! `strata wait`: until containers do not run, then their exit codes.

use clap::{ArgMatches, Command};
use proto_engine::{WaitRequest, WaitResponse, wait_request::Condition};

use super::Call;
use super::arguments::{Arity, rest, with_help, words};
use super::each::each;
use crate::engine::reconnect::{Patience, may_pass};
use crate::engine::told;
use crate::error::Error;

/// The flags.
pub(super) fn flags(command: Command) -> Command {
    with_help(command.arg(rest("words")), true)
}

/// Runs it.
pub(super) async fn run(matches: ArgMatches, call: Call) -> Result<u8, Error> {
    let names = words(&matches, "words", "wait", Arity::AtLeast(1))?;
    each(&names, |name| async {
        let answer = wait(&call, name).await?;
        Ok(answer.exit.unwrap_or_default().code.to_string())
    })
    .await
}

/// Waits, across restarts of engined. Each wait has a connection of its own, which may break alone.
async fn wait(call: &Call, container: String) -> Result<WaitResponse, Error> {
    let mut engine = call.connect().await?;
    let mut patience = None;
    loop {
        let request = WaitRequest { container: container.clone(), condition: Condition::NotRunning.into() };
        match told("wait", engine.containers().wait(request).await) {
            Err(error) if may_pass(&error) => {
                let patience = patience.get_or_insert_with(Patience::new);
                patience.wait(error).await?;
                engine.reconnect(patience).await?;
            }
            answer => return answer,
        }
    }
}
