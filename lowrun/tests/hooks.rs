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
