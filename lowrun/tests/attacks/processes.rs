//! What processes of a container can see of a runtime that comes in.

use std::fs;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::canary::Canary;
use crate::stage::{Stage, eventually, stage};

/// Looks at each new process for a descriptor behind stdio that can be followed (their numbers are no secret), notes it
/// and reads through it. A socket cannot be followed, and is told by what it is not: one that is closed between two looks
/// must not pass for something else. Only words of the shell: a program for each look would be too slow.
const WATCH: &str = "echo > /tmp/hits; echo > /tmp/watching; while :; do for p in /proc/[0-9]*; do \
    case $p in /proc/1|/proc/self|/proc/$$) continue;; esac; \
    for f in $p/fd/[3-9] $p/fd/[1-9][0-9]; do \
        [ -e \"$f\" ] && { [ -d \"$f\" ] || [ -f \"$f\" ] || [ -c \"$f\" ] || [ -p \"$f\" ] || [ -b \"$f\" ]; } && \
            echo \"$f\" >> /tmp/hits && read -r word < \"$f/file\" && echo $word >> /tmp/hits; \
    done; done; done 2>/dev/null";

fn watched(stage: &Stage) -> String {
    fs::read_to_string(stage.rootfs().join("tmp/hits")).unwrap_or_default().trim().to_owned()
}

fn watch(stage: &mut Stage) {
    stage.script(WATCH);
    stage.detached();
    eventually("the watcher runs", || stage.rootfs().join("tmp/watching").exists());
}

/// A runtime of two lines that takes no care: it joins with a directory of the host open.
fn careless_join(stage: &Stage, canary: &Canary, how: &[&str]) -> Child {
    let script = "exec 9<\"$0\"; exec nsenter --target \"$@\" sleep 1000";
    let pid = stage.state()["pid"].to_string();
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(canary.path()).arg(pid).args(how).stdin(Stdio::null());
    command.spawn().unwrap()
}

fn is_hidden_from_the_watcher(stage: &Stage, careless: &[&str]) {
    let canary = Canary::new(stage);
    for _ in 0..40 {
        stage.call(&["exec", stage.id(), "true"]).ok();
    }
    assert_eq!(watched(stage), "");
    let mut careless = careless_join(stage, &canary, careless);
    eventually("the careless runtime is seen through", || watched(stage).contains("host"));
    careless.kill().unwrap();
    careless.wait().unwrap();
    stage.delete();
}

/// CVE-2016-9962: the joining process's descriptors are read.
#[test]
fn a_joining_process_shows_nothing() {
    let Some(mut stage) = stage() else { return };
    watch(&mut stage);
    // Whoever has more capabilities than the watcher is safe from it: the careless runtime has dropped its own.
    let dropped = ["--pid", "setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    is_hidden_from_the_watcher(&stage, &dropped);
}

/// CVE-2016-9962 where it counts most: the container's root may trace everything of its own user namespace.
#[test]
fn a_joining_process_shows_nothing_to_root_of_a_user_namespace() {
    let Some(mut stage) = stage() else { return };
    stage.user_namespace(200_000);
    let all = json!(["CAP_SYS_PTRACE", "CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_KILL"]);
    stage.config["process"]["capabilities"] = json!({ "bounding": all, "effective": all, "permitted": all });
    watch(&mut stage);
    is_hidden_from_the_watcher(&stage, &["--all"]);
}

/// CVE-2016-9962, of the first process: between create and start it is the runtime's, with the runtime's descriptors.
#[test]
fn a_process_that_waits_for_start_shows_nothing() {
    let Some(mut stage) = stage() else { return };
    let look = "for link in /proc/1/fd/* /proc/1/exe /proc/1/cwd /proc/1/root; do readlink $link; done; true";
    stage.args(&["sleep", "1000"]);
    stage.call(&["create", stage.id()]).ok();
    let outcome = stage.exec(look);
    assert_eq!(outcome.out, "", "{outcome:?}");
    // Once it is the program, there is nothing to hide.
    stage.call(&["start", stage.id()]).ok();
    eventually("the program shows itself", || stage.exec(look).out.contains("/bin/busybox\n"));
    stage.delete();
}
