//! Limits: what the spec says stands in the cgroup's files, and bites.

mod stage;

use serde_json::json;
use stage::{by_systemd, eventually, is_v2, stage};

const LOOP: &str = "while :; do sleep 0.05; done";

#[test]
fn limits_stand_in_the_files() {
    let Some(mut stage) = stage() else { return };
    stage.config["linux"]["resources"]["memory"] = json!({ "limit": 33_554_432, "reservation": 16_777_216 });
    stage.config["linux"]["resources"]["cpu"] =
        json!({ "shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0" });
    stage.config["linux"]["resources"]["pids"] = json!({ "limit": 42 });
    stage.script(LOOP);
    stage.detached();
    assert_eq!(stage.cgroup_file("memory", "memory.limit_in_bytes", "memory.max"), "33554432");
    assert_eq!(stage.cgroup_file("memory", "memory.soft_limit_in_bytes", "memory.low"), "16777216");
    assert_eq!(stage.cgroup_file("pids", "pids.max", "pids.max"), "42");
    assert_eq!(stage.cgroup_file("cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    let quota = stage.cgroup_file("cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(quota == "50000" || quota == "50000 100000", "{quota}");
    let id = stage.id().to_owned();
    stage.call(&["update", "--memory", "64M", "--pids-limit", "7", "--cpu-quota", "20000", &id]).ok();
    assert_eq!(stage.cgroup_file("memory", "memory.limit_in_bytes", "memory.max"), "67108864");
    assert_eq!(stage.cgroup_file("pids", "pids.max", "pids.max"), "7");
    let file = stage.dir.path().join("resources.json");
    std::fs::write(&file, json!({ "memory": { "limit": 50_331_648 } }).to_string()).unwrap();
    stage.call(&["update", "-r", file.to_str().unwrap(), &id]).ok();
    assert_eq!(stage.cgroup_file("memory", "memory.limit_in_bytes", "memory.max"), "50331648");
    stage.delete();
}

#[test]
fn cgroups_deeper_than_a_path_is_long_are_removed() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc cannot") {
        return;
    }
    stage.script(LOOP);
    stage.detached();
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let mode = rustix::fs::Mode::from_raw_mode(0o755);
    let top = stage.cgroups().into_iter().next().unwrap();
    let mut here = rustix::fs::open(&top, flags, mode).unwrap();
    let name = "d".repeat(200);
    for _ in 0..25 {
        rustix::fs::mkdirat(&here, &name, mode).unwrap();
        here = rustix::fs::openat(&here, &name, flags, mode).unwrap();
    }
    drop(here);
    stage.delete();
    stage.is_clean();
}

#[test]
fn a_limit_of_processes_bites() {
    let Some(mut stage) = stage() else { return };
    stage.config["linux"]["resources"]["pids"] = json!({ "limit": 3 });
    stage.script("sleep 9 & sleep 9 & sleep 9 & sleep 9 & echo done");
    let outcome = stage.run();
    assert!(outcome.err.contains("can't fork"), "{outcome:?}");
}

#[test]
fn a_limit_of_memory_kills() {
    let Some(mut stage) = stage() else { return };
    stage.config["linux"]["resources"]["memory"] = json!({ "limit": 25_165_824, "swap": 25_165_824 });
    stage.script("dd if=/dev/zero of=/dev/null bs=64M count=1");
    let outcome = stage.run();
    assert_eq!(outcome.status, 137, "{outcome:?}");
}

#[test]
fn devices_are_denied_unless_allowed() {
    let Some(mut stage) = stage() else { return };
    let all = ["CAP_MKNOD"];
    stage.config["process"]["capabilities"] = json!({ "bounding": all, "effective": all, "permitted": all });
    stage.script(
        "mknod /dev/mem0 c 1 1; (head -c 1 /dev/mem0) 2>&1; mknod /dev/loop-x b 7 99; (head -c1 /dev/loop-x) 2>&1",
    );
    let seen = stage.run();
    assert_eq!(seen.out.matches("Operation not permitted").count(), 2, "{seen:?}");
    // Also without a rule that denies all: a list of allowances is a list of allowances.
    stage.config["linux"]["resources"]["devices"] =
        json!([{ "allow": true, "type": "c", "major": 1, "minor": 5, "access": "r" }]);
    assert_eq!(stage.run().out.matches("Operation not permitted").count(), 2);
    stage.config["linux"]["resources"]["devices"] = json!([{ "allow": false, "access": "rwm" }, { "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm" }]);
    // Whether the kernel has the driver, or only knows the number, is another matter.
    stage.script("mknod /dev/own c 10 229 && (: < /dev/own)");
    assert!(!stage.run().err.contains("not permitted"));
}

#[test]
fn a_cgroup_with_processes_is_not_taken_over() {
    let Some(mut first) = stage() else { return };
    let Some(mut second) = stage() else { return };
    if first.differs("runc before 1.2 only warns") {
        return;
    }
    first.script(LOOP);
    first.detached();
    second.config["linux"]["cgroupsPath"] = first.config["linux"]["cgroupsPath"].clone();
    second.run().fails(1, "not empty");
    assert_eq!(first.status(), "running");
    first.delete();
}

#[test]
fn cgroups_that_the_container_made_go_too() {
    let Some(mut stage) = stage() else { return };
    stage.script(LOOP);
    stage.detached();
    for dir in stage.cgroups() {
        std::fs::create_dir_all(dir.join("made/inside")).unwrap();
    }
    stage.delete();
    stage.is_clean();
}

#[test]
fn a_relative_path_is_below_the_callers_cgroup() {
    let Some(mut stage) = stage() else { return };
    if by_systemd() {
        eprintln!("skipped: with systemd a path is no path");
        return;
    }
    let name = format!("{}-relative", stage.id());
    stage.config["linux"]["cgroupsPath"] = json!(name);
    stage.args(&["cat", "/proc/self/cgroup"]);
    let seen = stage.output();
    assert!(seen.lines().any(|line| line.ends_with(&format!("/{name}"))), "{seen}");
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    for line in own.lines() {
        let path = line.rsplit(':').next().unwrap().trim_end_matches('/');
        let hierarchy = line.split(':').next().unwrap();
        if let Some(inside) = seen.lines().find(|line| line.split(':').next() == Some(hierarchy)) {
            let inside = inside.rsplit(':').next().unwrap();
            // On v2 beside it: what has processes may have no limited children.
            let beside = is_v2().then(|| path.rsplit_once('/').map_or("", |(parent, _)| parent));
            let expected = format!("{}/{name}", beside.unwrap_or(path));
            assert!(inside == expected || inside == path || path.is_empty(), "{line} {inside}");
        }
    }
}

#[test]
fn what_has_used_up_its_cpu_time_dies_all_the_same() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc waits until the killed container is given time again") {
        return;
    }
    stage.script("for i in `seq 60`; do while :; do :; done & done; while :; do sleep 1; done");
    for first in [&["delete", "--force"][..], &["kill"]] {
        stage.detached();
        let busy = || stage.cgroup_file("cpu", "cpu.stat", "cpu.stat");
        eventually("all of them are there", || stage.call(&["ps", stage.id()]).out.lines().count() > 60);
        // One thousandth of a processor, and more than a hundred to be paid back when it comes to dying.
        stage.call(&["update", "--cpu-period", "1000000", "--cpu-quota", "1000", stage.id()]).ok();
        eventually("they are held back", || !busy().contains("nr_throttled 0"));
        let begun = std::time::Instant::now();
        let signal = if first == ["kill"] { &["KILL"][..] } else { &[] };
        stage.call(&[first, &[stage.id()], signal].concat()).ok();
        if first == ["kill"] {
            eventually("stopped", || stage.status() == "stopped");
        }
        assert!(begun.elapsed() < stage::PATIENCE / 4, "{first:?}: {:?}", begun.elapsed());
        stage.delete();
    }
}

/// Makes a cgroup below the container's, where there are limits of CPU time and where there is a freezer, and moves all
/// that is in the container there.
fn move_below(stage: &stage::Stage) -> Vec<std::path::PathBuf> {
    let mut dirs = stage.cgroups();
    dirs.retain(|dir| is_v2() || dir.join("cpu.cfs_quota_us").exists() || dir.join("freezer.state").exists());
    dirs.iter().for_each(|dir| std::fs::create_dir_all(dir.join("below")).unwrap());
    for dir in &dirs {
        eventually("all have moved", || {
            let there = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap();
            there.lines().for_each(|pid| drop(std::fs::write(dir.join("below/cgroup.procs"), pid)));
            there.is_empty()
        });
    }
    dirs
}

#[test]
fn what_has_used_up_the_time_of_a_cgroup_of_its_own_dies_all_the_same() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc waits until the killed container is given time again") {
        return;
    }
    stage.script("for i in `seq 60`; do while :; do :; done & done; while :; do sleep 1; done");
    stage.detached();
    eventually("all of them are there", || stage.call(&["ps", stage.id()]).out.lines().count() > 60);
    for dir in move_below(&stage) {
        let below = dir.join("below");
        if dir.join("cpu.cfs_quota_us").exists() {
            std::fs::write(below.join("cpu.cfs_period_us"), "1000000").unwrap();
            std::fs::write(below.join("cpu.cfs_quota_us"), "1000").unwrap();
        } else if is_v2() {
            std::fs::write(dir.join("cgroup.subtree_control"), "+cpu").unwrap();
            std::fs::write(below.join("cpu.max"), "1000 1000000").unwrap();
        }
    }
    let busy = || stage.cgroup_file("cpu", "below/cpu.stat", "below/cpu.stat");
    eventually("they are held back", || !busy().contains("nr_throttled 0"));
    let begun = std::time::Instant::now();
    stage.call(&["kill", stage.id(), "KILL"]).ok();
    eventually("stopped", || stage.status() == "stopped");
    assert!(begun.elapsed() < stage::PATIENCE / 4, "{:?}", begun.elapsed());
    stage.delete();
}

#[test]
fn a_kill_of_the_first_process_lifts_no_limits_of_others() {
    let Some(mut stage) = stage() else { return };
    stage.script(LOOP);
    stage.detached();
    let mut limits = Vec::new();
    for dir in move_below(&stage) {
        // It could be another container's, which is not killed. Two controllers may be one hierarchy, seen twice.
        std::fs::create_dir_all(dir.join("other")).unwrap();
        let _ = std::fs::write(dir.join("cgroup.subtree_control"), "+cpu");
        let files = [("cpu.cfs_quota_us", "50000"), ("cpu.max", "50000 100000"), ("freezer.state", "FROZEN")];
        let files = files.map(|(file, limit)| (dir.join("other").join(file), limit));
        limits.extend(files.into_iter().filter(|(file, _)| file.exists()));
    }
    limits.iter().for_each(|(file, limit)| std::fs::write(file, limit).unwrap());
    assert!(!limits.is_empty());
    stage.call(&["kill", stage.id(), "KILL"]).ok();
    eventually("stopped", || stage.status() == "stopped");
    for (file, limit) in &limits {
        match std::fs::read_to_string(file) {
            Ok(text) => assert_eq!(text.trim(), *limit, "{}", file.display()),
            // A scope goes with its last process, and all below with it.
            Err(error) => assert!(by_systemd(), "{}: {error}", file.display()),
        }
    }
    stage.delete();
    stage.is_clean();
}

#[test]
fn what_is_frozen_beside_the_first_process_does_not_hold_it_up() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc waits for ever for what is frozen on version 1") {
        return;
    }
    let admin = json!(["CAP_SYS_ADMIN"]);
    stage.config["process"]["capabilities"] = json!({ "bounding": admin, "effective": admin, "permitted": admin });
    // Also one in a PID namespace of its own, as a container in a container has.
    for program in ["sleep 1000", "busybox unshare -pf sleep 1000"] {
        stage.script(&format!("{program} & {LOOP}"));
        stage.detached();
        let dirs = freeze_beside(&stage, "sleep\x001000\0");
        assert!(!dirs.is_empty());
        let begun = std::time::Instant::now();
        stage.call(&["kill", stage.id(), "KILL"]).ok();
        eventually("stopped", || stage.status() == "stopped");
        assert!(begun.elapsed() < stage::PATIENCE / 4, "{program}: {:?}", begun.elapsed());
        stage.call(&["delete", stage.id()]).ok();
        stage.is_clean();
    }
}

/// Moves the container's processes of this command line into a frozen cgroup of its own.
fn freeze_beside(stage: &stage::Stage, line: &str) -> Vec<std::path::PathBuf> {
    let is_freezer =
        |dir: &std::path::Path| ["freezer.state", "cgroup.freeze"].iter().any(|file| dir.join(file).exists());
    let mut dirs = stage.cgroups();
    dirs.retain(|dir| is_freezer(dir));
    for dir in &dirs {
        let beside = dir.join("beside");
        std::fs::create_dir_all(beside.join("below")).unwrap();
        let is_it = |pid: &&str| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|text| text == line);
        eventually("it has moved", || {
            let there = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap();
            let pids: Vec<&str> = there.lines().filter(is_it).collect();
            pids.iter().for_each(|pid| std::fs::write(beside.join("below/cgroup.procs"), pid).unwrap());
            !pids.is_empty()
        });
        for (file, word, told) in [("freezer.state", "FROZEN", "FROZEN"), ("cgroup.freeze", "1", "1")] {
            let file = beside.join(file);
            if file.exists() {
                std::fs::write(&file, word).unwrap();
                eventually("it is frozen", || std::fs::read_to_string(&file).unwrap().trim() == told);
            }
        }
    }
    dirs
}

#[test]
fn what_is_frozen_in_a_cgroup_of_its_own_dies_all_the_same() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc waits for ever for what is frozen on version 1") {
        return;
    }
    stage.script(LOOP);
    for forced in [false, true] {
        stage.detached();
        for dir in move_below(&stage) {
            for (file, word) in [("freezer.state", "FROZEN"), ("cgroup.freeze", "1")] {
                let file = dir.join("below").join(file);
                if file.exists() {
                    std::fs::write(file, word).unwrap();
                }
            }
        }
        if !forced {
            stage.call(&["kill", stage.id(), "KILL"]).ok();
            eventually("stopped", || stage.status() == "stopped");
        }
        stage.delete();
        stage.is_clean();
    }
}

#[test]
fn impossible_limits_are_told() {
    let Some(mut stage) = stage() else { return };
    for resources in [
        json!({ "memory": { "limit": 33_554_432, "swap": 1_048_576 } }),
        json!({ "cpu": { "cpus": "4000" } }),
        json!({ "cpu": { "quota": 1, "period": 1 } }),
    ] {
        stage.config["linux"]["resources"] = resources.clone();
        let (outcome, log) = stage.logged(&["run", stage.id()]);
        assert_eq!(outcome.status, 1, "{resources}: {outcome:?}");
        if stage.is_ours() {
            let last = log.last().unwrap();
            assert_eq!(last["code"], "LIMIT_INVALID", "{last}");
        }
        stage.is_clean();
    }
}

#[test]
fn an_exec_enters_the_cgroup_and_a_sub_cgroup_on_request() {
    let Some(mut stage) = stage() else { return };
    stage.script(LOOP);
    stage.detached();
    let seen = stage.exec("cat /proc/self/cgroup").ok().out;
    let expected = format!("/{}", stage.cgroup_path());
    assert!(seen.lines().any(|line| line.ends_with(&expected)), "{seen}");
    if stage.cgroups().iter().any(|dir| dir.join("pids.max").exists() && dir.join("tasks").exists()) {
        for dir in stage.cgroups() {
            // Where one hierarchy has two names it is there already.
            std::fs::create_dir_all(dir.join("sub")).unwrap();
        }
        let outcome = stage.call(&["exec", "--cgroup", "pids:sub", stage.id(), "cat", "/proc/self/cgroup"]).ok();
        assert!(outcome.out.lines().any(|line| line.ends_with(&format!("pids:{expected}/sub"))), "{outcome:?}");
        stage.call(&["exec", "--cgroup", "pids:../../x", stage.id(), "true"]).fails(255, "cgroup");
    }
    eventually("gone", || {
        stage.delete();
        stage.leftovers().is_empty()
    });
}

#[test]
fn who_joins_follows_the_first_process_unless_a_cgroup_was_asked_for() {
    let Some(mut stage) = stage() else { return };
    if !is_v2() || by_systemd() {
        eprintln!("skipped: about cgroup v2 with directories of the runtime's own");
        return;
    }
    stage.script("while :; do sleep 0.05; done");
    stage.detached();
    let pid = stage.state()["pid"].to_string();
    let of_pid = || {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        std::path::PathBuf::from(format!("/sys/fs/cgroup{}", text.trim().trim_start_matches("0::")))
    };
    let dir = of_pid();
    let below = dir.join("below");
    std::fs::create_dir(&below).unwrap();
    // All of them: a shell's child is there as well.
    let move_all = |from: &std::path::Path, to: &std::path::Path| {
        eventually("all have moved", || {
            for pid in std::fs::read_to_string(from.join("cgroup.procs")).unwrap().lines() {
                let _ = std::fs::write(to.join("cgroup.procs"), pid);
            }
            std::fs::read_to_string(from.join("cgroup.procs")).unwrap().is_empty()
        });
    };
    move_all(&dir, &below);
    std::fs::write(dir.join("cgroup.subtree_control"), "+pids").unwrap();
    assert!(stage.exec("cat /proc/self/cgroup").ok().out.trim().ends_with("/below"));
    let refused = stage.call(&["exec", "--cgroup", "/", stage.id(), "true"]);
    assert_ne!(refused.status, 0, "{refused:?}");
    let (_, words) = refused.err.split_once(" adding pid ").unwrap_or_default();
    assert!(words.contains(" to cgroups: ") && words.contains("device or resource busy"), "{refused:?}");
    let elsewhere = dir.with_file_name("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    move_all(&below, &elsewhere);
    eventually("the cgroup is removed", || {
        let _ = std::fs::remove_dir(&below);
        std::fs::remove_dir(&dir).is_ok()
    });
    assert!(stage.exec("cat /proc/self/cgroup").ok().out.trim().ends_with("/elsewhere"));
    stage.delete();
    eventually("the other cgroup is empty", || std::fs::remove_dir(&elsewhere).is_ok());
}
