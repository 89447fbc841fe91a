//! `strata run`: pull as wanted, create, start and, unless detached, attach. One call of engined.

use std::path::PathBuf;

use clap::{ArgMatches, Command};
use proto_engine::{CreateResponse, PullPolicy, RunOpen};

use super::arguments::{not_off, on, parsed, switch, text, with_help};
use super::container::{self, Meant};
use super::{Call, auth, tracing};
use crate::engine::Engine;
use crate::engine::credentials::Config;
use crate::engine::reconnect::may_pass;
use crate::engine::stream::Event;
use crate::error::Error;
use crate::output::progress::{Display, Target};
use crate::output::{self, image};
use crate::session::{Attached, Options, Outcome, Program, Session, exit, finish_start};
use crate::terminal::detach::DetachKeys;
use crate::terminal::raw;

/// The flags.
pub(super) fn flags(command: Command) -> Command {
    let command = command
        .arg(switch("detach").short('d').help("Run container in background and print container ID"))
        .arg(text("detach-keys", "string").help("Override the key sequence for detaching a container"))
        .arg(switch("sig-proxy").help("Proxy received signals to the process (default true)"))
        .arg(tracing::argument());
    with_help(container::flags(command), false)
}

/// What was meant, beyond the container.
struct Way {
    detach: bool,
    proxy_signals: bool,
    detach_keys: DetachKeys,
    config: Config,
}

/// Runs it.
pub(super) async fn run(matches: ArgMatches, call: Call) -> Result<u8, Error> {
    let meant = container::meant(&matches, "run")?;
    let way = way(&matches, &meant)?;
    let wanted = tracing::destination(&matches)?;
    let mut engine = call.connect().await?;
    let auth = auth::for_run(&engine, &way.config, &meant.spec.image, meant.pull).await?;
    let cid_file = meant.cid_file.as_ref().map(|path| CidFile::reserve(path.clone())).transpose()?;
    tracing::begin(&mut engine, &call, &wanted);
    let result = through(&mut engine, meant, way, auth, cid_file).await;
    tracing::end(&mut engine, &call, wanted, result)
}

fn way(matches: &ArgMatches, meant: &Meant) -> Result<Way, Error> {
    let detach = on(matches, "detach");
    if detach && meant.attach_said {
        return Err(Error::refused("conflicting options: cannot specify both --attach and --detach"));
    }
    if !detach && meant.spec.tty && meant.attached.stdin && !raw::stdin_is_terminal() {
        return Err(Error::NotTerminal);
    }
    let config = Config::load()?;
    let detach_keys = detach_keys(matches, &config)?;
    Ok(Way { detach, proxy_signals: not_off(matches, "sig-proxy"), detach_keys, config })
}

/// The keys of the flag, else of Docker's configuration, else docker's own.
pub(super) fn detach_keys(matches: &ArgMatches, config: &Config) -> Result<DetachKeys, Error> {
    let flag = "--detach-keys";
    if let Some(keys) = parsed(matches, "detach-keys", flag, DetachKeys::parse)? {
        return Ok(keys);
    }
    match config.detach_keys.as_deref().filter(|keys| !keys.is_empty()) {
        Some(keys) => DetachKeys::parse(keys).map_err(|why| Error::flag_value("detachKeys of config.json", keys, why)),
        None => Ok(DetachKeys::default()),
    }
}

async fn through(
    engine: &mut Engine,
    meant: Meant,
    way: Way,
    auth: Option<proto_engine::RegistryAuth>,
    cid_file: Option<CidFile>,
) -> Result<u8, Error> {
    let Meant { mut spec, pull, quiet, attached, warnings, .. } = meant;
    warnings.iter().for_each(|warning| warn(warning));
    spec.stdin_once &= !way.detach;
    let attached = if way.detach { Attached { stdin: false, stdout: false, stderr: false } } else { attached };
    let tty = spec.tty;
    let mut events = Events { cid_file, detach: way.detach, ..Events::new(&spec.image, pull, quiet) };
    let options = Options { attached, tty, proxy_signals: way.proxy_signals, detach_keys: way.detach_keys };
    let mut session = Session::new(options);
    let open = RunOpen { spec: Some(spec), pull: pull.into(), auth, detach: way.detach, size: session.window() };
    let stream = engine.run(open, session.inputs()).await?;
    let outcome =
        session.follow(engine, stream, &mut |session, engine, event| events.take(session, engine, event)).await;
    match outcome {
        Ok(Outcome::Ended) if events.started => Ok(0),
        Ok(outcome) => exit::code(&outcome, "run"),
        Err(error) if events.is_starting_detached() && may_pass(&error) => {
            finish_start(engine, &events.id, error).await?;
            output::print_line(&events.id)?;
            Ok(0)
        }
        Err(error) => Err(error),
    }
}

/// What `run` does with the events that come before output.
struct Events {
    detach: bool,
    display: Display,
    /// Said once, when a pull begins.
    missing: Option<String>,
    cid_file: Option<CidFile>,
    id: String,
    started: bool,
}

impl Events {
    fn new(image: &str, pull: PullPolicy, quiet: bool) -> Events {
        let missing = (pull == PullPolicy::Missing && !quiet)
            .then(|| format!("Unable to find image '{}' locally", with_tag(image)));
        let display = Display::new(if quiet { Target::Nowhere } else { Target::Stderr });
        Events { detach: false, display, missing, cid_file: None, id: String::new(), started: false }
    }

    fn take(&mut self, session: &mut Session, engine: &Engine, event: Event) -> Result<(), Error> {
        match event {
            Event::Pull(progress) => {
                let failed = |source| Error::Terminal { attempted: "show the progress", source };
                if let Some(line) = self.missing.take() {
                    self.display.line(&line).map_err(failed)?;
                }
                self.display.update(&progress).map_err(failed)
            }
            Event::Created(created) => self.created(session, engine, created),
            Event::Started => {
                self.started = true;
                if self.detach { output::print_line(&self.id) } else { Ok(()) }
            }
            Event::Attached | Event::Output(_) | Event::Exited(_) => Ok(()),
        }
    }

    /// There is a container in the background, and nobody has said yet that it runs.
    fn is_starting_detached(&self) -> bool {
        self.detach && !self.id.is_empty() && !self.started
    }

    fn created(&mut self, session: &mut Session, engine: &Engine, created: CreateResponse) -> Result<(), Error> {
        created.warnings.iter().for_each(|warning| warn(warning));
        if let Some(file) = self.cid_file.take() {
            file.write(&created.id)?;
        }
        self.id.clone_from(&created.id);
        if self.detach { Ok(()) } else { session.begin(engine, Program::Starting(created.id)) }
    }
}

/// docker's form of what is accepted but has no effect.
pub(super) fn warn(warning: &str) {
    eprintln!("WARNING: {warning}");
}

/// A reference as docker completes it.
pub(super) fn with_tag(reference: &str) -> String {
    let (_, tag) = image::split_tag(reference);
    if tag == "<none>" && !reference.contains('@') { format!("{reference}:latest") } else { reference.to_owned() }
}

/// `--cidfile`: reserved before the container is made, so that two runs cannot have the same one; taken away again when
/// no container came of it.
pub(super) struct CidFile {
    path: PathBuf,
    written: bool,
}

impl CidFile {
    pub(super) fn reserve(path: PathBuf) -> Result<CidFile, Error> {
        match std::fs::File::create_new(&path) {
            Ok(_) => Ok(CidFile { path, written: false }),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(Error::Refused {
                message: format!("container ID file {} exists already", path.display()),
                hint: Some("make sure that no container runs under it, then remove the file".to_owned()),
            }),
            Err(source) => Err(Error::File { attempted: "create the container ID file", path, source }),
        }
    }

    pub(super) fn write(mut self, id: &str) -> Result<(), Error> {
        self.written = true;
        std::fs::write(&self.path, id).map_err(|source| Error::File {
            attempted: "write the container ID file",
            path: self.path.clone(),
            source,
        })
    }
}

impl Drop for CidFile {
    fn drop(&mut self) {
        if !self.written {
            // An empty file in the way is all that is left if this fails.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
