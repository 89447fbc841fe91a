//! containerd's stock shim with a runtime of the caller's choice: `ctr run --runc-binary` fills `BinaryName` of the runtime
//! options. (The first steps are `tests/shim.rs`, the rest of the shim's duties `tests/seams/shims.rs`.)

use integration::{Daemonship, Supervised, supervised_by, wait};

macro_rules! over_both {
    ($($name:ident)*) => {
        mod over_runc { $(#[test] fn $name() { super::over(&crate::runc(), super::$name) })* }
        mod over_lowrun { $(#[test] fn $name() { super::over(&crate::lowrun(), super::$name) })* }
    };
}

over_both! {
    a_life_with_execs_and_signals
    pause_metrics_and_limits
    an_oom_kill_is_told
    flags_of_ctr
    a_user_namespace
    a_terminal
}

/// containerd, and the runtime that its shim gets.
struct Over<'a> {
    supervised: &'a mut Supervised,
    binary: String,
}

fn over(runtime: &std::path::Path, test: fn(&mut Over)) {
    let binary = runtime.display().to_string();
    supervised_by(Daemonship::Containerd, |supervised| test(&mut Over { supervised, binary }));
}

impl Over<'_> {
    fn run<'a>(&'a self, flags: &[&'a str], id: &'a str, program: &[&'a str]) -> integration::Call {
        let head = self.supervised.ctr(&["run", "--runc-binary", &self.binary]).args(flags);
        head.args(&[self.supervised.busybox(), id]).args(program)
    }

    #[track_caller]
    fn sleeper(&self, flags: &[&str], id: &str) {
        self.run(&[&["-d"], flags].concat(), id, &["sh", "-c", "trap 'exit 33' TERM; while :; do sleep 0.1; done"])
            .output()
            .ok();
        self.supervised.wait_for_status(id, "RUNNING");
    }

    #[track_caller]
    fn exec(&self, id: &str, exec: &str, program: &[&str]) -> integration::Output {
        self.supervised.ctr(&["tasks", "exec", "--exec-id", exec, id]).args(program).output()
    }
}

fn a_life_with_execs_and_signals(o: &mut Over) {
    let out =
        o.run(&["--rm"], "once", &["sh", "-c", "head -c 3; echo err >&2; exit 5"]).input(b"in\xff").output().code(5);
    assert_eq!((out.stdout.as_slice(), out.errors().as_str()), (&b"in\xff"[..], "err\n"));
    assert_ne!(o.run(&["--rm"], "nothing", &["/no/such/program"]).output().code, 0);
    o.sleeper(&[], "long");
    assert_eq!(o.exec("long", "one", &["sh", "-c", "echo inside; exit 6"]).code(6).text(), "inside");
    assert_ne!(o.exec("long", "two", &["/no/such/program"]).code, 0);
    let listed = o.supervised.text(&["tasks", "ps", "long"]);
    assert!(listed.lines().count() >= 2, "{listed}");
    o.supervised.run(&["tasks", "kill", "-s", "TERM", "long"]).ok();
    o.supervised.wait_for_status("long", "STOPPED");
    o.supervised.assert_deleted_with("long", 33);
    o.supervised.run(&["containers", "delete", "long"]).ok();
}

fn pause_metrics_and_limits(o: &mut Over) {
    o.sleeper(&["--memory-limit", "67108864", "--cpus", "0.5"], "calm");
    o.supervised.run(&["tasks", "pause", "calm"]).ok();
    o.supervised.wait_for_status("calm", "PAUSED");
    o.supervised.run(&["tasks", "resume", "calm"]).ok();
    o.supervised.wait_for_status("calm", "RUNNING");
    let metrics = o.supervised.text(&["tasks", "metrics", "calm"]);
    assert!(metrics.contains("67108864") && metrics.contains("pids.current"), "{metrics}");
    let group = format!("{}/calm", o.supervised.namespace());
    let limit = integration::leak::cgroups_named(&group).into_iter().find_map(|path| {
        ["memory.limit_in_bytes", "memory.max"]
            .iter()
            .find_map(|file| std::fs::read_to_string(format!("{path}/{file}")).ok())
    });
    assert_eq!(limit.as_deref().map(str::trim), Some("67108864"));
}

fn an_oom_kill_is_told(o: &mut Over) {
    let watching = o.supervised.ctr(&["events"]).start();
    // `ctr events` says nothing when it has subscribed: events of labels are made until one comes.
    wait::until_true("ctr listens", || {
        o.supervised.run(&["images", "label", o.supervised.busybox(), "a=b"]).ok();
        String::from_utf8_lossy(&watching.stdout_so_far()).contains("/images/update")
    });
    o.run(&["--memory-limit", "16777216"], "greedy", &["tail", "/dev/zero"]).output().code(137);
    watching.expect("/tasks/oom");
    watching.signal(nix::sys::signal::Signal::SIGTERM);
    watching.end();
}

fn flags_of_ctr(o: &mut Over) {
    let script = "pwd; echo $A; touch /x 2>&1; ls /mnt; ls -l /dev/fuse | cut -c1; grep -E 'Seccomp:|NoNewPrivs' /proc/self/status";
    let source = o.supervised.path("tmp/shared");
    std::fs::create_dir(&source).expect("a directory");
    std::fs::write(source.join("file"), "").expect("a file");
    let mount = format!("type=bind,src={},dst=/mnt,options=rbind:ro", source.display());
    let states = o.supervised.path("run/states").display().to_string();
    let flags = [
        "--rm",
        "--read-only",
        "--cwd",
        "/tmp",
        "--env",
        "A=1",
        "--seccomp",
        "--mount",
        &mount,
        "--device",
        "/dev/fuse",
        "--runc-root",
        &states,
        "--no-pivot",
    ];
    let text = o.run(&flags, "flags", &["sh", "-c", script]).output().ok().text();
    assert_eq!(text, "/tmp\n1\ntouch: /x: Read-only file system\nfile\nc\nNoNewPrivs:\t1\nSeccomp:\t2");
    let here = std::fs::read_link("/proc/thread-self/ns/net").expect("a namespace").display().to_string();
    let network = format!("network:/proc/{}/ns/net", o.supervised.daemon().pid());
    for flags in [&["--net-host"][..], &["--with-ns", &network, "--allow-new-privs"]] {
        let call = o.run(&[&["--rm"], flags].concat(), "near", &["readlink", "/proc/self/ns/net"]);
        assert_eq!(call.output().ok().text(), here, "{flags:?}");
    }
}

fn a_user_namespace(o: &mut Over) {
    let map = ["--rm", "--uidmap", "0:200000:65536", "--gidmap", "0:200000:65536"];
    let script = "id -u; awk '{print $2}' /proc/self/uid_map; touch /made && stat -c %u /made; exit 3";
    let out = o.run(&map, "mapped", &["sh", "-c", script]).output().code(3);
    assert_eq!(out.text(), "0\n200000\n0");
}

fn a_terminal(o: &mut Over) {
    let (binary, busybox) = (o.binary.clone(), o.supervised.busybox());
    let mut terminal = o.supervised.terminal(&["run", "--rm", "-t", "--runc-binary", &binary, busybox, "tty", "sh"]);
    terminal.expect("/ # ");
    let exec = ["tasks", "exec", "-t", "--exec-id", "shell", "tty", "sh"];
    let mut exec = o.supervised.terminal(&exec);
    exec.expect("/ # ");
    exec.send("tty; exit 6\n");
    exec.expect("/dev/pts/");
    assert_eq!(exec.end(), 6);
    terminal.send("stty size; exit 4\n");
    terminal.expect("24 80");
    assert_eq!(terminal.end(), 4);
}
