//! kill -9 of a shim at many points of `run`, `exec` and `stop`: the supervisor notices, ends what is left of the
//! container, and says that the shim died. And a shim that hangs, which is nobody else's trouble.

use std::time::{Duration, Instant};

use integration::{Running, Stack, ours, process, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Lists, Strace, Victim, assert_whole, rounds};

const PROGRAM: &str = "containerd-shim-strata-v1";

/// The shims that live now.
fn shims() -> Vec<i32> {
    let everybody = process::descendants(std::process::id() as i32).into_iter();
    everybody.filter(|process| process.state != 'Z' && process.command.contains(PROGRAM)).map(|shim| shim.pid).collect()
}

/// The shim of a running container: its program's parent.
fn shim_of(s: &Stack, container: &str) -> i32 {
    let pid: i32 = s.inspect(container, "{{.State.Pid}}").parse().expect("a pid");
    process::find(pid).expect("the program").parent
}

fn signal(pid: i32, signal: Signal) {
    // It may be gone already.
    let _ = kill(Pid::from_raw(pid), signal);
}

/// What a shim does when it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Run,
    Exec,
    Stop,
}

impl Work {
    fn prepare(self, s: &Stack, name: &str) {
        if self != Work::Run {
            s.detached(&["--name", name, s.busybox(), "sleep", "1000"]);
        }
    }

    fn start(self, s: &Stack, name: &str) -> Running {
        match self {
            Work::Run => s.call(&["run", "-d", "--name", name, s.busybox(), "sleep", "1000"]).start(),
            Work::Exec => s.call(&["exec", name, "sh", "-c", "echo inside; exit 3"]).start(),
            Work::Stop => s.call(&["stop", "-t", "0", name]).start(),
        }
    }
}

/// Kills whatever shim there is at moments of the work's time and a little beyond.
fn sweep_moments(work: Work, points: u32) {
    ours(|s| {
        let start = Instant::now();
        work.prepare(s, "timed");
        work.start(s, "timed").end();
        let span = start.elapsed().mul_f64(1.25);
        s.run(&["rm", "-f", "timed"]).ok();
        let before = Lists::look(s);
        let mut killed = 0;
        for point in 0..points * rounds() {
            let delay = span * point / (points * rounds());
            let name = format!("moment-{point}");
            work.prepare(s, &name);
            let client = work.start(s, &name);
            std::thread::sleep(delay);
            let shims = shims();
            shims.iter().for_each(|shim| signal(*shim, Signal::SIGKILL));
            killed += shims.len();
            client.end();
            assert_whole(s, &name, &format!("shims {shims:?} killed {delay:?} after the start of {work:?}"));
        }
        assert!(killed > 0, "no shim was met: the sweep tests nothing");
        Lists::assert_not_grown(before.as_ref(), s);
    });
}

/// Kills at each n-th call of these kinds, at most `most` of each.
fn sweep_system_calls(work: Work, calls: &[&str], most: u32) {
    ours(|s| {
        let before = Lists::look(s);
        let mut points = 0;
        for round in 0..rounds() {
            for (index, call) in calls.iter().enumerate() {
                for count in 1..=most {
                    let name = format!("call-{round}-{index}-{count}");
                    if !kill_at_call(s, work, &name, (call, count)) {
                        break;
                    }
                    points += 1;
                }
            }
        }
        assert!(points > 0, "no call of {calls:?} was met: the sweep tests nothing");
        println!("{points} points");
        Lists::assert_not_grown(before.as_ref(), s);
    });
}

/// One point; `false` when the work did not get so far.
#[track_caller]
fn kill_at_call(s: &mut Stack, work: Work, name: &str, (call, count): (&str, u32)) -> bool {
    work.prepare(s, name);
    let shim = shim_of(s, name);
    let mut strace = Strace::attach_alone(shim, call, count);
    work.start(s, name).end();
    let is_killed = wait::poll(Duration::from_millis(100), || strace.has_killed().then_some(())).is_some();
    strace.end();
    let point = format!("the shim killed at its {call} number {count} during {work:?}");
    if is_killed {
        wait::until_true("the end of the container is noticed", || {
            process::reap_orphans();
            s.inspect(name, "{{.State.Status}}") != "running"
        });
    }
    assert_whole(s, name, &point);
    is_killed
}

#[test]
fn it_is_killed_at_moments_of_run() {
    sweep_moments(Work::Run, 20);
}

#[test]
fn it_is_killed_at_moments_of_stop() {
    sweep_moments(Work::Stop, 10);
}

#[test]
fn it_is_killed_at_system_calls_of_exec() {
    let calls = ["clone,clone3,vfork,fork", "openat", "sendto,sendmsg", "unlink,unlinkat", "wait4,waitid"];
    sweep_system_calls(Work::Exec, &calls, 4);
}

#[test]
fn it_is_killed_at_system_calls_of_stop() {
    let calls = ["wait4,waitid", "sendto,sendmsg", "clone,clone3,vfork,fork", "umount2", "unlink,unlinkat"];
    sweep_system_calls(Work::Stop, &calls, 4);
}

#[test]
fn an_end_that_nobody_could_see_is_unknown() {
    ours(|s| {
        let id = s.detached(&[s.busybox(), "sleep", "1000"]);
        let (pid, shim) = (s.inspect(&id, "{{.State.Pid}}"), shim_of(s, &id));
        Victim::Supervisor.kill(s);
        signal(shim, Signal::SIGKILL);
        Victim::Supervisor.replace(s);
        assert_eq!(s.text(&["wait", &id]), "255");
        let is_gone = || process::find(pid.parse().expect("a pid")).is_none_or(|process| process.state == 'Z');
        wait::until_true("the program is gone, too", is_gone);
        let explained = s.text(&["explain", &id]);
        assert!(explained.contains("unknown"), "{explained}");
    });
}

#[test]
fn an_end_that_the_kernel_remembers_is_known_though_the_shim_died() {
    ours(|s| {
        let id = s.detached(&[s.busybox(), "sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.05; done"]);
        let shim = shim_of(s, &id);
        signal(shim, Signal::SIGKILL);
        // Whoever ended it, no code of the program's is made up.
        let code = s.text(&["wait", &id]);
        assert!(["137", "255"].contains(&code.as_str()), "{code}");
        let explained = s.text(&["explain", &id]);
        assert!(explained.contains("SHIM_DIED"), "{explained}");
    });
}

#[test]
fn one_that_hangs_delays_nobody_else() {
    ours(|s| {
        let hung = s.detached(&["--name", "hung", s.busybox(), "sleep", "1000"]);
        let other = s.detached(&["--name", "other", s.busybox(), "sleep", "1000"]);
        let shim = shim_of(s, &hung);
        signal(shim, Signal::SIGSTOP);
        let is_quick = |s: &mut Stack, when: &str| {
            let start = Instant::now();
            assert_eq!(s.text(&["exec", &other, "echo", "inside"]), "inside", "{when}");
            s.run(&["run", "--rm", s.busybox(), "true"]).ok();
            assert_eq!(s.text(&["ps", "-q"]).lines().count(), 2, "{when}");
            assert!(start.elapsed() < Duration::from_secs(10), "{when}: {:?}", start.elapsed());
        };
        is_quick(s, "beside it");
        for victim in [Victim::Supervisor, Victim::Engined] {
            let start = Instant::now();
            victim.replace(s);
            assert!(start.elapsed() < Duration::from_secs(10), "{victim:?} came back in {:?}", start.elapsed());
            is_quick(s, "after a restart");
        }
        signal(shim, Signal::SIGCONT);
        assert_eq!(s.text(&["exec", &hung, "echo", "back"]), "back");
        assert_eq!(s.inspect(&hung, "{{.State.Status}}"), "running");
    });
}
