//! `NOTIFY_SOCKET`: what a program tells of its readiness reaches who started lowrun, and nothing else does.
//!
//! The shell of the image cannot send datagrams: the test sends what the program would, to the same socket from outside.

mod stage;

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;

use stage::{Stage, eventually, stage};

const WAITS: &str = "echo $NOTIFY_SOCKET > /tmp/env; test -S $NOTIFY_SOCKET && echo socket > /tmp/seen; \
                     while ! test -e /tmp/end; do sleep 0.02; done; exit 5";

/// A service manager's end, and a command that knows it.
fn manager(stage: &Stage) -> (UnixDatagram, PathBuf) {
    let path = stage.dir.path().join("manager.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(stage::PATIENCE)).unwrap();
    (socket, path)
}

fn command(stage: &Stage, path: &PathBuf, words: &[&str]) -> Command {
    stage.write_config();
    let mut command = stage.command();
    command.args(words).env("NOTIFY_SOCKET", path);
    command
}

/// Says what a program says, to the socket that it sees.
fn say(stage: &Stage, message: &str) {
    let path = stage.root().join(stage.id()).join("notify/notify.sock");
    eventually("the socket is there", || path.exists());
    UnixDatagram::unbound().unwrap().send_to(message.as_bytes(), &path).unwrap();
}

fn heard(socket: &UnixDatagram) -> String {
    let mut message = [0; 256];
    let length = socket.recv(&mut message).unwrap();
    String::from_utf8_lossy(&message[..length]).into_owned()
}

#[test]
fn start_waits_for_the_programs_readiness() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc tells it in two messages") {
        return;
    }
    let (socket, path) = manager(&stage);
    stage.script(WAITS);
    stage.finish(command(&stage, &path, &["create", stage.id()])).ok();
    let mut start = command(&stage, &path, &["start", stage.id()]).spawn().unwrap();
    eventually("the program sees the socket", || stage.rootfs().join("tmp/seen").exists());
    assert_eq!(std::fs::read_to_string(stage.rootfs().join("tmp/env")).unwrap(), "/run/notify/notify.sock\n");
    say(&stage, "STATUS=warming up\n");
    assert!(start.try_wait().unwrap().is_none(), "it waits");
    say(&stage, "STATUS=up\nREADY=1\n");
    assert!(start.wait().unwrap().success());
    assert_eq!(heard(&socket), format!("READY=1\nMAINPID={}\n", stage.state()["pid"]));
    stage.delete();
    stage.is_clean();
}

#[test]
fn a_run_in_the_foreground_tells_it_and_goes_on() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc tells it in two messages") {
        return;
    }
    let (socket, path) = manager(&stage);
    stage.script(WAITS);
    let mut run = command(&stage, &path, &["run", stage.id()]).spawn().unwrap();
    say(&stage, "READY=1");
    assert!(heard(&socket).starts_with("READY=1\nMAINPID="));
    std::fs::write(stage.rootfs().join("tmp/end"), "").unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(5));
    stage.is_clean();
}

#[test]
fn a_program_that_ends_unready_keeps_nobody_waiting() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc 1.1 does not notice the end of a run") {
        return;
    }
    let (_socket, path) = manager(&stage);
    stage.script("exit 6");
    let outcome = stage.finish(command(&stage, &path, &["run", stage.id()]));
    assert_eq!(outcome.status, 6, "{outcome:?}");
    stage.finish(command(&stage, &path, &["create", stage.id()])).ok();
    stage.finish(command(&stage, &path, &["start", stage.id()])).ok();
    eventually("stopped", || stage.status() == "stopped");
    stage.delete();
    stage.is_clean();
}
