//! Failures and kill -9 before and after each call of the shim's program and of the runtime, by a program that stands in
//! their place (`failpoints/wrapper`), in the course of a container's life: create, start, exec, kill, delete.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use integration::stack::Settings;
use integration::{Stack, ours_with, process, programs, wait};
use tempfile::TempDir;

use crate::{Lists, Victim, assert_whole, rounds};

const SHIM: &str = "containerd-shim-strata-v1";
const RUNTIME: &str = "lowrun";
/// Where the supervisor's pid is written for the wrapper.
const SUPERVISOR: &str = "supervisor.pid";

/// A directory with the shim and the runtime, each behind the wrapper.
struct Failpoints {
    directory: TempDir,
}

impl Failpoints {
    fn new() -> Failpoints {
        let directory = TempDir::new().expect("a directory for the programs");
        let wrapper = Path::new(env!("CARGO_MANIFEST_DIR")).join("failpoints/wrapper");
        for program in [SHIM, RUNTIME] {
            symlink(&wrapper, directory.path().join(program)).expect("a link to the wrapper");
            // A copy: the shim takes the runtime beside itself.
            let real = directory.path().join(format!("{program}.real"));
            fs::copy(programs::ours().join(program), real).expect("copy the program");
        }
        Failpoints { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Lets the next call that fits meet `point`.
    fn arm(&self, s: &mut Stack, point: &str) {
        fs::write(self.path(SUPERVISOR), Victim::Supervisor.pid(s).to_string()).expect("write the supervisor's pid");
        fs::write(self.path("plan.new"), format!("{point}\n")).expect("write the plan");
        fs::rename(self.path("plan.new"), self.path("plan")).expect("put the plan in its place");
    }

    /// Whether a call has met it; then another may be armed.
    #[track_caller]
    fn assert_met(&self, point: &str) {
        assert!(fs::remove_file(self.path("met")).is_ok(), "no call met the point {point:?}");
    }
}

/// The life of a container, in which something fails: any of its steps may be refused.
fn live(s: &mut Stack, name: &str) {
    let busybox = s.busybox().to_owned();
    let steps: [&[&str]; 4] = [
        &["run", "-d", "--name", name, &busybox, "sleep", "1000"],
        &["exec", name, "true"],
        &["stop", "-t", "0", name],
        &["rm", "-f", name],
    ];
    for step in steps {
        let mut client = s.call(step).start();
        wait::until_true("the client ends", || {
            revive(s);
            client.is_over()
        });
    }
}

/// A life that ends with that of its shim.
fn live_with_dying_shim(s: &mut Stack, name: &str) {
    let id = s.detached(&["--name", name, s.busybox(), "sleep", "1000"]);
    let pid: i32 = s.inspect(&id, "{{.State.Pid}}").parse().expect("a pid");
    let shim = process::find(pid).expect("the program").parent;
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL);
    wait::until_true("its end is noticed", || {
        revive(s);
        s.inspect(name, "{{.State.Status}}") == "exited"
    });
}

/// Starts the supervisor again when it was killed, and fetches the dead as process 1 does.
fn revive(s: &mut Stack) {
    process::reap_orphans();
    if Victim::Supervisor.is_dead(s) {
        Victim::Supervisor.replace(s);
    }
}

/// Arms each point in turn, and lets a container live.
fn sweep(points: &[String], live: impl Fn(&mut Stack, &str)) {
    let failpoints = Failpoints::new();
    let settings = Settings { shims: Some(failpoints.directory.path().to_owned()), ..Settings::default() };
    ours_with(settings, |s| {
        let before = Lists::look(s);
        for round in 0..rounds() {
            for (index, point) in points.iter().enumerate() {
                eprintln!("{point}");
                let name = format!("point-{round}-{index}");
                failpoints.arm(s, point);
                live(s, &name);
                failpoints.assert_met(point);
                revive(s);
                assert_whole(s, &name, point);
            }
        }
        Lists::assert_not_grown(before.as_ref(), s);
        println!("{} points", points.len());
    });
}

/// Each command before and after, with each of these ends.
fn around(program: &str, commands: &[&str], ends: &[&str]) -> Vec<String> {
    let mut points = Vec::new();
    for command in commands {
        for when in ["before", "after"] {
            points.extend(ends.iter().map(|end| format!("{program} {command} {when} {end}")));
        }
    }
    points
}

/// Each of the first `most` calls of a kind within a command of the runtime.
fn within(command: &str, calls: &[(&str, u32)]) -> Vec<String> {
    let each = calls.iter().flat_map(|(call, most)| (1..=*most).map(move |count| (call, count)));
    each.map(|(call, count)| format!("{RUNTIME} {command} during at {call} {count}")).collect()
}

#[test]
fn the_runtime_fails_or_is_killed() {
    let mut points = around(RUNTIME, &["create", "start", "exec", "kill", "delete"], &["fail", "kill self"]);
    points.extend(within("create", &[("mkdir,mkdirat", 2), ("rename,renameat", 2), ("clone,clone3", 1), ("write", 4)]));
    points.extend(within("start", &[("openat", 2), ("write", 1)]));
    points.extend(within("exec", &[("clone,clone3", 1), ("write", 2)]));
    points.extend(within("delete", &[("rmdir", 2), ("unlinkat", 2)]));
    sweep(&points, live);
}

#[test]
fn the_shim_is_killed_around_calls_of_the_runtime() {
    sweep(&around(RUNTIME, &["create", "start", "exec", "kill", "delete"], &["kill caller"]), live);
}

#[test]
fn the_supervisor_is_killed_around_calls_of_the_runtime() {
    let end = format!("kill {SUPERVISOR}");
    sweep(&around(RUNTIME, &["create", "start", "exec", "kill", "delete"], &[&end]), live);
}

#[test]
fn the_start_of_a_shim_fails_or_is_killed() {
    sweep(&around(SHIM, &["start"], &["fail", "kill self", "kill caller"]), live);
}

#[test]
fn the_clean_up_after_a_shim_fails_or_is_killed() {
    sweep(&around(SHIM, &["delete"], &["fail", "kill self", "kill caller"]), live_with_dying_shim);
}
