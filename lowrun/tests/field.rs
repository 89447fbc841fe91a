//! What programs above a runtime rely on beyond the words of the spec: each of these was found by the field's own suites
//! (docs/conformance.md) and is how runc does it.

mod stage;

use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use stage::{Bound, Stage, eventually, stage};

/// Ends when the test does.
const LOOP: &str = "while :; do sleep 0.05; done";

#[test]
fn hooks_run_in_the_bundle_and_then_in_the_root() {
    let Some(mut stage) = stage() else { return };
    let file = stage.dir.path().join("places");
    let script = |point: &str| json!([{ "path": "/bin/sh", "args": ["sh", "-c", format!("echo {point} $PWD >> {}", file.display())] }]);
    stage.config["hooks"] = json!({
        "createRuntime": script("createRuntime"),
        "createContainer": script("createContainer"),
    });
    stage.config["root"]["readonly"] = json!(true);
    stage.write_config();
    let mut command = stage.command();
    command.args(["run", "--bundle", stage.bundle().to_str().unwrap(), stage.id()]).current_dir("/");
    stage.finish(command).ok();
    let expected =
        format!("createRuntime {}\ncreateContainer {}\n", stage.bundle().display(), stage.rootfs().display());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), expected);
    stage.is_clean();
}

#[test]
fn a_failed_hook_is_named_as_runc_names_it() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc before 1.4 names no point") {
        return;
    }
    stage.config["hooks"] = json!({ "createRuntime": [{ "path": "/bin/true" }, { "path": "/bin/false" }] });
    stage.run().fails(1, "error running createRuntime hook #1:");
    stage.config["hooks"] = json!({ "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", "kill -SYS $$"] }] });
    stage.run().fails(1, "bad system call");
    stage.is_clean();
}

/// A filter that was made for the calls of runc's last steps knows none of the others that would do.
#[test]
fn a_filter_made_for_runc_denies_no_container_its_start() {
    let Some(mut stage) = stage() else { return };
    let others =
        ["poll", "ppoll", "signalfd", "signalfd4", "rt_sigprocmask", "rt_sigtimedwait", "setresuid", "setresgid"];
    for no_new_privileges in [true, false] {
        stage.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        stage.config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        stage.script("id >/tmp/id; exit 7");
        std::fs::set_permissions(stage.rootfs().join("tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777))
            .unwrap();
        stage.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": others, "action": "SCMP_ACT_ERRNO" }],
        });
        stage.call(&["create", stage.id()]).ok();
        stage.call(&["start", stage.id()]).ok();
        let id = stage.rootfs().join("tmp/id");
        eventually("it has run", || {
            std::fs::read_to_string(&id).is_ok_and(|text| text.starts_with("uid=1000(u) gid=1000"))
        });
        std::fs::remove_file(id).unwrap();
        stage.delete();
        stage.is_clean();
    }
}

#[test]
fn a_cgroup_that_was_there_frozen_is_refused_and_stays() {
    let Some(stage) = stage() else { return };
    let freezer = Path::new("/sys/fs/cgroup/freezer");
    if !freezer.is_dir() {
        eprintln!("skipped: needs the v1 freezer");
        return;
    }
    if stage::by_systemd() {
        eprintln!("skipped: a scope's directory has another name, and is not looked at");
        return;
    }
    let dir = freezer.join(stage.id()).join("c");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("freezer.state"), "FROZEN").unwrap();
    for words in [["run", stage.id()], ["create", stage.id()]] {
        stage.call(&words).fails(1, "container's cgroup unexpectedly frozen");
        assert!(dir.is_dir(), "it is somebody else's");
    }
    std::fs::remove_dir(&dir).unwrap();
    stage.is_clean();
}

/// Runs `run` with a terminal whose stdin stays open; gives what it wrote. One that never ends is a failure.
fn run_with_terminal(stage: &Stage) -> String {
    stage.write_config();
    let mut command = stage.command();
    let mut child = command.args(["run", stage.id()]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take();
    eventually("the end of run", || child.try_wait().unwrap().is_some());
    drop(stdin);
    let mut seen = String::new();
    child.stdout.take().unwrap().read_to_string(&mut seen).unwrap();
    seen
}

#[test]
fn a_terminal_ends_with_its_program_and_adds_nothing() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc wants a terminal on stdin") {
        return;
    }
    stage.config["process"]["terminal"] = json!(true);
    stage.args(&["echo", "one\ntwo"]);
    // The end and the last slave's closing come in any order: many rounds meet both.
    for _ in 0..20 {
        assert_eq!(run_with_terminal(&stage), "one\ntwo\n");
    }
    stage.is_clean();
}

#[test]
fn a_terminal_that_all_have_closed_can_be_opened_again() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc wants a terminal on stdin") {
        return;
    }
    stage.config["process"]["terminal"] = json!(true);
    // More than a terminal holds: who writes it waits for lowrun.
    stage.script(
        "exec < /dev/null > /dev/null 2>&1; sleep 0.3; dd if=/dev/zero of=/dev/console bs=1024 count=256 2> /dev/null",
    );
    stage.write_config();
    let out = stage.dir.path().join("out");
    let mut command = stage.command();
    command.args(["run", stage.id()]).stdin(Stdio::piped()).stdout(std::fs::File::create(&out).unwrap());
    let mut child = command.spawn().unwrap();
    eventually("the end of run", || child.try_wait().unwrap().is_some());
    assert_eq!(std::fs::metadata(out).unwrap().len(), 256 * 1024);
    stage.is_clean();
}

#[test]
fn a_log_that_nobody_reads_any_more_ends_nothing() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc's container side writes none") {
        return;
    }
    let log = stage.dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&log).status().unwrap().success());
    // The program has the usual action for a pipe without a reader all the same.
    stage.script("grep SigIgn /proc/self/status");
    let reader = log.clone();
    let reader = std::thread::spawn(move || drop(std::fs::File::open(reader).unwrap()));
    let outcome = stage.call(&["--debug", "--log", log.to_str().unwrap(), "run", stage.id()]).ok();
    reader.join().unwrap();
    let ignored = u64::from_str_radix(outcome.out.trim_start_matches("SigIgn:").trim(), 16).unwrap();
    assert_eq!(ignored >> (libc::SIGPIPE - 1) & 1, 0, "{ignored:x}");
    stage.is_clean();
}

#[test]
fn the_callers_cpus_are_not_the_containers() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc before 1.2 keeps them") {
        return;
    }
    let one = rustix::thread::CpuSet::new();
    let all = rustix::thread::sched_getaffinity(None).unwrap();
    if all.count() < 2 {
        eprintln!("skipped: needs two CPUs");
        return;
    }
    let mut first = one;
    first.set((0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).unwrap());
    stage.args(&["grep", "Cpus_allowed:", "/proc/self/status"]);
    let usual = stage.output();
    // Of this test's thread, and so of what it starts.
    rustix::thread::sched_setaffinity(None, &first).unwrap();
    assert_eq!(stage.output(), usual);
    stage.script(LOOP);
    stage.detached();
    assert_eq!(stage.exec("grep Cpus_allowed: /proc/self/status").ok().out, usual);
    stage.delete();
}

#[test]
fn a_tmpfs_takes_the_mode_of_a_directory_that_was_there() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc before 1.4 takes that of the directory it makes") {
        return;
    }
    std::fs::create_dir(stage.rootfs().join("there")).unwrap();
    std::fs::set_permissions(stage.rootfs().join("there"), std::os::unix::fs::PermissionsExt::from_mode(0o710))
        .unwrap();
    for destination in ["/there", "/missing/dir"] {
        stage.mount(destination, "tmpfs", "tmpfs", &["nosuid"]);
    }
    stage.args(&["stat", "-c", "%a", "/there", "/missing/dir"]);
    assert_eq!(stage.output(), "710\n1777\n");
}

#[test]
fn a_bind_goes_where_dangling_links_lead() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc before 1.4 refuses it") {
        return;
    }
    let source = stage.dir.path().join("source");
    std::fs::write(&source, "bound").unwrap();
    symlink("/tmp/deep", stage.rootfs().join("jump")).unwrap();
    symlink("/jump/er/file", stage.rootfs().join("etc/file")).unwrap();
    stage.mount("/etc/file", "bind", source.to_str().unwrap(), &["bind"]);
    stage.args(&["cat", "/tmp/deep/er/file"]);
    assert_eq!(stage.output(), "bound");
}

#[test]
fn a_bind_may_take_what_earlier_mounts_made_in_the_root() {
    for with_user in [false, true] {
        let Some(mut stage) = stage() else { return };
        if with_user {
            stage.namespace("user", Some(""));
            for field in ["uidMappings", "gidMappings"] {
                stage.config["linux"][field] = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
            }
            stage.own_rootfs(100_000);
        }
        let source = stage.dir.path().join("source");
        std::fs::create_dir(&source).unwrap();
        std::fs::write(source.join("file"), "twice").unwrap();
        let within = |path: &str| -> String { stage.rootfs().join(path).to_str().unwrap().to_owned() };
        let (first, copy) = (within("first"), within("copy"));
        stage.mount("/first", "bind", source.to_str().unwrap(), &["bind"]);
        // Its destination is written with the host's path, as some callers do.
        stage.mount(&copy, "bind", &first, &["rbind"]);
        stage.args(&["cat", "/copy/file"]);
        if with_user && stage.differs("old runcs open such a source before the mounts are made") {
            return;
        }
        assert_eq!(stage.output(), "twice");
    }
}

/// The mount options of `/mnt` in a container that binds a tmpfs with the options `host` by those of `bind`.
fn bound_options(host: &[&str], bind: &[&str]) -> Option<Vec<String>> {
    let mut stage = stage()?;
    let source = stage.dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let _mounted = Bound::new(&source, &source);
    let options = format!("remount,bind,{}", host.join(","));
    let mut mount = std::process::Command::new("mount");
    assert!(mount.args(["-o", &options]).arg(&source).status().unwrap().success());
    stage.mount("/mnt", "bind", source.to_str().unwrap(), bind);
    stage.script("grep ' /mnt ' /proc/self/mounts");
    let line = stage.output();
    let words = line.split(' ').nth(3).unwrap().split(',');
    Some(words.map(str::to_owned).collect())
}

#[test]
fn a_bind_keeps_the_access_times_of_its_source_unless_told_otherwise() {
    let has = |options: &[String], word: &str| options.iter().any(|option| option == word);
    let Some(kept) = bound_options(&["noatime", "ro"], &["bind", "atime", "nosuid"]) else { return };
    assert!(has(&kept, "noatime") && has(&kept, "nosuid") && has(&kept, "rw"), "{kept:?}");
    let told = bound_options(&["noatime"], &["bind", "nodiratime"]).unwrap();
    assert!(!has(&told, "noatime") && has(&told, "nodiratime") && has(&told, "relatime"), "{told:?}");
}

#[test]
fn an_exec_has_the_memory_policy_of_its_container() {
    let Some(mut stage) = stage() else { return };
    if !Path::new("/proc/self/numa_maps").exists() || stage.differs("runc before 1.4 knows no memory policy") {
        return;
    }
    stage.config["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_BIND", "nodes": "0" });
    stage.script(LOOP);
    stage.detached();
    let policy = stage.exec("head -n 1 /proc/self/numa_maps").ok().out;
    assert!(policy.contains(" bind:0 "), "{policy}");
    stage.delete();
    stage.config["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_DEFAULT" });
    stage.args(&["true"]);
    stage.run().ok();
}

#[test]
fn a_filter_that_refuses_new_calls_is_no_hindrance() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("old libraries do not know all of these calls") {
        return;
    }
    let names = ["close_range", "openat2", "open_tree", "move_mount", "mount_setattr", "faccessat2", "fsopen"];
    for (no_new_privileges, errno) in [(false, 38), (true, 38), (true, 1)] {
        stage.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        stage.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno }],
        });
        stage.args(&["true"]);
        stage.run().ok();
        // The way by `create` closes its descriptors behind the filter.
        stage.script(LOOP);
        stage.call(&["create", stage.id()]).ok();
        stage.call(&["start", stage.id()]).ok();
        stage.delete();
    }
}

#[test]
fn a_program_that_cannot_be_executed_is_told_as_by_runc() {
    let Some(mut stage) = stage() else { return };
    let script: PathBuf = stage.rootfs().join("script");
    std::fs::write(&script, "#!/no/such/shell\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    stage.args(&["/script"]);
    let outcome = stage.run();
    assert_ne!(outcome.status, 0);
    if !stage.differs("runc before 1.2 has other words") {
        assert_eq!(outcome.err, "exec /script: no such file or directory\n");
    }
    stage.is_clean();
}

/// The whole time, in clock ticks, that a process has had a CPU.
fn ticks(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn a_terminal_whose_input_has_ended_waits_without_work() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc wants a terminal on stdin") {
        return;
    }
    stage.config["process"]["terminal"] = json!(true);
    stage.script("echo begun; sleep 2");
    stage.write_config();
    let mut command = stage.command();
    let mut run = command.args(["run", stage.id()]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    drop(run.stdin.take());
    let mut begun = [0; 5];
    run.stdout.as_mut().unwrap().read_exact(&mut begun).unwrap();
    let before = ticks(run.id());
    std::thread::sleep(Duration::from_secs(1));
    let spent = ticks(run.id()) - before;
    assert!(run.wait().unwrap().success());
    assert!(spent < 5, "{spent} ticks in a second of waiting");
}
