//! `containerd-shim-strata-v1`: the process between a supervisor (shimd or containerd) and one container.
//!
//! It speaks containerd's shim v2 protocol: [`start`] and [`delete`] on the command line, then the task service over
//! ttrpc. It is the container's parent, holds its stdio and its exit status, and outlives every daemon. One thread
//! waits in one place ([`serve`]) and never blocks elsewhere: what the runtime does, its process does.
//!
//! ```text
//! start ─fork─▶ serve ─▶ server ─▶ task ─▶ rootfs, stdio, lowrun ─▶ the runtime's process
//!                 ▲                  │
//!     poll, timers, children         └─▶ publish ─▶ the supervisor's events service
//! ```
//!
//! It opens no database, no network socket and no file of the container's root file system.

mod cgroup;
mod cli;
mod delete;
mod error;
mod group;
mod info;
mod lowrun;
mod poll;
mod publish;
mod rootfs;
mod runtime_log;
mod serve;
mod server;
mod socket;
mod start;
mod stdio;
#[expect(unsafe_code, reason = "the system calls that std and rustix lack")]
mod sys;
mod task;
mod timers;
mod trace;
mod world;

use std::process::ExitCode;

use cli::{Command, Flags};

fn main() -> ExitCode {
    let done = match cli::parse(std::env::args_os().skip(1)) {
        Ok((command, flags)) => act(command, flags),
        Err(usage) => Err(usage.to_string()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("containerd-shim-strata-v1: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn act(command: Command, flags: Flags) -> Result<(), String> {
    let (step, done) = match command {
        Command::Version => {
            println!("containerd-shim-strata-v1 {}", env!("CARGO_PKG_VERSION"));
            return Ok(());
        }
        Command::Info => ("info", info::info()),
        Command::Start => ("start", start::start(&complete(flags)?)),
        Command::Delete => ("delete", delete::delete(&complete(flags)?)),
    };
    done.map_err(|error| error.into_fault(step).one_line())
}

fn complete(flags: Flags) -> Result<Flags, String> {
    flags.complete().map_err(|usage| usage.to_string())
}
