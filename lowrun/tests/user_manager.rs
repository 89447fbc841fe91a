//! The systemd driver without privilege: scopes of a user's own manager, over its own socket and over the user's bus. Runs
//! where `SUBJECT_USER` names the id of a user whose manager runs, as the guest of `integration/vm` has one.

mod stage;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use stage::{Outcome, Stage, eventually, is_v2, stage};

const LOOP: &str = "while :; do sleep 0.05; done";

/// A user's containers.
struct Owned {
    stage: Stage,
    user: u32,
}

impl Owned {
    fn new() -> Option<Owned> {
        let user = std::env::var("SUBJECT_USER").ok().and_then(|user| user.parse().ok());
        let Some(user) = user.filter(|_| is_v2()) else {
            eprintln!("skipped: needs cgroup v2, and SUBJECT_USER, a user whose systemd runs");
            return None;
        };
        let mut stage = stage()?;
        stage.own_program();
        stage.user_namespace(user);
        let map = json!([{ "containerID": 0, "hostID": user, "size": 1 }]);
        stage.config["linux"]["uidMappings"] = map.clone();
        stage.config["linux"]["gidMappings"] = map;
        stage.config["linux"]["cgroupsPath"] = json!(format!("user.slice:test:{}", stage.id()));
        stage.config["process"]["rlimits"] = json!([]);
        let mounts = stage.config["mounts"].as_array_mut().unwrap();
        mounts[2]["options"].as_array_mut().unwrap().retain(|option| option != "gid=5");
        stage.namespace("cgroup", Some(""));
        stage.script(LOOP);
        let owned = Owned { stage, user };
        let root = owned.stage.root();
        std::fs::create_dir(&root).unwrap();
        std::os::unix::fs::chown(&root, Some(user), Some(user)).unwrap();
        Some(owned)
    }

    fn runtime_dir(&self) -> String {
        format!("/run/user/{}", self.user)
    }

    /// A command line, run by the user.
    fn by_user<S: AsRef<std::ffi::OsStr>>(&self, line: &[S]) -> Outcome {
        let user = self.user.to_string();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "env", "-i"]);
        command.arg(format!("XDG_RUNTIME_DIR={}", self.runtime_dir())).arg("PATH=/usr/bin:/usr/sbin").args(line);
        command.stdin(Stdio::null()).current_dir(self.stage.bundle());
        self.stage.finish(command)
    }

    fn line(&self, words: &[&str]) -> Vec<String> {
        let program = self.stage.program.clone().unwrap().display().to_string();
        let root = self.stage.root().display().to_string();
        let options = [program.as_str(), "--root", &root, "--systemd-cgroup"];
        [&options[..], words].concat().into_iter().map(str::to_owned).collect()
    }

    fn call(&self, words: &[&str]) -> Outcome {
        self.stage.write_config();
        self.by_user(&self.line(words))
    }

    fn state(&self) -> Value {
        serde_json::from_str(&self.call(&["state", self.stage.id()]).ok().out).unwrap()
    }

    fn unit(&self) -> String {
        format!("test-{}.scope", self.stage.id())
    }

    fn property(&self, name: &str) -> String {
        let words = ["systemctl", "--user", "show", "--value", "-p", name, &self.unit()];
        self.by_user(&words).ok().out.trim().to_owned()
    }

    /// The scope's directory, wherever the user's manager is.
    fn dir(&self) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(self.property("ControlGroup").trim_start_matches('/'))
    }

    /// Neither unit nor directory nor state is left.
    fn is_gone(&self, dir: &Path) {
        assert_eq!(self.property("LoadState"), "not-found");
        assert!(!dir.exists(), "{}", dir.display());
        assert!(!self.stage.root().join(self.stage.id()).exists());
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.call(&["delete", "--force", self.stage.id()]);
    }
}

fn file(dir: &Path, name: &str) -> String {
    let path = dir.join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
}

fn cgroup_of(pid: &str) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap().trim().to_owned()
}

#[test]
fn a_users_container_is_a_scope_of_the_users_manager() {
    let Some(mut owned) = Owned::new() else { return };
    owned.stage.config["linux"]["resources"] = json!({ "memory": { "limit": 67_108_864 }, "pids": { "limit": 40 } });
    let id = owned.stage.id().to_owned();
    owned.call(&["run", "--detach", &id]).ok();
    for (name, value) in [("ActiveState", "active"), ("Slice", "user.slice"), ("Delegate", "yes"), ("TasksMax", "40")] {
        assert_eq!(owned.property(name), value, "{name}");
    }
    let dir = owned.dir();
    let expected = format!("/user@{}.service/user.slice/{}", owned.user, owned.unit());
    assert!(dir.to_str().unwrap().ends_with(&expected), "{}", dir.display());
    assert_eq!((file(&dir, "memory.max").as_str(), file(&dir, "pids.max").as_str()), ("67108864", "40"));
    let pid = owned.state()["pid"].to_string();
    assert_eq!(std::fs::metadata(format!("/proc/{pid}")).unwrap().uid(), owned.user);
    let own = format!("0::{}", dir.strip_prefix("/sys/fs/cgroup").unwrap().display());
    assert_eq!(cgroup_of(&pid), own.replacen("0::", "0::/", 1));
    // A process that comes later is in it, too.
    let pid_file = owned.stage.rootfs().join("tmp/pid");
    owned.call(&["exec", "--detach", "--pid-file", pid_file.to_str().unwrap(), &id, "sleep", "1000"]).ok();
    let second = std::fs::read_to_string(&pid_file).unwrap();
    assert_eq!(cgroup_of(&second), cgroup_of(&pid));
    assert_eq!(owned.call(&["exec", &id, "cat", "/proc/self/cgroup"]).ok().out, "0::/\n");
    owned.call(&["update", "--memory", "96M", "--pids-limit", "33", &id]).ok();
    assert!(owned.by_user(&["systemctl", "--user", "daemon-reload"]).status == 0);
    assert_eq!((file(&dir, "memory.max").as_str(), file(&dir, "pids.max").as_str()), ("100663296", "33"));
    owned.call(&["pause", &id]).ok();
    assert_eq!(owned.state()["status"], "paused");
    owned.call(&["resume", &id]).ok();
    assert!(owned.call(&["events", "--stats", &id]).ok().out.contains("\"limit\":100663296"));
    owned.call(&["kill", &id, "KILL"]).ok();
    eventually("it has stopped", || owned.state()["status"] == "stopped");
    owned.call(&["delete", &id]).ok();
    owned.is_gone(&dir);
}

#[test]
fn a_users_container_in_the_foreground_leaves_nothing() {
    let Some(mut owned) = Owned::new() else { return };
    let id = owned.stage.id().to_owned();
    owned.stage.script("cat /proc/self/cgroup; exit 7");
    let outcome = owned.call(&["run", &id]).fails(7, "");
    assert_eq!((outcome.out.as_str(), outcome.err.as_str()), ("0::/\n", ""));
    assert_eq!(owned.property("LoadState"), "not-found");
    // Without a path the scope has a name of lowrun's choice.
    owned.stage.config["linux"]["cgroupsPath"] = json!(null);
    owned.call(&["run", &id]).fails(7, "");
    // A limit that the user's manager has not been given is refused, and leaves nothing.
    owned.stage.config["linux"]["resources"] = json!({ "rdma": { "mlx5_0": { "hcaHandles": 1 } } });
    owned.call(&["run", &id]).fails(1, "");
    owned.stage.is_clean();
}

#[test]
fn a_service_of_the_user_starts_a_container() {
    let Some(mut owned) = Owned::new() else { return };
    owned.stage.script("cat /proc/self/cgroup; id -u");
    owned.stage.write_config();
    let service = ["systemd-run", "--user", "--quiet", "--pipe", "--wait", "--collect", "--"].map(str::to_owned);
    let in_bundle = ["env".to_owned(), format!("--chdir={}", owned.stage.bundle().display())];
    let line = [&service[..], &in_bundle, &owned.line(&["run", owned.stage.id()])].concat();
    assert_eq!(owned.by_user(&line).ok().out, "0::/\n0\n");
    assert_eq!(owned.property("LoadState"), "not-found");
}

#[test]
fn a_users_containers_are_bound_by_their_limits() {
    let Some(mut owned) = Owned::new() else { return };
    let id = owned.stage.id().to_owned();
    owned.stage.config["linux"]["resources"] = json!({ "pids": { "limit": 10 } });
    owned.stage.script("i=0; while [ $i -lt 30 ]; do sleep 5 & i=$((i+1)); done; wait");
    owned.call(&["run", &id]).fails(2, "can't fork");
    owned.stage.config["linux"]["resources"] = json!({ "memory": { "limit": 33_554_432, "swap": 33_554_432 } });
    owned.stage.script("x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done");
    owned.call(&["run", &id]).fails(137, "");
    assert_eq!(owned.property("LoadState"), "not-found");
    owned.stage.is_clean();
}

#[test]
fn a_user_without_systemds_own_socket_takes_the_bus() {
    let Some(mut owned) = Owned::new() else { return };
    owned.stage.script("cat /proc/self/cgroup");
    owned.stage.write_config();
    let doors = owned.stage.rootfs().join("tmp/doors");
    std::fs::create_dir(&doors).unwrap();
    std::os::unix::fs::symlink(format!("{}/bus", owned.runtime_dir()), doors.join("bus")).unwrap();
    let env = ["env".to_owned(), format!("XDG_RUNTIME_DIR={}", doors.display())];
    let line = [&env[..], &owned.line(&["run", owned.stage.id()])].concat();
    assert_eq!(owned.by_user(&line).ok().out, "0::/\n");
    assert_eq!(owned.property("LoadState"), "not-found");
}

#[test]
fn without_a_bus_it_is_told_where_one_was_looked_for() {
    let Some(owned) = Owned::new() else { return };
    owned.stage.write_config();
    let line = owned.line(&["run", owned.stage.id()]);
    for (dir, words) in [("", "XDG_RUNTIME_DIR is not set"), ("/nonexistent", "/nonexistent/systemd/private")] {
        let env = ["env".to_owned(), format!("XDG_RUNTIME_DIR={dir}")];
        owned.by_user(&[&env[..], &line].concat()).fails(1, words);
        assert!(!owned.stage.root().join(owned.stage.id()).exists());
    }
}
