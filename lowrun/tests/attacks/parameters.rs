//! Kernel parameters of the host that a container's spec reaches for.

use std::fs;
use std::process::{Child, Command};

use serde_json::json;

use crate::stage::{eventually, stage};

/// A process that holds a network namespace of its own.
fn holder() -> Child {
    let child = Command::new("unshare").args(["--net", "sleep", "1000"]).spawn().unwrap();
    let comm = format!("/proc/{}/comm", child.id());
    eventually("the namespace is made", || fs::read_to_string(&comm).unwrap().trim() == "sleep");
    child
}

/// The class of CVE-2022-0811 and CVE-2025-52881 at its root: a parameter of a namespace that is joined, and is the host's.
#[test]
fn a_parameter_of_a_joined_namespace_must_not_be_the_hosts() {
    let Some(mut stage) = stage() else { return };
    let file = "/proc/sys/net/ipv4/ip_default_ttl";
    let before = fs::read_to_string(file).unwrap();
    stage.config["linux"]["sysctl"] = json!({ "net.ipv4.ip_default_ttl": "77" });
    stage.args(&["cat", file]);
    // That of another namespace than the host's is set.
    let mut holder = holder();
    stage.namespace("network", Some(&format!("/proc/{}/ns/net", holder.id())));
    assert_eq!(stage.output(), "77\n");
    holder.kill().unwrap();
    holder.wait().unwrap();
    let me = std::process::id();
    for path in ["/proc/self/ns/net".to_owned(), format!("/proc/{me}/ns/net")] {
        stage.namespace("network", Some(&path));
        stage.run().fails(1, "not allowed in host network namespace");
        stage.is_clean();
    }
    assert_eq!(fs::read_to_string(file).unwrap(), before);
}

/// CVE-2015-3630: files of the kernel's that any container could write, unless they are covered.
#[test]
fn behind_the_usual_lists_no_file_of_the_kernels_can_be_written() {
    let Some(mut stage) = stage() else { return };
    let mut command = stage.command();
    command.args(["spec", "--bundle"]).arg(stage.dir.path());
    stage.finish(command).ok();
    let usual = fs::read_to_string(stage.dir.path().join("config.json")).unwrap();
    let usual: serde_json::Value = serde_json::from_str(&usual).unwrap();
    for applet in ["find", "sort"] {
        std::os::unix::fs::symlink("busybox", stage.rootfs().join("bin").join(applet)).unwrap();
    }
    // Opened, and nothing is written. Of processes only their own.
    stage.script(
        "find /proc /sys -path '/proc/[0-9]*' -prune -o -path /proc/self -prune -o -path /proc/thread-self -prune \
         -o -type f -print | while read f; do { true >> $f; } 2>/dev/null && echo $f; done; true",
    );
    stage.config["linux"]["maskedPaths"] = json!([]);
    stage.config["linux"]["readonlyPaths"] = json!([]);
    let open = stage.output();
    assert!(open.lines().filter(|file| file.starts_with("/proc/sys/")).count() > 10, "{open}");
    for list in ["maskedPaths", "readonlyPaths"] {
        stage.config["linux"][list] = usual["linux"][list].clone();
    }
    // A watch on the pressure takes a privilege or is the writer's own; the memory's types take CAP_SYS_ADMIN. What
    // chooses messages of the kernel's log is not in runc's lists either.
    let left = ["/proc/mtrr", "/proc/dynamic_debug/control"];
    let harmless = |file: &&str| file.starts_with("/proc/pressure/") || left.contains(file);
    let open = stage.output();
    let open: Vec<&str> = open.lines().filter(|file| !harmless(file)).collect();
    assert!(open.is_empty(), "{open:?}");
}

/// CVE-2022-0811: one parameter's name or value hides another, or leaves `/proc/sys`.
#[test]
fn no_parameter_hides_another() {
    let Some(mut stage) = stage() else { return };
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    stage.args(&["cat", "/proc/sys/kernel/shm_rmid_forced"]);
    stage.config["linux"]["sysctl"] = json!({ "kernel.shm_rmid_forced": "1" });
    assert_eq!(stage.output(), "1\n");
    for (name, value) in [
        ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/evil"),
        ("kernel.shm_rmid_forced+kernel.core_pattern", "|/evil"),
        ("kernel.core_pattern", "|/evil"),
        ("kernel/shm_rmid_forced/../core_pattern", "|/evil"),
        ("net/../kernel/core_pattern", "|/evil"),
        ("net.ipv4/../../kernel/core_pattern", "|/evil"),
        ("fs.mqueue.../../kernel/core_pattern", "|/evil"),
    ] {
        stage.config["linux"]["sysctl"] = json!({ name: value });
        assert_eq!(stage.run().status, 1, "{name}");
        stage.is_clean();
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), pattern);
}
