//! shimd's registry helper: the one process below shimd that has a network socket, and no privileges.
//!
//! shimd starts one per transfer and speaks `proto-registry` over its standard input and output. Before anything else
//! it gives up what it was started with ([`privileges`]); then it serves the orders of one repository ([`orders`]) and
//! ends with its input. It reads no file but certificates, writes none, and knows nothing of shimd's store.

mod orders;
mod privileges;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Err(error) = privileges::give_up() {
        eprintln!("shimd-registry: give up privileges: {error}");
        return ExitCode::FAILURE;
    }
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let served = runtime.block_on(orders::serve());
            // A read of the standard input may still block a thread.
            runtime.shutdown_background();
            report(served)
        }
        Err(error) => report(Err(error)),
    }
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
