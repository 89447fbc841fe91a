//! Seam 2 from above: engined over Debian's containerd, with its own shim and runc or with ours.

use std::path::PathBuf;

use integration::stack::{Settings, Supervisor};
use integration::{Stack, http, ours_with, wait};

fn over_containerd(test: impl FnOnce(&mut Stack)) {
    let runtime = Some("io.containerd.runc.v2".to_owned());
    let runtime_binary = Some(PathBuf::from("/usr/sbin/runc"));
    ours_with(Settings { supervisor: Supervisor::Containerd, runtime, runtime_binary, ..Settings::default() }, test);
}

#[test]
fn run_gives_output_and_exit_code() {
    over_containerd(|s| {
        let out = s.run(&["run", "--rm", s.busybox(), "sh", "-c", "echo out; echo err >&2; exit 7"]).code(7);
        assert_eq!((out.text().as_str(), out.errors().as_str()), ("out", "err\n"));
        s.run(&["run", "--rm", s.busybox(), "/no/such/program"]).code(127);
        assert_eq!(s.text(&["ps", "-aq"]), "");
    });
}

#[test]
fn input_goes_through_unchanged() {
    over_containerd(|s| {
        let input: Vec<u8> = (0..100_000_u32).flat_map(u32::to_be_bytes).collect();
        let out = s.call(&["run", "--rm", "-i", s.busybox(), "cat"]).input(&input).output().ok();
        assert!(out.stdout == input, "{} bytes came back", out.stdout.len());
    });
}

#[test]
fn exec_logs_stop_and_removal() {
    over_containerd(|s| {
        let script = "trap 'echo bye; exit 5' TERM; echo hello; while :; do sleep 0.1; done";
        s.run(&["run", "-d", "--name", "web", s.busybox(), "sh", "-c", script]).ok();
        wait::until_true("it speaks", || s.text(&["logs", "web"]) == "hello");
        s.run(&["exec", "web", "sh", "-c", "exit 9"]).code(9);
        assert_eq!(s.text(&["exec", "-w", "/etc", "web", "pwd"]), "/etc");
        s.run(&["stop", "web"]).ok();
        assert_eq!(s.text(&["logs", "web"]), "hello\nbye");
        assert_eq!(s.inspect("web", "{{.State.ExitCode}}"), "5");
        s.run(&["rm", "web"]).ok();
    });
}

#[test]
fn a_port_is_published() {
    over_containerd(|s| {
        s.run(&["run", "-d", "-p", "127.0.0.1:18080:80", "--name", "web", &s.image("nginx")]).ok();
        let status = || http::get("127.0.0.1:18080", "/").map(|(status, _)| status);
        wait::until_true("a page comes", || status() == Some(200));
        s.run(&["rm", "-f", "web"]).ok();
    });
}

#[test]
fn a_terminal() {
    over_containerd(|s| {
        let mut terminal = s.terminal(&["run", "--rm", "-it", s.busybox(), "sh"]);
        terminal.expect("/ # ");
        terminal.send("stty size; exit 3\n");
        terminal.expect("24 80");
        assert_eq!(terminal.end(), 3);
    });
}

#[test]
fn containerd_dies_and_comes_back() {
    over_containerd(|s| {
        let script = "i=0; while :; do echo $i; i=$((i + 1)); sleep 0.05; done";
        s.run(&["run", "-d", "--name", "talker", s.busybox(), "sh", "-c", script]).ok();
        s.daemons().supervisor().kill();
        s.daemons().restart_supervisor();
        wait::until_true("it is seen again", || s.run(&["exec", "talker", "true"]).code == 0);
        s.run(&["kill", "talker"]).ok();
        wait::until_true("it is dead", || s.inspect("talker", "{{.State.ExitCode}}") == "137");
        let numbers: Vec<usize> = s.text(&["logs", "talker"]).lines().filter_map(|line| line.parse().ok()).collect();
        assert!(numbers.iter().copied().eq(0..numbers.len()), "{numbers:?}");
    });
}
