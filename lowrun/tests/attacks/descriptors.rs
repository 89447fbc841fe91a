//! Handles of the host that a container must not get: descriptors, working directories, the runtime's own program.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde_json::json;

use crate::canary::Canary;
use crate::stage::{PATIENCE, Stage, eventually, stage};

/// Names each descriptor from 3 on that the shell itself has.
const OPEN_DESCRIPTORS: &str =
    "n=3; while [ $n -lt 64 ]; do [ -e /proc/self/fd/$n ] && echo $n; n=$((n+1)); done; true";

/// A directory of the host as descriptor 3 of the runtime.
fn with_directory(canary: &Canary) -> String {
    format!("exec 3<{}", canary.path().display())
}

/// CVE-2024-21626: a descriptor of the host as working directory.
#[test]
fn a_working_directory_cannot_be_a_descriptor() {
    let Some(mut stage) = stage() else { return };
    let canary = Canary::new(&stage);
    let leak = with_directory(&canary);
    let run = |stage: &Stage| stage.call_after(&leak, &["run", "--preserve-fds", "1", stage.id()]);
    // A container that is given a directory of the host has it: the descriptor works.
    stage.script("cd /proc/self/fd/3 && cat file");
    assert_eq!(run(&stage).ok().out, "host\n");
    symlink("/proc/self/fd/3", stage.rootfs().join("place")).unwrap();
    stage.script("cat file ../canary/file");
    for cwd in ["/proc/self/fd/3", "/proc/self/fd/3/dir", "/proc/self/fd/3/..", "/proc/1/fd/3", "/place", "/place/dir"]
    {
        stage.config["process"]["cwd"] = json!(cwd);
        let outcome = run(&stage);
        assert!(outcome.status != 0 && outcome.out.is_empty(), "{cwd}: {outcome:?}");
        stage.is_clean();
    }
    canary.is_untouched();
}

/// CVE-2024-21626 by exec, whose working directory is typed.
#[test]
fn the_working_directory_of_an_exec_cannot_be_a_descriptor() {
    let Some(mut stage) = stage() else { return };
    let canary = Canary::new(&stage);
    let leak = with_directory(&canary);
    symlink("/proc/self/fd/3", stage.rootfs().join("place")).unwrap();
    stage.args(&["sleep", "1000"]);
    stage.detached();
    let exec = |cwd: &str, script: &str| {
        let words = ["exec", "--preserve-fds", "1", "--cwd", cwd, stage.id(), "sh", "-c", script];
        stage.call_after(&leak, &words)
    };
    assert_eq!(exec("/", "cd /proc/self/fd/3 && cat file").ok().out, "host\n");
    for cwd in ["/proc/self/fd/3", "/proc/self/fd/3/dir", "/proc/self/fd/3/..", "/place", "/place/dir"] {
        let outcome = exec(cwd, "cat file");
        assert!(outcome.status != 0 && outcome.out.is_empty(), "{cwd}: {outcome:?}");
    }
    // Without a gift there is no descriptor to go through: those of the runtime itself are guarded in the same way.
    for number in 3..40 {
        let cwd = format!("/proc/self/fd/{number}");
        let outcome = stage.call(&["exec", "--cwd", &cwd, stage.id(), "ls"]);
        assert!(outcome.status != 0 && outcome.out.is_empty(), "{cwd}: {outcome:?}");
    }
    stage.delete();
    canary.is_untouched();
}

/// CVE-2024-21626 and CVE-2015-3627: what the runtime or its caller has open.
#[test]
fn only_stdio_reaches_the_program() {
    let Some(mut stage) = stage() else { return };
    let leak = "exec 3</etc 7</etc 9</etc";
    stage.script(OPEN_DESCRIPTORS);
    // One that is asked for is seen, so the others would be.
    assert_eq!(stage.call_after(leak, &["run", "--preserve-fds", "1", stage.id()]).ok().out, "3\n");
    assert_eq!(stage.call_after(leak, &["run", stage.id()]).ok().out, "");
    stage.script(&format!("({OPEN_DESCRIPTORS}) > /tmp/open; exec sleep 1000"));
    stage.call_after(leak, &["create", stage.id()]).ok();
    stage.call(&["start", stage.id()]).ok();
    let exec = |words: &[&str]| {
        let words = [words, &[stage.id(), "sh", "-c", OPEN_DESCRIPTORS]].concat();
        stage.call_after(leak, &words).ok().out
    };
    assert_eq!(exec(&["exec", "--preserve-fds", "1"]), "3\n");
    assert_eq!(exec(&["exec"]), "");
    assert_eq!(fs::read_to_string(stage.rootfs().join("tmp/open")).unwrap(), "");
    stage.delete();
}

/// CVE-2019-5736: the runtime's own program through /proc/self/exe.
#[test]
fn the_runtimes_program_cannot_be_written() {
    let Some(mut stage) = stage() else { return };
    let program = stage.own_program();
    let before = fs::read(&program).unwrap();
    let held = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE", "CAP_KILL"];
    stage.config["process"]["capabilities"] = json!({ "bounding": held, "effective": held, "permitted": held });
    let evil = stage.rootfs().join("bin/evil");
    fs::write(&evil, "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(&evil, PermissionsExt::from_mode(0o755)).unwrap();
    // The image's program is the runtime itself, executed inside.
    stage.args(&["evil"]);
    let _ = stage.run();
    // A process of the container waits for the runtime to come in and writes to whatever it is.
    stage.script(
        "while :; do for exe in /proc/[0-9]*/exe; do \
           case $exe in /proc/1/exe|/proc/self/exe) ;; *) (echo evil > $exe) 2>/dev/null && echo hit >> /tmp/hits;; esac; \
         done; done",
    );
    stage.detached();
    for _ in 0..40 {
        let _ = stage.call(&["exec", stage.id(), "evil"]);
        let _ = stage.call(&["exec", stage.id(), "true"]);
    }
    stage.delete();
    assert!(before == fs::read(&program).unwrap(), "the program was written");
}

/// CVE-2019-5736, step by step: hold the program of a process, wait until it is not busy, write.
#[test]
fn the_runtimes_own_link_leads_to_a_file_that_cannot_be_written() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("looks at lowrun's own way") {
        return;
    }
    // On a program that does nothing about it the attack works.
    attack_works(&stage.dir.path().join("sleep"));
    // A created container's process still is lowrun.
    let program = stage.own_program();
    stage.call(&["create", stage.id()]).ok();
    let held = hold_program(stage.state()["pid"].as_u64().unwrap() as u32);
    let (of_file, of_handle) = (fs::metadata(program).unwrap(), rustix::fs::fstat(&held).unwrap());
    let same = (of_handle.st_dev, of_handle.st_ino) == (of_file.dev(), of_file.ino());
    assert!(same, "it is the program itself, not a copy");
    stage.delete();
    assert_eq!(open_for_writing(&held), Err(Errno::ROFS));
}

/// The attack on a copy of a program of no protection: it can be written after its process has ended.
fn attack_works(usual: &Path) {
    fs::copy("/bin/busybox", usual).unwrap();
    let mut running = spawn_copy(usual);
    // vfork(2) lets the parent go on a moment before the child is another program: until then it is the test's own.
    let program = format!("/proc/{}/exe", running.id());
    eventually("it is executed", || fs::read_link(&program).is_ok_and(|link| link == usual));
    let held = hold_program(running.id());
    assert_eq!(open_for_writing(&held), Err(Errno::TXTBSY));
    running.kill().unwrap();
    running.wait().unwrap();
    // Whoever looks at processes just then keeps it busy for a moment.
    eventually("it can be written", || open_for_writing(&held).is_ok());
}

fn spawn_copy(usual: &Path) -> Child {
    let mut command = Command::new(usual);
    command.arg0("busybox").args(["sleep", "1000"]);
    let begun = Instant::now();
    loop {
        match command.spawn() {
            // Another test's fork may hold the copy open, until it executes its own program.
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && begun.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => break result.unwrap(),
        }
    }
}

fn hold_program(pid: u32) -> OwnedFd {
    rustix::fs::open(format!("/proc/{pid}/exe"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn open_for_writing(held: &OwnedFd) -> Result<(), Errno> {
    let path: PathBuf = Path::new("/proc/self/fd").join(held.as_raw_fd().to_string());
    rustix::fs::open(path, OFlags::WRONLY, Mode::empty()).map(drop)
}
