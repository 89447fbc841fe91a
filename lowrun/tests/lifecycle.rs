//! A container's life through the command line, as runc's callers use it.

mod stage;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use serde_json::{Value, json};
use stage::{Outcome, Stage, eventually, stage};

const LOOP: &str = "trap 'exit 3' TERM; while :; do sleep 0.02; done";

#[test]
fn run_gives_the_programs_output_and_status() {
    let Some(mut stage) = stage() else { return };
    stage.script("echo out; echo err >&2; exit 7");
    let outcome = stage.run();
    assert_eq!((outcome.status, outcome.out.as_str()), (7, "out\n"));
    assert!(outcome.err.contains("err"));
    stage.is_clean();
    stage.script("kill -9 $$");
    // The first process of a pid namespace cannot kill itself; a child of its shell can be.
    stage.script("sh -c 'kill -9 $$'; exit $?");
    assert_eq!(stage.run().status, 137);
    stage.is_clean();
}

#[test]
fn stdin_reaches_the_program_unchanged() {
    let Some(mut stage) = stage() else { return };
    stage.args(&["cat"]);
    stage.write_config();
    let mut command = stage.command();
    let mut child = command.args(["run", stage.id()]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let sent: Vec<u8> = (0..200_000_u32).map(|i| (i * 7 % 256) as u8).collect();
    let mut stdin = child.stdin.take().unwrap();
    let copy = sent.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&copy).unwrap());
    let mut got = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut got).unwrap();
    writer.join().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(got == sent);
}

#[test]
fn create_waits_for_start() {
    let Some(mut stage) = stage() else { return };
    stage.script(LOOP);
    let pid_file = stage.dir.path().join("pid");
    stage.call(&["create", "--pid-file", pid_file.to_str().unwrap(), stage.id()]).ok();
    let state = stage.state();
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], stage.id());
    assert_eq!(state["bundle"], stage.bundle().to_str().unwrap());
    assert_eq!(state["rootfs"], stage.rootfs().to_str().unwrap());
    assert_eq!(state["pid"].to_string(), std::fs::read_to_string(&pid_file).unwrap());
    assert!(state["created"].as_str().unwrap().ends_with('Z'));
    stage.call(&["start", stage.id()]).ok();
    assert_eq!(stage.status(), "running");
    stage.call(&["start", stage.id()]).fails(1, "cannot start an already running container");
    stage.call(&["delete", stage.id()]).fails(1, "is not stopped: running");
    stage.call(&["kill", stage.id(), "TERM"]).ok();
    eventually("stopped", || stage.status() == "stopped");
    assert_eq!(stage.state()["pid"], 0);
    stage.call(&["start", stage.id()]).fails(1, "cannot start a container that has stopped");
    stage.call(&["kill", stage.id(), "TERM"]).fails(1, "container not running");
    stage.call(&["delete", stage.id()]).ok();
    stage.is_clean();
    stage.call(&["state", stage.id()]).fails(1, "does not exist");
}

#[test]
fn a_created_container_can_be_deleted_and_its_id_used_again() {
    let Some(mut stage) = stage() else { return };
    stage.script(LOOP);
    for _ in 0..2 {
        stage.call(&["create", stage.id()]).ok();
        stage.call(&["create", stage.id()]).fails(1, "already exists");
        stage.call(&["delete", stage.id()]).ok();
        stage.is_clean();
    }
}

#[test]
fn what_is_about_to_end_can_be_deleted() {
    let Some(mut stage) = stage() else { return };
    if !stage.is_ours() {
        return;
    }
    // A machine that has much to do may end it too early, or too late.
    let is_awaited = |stage: &mut Stage| {
        stage.script("sleep 0.04");
        stage.detached();
        let is_running = stage.status() == "running";
        let is_deleted = stage.call(&["delete", stage.id()]).status == 0;
        stage.call(&["delete", "--force", stage.id()]).ok();
        is_running && is_deleted
    };
    assert!((0..20).any(|_| is_awaited(&mut stage)));
    stage.script(LOOP);
    stage.detached();
    stage.call(&["delete", stage.id()]).fails(1, "not stopped: running");
}

#[test]
fn delete_force_kills_and_forgets() {
    let Some(mut stage) = stage() else { return };
    stage.script("trap '' TERM; while :; do sleep 0.02; done");
    stage.detached();
    stage.call(&["delete", "--force", stage.id()]).ok();
    stage.is_clean();
    stage.call(&["delete", "--force", stage.id()]).ok();
    stage.call(&["delete", stage.id()]).fails(1, "does not exist");
}

#[test]
fn list_shows_every_container() {
    let Some(mut stage) = stage() else { return };
    if stage.is_ours() {
        // Old runcs take a root that is not there for an empty one.
        stage.call(&["list"]).fails(1, "no such file or directory");
    }
    std::fs::create_dir(stage.root()).unwrap();
    let empty = stage.call(&["list"]).ok().out;
    assert!(empty.starts_with("ID ") && empty.contains("OWNER"), "{empty}");
    stage.script(LOOP);
    stage.detached();
    let table = stage.call(&["list"]).ok().out;
    assert!(table.contains(stage.id()) && table.contains("running") && table.contains("root"), "{table}");
    assert_eq!(stage.call(&["list", "-q"]).ok().out.trim(), stage.id());
    let listed: Value = serde_json::from_str(&stage.call(&["list", "--format", "json"]).ok().out).unwrap();
    assert_eq!(listed[0]["status"], "running");
    assert_eq!(listed[0]["owner"], "root");
    stage.delete();
}

#[test]
fn exec_joins_everything() {
    let Some(mut stage) = stage() else { return };
    stage.script(LOOP);
    stage.detached();
    let outcome = stage.exec("hostname; echo $$ | grep -qv '^1$' && ps | grep -c trap; pwd; exit 7");
    assert_eq!(outcome.status, 7);
    assert!(outcome.out.starts_with("staged\n"), "{outcome:?}");
    let own = stage.exec("for n in mnt pid net ipc uts; do readlink /proc/self/ns/$n; done").ok().out;
    let init = stage.exec("for n in mnt pid net ipc uts; do readlink /proc/1/ns/$n; done").ok().out;
    assert_eq!(own, init);
    let cgroups = stage.exec("cat /proc/self/cgroup").ok().out;
    assert_eq!(cgroups, stage.exec("cat /proc/1/cgroup").ok().out);
    stage.delete();
}

#[test]
fn exec_takes_its_flags() {
    let Some(mut stage) = stage() else { return };
    stage.script(LOOP);
    stage.detached();
    let id = stage.id().to_owned();
    let words = ["exec", "-u", "1000:100", "-g", "7", "--cwd", "/tmp", "-e", "A=b c", &id, "sh", "-c"];
    let outcome = stage.call(&[&words[..], &["id -u; id -g; id -G; pwd; echo \"$A\"; echo $HOME"]].concat()).ok();
    assert_eq!(outcome.out, "1000\n100\n100 7\n/tmp\nb c\n/home/u\n");
    stage.call(&["exec", &id, "no-such-program"]).fails(255, "executable file not found in $PATH");
    stage.call(&["exec", "--cwd", "/nowhere", &id, "true"]).fails(255, "/nowhere");
    let process = stage.dir.path().join("process.json");
    let section = json!({ "args": ["sh", "-c", "echo from file; exit 3"], "cwd": "/", "env": ["PATH=/bin"] });
    std::fs::write(&process, section.to_string()).unwrap();
    let outcome = stage.call(&["exec", "--process", process.to_str().unwrap(), &id]);
    assert_eq!((outcome.status, outcome.out.as_str()), (3, "from file\n"));
    stage.delete();
    stage.call(&["exec", &id, "true"]).fails(255, "does not exist");
}

#[test]
fn exec_detached_leaves_a_pid_file() {
    let Some(mut stage) = stage() else { return };
    stage.script(LOOP);
    stage.detached();
    let file = stage.dir.path().join("exec-pid");
    stage.call(&["exec", "-d", "--pid-file", file.to_str().unwrap(), stage.id(), "sleep", "60"]).ok();
    let pid = std::fs::read_to_string(&file).unwrap();
    let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(command.starts_with("sleep"), "{command}");
    let pids: Vec<i32> = serde_json::from_str(&stage.call(&["ps", "--format", "json", stage.id()]).ok().out).unwrap();
    assert!(pids.contains(&pid.parse().unwrap()), "{pids:?}");
    stage.delete();
}

#[test]
fn a_terminal_goes_through_the_console_socket() {
    let Some(mut stage) = stage() else { return };
    stage.config["process"]["terminal"] = json!(true);
    stage.config["process"]["consoleSize"] = json!({ "height": 17, "width": 71 });
    stage.script("tty; stty size; ls -l /dev/console; read line; echo got $line");
    stage.call(&["create", stage.id()]).fails(1, "console socket");
    stage.is_clean();
    let path = stage.dir.path().join("console.sock");
    let listener = UnixListener::bind(&path).unwrap();
    stage.call(&["create", "--console-socket", path.to_str().unwrap(), stage.id()]).ok();
    let (socket, _) = listener.accept().unwrap();
    let mut master = std::fs::File::from(receive(&socket.into()));
    stage.call(&["start", stage.id()]).ok();
    master.write_all(b"hello\n").unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 512];
    while !seen.contains("got hello") {
        match master.read(&mut buffer) {
            Ok(length) if length > 0 => seen += &String::from_utf8_lossy(&buffer[..length]),
            _ => break,
        }
    }
    assert!(seen.contains("/dev/pts/0") && seen.contains("17 71") && seen.contains("got hello"), "{seen}");
    eventually("stopped", || stage.status() == "stopped");
    stage.delete();
}

fn receive(socket: &OwnedFd) -> OwnedFd {
    receive_with(socket, &mut [0; 64]).1
}

#[test]
fn a_terminal_in_the_foreground_relays() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc wants a terminal on stdin") {
        return;
    }
    stage.config["process"]["terminal"] = json!(true);
    stage.script("tty; cat; exit 4");
    stage.write_config();
    let mut command = stage.command();
    let mut child = command.args(["run", stage.id()]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // The end of stdin is control-D: cat ends by it.
    child.stdin.take().unwrap().write_all(b"typed\n").unwrap();
    let mut seen = String::new();
    child.stdout.take().unwrap().read_to_string(&mut seen).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(4));
    assert!(seen.contains("/dev/pts/0") && seen.matches("typed").count() == 2, "{seen:?}");
}

#[test]
fn pause_stops_and_resume_goes_on() {
    let Some(mut stage) = stage() else { return };
    stage.script(LOOP);
    stage.detached();
    let id = stage.id().to_owned();
    stage.call(&["resume", &id]).fails(1, "not paused");
    stage.call(&["pause", &id]).ok();
    assert_eq!(stage.status(), "paused");
    stage.call(&["exec", &id, "true"]).fails(255, "paused");
    stage.call(&["resume", &id]).ok();
    assert_eq!(stage.status(), "running");
    stage.call(&["pause", &id]).ok();
    stage.call(&["delete", "--force", &id]).ok();
    stage.is_clean();
}

#[test]
fn signals_of_the_caller_reach_a_program_in_the_foreground() {
    let Some(mut stage) = stage() else { return };
    stage.script("trap 'exit 9' TERM; echo up; while :; do sleep 0.02; done");
    stage.write_config();
    let mut child = stage.command().args(["run", stage.id()]).stdout(Stdio::piped()).spawn().unwrap();
    let mut up = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
    stage.is_clean();
}

#[test]
fn kill_takes_numbers_and_names() {
    let Some(mut stage) = stage() else { return };
    stage.script("trap 'echo usr1 > /tmp/got' USR1; while :; do sleep 0.02; done");
    stage.detached();
    let id = stage.id().to_owned();
    stage.call(&["kill", &id, "0"]).ok();
    eventually("the trap is set and the signal came", || {
        stage.call(&["kill", &id, "SIGUSR1"]).ok();
        stage.rootfs().join("tmp/got").exists()
    });
    stage.call(&["kill", &id, "MOON"]).fails(1, "unknown signal");
    stage.call(&["kill", &id, "9"]).ok();
    eventually("stopped", || stage.status() == "stopped");
}

#[test]
fn spec_writes_a_bundle_that_runs() {
    let Some(stage) = stage() else { return };
    let _ = std::fs::remove_file(stage.bundle().join("config.json"));
    let mut command = stage.command();
    command.arg("spec");
    stage.finish(command).ok();
    let text = std::fs::read_to_string(stage.bundle().join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["process"]["args"], json!(["sh"]));
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["true"]);
    config["linux"]["cgroupsPath"] = stage.config["linux"]["cgroupsPath"].clone();
    std::fs::write(stage.bundle().join("config.json"), config.to_string()).unwrap();
    let mut command = stage.command();
    command.args(["run", stage.id()]);
    stage.finish(command).ok();
}

#[test]
fn features_and_events_are_json() {
    let Some(mut stage) = stage() else { return };
    let features: Value = serde_json::from_str(&stage.call(&["features"]).ok().out).unwrap();
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);
    // All annotations that do something beyond the container, as runc tells them.
    let unsafe_ones = ["bundle", "org.systemd.property.", "org.criu.config"];
    assert_eq!(features["potentiallyUnsafeConfigAnnotations"], serde_json::json!(unsafe_ones));
    stage.script(LOOP);
    stage.detached();
    let events: Value = serde_json::from_str(&stage.call(&["events", "--stats", stage.id()]).ok().out).unwrap();
    assert_eq!(events["type"], "stats");
    assert!(events["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    assert!(events["data"]["pids"]["current"].as_u64().unwrap() >= 1);
    stage.delete();
}

#[test]
fn preserved_descriptors_reach_the_program_and_no_others() {
    let Some(mut stage) = stage() else { return };
    stage.script("cat <&3; ls /proc/self/fd | wc -l");
    stage.write_config();
    let file = stage.dir.path().join("passed");
    std::fs::write(&file, "passed\n").unwrap();
    let line = format!(
        "exec 3<{} 5</etc/hostname; exec {} --root {} run --preserve-fds 1 {}",
        file.display(),
        stage.command().get_program().display(),
        stage.root().display(),
        stage.id()
    );
    let mut shell = std::process::Command::new("bash");
    shell.args(["-c", &line]).current_dir(stage.bundle()).stdin(Stdio::null());
    // 0, 1, 2, 3 and the directory that ls reads.
    assert_eq!(stage.finish(shell).ok().out, "passed\n5\n");
    stage.call(&["run", "--preserve-fds", "9", stage.id()]).fails(1, "preserved-fd");
}

#[test]
fn a_waiting_process_holds_nothing_of_the_host_and_can_be_ended() {
    let Some(mut stage) = stage() else { return };
    stage.script(LOOP);
    stage.call(&["create", stage.id()]).ok();
    let pid = stage.state()["pid"].to_string();
    if stage.is_ours() {
        let held = || -> Vec<String> {
            let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
            let targets = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
            let targets = targets.map(|target| target.display().to_string());
            targets.filter(|target| !target.starts_with("anon_inode:") && !target.ends_with("/exec.fifo")).collect()
        };
        // Stdio: the container's own null device and the test's two files. It closes the rest when it has said that it is
        // ready, which is what `create` waits for.
        let begun = std::time::Instant::now();
        while held().len() != 3 {
            assert!(begun.elapsed() < stage::PATIENCE, "{:?}", held());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    stage.call(&["kill", stage.id(), "TERM"]).ok();
    eventually("stopped", || stage.status() == "stopped");
    stage.call(&["start", stage.id()]).fails(1, "stopped");
    stage.delete();
}

#[test]
fn a_pidfd_of_the_process_goes_through_its_socket() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("needs runc 1.2") {
        return;
    }
    stage.script(LOOP);
    let path = stage.dir.path().join("pidfd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    for words in [&["create"][..], &["exec", "-d"]] {
        let mut line = words.to_vec();
        line.extend(["--pidfd-socket", path.to_str().unwrap(), stage.id()]);
        if words[0] == "exec" {
            stage.call(&["start", stage.id()]).ok();
            line.extend(["sleep", "60"]);
        }
        stage.call(&line).ok();
        let (socket, _) = listener.accept().unwrap();
        let pidfd = receive(&socket.into());
        rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::CONT).unwrap();
    }
    stage.delete();
}

#[test]
fn a_seccomp_listener_gets_its_descriptor_and_answers() {
    let Some(mut stage) = stage() else { return };
    let path = stage.dir.path().join("seccomp.sock");
    let listener = UnixListener::bind(&path).unwrap();
    stage.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": path,
        "listenerMetadata": "words",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }],
    });
    let agent = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        let mut document = vec![0; 65_536];
        let (length, descriptor) = receive_with(&socket.into(), &mut document);
        let document: Value = serde_json::from_slice(&document[..length]).unwrap();
        assert_eq!(document["metadata"], "words");
        assert_eq!(document["fds"][0], "seccompFd");
        assert_eq!(document["state"]["status"], "creating");
        use std::os::fd::AsRawFd;
        let fd = descriptor.as_raw_fd();
        let request = libseccomp::ScmpNotifReq::receive(fd).unwrap();
        libseccomp::ScmpNotifResp::new_error(request.id, -libc::ENOMEDIUM, libseccomp::ScmpNotifRespFlags::empty())
            .respond(fd)
            .unwrap();
    });
    stage.script("mkdir /tmp/x");
    let outcome = stage.run();
    assert!(outcome.err.contains("No medium found"), "{outcome:?}");
    agent.join().unwrap();
}

fn receive_with(socket: &OwnedFd, words: &mut [u8]) -> (usize, OwnedFd) {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [std::io::IoSliceMut::new(words)], &mut control, RecvFlags::empty()).unwrap();
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    (received.bytes, descriptor.unwrap())
}

/// As [`Stage::call`], without config.json being written, which another may be reading.
fn call(stage: &Stage, words: &[&str]) -> Outcome {
    let mut command = stage.command();
    command.args(words);
    stage.finish(command)
}

#[test]
fn a_container_in_the_foreground_is_everybodys() {
    let Some(mut stage) = stage() else { return };
    stage.script("while :; do sleep 0.05; done");
    stage.write_config();
    let mut run = stage.command().args(["run", stage.id()]).spawn().unwrap();
    eventually("running", || call(&stage, &["state", stage.id()]).out.contains("\"running\""));
    // Each of these would wait for the program's end, if the one in the foreground kept the container to itself.
    call(&stage, &["start", stage.id()]).fails(1, "already running");
    call(&stage, &["delete", stage.id()]).fails(1, "not stopped");
    call(&stage, &["exec", stage.id(), "true"]).ok();
    call(&stage, &["delete", "--force", stage.id()]).ok();
    assert_eq!(run.wait().unwrap().code(), Some(137));
    stage.is_clean();
}

#[test]
fn who_ran_it_does_not_remove_another_of_the_same_id() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc removes it by its id") {
        return;
    }
    stage.script("while :; do sleep 0.05; done");
    stage.write_config();
    let mut run = stage.command().args(["run", stage.id()]).spawn().unwrap();
    eventually("running", || call(&stage, &["state", stage.id()]).out.contains("\"running\""));
    // Until it has let go of the container, which it does a moment later, others would wait for it.
    eventually("everybody's", || call(&stage, &["exec", stage.id(), "true"]).status == 0);
    let pid = rustix::process::Pid::from_child(&run);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    call(&stage, &["delete", "--force", stage.id()]).ok();
    call(&stage, &["create", stage.id()]).ok();
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(137));
    assert!(call(&stage, &["state", stage.id()]).ok().out.contains("\"created\""));
    stage.delete();
    stage.is_clean();
}
