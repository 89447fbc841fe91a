//! `strata version`: of the client, of engined and of the supervisor below it.

use clap::{ArgMatches, Command};
use proto_engine::{VersionRequest, VersionResponse};

use super::Call;
use super::arguments::{Arity, rest, said, text, with_help, words};
use crate::engine::told;
use crate::error::Error;
use crate::output::value::Value;
use crate::output::{format, print, table};

const CLIENT: &str = env!("CARGO_PKG_VERSION");
const API: &str = "strata.engine.v1";

/// The flags.
pub(super) fn flags(command: Command) -> Command {
    let format = text("format", "string").short('f').help("Format output: json, or a Go template");
    with_help(command.arg(format).arg(rest("words")), true)
}

/// Runs it. The client's own version is shown also when engined does not answer.
pub(super) async fn run(matches: ArgMatches, call: Call) -> Result<u8, Error> {
    words(&matches, "words", "version", Arity::None)?;
    let server = server(&call).await;
    let known = server.as_ref().ok();
    match said(&matches, "format").filter(|format| !format.is_empty()) {
        Some(template) => print(&format::object(template, &object(known))?)?,
        None => print(&in_words(known))?,
    }
    server.map(|_| 0)
}

async fn server(call: &Call) -> Result<VersionResponse, Error> {
    let engine = call.connect().await?;
    told("version", engine.system().version(VersionRequest {}).await)
}

fn platform() -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("{}/{arch}", std::env::consts::OS)
}

fn in_words(server: Option<&VersionResponse>) -> String {
    let mut text = format!("Client:\n Version:\t{CLIENT}\n API version:\t{API}\n OS/Arch:\t{}\n", platform());
    if let Some(server) = server {
        text.push_str(&format!(
            "\nServer:\n Engine:\n  Version:\t{}\n  API version:\t{}\n",
            server.version, server.api_version
        ));
        if !server.git_commit.is_empty() {
            text.push_str(&format!("  Git commit:\t{}\n", server.git_commit));
        }
        text.push_str(&format!("  OS/Arch:\t{}/{}\n  Kernel:\t{}\n", server.os, server.arch, server.kernel));
        text.push_str(&format!(" {}:\n  Version:\t{}\n", server.supervisor_name, server.supervisor_version));
    }
    table::align_with(&text, 20, 1)
}

fn object(server: Option<&VersionResponse>) -> Value {
    let client = Value::structure([
        ("Version", CLIENT.into()),
        ("ApiVersion", API.into()),
        ("Os", std::env::consts::OS.into()),
        ("Arch", platform().split_once('/').map_or("", |(_, arch)| arch).into()),
    ]);
    let server = server.map_or(Value::Null, |server| {
        Value::structure([
            ("Version", server.version.as_str().into()),
            ("ApiVersion", server.api_version.as_str().into()),
            ("GitCommit", server.git_commit.as_str().into()),
            ("Os", server.os.as_str().into()),
            ("Arch", server.arch.as_str().into()),
            ("KernelVersion", server.kernel.as_str().into()),
            ("SupervisorName", server.supervisor_name.as_str().into()),
            ("SupervisorVersion", server.supervisor_version.as_str().into()),
        ])
    });
    Value::structure([("Client", client), ("Server", server)])
}
