//! `strata ps`: the list of containers.

use std::time::SystemTime;

use clap::{ArgMatches, Command};
use proto_engine::ListContainersRequest;

use super::Call;
use super::arguments::{Arity, all, list, on, parsed, rest, said, switch, text, with_help, words};
use super::value::{filter, number};
use crate::engine::told;
use crate::error::Error;
use crate::output::format::Listing;
use crate::output::{container, print};

/// The flags.
pub(super) fn flags(command: Command) -> Command {
    let command = command
        .arg(switch("all").short('a').help("Show all containers (default shows just running)"))
        .arg(list("filter", "filter").short('f').help("Filter output based on conditions provided"))
        .arg(text("format", "string").help("Format output: table, table TEMPLATE, json, or a Go template"))
        .arg(text("last", "int").short('n').help("Show n last created containers (includes all states)"))
        .arg(switch("latest").short('l').help("Show the latest created container (includes all states)"))
        .arg(switch("no-trunc").help("Don't truncate output"))
        .arg(switch("quiet").short('q').help("Only display container IDs"))
        .arg(rest("words"));
    with_help(command, true)
}

/// Runs it.
pub(super) async fn run(matches: ArgMatches, call: Call) -> Result<u8, Error> {
    words(&matches, "words", "ps", Arity::None)?;
    let request = request(&matches)?;
    let engine = call.connect().await?;
    let answer = told("ps", engine.containers().list(request).await)?;
    let (now, truncate) = (SystemTime::now(), !on(&matches, "no-trunc"));
    let rows: Vec<_> = answer.containers.iter().map(|row| container::row(row, truncate, now)).collect();
    let listing = Listing {
        format: said(&matches, "format"),
        quiet: on(&matches, "quiet"),
        default_table: container::TABLE,
        headings: container::headings(),
    };
    print(&listing.text(&rows)?)?;
    Ok(0)
}

fn request(matches: &ArgMatches) -> Result<ListContainersRequest, Error> {
    let last = parsed(matches, "last", "-n, --last", number::integer)?.unwrap_or(-1);
    let limit = if on(matches, "latest") { 1 } else { u32::try_from(last.max(0)).unwrap_or(u32::MAX) };
    Ok(ListContainersRequest { all: on(matches, "all") || limit > 0, filters: filters(matches)?, limit })
}

/// All `--filter`s of a command.
pub(super) fn filters(matches: &ArgMatches) -> Result<Vec<proto_engine::Filter>, Error> {
    let mut filters = Vec::new();
    for text in all(matches, "filter") {
        filter::add(&mut filters, text).map_err(|why| Error::flag_value("-f, --filter", text, why))?;
    }
    Ok(filters)
}
