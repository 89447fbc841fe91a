//! Seam 4 from above: dockerd over its runc, which proves the tests, and over lowrun. (`SUBJECT=theirs-over-lowrun` runs
//! all of `tests/flow` over lowrun.)

use integration::{Stack, theirs, theirs_over, wait};

macro_rules! over_both {
    ($($name:ident)*) => {
        mod over_runc { $(#[test] fn $name() { super::theirs(super::$name) })* }
        mod over_lowrun { $(#[test] fn $name() { super::theirs_over("lowrun", super::$name) })* }
    };
}

over_both! {
    run_gives_output_input_and_exit_code
    exec_stop_logs_and_removal
    pause_and_top
    limits_are_changed_while_it_runs
    an_oom_kill_is_seen
    a_terminal_and_an_exec_in_one
    hardening
}

fn sleeper<'a>(s: &Stack, flags: &[&'a str], name: &'a str) {
    s.run(&[&["run", "-d", "--name", name], flags, &[s.busybox(), "sleep", "1000"]].concat()).ok();
}

#[test]
fn it_is_lowrun_that_runs() {
    theirs_over("lowrun", |s| assert_eq!(s.text(&["info", "--format", "{{.DefaultRuntime}}"]), "lowrun"));
}

fn run_gives_output_input_and_exit_code(s: &mut Stack) {
    let out = s.call(&["run", "--rm", "-i", s.busybox(), "sh", "-c", "cat; echo err >&2; exit 7"]);
    let out = out.input(b"in\xff\0").output().code(7);
    assert_eq!((out.stdout.as_slice(), out.errors().as_str()), (&b"in\xff\0"[..], "err\n"));
    s.run(&["run", "--rm", s.busybox(), "/no/such/program"]).code(127);
    s.run(&["run", "--rm", s.busybox(), "/etc/passwd"]).code(126);
}

fn exec_stop_logs_and_removal(s: &mut Stack) {
    let script = "trap 'echo bye; exit 5' TERM; echo hello; while :; do sleep 0.1; done";
    s.run(&["run", "-d", "--name", "web", s.busybox(), "sh", "-c", script]).ok();
    s.run(&["exec", "-w", "/etc", "-e", "A=1", "-u", "33", "web", "sh", "-c", "exit $A"]).code(1);
    assert_eq!(s.text(&["exec", "-u", "33:44", "web", "sh", "-c", "id -u; id -g"]), "33\n44");
    // (Later versions of Docker say 127.)
    s.run(&["exec", "web", "/no/such/program"]).code(126);
    s.run(&["stop", "web"]).ok();
    assert_eq!(s.text(&["logs", "web"]), "hello\nbye");
    assert_eq!(s.inspect("web", "{{.State.ExitCode}}"), "5");
    s.run(&["start", "web"]).ok();
    s.run(&["kill", "web"]).ok();
    wait::until_true("it is dead", || s.inspect("web", "{{.State.ExitCode}}") == "137");
    s.run(&["rm", "web"]).ok();
}

fn pause_and_top(s: &mut Stack) {
    sleeper(s, &["--memory", "64m"], "limited");
    s.run(&["pause", "limited"]).ok();
    assert_eq!(s.inspect("limited", "{{.State.Status}}"), "paused");
    s.run(&["unpause", "limited"]).ok();
    let out = s.text(&["top", "limited"]);
    assert!(out.contains("sleep 1000"), "{out}");
}

fn limits_are_changed_while_it_runs(s: &mut Stack) {
    sleeper(s, &["--memory", "64m", "--memory-swap", "64m"], "grown");
    s.run(&["update", "--memory", "96m", "--memory-swap", "96m", "--pids-limit", "50", "--cpus", "0.5", "grown"]).ok();
    assert_eq!(s.inspect("grown", "{{.HostConfig.Memory}}"), "100663296");
}

fn an_oom_kill_is_seen(s: &mut Stack) {
    s.run(&["run", "--name", "greedy", "--memory", "16m", s.busybox(), "tail", "/dev/zero"]).code(137);
    assert_eq!(s.inspect("greedy", "{{.State.OOMKilled}}"), "true");
}

fn a_terminal_and_an_exec_in_one(s: &mut Stack) {
    let mut terminal = s.terminal(&["run", "--rm", "-it", "--name", "tty", s.busybox(), "sh"]);
    terminal.expect("/ # ");
    let mut exec = s.terminal(&["exec", "-it", "tty", "sh"]);
    exec.expect("/ # ");
    exec.send("tty; exit 6\n");
    exec.expect("/dev/pts/");
    assert_eq!(exec.end(), 6);
    terminal.send("stty size; exit 4\n");
    terminal.expect("24 80");
    assert_eq!(terminal.end(), 4);
}

fn hardening(s: &mut Stack) {
    let script = "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status; touch /x 2>&1; ulimit -n; cat /proc/1/oom_score_adj";
    let flags = ["run", "--rm", "--read-only", "--security-opt", "no-new-privileges", "--ulimit", "nofile=77"];
    let text = s.text(&[&flags[..], &["--oom-score-adj", "300", s.busybox(), "sh", "-c", script]].concat());
    for part in ["NoNewPrivs:\t1", "Seccomp:\t2", "Read-only file system", "\n77\n300"] {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
}

/// Not over runc: where the caller lacks a capability that the kernel knows, runc 1.1 refuses to run.
#[test]
fn privileged_over_lowrun() {
    theirs_over("lowrun", |s| {
        let script = "mkdir /x && mount -t tmpfs x /x && echo mounted";
        assert_eq!(s.text(&["run", "--rm", "--privileged", s.busybox(), "sh", "-c", script]), "mounted");
    });
}
