//! The terminal's places in a /dev that somebody else fills.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;

use crate::canary::Canary;
use crate::naive;
use crate::race::{self, Racer};
use crate::stage::{Stage, stage};

/// A container with a terminal whose /dev is the image's own.
fn with_terminal(stage: &mut Stage) {
    stage.config["process"]["terminal"] = json!(true);
    stage.config["mounts"].as_array_mut().unwrap().retain(|mount| {
        let destination = mount["destination"].as_str().unwrap();
        destination == "/dev/pts" || !destination.starts_with("/dev")
    });
}

/// CVE-2025-52565: the terminal's place is a symlink.
#[test]
fn a_console_that_is_a_symlink_is_not_followed() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc wants a terminal on stdin") {
        return;
    }
    let canary = Canary::new(&stage);
    with_terminal(&mut stage);
    for name in ["console", "ptmx"] {
        symlink(canary.file(), stage.rootfs().join("dev").join(name)).unwrap();
    }
    naive::write(&stage.rootfs(), "/dev/console", "");
    canary.falls();
    stage.script("stat -c %F /dev/console; tty");
    let outcome = stage.run();
    assert!(outcome.status != 0 || outcome.out.contains("/dev/pts/0"), "{outcome:?}");
    canary.is_untouched();
    stage.is_clean();
}

/// CVE-2025-52565, raced: the console, and the directory of the terminals, are swapped meanwhile.
#[test]
fn a_console_under_a_race_is_the_terminal_or_nothing() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc wants a terminal on stdin") {
        return;
    }
    let canary = Canary::new(&stage);
    with_terminal(&mut stage);
    let dev = stage.rootfs().join("dev");
    fs::create_dir(dev.join("pts")).unwrap();
    fs::write(dev.join("console"), "").unwrap();
    fs::write(stage.rootfs().join("etc/target"), "image\n").unwrap();
    let racer = Racer::against_symlink(&dev, "console", &canary.file());
    race::falls(|| {
        naive::look_then_write(&stage.rootfs(), "/dev/console", "evil");
        canary.is_hit()
    });
    drop(racer);
    let canary = Canary::at(stage.dir.path().join("other"));
    let (link, console) = (dev.join("swapped-in"), dev.join("console"));
    for path in [&link, &console] {
        fs::remove_file(path).unwrap();
    }
    fs::write(&console, "").unwrap();
    let racer = Racer::against_symlink(&dev, "console", Path::new("/etc/target"));
    stage.script("tty; cat /etc/target; stat -c '%F %t' -L /dev/pts/0");
    race::rounds(|| {
        let outcome = stage.run();
        let expected = "/dev/pts/0\nimage\ncharacter special file 88\n";
        assert!(outcome.status != 0 || outcome.out.replace('\r', "") == expected, "{outcome:?}");
        outcome.status == 0
    });
    drop(racer);
    canary.is_untouched();
    stage.is_clean();
}

/// CVE-2025-52565: no terminals are mounted, and the image's own multiplexer is anything.
#[test]
fn a_multiplexer_that_is_none_is_refused() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc opens the host's multiplexer") {
        return;
    }
    let canary = Canary::new(&stage);
    with_terminal(&mut stage);
    stage.script("tty");
    // With terminals of its own the same container works.
    assert_eq!(stage.output().trim(), "/dev/pts/0");
    stage.config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/dev/pts");
    let ptmx = stage.rootfs().join("dev/pts/ptmx");
    for command in ["ln -s /etc/passwd", "mkfifo", "touch", "mkdir", "ln -s /proc/self/fd/0"] {
        let script = format!("mkdir -p \"$(dirname \"$0\")\" && rm -rf \"$0\" && {command} \"$0\"");
        assert!(std::process::Command::new("sh").args(["-c", &script]).arg(&ptmx).status().unwrap().success());
        assert_eq!(stage.run().status, 1, "{command}");
        stage.is_clean();
    }
    canary.is_untouched();
}
