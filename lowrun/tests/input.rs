//! Bad bundles and bad words: one line that names the thing, runc's exit status, and nothing left behind.

mod stage;

use std::os::unix::fs::symlink;

use serde_json::{Value, json};
use stage::{Stage, stage};

/// Runs a broken bundle; gives the last error line of the log.
fn broken(stage: &Stage) -> Value {
    let (outcome, log) = stage.logged(&["run", stage.id()]);
    assert_eq!(outcome.status, 1, "{outcome:?}");
    stage.is_clean();
    let told = outcome.err.lines().filter(|line| line.starts_with("lowrun: ")).count();
    assert_eq!(told, usize::from(stage.is_ours()), "{outcome:?}");
    let last = log.into_iter().rfind(|line| line["level"] == "error").expect("an error line");
    assert!(!last["msg"].as_str().unwrap().contains('\n'), "{last}");
    last
}

/// What is changed, the code, and what the message must name.
type Case = (fn(&mut Value), &'static str, &'static str);

const CASES: &[Case] = &[
    (|c| c["ociVersion"] = json!("9.9.9"), "SPEC_INVALID", "ociVersion"),
    (|c| c["ociVersion"] = json!(""), "SPEC_INVALID", "ociVersion"),
    (|c| c["root"] = json!(null), "SPEC_INVALID", "root"),
    (|c| c["process"] = json!(null), "SPEC_INVALID", "process"),
    (|c| c["process"]["cwd"] = json!(""), "SPEC_INVALID", "process.cwd"),
    (|c| c["process"]["cwd"] = json!("tmp"), "SPEC_INVALID", "process.cwd"),
    (|c| c["process"]["args"] = json!([]), "SPEC_INVALID", "process.args"),
    (|c| c["process"]["args"] = json!("true"), "SPEC_INVALID", "config.json"),
    (|c| c["process"]["env"] = json!(["NOTHING"]), "SPEC_INVALID", "process.env[0]"),
    (|c| c["process"]["user"]["uid"] = json!(4_294_967_295_u32), "USER_INVALID", "process.user"),
    (|c| c["process"]["user"]["uid"] = json!(-1), "SPEC_INVALID", "config.json"),
    (|c| c["process"]["user"]["uid"] = json!("root"), "SPEC_INVALID", "config.json"),
    (
        |c| c["process"]["rlimits"] = json!([{ "type": "RLIMIT_MOON", "soft": 1, "hard": 1 }]),
        "SPEC_INVALID",
        "rlimits[0]",
    ),
    (|c| c["process"]["rlimits"] = json!([{ "type": "RLIMIT_CORE", "soft": 2, "hard": 1 }]), "LIMIT_INVALID", "rlimit"),
    (|c| c["process"]["oomScoreAdj"] = json!(1001), "LIMIT_INVALID", "oomScoreAdj"),
    (|c| c["process"]["args"] = json!(["no-such-program"]), "COMMAND_NOT_FOUND", "executable file not found in $PATH"),
    (|c| c["process"]["args"] = json!(["/no/such"]), "COMMAND_NOT_FOUND", "no such file or directory"),
    (|c| c["process"]["args"] = json!(["/etc/passwd"]), "COMMAND_NOT_EXECUTABLE", "permission denied"),
    (|c| c["process"]["args"] = json!(["/etc"]), "COMMAND_NOT_EXECUTABLE", "is a directory"),
    (|c| c["linux"]["namespaces"] = json!([{ "type": "moon" }]), "SPEC_INVALID", "linux.namespaces[0]"),
    (|c| c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "pid" })), "SPEC_INVALID", "duplicated"),
    (|c| c["linux"]["namespaces"][1]["path"] = json!("/no/such/ns"), "NAMESPACE_FAILED", "/no/such/ns"),
    (|c| c["linux"]["namespaces"][1]["path"] = json!("/etc/passwd"), "NAMESPACE_FAILED", "/etc/passwd"),
    (|c| c["linux"]["namespaces"][1]["path"] = json!("/proc/self/ns/mnt"), "NAMESPACE_FAILED", "network"),
    (|c| c["mounts"][1]["options"] = json!(["moon=1"]), "MOUNT_FAILED", "/dev"),
    (|c| c["mounts"][1]["destination"] = json!("/"), "SPEC_INVALID", "mounts[1]"),
    (|c| c["linux"]["devices"] = json!([{ "path": "/dev/x", "type": "z" }]), "SPEC_INVALID", "linux.devices[0]"),
    (|c| c["linux"]["resources"]["devices"][0]["access"] = json!("q"), "SPEC_INVALID", "linux.resources.devices[0]"),
    (|c| c["linux"]["sysctl"] = json!({ "kernel.core_pattern": "x" }), "SPEC_INVALID", "kernel.core_pattern"),
    (|c| c["linux"]["sysctl"] = json!({ "net.ipv4.no_such_thing": "1" }), "SPEC_INVALID", "no_such_thing"),
    (|c| c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_MOON" }), "SECCOMP_FAILED", "SCMP_ACT_MOON"),
    (|c| c["linux"]["rootfsPropagation"] = json!("upward"), "SPEC_INVALID", "rootfsPropagation"),
    (
        |c| c["linux"]["uidMappings"] = json!([{ "containerID": 0, "hostID": 0, "size": 1 }]),
        "SPEC_INVALID",
        "uidMappings",
    ),
    (|c| c["hooks"] = json!({ "prestart": [{ "path": "relative" }] }), "SPEC_INVALID", "hooks.prestart[0]"),
    (|c| c["hooks"] = json!({ "prestart": [{ "path": "/no/such/hook" }] }), "HOOK_FAILED", "/no/such/hook"),
    (|c| c["linux"]["netDevices"] = json!({ "eth-none": {} }), "NAMESPACE_FAILED", "eth-none"),
    (|c| c["linux"]["netDevices"] = json!({ "a/b": {} }), "SPEC_INVALID", "linux.netDevices"),
    (|c| c["linux"]["intelRdt"] = json!({}), "UNSUPPORTED", "linux.intelRdt"),
    (|c| c["mounts"][0]["options"] = json!(["idmap"]), "SPEC_INVALID", "mounts[0]"),
    (|c| c["root"]["path"] = json!("missing"), "ROOTFS_INVALID", "missing"),
    (|c| c["root"]["path"] = json!("config.json"), "ROOTFS_INVALID", "config.json"),
];

#[test]
fn every_broken_bundle_is_told_by_its_field() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("the codes are lowrun's") {
        return;
    }
    let sound = stage.config.clone();
    for (index, (break_it, code, words)) in CASES.iter().enumerate() {
        stage.config = sound.clone();
        break_it(&mut stage.config);
        let last = broken(&stage);
        assert_eq!(last["code"], *code, "case {index}: {last}");
        assert!(last["msg"].as_str().unwrap().contains(words), "case {index}: {words:?} is not in {last}");
        assert!(last["step"].as_str().unwrap().starts_with("create:"), "case {index}: {last}");
        let layer = last["layer"].as_str().unwrap();
        assert!(matches!(layer, "runtime" | "kernel"), "case {index}: {last}");
    }
    stage.config = sound;
    stage.run().ok();
}

#[test]
fn a_missing_or_damaged_config_is_told_by_its_path() {
    let Some(stage) = stage() else { return };
    let mut command = stage.command();
    command.args(["run", stage.id()]);
    stage.finish(command).fails(1, "config.json");
    for text in ["", "{", "[]", "7", "\u{feff}{}", "{\"process\":7}"] {
        std::fs::write(stage.bundle().join("config.json"), text).unwrap();
        let mut command = stage.command();
        command.args(["run", stage.id()]);
        assert_eq!(stage.finish(command).status, 1, "{text:?}");
        stage.is_clean();
    }
    let mut command = stage.command();
    command.args(["run", "--bundle", "/no/such/bundle", stage.id()]);
    assert_eq!(stage.finish(command).status, 1);
}

#[test]
fn a_root_that_is_a_symlink_is_refused() {
    let Some(mut stage) = stage() else { return };
    symlink("rootfs", stage.bundle().join("link")).unwrap();
    stage.config["root"]["path"] = json!("link");
    stage.run().fails(1, "symlink");
    stage.is_clean();
}

#[test]
fn ids_that_are_paths_are_refused() {
    let Some(stage) = stage() else { return };
    let long = "x".repeat(1025);
    for id in ["", ".", "..", "a/b", "../a", "a b", "ä", long.as_str()] {
        let outcome = stage.call(&["run", id]);
        assert_eq!(outcome.status, 1, "{id:?}: {outcome:?}");
        assert_eq!(stage.call(&["state", id]).status, 1);
        assert_eq!(stage.call(&["delete", "--force", id]).status, 1, "{id:?}");
    }
    stage.is_clean();
}

#[test]
fn half_made_and_foreign_states_can_be_removed() {
    let Some(stage) = stage() else { return };
    let dir = stage.root().join(stage.id());
    for text in [None, Some(""), Some("{"), Some("{\"format\":99}"), Some("[]")] {
        std::fs::create_dir_all(&dir).unwrap();
        if let Some(text) = text {
            std::fs::write(dir.join("state.json"), text).unwrap();
        }
        assert_eq!(stage.call(&["state", stage.id()]).status, 1, "{text:?}");
        stage.call(&["list"]).ok();
        stage.call(&["run", stage.id()]).fails(1, "already exists");
        if stage.is_ours() || text.is_none() {
            stage.call(&["delete", "--force", stage.id()]).ok();
        } else {
            std::fs::remove_dir_all(&dir).unwrap();
        }
        stage.is_clean();
    }
}

#[test]
fn a_removal_that_was_killed_at_its_end_is_gone_through_again() {
    let Some(stage) = stage() else { return };
    if stage.differs("a promise of lowrun") {
        return;
    }
    std::fs::create_dir_all(stage.root().join(stage.id())).unwrap();
    stage.call(&["delete", stage.id()]).fails(1, "does not exist");
    stage.is_clean();
}

#[test]
fn a_killed_lowrun_leaves_what_delete_removes() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("a promise of lowrun") {
        return;
    }
    stage.script("while :; do sleep 0.05; done");
    stage.write_config();
    for microseconds in (0..6_000).step_by(150) {
        let mut child =
            stage.command().args(["create", stage.id()]).stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_micros(microseconds));
        let _ = child.kill();
        let _ = child.wait();
        stage.call(&["delete", "--force", stage.id()]).ok();
        stage.is_clean();
    }
}

#[test]
fn wrong_words_are_told() {
    let Some(stage) = stage() else { return };
    for words in [
        &["moon"][..],
        &["run"],
        &["run", "a", "b"],
        &["state", "--moon", "x"],
        &["kill"],
        &["--log-format", "moon", "list"],
    ] {
        let outcome = stage.call(words);
        assert_ne!(outcome.status, 0, "{words:?}");
    }
    for words in [&["--help"][..], &["--version"], &["run", "--help"]] {
        assert!(!stage.call(words).ok().out.is_empty(), "{words:?}");
    }
}

#[test]
fn the_log_is_runcs_with_our_fields() {
    let Some(mut stage) = stage() else { return };
    stage.args(&["no-such-program"]);
    let (_, log) = stage.logged(&["run", stage.id()]);
    let last = log.last().unwrap();
    assert_eq!(last["level"], "error");
    assert!(last["time"].as_str().unwrap().contains('T'));
    assert!(last["msg"].as_str().unwrap().contains("executable file not found in $PATH"));
    if stage.is_ours() {
        assert_eq!(last["code"], "COMMAND_NOT_FOUND");
        assert_eq!(last["step"], "create:program");
        assert_eq!(last["message"], "exec: \"no-such-program\"");
        assert_eq!(last["causes"], json!(["executable file not found in $PATH"]));
    }
}

#[test]
fn a_sampled_trace_gets_the_spans() {
    let Some(stage) = stage() else { return };
    if stage.differs("lowrun's own") {
        return;
    }
    stage.write_config();
    let log = stage.dir.path().join("trace");
    let mut command = stage.command();
    command.arg("--log").arg(&log).args(["--log-format", "json", "run", stage.id()]);
    command.env("TRACEPARENT", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    stage.finish(command).ok();
    let text = std::fs::read_to_string(&log).unwrap();
    let spans: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for name in ["plan", "clone", "mounts", "pivot", "cgroup-create", "delete"] {
        let span = spans.iter().find(|span| span["span"] == name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(span["layer"], "runtime");
        assert!(span["start_ns"].as_u64().unwrap() > 0 && span["duration_ns"].is_u64());
    }
}

#[test]
fn an_unknown_apparmor_profile_is_told() {
    let Some(mut stage) = stage() else { return };
    stage.config["process"]["apparmorProfile"] = json!("no-such-profile");
    let outcome = stage.run();
    assert_eq!(outcome.status, 1);
    assert!(outcome.err.to_lowercase().contains("apparmor"), "{outcome:?}");
    stage.is_clean();
}
