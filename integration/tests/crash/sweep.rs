//! kill -9 of engined and of the supervisor at many points of `run` and of `stop`.

use std::time::{Duration, Instant};

use integration::{Running, Stack, ours, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Lists, Strace, Victim, assert_promise, assert_whole, rounds};

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
    fn start(self, s: &Stack, name: &str) -> Running {
        match self {
            Operation::Run => s.call(&["run", "-d", "--name", name, s.busybox(), "sleep", "1000"]).start(),
            Operation::Stop => s.call(&["stop", "-t", "0", name]).start(),
        }
    }

    /// The container's status when the client says that all is well.
    fn promises(self) -> &'static str {
        match self {
            Operation::Run => "running",
            Operation::Stop => "exited",
        }
    }

    /// After the victim came back.
    #[track_caller]
    fn assert_whole(self, s: &mut Stack, name: &str, client: Running, point: &str) {
        assert_promise(s, name, self.promises(), &client.end(), point);
        assert_whole(s, name, point);
    }
}

/// Kills at `points` moments that are spread over the operation's time and a little beyond.
fn sweep_moments(victim: Victim, operation: Operation, points: u32) {
    ours(|s| {
        let span = time_of(s, operation).mul_f64(1.25);
        let before = Lists::look(s);
        for round in 0..rounds() {
            for point in 0..points {
                // Each round has moments of its own.
                let delay = span * (point * rounds() + round) / (points * rounds());
                let name = format!("moment-{round}-{point}");
                operation.prepare(s, &name);
                let pid = victim.pid(s);
                let client = operation.start(s, &name);
                std::thread::sleep(delay);
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                victim.replace(s);
                let point = format!("{victim:?} killed {delay:?} after the start of {operation:?}");
                operation.assert_whole(s, &name, client, &point);
            }
        }
        Lists::assert_not_grown(before.as_ref(), s);
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
        let before = Lists::look(s);
        let mut points = 0;
        for round in 0..rounds() {
            for (index, call) in calls.iter().enumerate() {
                for count in 1..=most {
                    let name = format!("call-{round}-{index}-{count}");
                    if !kill_at_call(s, victim, operation, &name, (call, count)) {
                        break;
                    }
                    points += 1;
                }
            }
        }
        Lists::assert_not_grown(before.as_ref(), s);
        assert!(points > 0, "no call of {calls:?} was met: the sweep tests nothing");
        println!("{points} points");
    });
}

/// One point; `false` when the operation did not get so far. (A shim of the supervisor's may meet the call first: then it
/// is the shim that is killed, and the client may have been told of a container that ran.)
#[track_caller]
fn kill_at_call(s: &mut Stack, victim: Victim, operation: Operation, name: &str, (call, count): (&str, u32)) -> bool {
    operation.prepare(s, name);
    let mut strace = Strace::attach(victim.pid(s), call, count);
    let mut client = operation.start(s, name);
    // The client may wait for a dead engined to come back.
    wait::until_true("one of the two ends", || victim.is_dead(s) || client.is_over());
    // What is done off the reply path may meet the call a little later.
    let has_killed =
        wait::poll(Duration::from_millis(100), || (strace.has_killed() || victim.is_dead(s)).then_some(())).is_some();
    strace.end();
    victim.replace(s);
    let point = format!("{victim:?} killed at its {call} number {count} during {operation:?}");
    client.end();
    assert_whole(s, name, &point);
    has_killed
}

#[test]
fn engined_is_killed_at_moments_of_run() {
    sweep_moments(Victim::Engined, Operation::Run, 24);
}

#[test]
fn engined_is_killed_at_moments_of_stop() {
    sweep_moments(Victim::Engined, Operation::Stop, 20);
}

#[test]
fn the_supervisor_is_killed_at_moments_of_run() {
    sweep_moments(Victim::Supervisor, Operation::Run, 24);
}

#[test]
fn the_supervisor_is_killed_at_moments_of_stop() {
    sweep_moments(Victim::Supervisor, Operation::Stop, 20);
}

#[test]
fn engined_is_killed_at_system_calls_of_run() {
    let calls =
        ["pwrite64", "fdatasync", "mkdirat,mkdir", "sendto,sendmsg", "mount,move_mount", "writev", "unlink,unlinkat"];
    sweep_system_calls(Victim::Engined, Operation::Run, &calls, 6);
}

#[test]
fn engined_is_killed_at_system_calls_of_stop() {
    let calls = ["pwrite64", "sendto,sendmsg", "writev", "umount2", "unlink,unlinkat"];
    sweep_system_calls(Victim::Engined, Operation::Stop, &calls, 6);
}

#[test]
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
fn the_supervisor_is_killed_at_system_calls_of_stop() {
    let calls = ["pwrite64", "unlink,unlinkat,rmdir", "sendto,sendmsg", "writev", "clone,clone3,vfork"];
    sweep_system_calls(Victim::Supervisor, Operation::Stop, &calls, 6);
}
