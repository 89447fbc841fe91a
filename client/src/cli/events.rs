//! `strata events`: what happened, and what happens, across restarts of engined.

use std::time::SystemTime;

use clap::{ArgMatches, Command};
use prost_types::Timestamp;
use proto_engine::{Event, EventsRequest};

use super::Call;
use super::arguments::{Arity, list, parsed, rest, said, text, with_help, words};
use super::ps::filters;
use super::value::moment;
use crate::engine::reconnect::{Patience, may_pass};
use crate::engine::{Engine, failure, told};
use crate::error::Error;
use crate::output::{event, json, print_line, template::Template};

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
    let mut request = EventsRequest {
        since: parsed(&matches, "since", "--since", time)?,
        until: parsed(&matches, "until", "--until", time)?,
        filters: filters(&matches)?,
    };
    let form = said(&matches, "format").filter(|format| !format.is_empty()).map(Form::parse).transpose()?;
    let mut engine = call.connect().await?;
    let mut shown = Shown::default();
    let mut patience = Patience::new();
    loop {
        let broken = match pass(&engine, request.clone(), form.as_ref(), &mut shown).await {
            Err(error) if shown.began && may_pass(&error) => error,
            result => return result.map(|()| 0),
        };
        if shown.fresh {
            patience = Patience::new();
            shown.fresh = false;
        }
        patience.wait(broken).await?;
        engine.reconnect(&mut patience).await?;
        // What happened while engined was away is asked for from the last event on, or from when this began.
        request.since = shown.last.or(request.since).or_else(|| Some(Timestamp::from(now)));
    }
}

/// Shows events until the stream ends.
async fn pass(engine: &Engine, request: EventsRequest, form: Option<&Form>, shown: &mut Shown) -> Result<(), Error> {
    let mut events = told("events", engine.system().events(request).await)?;
    shown.began = true;
    while let Some(happened) = events.message().await.map_err(|status| failure("events", status))? {
        if shown.is_new(&happened) {
            show(&happened, form)?;
        }
    }
    Ok(())
}

fn show(happened: &Event, form: Option<&Form>) -> Result<(), Error> {
    match form {
        None => print_line(&event::line(happened)),
        Some(Form::Json) => print_line(&json::compact(&event::object(happened))),
        Some(Form::Template(template)) => print_line(&template.apply_to_event(&event::object(happened))?),
    }
}

/// What was shown, so that nothing is shown twice after a break.
#[derive(Default)]
struct Shown {
    began: bool,
    /// Something came since the last break.
    fresh: bool,
    last: Option<Timestamp>,
    /// The events of that very moment.
    of_last: Vec<(String, String, String)>,
}

impl Shown {
    fn is_new(&mut self, happened: &Event) -> bool {
        self.fresh = true;
        let name = (happened.r#type.clone(), happened.action.clone(), happened.id.clone());
        if happened.at == self.last {
            if self.of_last.contains(&name) {
                return false;
            }
        } else {
            (self.last, self.of_last) = (happened.at, Vec::new());
        }
        self.of_last.push(name);
        true
    }
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
        template.apply_to_event(&event::object(&sample))?;
        Ok(Form::Template(template))
    }
}
