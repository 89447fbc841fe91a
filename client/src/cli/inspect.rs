//! `strata inspect`: all that is known of containers and images, in docker's shape.

use clap::{ArgMatches, Command};
use proto_engine::{InspectContainerRequest, InspectImageRequest};
use strata_fault::code;

use super::Call;
use super::arguments::{Arity, parsed, rest, said, text, with_help, words};
use super::value::Parsed;
use crate::engine::{Engine, told};
use crate::error::{EXIT_FAILURE, Error, report};
use crate::output::value::Value;
use crate::output::{format, inspect_container, inspect_image, json, print};

/// The flags.
pub(super) fn flags(command: Command) -> Command {
    let command = command
        .arg(text("format", "string").short('f').help("Format output: json, or a Go template"))
        .arg(text("type", "string").help("Only inspect objects of the given type (container or image)"))
        .arg(rest("words"));
    with_help(command, true)
}

/// What kind of thing a name may be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Container,
    Image,
    Either,
}

fn kind(text: &str) -> Parsed<Kind> {
    match text {
        "container" => Ok(Kind::Container),
        "image" => Ok(Kind::Image),
        "" => Ok(Kind::Either),
        other => Err(format!("\"{other}\" is not a valid value for --type: container and image are")),
    }
}

/// Runs it: what is found is shown also when something else is not.
pub(super) async fn run(matches: ArgMatches, call: Call) -> Result<u8, Error> {
    let names = words(&matches, "words", "inspect", Arity::AtLeast(1))?;
    let kind = parsed(&matches, "type", "--type", kind)?.unwrap_or(Kind::Either);
    let template = said(&matches, "format").filter(|format| !format.is_empty());
    let engine = call.connect().await?;
    let (mut objects, mut errors) = (Vec::new(), Vec::new());
    for name in &names {
        match object(&engine, name, kind).await {
            Ok(object) => objects.push(object),
            Err(error) => errors.push(error),
        }
    }
    match template {
        None => print(&format!("{}\n", json::pretty(&Value::List(objects))))?,
        // As docker: one list on one line, also of one object.
        Some("json") => print(&format!("{}\n", json::compact(&Value::List(objects))))?,
        Some(template) => {
            for object in &objects {
                print(&format::object(template, object)?)?;
            }
        }
    }
    errors.iter().for_each(report);
    if errors.is_empty() { Ok(0) } else { Err(Error::Reported(EXIT_FAILURE)) }
}

async fn object(engine: &Engine, name: &str, kind: Kind) -> Result<Value, Error> {
    match kind {
        Kind::Container => container(engine, name).await,
        Kind::Image => image(engine, name).await,
        Kind::Either => match container(engine, name).await {
            Err(error) if error.code() == code::CONTAINER_NOT_FOUND => match image(engine, name).await {
                Err(error) if is_missing_image(&error) => Err(neither(name)),
                answer => answer,
            },
            answer => answer,
        },
    }
}

fn is_missing_image(error: &Error) -> bool {
    // A name that cannot be a reference (an upper-case container's name) is no image either.
    matches!(error.code(), code::IMAGE_NOT_FOUND | code::IMAGE_NOT_LOCAL | code::INVALID_ARGUMENT)
}

fn neither(name: &str) -> Error {
    Error::refused(format!("no such object: {name}"))
}

async fn container(engine: &Engine, name: &str) -> Result<Value, Error> {
    let request = InspectContainerRequest { container: name.to_owned() };
    let answer = told("inspect", engine.containers().inspect(request).await)?;
    Ok(inspect_container::object(&answer.container.unwrap_or_default()))
}

async fn image(engine: &Engine, name: &str) -> Result<Value, Error> {
    let request = InspectImageRequest { image: name.to_owned() };
    let answer = told("inspect", engine.images().inspect(request).await)?;
    inspect_image::object(&answer)
        .map_err(|why| Error::refused(format!("read the config document of image {name}: {why}")))
}
