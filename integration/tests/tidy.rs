//! The invariants of ARCHITECTURE.md that a look at the sources and at the crates shows.
//!
//! These tests start no program but cargo, and need no root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above").to_path_buf()
}

/// Every Rust source below `folder`, with its text.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![top().join(folder)];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap_or_else(|error| panic!("read {}: {error}", next.display())) {
            let path = entry.expect("an entry").path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source");
                found.push((path, text));
            }
        }
    }
    found
}

/// Is it a source of tests, which may do what the product must not?
fn is_of_tests(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs")
}

/// The part of a source before its tests, without comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// Lines of `folder`'s sources that `is_wrong`, as `path:line: text`.
fn offenders(folder: &str, is_wrong: impl Fn(&Path, &str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in sources(folder).into_iter().filter(|(path, _)| !is_of_tests(path)) {
        for (number, line) in code(&text) {
            if is_wrong(&path, line) {
                found.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    found
}

/// The crates that `package` links, without those of its build and its tests.
fn crates_of(package: &str) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--edges", "normal", "--prefix", "none", "--format", "{p}", "--package", package])
        .current_dir(top())
        .output()
        .expect("run cargo tree");
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

fn assert_links_none(package: &str, unwanted: &[&str]) {
    let linked = crates_of(package);
    assert!(linked.len() > 1, "cargo tree shows nothing for {package}");
    let found: Vec<_> = unwanted.iter().filter(|name| linked.iter().any(|crate_name| crate_name == *name)).collect();
    assert!(found.is_empty(), "{package} links {found:?}");
}

const PROCESSES: [&str; 6] = ["strata", "engined", "shimd", "shimd-registry", "containerd-shim-strata-v1", "lowrun"];

#[test]
fn no_process_imports_another() {
    for package in PROCESSES {
        let others: Vec<&str> = PROCESSES.into_iter().filter(|other| *other != package).collect();
        assert_links_none(package, &others);
    }
}

#[test]
fn lowrun_links_no_grpc_and_no_async_runtime() {
    assert_links_none("lowrun", &["tonic", "prost", "tokio", "hyper", "tracing", "rayon"]);
}

#[test]
fn the_shim_links_no_async_runtime_and_no_database() {
    assert_links_none("containerd-shim-strata-v1", &["tonic", "tokio", "hyper", "redb", "tracing", "rayon"]);
}

#[test]
fn shimd_links_no_http_client_and_no_tls() {
    assert_links_none("shimd", &["reqwest", "oci-client", "rustls", "strata-registry"]);
}

#[test]
fn the_client_links_no_tls() {
    assert_links_none("strata", &["rustls", "reqwest", "redb"]);
}

#[test]
fn unsafe_stands_in_sys_alone() {
    for folder in
        ["client/src", "engined/src", "engined/registry/src", "shimd/src", "shimd/shim/src", "lowrun/src", "proto"]
    {
        let found = offenders(folder, |path, line| {
            let in_sys = path.components().any(|part| part.as_os_str() == "sys") || path.ends_with("sys.rs");
            let word = line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
            // An override of a trait's unsafe method holds no unsafe operation of ours.
            word && !in_sys && !line.contains("unsafe fn downcast_raw")
        });
        assert!(found.is_empty(), "unsafe outside sys/:\n{}", found.join("\n"));
    }
}

#[test]
fn shimd_knows_no_docker_and_opens_no_network_socket() {
    let found = offenders("shimd/src", |_, line| {
        let lower = line.to_lowercase();
        lower.contains("tcpstream") || lower.contains("tcplistener") || lower.contains("udpsocket")
    });
    assert!(found.is_empty(), "network sockets in shimd:\n{}", found.join("\n"));
    let found = offenders("shimd/src", |_, line| line.to_lowercase().contains("kubernetes"));
    assert!(found.is_empty(), "Kubernetes in shimd:\n{}", found.join("\n"));
}

#[test]
fn the_network_executes_nothing() {
    let found = offenders("engined/src/network", |_, line| line.contains("Command::new") || line.contains("exec("));
    assert!(found.is_empty(), "programs run by the network:\n{}", found.join("\n"));
}

#[test]
fn engined_touches_no_cgroup_file() {
    let found = offenders("engined/src", |_, line| line.contains("\"/sys/fs/cgroup/") && !line.contains("destination"));
    assert!(found.is_empty(), "cgroup files in engined:\n{}", found.join("\n"));
}

#[test]
fn lowrun_starts_no_thread() {
    let found = offenders("lowrun/src", |_, line| line.contains("thread::spawn") || line.contains("thread::Builder"));
    assert!(found.is_empty(), "threads in lowrun:\n{}", found.join("\n"));
}

#[test]
fn wire_types_stay_in_the_front_doors() {
    let found =
        offenders("engined/src/engine", |_, line| line.contains("proto_engine") || line.contains("proto-engine"));
    assert!(found.is_empty(), "wire types in engined's core:\n{}", found.join("\n"));
}

#[test]
fn every_lint_exception_has_a_reason() {
    for folder in ["client", "engined", "shimd", "lowrun", "proto", "integration"] {
        let found = offenders(folder, |_, line| line.contains("#[allow(") && !line.contains("reason = "));
        assert!(found.is_empty(), "use #[expect(…, reason = …)]:\n{}", found.join("\n"));
    }
}
