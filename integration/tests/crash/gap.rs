//! What goes on, and what is known afterwards, when a daemon is away for a while.

use std::time::Duration;

use integration::{Stack, ours, process, wait};
use nix::sys::signal::Signal;

use crate::Victim;

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
        wait::until_true("it has ticked often", || s.text(&["logs", &id]).lines().count() > 20);
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
            victim.kill(s);
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
        Victim::Engined.kill(s);
        Victim::Supervisor.kill(s);
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
        Victim::Supervisor.kill(s);
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
        Victim::Engined.kill(s);
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
            victim.kill(s);
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
        (0..3).for_each(|_| cycle(s));
        let after = count(s);
        for (before, after) in before.iter().zip(&after) {
            assert!(*after <= before + 3, "descriptors grew from {before} to {after}");
        }
    });
}

#[test]
fn that_memory_ran_out_in_the_gap_is_known() {
    ours(|s| {
        let watching = s.call(&["events", "--filter", "type=container", "--format", "{{.Action}}"]).start();
        let script = "sleep 0.5; exec dd if=/dev/zero of=/dev/null bs=200M count=1";
        for victim in [Victim::Engined, Victim::Supervisor] {
            let id = s.detached(&["--memory", "16m", s.busybox(), "sh", "-c", script]);
            let pid = s.inspect(&id, "{{.State.Pid}}").parse().expect("a pid");
            victim.kill(s);
            wait::until_true("the kernel kills it", || process::find(pid).is_none_or(|process| process.state == 'Z'));
            victim.replace(s);
            assert_eq!(s.text(&["wait", &id]), "137", "{victim:?}");
            assert_eq!(s.inspect(&id, "{{.State.OOMKilled}}"), "true", "{victim:?}");
        }
        // Of the second the events came when the supervisor was back: the cause before the end.
        let told = || String::from_utf8_lossy(&watching.stdout_so_far()).into_owned();
        wait::until_true("both ends are told", || told().lines().filter(|action| *action == "die").count() == 2);
        let told = told();
        let life: Vec<&str> = told.lines().skip_while(|action| *action != "die").skip(1).collect();
        let last = |wanted: &str| life.iter().rposition(|action| *action == wanted);
        assert!(last("start") < last("oom") && last("oom") < last("die"), "{told}");
        watching.signal(Signal::SIGTERM);
        watching.end();
    });
}
