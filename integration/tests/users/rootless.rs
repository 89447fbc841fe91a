//! Podman and Buildah as an unprivileged user, whose subordinate ids newuidmap and newgidmap map. On cgroup version 1 such
//! a user has no cgroups: Podman then neither limits nor pauses.

use integration::daemonless::SUBORDINATE_IDS;
use integration::{Caller, Daemonless, daemonless, wait};

macro_rules! over_both {
    ($($name:ident)*) => {
        mod over_runc { $(#[test] fn $name() { super::daemonless(super::Caller::Unprivileged, &crate::runc(), super::$name) })* }
        mod over_lowrun { $(#[test] fn $name() { super::daemonless(super::Caller::Unprivileged, &crate::lowrun(), super::$name) })* }
    };
}

over_both! {
    a_life
    ids_are_mapped
    hardening_and_mounts
    terminals
    a_build
}

fn a_life(p: &Daemonless) {
    let out = p.container(&["--rm", "-i"], &["sh", "-c", "cat; echo err >&2; exit 7"]).input(b"in\xff\0").output();
    let out = out.code(7);
    assert_eq!((out.stdout.as_slice(), out.errors().as_str()), (&b"in\xff\0"[..], "err\n"));
    p.container(&["--rm"], &["/no/such/program"]).output().code(127);
    p.container(&["--rm"], &["/etc/passwd"]).output().code(126);
    let script = "trap 'echo bye; exit 5' TERM; echo hello; while :; do sleep 0.1; done";
    p.container(&["-d", "--name", "web"], &["sh", "-c", script]).output().ok();
    wait::until_true("it speaks", || p.text(&["logs", "web"]) == "hello");
    let out = p.run(&["exec", "-w", "/etc", "-u", "33:44", "web", "sh", "-c", "id -u; id -g; pwd; exit 9"]).code(9);
    assert_eq!(out.text(), "33\n44\n/etc");
    p.run(&["exec", "web", "/no/such/program"]).code(127);
    assert!(p.text(&["top", "web"]).contains("sleep 0.1"));
    p.run(&["stop", "web"]).ok();
    assert_eq!(p.text(&["logs", "web"]), "hello\nbye");
    assert_eq!(p.inspect("web", "{{.State.Status}} {{.State.ExitCode}}"), "exited 5");
    p.run(&["start", "web"]).ok();
    p.run(&["kill", "--signal", "KILL", "web"]).ok();
    assert_eq!(p.text(&["wait", "web"]), "137");
    p.run(&["rm", "web"]).ok();
}

fn ids_are_mapped(p: &Daemonless) {
    let map = "awk '{print $1, $2, $3}' /proc/self/uid_map; id -u";
    let text = p.container(&["--rm"], &["sh", "-c", map]).output().ok().text();
    let (first, count) = SUBORDINATE_IDS;
    assert_eq!(text, format!("0 4242 1\n1 {first} {count}\n0"));
    let text = p.container(&["--rm", "--userns", "keep-id"], &["id", "-u"]).output().ok().text();
    assert_eq!(text, "4242");
    let text =
        p.container(&["--rm", "--user", "33"], &["sh", "-c", "id -u; touch /tmp/x && stat -c %u /tmp/x"]).output();
    assert_eq!(text.ok().text(), "33\n33");
}

fn hardening_and_mounts(p: &Daemonless) {
    let script = "grep -E 'NoNewPrivs|Seccomp:|CapEff' /proc/self/status; touch /x 2>&1; touch /fresh/x && stat -c %a /fresh; \
                  hostname; ls /mnt; (touch /mnt/x) 2>&1; ls /sys/class/net; cat /proc/sys/net/ipv4/ip_forward; \
                  echo x >/dev/null && head -c 3 /dev/zero | wc -c";
    std::fs::create_dir(p.path("home/shared")).expect("a directory");
    std::fs::write(p.path("home/shared/file"), "").expect("a file");
    let volume = format!("{}:/mnt:ro", p.path("home/shared").display());
    let flags = [
        "--rm",
        "--read-only",
        "--security-opt",
        "no-new-privileges",
        "--cap-drop",
        "all",
        "--tmpfs",
        "/fresh",
        "--user",
        "33",
        "--hostname",
        "tower",
        "--volume",
        &volume,
        "--sysctl",
        "net.ipv4.ip_forward=1",
        "--init",
    ];
    let text = p.container(&flags, &["sh", "-c", script]).output().ok().text();
    let parts = [
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "/x: Read-only file system",
        "\n1777\ntower\nfile\ntouch: /mnt/x: Read-only file system\nlo\n1\n3",
    ];
    for part in parts {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
}

fn terminals(p: &Daemonless) {
    let run = ["run", "--rm", "-it", "--name", "tty", "--network", "none", integration::daemonless::BUSYBOX, "sh"];
    let mut terminal = p.terminal(&run);
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

fn a_build(p: &Daemonless) {
    crate::buildah::build_an_image(p);
    // The host's network, whose sysfs a user namespace may not mount anew.
    let out = p.call(&["run", "--rm", "--network", "host", "localhost/built", "cat", "/made"]).output().ok();
    assert_eq!(out.text(), "by the build");
}
