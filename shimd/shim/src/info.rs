//! `-info`: what this shim and its runtime can do.

use std::io::{self, Read, Write};

use prost::Message;
use prost_types::Any;
use proto_shim::runc;
use proto_shim::types::{RuntimeInfo, RuntimeVersion};

use crate::error::Error;
use crate::lowrun::{Options, Runtime};

/// The runtime's name for containerd's clients.
const NAME: &str = "io.containerd.strata.v1";
/// The type of a runtime's `features`, which are JSON.
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// Bytes of options that are read.
const OPTIONS_MAX: u64 = 1 << 20;

/// Prints a [`RuntimeInfo`]; the runtime's options are on the standard input.
pub(crate) fn info() -> Result<(), Error> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |source| Error::System { what, source }
    };
    let mut bytes = Vec::new();
    io::stdin().lock().take(OPTIONS_MAX).read_to_end(&mut bytes).map_err(failed("read the options"))?;
    let invalid = |error| Error::Invalid { what: format!("the options do not parse: {error}") };
    let any = Any::decode(bytes.as_slice()).map_err(invalid)?;
    let options: Option<runc::Options> = proto_shim::from_any(&any).map_err(invalid)?;
    let info = RuntimeInfo {
        name: NAME.to_owned(),
        version: Some(RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), revision: String::new() }),
        options: options.as_ref().map(|_| any),
        features: features(options.unwrap_or_default())?,
        ..RuntimeInfo::default()
    };
    io::stdout().write_all(&info.encode_to_vec()).map_err(failed("print the answer"))
}

/// The runtime's own words; none from one that does not know the command.
fn features(options: runc::Options) -> Result<Option<Any>, Error> {
    let runtime = Runtime::find(Options::new("", options))?;
    let output = std::process::Command::new(runtime.path()).arg("features").output();
    let output = output.map_err(|source| Error::Runtime { program: runtime.path().display().to_string(), source })?;
    let is_told = output.status.success() && !output.stdout.is_empty();
    Ok(is_told.then(|| Any { type_url: FEATURES_TYPE.to_owned(), value: output.stdout }))
}
