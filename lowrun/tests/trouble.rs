//! When the machine or the caller is in the wrong state: one line that names the thing, a status, and nothing left; and
//! lowrun killed at every system call of a creation.

mod stage;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use stage::{Stage, eventually, stage};

const LOOP: &str = "while :; do sleep 0.05; done";

/// A call that must fail: its status, and the last error of the log.
fn refused(stage: &Stage, words: &[&str]) -> (i32, Value) {
    let (outcome, log) = stage.logged(words);
    let told: Vec<&str> = outcome.err.lines().filter(|line| line.starts_with("lowrun: ")).collect();
    assert_eq!(told.len(), 1, "{words:?}: {outcome:?}");
    let last = log.into_iter().rfind(|line| line["level"] == "error").unwrap_or_else(|| panic!("{words:?}: no error"));
    for field in ["layer", "step", "code", "message"] {
        assert!(!last[field].as_str().unwrap().is_empty(), "{words:?}: {last}");
    }
    (outcome.status, last)
}

/// What is called, its exit status, the code, and what the line must name.
type Case<'a> = (&'a [&'a str], i32, &'a str, &'a str);

fn all_refused(stage: &Stage, cases: &[Case<'_>]) {
    for (words, status, code, named) in cases {
        let words: Vec<&str> = words.iter().map(|word| if *word == "ID" { stage.id() } else { word }).collect();
        let (was, line) = refused(stage, &words);
        assert_eq!((was, line["code"].as_str().unwrap()), (*status, *code), "{words:?}: {line}");
        assert!(line["msg"].as_str().unwrap().contains(named), "{words:?}: {named:?} is not in {line}");
    }
}

#[test]
fn a_container_that_is_not_there_is_named() {
    let Some(stage) = stage() else { return };
    if stage.differs("the codes are lowrun's") {
        return;
    }
    let missing = "does not exist";
    let code = "CONTAINER_NOT_FOUND";
    all_refused(
        &stage,
        &[
            (&["start", "ID"], 1, code, missing),
            (&["state", "ID"], 1, code, missing),
            (&["kill", "ID"], 1, code, missing),
            (&["delete", "ID"], 1, code, missing),
            (&["exec", "ID", "true"], 255, code, missing),
            (&["ps", "ID"], 1, code, missing),
            (&["pause", "ID"], 1, code, missing),
            (&["resume", "ID"], 1, code, missing),
            (&["events", "ID"], 1, code, missing),
            (&["update", "--memory", "1M", "ID"], 1, code, missing),
            (&["checkpoint", "ID"], 1, code, missing),
        ],
    );
    stage.call(&["delete", "--force", stage.id()]).ok();
}

#[test]
fn a_container_in_the_wrong_state_is_named() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("the codes are lowrun's") {
        return;
    }
    stage.script(LOOP);
    stage.detached();
    all_refused(
        &stage,
        &[
            (&["create", "ID"], 1, "CONTAINER_EXISTS", "already exists"),
            (&["run", "ID"], 1, "CONTAINER_EXISTS", "already exists"),
            (&["restore", "ID"], 1, "CONTAINER_EXISTS", "already exists"),
            (&["start", "ID"], 1, "CONTAINER_RUNNING", "already running"),
            (&["delete", "ID"], 1, "CONTAINER_RUNNING", "not stopped: running"),
            (&["resume", "ID"], 1, "CONTAINER_NOT_RUNNING", "not paused"),
            (&["kill", "ID", "MOON"], 1, "INVALID_ARGUMENT", "MOON"),
            (&["exec", "ID"], 255, "INVALID_ARGUMENT", "args cannot be empty"),
            (&["exec", "--user", "root", "ID", "true"], 255, "USER_INVALID", "root"),
            (&["exec", "--cwd", "/nowhere", "ID", "true"], 255, "CWD_INVALID", "/nowhere"),
            (
                &["exec", "--cap", "CAP_MOON", "--process", "/no/such.json", "ID"],
                255,
                "INVALID_ARGUMENT",
                "/no/such.json",
            ),
            (&["exec", "--preserve-fds", "9", "ID", "true"], 255, "INVALID_ARGUMENT", "preserved-fd"),
            (&["exec", "--cgroup", "../up", "ID", "true"], 255, "INVALID_ARGUMENT", "../up"),
            (
                &["exec", "--console-socket", "/no/such.sock", "-d", "-t", "ID", "true"],
                255,
                "INVALID_ARGUMENT",
                "/no/such.sock",
            ),
            (&["exec", "ID", "no-such-program"], 255, "COMMAND_NOT_FOUND", "no-such-program"),
            (&["update", "--memory", "1", "--memory-swap", "x", "ID"], 1, "INVALID_ARGUMENT", "memory-swap"),
            (&["ps", "--format", "moon", "ID"], 1, "INVALID_ARGUMENT", "format"),
        ],
    );
    assert_eq!(stage.status(), "running");
    stage.call(&["kill", stage.id(), "KILL"]).ok();
    eventually("stopped", || stage.status() == "stopped");
    all_refused(
        &stage,
        &[
            (&["start", "ID"], 1, "CONTAINER_NOT_RUNNING", "has stopped"),
            (&["kill", "ID"], 1, "CONTAINER_NOT_RUNNING", "not running"),
            (&["exec", "ID", "true"], 255, "CONTAINER_NOT_RUNNING", "stopped"),
            (&["pause", "ID"], 1, "CONTAINER_NOT_RUNNING", "not running"),
            (&["resume", "ID"], 1, "CONTAINER_NOT_RUNNING", "not paused"),
            (&["update", "--memory", "1M", "ID"], 1, "CONTAINER_NOT_RUNNING", "not running"),
            (&["events", "ID"], 1, "CONTAINER_NOT_RUNNING", "not running"),
            (&["checkpoint", "ID"], 1, "CONTAINER_NOT_RUNNING", "stopped state"),
        ],
    );
    stage.delete();
    stage.is_clean();
}

#[test]
fn paths_of_the_caller_that_lead_nowhere_are_named() {
    let Some(stage) = stage() else { return };
    if stage.differs("the codes are lowrun's") {
        return;
    }
    for (words, named) in [
        (&["--pid-file", "/no/such/dir/pid"][..], "/no/such/dir/pid"),
        (&["--pidfd-socket", "/no/such.sock"], "/no/such.sock"),
        (&["--console-socket", "/no/such.sock"], "console socket"),
        // One that lowrun has opened itself by then is not the caller's.
        (&["--preserve-fds", "1"], "preserved-fd 3"),
        (&["--preserve-fds", "99"], "preserved-fd"),
        (&["--preserve-fds", "4294967293"], "preserved-fd"),
        (&["--preserve-fds", "-1"], "preserve-fds"),
    ] {
        let (status, line) = refused(&stage, &[&["run"], words, &[stage.id()]].concat());
        assert_eq!(status, 1, "{line}");
        assert!(line["msg"].as_str().unwrap().contains(named), "{line}");
        stage.is_clean();
    }
    let mut command = stage.command();
    command.args(["--log", "/no/such/dir/log", "run", stage.id()]);
    stage.finish(command).fails(1, "/no/such/dir/log");
    std::fs::remove_file(stage.bundle().join("config.json")).unwrap();
    std::fs::create_dir(stage.bundle().join("config.json")).unwrap();
    let mut command = stage.command();
    command.args(["run", stage.id()]);
    stage.finish(command).fails(1, "config.json");
    stage.is_clean();
}

#[test]
fn a_pid_file_that_cannot_be_written_leaves_no_process() {
    let Some(mut stage) = stage() else { return };
    stage.script(LOOP);
    for words in [&["create"][..], &["run", "--detach"]] {
        let words = [words, &["--pid-file", "/no/such/dir/pid", stage.id()]].concat();
        stage.call(&words).fails(1, "/no/such/dir");
        stage.is_clean();
    }
    stage.detached();
    let exec = ["exec", "--detach", "--pid-file", "/no/such/dir/pid", stage.id(), "sleep", "1000"];
    stage.call(&exec).fails(255, "/no/such/dir");
    eventually("the program of the exec is gone", || !stage.exec("ps").out.contains("sleep 1000"));
    stage.delete();
}

/// Changes what the state file says.
fn edit_state(stage: &Stage, edit: impl Fn(&mut Value)) {
    let path = stage.root().join(stage.id()).join("state.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [mut state, named] = <[Value; 2]>::try_from(lines).unwrap();
    state["init"] = named["init"].clone();
    edit(&mut state);
    std::fs::write(&path, format!("{state}\n")).unwrap();
}

#[test]
fn a_creation_that_was_killed_before_it_named_its_process_can_be_deleted() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("the state file is lowrun's") {
        return;
    }
    stage.script(LOOP);
    stage.detached();
    stage.call(&["kill", stage.id(), "KILL"]).ok();
    eventually("stopped", || stage.status() == "stopped");
    edit_state(&stage, |state| state["init"] = Value::Null);
    stage.call(&["delete", stage.id()]).ok();
    stage.is_clean();
}

#[test]
fn a_container_whose_state_is_of_another_version_is_ended_by_force() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("the state file is lowrun's") {
        return;
    }
    stage.script(LOOP);
    stage.detached();
    // Of a process that is dead and not yet reaped it is empty.
    let words = format!("/proc/{}/cmdline", stage.state()["pid"]);
    let lives = || std::fs::read(&words).is_ok_and(|words| !words.is_empty());
    edit_state(&stage, |state| state["format"] = 99.into());
    stage.call(&["delete", stage.id()]).fails(1, "another version");
    assert!(lives());
    stage.delete();
    assert!(!lives());
    stage.is_clean();
}

#[test]
fn a_full_disk_is_named_and_nothing_stays_on_it() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("the words are lowrun's") {
        return;
    }
    stage.args(&["true"]);
    stage.write_config();
    std::fs::create_dir_all(stage.root()).unwrap();
    let script = format!(
        "set -e; mount -t tmpfs -o size=64k tmpfs {root}; dd if=/dev/zero of={root}/.full bs=1k 2>/dev/null || true; \
         status=0; {program} --root {root} run {id} || status=$?; ls {root}; exit $status",
        root = stage.root().display(),
        program = stage.command().get_program().display(),
        id = stage.id()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).current_dir(stage.bundle());
    let outcome = stage.finish(command).fails(1, "no space left on device");
    assert!(outcome.err.contains(stage.root().to_str().unwrap()) && outcome.err.lines().count() == 1, "{outcome:?}");
    assert_eq!(outcome.out, "");
    stage.is_clean();
}

#[test]
fn without_permission_the_path_is_named() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("the words are lowrun's") {
        return;
    }
    stage.args(&["true"]);
    stage.write_config();
    std::fs::create_dir_all(stage.root()).unwrap();
    let as_nobody = |stage: &Stage| {
        let program = stage.command().get_program().to_owned();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(program);
        command.arg("--root").arg(stage.root()).args(["run", stage.id(), "--bundle"]).arg(stage.bundle());
        command.current_dir("/");
        stage.finish(command)
    };
    let set_mode = |mode| std::fs::set_permissions(stage.dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    set_mode(0o700);
    as_nobody(&stage).fails(1, "config.json: open: permission denied");
    set_mode(0o755);
    let outcome = as_nobody(&stage).fails(1, "permission denied");
    assert!(outcome.err.contains(stage.root().to_str().unwrap()), "{outcome:?}");
    stage.is_clean();
}

/// A call of strace, which writes a file for each process, or kills at a system call.
fn traced(stage: &Stage, options: &[&str], words: &[&str]) -> Command {
    let mut command = Command::new("strace");
    command.args(options).arg(stage.command().get_program()).arg("--root").arg(stage.root());
    command.args(words).arg(stage.id()).current_dir(stage.bundle());
    command
}

/// The system calls of each process of an undisturbed call, lowrun's own first: each by its name, and which of that name
/// it is in that process.
fn calls_of(stage: &Stage, words: &[&str], follows: bool) -> Vec<Vec<(String, usize)>> {
    let dir = stage.dir.path().join("traces");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir(&dir).unwrap();
    let file = dir.join("trace");
    let follow = if follows { "-ff" } else { "-q" };
    stage.finish(traced(stage, &[follow, "-o", file.to_str().unwrap()], words)).ok();
    let mut traces: Vec<_> = std::fs::read_dir(&dir).unwrap().flatten().map(|entry| entry.path()).collect();
    // By their pids: with numbers of the same length that is the order of their birth, but for a wrap.
    traces.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
    traces.iter().map(|path| calls_in(&std::fs::read_to_string(path).unwrap())).collect()
}

fn calls_in(trace: &str) -> Vec<(String, usize)> {
    let mut counts = std::collections::BTreeMap::new();
    // Other lines are of signals and of the end.
    let names = trace.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
    let names = names.filter_map(|line| Some(line.split_once('(')?.0.to_owned()));
    let mut calls = Vec::new();
    for name in names {
        let count = counts.entry(name.clone()).or_insert(0);
        *count += 1;
        // What strace itself begins with; and of an end nothing is left to be killed.
        if !name.starts_with("exit") && (name.as_str(), *count) != ("execve", 1) {
            calls.push((name, *count));
        }
    }
    calls
}

/// Processes that name the container, as lowrun's clones do by the command line that they were born with.
fn processes_of(stage: &Stage) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(stage.id())).collect()
}

/// Kills at a system call; whether it was lowrun's own process that died of it.
fn kill_at(stage: &Stage, follow: &str, (name, count): &(String, usize), words: &[&str]) -> bool {
    let inject = format!("inject={name}:signal=SIGKILL:when={count}");
    let outcome = stage.finish(traced(stage, &[follow, "-o", "/dev/null", "-e", &inject], words));
    outcome.status == -1
}

fn nothing_is_left(stage: &Stage, what: &str) {
    eventually(&format!("nothing is left of {what}"), || {
        processes_of(stage).is_empty() && stage.leftovers().is_empty()
    });
}

fn has_strace() -> bool {
    let is_there = Path::new("/usr/bin/strace").exists();
    if !is_there {
        eprintln!("skipped: needs strace");
    }
    is_there
}

/// A container that takes what the others do not: ids that are mapped, sources that the host side opens, hooks.
fn with_a_user_namespace(stage: &mut Stage) {
    let source = stage.dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    stage.user_namespace(500_000);
    stage.namespace("cgroup", Some(""));
    stage.mount("/mnt", "bind", source.to_str().unwrap(), &["bind"]);
    for point in ["createRuntime", "createContainer", "poststop"] {
        stage.config["hooks"][point] = serde_json::json!([{ "path": "/bin/true" }]);
    }
}

#[test]
fn killed_at_any_system_call_it_leaves_what_delete_removes() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("a promise of lowrun") || !has_strace() {
        return;
    }
    stage.script(LOOP);
    for what in ["a plain one", "one in a user namespace"] {
        // The first creation makes what all later ones find: the root, the cgroup's parents.
        stage.call(&["create", stage.id()]).ok();
        stage.delete();
        let calls = calls_of(&stage, &["create"], false).remove(0);
        stage.delete();
        assert!(calls.len() > 30, "{calls:?}");
        let mut missed = Vec::new();
        for call in &calls {
            if !kill_at(&stage, "-q", call, &["create"]) {
                missed.push(call);
            }
            stage.call(&["delete", "--force", stage.id()]).ok();
            nothing_is_left(&stage, &format!("{what}, killed at {call:?}"));
        }
        // How often it has to wait differs from one time to another: then there is one call less of a kind.
        assert!(missed.len() * 20 < calls.len(), "not killed at {missed:?}");
        if what == "a plain one" {
            with_a_user_namespace(&mut stage);
        }
    }
}

#[test]
fn a_container_side_that_is_killed_at_any_system_call_leaves_nothing() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("a promise of lowrun") || !has_strace() {
        return;
    }
    stage.args(&["true"]);
    stage.run().ok();
    let mut all = calls_of(&stage, &["run"], true);
    let (own, inside) = (all.remove(0), all.remove(0));
    // Whoever comes to that number first is killed: so those that lowrun itself has fewer of.
    let inside: Vec<_> = inside.iter().filter(|call| !own.contains(call)).collect();
    assert!(inside.iter().any(|(name, _)| name == "pivot_root"), "{inside:?}");
    for call in inside {
        // Nobody deletes it: the one that made it does, if it lives.
        if kill_at(&stage, "-f", call, &["run"]) {
            stage.call(&["delete", "--force", stage.id()]).ok();
        }
        nothing_is_left(&stage, &format!("one whose inner side was killed at {call:?}"));
    }
}

#[test]
fn a_removal_that_is_killed_at_any_system_call_can_be_done_again() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("a promise of lowrun") || !has_strace() {
        return;
    }
    stage.script(LOOP);
    let words = ["delete", "--force"];
    stage.detached();
    let calls = calls_of(&stage, &words, false).remove(0);
    for call in &calls {
        stage.detached();
        // How often it waits for an end is not the same each time: then there is one wait less, and it is done.
        let _ = kill_at(&stage, "-q", call, &words);
        stage.call(&["delete", "--force", stage.id()]).ok();
        nothing_is_left(&stage, &format!("one whose removal was killed at {call:?}"));
    }
}

#[test]
fn a_fault_of_the_host_side_is_told_once_however_slow_the_host_side_is() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("lowrun has two sides") {
        return;
    }
    if !has_strace() {
        return;
    }
    stage.config["linux"]["resources"]["cpu"] = serde_json::json!({ "cpus": "9999" });
    stage.write_config();
    let mut command = Command::new("strace");
    // As on a machine with too much to do, between the fault and the end of the container side.
    command.args(["-o", "/dev/null", "-e", "inject=pidfd_send_signal:delay_enter=200000"]);
    command.arg(stage.command().get_program()).arg("--root").arg(stage.root());
    command.args(["run", stage.id()]).current_dir(stage.bundle());
    let outcome = stage.finish(command).fails(1, "cpuset.cpus");
    assert_eq!(outcome.err.lines().count(), 1, "{outcome:?}");
    stage.is_clean();
}
