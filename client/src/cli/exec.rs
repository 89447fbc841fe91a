//! `strata exec`: one more program in a running container.

use clap::{Arg, ArgMatches, Command};
use proto_engine::ExecOpen;

use super::arguments::{Arity, list, on, said, switch, text, with_help, words};
use super::run::detach_keys;
use super::{Call, container, tracing};
use crate::engine::Engine;
use crate::engine::credentials::Config;
use crate::engine::stream::Event;
use crate::error::Error;
use crate::session::{Attached, Options, Outcome, Program, Session, exit};
use crate::terminal::detach::DetachKeys;
use crate::terminal::raw;

/// The flags.
pub(super) fn flags(command: Command) -> Command {
    let command = command
        .arg(switch("detach").short('d').help("Detached mode: run command in the background"))
        .arg(text("detach-keys", "string").help("Override the key sequence for detaching a container"))
        .arg(list("env", "list").short('e').help("Set environment variables"))
        .arg(list("env-file", "list").help("Read in a file of environment variables"))
        .arg(switch("interactive").short('i').help("Keep STDIN open even if not attached"))
        .arg(switch("privileged").help("Give extended privileges to the command"))
        .arg(switch("tty").short('t').help("Allocate a pseudo-TTY"))
        .arg(text("user", "string").short('u').help("Username or UID (format: <name|uid>[:<group|gid>])"))
        .arg(text("workdir", "string").short('w').help("Working directory inside the container"))
        .arg(tracing::argument())
        .arg(Arg::new("words").num_args(0..).trailing_var_arg(true).hide(true));
    with_help(command, true)
}

/// Runs it.
pub(super) async fn run(matches: ArgMatches, call: Call) -> Result<u8, Error> {
    let open = meant(&matches)?;
    let wanted = tracing::destination(&matches)?;
    let stdin = open.open_stdin && !open.detach;
    if stdin && open.tty && !raw::stdin_is_terminal() {
        return Err(Error::NotTerminal);
    }
    let keys = detach_keys(&matches, &Config::load()?)?;
    let mut engine = call.connect().await?;
    tracing::begin(&mut engine, &call, &wanted);
    let result = through(&mut engine, open, stdin, keys).await;
    tracing::end(&mut engine, &call, wanted, result)
}

fn meant(matches: &ArgMatches) -> Result<ExecOpen, Error> {
    let mut words = words(matches, "words", "exec", Arity::AtLeast(2))?.into_iter();
    let detach = on(matches, "detach");
    Ok(ExecOpen {
        container: words.next().unwrap_or_default(),
        command: words.collect(),
        tty: on(matches, "tty"),
        open_stdin: on(matches, "interactive"),
        env: container::environment(matches)?,
        working_dir: said(matches, "workdir").unwrap_or_default().to_owned(),
        user: said(matches, "user").unwrap_or_default().to_owned(),
        privileged: on(matches, "privileged"),
        detach,
        size: None,
    })
}

async fn through(engine: &mut Engine, mut open: ExecOpen, stdin: bool, keys: DetachKeys) -> Result<u8, Error> {
    let attached = !open.detach;
    let options = Options {
        attached: Attached { stdin, stdout: attached, stderr: attached },
        tty: open.tty,
        // As docker: a signal ends the client; the program sees the end of its input.
        proxy_signals: false,
        detach_keys: keys,
    };
    let mut session = Session::new(options);
    open.size = session.window();
    let stream = engine.exec(open, session.inputs()).await?;
    let mut started = false;
    let outcome = session
        .follow(engine, stream, &mut |session, engine, event| {
            started |= matches!(event, Event::Started);
            if started && attached { session.begin(engine, Program::Exec) } else { Ok(()) }
        })
        .await?;
    match outcome {
        Outcome::Ended if started && !attached => Ok(0),
        outcome => exit::code(&outcome, "exec"),
    }
}
