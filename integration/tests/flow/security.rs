//! What a container may do by default, and what flags change.

use integration::{Stack, flow, skip};

fn status(s: &Stack, arguments: &[&str], field: &str) -> String {
    let script = format!("awk '/^{field}:/ {{print $2}}' /proc/self/status");
    let mut all = vec!["run", "--rm"];
    all.extend(arguments);
    all.extend([s.busybox(), "sh", "-c", &script]);
    s.text(&all)
}

#[test]
fn fourteen_capabilities_by_default() {
    flow(|s| {
        assert_eq!(status(s, &[], "CapEff"), "00000000a80425fb");
        assert_eq!(status(s, &[], "CapBnd"), "00000000a80425fb");
        assert_eq!(status(s, &["-u", "1000"], "CapEff"), "0000000000000000");
    });
}

#[test]
fn capabilities_are_added_and_dropped() {
    flow(|s| {
        assert_eq!(status(s, &["--cap-drop", "ALL"], "CapEff"), "0000000000000000");
        assert_eq!(status(s, &["--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE"], "CapEff"), "0000000000000400");
        assert_eq!(status(s, &["--cap-add", "SYS_TIME"], "CapEff"), "00000000aa0425fb");
        assert_eq!(status(s, &["--cap-drop", "CAP_CHOWN"], "CapEff"), "00000000a80425fa");
        s.run(&["run", "--rm", "--cap-add", "NO_SUCH", s.busybox(), "true"]).code(125);
    });
}

#[test]
fn system_calls_are_filtered() {
    flow(|s| {
        assert_eq!(status(s, &[], "Seccomp"), "2");
        assert_eq!(status(s, &["--security-opt", "seccomp=unconfined"], "Seccomp"), "0");
        // The profile allows mount(2) with CAP_SYS_ADMIN alone.
        s.run(&["run", "--rm", s.busybox(), "unshare", "-U", "true"]).code(1);
        s.run(&["run", "--rm", "--security-opt", "seccomp=unconfined", s.busybox(), "unshare", "-U", "true"]).ok();
    });
}

#[test]
fn a_profile_of_the_callers() {
    flow(|s| {
        let file = s.site().path("tmp/profile.json");
        let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}"#;
        std::fs::write(&file, profile).expect("write the profile");
        let option = format!("seccomp={}", file.display());
        let out = s.run(&["run", "--rm", "--security-opt", &option, s.busybox(), "mkdir", "/new"]).code(1);
        assert!(out.errors().contains("Function not implemented"), "{}", out.errors());
        s.run(&["run", "--rm", "--security-opt", "seccomp=/no/such/file", s.busybox(), "true"]).code(125);
        std::fs::write(&file, "not json").expect("write the profile");
        s.run(&["run", "--rm", "--security-opt", &option, s.busybox(), "true"]).code(125);
    });
}

#[test]
fn no_new_privileges() {
    flow(|s| {
        assert_eq!(status(s, &[], "NoNewPrivs"), "0");
        assert_eq!(status(s, &["--security-opt", "no-new-privileges"], "NoNewPrivs"), "1");
        s.run(&["run", "--rm", "--security-opt", "nosuch=option", s.busybox(), "true"]).code(125);
    });
}

#[test]
fn kernel_files_are_masked_and_read_only() {
    flow(|s| {
        let script = "cat /proc/kcore | wc -c; cat /proc/keys | wc -c; ls /proc/acpi /sys/firmware 2>/dev/null | grep -vc : ; \
                      echo 1 > /proc/sys/kernel/panic || echo refused; echo c > /proc/sysrq-trigger || echo refused; touch /sys/new || echo refused";
        let out = s.run(&["run", "--rm", s.busybox(), "sh", "-c", script]).ok();
        let lines: Vec<String> = out.text().lines().map(str::to_owned).collect();
        assert_eq!((lines[0].as_str(), lines[1].as_str()), ("0", "0"));
        assert_eq!(lines.iter().filter(|line| *line == "refused").count(), 3, "{lines:?}");
    });
}

#[test]
fn a_container_has_few_devices() {
    flow(|s| {
        let text = s.text(&["run", "--rm", s.busybox(), "ls", "/dev"]);
        let mut devices: Vec<&str> = text.lines().collect();
        devices.sort_unstable();
        // A link to /proc/kcore, where the kernel has one.
        devices.retain(|name| *name != "core");
        let expected = [
            "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
            "urandom", "zero",
        ];
        assert_eq!(devices, expected);
        s.run(&["run", "--rm", "--cap-add", "MKNOD", s.busybox(), "sh", "-c", "mknod /disk b 254 0 && cat /disk"])
            .code(1);
    });
}

#[test]
fn privileged_lifts_the_limits() {
    flow(|s| {
        let bounding = own_status("CapBnd");
        if !s.is_ours() && bounding.chars().any(|digit| !"01f".contains(digit)) {
            return skip("this machine has not all capabilities, which runc insists on");
        }
        assert_eq!(status(s, &["--privileged"], "CapEff"), bounding);
        assert_eq!(status(s, &["--privileged"], "Seccomp"), "0");
        let script =
            "test -e /dev/kmsg && mount -t tmpfs none /tmp && echo 1 > /proc/sys/net/ipv4/ip_forward && echo done";
        assert_eq!(s.text(&["run", "--rm", "--privileged", s.busybox(), "sh", "-c", script]), "done");
    });
}

/// A field of this process's own status.
fn own_status(field: &str) -> String {
    let text = std::fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:"))).expect("the field");
    line.trim().to_owned()
}

#[test]
fn process_1_is_the_program_and_others_do_not_show() {
    flow(|s| {
        let text = s.text(&["run", "--rm", s.busybox(), "ps", "-o", "pid,args"]);
        let lines: Vec<&str> = text.lines().skip(1).map(str::trim).collect();
        assert_eq!(lines, ["1 ps -o pid,args"]);
    });
}

#[test]
fn namespaces_are_the_containers_own() {
    flow(|s| {
        let script = "for n in ipc mnt net pid uts; do readlink /proc/self/ns/$n; done";
        let text = s.text(&["run", "--rm", s.busybox(), "sh", "-c", script]);
        for (line, name) in text.lines().zip(["ipc", "mnt", "net", "pid", "uts"]) {
            let own = std::fs::read_link(format!("/proc/thread-self/ns/{name}")).expect("a namespace");
            assert_ne!(line, own.to_string_lossy(), "{name}");
        }
    });
}

#[test]
fn no_descriptor_of_the_host_arrives() {
    flow(|s| {
        let text = s.text(&["run", "--rm", s.busybox(), "sh", "-c", "ls /proc/1/fd | wc -l; ls -l /proc/1/fd"]);
        // 0, 1, 2; a shell may hold one more while it reads.
        let count: u32 = text.lines().next().and_then(|line| line.parse().ok()).expect("a number");
        assert!(count <= 4, "{text}");
    });
}
