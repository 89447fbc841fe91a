//! Seam 3: what a supervisor and a shim owe each other beyond a container's plain life.
//!
//! Each test runs four times: containerd with its own shim (which proves the test), containerd with ours, shimd with
//! either.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use integration::call::{Call, Output};
use integration::leak::cgroups_named;
use integration::process::{self, Process};
use integration::terminal::Terminal;
use integration::{Daemonship, Supervised, supervised_by, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const OURS: &str = "io.containerd.strata.v1";
const STOCK: &str = "io.containerd.runc.v2";

macro_rules! with_every_pairing {
    ($($name:ident)*) => {
        mod containerd_and_its_shim { $(#[test] fn $name() { super::pair(super::Daemonship::Containerd, super::STOCK, super::$name) })* }
        mod containerd_and_our_shim { $(#[test] fn $name() { super::pair(super::Daemonship::Containerd, super::OURS, super::$name) })* }
        mod shimd_and_our_shim { $(#[test] fn $name() { super::pair(super::Daemonship::Shimd, super::OURS, super::$name) })* }
        mod shimd_and_their_shim { $(#[test] fn $name() { super::pair(super::Daemonship::Shimd, super::STOCK, super::$name) })* }
    };
}

with_every_pairing! {
    binary_data_goes_through_unchanged
    much_output_is_whole_and_the_streams_are_apart
    output_goes_to_a_file
    no_output_is_wanted
    input_that_stays_open_and_ends
    a_program_that_dies_of_a_signal
    signals_reach_one_process_or_all
    execs_are_listed_killed_and_told_apart
    an_exec_in_a_terminal
    a_terminal_has_the_size_of_the_clients
    a_task_is_attached_to
    events_of_a_life_with_an_exec
    an_oom_kill_is_told
    metrics_are_measured
    the_daemon_restarts_while_the_container_runs
    output_of_the_gap_is_not_lost
    a_killed_shim_is_cleaned_up_after
    a_failed_start_leaves_nothing
    a_task_starts_again_in_its_container
    what_the_spec_asks_is_done
    many_at_once
    containers_of_a_group_share_a_shim
}

fn pair(daemonship: Daemonship, shim: &'static str, test: fn(&mut Pair)) {
    supervised_by(daemonship, |supervised| test(&mut Pair { supervised, shim }));
}

/// A supervisor and the shim that its containers get.
struct Pair<'a> {
    supervised: &'a mut Supervised,
    shim: &'static str,
}

impl Pair<'_> {
    fn run_call(&self, flags: &[&str], id: &str, program: &[&str]) -> Call {
        let head = self.supervised.ctr(&["run", "--runtime", self.shim]).args(flags);
        head.args(&[self.supervised.busybox(), id]).args(program)
    }

    #[track_caller]
    fn run(&self, flags: &[&str], id: &str, program: &[&str]) -> Output {
        self.run_call(flags, id, program).output()
    }

    /// A detached container whose program ends by TERM with 33.
    #[track_caller]
    fn sleeper(&self, id: &str) {
        self.run(&["-d"], id, &["sh", "-c", "trap 'exit 33' TERM; while :; do sleep 0.1; done"]).ok();
        self.supervised.wait_for_status(id, "RUNNING");
    }

    #[track_caller]
    fn tasks(&self, arguments: &[&str]) -> Output {
        self.supervised.ctr(&["tasks"]).args(arguments).output()
    }

    #[track_caller]
    fn exec(&self, id: &str, exec: &str, program: &[&str]) -> Output {
        self.supervised.ctr(&["tasks", "exec", "--exec-id", exec, id]).args(program).output()
    }

    #[track_caller]
    fn kill_and_delete(&self, id: &str) {
        self.tasks(&["kill", "-s", "KILL", id]).ok();
        self.supervised.wait_for_status(id, "STOPPED");
        self.supervised.assert_deleted_with(id, 137);
    }

    fn shim_process(&self, id: &str) -> Option<Process> {
        let family = process::descendants(std::process::id() as i32).into_iter();
        family.filter(|process| process.state != 'Z').find(|process| {
            let words: Vec<&str> = process.command.split(' ').collect();
            words[0].contains("containerd-shim-") && words.windows(2).any(|pair| pair == ["-id", id])
        })
    }

    /// The pid that `ctr tasks ls` shows.
    fn pid(&self, id: &str) -> i32 {
        let text = self.supervised.text(&["tasks", "ls"]);
        let row = text.lines().find(|line| line.split_whitespace().next() == Some(id)).expect("the task is listed");
        row.split_whitespace().nth(1).expect("a pid").parse().expect("a number")
    }

    fn terminal(&self, arguments: &[&str]) -> Terminal {
        self.supervised.terminal(arguments)
    }
}

/// Bytes of every value, no line ends at their places.
fn awkward_bytes(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[1]).collect()
}

fn binary_data_goes_through_unchanged(p: &mut Pair) {
    let input = awkward_bytes(300_000);
    let out = p.run_call(&["--rm"], "copy", &["cat"]).input(&input).output().ok();
    assert!(out.stdout == input, "{} bytes came back of {}", out.stdout.len(), input.len());
    p.sleeper("host");
    let exec = p.supervised.ctr(&["tasks", "exec", "--exec-id", "copy", "host", "cat"]);
    let out = exec.input(&input).output().ok();
    assert!(out.stdout == input, "{} bytes came back from an exec of {}", out.stdout.len(), input.len());
}

fn much_output_is_whole_and_the_streams_are_apart(p: &mut Pair) {
    let script = "seq 1 200000; seq 1 50000 >&2; exit 4";
    let out = p.run(&["--rm"], "much", &["sh", "-c", script]).code(4);
    let lines = |count: u32| (1..=count).map(|number| format!("{number}\n")).collect::<String>();
    assert!(out.stdout == lines(200_000).into_bytes(), "standard output: {} bytes", out.stdout.len());
    assert!(out.stderr == lines(50_000).into_bytes(), "standard error: {} bytes", out.stderr.len());
}

fn output_goes_to_a_file(p: &mut Pair) {
    let path = p.supervised.path("tmp/output");
    let uri = format!("file://{}", path.display());
    p.run(&["-d", "--log-uri", &uri], "logged", &["sh", "-c", "echo one; echo two >&2"]).ok();
    p.supervised.wait_for_status("logged", "STOPPED");
    let lines = || -> Vec<String> {
        let text = fs::read_to_string(&path).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    };
    wait::poll(Duration::from_secs(5), || (lines().len() == 2).then_some(()));
    let mut lines = lines();
    lines.sort_unstable();
    assert_eq!(lines, ["one", "two"]);
}

fn no_output_is_wanted(p: &mut Pair) {
    p.run(&["-d", "--null-io"], "quiet", &["sh", "-c", "seq 1 100000; cat; exit 6"]).ok();
    p.supervised.wait_for_status("quiet", "STOPPED");
    p.supervised.assert_deleted_with("quiet", 6);
}

fn input_that_stays_open_and_ends(p: &mut Pair) {
    let mut running = p.run_call(&["--rm"], "open", &["sh", "-c", "cat; exit 3"]).start_with_open_input();
    running.write(b"first ");
    running.expect("first ");
    running.write(b"second");
    running.expect("second");
    running.close_input();
    assert_eq!(running.end().code(3).text(), "first second");
}

fn a_program_that_dies_of_a_signal(p: &mut Pair) {
    p.run(&["--rm"], "dies", &["sh", "-c", "sh -c 'kill -SEGV $$'; exit $?"]).code(139);
    p.sleeper("killed");
    p.tasks(&["kill", "-s", "KILL", "killed"]).ok();
    p.supervised.wait_for_status("killed", "STOPPED");
    p.supervised.assert_deleted_with("killed", 137);
}

fn signals_reach_one_process_or_all(p: &mut Pair) {
    p.sleeper("signalled");
    let exec = p.supervised.ctr(&["tasks", "exec", "--exec-id", "side", "signalled", "sleep", "1000"]).start();
    wait::until_true("the exec runs", || p.tasks(&["ps", "signalled"]).ok().text().contains("side"));
    p.tasks(&["kill", "-s", "KILL", "--exec-id", "side", "signalled"]).ok();
    exec.end().code(137);
    assert_eq!(p.supervised.task_status("signalled").as_deref(), Some("RUNNING"));
    p.tasks(&["kill", "-s", "KILL", "--all", "signalled"]).ok();
    p.supervised.wait_for_status("signalled", "STOPPED");
    p.supervised.assert_deleted_with("signalled", 137);
}

fn execs_are_listed_killed_and_told_apart(p: &mut Pair) {
    p.sleeper("host");
    p.exec("host", "seven", &["sh", "-c", "exit 7"]).code(7);
    p.exec("host", "eight", &["sh", "-c", "exit 8"]).code(8);
    p.exec("host", "seven", &["true"]).ok();
    let out = p.exec("host", "missing", &["/no/such/program"]);
    assert!(out.code != 0 && out.errors().contains("/no/such/program"), "{}", out.errors());
    p.exec("host", "missing", &["true"]).ok();
    let running = p.supervised.ctr(&["tasks", "exec", "--exec-id", "long", "host", "sleep", "1000"]).start();
    wait::until_true("the exec runs", || p.tasks(&["ps", "host"]).ok().text().contains("long"));
    let twin = p.exec("host", "long", &["true"]);
    assert!(twin.code != 0 && twin.errors().contains("already exists"), "{}", twin.errors());
    p.kill_and_delete("host");
    running.end().code(137);
}

fn an_exec_in_a_terminal(p: &mut Pair) {
    p.sleeper("host");
    let mut terminal = p.terminal(&["tasks", "exec", "-t", "--exec-id", "shell", "host", "sh"]);
    terminal.expect("/ # ");
    terminal.send("tty; stty size; exit 5\n");
    terminal.expect("/dev/pts/0");
    terminal.expect("24 80");
    assert_eq!(terminal.end(), 5);
}

fn a_terminal_has_the_size_of_the_clients(p: &mut Pair) {
    let busybox = p.supervised.busybox();
    let mut terminal = p.terminal(&["run", "--rm", "-t", "--runtime", p.shim, busybox, "sized", "sh"]);
    terminal.expect("/ # ");
    terminal.resize(33, 101);
    // The client hears of the new size by a signal, and asks the shim for it in its own time.
    wait::until_true("the size arrives", || {
        terminal.send("stty size\n");
        terminal.expect("\n").is_empty() || terminal.expect("/ # ").contains("33 101")
    });
    terminal.send("sleep 1000\n");
    terminal.expect("sleep 1000");
    std::thread::sleep(Duration::from_millis(300));
    terminal.send("\u{3}");
    terminal.expect("/ # ");
    terminal.send("exit 9\n");
    assert_eq!(terminal.end(), 9);
}

fn a_task_is_attached_to(p: &mut Pair) {
    let script = "while [ ! -e /go ]; do sleep 0.1; done; echo there; exit 12";
    let first = p.run_call(&[], "shared", &["sh", "-c", script]).start();
    p.supervised.wait_for_status("shared", "RUNNING");
    // The first client goes without a word.
    first.signal(Signal::SIGKILL);
    first.end();
    let second = p.supervised.ctr(&["tasks", "attach", "shared"]).start();
    std::thread::sleep(Duration::from_millis(500));
    // The program may end so soon that it takes the exec along.
    p.exec("shared", "go", &["touch", "/go"]);
    assert_eq!(second.end().code(12).text(), "there");
}

/// The topics of `ctr events`, in order.
fn topics(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))).collect()
}

#[track_caller]
fn assert_in_order(text: &str, life: &[&str]) {
    let seen = topics(text);
    let mut rest = seen.iter();
    let is_whole = life.iter().all(|topic| rest.any(|seen| seen == topic));
    assert!(is_whole, "{life:?} is not in the order of {seen:?}");
}

fn events_of_a_life_with_an_exec(p: &mut Pair) {
    let watching = p.supervised.ctr(&["events"]).start();
    std::thread::sleep(Duration::from_millis(500));
    p.sleeper("watched");
    p.exec("watched", "inner", &["sh", "-c", "exit 2"]).code(2);
    p.tasks(&["pause", "watched"]).ok();
    p.tasks(&["resume", "watched"]).ok();
    p.tasks(&["kill", "-s", "TERM", "watched"]).ok();
    p.supervised.wait_for_status("watched", "STOPPED");
    p.supervised.assert_deleted_with("watched", 33);
    p.supervised.run(&["containers", "delete", "watched"]).ok();
    watching.expect("/containers/delete");
    watching.signal(Signal::SIGTERM);
    let text = watching.end().text();
    assert_in_order(
        &text,
        &[
            "/containers/create",
            "/tasks/create",
            "/tasks/start",
            "/tasks/exec-added",
            "/tasks/exec-started",
            "/tasks/exit",
            "/tasks/paused",
            "/tasks/resumed",
            "/tasks/exit",
            "/tasks/delete",
            "/containers/delete",
        ],
    );
    let exits: Vec<&str> = text.lines().filter(|line| line.contains("/tasks/exit")).collect();
    assert!(exits[0].contains("\"exit_status\":2") && exits[1].contains("\"exit_status\":33"), "{exits:?}");
    assert!(exits[0].contains("\"id\":\"inner\"") && exits[1].contains("\"id\":\"watched\""), "{exits:?}");
}

fn an_oom_kill_is_told(p: &mut Pair) {
    let watching = p.supervised.ctr(&["events"]).start();
    std::thread::sleep(Duration::from_millis(500));
    p.run(&["-d", "--memory-limit", "16777216"], "greedy", &["tail", "/dev/zero"]).ok();
    p.supervised.wait_for_status("greedy", "STOPPED");
    p.supervised.assert_deleted_with("greedy", 137);
    watching.expect("/tasks/delete");
    watching.signal(Signal::SIGTERM);
    let text = watching.end().text();
    assert!(topics(&text).contains(&"/tasks/oom"), "{text}");
    if p.shim == OURS {
        // Ours reads the counter before it tells the exit; the stock shim hears of both apart.
        assert_in_order(&text, &["/tasks/start", "/tasks/oom", "/tasks/exit", "/tasks/delete"]);
    }
}

fn metrics_are_measured(p: &mut Pair) {
    p.run(&["-d", "--memory-limit", "33554432"], "measured", &["sleep", "1000"]).ok();
    let text = p.tasks(&["metrics", "measured"]).ok().text();
    assert!(text.contains("33554432") && text.contains("pids.current"), "{text}");
}

fn the_daemon_restarts_while_the_container_runs(p: &mut Pair) {
    p.sleeper("survivor");
    let script = "while [ ! -e /go ]; do sleep 0.1; done; exit 42";
    p.run(&["-d"], "gap", &["sh", "-c", script]).ok();
    let pid = p.pid("survivor");
    let rootfs = PathBuf::from(format!("/proc/{}/root", p.pid("gap")));
    p.supervised.daemon().kill();
    fs::write(rootfs.join("go"), "").expect("write into the container");
    wait::until_true("the container ends in the gap", || !fs::exists(&rootfs).unwrap_or(false));
    p.supervised.kill_and_restart();
    assert_eq!(p.pid("survivor"), pid);
    p.supervised.wait_for_status("gap", "STOPPED");
    p.supervised.assert_deleted_with("gap", 42);
    p.exec("survivor", "after", &["sh", "-c", "exit 4"]).code(4);
    p.tasks(&["kill", "-s", "TERM", "survivor"]).ok();
    p.supervised.wait_for_status("survivor", "STOPPED");
    p.supervised.assert_deleted_with("survivor", 33);
    p.run(&["--rm"], "fresh", &["true"]).ok();
}

fn output_of_the_gap_is_not_lost(p: &mut Pair) {
    let path = p.supervised.path("tmp/output");
    let uri = format!("file://{}", path.display());
    let script = "i=0; while [ ! -e /go ]; do echo $i; i=$((i + 1)); sleep 0.01; done; echo end";
    p.run(&["-d", "--log-uri", &uri], "talker", &["sh", "-c", script]).ok();
    p.supervised.wait_for_status("talker", "RUNNING");
    p.supervised.kill_and_restart();
    // The program may end so soon that it takes the exec along.
    p.exec("talker", "go", &["touch", "/go"]);
    p.supervised.wait_for_status("talker", "STOPPED");
    let text = fs::read_to_string(&path).expect("the log");
    let numbers: Vec<usize> = text.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(numbers.iter().copied().eq(0..numbers.len()), "{text}");
    assert!(text.ends_with("end\n"), "{text}");
}

fn a_killed_shim_is_cleaned_up_after(p: &mut Pair) {
    p.sleeper("orphan");
    p.sleeper("neighbour");
    let (shim, pid) = (p.shim_process("orphan").expect("a shim"), p.pid("orphan"));
    kill(Pid::from_raw(shim.pid), Signal::SIGKILL).expect("kill the shim");
    wait::until_true("the container's process is killed", || process::find(pid).is_none_or(|found| found.state == 'Z'));
    wait::until_true("the task is gone", || {
        p.supervised.task_status("orphan").is_none_or(|status| status == "STOPPED")
    });
    p.tasks(&["delete", "orphan"]);
    p.supervised.run(&["containers", "delete", "orphan"]).ok();
    wait::until_true("no cgroup of it is left", || {
        cgroups_named(p.supervised.namespace()).iter().all(|path| !path.contains("orphan"))
    });
    assert_eq!(p.exec("neighbour", "alive", &["echo", "alive"]).ok().text(), "alive");
    p.run(&["--rm"], "orphan", &["true"]).ok();
}

fn a_failed_start_leaves_nothing(p: &mut Pair) {
    let out = p.run(&["-d"], "absent", &["/no/such/program"]);
    assert!(out.code != 0 && out.errors().contains("/no/such/program"), "{}", out.errors());
    assert!(p.supervised.task_status("absent").is_none());
    assert!(p.shim_process("absent").is_none(), "{:?}", p.shim_process("absent"));
    let out = p.run(&["-d", "--mount", "type=bind,src=/no/such/source,dst=/data,options=rbind"], "bind", &["true"]);
    assert!(out.code != 0 && out.errors().contains("/no/such/source"), "{}", out.errors());
    assert!(p.supervised.task_status("bind").is_none());
    let out = p.run(&["-d", "--cwd", "/etc/passwd"], "cwd", &["true"]);
    assert!(out.code != 0 && out.errors().contains("/etc/passwd"), "{}", out.errors());
}

fn a_task_starts_again_in_its_container(p: &mut Pair) {
    let busybox = p.supervised.busybox();
    // (No flag in the program's words: `ctr containers create` would take it for its own.)
    p.supervised.run(&["containers", "create", "--runtime", p.shim, busybox, "again", "mkdir", "/made"]).ok();
    for code in [0, 1, 1] {
        p.tasks(&["start", "again"]).code(code);
        assert!(p.supervised.task_status("again").is_none());
    }
}

fn what_the_spec_asks_is_done(p: &mut Pair) {
    let flags = ["--rm", "--read-only", "--cap-drop", "CAP_CHOWN", "--env", "A=b c", "--cwd", "/etc", "--seccomp"];
    let script = "touch /x 2>&1; chown 1 /dev/shm 2>&1; echo $A; pwd; grep -E 'Seccomp:|NoNewPrivs' /proc/self/status";
    let text = p.run(&flags, "asked", &["sh", "-c", script]).ok().text();
    for part in
        ["/x: Read-only file system", "Operation not permitted", "\nb c\n/etc\n", "NoNewPrivs:\t1", "Seccomp:\t2"]
    {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
    let text = p.run(&["--rm", "--privileged"], "free", &["grep", "CapEff", "/proc/self/status"]).ok().text();
    // As many as the caller has, and that may be fewer than the kernel knows.
    let own = fs::read_to_string("/proc/thread-self/status").expect("this thread's status");
    assert!(own.lines().any(|line| line == text), "{text}");
    let here = fs::read_link("/proc/thread-self/ns/net").expect("a namespace").display().to_string();
    assert_eq!(p.run(&["--rm", "--net-host"], "near", &["readlink", "/proc/self/ns/net"]).ok().text(), here);
    assert_ne!(p.run(&["--rm"], "far", &["readlink", "/proc/self/ns/net"]).ok().text(), here);
}

fn many_at_once(p: &mut Pair) {
    let calls = (0..8).map(|number| {
        let script = format!("echo {number}; exit {number}");
        (number, p.run_call(&["--rm"], &format!("one-of-{number}"), &["sh", "-c", &script]).start())
    });
    for (number, running) in calls.collect::<Vec<_>>() {
        assert_eq!(running.end().code(number).text(), number.to_string());
    }
}

fn containers_of_a_group_share_a_shim(p: &mut Pair) {
    let group = ["-d", "--annotation", "io.containerd.runc.v2.group=pod"];
    for id in ["first", "second"] {
        p.run(&group, id, &["sh", "-c", "trap 'exit 33' TERM; while :; do sleep 0.1; done"]).ok();
        p.supervised.wait_for_status(id, "RUNNING");
    }
    p.sleeper("alone");
    let parent = |id: &str| process::find(p.pid(id)).expect("it runs").parent;
    assert_eq!(parent("first"), parent("second"));
    assert_ne!(parent("first"), parent("alone"));
    // The first that came goes first: what is left does not depend on it.
    p.kill_and_delete("first");
    p.supervised.run(&["containers", "rm", "first"]).ok();
    assert_eq!(p.exec("second", "e", &["echo", "still here"]).ok().text(), "still here");
    p.supervised.kill_and_restart();
    assert_eq!(p.exec("second", "f", &["echo", "and after"]).ok().text(), "and after");
    p.run(&group, "third", &["sh", "-c", "exit 3"]).ok();
    p.supervised.wait_for_status("third", "STOPPED");
    p.supervised.assert_deleted_with("third", 3);
    p.kill_and_delete("second");
}
