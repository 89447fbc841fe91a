//! What `make up`, `make down` and `make demo` do.
//!
//! ```text
//!   strata-lab up [ROOT]       starts a registry with images, shimd and engined below ROOT, for a person to use
//!   strata-lab down [ROOT]     stops that and removes every trace
//!   strata-lab demo            shows the whole path in a place of its own, checking each step, and removes it
//! ```

mod demo;
mod narrator;
mod screen;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use integration::installation::{self, Installation};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        _ if !nix::unistd::geteuid().is_root() => {
            Err("this needs root: containers are namespaces, mounts and cgroups".to_owned())
        }
        ["up"] => up(&installation::default_root()),
        ["up", root] => absolute(root).and_then(|root| up(&root)),
        ["down"] => down(&installation::default_root()),
        ["down", root] => absolute(root).and_then(|root| down(&root)),
        ["demo"] => demo::run(),
        _ => Err("usage: strata-lab up [ROOT] | down [ROOT] | demo".to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("strata-lab: {error}");
            ExitCode::FAILURE
        }
    }
}

fn absolute(root: &str) -> Result<PathBuf, String> {
    std::path::absolute(root).map_err(|error| format!("{root:?} is no path: {error}"))
}

fn up(root: &Path) -> Result<(), String> {
    let installation = match Installation::start(root) {
        Ok(installation) => installation,
        // What had started already must not stay.
        Err(error) if !error.contains("already") => {
            installation::remove(root);
            return Err(error);
        }
        Err(error) => return Err(error),
    };
    println!("engined listens at {}", integration::stack::ours::socket(&installation.site).display());
    println!("the registry localhost:{} holds busybox and nginx", installation.registry_port);
    println!("now: . {}/env", root.display());
    println!("then for instance: strata run --rm -it localhost:$REGPORT/busybox sh");
    println!("and at the end: make down ROOT={}", root.display());
    installation.leave_running();
    Ok(())
}

fn down(root: &Path) -> Result<(), String> {
    let troubles = installation::remove(root);
    if troubles.is_empty() {
        println!("the stack at {} is gone", root.display());
        return Ok(());
    }
    Err(troubles.join("\nstrata-lab: "))
}
