//! Credentials for the registry of an image, when Docker's configuration has some.

use proto_engine::{InspectImageRequest, PullPolicy, RegistryAuth};

use crate::engine::Engine;
use crate::engine::credentials::{Config, Source, ask_helper};
use crate::error::Error;

/// Credentials to send with a pull. A helper is asked: the image is wanted from the registry.
pub(super) fn for_pull(config: &Config, image: &str) -> Result<Option<RegistryAuth>, Error> {
    match config.source(image)? {
        Source::Nowhere => Ok(None),
        Source::Known(auth) => Ok(Some(auth)),
        Source::Helper { name, key, host } => ask_helper(&name, &key, &host),
    }
}

/// Credentials to send with a run. A helper takes longer than the whole run, so it is asked only when engined says that
/// the image is not here.
pub(super) async fn for_run(
    engine: &Engine,
    config: &Config,
    image: &str,
    policy: PullPolicy,
) -> Result<Option<RegistryAuth>, Error> {
    match (policy, config.source(image)?) {
        (PullPolicy::Never, _) | (_, Source::Nowhere) => Ok(None),
        (_, Source::Known(auth)) => Ok(Some(auth)),
        (PullPolicy::Missing, Source::Helper { .. }) if is_here(engine, image).await => Ok(None),
        (_, Source::Helper { name, key, host }) => ask_helper(&name, &key, &host),
    }
}

/// Whether engined has the image. What keeps it from answering will be said by the run itself.
async fn is_here(engine: &Engine, image: &str) -> bool {
    engine.images().inspect(InspectImageRequest { image: image.to_owned() }).await.is_ok()
}
