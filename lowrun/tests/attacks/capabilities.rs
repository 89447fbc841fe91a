//! Capabilities that nobody gave.

use std::fs;

use rustix::fs::XattrFlags;
use serde_json::json;

use crate::stage::{Stage, stage};

const SETS: &str = "grep -E '^Cap' /proc/self/status";

/// The five sets of a `/proc/PID/status`, as they stand there: inheritable, permitted, effective, bounding, ambient.
fn sets(text: &str) -> Vec<u64> {
    let masks = text.lines().filter(|line| line.starts_with("Cap")).map(|line| line.split_whitespace().last().unwrap());
    masks.map(|mask| u64::from_str_radix(mask, 16).unwrap()).collect()
}

fn as_user(stage: &mut Stage, uid: u32) {
    stage.config["process"]["user"] = json!({ "uid": uid, "gid": uid });
}

/// CVE-2022-29162, CVE-2022-24769 and CVE-2022-27649 to 27652: capabilities are inheritable that nobody asked for.
#[test]
fn nothing_is_inheritable_unless_it_was_asked_for() {
    let Some(mut stage) = stage() else { return };
    for uid in [0, 1000] {
        as_user(&mut stage, uid);
        stage.args(&["sleep", "1000"]);
        stage.detached();
        let pid = stage.state()["pid"].to_string();
        assert_eq!(sets(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap())[0], 0, "run as {uid}");
        assert_eq!(sets(&stage.exec(SETS).ok().out)[0], 0, "exec as {uid}");
        let added = ["exec", "--cap", "CAP_NET_RAW", stage.id(), "sh", "-c", SETS];
        assert_eq!(sets(&stage.call(&added).ok().out)[0], 0, "exec with one more as {uid}");
        stage.delete();
    }
}

/// The same, as it is exploited: a file of the image has capabilities that need an inheritable one to become real.
#[test]
fn a_file_with_inheritable_capabilities_gains_nothing() {
    const KILL: u64 = 1 << 5;
    let Some(mut stage) = stage() else { return };
    let tool = stage.rootfs().join("root/busybox");
    fs::copy("/bin/busybox", &tool).unwrap();
    // Version 2, effective; permitted and inheritable in the low halves, then in the high ones.
    let words = [0x0200_0001_u32, 0, KILL as u32, 0, 0].map(u32::to_le_bytes).concat();
    rustix::fs::setxattr(&tool, "security.capability", &words, XattrFlags::empty()).unwrap();
    as_user(&mut stage, 1000);
    stage.config["process"]["noNewPrivileges"] = json!(false);
    stage.args(&["/root/busybox", "grep", "Cap", "/proc/self/status"]);
    assert_eq!(sets(&stage.output())[1..3], [0, 0]);
    // With an inheritable set, as runtimes gave it by default, the file has its capability.
    stage.config["process"]["capabilities"]["inheritable"] = json!(["CAP_KILL"]);
    assert_eq!(sets(&stage.output())[1..3], [KILL, KILL]);
}

/// CVE-2025-27612: an exec has more than the container.
#[test]
fn an_exec_has_no_capability_that_the_container_has_not() {
    let Some(mut stage) = stage() else { return };
    stage.config["process"]["capabilities"] = json!({});
    stage.args(&["sleep", "1000"]);
    stage.detached();
    let none = vec![0; 5];
    for user in ["0", "1000"] {
        let outcome = stage.call(&["exec", "-u", user, stage.id(), "sh", "-c", SETS]);
        assert_eq!(sets(&outcome.ok().out), none, "as {user}");
    }
    let file = stage.dir.path().join("process.json");
    let process = json!({ "args": ["sh", "-c", SETS], "cwd": "/", "env": ["PATH=/bin"] });
    fs::write(&file, process.to_string()).unwrap();
    let outcome = stage.call(&["exec", "--process", file.to_str().unwrap(), stage.id()]);
    assert_eq!(sets(&outcome.ok().out), none, "by a process.json without capabilities");
    // One that is asked for is seen, so others would be.
    let outcome = stage.call(&["exec", "--cap", "CAP_KILL", stage.id(), "sh", "-c", SETS]);
    assert_eq!(sets(&outcome.ok().out)[1..4], [1 << 5; 3]);
    stage.delete();
}

/// CVE-2016-8867, CVE-2018-10856: a user that is not root keeps capabilities.
#[test]
fn another_user_than_root_has_no_capabilities() {
    let Some(mut stage) = stage() else { return };
    stage.script(SETS);
    // As root the same section counts.
    assert_ne!(sets(&stage.output())[2], 0);
    as_user(&mut stage, 1000);
    let seen = sets(&stage.output());
    assert_eq!((seen[1], seen[2], seen[4]), (0, 0, 0));
}
