//! The daemon: from a configuration to a socket that answers, and back.
//!
//! SIGTERM and SIGINT end it; containers go on.

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;

use rustix::fs::FlockOperation;
use strata_trace::collect::{CollectLayer, TARGET};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::api;
use crate::config::{Config, LogFormat};
use crate::engine;
use crate::network::Network;

/// Threads of the runtime. The daemon waits more than it works; a third would cost memory and win nothing on the path of
/// one run.
const WORKERS: usize = 2;
/// Threads that may block: netlink, files of images, removals.
const BLOCKING_MAX: usize = 32;
/// How long such a thread stays when there is nothing to do: its start costs a run more than its stay costs memory.
const BLOCKING_STAY: std::time::Duration = std::time::Duration::from_secs(10);

/// An error and its causes in one line.
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn Error + 'a));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}

/// Why the daemon cannot run.
#[derive(Debug)]
enum DaemonError {
    Io { attempt: &'static str, path: Option<PathBuf>, source: io::Error },
    Level { text: String, source: tracing_subscriber::filter::ParseError },
    AlreadyRuns { root: PathBuf },
    Serve { source: tonic::transport::Error },
}

impl fmt::Display for DaemonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DaemonError::Io { attempt, path: Some(path), .. } => write!(f, "{attempt} {}", path.display()),
            DaemonError::Io { attempt, path: None, .. } => f.write_str(attempt),
            DaemonError::Level { text, .. } => write!(f, "understand the log level {text:?}"),
            DaemonError::AlreadyRuns { root } => write!(f, "another engined uses {}", root.display()),
            DaemonError::Serve { .. } => f.write_str("serve clients"),
        }
    }
}

impl Error for DaemonError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            DaemonError::Io { source, .. } => Some(source),
            DaemonError::Level { source, .. } => Some(source),
            DaemonError::Serve { source } => Some(source),
            DaemonError::AlreadyRuns { .. } => None,
        }
    }
}

type Outcome = Result<(), Box<dyn Error>>;

/// Runs until it is told to end.
pub(crate) fn run(config: &Config) -> Outcome {
    start_messages(config)?;
    // What is made is root's alone, unless it is said to be otherwise.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_MAX)
        .thread_keep_alive(BLOCKING_STAY)
        .thread_name("engined")
        .enable_all()
        .build()
        .map_err(|source| DaemonError::Io { attempt: "start the runtime", path: None, source })?;
    runtime.block_on(serve(config))
}

async fn serve(config: &Config) -> Outcome {
    let told_to_end = told_to_end()?;
    let _lock = lock(config)?;
    let start = engine::start(config);
    tokio::pin!(told_to_end);
    // A start may wait for the supervisor, and must end when it is told to.
    let engine = tokio::select! {
        started = start => started?,
        () = &mut told_to_end => return Ok(()),
    };
    let listener = api::grpc::listen(config).map_err(|source| DaemonError::Io {
        attempt: "listen on",
        path: Some(config.address.clone()),
        source,
    })?;
    tracing::info!(address = %config.address.display(), "engined answers");
    let end = async {
        told_to_end.await;
        // Streams that follow a container would hold the daemon back as long as it runs.
        tracing::info!("engined ends; containers go on");
    };
    tokio::select! {
        outcome = api::grpc::serve(engine, listener, std::future::pending()) => {
            outcome.map_err(|source| DaemonError::Serve { source })?;
        }
        () = end => {}
    }
    let _ = std::fs::remove_file(&config.address);
    Ok(())
}

/// Returns when a signal says so.
fn told_to_end() -> Result<impl Future<Output = ()>, DaemonError> {
    let listen =
        |kind| signal(kind).map_err(|source| DaemonError::Io { attempt: "listen to signals", path: None, source });
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// One engine per root: two would undo each other's work.
fn lock(config: &Config) -> Result<File, DaemonError> {
    let path = config.root.join("engined.lock");
    let failed = |source| DaemonError::Io { attempt: "lock", path: Some(path.clone()), source };
    std::fs::create_dir_all(&config.root).map_err(failed)?;
    let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(DaemonError::AlreadyRuns { root: config.root.clone() }),
        Err(errno) => Err(failed(errno.into())),
    }
}

fn start_messages(config: &Config) -> Result<(), DaemonError> {
    // The steps of requests are gathered for those who ask, not written.
    let level = EnvFilter::try_new(format!("{},{TARGET}=off", config.log_level))
        .map_err(|source| DaemonError::Level { text: config.log_level.clone(), source })?;
    let written = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let written: Box<dyn Layer<Registry> + Send + Sync> = match config.log_format {
        LogFormat::Text => written.with_filter(level).boxed(),
        LogFormat::Json => written.json().with_filter(level).boxed(),
    };
    // The spans of requests are gathered whatever is written, and nothing else: a layer without a filter would have every
    // event of every library made.
    let gathered = CollectLayer::default().with_filter(filter_fn(|metadata| metadata.target() == TARGET));
    tracing_subscriber::registry().with(written).with(gathered).init();
    Ok(())
}

/// Removes what this instance's network left on the host.
pub(crate) fn remove_network(config: &Config) -> Outcome {
    start_messages(config)?;
    let errors = Network::remove_all(&engine::network_config(config)?);
    for error in &errors {
        tracing::error!("{}", Chain(error));
    }
    match errors.into_iter().next() {
        Some(first) => Err(first.into()),
        None => Ok(()),
    }
}
