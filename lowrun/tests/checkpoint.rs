//! `checkpoint` and `restore`: what is asked of CRIU, against a small server of its protocol, and the whole way with the
//! real one where it works.

mod stage;

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use lowrun::criu::field;
use lowrun::criu::wire::{Message, Value, fields};
use serde_json::{Value as Json, json};
use stage::{Outcome, Stage, eventually, stage};

const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.02; done";

/// A directory with a program `criu` that is [`fake_criu`] of this test program.
struct Fake {
    dir: PathBuf,
}

impl Fake {
    fn new(stage: &Stage) -> Fake {
        let dir = stage.dir.path().join("fake");
        std::fs::create_dir(&dir).unwrap();
        let script = format!(
            "#!/bin/sh\nFAKE_CRIU_DIR={} FAKE_CRIU_FD=$2 exec {} --exact fake_criu --nocapture >/dev/null 2>&1\n",
            dir.display(),
            std::env::current_exe().unwrap().display()
        );
        std::fs::write(dir.join("criu"), script).unwrap();
        std::fs::set_permissions(dir.join("criu"), std::fs::Permissions::from_mode(0o755)).unwrap();
        Fake { dir }
    }

    /// Makes the next real request fail.
    fn fail(&self) {
        std::fs::write(self.dir.join("fail"), "").unwrap();
    }

    /// Runs lowrun with this CRIU.
    fn call(&self, stage: &Stage, words: &[&str]) -> Outcome {
        stage.write_config();
        let mut command = stage.command();
        command.args(words).env("PATH", format!("{}:{}", self.dir.display(), std::env::var("PATH").unwrap()));
        stage.finish(command)
    }

    /// The options of the last request of a type.
    fn options(&self, kind: u64) -> Vec<(u32, Option<u64>, Vec<u8>)> {
        let request = std::fs::read(self.dir.join(format!("request-{kind}"))).unwrap();
        let options = fields(&request).unwrap().into_iter().find(|(field, _)| *field == 2).unwrap().1;
        let Value::Bytes(options) = options else { panic!("no options") };
        let parts = fields(options).unwrap().into_iter();
        parts
            .map(|(field, value)| match value {
                Value::Number(number) => (field, Some(number), Vec::new()),
                Value::Bytes(bytes) => (field, None, bytes.to_vec()),
            })
            .collect()
    }

    fn number(&self, kind: u64, wanted: u32) -> Option<u64> {
        self.options(kind).into_iter().find(|(field, ..)| *field == wanted).and_then(|(_, number, _)| number)
    }

    fn texts(&self, kind: u64, wanted: u32) -> Vec<String> {
        let texts = self.options(kind).into_iter().filter(|(field, ..)| *field == wanted);
        texts.map(|(.., text)| String::from_utf8_lossy(&text).into_owned()).collect()
    }

    /// The pairs of a repeated message of two texts.
    fn pairs(&self, kind: u64, wanted: u32) -> Vec<(String, String)> {
        let messages = self.options(kind).into_iter().filter(|(field, ..)| *field == wanted);
        let pair = |bytes: &[u8]| {
            let parts = fields(bytes).unwrap();
            let text = |wanted| parts.iter().find(|(field, _)| *field == wanted).map(|(_, text)| text.text());
            (text(1).unwrap_or_default(), text(2).unwrap_or_default())
        };
        messages.map(|(.., bytes)| pair(&bytes)).collect()
    }
}

const DUMP: u64 = 1;
const RESTORE: u64 = 2;
const PRE_DUMP: u64 = 4;
const NOTIFY: u64 = 6;
const FEATURE_CHECK: u64 = 9;
const VERSION: u64 = 10;

/// Not a test, but the server: it runs when `criu swrk` is called, and does nothing among the tests.
#[test]
fn fake_criu() {
    let Ok(fd) = std::env::var("FAKE_CRIU_FD") else { return };
    let dir = PathBuf::from(std::env::var("FAKE_CRIU_DIR").unwrap());
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let open: Vec<PathBuf> = open.filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect();
    let socket = lowrun::sys::process::take_descriptor(fd.parse().unwrap());
    let request = receive(&socket);
    let parts = fields(&request).unwrap();
    let kind = parts.iter().find(|(field, _)| *field == 1).unwrap().1.number();
    std::fs::write(dir.join(format!("request-{kind}")), &request).unwrap();
    let exe = option(&parts, field::PID).and_then(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).ok());
    std::fs::write(dir.join(format!("exe-{kind}")), format!("{exe:?}")).unwrap();
    let open: Vec<String> = open.iter().map(|path| path.display().to_string()).collect();
    std::fs::write(dir.join(format!("open-{kind}")), open.join("\n")).unwrap();
    let mut answer = Message::default();
    answer.number(1, kind);
    if kind != VERSION && std::fs::remove_file(dir.join("fail")).is_ok() {
        write_log(&parts);
        answer.flag(2, false).signed(7, 16).text(9, "no luck");
    } else {
        answer.flag(2, true);
        serve(kind, &parts, &socket, &mut answer);
    }
    rustix::io::write(&socket, answer.as_bytes()).unwrap();
    std::process::exit(0);
}

#[expect(clippy::zombie_processes, reason = "the restored process is lowrun's to wait for")]
fn serve(kind: u64, parts: &[(u32, Value<'_>)], socket: &OwnedFd, answer: &mut Message) {
    match kind {
        VERSION => {
            let mut version = Message::default();
            version.number(1, 3).number(2, 17).number(4, 1);
            answer.message(10, &version);
        }
        FEATURE_CHECK => {
            let mut features = Message::default();
            features.flag(1, true).flag(2, false);
            answer.message(8, &features);
        }
        DUMP => {
            notify(socket, "network-lock", 0);
            if option(parts, field::LEAVE_RUNNING).is_none() {
                let pid = rustix::process::Pid::from_raw(option(parts, field::PID).unwrap() as i32).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            }
            notify(socket, "post-dump", 0);
        }
        RESTORE => {
            let child = Command::new("sleep").arg("1000").spawn().unwrap();
            notify(socket, "setup-namespaces", child.id());
            notify(socket, "post-restore", child.id());
            let mut restored = Message::default();
            restored.number(1, child.id().into());
            answer.message(4, &restored);
        }
        _ => {}
    }
}

fn receive(socket: &OwnedFd) -> Vec<u8> {
    let mut buffer = vec![0; 1 << 16];
    let length = rustix::io::read(socket.as_fd(), &mut buffer).unwrap();
    buffer.truncate(length);
    buffer
}

fn notify(socket: &OwnedFd, script: &str, pid: u32) {
    let mut notification = Message::default();
    notification.text(1, script).number(2, pid.into());
    let mut message = Message::default();
    message.number(1, NOTIFY).flag(2, true).message(5, &notification);
    rustix::io::write(socket, message.as_bytes()).unwrap();
    let done = receive(socket);
    assert!(fields(&done).unwrap().contains(&(3, Value::Number(1))), "not let on");
}

fn option(parts: &[(u32, Value<'_>)], wanted: u32) -> Option<u64> {
    let options = parts.iter().find(|(field, _)| *field == 2)?.1;
    let Value::Bytes(options) = options else { return None };
    fields(options)?.iter().find(|(field, _)| *field == wanted).map(|(_, value)| value.number())
}

/// The log, where the real one writes it: in the caller's directory, by the caller's descriptor.
fn write_log(parts: &[(u32, Value<'_>)]) {
    let images = option(parts, field::IMAGES_DIR_FD).unwrap();
    let parent = rustix::process::getppid().unwrap().as_raw_nonzero();
    let path = format!("/proc/{parent}/fd/{images}/dump.log");
    let mut log = std::fs::File::create(path).unwrap();
    log.write_all(b"(00.001) begun\n(00.002) Error (criu/moon.c:7): Can't dump the moon\n").unwrap();
}

/// A running container, with the bundle that it was made of.
fn running() -> Option<Stage> {
    let mut stage = stage()?;
    if stage.differs("runc's criu is the real one") {
        return None;
    }
    stage.script(COUNT);
    stage.detached();
    Some(stage)
}

#[test]
fn without_criu_it_is_told_what_to_install() {
    let Some(stage) = running() else { return };
    let log = stage.dir.path().join("log");
    for words in [&["checkpoint", stage.id()][..], &["restore", "other"]] {
        let _ = std::fs::remove_file(&log);
        let mut command = stage.command();
        command.arg("--log").arg(&log).args(["--log-format", "json"]).args(words).env("PATH", "/nonexistent");
        stage.finish(command).fails(1, "criu is not installed");
        let text = std::fs::read_to_string(&log).unwrap();
        let line: Json = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(line["layer"], "runtime");
        assert_eq!(line["step"], format!("{}:criu", words[0]));
        assert_eq!(line["code"], "UNSUPPORTED");
        assert!(line["hint"].as_str().unwrap().contains("install"));
    }
    assert!(!stage.root().join("other").exists());
    assert_eq!(stage.status(), "running");
    stage.delete();
}

#[test]
fn a_dump_is_asked_for_as_runc_asks() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc's criu is the real one") {
        return;
    }
    let shared = stage.dir.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    stage.mount("/tmp/shared", "bind", shared.to_str().unwrap(), &["rbind"]);
    stage.namespace("network", Some("/proc/self/ns/net"));
    stage.script(COUNT);
    stage.detached();
    let pid = stage.state()["pid"].as_u64();
    let fake = Fake::new(&stage);
    let images = stage.dir.path().join("images");
    let words = ["checkpoint", "--image-path", images.to_str().unwrap(), "--tcp-established", "--file-locks"];
    let more = ["--page-server", "127.0.0.1:27", "--manage-cgroups-mode", "strict", "--leave-running", stage.id()];
    let outcome = fake.call(&stage, &[&words[..], &more].concat()).ok();
    assert_eq!(outcome.err, "");
    assert_eq!(fake.number(DUMP, field::PID), pid);
    assert_eq!(fake.texts(DUMP, field::ROOT), [stage.rootfs().display().to_string()]);
    assert_eq!(fake.texts(DUMP, field::LOG_FILE), ["dump.log"]);
    for switch in [field::LEAVE_RUNNING, field::TCP_ESTABLISHED, field::FILE_LOCKS, field::NOTIFY_SCRIPTS] {
        assert_eq!(fake.number(DUMP, switch), Some(1), "{switch}");
    }
    assert_eq!(fake.number(DUMP, field::SHELL_JOB), None);
    assert_eq!(fake.number(DUMP, field::MANAGE_CGROUPS_MODE), Some(5));
    assert_eq!(fake.number(DUMP, field::EMPTY_NS), Some(libc::CLONE_NEWNET as u64));
    assert_eq!(fake.texts(DUMP, field::CONFIG_FILE), ["/etc/criu/runc.conf"]);
    let inode = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
    assert_eq!(fake.texts(DUMP, field::EXTERNAL), [format!("net[{inode}]:extRootNetNS")]);
    let mounts = fake.pairs(DUMP, field::EXT_MNT);
    assert!(mounts.contains(&("/tmp/shared".to_owned(), "/tmp/shared".to_owned())), "{mounts:?}");
    let is_mask = |(path, source): &(String, String)| path.starts_with("/proc/") && source == "/dev/null";
    assert!(mounts.iter().any(is_mask), "{mounts:?}");
    let descriptors: Json = serde_json::from_slice(&std::fs::read(images.join("descriptors.json")).unwrap()).unwrap();
    assert_eq!(descriptors.as_array().unwrap().len(), 3);
    assert_eq!(stage.status(), "running");
    stage.delete();
}

/// Until then it is lowrun, mapped from a mount that CRIU does not find. (strace holds up the program's beginning.)
#[test]
fn a_dump_waits_until_the_program_has_begun() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc's criu is the real one") || !Path::new("/usr/bin/strace").exists() {
        return eprintln!("skipped: needs strace");
    }
    stage.script(COUNT);
    stage.call(&["create", stage.id()]).ok();
    let pid = stage.state()["pid"].to_string();
    let mut strace = Command::new("strace");
    strace.args(["-qq", "-o", "/dev/null", "-e", "inject=execve,execveat:delay_enter=500000", "-p", &pid]);
    let mut strace = strace.spawn().unwrap();
    let is_alone = || std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap().contains("TracerPid:\t0\n");
    eventually("strace looks", || !is_alone());
    stage.call(&["start", stage.id()]).ok();
    let fake = Fake::new(&stage);
    let images = stage.dir.path().join("images");
    fake.call(&stage, &["checkpoint", "--image-path", images.to_str().unwrap(), "--leave-running", stage.id()]).ok();
    let exe = std::fs::read_to_string(fake.dir.join(format!("exe-{DUMP}"))).unwrap();
    assert!(exe.contains("busybox"), "{exe}");
    stage.delete();
    strace.wait().unwrap();
}

/// The directory of the socket for readiness is in no config.json.
#[test]
fn what_lowrun_itself_has_mounted_is_told_of_at_both_ends() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc's criu is the real one") {
        return;
    }
    stage.script("while :; do sleep 0.05; done");
    stage.write_config();
    let mut create = stage.command();
    create.args(["create", stage.id()]).env("NOTIFY_SOCKET", stage.dir.path().join("nobody"));
    stage.finish(create).ok();
    // Without the variable nobody waits for it.
    stage.call(&["start", stage.id()]).ok();
    let fake = Fake::new(&stage);
    let id = stage.id().to_owned();
    fake.call(&stage, &["checkpoint", &id]).ok();
    let own = |(inside, _): &(String, String)| inside == "/run/notify";
    assert!(fake.pairs(DUMP, field::EXT_MNT).iter().any(own));
    fake.call(&stage, &["restore", "--detach", &id]).ok();
    let source = stage.root().join(&id).join("notify");
    assert!(source.is_dir());
    let restored = fake.pairs(RESTORE, field::EXT_MNT).into_iter().find(own);
    assert_eq!(restored.unwrap().1, source.to_str().unwrap());
    stage.delete();
}

#[test]
fn a_dumped_container_is_gone_and_a_restored_one_is_there() {
    let Some(stage) = running() else { return };
    let fake = Fake::new(&stage);
    let images = stage.dir.path().join("images");
    let images = images.to_str().unwrap();
    fake.call(&stage, &["checkpoint", stage.id(), "--image-path", images]).ok();
    stage.is_clean();
    let pid_file = stage.dir.path().join("pid");
    let restore = ["restore", "-d", "--image-path", images, "--pid-file", pid_file.to_str().unwrap(), stage.id()];
    fake.call(&stage, &restore).ok();
    assert_eq!(stage.state()["pid"].to_string(), std::fs::read_to_string(&pid_file).unwrap());
    assert_eq!(stage.status(), "running");
    assert_eq!(fake.number(RESTORE, field::RST_SIBLING), Some(1));
    let root = PathBuf::from(&fake.texts(RESTORE, field::ROOT)[0]);
    assert!(root.starts_with(stage.root()) && !root.exists(), "{}", root.display());
    let roots = fake.pairs(RESTORE, field::CG_ROOT);
    assert!(!roots.is_empty() && roots.iter().all(|(_, path)| path.contains(stage.id())), "{roots:?}");
    if stage::by_systemd() {
        // The unit was made around criu, which has ended.
        let unit = format!("test-{}.scope", stage.id());
        let show = Command::new("systemctl").args(["show", "--value", "-p", "ActiveState", &unit]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&show.stdout).trim(), "active");
    }
    let processes: Vec<i32> =
        serde_json::from_str(&stage.call(&["ps", "--format", "json", stage.id()]).ok().out).unwrap();
    assert!(processes.contains(&stage.state()["pid"].as_i64().unwrap().try_into().unwrap()), "{processes:?}");
    stage.call(&["kill", stage.id(), "KILL"]).ok();
    eventually("stopped", || stage.status() == "stopped");
    stage.delete();
    stage.is_clean();
}

/// CRIU looks for the mount that such a path is on, and finds none.
#[test]
fn dots_in_the_source_of_a_bind_are_not_told_to_criu() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc's criu is the real one") {
        return;
    }
    stage.mount("/tmp/here", "bind", ".", &["bind"]);
    stage.mount("/tmp/below", "bind", "./rootfs/./root", &["bind"]);
    stage.script(COUNT);
    stage.detached();
    let fake = Fake::new(&stage);
    fake.call(&stage, &["checkpoint", stage.id()]).ok();
    fake.call(&stage, &["restore", "-d", stage.id()]).ok();
    let mounts = fake.pairs(RESTORE, field::EXT_MNT);
    for (inside, source) in [("/tmp/here", stage.bundle()), ("/tmp/below", stage.rootfs().join("root"))] {
        assert!(mounts.contains(&(inside.to_owned(), source.display().to_string())), "{mounts:?}");
    }
    stage.delete();
}

/// Descriptors that a caller has open beside stdio, and the directories that they are of.
const LEAK: &str = "exec 3</etc 7</usr 9</var";
const LEAKED: [&str; 3] = ["/etc", "/usr", "/var"];

#[test]
fn descriptors_of_the_caller_do_not_reach_criu() {
    let Some(stage) = running() else { return };
    let fake = Fake::new(&stage);
    let preparation = format!("PATH={}:$PATH; export PATH; {LEAK}", fake.dir.display());
    for (command, kind) in [("checkpoint", DUMP), ("restore", RESTORE)] {
        let words = if command == "restore" { vec![command, "-d", stage.id()] } else { vec![command, stage.id()] };
        stage.call_after(&preparation, &words).ok();
        let open = std::fs::read_to_string(fake.dir.join(format!("open-{kind}"))).unwrap();
        // The connection is there, so others would be seen.
        assert!(open.lines().any(|path| path.starts_with("socket:")), "{command}: {open}");
        assert!(!open.lines().any(|path| LEAKED.contains(&path)), "{command}: {open}");
        // Of lowrun's own: no handle of the root file system, the state or a cgroup.
        let root = stage.dir.path().to_str().unwrap();
        assert!(!open.lines().any(|path| path.starts_with(root) || path.starts_with("/sys/")), "{command}: {open}");
    }
    stage.delete();
    stage.is_clean();
}

#[test]
fn a_restore_in_the_foreground_waits_and_removes() {
    let Some(stage) = running() else { return };
    let fake = Fake::new(&stage);
    fake.call(&stage, &["checkpoint", stage.id()]).ok();
    assert!(stage.bundle().join("checkpoint/descriptors.json").exists());
    let mut command = stage.command();
    command.args(["restore", stage.id()]);
    let path = format!("{}:{}", fake.dir.display(), std::env::var("PATH").unwrap());
    let mut child = command.env("PATH", path).spawn().unwrap();
    eventually("running", || {
        // Without writing config.json, which the restore reads.
        let mut command = stage.command();
        command.args(["state", stage.id()]);
        stage.finish(command).out.contains("\"running\"")
    });
    stage.call(&["kill", stage.id(), "TERM"]).ok();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    stage.is_clean();
}

#[test]
fn crius_own_words_are_told_and_nothing_is_lost() {
    let Some(stage) = running() else { return };
    let fake = Fake::new(&stage);
    fake.fail();
    let outcome = fake.call(&stage, &["checkpoint", stage.id()]);
    outcome.fails(1, "criu failed: type DUMP errno 16: no luck: Error (criu/moon.c:7): Can't dump the moon");
    assert_eq!(stage.status(), "running");
    // Memory alone is saved, and the container goes on.
    fake.call(&stage, &["checkpoint", "--pre-dump", stage.id()]).ok();
    assert_eq!(fake.number(PRE_DUMP, field::LEAVE_RUNNING), None);
    fake.call(&stage, &["checkpoint", "--lazy-pages", stage.id()]).fails(1, "criu is missing features: LazyPages");
    assert_eq!(stage.status(), "running");
    fake.call(&stage, &["checkpoint", stage.id()]).ok();
    fake.fail();
    fake.call(&stage, &["restore", "-d", stage.id()]).fails(1, "criu failed: type RESTORE errno 16");
    stage.is_clean();
}

#[test]
fn a_container_that_does_not_run_has_nothing_to_save() {
    let Some(mut stage) = stage() else { return };
    stage.script(COUNT);
    stage.call(&["create", stage.id()]).ok();
    stage.call(&["checkpoint", stage.id()]).fails(1, "cannot be checkpointed in created state");
    stage.call(&["checkpoint", "no-such"]).fails(1, "does not exist");
    stage.delete();
}

/// The criu of the machine, if it works with this kernel.
fn works(stage: &Stage) -> bool {
    // What a configuration of the machine makes it write is written here.
    let works = Command::new("criu")
        .arg("check")
        .current_dir(stage.dir.path())
        .output()
        .is_ok_and(|output| output.status.success());
    if !works {
        eprintln!("skipped: `criu check` fails here");
    }
    works
}

#[test]
fn a_container_goes_on_where_it_was_saved() {
    let Some(mut stage) = stage() else { return };
    if !works(&stage) {
        return;
    }
    stage.config["linux"]["resources"]["pids"] = json!({ "limit": 60 });
    stage.script(COUNT);
    // Files of the host as its stdio CRIU could not find again.
    let log = stage.dir.path().join("log");
    let quietly = |words: &[&str]| {
        let words = [&["--log", log.to_str().unwrap()], words, &[stage.id()]].concat();
        let outcome = stage.call_after(&format!("exec >/dev/null 2>/dev/null; {LEAK}"), &words);
        assert_eq!(outcome.status, 0, "{words:?}: {}", std::fs::read_to_string(&log).unwrap());
    };
    let open = || stage.exec("for link in /proc/1/fd/*; do readlink $link; done").ok().out;
    quietly(&["run", "-d"]);
    let before = open();
    assert_eq!(before, "/dev/null\n".repeat(3));
    let count = |rootfs: &Path| std::fs::read_to_string(rootfs.join("tmp/count")).ok()?.trim().parse::<u64>().ok();
    let rootfs = stage.rootfs();
    eventually("it counts", || count(&rootfs) > Some(5));
    stage.call(&["checkpoint", "--leave-running", "--image-path", "first", stage.id()]).ok();
    assert_eq!(stage.status(), "running");
    stage.call(&["checkpoint", stage.id()]).ok();
    stage.is_clean();
    let saved = count(&rootfs).unwrap();
    std::fs::write(rootfs.join("tmp/count"), "").unwrap();
    quietly(&["restore", "-d"]);
    assert_eq!(stage.status(), "running");
    assert_eq!(open(), before);
    eventually("it goes on", || count(&rootfs) > Some(saved));
    assert!(count(&rootfs) < Some(saved + 10_000));
    assert_eq!(stage.cgroup_file("pids", "pids.max", "pids.max"), "60");
    assert_eq!(stage.exec("hostname; ls /proc/1/ns | wc -l").ok().out.lines().next(), Some("staged"));
    stage.delete();
    stage.is_clean();
}
