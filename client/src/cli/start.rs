//! `strata start`: stopped containers again, with `--attach` one of them in the foreground.

use clap::{ArgMatches, Command};
use proto_engine::{AttachOpen, ContainerDetail, InspectContainerRequest, LogsRequest, StartRequest, state::Status};

use super::arguments::{Arity, not_off, on, rest, switch, text, with_help, words};
use super::run::detach_keys;
use super::{Call, tracing};
use crate::engine::credentials::Config;
use crate::engine::{Engine, told};
use crate::error::{EXIT_FAILURE, Error, report};
use crate::output::print_line;
use crate::session::{Attached, Options, Program, Session, exit};
use crate::terminal::detach::DetachKeys;
use crate::terminal::raw;

/// The flags.
pub(super) fn flags(command: Command) -> Command {
    let command = command
        .arg(switch("attach").short('a').help("Attach STDOUT/STDERR and forward signals"))
        .arg(text("detach-keys", "string").help("Override the key sequence for detaching a container"))
        .arg(switch("interactive").short('i').help("Attach container's STDIN"))
        .arg(switch("sig-proxy").help("Proxy received signals to the process (default true)"))
        .arg(tracing::argument())
        .arg(rest("words"));
    with_help(command, true)
}

/// Runs it.
pub(super) async fn run(matches: ArgMatches, call: Call) -> Result<u8, Error> {
    let names = words(&matches, "words", "start", Arity::AtLeast(1))?;
    let interactive = on(&matches, "interactive");
    let wanted = tracing::destination(&matches)?;
    if !on(&matches, "attach") && !interactive {
        let mut engine = call.connect().await?;
        tracing::begin(&mut engine, &call, &wanted);
        let result = all(&mut engine, &names).await;
        return tracing::end(&mut engine, &call, wanted, result);
    }
    let [name] = names.as_slice() else {
        return Err(Error::refused("you cannot start and attach multiple containers at once"));
    };
    let keys = detach_keys(&matches, &Config::load()?)?;
    let mut engine = call.connect().await?;
    tracing::begin(&mut engine, &call, &wanted);
    let way = Way { interactive, proxy_signals: not_off(&matches, "sig-proxy"), keys };
    let result = attached(&mut engine, name, way).await;
    tracing::end(&mut engine, &call, wanted, result)
}

struct Way {
    interactive: bool,
    proxy_signals: bool,
    keys: DetachKeys,
}

async fn all(engine: &mut Engine, names: &[String]) -> Result<u8, Error> {
    let mut failed = Vec::new();
    for name in names {
        match start(engine, name).await {
            Ok(()) => print_line(name)?,
            Err(error) => {
                report(&error);
                failed.push(name.as_str());
            }
        }
    }
    // One that failed was told already; of several it must be said which.
    match failed.as_slice() {
        [] => Ok(0),
        _ if names.len() == 1 => Err(Error::Reported(EXIT_FAILURE)),
        failed => Err(Error::refused(format!("failed to start containers: {}", failed.join(", ")))),
    }
}

async fn start(engine: &mut Engine, name: &str) -> Result<(), Error> {
    let request = engine.request(StartRequest { container: name.to_owned() });
    let answer = engine.containers().start(request).await;
    engine.answer("start", answer).map(drop)
}

/// Starts `name` and shows all that this run of it writes: the log's end is looked up before the start, and the attachment
/// begins there, so that nothing is missed and nothing of earlier runs is shown.
async fn attached(engine: &mut Engine, name: &str, way: Way) -> Result<u8, Error> {
    let detail = inspect(engine, name).await?;
    let summary = detail.summary.unwrap_or_default();
    let spec = detail.spec.unwrap_or_default();
    let stdin = way.interactive && spec.open_stdin;
    if spec.tty && stdin && !raw::stdin_is_terminal() {
        return Err(Error::NotTerminal);
    }
    let never_ran = summary.state.as_ref().is_some_and(|state| state.status() == Status::Created);
    let offset = if never_ran { 0 } else { log_end(engine, &summary.id).await? };
    start(engine, &summary.id).await?;
    let options = Options {
        attached: Attached { stdin, stdout: true, stderr: true },
        tty: spec.tty,
        proxy_signals: way.proxy_signals,
        detach_keys: way.keys,
    };
    let mut session = Session::new(options);
    session.set_position(offset);
    let open = AttachOpen { container: summary.id.clone(), offset, from_start: offset == 0, no_stdin: !stdin };
    let events = engine.attach(open, session.inputs()).await?;
    session.begin(engine, Program::Started(summary.id))?;
    session.send_size();
    let outcome = session.follow(engine, events, &mut |_, _, _| Ok(())).await?;
    exit::code(&outcome, "start")
}

async fn inspect(engine: &Engine, name: &str) -> Result<ContainerDetail, Error> {
    let request = InspectContainerRequest { container: name.to_owned() };
    Ok(told("inspect", engine.containers().inspect(request).await)?.container.unwrap_or_default())
}

/// Where the log of a container that does not run ends: behind its last line; 0 when it has none.
async fn log_end(engine: &Engine, id: &str) -> Result<u64, Error> {
    let request =
        LogsRequest { container: id.to_owned(), tail: Some(1), stdout: true, stderr: true, ..LogsRequest::default() };
    let mut events = told("logs", engine.containers().logs(request).await)?;
    let mut end = 0;
    while let Some(event) = events.message().await.map_err(|status| crate::engine::failure("logs", status))? {
        end = event.output.map_or(end, |output| output.next.max(end));
    }
    Ok(end)
}
