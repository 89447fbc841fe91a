//! Seam 3 and the swaps: any shim under any supervisor, any runtime under any shim.

use std::path::{Path, PathBuf};

use integration::{Daemonship, Supervised, newer_containerd, programs, skip, supervised_by, supervised_with};

const OURS: &str = "io.containerd.strata.v1";
const STOCK: &str = "io.containerd.runc.v2";

/// The life of a container with a shim under the daemon: run, exec, the daemon's death, kill, exit code, terminal.
/// `options` are more flags of `ctr run`.
fn life(s: &mut Supervised, shim: &str, options: &[&str]) {
    let run = |first: &[&str], rest: &[&str]| -> Vec<String> {
        let words = [&["run"], first, &["--runtime", shim], options, &[s.busybox()], rest].concat();
        words.into_iter().map(str::to_owned).collect()
    };
    let once = run(&["--rm"], &["once", "sh", "-c", "echo out; echo err >&2; exit 5"]);
    let long = run(&["-d"], &["long", "sh", "-c", "trap 'exit 33' TERM; while :; do sleep 0.1; done"]);
    let shell = run(&["--rm", "-t"], &["terminal", "sh"]);

    let out = s.run(&borrowed(&once)).code(5);
    assert_eq!((out.text().as_str(), out.errors().as_str()), ("out", "err\n"));

    s.run(&borrowed(&long)).ok();
    s.wait_for_status("long", "RUNNING");
    assert_eq!(s.text(&["tasks", "exec", "--exec-id", "one", "long", "echo", "inside"]), "inside");
    s.run(&["tasks", "exec", "--exec-id", "two", "long", "sh", "-c", "exit 9"]).code(9);
    s.kill_and_restart();
    assert_eq!(s.text(&["tasks", "exec", "--exec-id", "three", "long", "echo", "after"]), "after");
    s.run(&["tasks", "kill", "-s", "TERM", "long"]).ok();
    s.wait_for_status("long", "STOPPED");
    s.assert_deleted_with("long", 33);

    let mut terminal = s.terminal(&borrowed(&shell));
    terminal.expect("/ # ");
    terminal.send("echo $((6 * 7)); exit 4\n");
    terminal.expect("42");
    assert_eq!(terminal.end(), 4);
}

fn borrowed(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

fn lowrun() -> String {
    programs::ours().join("lowrun").display().to_string()
}

/// A directory with our shim and, under the name of lowrun, another runtime: the shim takes the one beside itself. `ctr`
/// names a runtime's program to the stock shim alone.
fn shim_beside(runtime: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("strata-shim-{}", std::process::id()));
    std::fs::create_dir(&directory).expect("a directory for the shim");
    let shim = "containerd-shim-strata-v1";
    std::fs::copy(programs::ours().join(shim), directory.join(shim)).expect("copy the shim");
    std::os::unix::fs::symlink(runtime, directory.join("lowrun")).expect("a link to the runtime");
    directory
}

/// The life of a container under a daemon with our shim over a runtime of Debian's.
fn our_shim_over(daemonship: Daemonship, runtime: &str) {
    let Some(runtime) = of_theirs(runtime) else { return };
    let directory = shim_beside(&runtime);
    let outcome =
        std::panic::catch_unwind(|| supervised_with(daemonship, Path::new(&directory), |s| life(s, OURS, &[])));
    std::fs::remove_dir_all(&directory).expect("remove the shim's directory");
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn of_theirs(name: &str) -> Option<String> {
    let path = programs::peer(name);
    if path.is_none() {
        skip(&format!("{name} is not installed: run 'make setup'"));
    }
    path.map(|path| path.display().to_string())
}

#[test]
fn containerd_over_its_own_shim_and_runc() {
    let Some(runc) = of_theirs("runc") else { return };
    supervised_by(Daemonship::Containerd, |s| life(s, STOCK, &["--runc-binary", &runc]));
}

#[test]
fn containerd_over_its_own_shim_and_lowrun() {
    supervised_by(Daemonship::Containerd, |s| life(s, STOCK, &["--runc-binary", &lowrun()]));
}

#[test]
fn containerd_over_our_shim_and_lowrun() {
    supervised_by(Daemonship::Containerd, |s| life(s, OURS, &[]));
}

#[test]
fn containerd_over_our_shim_and_runc() {
    our_shim_over(Daemonship::Containerd, "runc");
}

#[test]
fn a_newer_containerd_over_our_shim_and_lowrun() {
    newer_containerd(|s| {
        life(s, OURS, &[]);
        let out = s.run(&["run", "--rm", "--runtime", OURS, s.busybox(), "none", "/no/such/program"]).code(1);
        assert!(out.errors().contains("/no/such/program") && !out.errors().contains("detail"), "{}", out.errors());
    });
}

#[test]
fn shimd_over_our_shim_and_lowrun() {
    supervised_by(Daemonship::Shimd, |s| life(s, OURS, &[]));
}

#[test]
fn shimd_over_our_shim_and_runc() {
    our_shim_over(Daemonship::Shimd, "runc");
}

#[test]
fn shimd_over_the_stock_shim_and_runc() {
    let Some(runc) = of_theirs("runc") else { return };
    supervised_by(Daemonship::Shimd, |s| life(s, STOCK, &["--runc-binary", &runc]));
}

#[test]
fn shimd_over_the_stock_shim_and_lowrun() {
    supervised_by(Daemonship::Shimd, |s| life(s, STOCK, &["--runc-binary", &lowrun()]));
}
