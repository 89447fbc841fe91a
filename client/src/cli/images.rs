//! `strata images`: the list of images.

use std::time::SystemTime;

use clap::{ArgMatches, Command};
use proto_engine::{Filter, ListImagesRequest};

use super::Call;
use super::arguments::{Arity, list, on, rest, said, switch, text, with_help, words};
use super::ps::filters;
use crate::engine::told;
use crate::error::Error;
use crate::output::format::Listing;
use crate::output::image::{self, Detail};
use crate::output::print;

/// The flags.
pub(super) fn flags(command: Command) -> Command {
    let command = command
        .arg(switch("all").short('a').help("Show all images (there are no hidden ones)"))
        .arg(switch("digests").help("Show digests"))
        .arg(list("filter", "filter").short('f').help("Filter output based on conditions provided"))
        .arg(text("format", "string").help("Format output: table, table TEMPLATE, json, or a Go template"))
        .arg(switch("no-trunc").help("Don't truncate output"))
        .arg(switch("quiet").short('q').help("Only show image IDs"))
        .arg(rest("words"));
    with_help(command, true)
}

/// Runs it.
pub(super) async fn run(matches: ArgMatches, call: Call) -> Result<u8, Error> {
    let words = words(&matches, "words", "images", Arity::AtMost(1))?;
    let mut filters = filters(&matches)?;
    filters.extend(words.into_iter().map(|reference| Filter { key: "reference".to_owned(), values: vec![reference] }));
    let engine = call.connect().await?;
    let answer = told("images", engine.images().list(ListImagesRequest { filters }).await)?;
    let quiet = on(&matches, "quiet");
    let detail = Detail { digests: on(&matches, "digests"), truncate: !on(&matches, "no-trunc") };
    let now = SystemTime::now();
    let rows: Vec<_> = answer.images.iter().flat_map(|row| image::rows(row, detail, now)).collect();
    let listing = Listing {
        format: said(&matches, "format"),
        quiet,
        default_table: if detail.digests { image::TABLE_WITH_DIGESTS } else { image::TABLE },
        headings: image::headings(),
    };
    print(&listing.text(&rows)?)?;
    Ok(0)
}
