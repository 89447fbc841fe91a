//! shimd, the supervisor: containerd's part of the stack.
//!
//! ```text
//!   api/  →  container image sandbox           records: entries of a catalog
//!            namespace lease                   records of their own
//!            content snapshot diff             what is on disk
//!            task                              what runs  →  shim/  →  a shim per container
//!            event gc upkeep                   beside all of it
//!   db/   the metadata store under all of it      sys/  the only unsafe code
//! ```
//! It knows no Docker and no Kubernetes, opens no network socket, and may be killed at any time: containers go on, and
//! the next start finds everything again by looking at what is there.

mod api;
mod catalog;
mod checkpoint;
mod clock;
mod config;
mod container;
mod content;
mod daemon;
mod db;
mod diff;
mod error;
mod event;
mod filter;
mod gc;
mod image;
mod layout;
mod lease;
mod mask;
mod name;
mod namespace;
mod sandbox;
mod shim;
mod snapshot;
mod sys;
mod task;
mod trace;
mod transfer;
mod trash;
mod tree;
mod upkeep;
mod xattr;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use config::{Config, Flags, LogFormat};
use error::{Error, Result};

/// Threads that serve requests. File work has its own.
const WORKERS: usize = 2;
/// Threads for file work: as many writes of content can go on at once.
const BLOCKING_THREADS: usize = 256;
/// The transport's own words drown everything else: who wants them names their targets.
const QUIET: &str = "h2=info,hyper=info,tower=info";
/// How long a thread without work is kept.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let flags = Flags::parse();
    sys::limit_malloc();
    sys::hear_of_children();
    match start(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            daemon::report(&error);
            ExitCode::FAILURE
        }
    }
}

fn start(flags: &Flags) -> Result<()> {
    start_log(flags)?;
    raise_descriptor_limit();
    let config = Config::load(flags)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(THREAD_KEEP_ALIVE)
        .enable_all()
        .build()
        .map_err(|error| Error::io("start the runtime of shimd", error))?;
    let outcome = runtime.block_on(daemon::run(config));
    // What still blocks (a disk that hangs) must not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(200));
    outcome
}

fn start_log(flags: &Flags) -> Result<()> {
    let filter = EnvFilter::try_new(format!("{QUIET},{}", flags.log_level))
        .map_err(|error| Error::invalid("--log-level", error.to_string()))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let lines = match flags.log_format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry()
        .with(strata_trace::collect::CollectLayer::default())
        .with(lines.with_filter(filter))
        .init();
    Ok(())
}

/// Each container takes some descriptors: its shim's connection, log and process.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "raise the limit of open files");
    }
}
