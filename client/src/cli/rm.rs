//! `strata rm`: containers that do not run or, with `--force`, that do.

use clap::{ArgMatches, Command};
use proto_engine::RemoveRequest;
use strata_fault::code;

use super::Call;
use super::arguments::{Arity, on, rest, switch, with_help, words};
use crate::engine::told;
use crate::error::{EXIT_FAILURE, Error, report};
use crate::output::print_line;

/// The flags.
pub(super) fn flags(command: Command) -> Command {
    let force = switch("force").short('f').help("Force the removal of a running container (uses SIGKILL)");
    let volumes = switch("volumes").short('v').help("Remove anonymous volumes too (a container has none)");
    with_help(command.arg(force).arg(volumes).arg(rest("words")), true)
}

/// Runs it.
pub(super) async fn run(matches: ArgMatches, call: Call) -> Result<u8, Error> {
    let names = words(&matches, "words", "rm", Arity::AtLeast(1))?;
    let force = on(&matches, "force");
    let engine = call.connect().await?;
    let answers = futures_util::future::join_all(names.iter().map(|name| async {
        let request = RemoveRequest { container: name.clone(), force };
        told("rm", engine.containers().remove(request).await)
    }));
    let mut failed = false;
    for (name, answer) in names.iter().zip(answers.await) {
        match answer {
            Ok(_) => print_line(name)?,
            Err(error) => {
                report(&error);
                // Who forces a removal wants it gone, and it is.
                failed |= !(force && error.code() == code::CONTAINER_NOT_FOUND);
            }
        }
    }
    if failed { Err(Error::Reported(EXIT_FAILURE)) } else { Ok(0) }
}
