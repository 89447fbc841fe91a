//! Podman as root.

use integration::{Caller, Daemonless, daemonless, wait};

use crate::show;

macro_rules! over_both {
    ($($name:ident)*) => {
        mod over_runc { $(#[test] fn $name() { super::daemonless(super::Caller::Root, &crate::runc(), super::$name) })* }
        mod over_lowrun { $(#[test] fn $name() { super::daemonless(super::Caller::Root, &crate::lowrun(), super::$name) })* }
    };
}

over_both! {
    run_gives_output_input_and_exit_code
    exec_stop_kill_logs_and_removal
    pause_top_and_stats
    limits_are_set_and_changed
    an_oom_kill_is_noted
    terminals
    hardening
    mounts_and_devices
    a_user_namespace
    a_pod_shares_namespaces
    health_and_restart
}

/// A container that sleeps.
#[track_caller]
fn sleeper(p: &Daemonless, name: &str, flags: &[&str]) {
    p.container(&[&["-d", "--name", name], flags].concat(), &["sleep", "1000"]).output().ok();
}

fn run_gives_output_input_and_exit_code(p: &Daemonless) {
    let out = p.container(&["--rm", "-i"], &["sh", "-c", "cat; echo err >&2; exit 7"]).input(b"in\xff\0").output();
    let out = out.code(7);
    assert_eq!((out.stdout.as_slice(), out.errors().as_str()), (&b"in\xff\0"[..], "err\n"));
    p.container(&["--rm"], &["/no/such/program"]).output().code(127);
    p.container(&["--rm"], &["/etc/passwd"]).output().code(126);
    assert_eq!(p.text(&["ps", "-aq"]), "");
}

fn exec_stop_kill_logs_and_removal(p: &Daemonless) {
    let script = "trap 'echo bye; exit 5' TERM; echo hello; while :; do sleep 0.1; done";
    p.container(&["-d", "--name", "web"], &["sh", "-c", script]).output().ok();
    wait::until_true("it speaks", || p.text(&["logs", "web"]) == "hello");
    let show = "id -u; id -g; pwd; echo $A; exit 9";
    let out = p.run(&["exec", "-w", "/etc", "-e", "A=1", "-u", "33:44", "web", "sh", "-c", show]).code(9);
    assert_eq!(out.text(), "33\n44\n/etc\n1");
    assert_eq!(p.call(&["exec", "-i", "web", "cat"]).input(b"fed").output().ok().text(), "fed");
    p.run(&["exec", "web", "/no/such/program"]).code(127);
    p.run(&["exec", "-d", "web", "touch", "/detached"]).ok();
    wait::until_true("the detached program ran", || p.run(&["exec", "web", "test", "-e", "/detached"]).code == 0);
    p.run(&["stop", "web"]).ok();
    assert_eq!(p.text(&["logs", "web"]), "hello\nbye");
    assert_eq!(p.inspect("web", "{{.State.Status}} {{.State.ExitCode}}"), "exited 5");
    p.run(&["start", "web"]).ok();
    assert_ne!(p.run(&["rm", "web"]).code, 0, "a running container is not removed without force");
    p.run(&["kill", "--signal", "KILL", "web"]).ok();
    assert_eq!(p.text(&["wait", "web"]), "137");
    p.run(&["rm", "web"]).ok();
}

fn pause_top_and_stats(p: &Daemonless) {
    sleeper(p, "calm", &["--memory", "64m"]);
    p.run(&["pause", "calm"]).ok();
    assert_eq!(p.inspect("calm", "{{.State.Status}}"), "paused");
    assert_ne!(p.run(&["exec", "calm", "true"]).code, 0, "nothing runs in a paused container");
    p.run(&["unpause", "calm"]).ok();
    assert_eq!(p.inspect("calm", "{{.State.Status}}"), "running");
    p.run(&["exec", "calm", "true"]).ok();
    let top = p.text(&["top", "calm", "pid", "user", "args"]);
    assert!(top.contains("sleep 1000"), "{top}");
    let stats = p.text(&["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDS}}", "calm"]);
    assert!(stats.contains("/ 67.11MB") && stats.ends_with(" 1"), "{stats}");
}

fn limits_are_set_and_changed(p: &Daemonless) {
    let flags =
        ["--memory", "64m", "--memory-swap", "64m", "--pids-limit", "20", "--cpus", "0.5", "--cpu-shares", "512"];
    sleeper(p, "limited", &flags);
    let read = |v1: &str, v2: &str| p.text(&["exec", "limited", "sh", "-c", &show(v1, v2)]);
    assert_eq!(read("memory/memory.limit_in_bytes", "memory.max"), "67108864");
    assert_eq!(read("pids/pids.max", "pids.max"), "20");
    let cpu = read("cpu/cpu.cfs_quota_us", "cpu.max");
    assert!(cpu == "50000" || cpu == "50000 100000", "{cpu}");
    p.run(&["update", "--memory", "96m", "--memory-swap", "128m", "--cpus", "0.25", "limited"]).ok();
    assert_eq!(read("memory/memory.limit_in_bytes", "memory.max"), "100663296");
    let cpu = read("cpu/cpu.cfs_quota_us", "cpu.max");
    assert!(cpu == "25000" || cpu == "25000 100000", "{cpu}");
}

/// Podman 4.3 looks for conmon's note of an OOM kill in the bundle, and conmon 2.1 writes it into its working directory,
/// which is podman's: so `OOMKilled` is false over any runtime, and it is the note that tells what conmon saw.
fn an_oom_kill_is_noted(p: &Daemonless) {
    let flags = ["--name", "greedy", "--memory", "16m", "--memory-swap", "16m"];
    p.container(&flags, &["tail", "/dev/zero"]).output().code(137);
    let note = p.path("tmp/oom");
    let told = p.inspect("greedy", "{{.State.OOMKilled}}") == "true";
    assert!(told || note.exists(), "neither podman nor conmon knows of the OOM kill");
}

fn terminals(p: &Daemonless) {
    let group = p.cgroup();
    let run = ["run", "--rm", "-it", "--name", "tty", "--network", "none", "--cgroup-parent", &group];
    let mut terminal = p.terminal(&[&run[..], &[integration::daemonless::BUSYBOX, "sh"]].concat());
    terminal.expect("/ # ");
    let mut exec = p.terminal(&["exec", "-it", "tty", "sh"]);
    exec.expect("/ # ");
    exec.send("tty; exit 6\n");
    exec.expect("/dev/pts/");
    assert_eq!(exec.end(), 6);
    terminal.send("stty size; exit 4\n");
    terminal.expect("24 80");
    assert_eq!(terminal.end(), 4);
}

fn hardening(p: &Daemonless) {
    let script = "grep -E 'NoNewPrivs|Seccomp:|CapEff|CapBnd' /proc/self/status; touch /x 2>&1; ulimit -n; \
                  cat /proc/1/oom_score_adj; cat /proc/sys/net/ipv4/ip_forward; hostname; \
                  touch /proc/sys/kernel/shmmax 2>&1; umask";
    let flags = [
        "--rm",
        "--read-only",
        "--security-opt",
        "no-new-privileges",
        "--ulimit",
        "nofile=77",
        "--ulimit",
        "nproc=500",
        "--oom-score-adj",
        "300",
        "--cap-drop",
        "all",
        "--cap-add",
        "chown",
        "--sysctl",
        "net.ipv4.ip_forward=1",
        "--hostname",
        "tower",
        "--umask",
        "0077",
    ];
    let text = p.container(&flags, &["sh", "-c", script]).output().ok().text();
    let parts = [
        "CapEff:\t0000000000000001",
        "CapBnd:\t0000000000000001",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "/x: Read-only file system",
        "\n77\n300\n1\ntower\n",
        "shmmax: Read-only file system",
        "0077",
    ];
    for part in parts {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
    let open = ["--rm", "--security-opt", "seccomp=unconfined", "--security-opt", "unmask=ALL"];
    let text = p.container(&open, &["grep", "Seccomp:", "/proc/self/status"]).output().ok().text();
    assert_eq!(text, "Seccomp:\t0");
}

fn mounts_and_devices(p: &Daemonless) {
    let shared = p.path("tmp/shared");
    std::fs::create_dir(&shared).expect("a directory");
    let volume = format!("{}:/mnt:ro", shared.display());
    let script = "id -u; touch /fresh/by-me && stat -c %a /fresh /tmp; (touch /mnt/x) 2>&1; ls /kept; ls -l /dev/twin; \
                  cat /dev/twin | wc -c; df -k /dev/shm | tail -1 | awk '{print $2}'";
    let flags = [
        "--rm",
        "--user",
        "33",
        "--tmpfs",
        "/fresh",
        "--volume",
        &volume,
        "--volume",
        "named:/kept",
        "--device",
        "/dev/null:/dev/twin:r",
        "--shm-size",
        "2m",
        "--init",
    ];
    let text = p.container(&flags, &["sh", "-c", script]).output().ok().text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..4], ["33", "1777", "1777", "touch: /mnt/x: Read-only file system"], "{text}");
    assert!(lines[4].starts_with('c') && lines[4].contains("1,") && lines[4].contains("3"), "{text}");
    assert_eq!(lines[5..], ["0", "2048"], "{text}");
    p.run(&["volume", "rm", "named"]).ok();
}

fn a_user_namespace(p: &Daemonless) {
    let script =
        "awk '{print $1, $2, $3}' /proc/self/uid_map; id -u; touch /made && stat -c %u /made /bin/busybox; exit 3";
    let out = p.container(&["--rm", "--uidmap", "0:200000:1000", "--gidmap", "0:200000:1000"], &["sh", "-c", script]);
    assert_eq!(out.output().code(3).text(), "0 200000 1000\n0\n0\n0");
    sleeper(p, "mapped", &["--uidmap", "0:200000:1000"]);
    assert_eq!(p.text(&["exec", "mapped", "sh", "-c", "id -u; awk '{print $2}' /proc/self/uid_map"]), "0\n200000");
}

fn a_pod_shares_namespaces(p: &Daemonless) {
    let group = p.cgroup();
    let image = integration::daemonless::BUSYBOX;
    let infra = ["--infra-image", image, "--infra-command", "/bin/sleep 1000"];
    p.run(&[&["pod", "create", "--name", "pod", "--network", "none", "--cgroup-parent", &group], &infra[..]].concat())
        .ok();
    for (name, number) in [("one", "1"), ("two", "2")] {
        let script = format!("ip addr add 127.0.0.{number}0/8 dev lo 2>/dev/null; sleep 1000");
        p.run(&["run", "-d", "--pod", "pod", "--name", name, image, "sh", "-c", &script]).ok();
    }
    let namespaces = |name: &str| {
        p.text(&["exec", name, "sh", "-c", "for n in net ipc uts mnt; do readlink /proc/self/ns/$n; done"])
    };
    let (one, two) = (namespaces("one"), namespaces("two"));
    let (one, two): (Vec<&str>, Vec<&str>) = (one.lines().collect(), two.lines().collect());
    assert_eq!(one[..3], two[..3]);
    assert_ne!(one[3], two[3]);
    p.run(&["pod", "pause", "pod"]).ok();
    assert_eq!(p.inspect("two", "{{.State.Status}}"), "paused");
    p.run(&["pod", "unpause", "pod"]).ok();
    assert!(p.text(&["pod", "top", "pod"]).contains("sleep 1000"));
    p.run(&["pod", "stop", "--time", "1", "pod"]).ok();
    p.run(&["pod", "rm", "pod"]).ok();
    assert_eq!(p.text(&["ps", "-aq"]), "");
}

fn health_and_restart(p: &Daemonless) {
    sleeper(p, "well", &["--health-cmd", "test -e /well", "--health-interval", "disable", "--health-retries", "1"]);
    assert_ne!(p.run(&["healthcheck", "run", "well"]).code, 0);
    p.run(&["exec", "well", "touch", "/well"]).ok();
    p.run(&["healthcheck", "run", "well"]).ok();
    assert_eq!(p.inspect("well", "{{.State.Healthcheck.Status}}"), "healthy");
    p.run(&["cp", "well:/etc/passwd", &p.path("tmp/copied").display().to_string()]).ok();
    assert!(p.path("tmp/copied").exists());
    p.run(&["restart", "--time", "0", "well"]).ok();
    p.run(&["exec", "well", "test", "-e", "/well"]).ok();
    let script = "echo x >>/runs; [ $(wc -l </runs) = 3 ]";
    p.container(&["--name", "again", "--restart", "on-failure:5"], &["sh", "-c", script]).output();
    wait::until_true("the third run ends well", || {
        p.inspect("again", "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}") == "exited 0 2"
    });
}
