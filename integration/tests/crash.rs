//! Nothing is lost when a daemon dies: kill -9 of engined and of the supervisor at many points of `run` and of `stop`,
//! then a new daemon, and all is as it should be.
//!
//! The points are of two kinds. *Moments* sweep over the time that the operation takes. *System calls* are exact: strace
//! sends the daemon SIGKILL when it enters its n-th call of a kind, for n = 1, 2, 3 … until the operation no longer gets
//! that far. Neither needs a hook in the product. `STRATA_CRASH_ROUNDS` repeats each sweep (default: once).

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use integration::{Stack, ours, process, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Engined,
    Supervisor,
}

impl Victim {
    fn pid(self, s: &mut Stack) -> i32 {
        match self {
            Victim::Engined => s.daemons().engined().pid(),
            Victim::Supervisor => s.daemons().supervisor().pid(),
        }
    }

    fn is_dead(self, s: &mut Stack) -> bool {
        match self {
            Victim::Engined => s.daemons().engined().is_over(),
            Victim::Supervisor => s.daemons().supervisor().is_over(),
        }
    }

    /// Kills it, if it is not dead yet, and starts another.
    fn replace(self, s: &mut Stack) {
        match self {
            Victim::Engined => {
                s.daemons().engined().kill();
                s.daemons().restart_engined();
            }
            Victim::Supervisor => {
                s.daemons().supervisor().kill();
                s.daemons().restart_supervisor();
            }
        }
        wait::until_true("engined answers", || s.run(&["ps", "-aq"]).code == 0);
    }
}

/// What goes on while it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Run,
    Stop,
}

impl Operation {
    /// Makes what the operation needs.
    fn prepare(self, s: &Stack, name: &str) {
        if self == Operation::Stop {
            s.detached(&["--name", name, s.busybox(), "sleep", "1000"]);
        }
    }

    /// Starts the operation's client.
    fn start(self, s: &Stack, name: &str) -> integration::Running {
        match self {
            Operation::Run => s.call(&["run", "-d", "--name", name, s.busybox(), "sleep", "1000"]).start(),
            Operation::Stop => s.call(&["stop", "-t", "0", name]).start(),
        }
    }
}

fn rounds() -> u32 {
    std::env::var("STRATA_CRASH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1)
}

/// Whatever the container's state is now, it is true, it can be removed, and then nothing of it is left.
#[track_caller]
fn assert_whole(s: &mut Stack, name: &str, point: &str) {
    let listed = s.text(&["ps", "-a", "--filter", &format!("name={name}"), "--format", "{{.Names}} {{.State}}"]);
    if !listed.is_empty() {
        assert_state_is_true(s, name, point);
        let removed = s.run(&["rm", "-f", name]);
        assert_eq!(removed.code, 0, "{point}: rm -f: {}", removed.errors());
    }
    assert_eq!(s.text(&["ps", "-aq"]), "", "{point}");
    s.assert_nothing_left(point);
    let next = s.run(&["run", "--rm", "--name", name, s.busybox(), "echo", "next"]);
    assert_eq!((next.code, next.text().as_str()), (0, "next"), "{point}: {}", next.errors());
}

/// What is said to run has a process, and can be entered; what is said not to run has none.
#[track_caller]
fn assert_state_is_true(s: &Stack, name: &str, point: &str) {
    // A start or a stop that engined goes on with after its restart may take a moment.
    let settled = wait::poll(Duration::from_secs(5), || {
        let said = s.inspect(name, "{{.State.Status}} {{.State.Pid}}");
        let (status, pid) = said.split_once(' ')?;
        let pid: i32 = pid.parse().ok()?;
        let is_alive = pid != 0 && process::find(pid).is_some_and(|process| process.state != 'Z');
        match status {
            "running" => (is_alive && s.run(&["exec", name, "true"]).code == 0).then_some(()),
            _ => (!is_alive).then_some(()),
        }
    });
    assert!(settled.is_some(), "{point}: it is said to be {}", s.inspect(name, "{{.State.Status}} {{.State.Pid}}"));
}

/// Kills at `points` moments that are spread over the operation's time and a little beyond.
fn sweep_moments(victim: Victim, operation: Operation, points: u32) {
    ours(|s| {
        let span = time_of(s, operation).mul_f64(1.25);
        for round in 0..rounds() {
            for point in 0..points {
                let delay = span * point / points;
                let name = format!("moment-{round}-{point}");
                operation.prepare(s, &name);
                let pid = victim.pid(s);
                let client = operation.start(s, &name);
                std::thread::sleep(delay);
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                victim.replace(s);
                client.end();
                assert_whole(s, &name, &format!("{victim:?} killed {delay:?} after the start of {operation:?}"));
            }
        }
    });
}

/// How long the operation takes when nobody is killed.
fn time_of(s: &mut Stack, operation: Operation) -> Duration {
    let mut times: Vec<Duration> = (0..3)
        .map(|turn| {
            let name = format!("timed-{turn}");
            operation.prepare(s, &name);
            let start = Instant::now();
            operation.start(s, &name).end();
            let took = start.elapsed();
            s.run(&["rm", "-f", &name]).ok();
            took
        })
        .collect();
    times.sort();
    times[1]
}

/// Kills at each n-th call of these kinds, at most `most` of each.
fn sweep_system_calls(victim: Victim, operation: Operation, calls: &[&str], most: u32) {
    ours(|s| {
        let mut points = 0;
        for (index, call) in calls.iter().enumerate() {
            for count in 1..=most {
                let name = format!("call-{index}-{count}");
                operation.prepare(s, &name);
                let mut strace = Strace::attach(victim.pid(s), call, count);
                let mut client = operation.start(s, &name);
                // The client may wait for a dead engined to come back.
                wait::until_true("one of the two ends", || victim.is_dead(s) || client.is_over());
                // What is done off the reply path may meet the call a little later.
                let is_killed = wait::poll(Duration::from_millis(100), || victim.is_dead(s).then_some(())).is_some();
                strace.end();
                victim.replace(s);
                client.end();
                assert_whole(s, &name, &format!("{victim:?} killed at its {call} number {count} during {operation:?}"));
                if !is_killed {
                    break;
                }
                points += 1;
            }
        }
        assert!(points > 0, "no call of {calls:?} was met: the sweep tests nothing");
        println!("{points} points");
    });
}

/// strace, attached to all threads of a process.
struct Strace {
    child: Child,
}

impl Strace {
    fn attach(pid: i32, call: &str, count: u32) -> Strace {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
        command.args(["-e", &format!("inject={call}:signal=SIGKILL:when={count}"), "-p", &pid.to_string()]);
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("run strace");
        wait::until_true("strace is attached to every thread", || {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the daemon's threads");
            tasks.flatten().all(|task| {
                let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
                !status.contains("TracerPid:\t0\n")
            })
        });
        Strace { child }
    }

    fn end(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "known gap: a network namespace pinned before its record is stays until the next start"]
fn engined_is_killed_at_moments_of_run() {
    sweep_moments(Victim::Engined, Operation::Run, 24);
}

#[test]
fn engined_is_killed_at_moments_of_stop() {
    sweep_moments(Victim::Engined, Operation::Stop, 20);
}

#[test]
#[ignore = "known gap: a shim that was being started or ended may stay"]
fn the_supervisor_is_killed_at_moments_of_run() {
    sweep_moments(Victim::Supervisor, Operation::Run, 24);
}

#[test]
#[ignore = "known gap: a shim that was being started or ended may stay"]
fn the_supervisor_is_killed_at_moments_of_stop() {
    sweep_moments(Victim::Supervisor, Operation::Stop, 20);
}

#[test]
#[ignore = "known gap: not green at every point yet"]
fn engined_is_killed_at_system_calls_of_run() {
    let calls =
        ["pwrite64", "fdatasync", "mkdirat,mkdir", "sendto,sendmsg", "mount,move_mount", "writev", "unlink,unlinkat"];
    sweep_system_calls(Victim::Engined, Operation::Run, &calls, 6);
}

#[test]
#[ignore = "known gap: not green at every point yet"]
fn engined_is_killed_at_system_calls_of_stop() {
    let calls = ["pwrite64", "sendto,sendmsg", "writev", "umount2", "unlink,unlinkat"];
    sweep_system_calls(Victim::Engined, Operation::Stop, &calls, 6);
}

#[test]
#[ignore = "known gap: not green at every point yet"]
fn the_supervisor_is_killed_at_system_calls_of_run() {
    let calls = [
        "pwrite64",
        "fdatasync,fsync",
        "mkdirat,mkdir",
        "rename,renameat,renameat2",
        "symlink,symlinkat",
        "clone,clone3,vfork",
        "connect",
        "sendto,sendmsg",
        "writev",
    ];
    sweep_system_calls(Victim::Supervisor, Operation::Run, &calls, 6);
}

#[test]
#[ignore = "known gap: not green at every point yet"]
fn the_supervisor_is_killed_at_system_calls_of_stop() {
    let calls = ["pwrite64", "unlink,unlinkat,rmdir", "sendto,sendmsg", "writev", "clone,clone3,vfork"];
    sweep_system_calls(Victim::Supervisor, Operation::Stop, &calls, 6);
}

#[test]
fn a_container_goes_on_and_no_line_is_missing() {
    ours(|s| {
        let script = "n=0; while :; do n=$((n + 1)); echo tick $n; sleep 0.02; done";
        let id = s.detached(&[s.busybox(), "sh", "-c", script]);
        let pid = s.inspect(&id, "{{.State.Pid}}");
        for victim in [Victim::Engined, Victim::Supervisor, Victim::Engined, Victim::Supervisor] {
            victim.replace(s);
            assert_eq!(s.inspect(&id, "{{.State.Status}} {{.State.Pid}}"), format!("running {pid}"), "{victim:?}");
            assert_eq!(s.text(&["exec", &id, "echo", "entered"]), "entered", "{victim:?}");
        }
        s.run(&["kill", &id]).ok();
        let text = s.text(&["logs", &id]);
        let ticks: Vec<u32> = text.lines().filter_map(|line| line.strip_prefix("tick ")?.parse().ok()).collect();
        assert!(ticks.len() > 20 && ticks.iter().copied().eq(1..=ticks.len() as u32), "{ticks:?}");
    });
}

#[test]
fn exit_codes_that_fell_into_the_gap_are_known() {
    ours(|s| {
        for victim in [Victim::Engined, Victim::Supervisor] {
            let id = s.detached(&[s.busybox(), "sh", "-c", "sleep 0.3; echo last words; exit 42"]);
            let gone = s.detached(&["--rm", s.busybox(), "sh", "-c", "sleep 0.3; exit 43"]);
            kill_only(victim, s);
            std::thread::sleep(Duration::from_millis(800));
            victim.replace(s);
            assert_eq!(s.text(&["wait", &id]), "42", "{victim:?}");
            assert_eq!(s.text(&["logs", &id]), "last words", "{victim:?}");
            wait::until_true("a --rm container goes", || s.run(&["inspect", &gone]).code == 1);
        }
    });
}

#[test]
fn both_are_killed_at_once() {
    ours(|s| {
        let id = s.detached(&[s.busybox(), "sleep", "1000"]);
        let ended = s.detached(&[s.busybox(), "sh", "-c", "sleep 0.3; exit 44"]);
        kill_only(Victim::Engined, s);
        kill_only(Victim::Supervisor, s);
        std::thread::sleep(Duration::from_millis(600));
        s.daemons().restart_supervisor();
        s.daemons().restart_engined();
        wait::until_true("engined answers", || s.run(&["ps", "-aq"]).code == 0);
        assert_eq!(s.text(&["exec", &id, "echo", "alive"]), "alive");
        assert_eq!(s.text(&["wait", &ended]), "44");
    });
}

#[test]
fn engined_alone_waits_for_the_supervisor() {
    ours(|s| {
        let id = s.detached(&[s.busybox(), "sleep", "1000"]);
        kill_only(Victim::Supervisor, s);
        let out = s.call(&["run", "--rm", s.busybox(), "true"]).limit(Duration::from_secs(30)).output();
        assert_ne!(out.code, 0, "nothing runs without a supervisor");
        s.daemons().restart_supervisor();
        wait::until_true("a run works again", || s.run(&["run", "--rm", s.busybox(), "true"]).code == 0);
        assert_eq!(s.text(&["exec", &id, "echo", "alive"]), "alive");
    });
}

#[test]
fn sigterm_leaves_containers_running() {
    ours(|s| {
        let id = s.detached(&[s.busybox(), "sleep", "1000"]);
        let pid: i32 = s.inspect(&id, "{{.State.Pid}}").parse().expect("a pid");
        s.daemons().engined().terminate().expect("engined ends");
        s.daemons().supervisor().terminate().expect("the supervisor ends");
        assert!(process::find(pid).is_some_and(|process| process.state != 'Z'));
        s.daemons().restart_supervisor();
        s.daemons().restart_engined();
        wait::until_true("engined answers", || s.run(&["ps", "-aq"]).code == 0);
        assert_eq!(s.inspect(&id, "{{.State.Status}} {{.State.Pid}}"), format!("running {pid}"));
    });
}

#[test]
fn a_client_in_the_foreground_goes_on_after_engined_came_back() {
    ours(|s| {
        let script = "n=0; while test $n -lt 400; do n=$((n + 1)); echo line $n; sleep 0.01; done; exit 17";
        let running = s.call(&["run", "--rm", s.busybox(), "sh", "-c", script]).start();
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(700));
            Victim::Engined.replace(s);
        }
        let out = running.end().code(17);
        let expected: String = (1..=400).map(|n| format!("line {n}\n")).collect();
        assert_eq!(out.text(), expected.trim_end(), "no line is lost or doubled");
    });
}

#[test]
fn logs_and_input_and_waiting_go_on() {
    ours(|s| {
        let id = s.detached(&["-i", s.busybox(), "sh", "-c", "while read line; do echo got $line; done; exit 18"]);
        Victim::Engined.replace(s);
        let mut attached = s.call(&["attach", &id]).start_with_open_input();
        attached.write(b"one\n");
        attached.expect("got one");
        Victim::Supervisor.replace(s);
        attached.write(b"two\n");
        attached.expect("got two");
        attached.signal(Signal::SIGKILL);
        attached.end();
        s.run(&["stop", "-t", "0", &id]).ok();
        assert_eq!(s.text(&["logs", &id]), "got one\ngot two");
    });
}

#[test]
fn a_restart_policy_outlives_engined() {
    ours(|s| {
        let id = s.detached(&["--restart", "always", s.busybox(), "sh", "-c", "echo again; sleep 0.4"]);
        kill_only(Victim::Engined, s);
        std::thread::sleep(Duration::from_millis(900));
        Victim::Engined.replace(s);
        wait::until_true("it is started again", || s.text(&["logs", &id]).lines().count() >= 3);
        s.run(&["rm", "-f", &id]).ok();
    });
}

#[test]
fn published_ports_and_addresses_survive() {
    ours(|s| {
        let port = integration::registry::free_port();
        let script = "mkdir /www; echo page > /www/index.html; exec httpd -f -p 80 -h /www";
        let id = s.detached(&["-p", &format!("127.0.0.1:{port}:80"), s.busybox(), "sh", "-c", script]);
        let address = s.inspect(&id, "{{.NetworkSettings.IPAddress}}");
        let page = || integration::http::get(&format!("127.0.0.1:{port}"), "/").map(|(_, body)| body);
        wait::until_true("a page", || page().as_deref() == Some("page\n"));
        for victim in [Victim::Engined, Victim::Supervisor] {
            kill_only(victim, s);
            assert_eq!(page().as_deref(), Some("page\n"), "while {victim:?} is dead");
            victim.replace(s);
            assert_eq!(page().as_deref(), Some("page\n"), "after {victim:?} came back");
            assert_eq!(s.inspect(&id, "{{.NetworkSettings.IPAddress}}"), address);
        }
        let taken = s.run(&["run", "--rm", "-p", &format!("127.0.0.1:{port}:80"), s.busybox(), "true"]);
        assert_eq!(taken.code, 125, "the port is still taken");
        let other = s.detached(&[s.busybox(), "sleep", "1000"]);
        assert_ne!(s.inspect(&other, "{{.NetworkSettings.IPAddress}}"), address);
    });
}

#[test]
fn a_pull_that_is_cut_is_finished_by_the_next() {
    ours(|s| {
        let image = s.image("nginx");
        for victim in [Victim::Engined, Victim::Supervisor] {
            for delay_ms in [5, 20, 60, 120, 250] {
                let pulling = s.call(&["pull", "-q", &image]).start();
                std::thread::sleep(Duration::from_millis(delay_ms));
                victim.replace(s);
                pulling.end();
                s.run(&["pull", "-q", &image]).ok();
                s.run(&["run", "--rm", &image, "nginx", "-v"]).ok();
                s.run(&["rmi", &image]).ok();
            }
        }
    });
}

#[test]
fn descriptors_and_processes_do_not_grow() {
    ours(|s| {
        let count = |s: &mut Stack| -> Vec<usize> {
            let pids = [Victim::Engined.pid(s), Victim::Supervisor.pid(s)];
            pids.iter().map(|pid| process::descriptors(*pid).len()).collect()
        };
        let cycle = |s: &Stack| {
            for _ in 0..10 {
                s.run(&["run", "--rm", s.busybox(), "true"]).ok();
            }
            let id = s.detached(&[s.busybox(), "sleep", "1000"]);
            s.run(&["exec", &id, "true"]).ok();
            s.run(&["rm", "-f", &id]).ok();
            std::thread::sleep(Duration::from_millis(500));
        };
        cycle(s);
        let before = count(s);
        cycle(s);
        cycle(s);
        let after = count(s);
        for (before, after) in before.iter().zip(&after) {
            assert!(*after <= before + 3, "descriptors grew from {before} to {after}");
        }
    });
}

/// SIGKILL without another daemon.
fn kill_only(victim: Victim, s: &mut Stack) {
    match victim {
        Victim::Engined => s.daemons().engined().kill(),
        Victim::Supervisor => s.daemons().supervisor().kill(),
    }
}
