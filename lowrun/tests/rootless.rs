//! A user without privilege, and root of a user namespace: the whole life of a container.
//!
//! The runtime is really started as another user of the machine, who is known to a passwd of the test's own.

mod stage;

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, chown};
use std::os::unix::net::UnixListener;
use std::process::Command;

use libseccomp::{ScmpNotifReq, ScmpNotifResp, ScmpNotifRespFlags};
use serde_json::{Value, json};
use stage::{Outcome, Stage, stage, take_listener};

/// The user, and what `/etc/subuid` and `/etc/subgid` grant.
const USER: u32 = 43_210;
const GRANTED: u32 = 700_000;

/// Who starts the runtime.
#[derive(Clone, Copy)]
enum As {
    User,
    /// Root of a user namespace that the user has made.
    NamespaceRoot,
}

struct Rootless {
    stage: Stage,
    as_: As,
    /// What the machine's root does before, in the mount namespace that the runtime is started in.
    before: String,
}

impl Rootless {
    /// `None` where programs are missing that the tests start.
    fn new(as_: As) -> Option<Rootless> {
        let mut stage = stage()?;
        for tool in ["/usr/bin/setpriv", "/usr/bin/unshare", "/usr/bin/newuidmap"] {
            if !std::path::Path::new(tool).exists() {
                eprintln!("skipped: needs {tool} (util-linux, uidmap)");
                return None;
            }
        }
        stage.own_program();
        let owner = match as_ {
            As::User | As::NamespaceRoot => USER,
        };
        stage.own_rootfs(owner);
        for (name, text) in [
            ("passwd", format!("root:x:0:0:root:/root:/bin/sh\nlowly:x:{USER}:{USER}::/:/bin/sh\n")),
            ("subuid", format!("lowly:{GRANTED}:65536\n")),
        ] {
            std::fs::write(stage.dir.path().join(name), text).unwrap();
        }
        let runtime_dir = stage.dir.path().join("run");
        std::fs::create_dir(&runtime_dir).unwrap();
        chown(&runtime_dir, Some(USER), Some(USER)).unwrap();
        let mut rootless = Rootless { stage, as_, before: "true".to_owned() };
        rootless.config();
        Some(rootless)
    }

    /// What cannot be without privilege is not asked for.
    fn config(&mut self) {
        let stage = &mut self.stage;
        stage.config["linux"]["cgroupsPath"] = json!(null);
        stage.config["linux"]["resources"] = json!(null);
        stage.config["process"]["rlimits"] = json!([]);
        let mounts = stage.config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["type"] != "cgroup");
        mounts[2]["options"].as_array_mut().unwrap().retain(|option| option != "gid=5");
        if matches!(self.as_, As::User) {
            stage.namespace("user", Some(""));
            stage.config["linux"]["uidMappings"] = map(&[(0, USER, 1)]);
            stage.config["linux"]["gidMappings"] = map(&[(0, USER, 1)]);
        }
    }

    fn call(&self, words: &[&str]) -> Outcome {
        let program = self.stage.command().get_program().to_str().unwrap().to_owned();
        self.start(&[&[program.as_str()], words].concat())
    }

    /// A shell script of the user's, with the runtime as `$0`.
    fn script(&self, script: &str) -> Outcome {
        let program = self.stage.command().get_program().to_str().unwrap().to_owned();
        self.start(&["sh", "-ec", script, &program])
    }

    fn start(&self, line: &[&str]) -> Outcome {
        self.stage.write_config();
        let (dir, before) = (self.stage.dir.path().display(), &self.before);
        let user = format!("setpriv --reuid {USER} --regid {USER} --clear-groups");
        let become_user = match self.as_ {
            As::User => user,
            As::NamespaceRoot => format!("{user} unshare --user --map-root-user --mount --propagation unchanged"),
        };
        let script = format!(
            "mount --bind {dir}/passwd /etc/passwd && touch /etc/subuid /etc/subgid && \
             mount --bind {dir}/subuid /etc/subuid && mount --bind {dir}/subuid /etc/subgid && \
             {before} && exec {become_user} env XDG_RUNTIME_DIR={dir}/run \"$@\""
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh"]);
        command.args(line).current_dir(self.stage.bundle());
        command.stdin(std::process::Stdio::null());
        self.stage.finish(command)
    }

    fn run(&self) -> Outcome {
        self.call(&["run", self.stage.id()])
    }

    fn output(&self) -> String {
        self.run().ok().out
    }

    fn state(&self) -> Value {
        serde_json::from_str(&self.call(&["state", self.stage.id()]).ok().out).unwrap()
    }

    /// Where the runtime keeps its states by itself.
    fn states(&self) -> Vec<String> {
        let root = self.stage.dir.path().join("run").join(if self.stage.is_ours() { "lowrun" } else { "runc" });
        let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| !name.starts_with('@')).collect()
    }
}

impl Drop for Rootless {
    fn drop(&mut self) {
        if !self.states().is_empty() {
            let _ = self.call(&["delete", "--force", self.stage.id()]);
        }
    }
}

fn map(ranges: &[(u32, u32, u32)]) -> Value {
    let range =
        |(container, host, size): &(u32, u32, u32)| json!({ "containerID": container, "hostID": host, "size": size });
    ranges.iter().map(range).collect()
}

/// The whole life: create, start, state, exec, kill, delete.
fn lives(rootless: &mut Rootless) {
    rootless.stage.script("while :; do sleep 0.05; done");
    let id = rootless.stage.id().to_owned();
    rootless.call(&["create", &id]).ok();
    assert_eq!(rootless.state()["status"], "created");
    assert_eq!(rootless.states(), [id.as_str()]);
    rootless.call(&["start", &id]).ok();
    assert_eq!(rootless.state()["status"], "running");
    let inside = rootless.call(&["exec", &id, "sh", "-c", "id -u; readlink /proc/self/ns/pid; echo $PPID"]).ok().out;
    let pid = rootless.state()["pid"].as_i64().unwrap();
    let namespace = std::fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    assert_eq!(inside, format!("0\n{}\n0\n", namespace.display()));
    assert_eq!(std::fs::metadata(format!("/proc/{pid}")).unwrap().uid(), USER);
    rootless.call(&["exec", &id, "sh", "-c", "exit 7"]).fails(7, "");
    rootless.call(&["kill", &id, "KILL"]).ok();
    stage::eventually("it has stopped", || rootless.state()["status"] == "stopped");
    rootless.call(&["delete", &id]).ok();
    assert!(rootless.states().is_empty());
    rootless.stage.is_clean();
}

#[test]
fn a_user_has_a_container_with_the_own_id_alone() {
    let Some(mut rootless) = Rootless::new(As::User) else { return };
    rootless.stage.config["process"]["oomScoreAdj"] = json!(500);
    rootless.stage.script(
        "id -u; cat /proc/self/uid_map /proc/self/setgroups /proc/self/oom_score_adj; touch /made; hostname; \
         echo x > /dev/null && head -c 2 /dev/zero | wc -c",
    );
    let seen = rootless.output();
    let words: Vec<&str> = seen.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "43210", "1", "deny", "500", "staged", "2"]);
    assert_eq!(std::fs::metadata(rootless.stage.rootfs().join("made")).unwrap().uid(), USER);
    lives(&mut rootless);
}

/// What of a process's memory holds `word`.
fn memory_with(pid: i64, word: &[u8]) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let holds = |line: &&str| {
        let range = line.split([' ', '-']).take(2).map(|end| u64::from_str_radix(end, 16).unwrap());
        let [start, end] = range.collect::<Vec<_>>()[..] else { return false };
        let mut bytes = vec![0; (end - start) as usize];
        // The kernel's own pages cannot be read so.
        memory.read_exact_at(&mut bytes, start).is_ok() && bytes.windows(word.len()).any(|part| part == word)
    };
    maps.lines().filter(holds).map(str::to_owned).collect()
}

#[test]
fn a_user_enters_a_container_that_waits_and_finds_nothing_of_the_host_there() {
    let Some(mut rootless) = Rootless::new(As::User) else { return };
    rootless.stage.script("while :; do sleep 0.05; done");
    let id = rootless.stage.id().to_owned();
    let log = rootless.stage.dir.path().join("run/log");
    let log = log.to_str().unwrap();
    rootless.script(&format!("OF_THE_CALLER=7c4f9 \"$0\" --log {log} create {id}")).ok();
    let pid = rootless.state()["pid"].as_i64().unwrap();
    let inside =
        rootless.call(&["exec", &id, "sh", "-c", "ls -l /proc/1/fd; tr '\\0' '\\n' </proc/1/environ; id -u"]).ok().out;
    assert!(inside.ends_with("\n0\n"), "{inside}");
    assert!(!inside.contains("run/log") && !inside.contains("OF_THE_CALLER"), "{inside}");
    assert_eq!(memory_with(pid, b"OF_THE_CALLER=7c4f9"), [] as [&str; 0]);
    assert_eq!(rootless.state()["status"], "created");
    rootless.call(&["start", &id]).ok();
    assert_eq!(rootless.state()["status"], "running");
    rootless.call(&["delete", "--force", &id]).ok();
}

#[test]
fn a_users_container_that_cannot_be_started_tells_it_in_one_line() {
    let Some(mut rootless) = Rootless::new(As::User) else { return };
    let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", "exit 3"] });
    rootless.stage.config["hooks"] = json!({ "startContainer": [hook] });
    let id = rootless.stage.id().to_owned();
    let dir = rootless.stage.dir.path().join("run");
    for format in ["text", "json"] {
        let create = format!(
            "\"$0\" --log {dir}/log --log-format {format} create {id} 2>{dir}/words; \"$0\" start {id}",
            dir = dir.display()
        );
        rootless.script(&create).ok();
        stage::eventually("it has stopped", || rootless.state()["status"] == "stopped");
        let words = std::fs::read_to_string(dir.join("words")).unwrap();
        assert!(words.starts_with("lowrun: error: start:hooks: "), "{words}");
        assert_eq!(words.lines().count(), 1, "{words}");
        rootless.call(&["delete", &id]).ok();
    }
}

/// As engines ask for it.
fn cgroup_mount() -> Value {
    json!({
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", "ro"],
    })
}

/// The machine of a container: there are no hierarchies, or one that shows no more than the container's part.
#[test]
fn a_user_needs_no_hierarchies_for_a_mount_of_cgroups() {
    let Some(mut rootless) = Rootless::new(As::User).filter(|_| !stage::by_systemd()) else { return };
    rootless.stage.config["mounts"].as_array_mut().unwrap().push(cgroup_mount());
    rootless.before = "mount -t tmpfs none /sys/fs/cgroup".to_owned();
    rootless.stage.script("ls /sys/fs/cgroup");
    assert_eq!(rootless.output(), "");
    if stage::is_v2() {
        return;
    }
    let part = std::path::Path::new("/sys/fs/cgroup/pids").join(rootless.stage.id());
    std::fs::create_dir(&part).unwrap();
    let shown = part.display();
    rootless.before = format!("echo 0 >{shown}/cgroup.procs && mount --bind {shown} /sys/fs/cgroup/pids");
    rootless.stage.script("grep -cx 1 /sys/fs/cgroup/pids/cgroup.procs; mkdir /sys/fs/cgroup/pids/made 2>&1");
    let outcome = rootless.run();
    stage::eventually("nobody is in it", || std::fs::remove_dir(&part).is_ok());
    assert!(outcome.out.starts_with("1\n") && outcome.out.contains("Read-only file system"), "{outcome:?}");
}

#[test]
fn a_users_container_without_cgroups_is_shown_those_that_it_is_in() {
    let Some(mut rootless) = Rootless::new(As::User) else { return };
    rootless.stage.config["mounts"].as_array_mut().unwrap().push(cgroup_mount());
    rootless.stage.script("cat /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs 2>/dev/null | grep -cx 1");
    for own_view in [Some(""), None] {
        rootless.stage.namespace("cgroup", own_view);
        assert_ne!(rootless.run().out, "0\n", "{own_view:?}");
    }
}

/// Lets a watched process go on, call by call, until nobody is watched.
fn let_on(listener: &OwnedFd) -> usize {
    let received = std::iter::from_fn(|| ScmpNotifReq::receive(listener.as_raw_fd()).ok());
    let answer = |request: ScmpNotifReq| {
        let on = ScmpNotifResp::new_continue(request.id, ScmpNotifRespFlags::empty());
        on.respond(listener.as_raw_fd()).ok()
    };
    received.map(answer).count()
}

#[test]
fn a_users_listener_may_watch_what_hands_it_over() {
    let Some(mut rootless) = Rootless::new(As::User) else { return };
    let path = rootless.stage.dir.path().join("run/agent");
    let agent = UnixListener::bind(&path).unwrap();
    chown(&path, Some(USER), Some(USER)).unwrap();
    rootless.stage.config["process"]["noNewPrivileges"] = json!(false);
    let mut watched = vec!["execve", "openat", "open", "read", "close", "fcntl"];
    let profile = |names: &[&str]| {
        json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "syscalls": [{ "names": names, "action": "SCMP_ACT_NOTIFY" }], "listenerPath": path,
        })
    };
    rootless.stage.config["linux"]["seccomp"] = profile(&watched);
    rootless.stage.args(&["true"]);
    let answering = std::thread::spawn(move || let_on(&take_listener(&agent.accept().unwrap().0).1));
    rootless.run().ok();
    assert!(answering.join().unwrap() > 1);
    watched.push("sendmsg");
    rootless.stage.config["linux"]["seccomp"] = profile(&watched);
    rootless.run().fails(1, "SCMP_ACT_NOTIFY cannot be used for the sendmsg syscall without privilege");
}

#[test]
fn a_users_program_file_is_told_to_be_sealed() {
    let Some(rootless) = Rootless::new(As::User) else { return };
    let said = rootless.call(&["--debug", "run", rootless.stage.id()]).ok().err;
    assert!(said.contains("runc exeseal: using /proc/self/exe clone"), "{said}");
}

/// The user's own directories in the hierarchies of v1; the v2 one of a hybrid machine is nobody's.
fn granted(id: &str) -> Vec<std::path::PathBuf> {
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path());
    let v1 = hierarchies.filter(|dir| !dir.is_symlink() && dir.join("tasks").exists());
    v1.map(|dir| {
        let own = dir.join(id);
        std::fs::create_dir(&own).unwrap();
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(text) = std::fs::read(dir.join(file)) {
                std::fs::write(own.join(file), text).unwrap();
            }
        }
        for file in ["", "cgroup.procs", "tasks"] {
            chown(own.join(file), Some(USER), Some(USER)).unwrap();
        }
        own
    })
    .collect()
}

#[test]
fn cgroups_of_v1_are_used_though_the_unified_one_was_not_given() {
    let Some(mut rootless) = Rootless::new(As::User) else { return };
    let id = rootless.stage.id().to_owned();
    let dirs = if stage::is_v2() || stage::by_systemd() { Vec::new() } else { granted(&id) };
    if dirs.is_empty() {
        eprintln!("skipped: needs cgroup v1 and the driver of files");
        return;
    }
    rootless.stage.config["linux"]["cgroupsPath"] = json!(format!("/{id}/c"));
    rootless.stage.config["linux"]["resources"] = json!({ "pids": { "limit": 77 } });
    rootless.stage.script("cat /proc/self/cgroup");
    let outcome = rootless.run();
    for dir in &dirs {
        std::fs::remove_dir(dir).unwrap();
    }
    let out = outcome.ok().out;
    assert!(out.lines().any(|line| line.contains("freezer") && line.ends_with(&format!("/{id}/c"))), "{out}");
}

#[test]
fn a_container_whose_processes_nothing_holds_is_warned_of() {
    let Some(mut rootless) = Rootless::new(As::User) else { return };
    let warned = |rootless: &Rootless| rootless.run().ok().err.contains("Such configuration is strongly discouraged");
    assert!(!warned(&rootless));
    rootless.stage.namespace("pid", None);
    // A new procfs takes a pid namespace.
    let mounts = rootless.stage.config["mounts"].as_array_mut().unwrap();
    let proc = mounts.iter_mut().find(|mount| mount["destination"] == "/proc").unwrap();
    *proc =
        json!({ "destination": "/proc", "type": "none", "source": "/proc", "options": ["rbind", "nosuid", "nodev"] });
    assert!(warned(&rootless));
}

#[test]
fn a_user_maps_granted_ids_by_the_programs_that_may() {
    let Some(mut rootless) = Rootless::new(As::User) else { return };
    let ranges = map(&[(0, USER, 1), (1, GRANTED, 65_536)]);
    rootless.stage.config["linux"]["uidMappings"] = ranges.clone();
    rootless.stage.config["linux"]["gidMappings"] = ranges;
    rootless.stage.script("cat /proc/self/uid_map; touch /tmp/made; chown 5:6 /tmp/made");
    std::os::unix::fs::symlink("busybox", rootless.stage.rootfs().join("bin/chown")).unwrap();
    let capabilities = ["CAP_CHOWN"];
    rootless.stage.config["process"]["capabilities"] =
        json!({ "bounding": capabilities, "effective": capabilities, "permitted": capabilities });
    let seen = rootless.output();
    assert_eq!(seen.split_whitespace().collect::<Vec<_>>(), ["0", "43210", "1", "1", "700000", "65536"]);
    let made = std::fs::metadata(rootless.stage.rootfs().join("tmp/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (GRANTED + 4, GRANTED + 5));
    rootless.stage.config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    rootless.stage.script("id -u");
    assert_eq!(rootless.output(), "1000\n");
    rootless.stage.config["process"]["user"] = json!({ "uid": 0, "gid": 0 });
    lives(&mut rootless);
}

#[test]
fn root_of_a_user_namespace_has_a_container() {
    let Some(mut rootless) = Rootless::new(As::NamespaceRoot) else { return };
    rootless.stage.config["process"]["oomScoreAdj"] = json!(500);
    rootless.stage.script(
        "id -u; cat /proc/self/uid_map /proc/self/oom_score_adj; touch /made; echo x > /dev/null; \
         stat -c %t:%T /dev/null",
    );
    let seen = rootless.output();
    assert_eq!(seen.split_whitespace().collect::<Vec<_>>(), ["0", "0", "43210", "1", "500", "1:3"]);
    assert_eq!(std::fs::metadata(rootless.stage.rootfs().join("made")).unwrap().uid(), USER);
    rootless.stage.script("while :; do sleep 0.05; done");
    let id = rootless.stage.id();
    let life = format!(
        "\"$0\" create {id}; \"$0\" start {id}; \"$0\" exec {id} sh -c 'id -u; echo $PPID'; \"$0\" state {id} | grep -c running; \
         \"$0\" delete --force {id}; \"$0\" list -q"
    );
    assert_eq!(rootless.script(&life).ok().out, "0\n0\n1\n");
    assert!(rootless.states().is_empty());
}

#[test]
fn a_users_container_has_its_clocks_and_joins_another() {
    let Some(mut first) = Rootless::new(As::User) else { return };
    let Some(mut second) = Rootless::new(As::User) else { return };
    if first.stage.differs("runc before 1.2 has no time namespaces") {
        return;
    }
    first.stage.namespace("time", Some(""));
    first.stage.config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1_000_000_000, "nanosecs": 0 } });
    first.stage.script("cat /proc/uptime");
    let seen = first.output();
    assert!(seen.split_whitespace().next().unwrap().parse::<f64>().unwrap() > 1e9, "{seen}");
    first.stage.script("while :; do sleep 0.05; done");
    first.call(&["run", "--detach", first.stage.id()]).ok();
    let pid = first.state()["pid"].to_string();
    for (kind, file) in [("user", "user"), ("network", "net"), ("pid", "pid"), ("ipc", "ipc")] {
        second.stage.namespace(kind, Some(&format!("/proc/{pid}/ns/{file}")));
    }
    second.stage.config["linux"]["uidMappings"] = json!(null);
    second.stage.config["linux"]["gidMappings"] = json!(null);
    second.stage.config["process"]["oomScoreAdj"] = json!(400);
    second.stage.script("for n in user net pid ipc; do readlink /proc/self/ns/$n; done; cat /proc/self/oom_score_adj");
    let kinds = ["user", "net", "pid", "ipc"];
    let expected =
        kinds.map(|kind| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().display().to_string());
    let seen = second.output();
    assert_eq!(seen.lines().collect::<Vec<_>>()[..4], expected);
    assert_eq!(seen.lines().last(), Some("400"));
    first.call(&["delete", "--force", first.stage.id()]).ok();
}

/// What it is, how it is asked for, and what the refusal says.
type Refused = (&'static str, fn(&mut Value, &Value), &'static str);

#[test]
fn what_takes_privilege_is_refused_by_name() {
    let Some(mut rootless) = Rootless::new(As::User) else { return };
    let sound = rootless.stage.config.clone();
    let memory = json!({ "memory": { "limit": 64 << 20 } });
    let cases: [Refused; 5] = [
        ("no user namespace", |c, _| drop_user_namespace(c), "user namespace"),
        ("an owner that is not mapped", |c, _| c["mounts"][1]["options"] = json!(["uid=7"]), "uid=7"),
        ("a limit", |c, memory| c["linux"]["resources"] = memory.clone(), "cgroup"),
        ("ids that are not granted", |c, _| c["linux"]["uidMappings"] = map(&[(0, 1, 10)]), "newuidmap"),
        ("a cgroup of its own", |c, _| c["linux"]["cgroupsPath"] = json!("/lowrun-test-refused"), "cgroup"),
    ];
    for (what, break_it, words) in cases {
        rootless.stage.config = sound.clone();
        break_it(&mut rootless.stage.config, &memory);
        let outcome = rootless.run();
        assert_eq!(outcome.status, 1, "{what}: {outcome:?}");
        // Each runc has words of its own.
        let told = outcome.err.contains(words) || !rootless.stage.is_ours();
        assert!(told, "{what}: {words:?} is not in {outcome:?}");
        assert!(rootless.states().is_empty(), "{what}");
    }
    rootless.stage.config = sound;
    rootless.run().ok();
}

fn drop_user_namespace(config: &mut Value) {
    config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "user");
    config["linux"]["uidMappings"] = json!(null);
    config["linux"]["gidMappings"] = json!(null);
}
