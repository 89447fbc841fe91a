//! Impossible values in every part of config.json, and impossible words on the command line: one line names the field or
//! the path and the cause, the exit status is runc's, and nothing is left behind. With `SUBJECT_RUNTIME=/usr/sbin/runc`
//! the same table says what runc makes of each.

mod stage;

use serde_json::{Value, json};
use stage::{Outcome, Stage, stage};

/// Where in config.json (a JSON pointer; a last `-` adds to a list), what stands there, and what the line names.
type Case = (&'static str, &'static str, &'static str);

/// What runc refuses, too.
const REFUSED: &[Case] = &[
    ("/root", "7", "config.json: root"),
    ("/root/path", r#""missing""#, "bundle/missing"),
    ("/root/path", r#""config.json""#, "bundle/config.json"),
    ("/process", r#""true""#, "config.json: process"),
    ("/process/cwd", r#""relative""#, "process.cwd"),
    ("/process/cwd", r#""/etc/passwd""#, "/etc/passwd: "),
    ("/process/args", "{}", "config.json: process.args"),
    ("/process/args", r#"[""]"#, "exec: \"\""),
    ("/process/env", r#"["=x"]"#, "process.env[0]"),
    ("/process/env", r#"["A=b\u0000c"]"#, "process.env[0]"),
    ("/process/user", r#"{ "uid": -1 }"#, "config.json: process.user.uid"),
    ("/process/user", r#"{ "uid": 0, "gid": 0, "additionalGids": [4294967295] }"#, "process.user"),
    ("/process/rlimits", r#"[{ "type": "RLIMIT_MOON", "soft": 1, "hard": 1 }]"#, "process.rlimits[0]"),
    (
        "/process/rlimits",
        r#"[{ "type": "a\nb", "soft": 1, "hard": 1 }]"#,
        r"process.rlimits[0]: wrong rlimit value: a\nb",
    ),
    (
        "/process/rlimits",
        r#"[{ "type": "RLIMIT_CORE", "soft": 2, "hard": 1 }]"#,
        "process.rlimits: set RLIMIT_CORE to 2:1",
    ),
    (
        "/process/rlimits",
        r#"[{ "type": "RLIMIT_CORE", "soft": -1, "hard": 1 }]"#,
        "config.json: process.rlimits[0].soft",
    ),
    ("/process/oomScoreAdj", "-5000", "process.oomScoreAdj"),
    ("/process/selinuxLabel", r#""moon""#, "elinux"),
    ("/process/consoleSize", r#"{ "height": -1, "width": 1 }"#, "config.json: process.consoleSize.height"),
    ("/process/commandLine", "7", "config.json: process.commandLine"),
    ("/process/user", r#"{ "username": {} }"#, "config.json: process.user.username"),
    (
        "/process/capabilities",
        r#"{ "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": [] }"#,
        "process.capabilities.effective: not in process.capabilities.permitted: CAP_KILL",
    ),
    (
        "/process/capabilities",
        r#"{ "bounding": ["CAP_KILL"], "inheritable": ["CAP_CHOWN"] }"#,
        "process.capabilities.inheritable: not in process.capabilities.bounding: CAP_CHOWN",
    ),
    ("/windows", r#"{ "servicing": "yes" }"#, "config.json: windows.servicing"),
    ("/vm", r#"{ "hwconfig": { "vcpus": -1 } }"#, "config.json: vm.hwconfig.vcpus"),
    ("/hostname", r#""xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx""#, "host name"),
    ("/mounts", r#""x""#, "config.json: mounts"),
    ("/mounts/-", "7", "config.json: mounts[7]"),
    ("/mounts/-", r#"{ "destination": "/x", "type": "moonfs" }"#, "mount moonfs at /x"),
    (
        "/mounts/-",
        r#"{ "destination": "/x", "type": "tmpfs", "options": ["moon=1"] }"#,
        "/x: tmpfs: Unknown parameter 'moon'",
    ),
    (
        "/mounts/-",
        r#"{ "destination": "/x", "type": "tmpfs", "options": ["size=abc"] }"#,
        "/x: tmpfs: Bad value for 'size'",
    ),
    ("/mounts/-", r#"{ "destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"] }"#, "/no/such"),
    ("/mounts/-", r#"{ "destination": "/etc/passwd/x", "type": "tmpfs" }"#, "/etc/passwd/x"),
    ("/mounts/-", r#"{ "destination": "/etc/passwd", "type": "tmpfs" }"#, "/etc/passwd"),
    ("/linux/namespaces", r#"[{ "type": "moon" }]"#, "linux.namespaces[0]"),
    ("/linux/namespaces/-", r#"{ "type": "pid" }"#, "linux.namespaces[5]"),
    ("/linux/namespaces/1/path", r#""/no/such""#, "/no/such"),
    ("/linux/namespaces/1/path", r#""/etc/passwd""#, "/etc/passwd"),
    ("/linux/devices", r#"[{ "path": "/dev/x", "type": "z" }]"#, "linux.devices[0]"),
    ("/linux/devices", "[{}]", "linux.devices[0]: invalid device type"),
    ("/linux/devices", r#"[{ "path": "/dev/x", "type": "c", "major": -1, "minor": 3 }]"#, "linux.devices[0]"),
    ("/linux/resources/devices", r#"[{ "allow": true, "type": "z", "access": "r" }]"#, "linux.resources.devices[0]"),
    (
        "/linux/resources/devices",
        r#"[{ "allow": true, "type": "c", "major": -5, "minor": 1, "access": "r" }]"#,
        "linux.resources.devices[0]",
    ),
    ("/linux/resources/memory", r#"{ "limit": "1M" }"#, "config.json: linux.resources.memory.limit"),
    ("/linux/resources/memory", r#"{ "limit": 18446744073709551615 }"#, "config.json: linux.resources.memory.limit"),
    ("/linux/resources/memory", r#"{ "kernel": "1M" }"#, "config.json: linux.resources.memory.kernel"),
    ("/linux/resources/memory", r#"{ "kernelTCP": 1.5 }"#, "config.json: linux.resources.memory.kernelTCP"),
    ("/linux/resources/memory", r#"{ "useHierarchy": 1 }"#, "config.json: linux.resources.memory.useHierarchy"),
    ("/linux/resources/memory", r#"{ "limit": 1 }"#, "memory"),
    ("/linux/resources/memory", r#"{ "swappiness": 101 }"#, "swappiness"),
    ("/linux/resources/cpu", r#"{ "shares": -1 }"#, "config.json: linux.resources.cpu.shares"),
    ("/linux/resources/cpu", r#"{ "cpus": "moon" }"#, "cpus"),
    ("/linux/resources/cpu", r#"{ "mems": "99" }"#, "mems"),
    ("/linux/resources/pids", r#"{ "limit": "x" }"#, "config.json: linux.resources.pids.limit"),
    ("/linux/resources/blockIO", r#"{ "weight": 70000 }"#, "config.json: linux.resources.blockIO.weight"),
    ("/linux/resources/network", r#"{ "classID": -1 }"#, "config.json: linux.resources.network.classID"),
    ("/linux/sysctl", r#"{ "moon": "1" }"#, "linux.sysctl"),
    ("/linux/sysctl", r#"{ "net.ipv4.no_such": "1" }"#, "net/ipv4/no_such"),
    ("/linux/sysctl", r#"{ "net.ipv4.ip_forward": "moon" }"#, "net/ipv4/ip_forward"),
    ("/linux/seccomp", r#"{ "defaultAction": "SCMP_ACT_MOON" }"#, "linux.seccomp: action \"SCMP_ACT_MOON\""),
    (
        "/linux/seccomp",
        r#"{ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_MOON"] }"#,
        "SCMP_ARCH_MOON",
    ),
    (
        "/linux/seccomp",
        r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["mkdir"], "action": "MOON" }] }"#,
        "linux.seccomp: action \"MOON\"",
    ),
    (
        "/linux/seccomp",
        r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{ "index": 9, "value": 1, "op": "SCMP_CMP_EQ" }] }] }"#,
        "linux.seccomp: rule for mkdir: there is no argument 9",
    ),
    (
        "/linux/seccomp",
        r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{ "index": 0, "value": 1, "op": "MOON" }] }] }"#,
        "linux.seccomp: syscalls[0].args[0].op",
    ),
    (
        "/linux/seccomp",
        r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{}] }] }"#,
        "linux.seccomp: syscalls[0].args[0]: missing field `op`",
    ),
    (
        "/linux/seccomp",
        r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": [""], "action": "SCMP_ACT_ERRNO" }] }"#,
        "linux.seccomp: a rule for a system call without a name",
    ),
    ("/linux/seccomp", r#"{ "defaultAction": "SCMP_ACT_NOTIFY" }"#, "linux.seccomp"),
    ("/linux/rootfsPropagation", r#""upward""#, "linux.rootfsPropagation"),
    ("/linux/intelRdt", r#"{ "closID": "../x" }"#, "linux.intelRdt.closID"),
    ("/hooks", r#"{ "prestart": [{ "path": "relative" }] }"#, "hooks.prestart[0]"),
    ("/hooks", r#"{ "prestart": [{ "path": "/bin/true", "timeout": -1 }] }"#, "hooks.prestart[0]"),
    ("/hooks", r#"{ "createRuntime": [{ "path": "/etc" }] }"#, "hooks.createRuntime[0]"),
    ("/hooks", r#"{ "createContainer": [{ "path": "/bin/false" }] }"#, "hooks.createContainer[0]"),
    ("/hooks", r#"{ "poststart": [{ "path": "/no/such" }] }"#, "hooks.poststart[0]"),
    ("/annotations", r#"{ "a": 7 }"#, "config.json: annotations.a"),
];

/// What Debian's runc takes: the spec or later versions of runc refuse it, or it has not heard of it.
const TAKEN_BY_RUNC: &[Case] = &[
    ("/ociVersion", r#""moon""#, "ociVersion"),
    ("/domainname", r#""xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx""#, "domain name"),
    ("/process/scheduler", r#"{ "policy": "SCHED_MOON" }"#, "process.scheduler.policy"),
    ("/process/ioPriority", r#"{ "class": "MOON", "priority": 1 }"#, "process.ioPriority"),
    ("/mounts/-", r#"{ "destination": "/x", "source": "/etc", "options": ["bind", "moon"] }"#, "mounts[7]"),
    ("/mounts/-", r#"{ "destination": "/proc/sys", "type": "tmpfs" }"#, "/proc/sys"),
    ("/linux/devices", r#"[{ "path": "/dev/x", "type": "c", "major": 99999999999, "minor": 3 }]"#, "linux.devices[0]"),
    ("/linux/resources/devices", r#"[{ "allow": true, "access": "q" }]"#, "linux.resources.devices[0]"),
    ("/linux/uidMappings", r#"[{ "containerID": 0, "hostID": 0, "size": 1 }]"#, "linux.uidMappings"),
    ("/linux/personality", r#"{ "domain": "MOON" }"#, "linux.personality"),
    ("/linux/timeOffsets", r#"{ "monotonic": { "secs": 1 } }"#, "linux.timeOffsets"),
    ("/linux/netDevices", r#"{ "moon": {} }"#, "linux.netDevices"),
];

/// What leaves a state directory of runc's.
const LEFT_BY_RUNC: &[Case] = &[("/linux/cgroupsPath", r#""/a\u0000b""#, "linux.cgroupsPath")];

fn put(config: &mut Value, pointer: &str, value: &str) {
    let value: Value = serde_json::from_str(value).unwrap();
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    match config.pointer_mut(parent).unwrap() {
        Value::Array(list) if last == "-" => list.push(value),
        parent => parent[last] = value,
    }
}

/// Refused by one line, in the log and on stderr, which names these words.
fn is_refused(stage: &Stage, words: &[&str], status: i32, named: &str) {
    let (outcome, log) = stage.logged(words);
    assert_eq!(outcome.status, status, "{named}: {outcome:?}");
    let errors: Vec<&Value> = log.iter().filter(|line| line["level"] == "error").collect();
    let last =
        errors.last().unwrap_or_else(|| panic!("{named}: no error in the log: {outcome:?}"))["msg"].as_str().unwrap();
    if stage.is_ours() {
        assert!(last.contains(named) && !last.contains('\n') && errors.len() == 1, "{named}: {errors:?}");
        let told: Vec<&str> = outcome.err.lines().filter(|line| !line.starts_with("hint: ")).collect();
        assert!(told.len() == 1 && told[0].contains(named), "{named}: {outcome:?}");
    }
}

fn all_refused(stage: &mut Stage, cases: &[Case]) {
    let sound = stage.config.clone();
    for (pointer, value, named) in cases {
        stage.config = sound.clone();
        put(&mut stage.config, pointer, value);
        is_refused(stage, &["run", stage.id()], 1, named);
        stage.is_clean();
    }
    stage.config = sound;
    stage.run().ok();
}

#[test]
fn what_is_impossible_is_refused_by_its_field() {
    let Some(mut stage) = stage() else { return };
    stage.args(&["true"]);
    if stage::is_v2() {
        eprintln!("skipped: the files of limits are those of version 1");
        return;
    }
    all_refused(&mut stage, REFUSED);
}

#[test]
fn what_runc_does_not_see_is_refused_by_its_field() {
    let Some(mut stage) = stage() else { return };
    stage.args(&["true"]);
    if !stage.differs("Debian's runc takes these") {
        all_refused(&mut stage, TAKEN_BY_RUNC);
        all_refused(&mut stage, LEFT_BY_RUNC);
        let long = format!("\"/{}\"", "x".repeat(300));
        put(&mut stage.config, "/linux/cgroupsPath", &long);
        is_refused(&stage, &["run", stage.id()], 1, "linux.cgroupsPath");
        stage.is_clean();
    }
}

#[test]
fn what_is_strange_and_possible_is_taken() {
    let Some(mut stage) = stage() else { return };
    stage.args(&["true"]);
    let sound = stage.config.clone();
    for (pointer, value) in [
        ("/process/capabilities", r#"{ "bounding": ["CAP_MOON"] }"#),
        ("/linux/seccomp", r#"{ "defaultAction": "" }"#),
        (
            "/linux/seccomp",
            r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["moon"], "action": "SCMP_ACT_ERRNO" }] }"#,
        ),
        ("/linux/maskedPaths", r#"["/no/such", ""]"#),
        ("/linux/devices", r#"[{ "path": "", "type": "c", "major": 1, "minor": 3 }]"#),
        ("/linux/cgroupsPath", r#""../../x""#),
        ("/linux/resources/pids", r#"{ "limit": -5 }"#),
        ("/windows", "{}"),
    ] {
        // To systemd it is no path, but a slice, a prefix and a name.
        if stage::by_systemd() && pointer == "/linux/cgroupsPath" {
            continue;
        }
        stage.config = sound.clone();
        put(&mut stage.config, pointer, value);
        let outcome: Outcome = stage.run();
        assert_eq!(outcome.status, 0, "{pointer} {value}: {outcome:?}");
        stage.is_clean();
    }
    // Made below the caller's own cgroup, and its parents are not the container's.
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let _ = std::fs::remove_dir(hierarchy.path().join("x"));
    }
}

#[test]
fn words_that_cannot_be_are_refused_with_runcs_status() {
    let Some(mut stage) = stage() else { return };
    stage.script("while :; do sleep 0.05; done");
    stage.detached();
    let bad = stage.dir.path().join("bad.json");
    std::fs::write(&bad, r#"{ "args": 7, "memory": { "limit": "x" } }"#).unwrap();
    let (bad, id) = (bad.to_str().unwrap().to_owned(), stage.id().to_owned());
    let long = "x".repeat(1025);
    let start = &long[..32];
    for (words, status, named) in [
        (&["state", "a/b"][..], 1, "a/b"),
        (&["state", &long], 1, start),
        (&["create", &long], 1, start),
        (&["delete", "--force", &long], 1, start),
        (&["exec", &long, "true"], 255, start),
        (&["exec", "--process", &bad, &id], 255, "bad.json: args"),
        (&["exec", "--process", "/no/such.json", &id], 255, "/no/such.json"),
        (&["exec", "-g", "moon", &id, "true"], 1, "additional-gids"),
        (&["exec", "-u", "moon", &id, "true"], 255, "moon"),
        (&["exec", "-e", "=x", &id, "true"], 255, "process.env"),
        (&["exec", "--cwd", "moon", &id, "true"], 255, "process.cwd"),
        (&["exec", "--cgroup", "moon", &id, "true"], 255, "moon"),
        (&["exec", "--process-label", "moon", &id, "true"], 255, "elinux"),
        (&["exec", "--preserve-fds", "moon", &id, "true"], 1, "preserve-fds"),
        (&["update", "-r", &bad, &id], 1, "bad.json: memory.limit"),
        (&["update", "--memory", "moon", &id], 1, "memory"),
        (&["update", "--kernel-memory", "moon", &id], 1, "kernel-memory"),
        (&["update", "--kernel-memory-tcp", "moon", &id], 1, "kernel-memory-tcp"),
        (&["events", "--interval", "0", &id], 1, "interval"),
        (&["kill", &id, "MOON"], 1, "MOON"),
        (&["list", "--format", "moon"], 1, "format"),
    ] {
        is_refused(&stage, words, status, named);
    }
    // Version 2 has a weight for any number of shares.
    if !stage::is_v2() {
        let named = if stage::by_systemd() { "CPUShares" } else { "shares" };
        is_refused(&stage, &["update", "--cpu-share", "1", &id], 1, named);
    }
    assert_eq!(stage.status(), "running");
    stage.delete();
    stage.is_clean();
}

#[test]
fn paths_that_cannot_be_are_refused_and_nothing_is_left() {
    let Some(mut stage) = stage() else { return };
    stage.args(&["true"]);
    for (words, status, named) in [
        (&["run", "--bundle", "/no/such", "c1"], 1, "/no/such"),
        (&["run", "--bundle", "/etc/passwd", "c1"], 1, "/etc/passwd"),
        (&["create", "--pid-file", "/no/such/pid", "c1"], 1, "/no/such"),
    ] {
        is_refused(&stage, words, status, named);
        stage.is_clean();
    }
}

#[test]
fn a_text_that_is_no_config_is_told_by_its_path_and_its_field() {
    let Some(stage) = stage() else { return };
    let run = |text: &str, named: &str| {
        std::fs::write(stage.bundle().join("config.json"), text).unwrap();
        let mut command = stage.command();
        command.args(["run", stage.id()]);
        let outcome = stage.finish(command);
        assert_eq!(outcome.status, 1, "{text}: {outcome:?}");
        if stage.is_ours() {
            assert!(outcome.err.contains(named) && outcome.err.lines().count() == 1, "{text}: {outcome:?}");
        }
        stage.is_clean();
    };
    run("", "bundle/config.json: EOF while parsing");
    run("[]", "bundle/config.json: invalid type: sequence");
    run("{\"process\":{\"args\":[\"true\",", "bundle/config.json: process.args[1]: EOF while parsing");
    run(&json!({ "linux": { "namespaces": [{ "type": 7 }] } }).to_string(), "config.json: linux.namespaces[0].type: ");
}
