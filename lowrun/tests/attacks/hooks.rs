//! What hooks get from a container that is not trusted.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::stage::{Stage, eventually, stage};

/// Points whose hooks run on the host, with the host's programs.
const HOST_POINTS: [&str; 5] = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];

fn seen_at(stage: &Stage, point: &str) -> PathBuf {
    stage.dir.path().join(format!("seen-{point}"))
}

/// A hook that notes its environment, its working directory, its shell and its descriptors, at once and whole.
/// The shell keeps its own from 10 on.
fn auditor(stage: &Stage, point: &str, env: Value) -> Value {
    let file = seen_at(stage, point);
    let host = fs::canonicalize("/bin/sh").unwrap();
    let script = format!(
        "{{ export -p; echo cwd=$(pwd -P); [ /proc/self/exe -ef {1} ] && echo shell of the host; \
         for n in 3 4 5 6 7 8 9; do [ -e /proc/self/fd/$n ] && echo fd=$n; done; }} > {0}.new; mv {0}.new {0}",
        file.display(),
        host.display()
    );
    json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": env }])
}

fn audit(stage: &mut Stage, env: Value) {
    let hooks = HOST_POINTS.map(|point| (point.to_owned(), auditor(stage, point, env.clone())));
    stage.config["hooks"] = Value::Object(hooks.into_iter().collect());
    stage.args(&["sleep", "1000"]);
    // What lowrun's caller has open is no hook's either.
    for words in [&["create"][..], &["start"], &["delete", "--force"]] {
        stage.call_after("exec 3</etc 5</usr", &[words, &[stage.id()]].concat()).ok();
    }
    eventually("every hook has run", || HOST_POINTS.iter().all(|point| seen_at(stage, point).exists()));
}

/// CVE-2025-23266: a hook on the host gets the container's environment, and with it code of the image to load.
#[test]
fn hooks_on_the_host_get_nothing_of_the_container() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc before 1.2 runs poststart with the caller's environment") {
        return;
    }
    stage.config["process"]["env"] = json!(["PATH=/bin", "LD_PRELOAD=/evil.so", "LD_AUDIT=/evil.so", "BASH_ENV=/evil"]);
    // The image has a shell of its own at the path of the hook's.
    assert!(stage.rootfs().join("bin/sh").exists());
    audit(&mut stage, json!(null));
    for point in HOST_POINTS {
        let seen = fs::read_to_string(seen_at(&stage, point)).unwrap();
        assert!(!seen.contains("evil") && !seen.contains("fd="), "{point}: {seen}");
        assert!(seen.contains("shell of the host\n"), "{point}: {seen}");
        // A path of the host, where the container's root is one directory among others.
        assert!(seen.contains(&format!("cwd={}", stage.bundle().display())), "{point}: {seen}");
    }
    // What the spec itself gives to a hook is seen, so the container's would be.
    audit(&mut stage, json!(["LD_AUDIT_OF_SPEC=/evil.so"]));
    for point in HOST_POINTS {
        assert!(fs::read_to_string(seen_at(&stage, point)).unwrap().contains("evil"), "{point}");
    }
}
