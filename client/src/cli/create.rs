//! `strata create`: a container, not started. A missing image is pulled first.

use clap::{ArgMatches, Command};
use proto_engine::{CreateRequest, CreateResponse, PullPolicy};
use strata_fault::code;

use super::arguments::with_help;
use super::container::{self, Meant};
use super::run::{CidFile, warn, with_tag};
use super::{Call, pull, tracing};
use crate::engine::Engine;
use crate::error::Error;
use crate::output::print_line;
use crate::output::progress::Target;

/// The flags.
pub(super) fn flags(command: Command) -> Command {
    with_help(container::flags(command).arg(tracing::argument()), false)
}

/// Runs it.
pub(super) async fn run(matches: ArgMatches, call: Call) -> Result<u8, Error> {
    let meant = container::meant(&matches, "create")?;
    let wanted = tracing::destination(&matches)?;
    let cid_file = meant.cid_file.clone().map(CidFile::reserve).transpose()?;
    let mut engine = call.connect().await?;
    tracing::begin(&mut engine, &call, &wanted);
    let result = create(&mut engine, &meant).await;
    let created = tracing::end(&mut engine, &call, wanted, result)?;
    meant.warnings.iter().chain(&created.warnings).for_each(|warning| warn(warning));
    if let Some(file) = cid_file {
        file.write(&created.id)?;
    }
    print_line(&created.id)?;
    Ok(0)
}

async fn create(engine: &mut Engine, meant: &Meant) -> Result<CreateResponse, Error> {
    let target = if meant.quiet { Target::Nowhere } else { Target::Stderr };
    let image = &meant.spec.image;
    if meant.pull == PullPolicy::AlwaysPull {
        pull::pull(engine, image, "", target).await?;
    }
    match ask(engine, meant).await {
        Err(error) if meant.pull == PullPolicy::Missing && error.code() == code::IMAGE_NOT_LOCAL => {
            if target != Target::Nowhere {
                eprintln!("Unable to find image '{}' locally", with_tag(image));
            }
            pull::pull(engine, image, "", target).await?;
            ask(engine, meant).await
        }
        answer => answer,
    }
}

async fn ask(engine: &mut Engine, meant: &Meant) -> Result<CreateResponse, Error> {
    let request = CreateRequest { spec: Some(meant.spec.clone()), pull: PullPolicy::Never.into(), auth: None };
    let answer = engine.containers().create(engine.request(request)).await;
    engine.answer("create", answer)
}
