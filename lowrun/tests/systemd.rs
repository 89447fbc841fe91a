//! The systemd driver: what systemd knows of a container's unit. Runs where `SUBJECT_SYSTEMD_CGROUP` says that there is one.

mod stage;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use stage::{Stage, by_systemd, eventually, is_v2, stage};

const LOOP: &str = "while :; do sleep 0.05; done";

/// A stage on a machine with systemd.
fn staged() -> Option<Stage> {
    if !by_systemd() {
        eprintln!("skipped: needs systemd, and SUBJECT_SYSTEMD_CGROUP=1");
        return None;
    }
    stage()
}

fn unit(stage: &Stage) -> String {
    format!("test-{}.scope", stage.id())
}

/// A property of a unit, as systemctl shows it.
fn property(unit: &str, name: &str) -> String {
    let output = Command::new("systemctl").args(["show", "--value", "-p", name, unit]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn a_container_is_a_scope_with_its_limits() {
    let Some(mut stage) = staged() else { return };
    stage.config["linux"]["resources"] = json!({
        "memory": { "limit": 67_108_864, "reservation": 33_554_432 },
        "cpu": { "quota": 20_000, "period": 100_000, "shares": 2048 },
        "pids": { "limit": 40 },
    });
    stage.script(LOOP);
    stage.write_config();
    stage.detached();
    let unit = unit(&stage);
    for (name, value) in [
        ("ActiveState", "active"),
        ("Slice", "system.slice"),
        ("Delegate", "yes"),
        ("DevicePolicy", "strict"),
        ("CPUQuotaPerSecUSec", "200ms"),
        ("TasksMax", "40"),
    ] {
        assert_eq!(property(&unit, name), value, "{name}");
    }
    if is_v2() {
        assert_eq!(property(&unit, "MemoryMax"), "67108864");
        assert_eq!(property(&unit, "MemoryLow"), "33554432");
    }
    let pid = stage.state()["pid"].to_string();
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(cgroup.lines().any(|line| line.ends_with(&format!("/system.slice/{unit}"))), "{cgroup}");
    stage.delete();
    assert_eq!(property(&unit, "LoadState"), "not-found");
}

#[test]
fn an_update_is_told_to_systemd_and_outlives_its_reload() {
    let Some(mut stage) = staged() else { return };
    stage.config["linux"]["resources"]["memory"] = json!({ "limit": 67_108_864 });
    stage.script(LOOP);
    stage.write_config();
    stage.detached();
    stage.call(&["update", "--memory", "96M", "--pids-limit", "33", "--cpu-quota", "30000", stage.id()]).ok();
    assert!(Command::new("systemctl").arg("daemon-reload").status().unwrap().success());
    assert_eq!(property(&unit(&stage), "TasksMax"), "33");
    assert_eq!(stage.cgroup_file("memory", "memory.limit_in_bytes", "memory.max"), "100663296");
    assert_eq!(stage.cgroup_file("pids", "pids.max", "pids.max"), "33");
    let quota = stage.cgroup_file("cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(quota == "30000" || quota == "30000 100000", "{quota}");
    // The devices, too, are as they were.
    assert_eq!(stage.exec("echo x > /dev/null && echo fine").ok().out, "fine\n");
    stage.delete();
}

#[test]
fn slices_prefixes_and_names_are_the_callers() {
    let Some(mut stage) = staged() else { return };
    let slice = format!("strata-{}.slice", stage.id().replace('-', "_"));
    stage.config["linux"]["cgroupsPath"] = json!(format!("{slice}:pre:{}", stage.id()));
    stage.script(LOOP);
    stage.write_config();
    stage.detached();
    let pid = stage.state()["pid"].to_string();
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let expected = format!("/strata.slice/{slice}/pre-{}.scope", stage.id());
    assert!(cgroup.lines().any(|line| line.ends_with(&expected)), "{cgroup}");
    stage.delete();
    assert_eq!(property(&format!("pre-{}.scope", stage.id()), "LoadState"), "not-found");
    let _ = Command::new("systemctl").args(["stop", &slice, "strata.slice"]).status();
}

#[test]
fn annotations_are_properties() {
    let Some(mut stage) = staged() else { return };
    stage.config["annotations"] = json!({
        "org.systemd.property.TimeoutStopSec": "uint64 7",
        "org.systemd.property.CollectMode": "'inactive-or-failed'",
        "org.systemd.property.After": "['basic.target']",
    });
    stage.script(LOOP);
    stage.write_config();
    stage.detached();
    assert_eq!(property(&unit(&stage), "TimeoutStopUSec"), "7s");
    assert_eq!(property(&unit(&stage), "CollectMode"), "inactive-or-failed");
    assert!(property(&unit(&stage), "After").contains("basic.target"));
    stage.delete();
    for (name, value) in [("Ti", "1"), ("No-Name", "1"), ("TimeoutStopSec", "'seven'"), ("CollectMode", "what ever")] {
        stage.config["annotations"] = json!({ (format!("org.systemd.property.{name}")): value });
        stage.run().fails(1, "org.systemd.property");
        stage.is_clean();
    }
}

#[test]
fn a_property_that_systemd_does_not_know_is_told_and_leaves_nothing() {
    let Some(mut stage) = staged() else { return };
    stage.config["annotations"] = json!({ "org.systemd.property.NoSuchThing": "1" });
    stage.run().fails(1, "NoSuchThing");
    stage.is_clean();
    assert_eq!(property(&unit(&stage), "LoadState"), "not-found");
}

#[test]
fn a_path_that_is_no_unit_is_refused() {
    let Some(mut stage) = staged() else { return };
    for path in ["/a/b", "system.slice:x", "bad--name.slice:x:y"] {
        stage.config["linux"]["cgroupsPath"] = json!(path);
        stage.run().fails(1, "");
        stage.is_clean();
    }
}

#[test]
fn after_an_oom_kill_no_failed_unit_stays() {
    let Some(mut stage) = staged() else { return };
    stage.config["linux"]["resources"]["memory"] = json!({ "limit": 25_165_824, "swap": 25_165_824 });
    stage.script("dd if=/dev/zero of=/dev/null bs=64M count=1");
    assert_eq!(stage.run().status, 137);
    assert_eq!(property(&unit(&stage), "LoadState"), "not-found");
    // And the name can be used again.
    stage.script("echo again");
    assert_eq!(stage.output(), "again\n");
}

/// The directory that freezes a container, its file and the word that does it.
fn freezer(stage: &Stage) -> (PathBuf, &'static str, &'static str) {
    let below = stage.cgroup_path();
    match is_v2() {
        true => (Path::new("/sys/fs/cgroup").join(below), "cgroup.freeze", "1"),
        false => (Path::new("/sys/fs/cgroup/freezer").join(below), "freezer.state", "FROZEN"),
    }
}

#[test]
fn a_scope_that_is_frozen_goes_by_force() {
    let Some(mut stage) = staged() else { return };
    stage.script(LOOP);
    for command in [&["create"][..], &["run", "--detach"]] {
        stage.call(&[command, &[stage.id()]].concat()).ok();
        let (dir, file, word) = freezer(&stage);
        std::fs::write(dir.join(file), word).unwrap();
        eventually("paused", || stage.status() == "paused");
        stage.call(&["delete", stage.id()]).fails(1, "not stopped: paused");
        stage.delete();
        stage.is_clean();
        assert_eq!(property(&unit(&stage), "LoadState"), "not-found");
    }
}

#[test]
fn a_creation_that_was_killed_and_frozen_can_be_deleted() {
    let Some(mut stage) = staged() else { return };
    if stage.differs("its state file is lowrun's") {
        return;
    }
    stage.script(LOOP);
    stage.call(&["create", stage.id()]).ok();
    // As it is before the host side has named the process, in a line of its own.
    let path = stage.root().join(stage.id()).join("state.json");
    let state = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{}\n", state.lines().next().unwrap())).unwrap();
    let (dir, file, word) = freezer(&stage);
    std::fs::write(dir.join(file), word).unwrap();
    stage.delete();
    stage.is_clean();
    assert_eq!(property(&unit(&stage), "LoadState"), "not-found");
}

#[test]
fn a_frozen_directory_of_the_scopes_name_is_not_entered() {
    let Some(mut stage) = staged() else { return };
    let (dir, file, word) = freezer(&stage);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join(file), word).unwrap();
    stage.args(&["true"]);
    stage.write_config();
    // What is frozen there does not end.
    let words = stage.dir.path().join("words");
    let mut run = stage.command();
    let mut run = run.args(["run", stage.id()]).stderr(std::fs::File::create(&words).unwrap()).spawn().unwrap();
    let begun = std::time::Instant::now();
    while run.try_wait().unwrap().is_none() && begun.elapsed() < stage::PATIENCE {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // Else what removes the container would wait for it.
    let _ = run.kill();
    run.wait().unwrap();
    let words = std::fs::read_to_string(words).unwrap();
    assert!(words.contains("unexpectedly frozen"), "{words}");
    assert_eq!(property(&unit(&stage), "LoadState"), "not-found");
    assert!(!stage.root().join(stage.id()).exists());
    // It is somebody else's: it stays.
    std::fs::remove_dir(&dir).unwrap();
    stage.is_clean();
}

#[test]
fn a_container_whose_scope_has_gone_can_be_deleted() {
    let Some(mut stage) = staged() else { return };
    stage.script(LOOP);
    stage.write_config();
    stage.detached();
    // Not stop: that asks by SIGTERM first, which the first process of a pid namespace does not hear.
    assert!(Command::new("systemctl").args(["kill", "-s", "KILL", &unit(&stage)]).status().unwrap().success());
    eventually("it has stopped", || stage.status() == "stopped");
    stage.call(&["delete", stage.id()]).ok();
    stage.is_clean();
}
