//! The command line itself: help, completion, manual, version, where flags may stand, and the exit status of mistakes.

mod stage;

use std::process::Command;

use serde_json::{Value, json};
use stage::{Stage, eventually, stage};

const COMMANDS: [&str; 17] = [
    "checkpoint",
    "create",
    "delete",
    "events",
    "exec",
    "features",
    "kill",
    "list",
    "pause",
    "ps",
    "restore",
    "resume",
    "run",
    "spec",
    "start",
    "state",
    "update",
];

/// A container that goes on until it is killed.
fn running(stage: &mut Stage) -> String {
    stage.script("while :; do sleep 0.05; done");
    stage.detached();
    stage.id().to_owned()
}

#[test]
fn every_command_has_help() {
    let Some(stage) = stage() else { return };
    for command in COMMANDS {
        for words in [&[command, "--help"][..], &[command, "-h"], &["help", command], &["h", command]] {
            let out = stage.call(words).ok().out;
            let mut lines = out.lines();
            assert_eq!(lines.next(), Some("NAME:"), "{words:?}");
            assert!(lines.next().unwrap().contains(command), "{words:?}: {out}");
        }
    }
    for words in [&[][..], &["help"], &["-h"], &["--help"]] {
        let out = stage.call(words).ok().out;
        assert!(COMMANDS.iter().all(|command| out.contains(&format!("  {command} "))), "{words:?}: {out}");
    }
}

#[test]
fn a_command_that_is_not_there_has_a_status_of_its_own() {
    let Some(stage) = stage() else { return };
    for words in [&["moon"][..], &["help", "moon"], &["moon", "-h"]] {
        stage.call(words).fails(3, "No help topic for 'moon'");
    }
}

#[test]
fn called_by_another_name_help_says_that_name() {
    let Some(mut stage) = stage() else { return };
    let copy = stage.own_program();
    let named = copy.with_file_name("runc");
    std::fs::rename(copy, &named).unwrap();
    stage.program = Some(named);
    assert!(stage.call(&["run", "--help"]).ok().out.starts_with("NAME:\n   runc run - "));
}

#[test]
fn the_version_is_as_docker_and_containerd_read_it() {
    let Some(stage) = stage() else { return };
    for words in [&["--version"][..], &["-v"]] {
        let out = stage.call(words).ok().out;
        let lines: Vec<&str> = out.lines().collect();
        let (_, version) = lines[0].split_once(" version ").unwrap();
        assert!(version.starts_with(|digit: char| digit.is_ascii_digit()), "{out}");
        assert!(lines[1].starts_with("commit: "), "{out}");
        assert!(lines[2].starts_with("spec: 1."), "{out}");
    }
}

#[test]
fn completion_is_a_script_that_bash_takes() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("lowrun's own") {
        return;
    }
    let script = stage.dir.path().join("completion");
    std::fs::write(&script, stage.call(&["completion", "bash"]).ok().out).unwrap();
    let program = stage.command().get_program().to_owned();
    let id = running(&mut stage);
    let complete = |line: &str| {
        let test = format!(
            "lowrun() {{ {} \"$@\"; }}; source {}; COMP_WORDS=({line} \"\"); COMP_WORDS[-1]=${{LAST-}}; \
             COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _lowrun; echo \"${{COMPREPLY[*]}}\"",
            program.display(),
            script.display()
        );
        let output = Command::new("bash").args(["--norc", "-c", &test]).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(complete("lowrun").contains("delete"));
    assert!(complete(&format!("lowrun --root {} kill", stage.root().display())).contains(&id));
    assert!(!complete("lowrun completion").contains("kill"));
    for shell in ["zsh", "fish"] {
        assert!(stage.call(&["completion", shell]).ok().out.contains("--preserve-fds") || shell == "fish");
    }
    stage.call(&["completion", "cmd"]).fails(1, "no completion for shell");
    stage.delete();
}

#[test]
fn every_command_has_a_manual_page() {
    let Some(stage) = stage() else { return };
    if stage.differs("runc's are files") {
        return;
    }
    for command in COMMANDS {
        let page = stage.call(&["man", command]).ok().out;
        assert!(page.starts_with(&format!(".TH LOWRUN-{} 8", command.to_uppercase())), "{page}");
    }
    assert!(stage.call(&["man"]).ok().out.contains(".SH EXIT STATUS"));
}

#[test]
fn flags_may_stand_after_the_id() {
    let Some(mut stage) = stage() else { return };
    let id = running(&mut stage);
    stage.call(&["update", &id, "--pids-limit", "77"]).ok();
    assert_eq!(stage.cgroup_file("pids", "pids.max", "pids.max"), "77");
    stage.call(&["kill", &id, "KILL", "--all"]).ok();
    eventually("stopped", || stage.status() == "stopped");
    stage.call(&["kill", "--all", &id, "TERM"]).ok();
    stage.call(&["delete", &id, "--force"]).ok();
    stage.is_clean();
}

#[test]
fn a_root_that_is_the_machines_is_refused() {
    let Some(stage) = stage() else { return };
    if stage.differs("needs runc 1.2") {
        return;
    }
    for root in ["/", "/../..", "//"] {
        let mut command = stage.command();
        command.args(["--root", root, "list"]);
        stage.finish(command).fails(1, "--root");
    }
}

#[test]
fn a_created_container_can_be_paused() {
    let Some(mut stage) = stage() else { return };
    stage.script("exit 3");
    stage.call(&["create", stage.id()]).ok();
    stage.call(&["pause", stage.id()]).ok();
    assert_eq!(stage.status(), "paused");
    stage.call(&["resume", stage.id()]).ok();
    assert_eq!(stage.status(), "created");
    stage.call(&["start", stage.id()]).ok();
    eventually("stopped", || stage.status() == "stopped");
    stage.delete();
}

#[test]
fn an_update_takes_every_flag_of_runc() {
    let Some(mut stage) = stage() else { return };
    let id = running(&mut stage);
    for flags in [
        &["--memory", "64M", "--memory-swap", "-1"][..],
        &["--memory-reservation", "32M"],
        &["--cpu-share", "512", "--cpu-period", "100000", "--cpu-quota", "50000"],
        &["--cpu-quota", "30000"],
        &["--cpuset-cpus", "0", "--cpuset-mems", "0"],
        &["--cpu-quota", "", "--cpu-share", "", "--memory", ""],
        &["--kernel-memory", "1M", "--kernel-memory-tcp", "1M"],
    ] {
        let words = [&["update"], flags, &[id.as_str()]].concat();
        stage.call(&words).ok();
    }
    let quota = stage.cgroup_file("cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(quota == "30000" || quota == "30000 100000", "{quota}");
    for (flags, words) in [
        (&["--memory", "1q"][..], "memory"),
        (&["--cpu-quota", "x"], "cpu-quota"),
        (&["--pids-limit", "x"], "pids-limit"),
        (&["--resources", "/no/such/file"], "/no/such/file"),
        (&["--l3-cache-schema", "L3:0=f"], "RDT"),
    ] {
        let outcome = stage.call(&[&["update"], flags, &[id.as_str()]].concat());
        assert_eq!(outcome.status, 1, "{flags:?}: {outcome:?}");
        assert!(outcome.err.contains(words) || !stage.is_ours(), "{flags:?}: {outcome:?}");
    }
    stage.delete();
}

#[test]
fn the_document_of_spec_is_runcs_in_its_order() {
    let Some(stage) = stage() else { return };
    let _ = std::fs::remove_file(stage.bundle().join("config.json"));
    let write = |flags: &[&str]| {
        let mut command = stage.command();
        command.arg("spec").args(flags);
        stage.finish(command).ok();
        let text = std::fs::read_to_string(stage.bundle().join("config.json")).unwrap();
        std::fs::remove_file(stage.bundle().join("config.json")).unwrap();
        text
    };
    let text = write(&[]);
    let at = |key: &str| text.find(&format!("\n\t\"{key}\": ")).unwrap_or_else(|| panic!("{key}: {text}"));
    let order = ["ociVersion", "process", "root", "hostname", "mounts", "linux"].map(at);
    assert!(order.is_sorted(), "{text}");
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["hostname"], "runc");
    assert_eq!(document["process"]["noNewPrivileges"], true);
    assert_eq!(document["mounts"].as_array().unwrap().len(), 7);
    let rootless: Value = serde_json::from_str(&write(&["--rootless"])).unwrap();
    assert_eq!(rootless["linux"]["uidMappings"], json!([{ "containerID": 0, "hostID": 0, "size": 1 }]));
    assert!(rootless["linux"].get("resources").is_none());
    stage.write_config();
    let mut command = stage.command();
    stage
        .finish({
            command.arg("spec");
            command
        })
        .fails(1, "exists. Remove it first");
}

#[test]
fn debug_lines_go_to_the_log_and_not_to_stderr() {
    let Some(mut stage) = stage() else { return };
    stage.args(&["true"]);
    stage.write_config();
    let log = stage.dir.path().join("log");
    let mut command = stage.command();
    command.arg("--debug").arg("--log").arg(&log).args(["run", stage.id()]);
    let outcome = stage.finish(command).ok();
    assert!(!outcome.err.contains("level=debug"), "{outcome:?}");
    assert!(std::fs::read_to_string(&log).unwrap().contains("level=debug"));
    let mut command = stage.command();
    command.args(["--debug", "--log-format", "json", "run", stage.id()]);
    let outcome = stage.finish(command).ok();
    assert!(outcome.err.lines().all(|line| serde_json::from_str::<Value>(line).unwrap()["level"] == "debug"));
}

#[test]
fn its_processes_have_its_name_also_when_a_descriptor_is_executed() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("it is lowrun's name") {
        return;
    }
    stage.script("while :; do sleep 0.05; done");
    stage.write_config();
    // As the shim does; the descriptor stays open in what it starts.
    let program = std::fs::File::open(stage.command().get_program()).unwrap();
    let program = rustix::io::dup(&program).unwrap();
    stage.program = Some(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&program)).into());
    let mut child = stage.command().args(["run", stage.id()]).spawn().unwrap();
    let comm = || std::fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap();
    eventually("it has its name", || comm() == "lowrun\n");
    eventually("it runs", || stage.call(&["state", stage.id()]).out.contains("running"));
    stage.call(&["kill", stage.id(), "KILL"]).ok();
    child.wait().unwrap();
}
