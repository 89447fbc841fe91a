//! Hooks: when they run, what they get, and what their failure does.

mod stage;

use serde_json::{Value, json};
use stage::{Stage, eventually, stage};

/// A hook that appends its point, the state's status and its pid namespace to a file of the host.
fn recorder(stage: &Stage, point: &str) -> Value {
    let file = stage.dir.path().join("points");
    let script = format!(
        "read -r state; status=${{state#*status\\\":\\\"}}; echo {point} ${{status%%\\\"*}} >> {}",
        file.display()
    );
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script] })
}

fn points(stage: &Stage) -> Vec<String> {
    let text = std::fs::read_to_string(stage.dir.path().join("points")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn every_point_comes_in_its_order() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc before 1.2 runs poststart at creation") {
        return;
    }
    // Hooks in the container's namespaces write through a bind of the same file.
    let file = stage.dir.path().join("points");
    std::fs::write(&file, "").unwrap();
    let path = file.to_str().unwrap().to_owned();
    stage.mount(&path, "bind", &path, &["bind"]);
    stage.config["hooks"] = json!({
        "prestart": [recorder(&stage, "prestart")],
        "createRuntime": [recorder(&stage, "createRuntime")],
        "createContainer": [recorder(&stage, "createContainer")],
        "startContainer": [recorder(&stage, "startContainer")],
        "poststart": [recorder(&stage, "poststart")],
        "poststop": [recorder(&stage, "poststop")],
    });
    stage.script("while :; do sleep 0.05; done");
    stage.call(&["create", stage.id()]).ok();
    assert_eq!(points(&stage), ["prestart creating", "createRuntime creating", "createContainer creating"]);
    stage.call(&["start", stage.id()]).ok();
    eventually("five points", || points(&stage).len() == 5);
    let mut later = points(&stage)[3..].to_vec();
    later.sort();
    assert_eq!(later, ["poststart running", "startContainer created"]);
    stage.delete();
    assert_eq!(points(&stage)[5], "poststop stopped");
}

#[test]
fn the_state_names_the_process_and_the_bundle() {
    let Some(mut stage) = stage() else { return };
    let file = stage.dir.path().join("state");
    stage.config["annotations"] = json!({ "a.b": "c" });
    let script = format!("cat > {}", file.display());
    stage.config["hooks"] = json!({ "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", script] }] });
    stage.script("while :; do sleep 0.05; done");
    stage.detached();
    let state: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(state["id"], stage.id());
    assert_eq!(state["bundle"], stage.bundle().to_str().unwrap());
    assert_eq!(state["pid"], stage.state()["pid"]);
    assert_eq!(state["annotations"]["a.b"], "c");
    stage.delete();
}

#[test]
fn a_failing_hook_stops_the_creation_and_nothing_is_left() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc loses the error of startContainer") {
        return;
    }
    for point in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart"] {
        let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", "echo because >&2; exit 5"] });
        stage.config["hooks"] = json!({});
        stage.config["hooks"][point] = json!([hook]);
        stage.script("while :; do sleep 0.05; done");
        let outcome = stage.call(&["run", "--detach", stage.id()]);
        assert_eq!(outcome.status, 1, "{point}: {outcome:?}");
        assert!(outcome.err.contains("5"), "{point}: {outcome:?}");
        stage.is_clean();
    }
}

#[test]
fn a_hook_is_ended_when_its_time_is_up() {
    let Some(mut stage) = stage() else { return };
    stage.config["hooks"] =
        json!({ "createRuntime": [{ "path": "/bin/sleep", "args": ["sleep", "60"], "timeout": 1 }] });
    let begun = std::time::Instant::now();
    stage.run().fails(1, "1");
    assert!(begun.elapsed().as_secs() < 10);
    stage.is_clean();
}

#[test]
fn a_hook_may_say_much() {
    let Some(mut stage) = stage() else { return };
    let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", "head -c 200000 /dev/zero >&2"], "timeout": 20 });
    stage.config["hooks"] = json!({ "createRuntime": [hook] });
    stage.args(&["true"]);
    stage.run().ok();
    stage.is_clean();
}

#[test]
fn a_failing_poststop_hook_does_not_stop_the_removal() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc ends at the first that fails") {
        return;
    }
    stage.config["hooks"] = json!({ "poststop": [{ "path": "/bin/false" }, recorder(&stage, "second")] });
    stage.script("true");
    stage.run().ok();
    stage.is_clean();
    assert_eq!(points(&stage), ["second stopped"]);
}

#[test]
fn hooks_run_where_the_spec_says() {
    let Some(mut stage) = stage() else { return };
    let file = stage.dir.path().join("where");
    std::fs::write(&file, "").unwrap();
    let path = file.to_str().unwrap().to_owned();
    stage.mount(&path, "bind", &path, &["bind"]);
    let hook = |point: &str| json!([{ "path": "/bin/sh", "args": ["sh", "-c", format!("echo {point} $(readlink /proc/self/ns/uts) >> {path}")] }]);
    stage.config["hooks"] = json!({ "createRuntime": hook("host"), "createContainer": hook("container") });
    stage.script("true");
    stage.run().ok();
    let text = std::fs::read_to_string(&file).unwrap();
    let own = std::fs::read_link("/proc/self/ns/uts").unwrap().display().to_string();
    assert!(text.contains(&format!("host {own}")), "{text}");
    assert!(text.contains("container uts:") && !text.contains(&format!("container {own}")), "{text}");
}

#[test]
fn a_hook_of_a_program_in_the_foreground_can_be_signalled() {
    let Some(mut stage) = stage() else { return };
    let file = stage.dir.path().join("mask");
    let script = format!("grep SigBlk /proc/self/status > {}", file.display());
    let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script] });
    stage.config["hooks"] = json!({ "createRuntime": [hook] });
    stage.args(&["true"]);
    stage.run().ok();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "SigBlk:\t0000000000000000\n");
}

#[test]
fn a_container_whose_poststart_fails_at_start_is_forgotten() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc before 1.2 keeps it") {
        return;
    }
    stage.config["hooks"] = json!({ "poststart": [{ "path": "/bin/false" }] });
    stage.script("while :; do sleep 0.05; done");
    stage.call(&["create", stage.id()]).ok();
    stage.call(&["start", stage.id()]).fails(1, "error running poststart hook #0:");
    stage.call(&["state", stage.id()]).fails(1, "does not exist");
    stage.is_clean();
}

#[test]
fn a_run_whose_poststart_fails_ends_what_runs() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc before 1.2 runs poststart at creation") {
        return;
    }
    let pid = stage.dir.path().join("pid");
    let script = format!("tr -dc '0-9a-z:,\"' | grep -o '\"pid\":[0-9]*' | tr -dc 0-9 > {}; exit 7", pid.display());
    stage.config["hooks"] = json!({ "poststart": [{ "path": "/bin/sh", "args": ["sh", "-c", script],
                                                    "env": ["PATH=/usr/bin:/bin"] }] });
    stage.script("while :; do sleep 0.05; done");
    for words in [&["run"][..], &["run", "--detach"]] {
        let words = [words, &[stage.id()]].concat();
        stage.call(&words).fails(1, "error running poststart hook #0:");
        let pid = std::fs::read_to_string(&pid).unwrap();
        assert!(!pid.is_empty() && !std::path::Path::new("/proc").join(&pid).exists(), "{pid:?} lives");
        stage.call(&["state", stage.id()]).fails(1, "does not exist");
        stage.is_clean();
    }
}

#[test]
fn a_poststart_hook_that_fails_ends_no_other_container() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc removes it by its id") {
        return;
    }
    // The hook puts another container of the same name in the place of its own.
    let command = stage.command();
    let words = command.get_args().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ");
    let lowrun = format!("{} {words}", command.get_program().display());
    let script = format!("{lowrun} delete -f {0} && {lowrun} create {0} >/dev/null 2>&1; exit 1", stage.id());
    stage.config["hooks"] = json!({ "poststart": [{ "path": "/bin/sh", "args": ["sh", "-c", script] }] });
    stage.script("while :; do sleep 0.05; done");
    for words in [&["start"][..], &["run"], &["run", "--detach"]] {
        if words == ["start"] {
            stage.call(&["create", stage.id()]).ok();
        }
        stage.call(&[words, &[stage.id()]].concat()).fails(1, "error running poststart hook #0:");
        assert_eq!(stage.status(), "created", "{words:?}");
        stage.delete();
        stage.is_clean();
    }
}

/// Names each descriptor from 3 to 9 that a shell has; its own are from 10 on.
fn descriptors_to(file: &std::path::Path) -> String {
    format!("for n in 3 4 5 6 7 8 9; do [ -e /proc/self/fd/$n ] && echo $n; done > {}; true", file.display())
}

#[test]
fn what_is_passed_to_the_program_is_no_hooks() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc passes it to hooks in the container too") {
        return;
    }
    let dir = stage.dir.path().join("seen");
    std::fs::create_dir(&dir).unwrap();
    let path = dir.to_str().unwrap();
    stage.mount(path, "bind", path, &["bind"]);
    let seen = |point: &str| std::fs::read_to_string(dir.join(point)).unwrap();
    let points = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart"];
    for point in points {
        let script = descriptors_to(&dir.join(point));
        stage.config["hooks"][point] = json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }]);
    }
    stage.script(&descriptors_to(&dir.join("program")));
    stage.call_after("exec 3</etc 4</usr 5</etc", &["run", "--preserve-fds", "2", stage.id()]).ok();
    for point in points {
        assert_eq!(seen(point), "", "{point}");
    }
    assert_eq!(seen("program"), "3\n4\n");
    stage.is_clean();
}

#[test]
fn a_container_that_is_still_made_is_not_entered() {
    let Some(mut stage) = stage() else { return };
    // A hook while the root is the host's still, as long as the file is there.
    let wait = stage.dir.path().join("wait");
    let script = format!(
        "touch {0}.met; n=0; while [ -e {0} ] && [ $n -lt 200 ]; do sleep 0.05; n=$((n+1)); done",
        wait.display()
    );
    stage.config["hooks"] = json!({ "createContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", script],
                                                          "env": ["PATH=/usr/bin:/bin"] }] });
    stage.script("while :; do sleep 0.05; done");
    for words in [&["create"][..], &["run", "--detach"]] {
        std::fs::write(&wait, "").unwrap();
        let _ = std::fs::remove_file(wait.with_extension("met"));
        stage.write_config();
        let words = [words, &[stage.id()]].concat();
        let mut maker = stage.command().args(&words).stdout(std::process::Stdio::null()).spawn().unwrap();
        eventually("the hook runs", || wait.with_extension("met").exists());
        let exec = || {
            let mut command = stage.command();
            command.args(["exec", stage.id(), "true"]);
            stage.finish(command)
        };
        let told = if stage.is_ours() {
            "cannot exec in a stopped container: it is still being made"
        } else {
            "does not exist"
        };
        exec().fails(255, told);
        std::fs::remove_file(&wait).unwrap();
        assert!(maker.wait().unwrap().success());
        exec().ok();
        stage.delete();
        stage.is_clean();
    }
}

#[test]
fn a_poststart_hook_may_enter_the_container() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc before 1.2 runs poststart at creation") {
        return;
    }
    let command = stage.command();
    let words = command.get_args().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ");
    let script = format!("{} {words} exec {} true", command.get_program().display(), stage.id());
    stage.config["hooks"] = json!({ "poststart": [{ "path": "/bin/sh", "args": ["sh", "-c", script] }] });
    stage.script("while :; do sleep 0.05; done");
    stage.detached();
    stage.delete();
    stage.call(&["create", stage.id()]).ok();
    stage.call(&["start", stage.id()]).ok();
    stage.delete();
    stage.is_clean();
}
