//! Tests that cannot run here.
//!
//! Rust's test runner knows no skipping while a test runs. A test that finds that it cannot run writes a line to the file
//! that `STRATA_SKIPS` names and returns; `make test` counts those lines apart from what passed, and prints the reasons.

use std::fs::OpenOptions;
use std::io::Write as _;

/// Notes that the calling test is skipped and why. The caller returns afterwards.
pub fn skip(reason: &str) {
    let test = test_name();
    eprintln!("skipped {test}: {reason}");
    let Some(path) = std::env::var_os("STRATA_SKIPS") else { return };
    let line = format!("{test}: {reason}\n");
    let file = OpenOptions::new().create(true).append(true).open(&path);
    if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
        panic!("note a skipped test in {}: {error}", path.display());
    }
}

/// The running test, as the runner names it: its thread carries the name, or nextest its environment.
pub fn test_name() -> String {
    std::env::var("NEXTEST_TEST_NAME")
        .ok()
        .or_else(|| std::thread::current().name().map(str::to_owned))
        .unwrap_or_default()
}

/// The reason why nothing that needs the kernel can run here, if there is one.
pub fn obstacle() -> Option<&'static str> {
    (!nix::unistd::geteuid().is_root()).then_some("it needs root: namespaces, mounts and cgroups")
}
