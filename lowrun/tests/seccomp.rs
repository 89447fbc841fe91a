//! Filters as the program in a container meets them: actions, conditions, flags, the listener, and the kept result.

mod stage;

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use libseccomp::{ScmpNotifReq, ScmpNotifResp, ScmpNotifRespFlags};
use serde_json::{Value, json};
use stage::{Stage, stage, take_listener};

/// Everything is allowed but these calls.
fn deny(stage: &mut Stage, rule: Value) {
    stage.config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
}

#[test]
fn every_action_does_what_it_says() {
    let Some(mut stage) = stage() else { return };
    stage.script("mkdir /tmp/x; s=$?; [ -d /tmp/x ] && rm -r /tmp/x; echo $s");
    std::os::unix::fs::symlink("busybox", stage.rootfs().join("bin/rm")).unwrap();
    // A signal that ends the shell's child is 128 and its number; SIGSYS is 31.
    for (action, errno, status, words) in [
        ("SCMP_ACT_ALLOW", None, "0\n", ""),
        ("SCMP_ACT_LOG", None, "0\n", ""),
        ("SCMP_ACT_ERRNO", None, "1\n", "Operation not permitted"),
        ("SCMP_ACT_ERRNO", Some(95), "1\n", "Operation not supported"),
        ("SCMP_ACT_TRACE", Some(5), "1\n", "not implemented"),
        ("SCMP_ACT_KILL", None, "159\n", ""),
        ("SCMP_ACT_KILL_THREAD", None, "159\n", ""),
        ("SCMP_ACT_KILL_PROCESS", None, "159\n", ""),
        ("SCMP_ACT_TRAP", None, "159\n", ""),
    ] {
        deny(&mut stage, json!({ "names": ["mkdir", "mkdirat"], "action": action, "errnoRet": errno }));
        let outcome = stage.run().ok();
        assert_eq!(outcome.out, status, "{action}: {outcome:?}");
        assert!(outcome.err.contains(words), "{action}: {outcome:?}");
    }
}

#[test]
fn conditions_compare_arguments() {
    let Some(mut stage) = stage() else { return };
    stage.script("touch /tmp/x; for n in 3 5 7; do chmod $n /tmp/x 2>/dev/null || echo $n; done");
    for (op, value, two, denied) in [
        ("SCMP_CMP_NE", 5, 0, "3\n7\n"),
        ("SCMP_CMP_LT", 5, 0, "3\n"),
        ("SCMP_CMP_LE", 5, 0, "3\n5\n"),
        ("SCMP_CMP_EQ", 5, 0, "5\n"),
        ("SCMP_CMP_GE", 5, 0, "5\n7\n"),
        ("SCMP_CMP_GT", 5, 0, "7\n"),
        ("SCMP_CMP_MASKED_EQ", 4, 4, "5\n7\n"),
    ] {
        let rule = |name: &str, index: u32| {
            let condition = json!({ "index": index, "value": value, "valueTwo": two, "op": op });
            json!({ "names": [name], "action": "SCMP_ACT_ERRNO", "args": [condition] })
        };
        // The same call by its two ways.
        stage.config["linux"]["seccomp"] =
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule("chmod", 1), rule("fchmodat", 2)] });
        assert_eq!(stage.output(), denied, "{op}");
    }
}

#[test]
fn flags_are_taken_and_those_that_mean_nothing_here_are_harmless() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("older runcs know fewer flags") {
        return;
    }
    stage.args(&["grep", "Seccomp:", "/proc/self/status"]);
    for flags in [
        json!([]),
        json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"]),
        json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]),
    ] {
        deny(&mut stage, json!({ "names": ["acct"], "action": "SCMP_ACT_ERRNO" }));
        stage.config["linux"]["seccomp"]["flags"] = flags;
        assert_eq!(stage.output(), "Seccomp:\t2\n");
    }
    stage.config["linux"]["seccomp"]["flags"] = json!(["SECCOMP_FILTER_FLAG_MOON"]);
    stage.run().fails(1, "SECCOMP_FILTER_FLAG_MOON");
}

#[test]
fn a_listener_answers_for_the_kernel() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("Debian's runc sends the state in another way") {
        return;
    }
    let path = stage.dir.path().join("agent");
    let listener = UnixListener::bind(&path).unwrap();
    deny(&mut stage, json!({ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }));
    let seccomp = &mut stage.config["linux"]["seccomp"];
    seccomp["listenerPath"] = json!(path);
    seccomp["listenerMetadata"] = json!("for the agent");
    seccomp["flags"] = json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]);
    stage.config["annotations"] = json!({ "a": "b" });
    for no_new_privileges in [true, false] {
        stage.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        stage.script("mkdir /tmp/x; echo $?");
        let agent = listener.try_clone().unwrap();
        let agent = std::thread::spawn(move || {
            let (state, fd) = take_listener(&agent.accept().unwrap().0);
            let request = ScmpNotifReq::receive(fd.as_raw_fd()).unwrap();
            let no = ScmpNotifResp::new_error(request.id, -libc::EXDEV, ScmpNotifRespFlags::empty());
            no.respond(fd.as_raw_fd()).unwrap();
            (state, request.pid)
        });
        let outcome = stage.run().ok();
        let (state, pid) = agent.join().unwrap();
        assert_eq!(outcome.out, "1\n");
        assert!(outcome.err.contains("Invalid cross-device link"), "{outcome:?}");
        assert_eq!(state["fds"], json!(["seccompFd"]));
        assert_eq!(state["metadata"], "for the agent");
        assert_eq!(state["state"]["id"], stage.id());
        assert_eq!(state["state"]["annotations"]["a"], "b");
        assert!(state["pid"].as_i64().unwrap() > 0 && pid > 0);
    }
}

#[test]
fn a_listener_that_is_not_there_is_told() {
    let Some(mut stage) = stage() else { return };
    deny(&mut stage, json!({ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }));
    stage.config["linux"]["seccomp"]["listenerPath"] = json!("/no/such/agent");
    assert_eq!(stage.run().status, 1);
    stage.is_clean();
}

#[test]
fn what_is_kept_is_the_owners_alone_and_trusted_only_then() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("the cache is lowrun's") {
        return;
    }
    deny(&mut stage, json!({ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }));
    stage.script("mkdir /tmp/x 2>/dev/null; echo $?");
    assert_eq!(stage.output(), "1\n");
    let cache = stage.root().join("@seccomp");
    assert_eq!(std::fs::metadata(&cache).unwrap().permissions().mode() & 0o7777, 0o700);
    let kept: Vec<_> = std::fs::read_dir(&cache).unwrap().flatten().map(|entry| entry.path()).collect();
    assert_eq!(kept.len(), 1);
    // A filter that allows everything (one instruction: return ALLOW), as somebody else would like to place it.
    // Before it stands what it is made of: a mark, flags, a length of eight bytes, and as many bytes.
    let real = std::fs::read(&kept[0]).unwrap();
    let program_at = 24 + u64::from_le_bytes(real[16..24].try_into().unwrap()) as usize;
    let forged = [&real[..program_at], &[6, 0, 0, 0, 0, 0, 0xff, 0x7f]].concat();
    let forge = |mode: u32| {
        let _ = std::fs::remove_file(&kept[0]);
        std::fs::write(&kept[0], &forged).unwrap();
        std::fs::set_permissions(&kept[0], PermissionsExt::from_mode(mode)).unwrap();
    };
    forge(0o600);
    assert_eq!(stage.output(), "0\n", "the owner's own is used: so the cases below are no empty ones");
    for mode in [0o602, 0o620, 0o644] {
        let _ = std::fs::remove_dir_all(stage.rootfs().join("tmp/x"));
        forge(mode);
        assert_eq!(stage.output(), "1\n", "a file of mode {mode:o}");
    }
    forge(0o600);
    std::os::unix::fs::chown(&kept[0], Some(1234), None).unwrap();
    assert_eq!(stage.output(), "1\n", "a file of another owner");
    forge(0o600);
    std::fs::set_permissions(&cache, PermissionsExt::from_mode(0o770)).unwrap();
    assert_eq!(stage.output(), "1\n", "a directory that others can write to");
    std::fs::set_permissions(&cache, PermissionsExt::from_mode(0o700)).unwrap();
    let real = stage.root().join("elsewhere");
    std::fs::rename(&cache, &real).unwrap();
    std::os::unix::fs::symlink(&real, &cache).unwrap();
    assert_eq!(stage.output(), "1\n", "a symlink");
    std::fs::remove_file(&cache).unwrap();
    std::fs::remove_dir_all(&real).unwrap();
}

/// The descriptors that a process has.
fn descriptors_of(pid: u64) -> Vec<String> {
    let dir = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut all: Vec<String> = dir
        .flatten()
        .map(|entry| {
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            format!("{} {}", entry.file_name().display(), target.display())
        })
        .collect();
    all.sort();
    all
}

/// On Linux 6.1 root of the user namespace could look at the process in the middle of `execve`: here it is held at its
/// beginning, by a filter that asks an agent.
#[test]
fn nothing_but_stdio_is_open_when_the_program_is_executed() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc leaves it to execve to close them") {
        return;
    }
    let path = stage.dir.path().join("agent");
    let agent = UnixListener::bind(&path).unwrap();
    stage.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": [{ "names": ["execve"], "action": "SCMP_ACT_NOTIFY" }], "listenerPath": path,
    });
    stage.args(&["sleep", "1000"]);
    stage.write_config();
    let begin = |words: &[&str]| {
        let mut command = stage.command();
        command.arg("--log").arg(stage.dir.path().join("log")).args(words).stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
    };
    // Looks at the process that is held, and lets it go.
    let look = || {
        let (state, listener) = take_listener(&agent.accept().unwrap().0);
        let request = ScmpNotifReq::receive(listener.as_raw_fd()).unwrap();
        let open = descriptors_of(state["pid"].as_u64().unwrap());
        let on = ScmpNotifResp::new_continue(request.id, ScmpNotifRespFlags::empty());
        on.respond(listener.as_raw_fd()).unwrap();
        // Who is watched by nobody gets ENOSYS: the listener is kept.
        (open, listener)
    };
    let numbers =
        |open: &[String]| open.iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>();
    let mut run = begin(&["run", "--detach", stage.id()]);
    let (open, _first) = look();
    assert_eq!(numbers(&open), ["0", "1", "2"], "run: {open:?}");
    assert!(run.wait().unwrap().success());
    let mut exec = begin(&["exec", stage.id(), "true"]);
    let (open, _second) = look();
    assert_eq!(numbers(&open), ["0", "1", "2"], "exec: {open:?}");
    assert!(exec.wait().unwrap().success());
    stage.delete();
    let mut create = begin(&["create", stage.id()]);
    let (state, listener) = take_listener(&agent.accept().unwrap().0);
    assert!(create.wait().unwrap().success());
    assert!(begin(&["start", stage.id()]).wait().unwrap().success());
    let _request = ScmpNotifReq::receive(listener.as_raw_fd()).unwrap();
    let open = descriptors_of(state["pid"].as_u64().unwrap());
    stage.delete();
    assert_eq!(numbers(&open), ["0", "1", "2"], "create and start: {open:?}");
}
