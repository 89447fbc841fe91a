//! dockerd with lowrun as its default runtime, as one of several, and in place of the runc that Debian put there.

use std::process::Command;

use integration::{Stack, theirs, theirs_on_shimd, theirs_over, theirs_with, wait};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::show;

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
    every_limit_reaches_its_cgroup
    oom_kills_and_use_are_told
    mounts_and_devices
    a_file_over_a_directory_is_explained
    namespaces_of_others
    health_restarts_and_copies
    the_classic_build
}

/// Docker's daemon with shimd in containerd's place, runc below both.
mod over_shimd {
    macro_rules! over_shimd {
        ($($name:ident)*) => { $(#[test] fn $name() { super::theirs_on_shimd(super::$name) })* };
    }

    over_shimd! {
        run_gives_output_input_and_exit_code
        exec_stop_logs_and_removal
        pause_and_top
        limits_are_changed_while_it_runs
        an_oom_kill_is_seen
        a_terminal_and_an_exec_in_one
        hardening
    }
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
    let read = |v1: &str, v2: &str| s.text(&["exec", "grown", "sh", "-c", &show(v1, v2)]);
    assert_eq!(read("memory/memory.limit_in_bytes", "memory.max"), "100663296");
    assert_eq!(read("pids/pids.max", "pids.max"), "50");
    assert!(["50000", "50000 100000"].contains(&read("cpu/cpu.cfs_quota_us", "cpu.max").as_str()));
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

fn every_limit_reaches_its_cgroup(s: &mut Stack) {
    let parent = format!("strata-{0}/deep-{0}", s.site().instance());
    let below_root = format!("/{parent}");
    let flags = [
        "--cpus",
        "0.5",
        "--cpu-shares",
        "100",
        "--cpuset-cpus",
        "0",
        "--pids-limit",
        "20",
        "--memory",
        "64m",
        "--memory-reservation",
        "32m",
        "--cgroup-parent",
        &below_root,
    ];
    sleeper(s, &flags, "limited");
    let read = |v1: &str, v2: &str| s.text(&["exec", "limited", "sh", "-c", &show(v1, v2)]);
    assert!(["50000", "50000 100000"].contains(&read("cpu/cpu.cfs_quota_us", "cpu.max").as_str()));
    assert!(["100", "4"].contains(&read("cpu/cpu.shares", "cpu.weight").as_str()));
    assert_eq!(read("cpuset/cpuset.cpus", "cpuset.cpus"), "0");
    assert_eq!(read("pids/pids.max", "pids.max"), "20");
    assert_eq!(read("memory/memory.limit_in_bytes", "memory.max"), "67108864");
    assert_eq!(read("memory/memory.soft_limit_in_bytes", "memory.low"), "33554432");
    let groups = integration::leak::cgroups_named(&parent);
    let id = s.inspect("limited", "{{.Id}}");
    assert!(groups.iter().any(|group| group.ends_with(&format!("{parent}/{id}"))), "{groups:?}");
}

fn oom_kills_and_use_are_told(s: &mut Stack) {
    let since = s.text(&["info", "--format", "{{.SystemTime}}"]);
    s.run(&["run", "--name", "greedy", "--memory", "16m", s.busybox(), "tail", "/dev/zero"]).code(137);
    wait::until_true("the event is told", || {
        let until = s.text(&["info", "--format", "{{.SystemTime}}"]);
        let format = "{{.Action}} {{.Actor.Attributes.name}}";
        let events = s.text(&["events", "--since", &since, "--until", &until, "--format", format]);
        events.lines().any(|event| event == "oom greedy")
    });
    sleeper(s, &["--memory", "64m"], "calm");
    let stats = s.text(&["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "calm"]);
    assert!(stats.ends_with("/ 64MiB 1"), "{stats}");
    let top = s.text(&["top", "calm", "-eo", "pid,args"]);
    assert!(top.contains("sleep 1000"), "{top}");
}

fn mounts_and_devices(s: &mut Stack) {
    let shared = s.site().path("tmp/shared").display().to_string();
    std::fs::create_dir(&shared).expect("a directory");
    let script = "id -u; touch /fresh/by-me && stat -c %a /fresh /small; (touch /mnt/x) 2>&1; touch /kept/x 2>&1; \
                  df -k /small /dev/shm | awk 'NR > 1 {print $2}'; cat /dev/twin | wc -c; \
                  cat /proc/1/comm; id -G";
    let volume = format!("{shared}:/mnt:ro");
    let flags = [
        "--rm",
        "--user",
        "33",
        "--group-add",
        "77",
        "--tmpfs",
        "/fresh",
        "--tmpfs",
        "/small:size=1m,mode=711",
        "--volume",
        &volume,
        "--volume",
        "/kept",
        "--device",
        "/dev/null:/dev/twin:r",
        "--shm-size",
        "2m",
        "--init",
    ];
    let text = s.text(&[&["run"], &flags[..], &[s.busybox(), "sh", "-c", script]].concat());
    let lines: Vec<&str> = text.lines().collect();
    let closed = ["touch: /mnt/x: Read-only file system", "touch: /kept/x: Permission denied"];
    assert_eq!(lines[..6], ["33", "1777", "711", closed[0], closed[1], "1024"], "{text}");
    assert_eq!(lines[6..], ["2048", "0", "docker-init", "33 77"], "{text}");
    // A device that need not exist: who may open it hears that, who may not hears of the permission first.
    let rule = ["--device-cgroup-rule", "c 4095:9 r", "--cap-drop", "all", "--cap-add", "mknod"];
    let script = "mknod /made c 4095 9; (: </made) 2>&1; (: >/made) 2>&1; grep CapEff /proc/self/status";
    let text = s.text(&[&["run", "--rm"], &rule[..], &[s.busybox(), "sh", "-c", script]].concat());
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].ends_with("No such device or address"), "{text}");
    assert!(lines[1].ends_with("Operation not permitted"), "{text}");
    assert_eq!(lines[2], "CapEff:\t0000000008000000");
}

/// Docker finds the reason in the runtime's words.
fn a_file_over_a_directory_is_explained(s: &mut Stack) {
    let volume = format!("{}:/etc", s.site().path("etc/docker.json").display());
    let out = s.run(&["run", "--rm", "--volume", &volume, s.busybox(), "true"]);
    assert!(
        out.errors().contains("Are you trying to mount a directory onto a file (or vice-versa)?"),
        "{}",
        out.errors()
    );
    assert_ne!(out.code, 0);
}

fn namespaces_of_others(s: &mut Stack) {
    sleeper(s, &["--ipc", "shareable", "--hostname", "tower"], "other");
    let flags =
        ["--pid", "container:other", "--network", "container:other", "--ipc", "container:other", "--uts", "host"];
    let links = "for n in pid net ipc; do readlink /proc/self/ns/$n; done";
    let text = s.text(&[&["run", "--rm"], &flags[..], &[s.busybox(), "sh", "-c", links]].concat());
    assert_eq!(text, s.text(&["exec", "other", "sh", "-c", links]));
    let here = |name: &str| std::fs::read_link(format!("/proc/thread-self/ns/{name}")).expect("a namespace");
    let script = "readlink /proc/self/ns/net; readlink /proc/self/ns/pid; ls -d /proc/1/task";
    let host = ["--network", "host", "--pid", "host", "--userns", "host"];
    let text = s.text(&[&["run", "--rm"], &host[..], &[s.busybox(), "sh", "-c", script]].concat());
    assert_eq!(text, format!("{}\n{}\n/proc/1/task", here("net").display(), here("pid").display()));
    let private =
        ["run", "--rm", "--cgroupns", "private", "--sysctl", "net.ipv4.ip_forward=0", s.busybox(), "sh", "-c"];
    let script = "cut -d: -f3 /proc/self/cgroup | sort -u; cat /proc/sys/net/ipv4/ip_forward";
    assert_eq!(s.text(&[&private[..], &[script]].concat()), "/\n0");
}

fn health_restarts_and_copies(s: &mut Stack) {
    let health = ["--health-cmd", "test -e /well", "--health-interval", "200ms", "--health-retries", "1"];
    sleeper(s, &health, "well");
    let is = |status: &str| s.inspect("well", "{{.State.Health.Status}}") == status;
    wait::until_true("it is unhealthy", || is("unhealthy"));
    s.run(&["exec", "-d", "well", "touch", "/well"]).ok();
    wait::until_true("it is healthy", || is("healthy"));
    let archive = s.run(&["cp", "well:/etc/passwd", "-"]).ok().stdout;
    assert!(String::from_utf8_lossy(&archive).contains("www-data"));
    assert!(s.text(&["diff", "well"]).contains("A /well"));
    s.run(&["restart", "-t", "0", "well"]).ok();
    s.run(&["exec", "well", "test", "-e", "/well"]).ok();
    let script = "echo x >>/runs; exit 3";
    s.run(&["run", "-d", "--name", "again", "--restart", "on-failure:2", s.busybox(), "sh", "-c", script]).ok();
    let state = || s.inspect("again", "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}");
    wait::until_true("it has been tried three times", || state() == "exited 3 2");
}

/// A context of one file, and `docker build` of it.
fn build(s: &Stack, buildkit: &str, file: &str) -> integration::Output {
    let context = s.site().path("tmp/context");
    std::fs::create_dir_all(&context).expect("a context");
    std::fs::write(context.join("Dockerfile"), file).expect("write the Dockerfile");
    let call = s.call(&["build", "--memory", "16m", "-t", "built", &context.display().to_string()]);
    call.env("DOCKER_BUILDKIT", buildkit).output()
}

fn the_classic_build(s: &mut Stack) {
    let from = format!("FROM {}\n", s.busybox());
    build(
        s,
        "0",
        &format!("{from}RUN echo by the build >/made\nUSER 33\nRUN id -u >/tmp/who\nCMD cat /made /tmp/who\n"),
    )
    .ok();
    assert_eq!(s.text(&["run", "--rm", "built"]), "by the build\n33");
    let out = build(s, "0", &format!("{from}RUN tail /dev/zero\n"));
    assert!(out.errors().contains("returned a non-zero code: 137"), "{}", out.errors());
}

#[test]
fn lowrun_is_one_of_several_runtimes() {
    theirs_with(&["--add-runtime", &format!("lowrun={}", crate::lowrun().display())], |s| {
        assert_eq!(s.text(&["info", "--format", "{{.DefaultRuntime}}"]), "runc");
        for (name, runtime) in [("one", "lowrun"), ("two", "runc")] {
            s.run(&["run", "-d", "--name", name, "--runtime", runtime, s.busybox(), "sleep", "1000"]).ok();
            assert_eq!(s.inspect(name, "{{.HostConfig.Runtime}}"), runtime);
            s.run(&["exec", name, "sh", "-c", "exit 9"]).code(9);
        }
        s.run(&["pause", "one", "two"]).ok();
        s.run(&["unpause", "one", "two"]).ok();
        s.run(&["kill", "one", "two"]).ok();
        assert_eq!(s.text(&["wait", "one", "two"]), "137\n137");
        s.run(&["rm", "one", "two"]).ok();
    });
}

/// BuildKit looks for `runc` by itself, whatever dockerd's runtimes are.
fn builds_by_buildkit(s: &Stack) {
    let from = format!("FROM {}\n", s.busybox());
    let file = format!("{from}RUN echo by the build >/made && test $(id -u) = 0\nUSER 33\nCMD cat /made && id -u\n");
    build(s, "1", &file).ok();
    assert_eq!(s.text(&["run", "--rm", "built"]), "by the build\n33");
    let out = build(s, "1", &format!("{from}RUN exit 9\n"));
    assert!(out.code != 0 && out.errors().contains("exit code: 9"), "{}", out.errors());
}

#[test]
fn buildkit_over_runc() {
    theirs(|s| builds_by_buildkit(s));
}

/// The program behind the path that Docker, containerd's shim and BuildKit know is lowrun, in this mount namespace.
#[test]
fn lowrun_stands_where_runc_stood() {
    theirs(|s| {
        let (runc, none) = (crate::runc(), None::<&str>);
        mount(Some(&crate::lowrun()), &runc, none, MsFlags::MS_BIND, none).expect("cover runc");
        let help = Command::new(&runc).arg("--help").output().expect("run it");
        assert!(String::from_utf8_lossy(&help.stdout).contains("runtime of Strata"), "{help:?}");
        assert_eq!(s.text(&["run", "--rm", s.busybox(), "echo", "as ever"]), "as ever");
        builds_by_buildkit(s);
        umount2(&runc, MntFlags::MNT_DETACH).expect("uncover runc");
    });
}

/// Not over runc: where the caller lacks a capability that the kernel knows, runc 1.1 refuses to run.
#[test]
fn privileged_over_lowrun() {
    theirs_over("lowrun", |s| {
        let script = "mkdir /x && mount -t tmpfs x /x && echo mounted";
        assert_eq!(s.text(&["run", "--rm", "--privileged", s.busybox(), "sh", "-c", script]), "mounted");
    });
}
