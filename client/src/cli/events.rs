//! `strata events`: what happened, and what happens.

use std::time::SystemTime;

use clap::{ArgMatches, Command};
use proto_engine::EventsRequest;

use super::Call;
use super::arguments::{Arity, list, parsed, rest, said, text, with_help, words};
use super::ps::filters;
use super::value::moment;
use crate::engine::{failure, told};
use crate::error::Error;
use crate::output::{event, json, print, print_line, template::Template};

/// The flags.
pub(super) fn flags(command: Command) -> Command {
    let command = command
        .arg(list("filter", "filter").short('f').help("Filter output based on conditions provided"))
        .arg(text("format", "string").help("Format output: json, or a Go template"))
        .arg(text("since", "string").help("Show all events created since a time or an age"))
        .arg(text("until", "string").help("Stream events until a time or an age"))
        .arg(rest("words"));
    with_help(command, true)
}

/// Runs it.
pub(super) async fn run(matches: ArgMatches, call: Call) -> Result<u8, Error> {
    words(&matches, "words", "events", Arity::None)?;
    let now = SystemTime::now();
    let time = |text: &str| moment::moment(text, now);
    let request = EventsRequest {
        since: parsed(&matches, "since", "--since", time)?,
        until: parsed(&matches, "until", "--until", time)?,
        filters: filters(&matches)?,
    };
    let form = said(&matches, "format").filter(|format| !format.is_empty()).map(Form::parse).transpose()?;
    let engine = call.connect().await?;
    let mut events = told("events", engine.system().events(request).await)?;
    while let Some(happened) = events.message().await.map_err(|status| failure("events", status))? {
        match &form {
            None => print_line(&event::line(&happened))?,
            Some(Form::Json) => print_line(&json::compact(&event::object(&happened)))?,
            Some(Form::Template(template)) => print(&format!("{}\n", template.apply(&event::object(&happened))?))?,
        }
    }
    Ok(0)
}

enum Form {
    Json,
    Template(Template),
}

impl Form {
    /// A template is tried on an empty event, so that a wrong one is told before anything happens.
    fn parse(text: &str) -> Result<Form, Error> {
        if text == "json" {
            return Ok(Form::Json);
        }
        let template = Template::parse(text)?;
        let sample = proto_engine::Event { r#type: "container".to_owned(), ..Default::default() };
        template.apply(&event::object(&sample))?;
        Ok(Form::Template(template))
    }
}
