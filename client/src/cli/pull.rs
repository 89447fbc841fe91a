//! `strata pull`: an image from its registry, with the progress of each layer.

use clap::{ArgMatches, Command};
use proto_engine::{PullDone, PullRequest, pull_event::Kind};

use super::arguments::{Arity, on, rest, said, switch, text, with_help, words};
use super::run::with_tag;
use super::{Call, auth, tracing};
use crate::engine::Engine;
use crate::engine::credentials::Config;
use crate::error::Error;
use crate::output::print_line;
use crate::output::progress::{Display, Target};

/// The flags.
pub(super) fn flags(command: Command) -> Command {
    let command = command
        .arg(text("platform", "string").help("Set platform (os/arch[/variant]) when the image has several"))
        .arg(switch("quiet").short('q').help("Suppress verbose output"))
        .arg(tracing::argument())
        .arg(rest("words"));
    with_help(command, true)
}

/// Runs it.
pub(super) async fn run(matches: ArgMatches, call: Call) -> Result<u8, Error> {
    let images = words(&matches, "words", "pull", Arity::Exactly(1))?;
    let (image, quiet) = (&images[0], on(&matches, "quiet"));
    let wanted = tracing::destination(&matches)?;
    let mut engine = call.connect().await?;
    tracing::begin(&mut engine, &call, &wanted);
    if with_tag(image) != *image && !quiet {
        print_line("Using default tag: latest")?;
    }
    let target = if quiet { Target::Nowhere } else { Target::Stdout };
    let result = pull(&mut engine, image, said(&matches, "platform").unwrap_or_default(), target).await;
    let done = tracing::end(&mut engine, &call, wanted, result)?;
    if !quiet {
        let word = if done.changed { "Downloaded newer image for" } else { "Image is up to date for" };
        print_line(&format!("Digest: {}\nStatus: {word} {}", done.digest, with_tag(image)))?;
    }
    print_line(&done.image)?;
    Ok(0)
}

/// Pulls `image`, showing the progress on `target`.
pub(super) async fn pull(engine: &mut Engine, image: &str, platform: &str, target: Target) -> Result<PullDone, Error> {
    let auth = auth::for_pull(&Config::load()?, image)?;
    let request = PullRequest { image: image.to_owned(), auth, platform: platform.to_owned() };
    let answer = engine.images().pull(engine.request(request)).await;
    let mut events = engine.answer("pull", answer)?;
    let mut display = Display::new(target);
    let mut done = None;
    loop {
        let event = events.message().await.map_err(|status| crate::engine::failure("pull", status))?;
        match event.map(|event| event.kind) {
            Some(Some(Kind::Progress(progress))) => display
                .update(&progress)
                .map_err(|source| Error::Terminal { attempted: "show the progress", source })?,
            Some(Some(Kind::Done(said))) => done = Some(said),
            Some(Some(Kind::Spans(bytes))) => {
                if let Some(recorder) = &mut engine.recorder {
                    recorder.take_bytes(&bytes);
                }
            }
            Some(None) => {}
            None => break,
        }
    }
    done.ok_or_else(|| Error::Broken {
        during: "pull",
        source: tonic::Status::unknown("the stream ended without saying that the image is here"),
    })
}
