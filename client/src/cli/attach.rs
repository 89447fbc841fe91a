//! `strata attach`: the standard streams of a running container, from now on.

use clap::{ArgMatches, Command};
use proto_engine::{AttachOpen, InspectContainerRequest, state::Status};

use super::Call;
use super::arguments::{Arity, not_off, on, rest, switch, text, with_help, words};
use super::run::detach_keys;
use crate::engine::credentials::Config;
use crate::engine::{Engine, told};
use crate::error::Error;
use crate::session::{Attached, Options, Program, Session, exit};
use crate::terminal::raw;

/// The flags.
pub(super) fn flags(command: Command) -> Command {
    let command = command
        .arg(text("detach-keys", "string").help("Override the key sequence for detaching a container"))
        .arg(switch("no-stdin").help("Do not attach STDIN"))
        .arg(switch("sig-proxy").help("Proxy all received signals to the process (default true)"))
        .arg(rest("words"));
    with_help(command, true)
}

/// Runs it.
pub(super) async fn run(matches: ArgMatches, call: Call) -> Result<u8, Error> {
    let names = words(&matches, "words", "attach", Arity::Exactly(1))?;
    let keys = detach_keys(&matches, &Config::load()?)?;
    let mut engine = call.connect().await?;
    let (id, tty, open_stdin) = running(&engine, &names[0]).await?;
    let stdin = open_stdin && !on(&matches, "no-stdin");
    if tty && stdin && !raw::stdin_is_terminal() {
        return Err(Error::NotTerminal);
    }
    let options = Options {
        attached: Attached { stdin, stdout: true, stderr: true },
        tty,
        proxy_signals: not_off(&matches, "sig-proxy"),
        detach_keys: keys,
    };
    let mut session = Session::new(options);
    let open = AttachOpen { container: id.clone(), offset: 0, from_start: false, no_stdin: !stdin };
    let events = engine.attach(open, session.inputs()).await?;
    session.begin(&engine, Program::Started(id))?;
    session.send_size();
    let outcome = session.follow(&mut engine, events, &mut |_, _, _| Ok(())).await?;
    exit::code(&outcome, "attach")
}

/// The id of a container that runs, whether it has a terminal, and whether its stdin is open.
async fn running(engine: &Engine, name: &str) -> Result<(String, bool, bool), Error> {
    let request = InspectContainerRequest { container: name.to_owned() };
    let detail = told("inspect", engine.containers().inspect(request).await)?.container.unwrap_or_default();
    let (summary, spec) = (detail.summary.unwrap_or_default(), detail.spec.unwrap_or_default());
    match summary.state.map(|state| state.status()).unwrap_or_default() {
        Status::Running => Ok((summary.id, spec.tty, spec.open_stdin)),
        Status::Paused => Err(Error::refused("cannot attach to a paused container, unpause it first")),
        Status::Restarting => Err(Error::refused("cannot attach to a restarting container, wait until it is running")),
        _ => Err(Error::Refused {
            message: "cannot attach to a stopped container, start it first".to_owned(),
            hint: Some(format!("strata start -a {name}")),
        }),
    }
}
