//! Ways out of the cgroup, and into that of others.

use std::fs;
use std::process::Command;

use serde_json::json;

use crate::stage::{Stage, eventually, stage};

/// CVE-2023-25809: the hierarchies are writable for the root of a user namespace that has no cgroup namespace.
#[test]
fn the_hierarchies_are_readonly_in_a_user_namespace() {
    let Some(mut stage) = stage() else { return };
    stage.user_namespace(200_000);
    let try_all = "for d in /sys/fs/cgroup /sys/fs/cgroup/*; do [ -h $d ] && continue; [ -d $d ] || continue; \
        mkdir $d/made 2>/tmp/words && echo made in $d && rmdir $d/made; \
        grep -q -i 'read-only' /tmp/words || echo other words: $(cat /tmp/words); done; true";
    stage.script(try_all);
    for cgroup in [None, Some("")] {
        stage.namespace("cgroup", cgroup);
        assert_eq!(stage.output(), "", "with cgroup namespace: {cgroup:?}");
    }
}

/// The same without a user namespace, where without `ro` it can be written: so the look above is no empty one.
#[test]
fn the_hierarchies_are_writable_only_where_that_was_asked_for() {
    let Some(mut stage) = stage() else { return };
    stage.script("for d in /sys/fs/cgroup/*; do [ -h $d ] || mkdir $d/made && rmdir $d/made && echo made; done 2>/dev/null; true");
    assert_eq!(stage.output(), "");
    let cgroup = stage.config["mounts"].as_array_mut().unwrap().last_mut().unwrap();
    assert_eq!(cgroup["type"], "cgroup");
    cgroup["options"] = json!(["nosuid", "noexec", "nodev"]);
    assert!(stage.output().contains("made"));
}

/// Hierarchies in which a process is not below the container's cgroup.
fn escaped(stage: &Stage, pid: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let inside = format!("/{}", stage.cgroup_path());
    text.lines().filter(|line| !line.contains(&inside)).map(str::to_owned).collect()
}

/// CVE-2023-6476, CVE-2025-47291: by an annotation, or by a user namespace, a container is outside of its limits.
#[test]
fn no_combination_leaves_the_cgroup() {
    for in_user_namespace in [false, true] {
        for cgroup_namespace in [None, Some("")] {
            let Some(mut stage) = stage() else { return };
            if in_user_namespace {
                stage.user_namespace(200_000);
            }
            stage.namespace("cgroup", cgroup_namespace);
            stage.config["annotations"] = json!({
                "io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw": "true",
                "run.oci.systemd.subgroup": "elsewhere",
                "run.oci.delegate-cgroup": "/",
                "org.systemd.property.MemoryMax": "uint64 18446744073709551615",
            });
            stage.config["linux"]["resources"]["pids"] = json!({ "limit": 33 });
            stage.config["linux"]["resources"]["memory"] = json!({ "limit": 67_108_864 });
            stays_inside(&mut stage);
        }
    }
}

fn stays_inside(stage: &mut Stage) {
    stage.args(&["sleep", "1000"]);
    stage.detached();
    let first = stage.state()["pid"].to_string();
    let file = stage.dir.path().join("pid");
    stage.call(&["exec", "--detach", "--pid-file", file.to_str().unwrap(), stage.id(), "sleep", "1000"]).ok();
    let second = fs::read_to_string(&file).unwrap();
    for pid in [&first, &second] {
        assert_eq!(escaped(stage, pid), Vec::<String>::new());
    }
    assert_eq!(stage.cgroup_file("pids", "pids.max", "pids.max"), "33");
    assert_eq!(stage.cgroup_file("memory", "memory.limit_in_bytes", "memory.max"), "67108864");
    // A process in all the namespaces and not in the cgroup is seen to be outside.
    let join = ["--all", "--no-fork", "--target", &first, "sleep", "1000"];
    let mut outside = Command::new("nsenter").args(join).spawn().unwrap();
    let pid = outside.id().to_string();
    eventually("it has joined", || fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim() == "sleep");
    assert!(!escaped(stage, &pid).is_empty());
    outside.kill().unwrap();
    outside.wait().unwrap();
    stage.delete();
}
