//! Buildah with isolation `oci`: each `run`, and each `RUN` of a build, is a container of the runtime.

use integration::daemonless::BUSYBOX;
use integration::{Caller, Daemonless, daemonless};

macro_rules! over_both {
    ($($name:ident)*) => {
        mod over_runc { $(#[test] fn $name() { super::daemonless(super::Caller::Root, &crate::runc(), super::$name) })* }
        mod over_lowrun { $(#[test] fn $name() { super::daemonless(super::Caller::Root, &crate::lowrun(), super::$name) })* }
    };
}

over_both! {
    runs_in_a_working_container
    build_an_image
    a_build_in_a_user_namespace
    a_build_that_fails
}

fn runs_in_a_working_container(p: &Daemonless) {
    let group = format!("{}/work", p.cgroup());
    p.buildah(&["from", "--name", "work", "--cgroup-parent", &group, "--pull-never", BUSYBOX]).output().ok();
    let run = |flags: &[&str], script: &str| {
        let runtime = p.runtime();
        p.buildah(
            &[&["run", "--runtime", &runtime, "--network", "none"], flags, &["work", "sh", "-c", script]].concat(),
        )
    };
    let out = run(&[], "cat; echo err >&2; exit 7").input(b"in\xff").output().code(7);
    assert_eq!(out.stdout, b"in\xff");
    assert!(out.errors().contains("err\n") && !out.errors().contains("warning"), "{}", out.errors());
    let flags = ["--user", "33:44", "--workingdir", "/tmp", "--env", "A=1", "--hostname", "tower"];
    let script = "id -u; id -g; pwd; echo $A; hostname; ls /sys/class/net";
    assert_eq!(run(&flags, script).output().ok().text(), "33\n44\n/tmp\n1\ntower\nlo");
    let script = "grep CapEff /proc/self/status; grep Seccomp: /proc/self/status";
    let text = run(&["--cap-drop", "all"], script).output().ok().text();
    assert_eq!(text, "CapEff:\t0000000000000000\nSeccomp:\t2");
    let volume = format!("{}:/mnt:ro", p.path("tmp").display());
    let script = "(touch /mnt/x) 2>&1; touch /scratch/x && echo kept >/kept";
    let labelled = format!("{}:/mnt:z,U", p.path("tmp").display());
    run(&["--volume", &labelled], "ls /mnt").output().ok();
    let text = run(&["--volume", &volume, "--mount", "type=tmpfs,destination=/scratch"], script).output().ok().text();
    assert_eq!(text, "touch: /mnt/x: Read-only file system");
    let text = run(&["--tty"], "tty; cat /kept; ls /scratch").output().ok().text();
    assert!(text.replace('\r', "").ends_with("/dev/pts/0\nkept"), "{text}");
    assert_ne!(p.buildah(&["run", "--network", "none", "work", "/no/such/program"]).output().code, 0);
    p.buildah(&["rm", "work"]).output().ok();
}

/// Also for an unprivileged user.
pub(crate) fn build_an_image(p: &Daemonless) {
    let file = "FROM localhost/busybox\n\
        RUN echo by the build >/made\n\
        RUN --mount=type=tmpfs,target=/scratch --mount=type=bind,source=.,target=/context \
        grep -q ' /scratch tmpfs ' /proc/mounts && cat /context/note >/noted\n\
        USER 33\nRUN id -u >/tmp/who\nCMD cat /made /noted /tmp/who\n";
    let out = build(p, file, &["--tag", "localhost/built"]).output().ok();
    assert!(out.text().contains("STEP"), "{}", out.text());
    let text = p.container_of("localhost/built", &["--rm"], &[]).output().ok().text();
    assert_eq!(text, "by the build\nnoted\n33");
}

fn a_build_in_a_user_namespace(p: &Daemonless) {
    let file = "FROM localhost/busybox\nRUN awk '{print $2}' /proc/self/uid_map && touch /made && stat -c %u /made\n";
    let map = ["--userns-uid-map", "0:200000:65536", "--userns-gid-map", "0:200000:65536"];
    let text = build(p, file, &map).output().ok().text();
    assert!(text.contains("200000\n0\n"), "{text}");
}

fn a_build_that_fails(p: &Daemonless) {
    let out = build(p, "FROM localhost/busybox\nRUN exit 9\n", &[]).output().code(9);
    assert!(out.errors().contains("exit status 9"), "{}", out.errors());
    let limits = ["--memory", "16m", "--memory-swap", "16m"];
    let out = build(p, "FROM localhost/busybox\nRUN tail /dev/zero\n", &limits).output();
    assert!(out.code != 0 && format!("{}{}", out.text(), out.errors()).contains("killed"), "{}", out.errors());
    assert_eq!(p.buildah(&["containers", "--quiet"]).output().ok().text(), "");
}

/// `buildah build` of a file in a context that has a `note`.
fn build(p: &Daemonless, file: &str, flags: &[&str]) -> integration::Call {
    let context = p.path("tmp/context");
    std::fs::create_dir_all(&context).expect("a context");
    std::fs::write(context.join("Containerfile"), file).expect("write the Containerfile");
    std::fs::write(context.join("note"), "noted\n").expect("write the note");
    let (group, runtime) = (format!("{}/build", p.cgroup()), p.runtime());
    let head = p.buildah(&["build", "--runtime", &runtime, "--network", "none", "--pull-never"]);
    let head = if p.is_root() { head.args(&["--cgroup-parent", &group]) } else { head };
    head.args(flags).args(&[&context.display().to_string()])
}
