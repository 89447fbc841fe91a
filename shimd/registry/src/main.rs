//! shimd's registry helper: the one process below shimd that has a network socket, and no privileges.
//!
//! shimd starts one per transfer and speaks `proto-registry` over its standard input and output. Before it talks to
//! anybody it gives up what it was started with ([`privileges`]); then it serves the orders of one repository
//! ([`orders`]) and ends with its input. It reads no file but certificates and, before it gives up its privileges, what
//! the operator says of the registry's hosts (`shimd-registry HOSTS-DIRECTORY REFERENCE`): keys of clients are root's
//! alone. It writes none, and knows nothing of shimd's store.

mod orders;
mod privileges;

use std::path::Path;
use std::process::ExitCode;

use strata_registry::{HostFiles, Reference};

fn main() -> ExitCode {
    let hosts = match hosts() {
        Ok(hosts) => hosts,
        // What is wrong with a name is told in answer to the order that has it.
        Err(error) => return report(Err(error)),
    };
    if let Err(error) = privileges::give_up() {
        eprintln!("shimd-registry: give up privileges: {error}");
        return ExitCode::FAILURE;
    }
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let served = runtime.block_on(orders::serve(hosts));
            // A read of the standard input may still block a thread.
            runtime.shutdown_background();
            report(served)
        }
        Err(error) => report(Err(error)),
    }
}

/// What is said of the hosts of the registry that the arguments name.
fn hosts() -> std::io::Result<Option<HostFiles>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, reference] = arguments.as_slice() else { return Ok(None) };
    let Ok(reference) = reference.parse::<Reference>() else { return Ok(None) };
    let Some(directory) = strata_registry::directory_of(Path::new(directory), reference.domain()) else {
        return Ok(None);
    };
    strata_registry::read_files(&directory).map_err(std::io::Error::other)
}

fn report(outcome: std::io::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shimd-registry: {error}");
            ExitCode::FAILURE
        }
    }
}
