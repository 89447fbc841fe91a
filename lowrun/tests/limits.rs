//! Every limit of linux.resources, as the kernel has it afterwards: on v1, on hybrid machines and on v2.

mod stage;

use serde_json::{Value, json};
use stage::{Stage, by_systemd, eventually, is_v2, stage};

const LOOP: &str = "while :; do sleep 0.05; done";

/// One limit: what is asked for, and where it stands on v1 and on v2. An empty name is not looked at.
struct Limit {
    resources: Value,
    controller: &'static str,
    v1: (&'static str, &'static str),
    v2: (&'static str, &'static str),
}

/// Whether the machine has the controller, and the file for it below its root.
fn has(limit: &Limit) -> bool {
    let root = std::path::Path::new("/sys/fs/cgroup");
    if is_v2() {
        let all = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap();
        return !limit.v2.0.is_empty() && all.split_whitespace().any(|one| one == v2_name(limit.controller));
    }
    !limit.v1.0.is_empty() && root.join(limit.controller).is_dir()
}

fn v2_name(controller: &str) -> &str {
    if controller == "blkio" { "io" } else { controller }
}

/// A block device of this machine, as `major:minor`.
fn disk() -> Option<(u64, u64)> {
    let mut disks = std::fs::read_dir("/sys/block").ok()?.flatten();
    let entry = disks.find(|entry| {
        ["vd", "sd", "nvme", "loop"].iter().any(|p| entry.file_name().to_string_lossy().starts_with(p))
    })?;
    let text = std::fs::read_to_string(entry.path().join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn limits() -> Vec<Limit> {
    let cpu = |resources: Value, v1, v2| Limit { resources: json!({ "cpu": resources }), controller: "cpu", v1, v2 };
    let memory =
        |resources: Value, v1, v2| Limit { resources: json!({ "memory": resources }), controller: "memory", v1, v2 };
    let mut limits = vec![
        cpu(json!({ "shares": 1024 }), ("cpu.shares", "1024"), ("cpu.weight", "100")),
        cpu(json!({ "shares": 2 }), ("cpu.shares", "2"), ("cpu.weight", "1")),
        cpu(json!({ "quota": 30_000, "period": 50_000 }), ("cpu.cfs_quota_us", "30000"), ("cpu.max", "30000 50000")),
        cpu(json!({ "quota": 30_000, "burst": 20_000 }), ("cpu.cfs_burst_us", "20000"), ("cpu.max.burst", "20000")),
        cpu(json!({ "idle": 1, "shares": 512 }), ("cpu.idle", "1"), ("cpu.idle", "1")),
        cpu(json!({ "quota": -1 }), ("cpu.cfs_quota_us", "-1"), ("cpu.max", "max 100000")),
        memory(json!({ "limit": 67_108_864 }), ("memory.limit_in_bytes", "67108864"), ("memory.max", "67108864")),
        memory(
            json!({ "limit": 67_108_864, "swap": 100_663_296 }),
            ("memory.memsw.limit_in_bytes", "100663296"),
            ("memory.swap.max", "33554432"),
        ),
        memory(json!({ "limit": 67_108_864, "swap": 67_108_864 }), ("", ""), ("memory.swap.max", "0")),
        memory(json!({ "limit": 67_108_864, "swap": -1 }), ("", ""), ("memory.swap.max", "max")),
        memory(
            json!({ "reservation": 33_554_432 }),
            ("memory.soft_limit_in_bytes", "33554432"),
            ("memory.low", "33554432"),
        ),
        memory(json!({ "swappiness": 70 }), ("memory.swappiness", "70"), ("memory.max", "max")),
        memory(json!({ "kernel": 33_554_432, "kernelTCP": 33_554_432 }), ("", ""), ("memory.max", "max")),
        Limit {
            resources: json!({ "cpu": { "cpus": "0", "mems": "0" } }),
            controller: "cpuset",
            v1: ("cpuset.cpus", "0"),
            v2: ("cpuset.cpus", "0"),
        },
        Limit {
            resources: json!({ "cpu": { "cpus": "0", "mems": "0" } }),
            controller: "cpuset",
            v1: ("cpuset.mems", "0"),
            v2: ("cpuset.mems", "0"),
        },
        Limit {
            resources: json!({ "pids": { "limit": 7 } }),
            controller: "pids",
            v1: ("pids.max", "7"),
            v2: ("pids.max", "7"),
        },
        Limit {
            resources: json!({ "pids": { "limit": -1 } }),
            controller: "pids",
            v1: ("pids.max", "max"),
            v2: ("pids.max", "max"),
        },
        Limit {
            resources: json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 4_194_304 }] }),
            controller: "hugetlb",
            v1: ("hugetlb.2MB.limit_in_bytes", "4194304"),
            v2: ("hugetlb.2MB.max", "4194304"),
        },
        Limit {
            resources: json!({ "network": { "classID": 1_048_577 } }),
            controller: "net_cls",
            v1: ("net_cls.classid", "1048577"),
            v2: ("", ""),
        },
        Limit {
            resources: json!({ "unified": { "memory.high": "50331648", "pids.max": "9" } }),
            controller: "memory",
            v1: ("", ""),
            v2: ("memory.high", "50331648"),
        },
        Limit {
            // Who is idle has no weight.
            resources: json!({ "unified": { "cpu.idle": "1", "cpu.weight": "8" } }),
            controller: "cpu",
            v1: ("", ""),
            v2: ("cpu.idle", "1"),
        },
        Limit {
            resources: json!({ "unified": { "memory.oom.group": "1" } }),
            controller: "memory",
            v1: ("", ""),
            v2: ("memory.oom.group", "1"),
        },
    ];
    limits.extend(disk().into_iter().flat_map(throttles));
    limits
}

fn throttles((major, minor): (u64, u64)) -> Vec<Limit> {
    let device = json!([{ "major": major, "minor": minor, "rate": 1_048_576 }]);
    let leak = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
    let line = leak(format!("{major}:{minor} 1048576"));
    let both = leak(format!("{major}:{minor} rbps=1048576 wbps=1048576 riops=max wiops=max"));
    vec![
        Limit {
            resources: json!({ "blockIO": { "throttleReadBpsDevice": device, "throttleWriteBpsDevice": device } }),
            controller: "blkio",
            v1: ("blkio.throttle.read_bps_device", line),
            v2: ("io.max", both),
        },
        Limit {
            resources: json!({ "blockIO": { "throttleWriteIOPSDevice": device } }),
            controller: "blkio",
            v1: ("blkio.throttle.write_iops_device", line),
            v2: ("io.max", leak(format!("{major}:{minor} rbps=max wbps=max riops=max wiops=1048576"))),
        },
    ]
}

/// Known differences of the runc that is Debian's.
fn old_runc_lacks(limit: &Limit) -> bool {
    let text = limit.resources.to_string();
    ["burst", "idle", "oom.group"].iter().any(|word| text.contains(word)) || limit.v2 == ("cpu.weight", "100")
}

#[test]
fn each_limit_stands_in_its_file() {
    let Some(mut stage) = stage() else { return };
    let mut seen = 0;
    for limit in limits().iter().filter(|limit| has(limit)) {
        if !stage.is_ours() && old_runc_lacks(limit) {
            continue;
        }
        stage.config["linux"]["resources"] = limit.resources.clone();
        stage.script(LOOP);
        stage.write_config();
        stage.detached();
        let (file, expected) = if is_v2() { limit.v2 } else { limit.v1 };
        let found = stage.cgroup_file(limit.controller, limit.v1.0, limit.v2.0);
        assert_eq!(found, expected, "{file} of {}", limit.resources);
        stage.delete();
        seen += 1;
    }
    assert!(seen >= 8, "only {seen} limits could be looked at");
}

#[test]
fn a_limit_of_no_tasks_is_one_task() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc before 1.4 takes 0 for no limit") {
        return;
    }
    stage.config["linux"]["resources"]["pids"] = json!({ "limit": 0 });
    stage.script("sleep 5 & echo forked");
    let outcome = stage.run();
    assert!(outcome.err.contains("can't fork"), "{outcome:?}");
}

#[test]
fn impossible_ones_name_their_field_and_leave_nothing() {
    let Some(mut stage) = stage() else { return };
    let mut cases = vec![
        (
            json!({ "memory": { "limit": 33_554_432, "swap": 1_048_576 } }),
            if is_v2() { "memory.swap" } else { "memsw" },
        ),
        (json!({ "hugepageLimits": [{ "pageSize": "../2MB", "limit": 1 }] }), "hugepageLimits"),
        (json!({ "blockIO": { "throttleReadBpsDevice": [{ "major": 4000, "minor": 1, "rate": 1 }] } }), "4000:1"),
    ];
    if is_v2() {
        cases.push((json!({ "unified": { "memory/max": "1" } }), "no slashes"));
        cases.push((json!({ "unified": { "memory": "1" } }), "CONTROLLER.PARAMETER"));
        cases.push((json!({ "unified": { "moon.max": "1" } }), "controller \"moon\" not available"));
    } else {
        cases.push((json!({ "unified": { "memory.max": "1" } }), "cannot use unified on cgroup v1"));
        cases.push((json!({ "memory": { "swappiness": 101 } }), "valid range is 0-100"));
        cases.push((
            json!({ "cpu": { "shares": 1_000_000_000 } }),
            if by_systemd() { "CPUShares" } else { "maximum allowed cpu-shares" },
        ));
    }
    for (resources, words) in cases {
        if !stage.is_ours() && words.contains('.') {
            continue;
        }
        stage.config["linux"]["resources"] = resources.clone();
        let outcome = stage.run();
        assert_eq!(outcome.status, 1, "{resources}: {outcome:?}");
        if stage.is_ours() {
            assert!(outcome.err.contains(words), "{resources}: {outcome:?}");
        }
        stage.is_clean();
    }
}

#[test]
fn an_update_below_the_usage_is_refused_when_asked_to_check() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc's flag for it is in the resources alone, and its words differ by version") {
        return;
    }
    stage.config["linux"]["resources"]["memory"] = json!({ "limit": 134_217_728 });
    stage.script("head -c 20m /dev/zero > /tmp/x; while :; do sleep 0.05; done");
    stage.mount("/tmp", "tmpfs", "tmpfs", &["nosuid"]);
    stage.write_config();
    stage.detached();
    let used = || -> u64 { stage.cgroup_file("memory", "memory.usage_in_bytes", "memory.current").parse().unwrap() };
    eventually("20 MiB are used", || used() > 20 << 20);
    let file = stage.dir.path().join("resources.json");
    std::fs::write(&file, json!({ "memory": { "limit": 10_485_760, "checkBeforeUpdate": true } }).to_string()).unwrap();
    stage.call(&["update", "-r", file.to_str().unwrap(), stage.id()]).fails(1, "rejecting memory limit");
    assert_eq!(stage.status(), "running");
    stage.delete();
}

/// The spec's "Cgroup ownership".
#[test]
fn a_container_that_sees_its_cgroup_owns_it() {
    let Some(mut stage) = stage() else { return };
    if !is_v2() {
        eprintln!("skipped: needs cgroup v2");
        return;
    }
    if !stage.is_ours() && !by_systemd() {
        eprintln!("skipped: runc gives it away with the systemd driver alone");
        return;
    }
    for (readonly, owner) in [(false, 1000), (true, 0)] {
        own_cgroup(&mut stage, readonly);
        stage.detached();
        let uid = |name: &str| {
            let path = std::path::Path::new("/sys/fs/cgroup").join(stage.cgroup_path()).join(name);
            std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(path).unwrap())
        };
        for file in [".", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            assert_eq!(uid(file), owner, "{file}, read-only {readonly}");
        }
        assert_eq!(uid("memory.max"), 0);
        stage.delete();
    }
}

fn own_cgroup(stage: &mut Stage, readonly: bool) {
    stage.namespace("cgroup", Some(""));
    stage.config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    for mount in stage.config["mounts"].as_array_mut().unwrap() {
        if mount["destination"] == "/sys/fs/cgroup" {
            mount["options"] = if readonly { json!(["ro"]) } else { json!(["rw"]) };
        }
    }
    stage.script(LOOP);
    stage.write_config();
}

#[test]
fn a_cgroup_that_is_used_again_keeps_no_device_rules() {
    let Some(mut stage) = stage() else { return };
    if by_systemd() {
        eprintln!("skipped: systemd removes the cgroup with the unit");
        return;
    }
    let all = ["CAP_MKNOD"];
    stage.config["process"]["capabilities"] = json!({ "bounding": all, "effective": all, "permitted": all });
    // The kernel may have no console; whether it may be opened is all that is asked.
    stage.script("mknod /dev/own c 5 1; (: < /dev/own) 2>&1 | grep -q 'not permitted' || echo open");
    stage.write_config();
    let state = stage.id().to_owned();
    let refused = stage.call(&["run", "--keep", &state]);
    if refused.err.contains("flag provided but not defined") {
        eprintln!("skipped: runc before 1.2 has no --keep");
        return;
    }
    assert!(!refused.out.contains("open"), "{refused:?}");
    stage.config["linux"]["resources"]["devices"] = json!([{ "allow": true, "type": "a", "access": "rwm" }]);
    let second = format!("{state}-again");
    stage.write_config();
    let seen = stage.call(&["run", &second]);
    assert!(seen.out.contains("open"), "{seen:?}");
    stage.delete();
}
