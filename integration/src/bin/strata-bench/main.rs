//! Compares Strata with its peers, interleaved in one run, and writes docs/benchmarks.md.
//!
//!   strata-bench --bin DIRECTORY [--peer NAME=PROGRAM=RATIO]… [--write FILE]
//!
//! `make bench` calls it with what `make setup` has brought.

mod measure;
mod report;
mod runtimes;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

struct Arguments {
    bin: PathBuf,
    peers: Vec<(String, PathBuf, f64)>,
    write: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("strata-bench: {error}");
            return ExitCode::from(2);
        }
    };
    let work = tempfile::Builder::new().prefix("strata-bench-").tempdir().expect("a temporary directory");
    let rows = runtimes::rows(&arguments.bin.join("lowrun"), &arguments.peers, work.path());
    let table = report::table(&rows);
    print!("{table}");
    if let Some(document) = &arguments.write {
        report::write_into(document, &format!("{}\n{table}", machine()));
    }
    if rows.iter().all(report::Row::kept) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments { bin: PathBuf::new(), peers: Vec::new(), write: None };
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} takes a value"))?;
        match word.as_str() {
            "--bin" => arguments.bin = value.into(),
            "--write" => arguments.write = Some(value.into()),
            "--peer" => arguments.peers.push(peer(&value)?),
            _ => return Err(format!("unknown argument {word}")),
        }
    }
    if arguments.bin.as_os_str().is_empty() { Err("--bin is missing".to_owned()) } else { Ok(arguments) }
}

fn peer(value: &str) -> Result<(String, PathBuf, f64), String> {
    let parts: Vec<&str> = value.split('=').collect();
    let [name, program, ratio] = parts[..] else { return Err(format!("{value}: NAME=PROGRAM=RATIO is wanted")) };
    let ratio = ratio.parse().map_err(|error| format!("{ratio}: {error}"))?;
    Ok((name.to_owned(), PathBuf::from(program), ratio))
}

/// The machine and the kernel, as figures need them beside them.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!("Linux {}, {cpus} processors.\n", kernel.trim())
}
