//! Seam 2 from above: engined over Debian's containerd, with its own shim and runc and with ours; and over shimd with the
//! stock shim; and clients of its own API that are not ours. (What engined does over our own parts is `tests/flow`.)

use std::path::PathBuf;

use integration::stack::{Settings, Supervisor, ours::socket};
use integration::{Stack, http, ours, ours_with, wait};
use tempfile::TempDir;

macro_rules! over_each {
    ($($name:ident)*) => {
        mod over_containerd { $(#[test] fn $name() { super::ours_with(super::stock(super::Supervisor::Containerd), super::$name) })* }
        mod over_containerd_and_our_shim { $(#[test] fn $name() { super::ours_with(super::containerd_and_our_shim(), super::$name) })* }
        mod over_shimd_and_their_shim { $(#[test] fn $name() { super::ours_with(super::stock(super::Supervisor::Shimd), super::$name) })* }
    };
}

over_each! {
    run_gives_output_and_exit_code
    input_goes_through_unchanged
    exec_logs_stop_and_removal
    a_port_is_published
    a_terminal
    an_oom_kill_is_known
    an_image_is_pulled_shown_and_removed
    the_supervisor_dies_and_comes_back
    engined_dies_and_comes_back
}

/// Python's and C++'s clients of the engine's own API name the socket's path as the host.
#[test]
fn clients_on_the_c_library_are_answered() {
    ours(|s| {
        let version = http::call_grpc_as_c_does(&socket(s.site()), "/strata.engine.v1.System/Version");
        assert!(version.expect("an answer").len() > 5);
    });
}

/// The stock shim and runc.
fn stock(supervisor: Supervisor) -> Settings {
    let runtime = Some("io.containerd.runc.v2".to_owned());
    let runtime_binary = Some(PathBuf::from("/usr/sbin/runc"));
    Settings { supervisor, runtime, runtime_binary, ..Settings::default() }
}

fn containerd_and_our_shim() -> Settings {
    Settings { supervisor: Supervisor::Containerd, ..Settings::default() }
}

/// What engined's `hosts_dir` says is done: an image of a registry that there is not comes from its mirror.
#[test]
fn a_mirror_of_a_hosts_file_is_asked() {
    let hosts = TempDir::new().expect("a directory");
    let settings = Settings { more: format!("hosts_dir = '{}'\n", hosts.path().display()), ..Settings::default() };
    ours_with(settings, |s| {
        let image = "registry.invalid/busybox:latest";
        s.run(&["pull", image]).code(1);
        let own = hosts.path().join("registry.invalid");
        std::fs::create_dir(&own).expect("a directory");
        let text = format!("[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", s.registry().host());
        std::fs::write(own.join("hosts.toml"), text).expect("a hosts.toml");
        s.run(&["pull", image]).ok();
        assert_eq!(s.text(&["run", "--rm", image, "echo", "mirrored"]), "mirrored");
    });
}

fn run_gives_output_and_exit_code(s: &mut Stack) {
    let out = s.run(&["run", "--rm", s.busybox(), "sh", "-c", "echo out; echo err >&2; exit 7"]).code(7);
    assert_eq!((out.text().as_str(), out.errors().as_str()), ("out", "err\n"));
    s.run(&["run", "--rm", s.busybox(), "/no/such/program"]).code(127);
    assert_eq!(s.text(&["ps", "-aq"]), "");
}

fn input_goes_through_unchanged(s: &mut Stack) {
    let input: Vec<u8> = (0..100_000_u32).flat_map(u32::to_be_bytes).collect();
    let out = s.call(&["run", "--rm", "-i", s.busybox(), "cat"]).input(&input).output().ok();
    assert!(out.stdout == input, "{} bytes came back", out.stdout.len());
}

fn exec_logs_stop_and_removal(s: &mut Stack) {
    let script = "trap 'echo bye; exit 5' TERM; echo hello; while :; do sleep 0.1; done";
    s.run(&["run", "-d", "--name", "web", s.busybox(), "sh", "-c", script]).ok();
    wait::until_true("it speaks", || s.text(&["logs", "web"]) == "hello");
    s.run(&["exec", "web", "sh", "-c", "exit 9"]).code(9);
    assert_eq!(s.text(&["exec", "-w", "/etc", "web", "pwd"]), "/etc");
    s.run(&["stop", "web"]).ok();
    assert_eq!(s.text(&["logs", "web"]), "hello\nbye");
    assert_eq!(s.inspect("web", "{{.State.ExitCode}}"), "5");
    s.run(&["rm", "web"]).ok();
}

fn a_port_is_published(s: &mut Stack) {
    s.run(&["run", "-d", "-p", "127.0.0.1:18080:80", "--name", "web", &s.image("nginx")]).ok();
    let status = || http::get("127.0.0.1:18080", "/").map(|(status, _)| status);
    wait::until_true("a page comes", || status() == Some(200));
    s.run(&["rm", "-f", "web"]).ok();
}

fn a_terminal(s: &mut Stack) {
    let mut terminal = s.terminal(&["run", "--rm", "-it", s.busybox(), "sh"]);
    terminal.expect("/ # ");
    terminal.send("stty size; exit 3\n");
    terminal.expect("24 80");
    assert_eq!(terminal.end(), 3);
}

fn the_supervisor_dies_and_comes_back(s: &mut Stack) {
    let script = "i=0; while :; do echo $i; i=$((i + 1)); sleep 0.05; done";
    s.run(&["run", "-d", "--name", "talker", s.busybox(), "sh", "-c", script]).ok();
    s.daemons().supervisor().kill();
    s.daemons().restart_supervisor();
    wait::until_true("it is seen again", || s.run(&["exec", "talker", "true"]).code == 0);
    s.run(&["kill", "talker"]).ok();
    wait::until_true("it is dead", || s.inspect("talker", "{{.State.ExitCode}}") == "137");
    let numbers: Vec<usize> = s.text(&["logs", "talker"]).lines().filter_map(|line| line.parse().ok()).collect();
    assert!(numbers.iter().copied().eq(0..numbers.len()), "{numbers:?}");
}

fn an_oom_kill_is_known(s: &mut Stack) {
    s.run(&["run", "--name", "greedy", "--memory", "16m", s.busybox(), "tail", "/dev/zero"]).code(137);
    assert_eq!(s.inspect("greedy", "{{.State.OOMKilled}}"), "true");
}

fn an_image_is_pulled_shown_and_removed(s: &mut Stack) {
    let nginx = s.image("nginx");
    s.run(&["pull", &nginx]).ok();
    assert!(s.text(&["images"]).contains("nginx"));
    s.run(&["rmi", &nginx]).ok();
    assert!(!s.text(&["images"]).contains("nginx"));
    s.run(&["run", "--rm", &nginx, "true"]).ok();
}

fn engined_dies_and_comes_back(s: &mut Stack) {
    let script = "i=0; while [ ! -e /go ]; do echo $i; i=$((i + 1)); sleep 0.05; done; exit 9";
    s.run(&["run", "-d", "--name", "talker", s.busybox(), "sh", "-c", script]).ok();
    s.daemons().engined().kill();
    s.daemons().restart_engined();
    assert_eq!(s.inspect("talker", "{{.State.Status}}"), "running");
    // The program may end so soon that it takes the exec along.
    s.run(&["exec", "talker", "touch", "/go"]);
    assert_eq!(s.text(&["wait", "talker"]), "9");
    let numbers: Vec<usize> = s.text(&["logs", "talker"]).lines().filter_map(|line| line.parse().ok()).collect();
    assert!(!numbers.is_empty() && numbers.iter().copied().eq(0..numbers.len()), "{numbers:?}");
}
