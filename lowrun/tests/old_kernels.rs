//! Kernels and filters that have less than lowrun would like: newer calls fail, and the container is the same.

mod stage;

use std::os::fd::AsRawFd;
use std::path::Path;

use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall};
use serde_json::json;
use stage::{Outcome, Stage, stage};

/// Calls that may be missing, together, and since when they are there.
const CALLS: [(&str, &[&str]); 13] = [
    ("mount_setattr, 5.12", &["mount_setattr"]),
    ("close_range, 5.9", &["close_range"]),
    ("openat2, 5.6", &["openat2"]),
    ("clone3, 5.3", &["clone3"]),
    ("the calls on pidfds", PIDFD),
    ("the list of robust futexes", &["set_robust_list"]),
    ("open_tree", &["open_tree"]),
    ("move_mount", &["move_mount"]),
    ("fsopen", &["fsopen"]),
    ("fsconfig", &["fsconfig"]),
    ("fsmount", &["fsmount"]),
    ("the mount API, 5.2", &["open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "mount_setattr"]),
    ("all of them", ALL),
];
const ALL: &[&str] = &[
    "open_tree",
    "move_mount",
    "fsopen",
    "fsconfig",
    "fsmount",
    "mount_setattr",
    "close_range",
    "openat2",
    "clone3",
    "faccessat2",
];

/// The calls that make a pidfd or use one.
const PIDFD: &[&str] = &["pidfd_open", "pidfd_send_signal", "pidfd_getfd"];

/// Runs something in a thread for which these calls fail; what it starts inherits that.
fn without<T: Send>(calls: &'static [&'static str], errno: i32, act: impl FnOnce() -> T + Send) -> T {
    judging(calls, ScmpAction::Errno(errno), act)
}

/// As [`without`], with any end for who makes one of these calls.
fn judging<T: Send>(calls: &'static [&'static str], end: ScmpAction, act: impl FnOnce() -> T + Send) -> T {
    let filtered = move || {
        let mut filter = ScmpFilterContext::new(ScmpAction::Allow).unwrap();
        filter.set_ctl_nnp(false).unwrap();
        for call in calls {
            filter.add_rule(end, ScmpSyscall::from_name(call).unwrap()).unwrap();
        }
        filter.load().unwrap();
        act()
    };
    std::thread::scope(|scope| scope.spawn(filtered).join().unwrap())
}

/// A container with something of everything that the calls are for.
fn rich(stage: &mut Stage) {
    let source = stage.dir.path().join("source");
    std::fs::create_dir_all(&source).unwrap();
    std::fs::write(source.join("file"), "content\n").unwrap();
    std::fs::write(stage.rootfs().join("etc/fixed"), "fixed\n").unwrap();
    std::fs::create_dir_all(stage.rootfs().join("secret")).unwrap();
    std::os::unix::fs::symlink("/target/deep", stage.rootfs().join("link")).unwrap();
    let path = source.to_str().unwrap().to_owned();
    stage.mount("/ro", "bind", &path, &["bind", "ro", "nosuid", "nodev", "noexec", "noatime"]);
    stage.mount("/file", "bind", &format!("{path}/file"), &["rbind", "ro", "rprivate"]);
    stage.mount("/link/mnt", "bind", &path, &["bind", "rw", "rslave"]);
    stage.mount("/small", "tmpfs", "tmpfs", &["size=64k", "mode=711", "ro", "nosuid"]);
    stage.config["root"]["readonly"] = json!(true);
    stage.config["linux"]["maskedPaths"] = json!(["/secret", "/proc/kcore", "/proc/keys", "/sys/firmware"]);
    stage.config["linux"]["readonlyPaths"] = json!(["/etc/fixed", "/proc/sys"]);
    stage.config["linux"]["rootfsPropagation"] = json!("rprivate");
    stage.script(
        "cat /file /target/deep/mnt/file; touch /target/deep/mnt/made && rm /target/deep/mnt/made && echo open; \
         for f in /ro/x /x /small/x /secret/x; do (touch $f) 2>/dev/null || echo closed; done; \
         (echo x > /etc/fixed) 2>/dev/null || echo kept; (echo x > /proc/sys/kernel/shmmax) 2>/dev/null || echo kept; \
         cat /proc/kcore; grep -cE ' (/ro|/file|/small|/target/deep/mnt) ' /proc/self/mountinfo; \
         grep ' /ro ' /proc/self/mountinfo | cut -d' ' -f6; ls /proc/self/fd | wc -l; ls -d /sys/fs/cgroup/* | grep -vc lowrun-test",
    );
    for applet in ["rm", "cut"] {
        std::os::unix::fs::symlink("busybox", stage.rootfs().join("bin").join(applet)).unwrap();
    }
}

fn life(stage: &Stage) -> Outcome {
    stage.call(&["create", stage.id()]).ok();
    stage.call(&["start", stage.id()]).ok();
    let outcome = stage.exec("echo in; cat /proc/self/cgroup | wc -l");
    stage.delete();
    outcome
}

#[test]
fn a_missing_call_changes_nothing() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc needs some of them") {
        return;
    }
    rich(&mut stage);
    let expected = stage.output();
    assert!(expected.starts_with("content\ncontent\nopen\nclosed\nclosed\nclosed\nclosed\nkept\nkept\n"), "{expected}");
    for (what, calls) in CALLS {
        for errno in [libc::ENOSYS, libc::EPERM] {
            // The C library of the test itself starts programs by clone3, and falls back on ENOSYS only.
            if errno == libc::EPERM && calls.contains(&"clone3") {
                continue;
            }
            let seen = without(calls, errno, || stage.run());
            assert_eq!((seen.status, seen.out.as_str()), (0, expected.as_str()), "{what}, {errno}: {seen:?}");
        }
    }
    stage.config["root"]["readonly"] = json!(false);
    stage.script("while :; do sleep 0.05; done");
    let expected = life(&stage).ok().out;
    for (what, calls) in CALLS {
        let seen = without(calls, libc::ENOSYS, || life(&stage));
        assert_eq!((seen.status, seen.out.as_str()), (0, expected.as_str()), "{what}: {seen:?}");
    }
}

/// The calls that make mounts detached and attach them to handles.
const DETACHED: &[&str] = &["open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "mount_setattr"];

/// What a container sees of its mounts: root, place, options and propagation, without numbers of groups.
fn mounts(outcome: Outcome) -> Vec<String> {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        let end = fields.iter().position(|field| *field == "-").unwrap_or(0);
        let tags: Vec<&str> = fields[6..end].iter().map(|tag| tag.split(':').next().unwrap_or_default()).collect();
        format!("{} {} {} {tags:?} {}", fields[3], fields[4], fields[5], fields[end + 1])
    };
    let mut all: Vec<String> = outcome.ok().out.lines().filter(|text| text.contains(" - ")).map(line).collect();
    // Sources that were copied before their turn have lower numbers.
    all.sort_unstable();
    // On the stage a part of a shared mount is its peer already, and gets a copy of itself over itself.
    all.dedup();
    all
}

/// What else a container may have, beside [`rich`], by its name.
type Variant = (&'static str, fn(&mut Stage));

const VARIANTS: [Variant; 7] = [
    ("a cgroup namespace", |stage| stage.namespace("cgroup", Some(""))),
    ("a user namespace", |stage| stage.user_namespace(500_000)),
    ("a user and a cgroup namespace", |stage| {
        stage.user_namespace(500_000);
        stage.namespace("cgroup", Some(""));
    }),
    ("a shared root", |stage| stage.config["linux"]["rootfsPropagation"] = json!("rshared")),
    ("hooks", |stage| {
        // Both see the root as it is, whoever makes the mounts.
        let look =
            |place: &str| json!({ "path": "/bin/sh", "args": ["sh", "-c", format!("ls {place}/etc/passwd >&2")] });
        let rootfs = stage.rootfs().to_str().unwrap().to_owned();
        let enter = "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); nsenter -t $pid -m ls";
        stage.config["hooks"] = json!({
            "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", format!("{enter} {rootfs}/etc/passwd >&2")],
                                "env": ["PATH=/usr/bin:/bin"] }],
            "createContainer": [look(&rootfs)],
        });
    }),
    ("a symlink that goes up", |stage| {
        let rootfs = stage.rootfs();
        for dir in ["run/secret", "run/place", "var"] {
            std::fs::create_dir_all(rootfs.join(dir)).unwrap();
        }
        std::fs::write(rootfs.join("run/fixed"), "fixed\n").unwrap();
        std::os::unix::fs::symlink("../run", rootfs.join("var/run")).unwrap();
        let source = stage.dir.path().join("source").to_str().unwrap().to_owned();
        stage.mount("/var/run/place", "bind", &source, &["bind"]);
        stage.mount("/var/run/new", "tmpfs", "tmpfs", &[]);
        stage.config["linux"]["readonlyPaths"] = json!(["/var/run/fixed"]);
        stage.config["linux"]["maskedPaths"] = json!(["/var/run/secret", "/proc/kcore", "/etc/../var/run/fixed"]);
        stage.config["process"]["cwd"] = json!("/var/run/made");
    }),
    ("a copy of what is covered", |stage| {
        stage.mount("/etc", "tmpfs", "tmpfs", &["tmpcopyup", "nosymfollow", "mode=755"]);
        stage.config["linux"]["readonlyPaths"] = json!(["/etc"]);
    }),
];

#[test]
fn a_program_that_cannot_be_waited_for_does_not_stay() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc waits by another call") {
        return;
    }
    stage.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
    stage.script("while :; do sleep 0.05; done");
    without(&["waitid"], libc::EPERM, || stage.run()).fails(1, "wait for the program");
    stage.is_clean();
}

#[test]
fn mounts_are_the_same_without_detached_ones() {
    let Some(first) = stage() else { return };
    if first.differs("runc needs some of them") {
        return;
    }
    for (what, change) in VARIANTS {
        let mut stage = stage::stage().unwrap();
        rich(&mut stage);
        change(&mut stage);
        if what.starts_with("a user") {
            // The kernel locks them.
            stage.config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/ro");
        }
        stage.args(&["sh", "-c", "cat /etc/passwd /proc/self/mountinfo"]);
        let expected = mounts(stage.run());
        assert!(expected.len() > 15, "{what}: {expected:?}");
        for errno in [libc::ENOSYS, libc::EPERM] {
            assert_eq!(mounts(without(DETACHED, errno, || stage.run())), expected, "{what}, {errno}");
        }
        stage.is_clean();
    }
}

#[test]
fn without_a_mount_namespace_no_stage_stays_on_the_host() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc needs some of them") {
        return;
    }
    stage.namespace("mount", None);
    stage.config["mounts"] = json!([]);
    stage.config["linux"]["maskedPaths"] = json!([]);
    stage.config["linux"]["readonlyPaths"] = json!([]);
    stage.mount("/tmp", "tmpfs", "tmpfs", &[]);
    stage.script("echo ran");
    let rootfs = stage.rootfs();
    let took_away = |expected: usize| {
        let mounted = mounted_on_host(&rootfs);
        assert_eq!(mounted.len(), expected, "{mounted:?}");
        while !mounted_on_host(&rootfs).is_empty() {
            let _ = rustix::mount::unmount(rootfs.join("tmp"), rustix::mount::UnmountFlags::DETACH);
            let _ = rustix::mount::unmount(&rootfs, rustix::mount::UnmountFlags::DETACH);
        }
    };
    assert_eq!(stage.output(), "ran\n");
    took_away(2);
    assert_eq!(without(DETACHED, libc::ENOSYS, || stage.run()).ok().out, "ran\n");
    took_away(2);
    // Nor after a failure: this file system is made on the stage, and cannot go to a file.
    stage.mount("/etc/passwd", "tmpfs", "tmpfs", &[]);
    let _ = without(DETACHED, libc::ENOSYS, || stage.run()).fails(1, "/etc/passwd");
    took_away(2);
}

/// Mounts of this test's host below a directory.
fn mounted_on_host(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines().filter(|line| line.contains(dir.to_str().unwrap())).map(str::to_owned).collect()
}

/// As systemd makes it.
#[test]
fn on_a_shared_root_it_is_the_same() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--propagation", "shared"]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "--test-threads", "1", "mounts_are_the_same_without_detached_ones"]);
    command.args(["without_a_mount_namespace_no_stage_stays_on_the_host", "a_missing_call_changes_nothing"]);
    let output = command.arg("a_stage_that_was_left_over_the_hosts_root_is_taken_away").output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("4 passed"), "{output:?}");
}

#[test]
fn a_stage_that_was_left_over_the_hosts_root_is_taken_away() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc needs some of them") {
        return;
    }
    stage.namespace("mount", None);
    stage.config["mounts"] = json!([]);
    stage.config["linux"]["maskedPaths"] = json!([]);
    stage.config["linux"]["readonlyPaths"] = json!([]);
    stage.mount("/etc", "tmpfs", "tmpfs", &["tmpcopyup"]);
    let rootfs = stage.rootfs();
    let is_stage = |line: &&String| line.contains(" lowrun-stage:");
    let clean = || {
        while !mounted_on_host(&rootfs).is_empty() {
            let _ = rustix::mount::unmount(&rootfs, rustix::mount::UnmountFlags::DETACH);
        }
    };
    // The container side is killed while it fills the new file system, which is on the stage.
    let killed = judging(&["utimensat"], ScmpAction::KillProcess, || without(DETACHED, libc::ENOSYS, || stage.run()));
    let left = mounted_on_host(&rootfs);
    clean();
    assert_ne!(killed.status, 0, "{killed:?}");
    assert_eq!(left.iter().filter(is_stage).count(), 0, "{left:?}");
    assert_ne!(left.len(), 0, "the root's own mount stays, as runc leaves it: {killed:?}");
    stage.is_clean();
    // Here both sides were killed.
    stage.config["mounts"] = json!([]);
    stage.args(&["sleep", "100"]);
    stage.call(&["create", stage.id()]).ok();
    let flags = rustix::mount::MountFlags::empty();
    let own = stage_name(&stage);
    // The lower one is another's, of the same id.
    for name in ["lowrun-stage:x:y", &own] {
        rustix::mount::mount(name, &rootfs, "tmpfs", flags, c"").unwrap();
    }
    stage.call(&["delete", "--force", stage.id()]).ok();
    let left = mounted_on_host(&rootfs);
    clean();
    let left: Vec<&String> = left.iter().filter(is_stage).collect();
    assert!(left.len() == 1 && left[0].contains("lowrun-stage:x:y"), "{left:?}");
}

/// What a stage of the container is called that is there.
fn stage_name(stage: &Stage) -> String {
    format!("lowrun-stage:{}:{}", stage.id(), stage.state()["created"].as_str().unwrap())
}

/// A process that holds a namespace, for as long.
struct Holder(std::process::Child);

impl std::ops::Deref for Holder {
    type Target = std::process::Child;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_stage_in_a_namespace_that_was_joined_is_taken_away() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc makes none") {
        return;
    }
    let holder = holder_of_mounts();
    stage.namespace("mount", Some(&format!("/proc/{}/ns/mnt", holder.id())));
    let table = format!("/proc/{}/mountinfo", holder.id());
    let stages = || std::fs::read_to_string(&table).unwrap().matches(" lowrun-stage:").count();
    let bare = json!([]);
    for key in ["maskedPaths", "readonlyPaths"] {
        stage.config["linux"][key] = bare.clone();
    }
    stage.config["mounts"] = bare;
    stage.mount("/etc", "tmpfs", "tmpfs", &["tmpcopyup"]);
    // The container side is killed while it fills the new file system, which is on the stage.
    let killed = judging(&["utimensat"], ScmpAction::KillProcess, || without(DETACHED, libc::ENOSYS, || stage.run()));
    assert_ne!(killed.status, 0, "{killed:?}");
    assert_eq!(stages(), 0, "{}", std::fs::read_to_string(&table).unwrap());
    // Here both sides were killed.
    stage.config["mounts"] = json!([]);
    stage.args(&["sleep", "100"]);
    stage.call(&["create", stage.id()]).ok();
    // Its root is the container's by now.
    mount_in(&holder, &stage_name(&stage));
    assert_eq!(stages(), 1);
    stage.call(&["delete", "--force", stage.id()]).ok();
    assert_eq!(stages(), 0);
    drop(holder);
    stage.is_clean();
}

fn holder_of_mounts() -> Holder {
    let holder = std::process::Command::new("unshare").args(["--mount", "sleep", "1000"]).spawn().unwrap();
    let holder = Holder(holder);
    let comm = format!("/proc/{}/comm", holder.id());
    stage::eventually("the namespace is made", || std::fs::read_to_string(&comm).unwrap().trim() == "sleep");
    holder
}

fn mount_in(holder: &Holder, name: &str) {
    let mut enter = std::process::Command::new("nsenter");
    enter.args(["--mount", "--target", &holder.id().to_string(), "mount", "-t", "tmpfs", name, "/"]);
    assert!(enter.status().unwrap().success());
}

#[test]
fn a_namespace_that_has_taken_the_place_of_the_joined_one_is_left_alone() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc makes none") {
        return;
    }
    let (joined, other) = (holder_of_mounts(), holder_of_mounts());
    let path = stage.dir.path().join("namespace");
    let lead_to = |holder: &Holder| {
        let _ = std::fs::remove_file(&path);
        std::os::unix::fs::symlink(format!("/proc/{}/ns/mnt", holder.id()), &path).unwrap();
    };
    lead_to(&joined);
    stage.namespace("mount", Some(path.to_str().unwrap()));
    for key in ["maskedPaths", "readonlyPaths"] {
        stage.config["linux"][key] = json!([]);
    }
    stage.config["mounts"] = json!([]);
    stage.args(&["sleep", "100"]);
    stage.call(&["create", stage.id()]).ok();
    // Even what has the right name is not taken there.
    mount_in(&other, &stage_name(&stage));
    lead_to(&other);
    stage.call(&["delete", "--force", stage.id()]).ok();
    let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", other.id())).unwrap();
    assert_eq!(table.matches(" lowrun-stage:").count(), 1, "{table}");
    stage.is_clean();
}

#[test]
fn what_lies_above_the_limit_of_descriptors_reaches_neither_program_nor_hook() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc needs some of them") {
        return;
    }
    let seen = stage.dir.path().join("seen");
    let look = "ls /proc/self/fd | tr '\\n' ' '";
    let hook = json!([{ "path": "/bin/sh", "args": ["sh", "-c", format!("{look} >> {}", seen.display())],
                        "env": ["PATH=/usr/bin:/bin"] }]);
    stage.config["hooks"] = json!({ "createRuntime": hook, "poststop": hook });
    stage.script(&look.replace("tr '\\n' ' '", "cat"));
    stage.write_config();
    // The caller's limit is lower than a descriptor that it has.
    let call = stage.command();
    let open = || {
        let mut shell = std::process::Command::new("bash");
        shell.args(["-c", "exec 900</etc; ulimit -Sn 100; exec \"$0\" \"$@\""]);
        shell.arg(call.get_program()).args(call.get_args()).args(["run", stage.id()]).current_dir(stage.bundle());
        stage.finish(shell)
    };
    let (expected, _) = (open().ok().out, std::fs::remove_file(&seen).unwrap());
    assert!(!expected.contains("900"), "{expected}");
    for errno in [libc::ENOSYS, libc::EPERM] {
        let _ = std::fs::remove_file(&seen);
        assert_eq!(without(&["close_range"], errno, open).ok().out, expected);
        let seen = std::fs::read_to_string(&seen).unwrap();
        assert!(seen.contains("0 1 2") && !seen.contains("900"), "{seen}");
    }
    stage.is_clean();
}

#[test]
fn a_pidfd_that_cannot_be_made_is_named() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("the words are lowrun's") {
        return;
    }
    let path = stage.dir.path().join("pidfd.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    stage.script("while :; do sleep 0.05; done");
    let socket = ["--pidfd-socket", path.to_str().unwrap()];
    for errno in [libc::ENOSYS, libc::EPERM] {
        let run = || stage.call(&[&["run", "-d"], &socket[..], &[stage.id()]].concat());
        let _ = without(PIDFD, errno, run).fails(1, "send the pidfd to --pidfd-socket: pidfd_open");
        stage.is_clean();
        stage.detached();
        let exec = || stage.call(&[&["exec", "-d"], &socket[..], &[stage.id(), "true"]].concat());
        let _ = without(PIDFD, errno, exec).fails(255, "send the pidfd to --pidfd-socket: pidfd_open");
        stage.delete();
    }
}

#[test]
fn a_locked_option_stays_whichever_call_is_missing() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc needs some of them") {
        return;
    }
    let source = stage.dir.path().join("locked");
    std::fs::create_dir(&source).unwrap();
    let flags = rustix::mount::MountFlags::NODEV | rustix::mount::MountFlags::NOEXEC;
    rustix::mount::mount("tmpfs", &source, "tmpfs", flags, c"mode=755").unwrap();
    stage.user_namespace(500_000);
    stage.mount("/mnt", "bind", source.to_str().unwrap(), &["bind", "nosuid"]);
    stage.script("grep ' /mnt ' /proc/self/mountinfo | cut -d' ' -f6");
    std::os::unix::fs::symlink("busybox", stage.rootfs().join("bin/cut")).unwrap();
    let denied: [(&'static [&'static str], i32); 4] = [
        (&["mount_setattr"], libc::ENOSYS),
        (&["mount_setattr"], libc::EPERM),
        (DETACHED, libc::ENOSYS),
        (DETACHED, libc::EPERM),
    ];
    let all: Vec<Outcome> = std::iter::once(stage.run())
        .chain(denied.map(|(calls, errno)| without(calls, errno, || stage.run())))
        .collect();
    rustix::mount::unmount(&source, rustix::mount::UnmountFlags::DETACH).unwrap();
    for seen in &all {
        assert_eq!((seen.status, seen.out.as_str()), (0, "rw,nosuid,nodev,noexec,relatime\n"), "{all:?}");
    }
}

#[test]
fn what_only_the_newer_call_can_do_is_refused_by_name() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("the words are lowrun's") {
        return;
    }
    let source = stage.dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let path = source.to_str().unwrap();
    stage.mount("/all", "bind", path, &["rbind", "rro"]);
    without(&["mount_setattr"], libc::ENOSYS, || stage.run()).fails(1, "/all");
    stage.config["mounts"].as_array_mut().unwrap().pop();
    stage.mount("/mapped", "bind", path, &["rbind", "idmap"]);
    let map = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]);
    let mount = stage.config["mounts"].as_array_mut().unwrap().last_mut().unwrap();
    (mount["uidMappings"], mount["gidMappings"]) = (map.clone(), map);
    without(DETACHED, libc::EPERM, || stage.run()).fails(1, "id-mapped mounts need open_tree and move_mount");
    stage.is_clean();
}

#[test]
fn a_container_is_entered_and_killed_without_the_calls_on_pidfds() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc needs some of them") {
        return;
    }
    stage.user_namespace(500_000);
    stage.namespace("cgroup", Some(""));
    stage.script("trap 'echo heard > /tmp/heard; exit 3' TERM; while :; do sleep 0.05; done");
    for errno in [libc::ENOSYS, libc::EPERM] {
        let _ = std::fs::remove_file(stage.rootfs().join("tmp/heard"));
        without(PIDFD, errno, || {
            stage.detached();
            let outcome = stage.exec("for n in /proc/self/ns/*; do readlink $n; done > /tmp/exec; for n in /proc/1/ns/*; do readlink $n; done; exit 7");
            assert_eq!(outcome.status, 7, "{outcome:?}");
            assert_eq!(outcome.out, std::fs::read_to_string(stage.rootfs().join("tmp/exec")).unwrap());
            stage.call(&["kill", stage.id(), "TERM"]).ok();
            stage::eventually("stopped", || stage.status() == "stopped");
            stage.call(&["kill", stage.id(), "0"]).fails(1, "not running");
            stage.delete();
        });
        assert_eq!(std::fs::read_to_string(stage.rootfs().join("tmp/heard")).unwrap(), "heard\n");
        stage.is_clean();
    }
}

#[test]
fn a_hook_has_its_time_and_a_listener_its_agent_without_the_calls_on_pidfds() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc needs some of them") {
        return;
    }
    let hook = |script: &str| json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 1 }]);
    stage.config["hooks"] = json!({ "createRuntime": hook("sleep 20") });
    let begun = std::time::Instant::now();
    without(PIDFD, libc::ENOSYS, || stage.run()).fails(1, "timeout");
    assert!(begun.elapsed() < std::time::Duration::from_secs(10));
    stage.config["hooks"] = json!({ "createRuntime": hook("true") });
    let path = stage.dir.path().join("agent");
    let agent = std::os::unix::net::UnixListener::bind(&path).unwrap();
    stage.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }],
    });
    stage.script("mkdir /tmp/x; echo $?");
    let answers = std::thread::spawn(move || {
        let (_, fd) = stage::take_listener(&agent.accept().unwrap().0);
        let request = libseccomp::ScmpNotifReq::receive(fd.as_raw_fd()).unwrap();
        let flags = libseccomp::ScmpNotifRespFlags::empty();
        libseccomp::ScmpNotifResp::new_error(request.id, -libc::EXDEV, flags).respond(fd.as_raw_fd()).unwrap();
    });
    let outcome = without(PIDFD, libc::EPERM, || stage.run()).ok();
    answers.join().unwrap();
    assert_eq!(outcome.out, "1\n");
    assert!(outcome.err.contains("Invalid cross-device link"), "{outcome:?}");
    stage.is_clean();
}
