//! Compares Strata with its peers, interleaved in one run, and writes docs/benchmarks.md.
//!
//!   strata-bench --bin DIRECTORY [--peer NAME=PROGRAM]… [--only LAYER]… [--row NAME]… [--write FILE]
//!
//! `make bench` calls it with what `make setup` has brought. A layer is `stack` (everything, beside Docker), `shimd` (the
//! supervisor and its shim) or `lowrun`; without `--only` all are measured. `--row` chooses rows of them: a row of
//! [`stacks`] or [`supervisors`] has the name of its task.

mod contestant;
mod measure;
mod report;
mod runtimes;
mod stacks;
mod supervisors;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use integration::Daemonship;

/// What `--only` can name.
const LAYERS: [&str; 3] = ["stack", "shimd", "lowrun"];

#[derive(Default)]
struct Arguments {
    bin: PathBuf,
    peers: Vec<(String, PathBuf)>,
    layers: Vec<String>,
    rows: Vec<String>,
    write: Option<PathBuf>,
    /// Only on the benchmark's own behalf: be the contestant `ours` or `theirs`, `shimd` or `containerd`.
    contestant: Option<String>,
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("strata-bench: {error}");
            return ExitCode::from(2);
        }
    };
    if let Some(which) = &arguments.contestant {
        serve(which);
        return ExitCode::SUCCESS;
    }
    let rows = measure(&arguments);
    let table = report::table(&rows);
    print!("{table}");
    if let Some(document) = &arguments.write {
        report::write_into(document, &format!("{}\n{table}", machine()));
    }
    if rows.iter().all(report::Row::kept) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn serve(contestant: &str) {
    match contestant {
        "shimd" => supervisors::served::serve(Daemonship::Shimd),
        "containerd" => supervisors::served::serve(Daemonship::Containerd),
        which => contestant::serve(which == "ours"),
    }
}

fn measure(arguments: &Arguments) -> Vec<report::Row> {
    let is_wanted = |layer: &str| arguments.layers.is_empty() || arguments.layers.iter().any(|wanted| wanted == layer);
    let mut rows = Vec::new();
    if is_wanted("stack") {
        rows.extend(stacks::rows(&arguments.rows));
    }
    if is_wanted("shimd") {
        rows.extend(supervisors::rows(&arguments.rows));
    }
    // Last: it leaves this process in a mount namespace of its own, without cgroup v2.
    if is_wanted("lowrun") {
        let work = tempfile::Builder::new().prefix("strata-bench-").tempdir().expect("a temporary directory");
        rows.extend(runtimes::rows(&arguments.bin.join("lowrun"), &arguments.peers, work.path()));
    }
    rows
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments::default();
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} takes a value"))?;
        match word.as_str() {
            "--bin" => arguments.bin = value.into(),
            "--only" if LAYERS.contains(&value.as_str()) => arguments.layers.push(value),
            "--only" => return Err(format!("unknown layer {value}: {} are known", LAYERS.join(", "))),
            "--row" => arguments.rows.push(value),
            "--contestant" => arguments.contestant = Some(value),
            "--write" => arguments.write = Some(value.into()),
            "--peer" => arguments.peers.push(peer(&value)?),
            _ => return Err(format!("unknown argument {word}")),
        }
    }
    if arguments.bin.as_os_str().is_empty() && arguments.contestant.is_none() {
        Err("--bin is missing".to_owned())
    } else {
        Ok(arguments)
    }
}

fn peer(value: &str) -> Result<(String, PathBuf), String> {
    let (name, program) = value.split_once('=').ok_or_else(|| format!("{value}: NAME=PROGRAM is wanted"))?;
    Ok((name.to_owned(), PathBuf::from(program)))
}

/// The machine and the kernel, as figures need them beside them.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    // What stands behind the version is the builder's.
    let version = kernel.trim().split('-').next().unwrap_or_default();
    format!("Linux {version}, {cpus} processors.\n")
}
