//! `strata rmi`: names of images and, with the last name, the image.

use clap::{ArgMatches, Command};
use proto_engine::RemoveImageRequest;
use strata_fault::code;

use super::Call;
use super::arguments::{Arity, on, rest, switch, with_help, words};
use crate::engine::told;
use crate::error::{EXIT_FAILURE, Error, report};
use crate::output::print_line;

/// The flags.
pub(super) fn flags(command: Command) -> Command {
    let force = switch("force").short('f').help("Force removal of the image");
    with_help(command.arg(force).arg(rest("words")), true)
}

/// Runs it, one after the other: two names of one image must not race for being the last.
pub(super) async fn run(matches: ArgMatches, call: Call) -> Result<u8, Error> {
    let names = words(&matches, "words", "rmi", Arity::AtLeast(1))?;
    let force = on(&matches, "force");
    let engine = call.connect().await?;
    let mut failed = false;
    for image in names {
        let request = RemoveImageRequest { image, force };
        match told("rmi", engine.images().remove(request).await) {
            Ok(removed) => {
                for name in &removed.untagged {
                    print_line(&format!("Untagged: {name}"))?;
                }
                for digest in &removed.deleted {
                    print_line(&format!("Deleted: {digest}"))?;
                }
            }
            Err(error) => {
                report(&error);
                let gone = matches!(error.code(), code::IMAGE_NOT_FOUND | code::IMAGE_NOT_LOCAL);
                failed |= !(force && gone);
            }
        }
    }
    if failed { Err(Error::Reported(EXIT_FAILURE)) } else { Ok(0) }
}
