//! engined: the engine of Strata, between its clients and the supervisor.
//!
//! ```text
//!   api/grpc ──▶ engine ──▶ containerd (shimd)
//!                   ├─────▶ network
//!                   ├─────▶ registry (a package of its own)
//!                   └─────▶ store
//! ```
//!
//! The same program is also the small logger that a stock shim starts in place of ours; see [`log_writer`].

#![expect(clippy::result_large_err, reason = "a fault is made once, where a request fails, and handed up whole")]

mod api;
mod config;
mod containerd;
mod daemon;
mod engine;
mod log_writer;
mod network;
mod store;
mod sys;

use std::process::ExitCode;

use clap::Parser;

use crate::config::{Config, Flags};
use crate::daemon::Chain;

fn main() -> ExitCode {
    if let Some(task) = log_writer::asked() {
        return log_writer::run(&task);
    }
    let flags = Flags::parse();
    let config = match Config::load(&flags) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("engined: {}", Chain(&error));
            return ExitCode::from(2);
        }
    };
    let outcome = match flags.remove_network {
        true => daemon::remove_network(&config),
        false => daemon::run(&config),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", Chain(&*error));
            ExitCode::FAILURE
        }
    }
}
