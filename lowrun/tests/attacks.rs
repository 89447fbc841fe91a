//! Published attacks on runtimes, replayed: the number is that of the advisory. Each must end in an error or in a
//! container whose walls stand, and what the attack aimed at on the host must be untouched.

mod stage;

use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use stage::{Stage, stage};

/// A directory of the host with one file: the canary.
fn canary(stage: &Stage) -> std::path::PathBuf {
    let dir = stage.dir.path().join("canary");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("file"), "host\n").unwrap();
    dir
}

fn listing(dir: &std::path::Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// CVE-2019-19921, CVE-2023-27561, CVE-2025-54867: the image's /proc or /sys is a symlink.
#[test]
fn proc_or_sys_as_a_symlink_is_refused() {
    let Some(stage) = stage() else { return };
    let canary = canary(&stage);
    for name in ["proc", "sys"] {
        std::fs::remove_dir(stage.rootfs().join(name)).unwrap();
        for target in ["/tmp", canary.to_str().unwrap()] {
            symlink(target, stage.rootfs().join(name)).unwrap();
            stage.run().fails(1, "must be mounted on ordinary directory");
            stage.is_clean();
            std::fs::remove_file(stage.rootfs().join(name)).unwrap();
        }
        std::fs::create_dir(stage.rootfs().join(name)).unwrap();
    }
    assert_eq!(listing(&canary), ["file"]);
}

/// CVE-2026-41579, CVE-2026-47766: the image's /dev is a symlink out of the root.
#[test]
fn dev_as_a_symlink_reaches_nothing_outside() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc before 1.4 is open to it") {
        return;
    }
    let canary = canary(&stage);
    std::fs::write(canary.join("ptmx"), "host\n").unwrap();
    std::fs::remove_dir(stage.rootfs().join("dev")).unwrap();
    symlink(&canary, stage.rootfs().join("dev")).unwrap();
    stage.config["mounts"] = json!([{ "destination": "/proc", "type": "proc", "source": "proc" }]);
    let _ = stage.run();
    assert_eq!(listing(&canary), ["file", "ptmx"]);
    assert_eq!(std::fs::read_to_string(canary.join("ptmx")).unwrap(), "host\n");
    stage.is_clean();
}

/// CVE-2024-21626: a descriptor of the host as working directory.
#[test]
fn a_working_directory_cannot_be_a_descriptor() {
    let Some(mut stage) = stage() else { return };
    stage.script("pwd; ls; cat ../../../etc/hostname");
    for number in 3..24 {
        for path in [
            format!("/proc/self/fd/{number}"),
            format!("/proc/1/fd/{number}"),
            format!("/proc/self/fd/{number}/../../.."),
        ] {
            stage.config["process"]["cwd"] = json!(path);
            let outcome = stage.run();
            assert_ne!(outcome.status, 0, "{path}: {outcome:?}");
            stage.is_clean();
        }
    }
    stage.config["process"]["cwd"] = json!("/");
    stage.script("while :; do sleep 0.05; done");
    stage.detached();
    for number in 3..24 {
        let path = format!("/proc/self/fd/{number}");
        let outcome = stage.call(&["exec", "--cwd", &path, stage.id(), "pwd"]);
        assert_ne!(outcome.status, 0, "{path}: {outcome:?}");
    }
    // The same through a symlink of the image.
    symlink("/proc/self/fd/7", stage.rootfs().join("work")).unwrap();
    assert_ne!(stage.call(&["exec", "--cwd", "/work", stage.id(), "pwd"]).status, 0);
    stage.delete();
}

/// CVE-2019-5736: the runtime's own program through /proc/self/exe.
#[test]
fn the_runtimes_program_cannot_be_written() {
    let Some(mut stage) = stage() else { return };
    let program = stage.own_program();
    let before = std::fs::read(&program).unwrap();
    stage.config["process"]["capabilities"] = all_capabilities();
    let evil = stage.rootfs().join("bin/evil");
    std::fs::write(&evil, "#!/proc/self/exe\n").unwrap();
    std::fs::set_permissions(&evil, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
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
    for _ in 0..60 {
        let _ = stage.call(&["exec", stage.id(), "evil"]);
        let _ = stage.call(&["exec", stage.id(), "true"]);
    }
    stage.delete();
    assert!(before == std::fs::read(&program).unwrap(), "the program was written");
}

/// The protection itself: during an exec, the runtime's program is on no writable mount.
#[test]
fn the_runtimes_own_link_leads_to_a_file_that_cannot_be_written() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("looks at lowrun's own way") {
        return;
    }
    stage.own_program();
    stage.script("while :; do sleep 0.05; done");
    stage.call(&["create", stage.id()]).ok();
    // A created container's process still is lowrun. The attack: hold its program, wait until it is not busy, write.
    let pid = stage.state()["pid"].to_string();
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let held = rustix::fs::open(format!("/proc/{pid}/exe"), flags, rustix::fs::Mode::empty()).unwrap();
    let (program, seen) =
        (std::fs::metadata(stage.command().get_program()).unwrap(), rustix::fs::fstat(&held).unwrap());
    use std::os::unix::fs::MetadataExt;
    assert_eq!((seen.st_dev, seen.st_ino), (program.dev(), program.ino()), "it is the program itself, not a copy");
    stage.delete();
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    let error = rustix::fs::open(path, rustix::fs::OFlags::WRONLY, rustix::fs::Mode::empty()).unwrap_err();
    assert_eq!(error, rustix::io::Errno::ROFS);
}

fn all_capabilities() -> serde_json::Value {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("CapEff")).unwrap();
    let mask = u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap();
    let names = [
        (0, "CAP_CHOWN"),
        (1, "CAP_DAC_OVERRIDE"),
        (2, "CAP_DAC_READ_SEARCH"),
        (19, "CAP_SYS_PTRACE"),
        (5, "CAP_KILL"),
    ];
    let held: Vec<&str> = names.iter().filter(|(bit, _)| mask >> bit & 1 == 1).map(|(_, name)| *name).collect();
    json!({ "bounding": held, "effective": held, "permitted": held })
}

/// CVE-2016-9962: the joining process can be traced and its descriptors read.
#[test]
fn a_joining_process_shows_nothing() {
    let Some(mut stage) = stage() else { return };
    stage.config["process"]["capabilities"] = json!({});
    stage.script(
        "while :; do for p in /proc/[0-9]*; do case $p in /proc/1|/proc/self) ;; *) \
           for f in $p/fd/*; do t=$(readlink $f 2>/dev/null); case \"$t\" in *state.json*|*/cgroup*|/proc) echo $t >> /tmp/hits;; esac; done;; \
         esac; done; done",
    );
    stage.detached();
    for _ in 0..60 {
        let _ = stage.exec("true");
    }
    stage.delete();
    let hits = std::fs::read_to_string(stage.rootfs().join("tmp/hits")).unwrap_or_default();
    assert_eq!(hits, "");
}

/// CVE-2025-31133: /dev/null of the container is swapped for a symlink while masks are made.
#[test]
fn masks_are_the_real_null_device() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc before 1.2.8 is open to it") {
        return;
    }
    let canary = canary(&stage);
    // The image's /dev is a volume that somebody else writes to.
    let dev = stage.dir.path().join("dev");
    std::fs::create_dir(&dev).unwrap();
    stage.config["mounts"][1] = json!({ "destination": "/dev", "type": "bind", "source": dev, "options": ["bind"] });
    stage.config["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev/"));
    symlink(canary.join("file"), dev.join("null")).unwrap();
    stage.config["linux"]["maskedPaths"] = json!(["/proc/keys", "/etc/passwd"]);
    stage.script(
        "stat -c '%F %t:%T' /proc/keys /etc/passwd; echo x > /proc/keys; chmod 000 /proc/keys 2>/dev/null; true",
    );
    stage.write_config();
    let stop = Arc::new(AtomicBool::new(false));
    let (swap, target, until) = (dev.clone(), canary.join("file"), stop.clone());
    let racer = std::thread::spawn(move || {
        while !until.load(Ordering::Relaxed) {
            let _ = std::fs::remove_file(swap.join("null"));
            let _ = rustix::fs::mknodat(
                rustix::fs::CWD,
                swap.join("null"),
                rustix::fs::FileType::CharacterDevice,
                rustix::fs::Mode::from_raw_mode(0o666),
                rustix::fs::makedev(1, 3),
            );
            let _ = std::fs::remove_file(swap.join("null"));
            let _ = symlink(&target, swap.join("null"));
        }
    });
    let mode = std::fs::metadata("/dev/null").unwrap();
    for _ in 0..60 {
        let outcome = stage.run();
        if outcome.status == 0 {
            let null = "character special file 1:3\n";
            assert_eq!(outcome.out, [null, null].concat(), "{outcome:?}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    racer.join().unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata("/dev/null").unwrap().mode(), mode.mode(), "the host's node is as it was");
    assert_eq!(std::fs::read_to_string(canary.join("file")).unwrap(), "host\n");
    stage.is_clean();
}

/// CVE-2021-30465, CVE-2024-45310: a mount point in a shared volume is swapped for a symlink.
#[test]
fn a_swapped_mount_point_leads_nowhere_outside() {
    let Some(mut stage) = stage() else { return };
    let canary = canary(&stage);
    let volume = stage.dir.path().join("volume");
    std::fs::create_dir_all(volume.join("dir")).unwrap();
    symlink(&canary, volume.join("link")).unwrap();
    let source = stage.dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    stage.mount("/volume", "bind", volume.to_str().unwrap(), &["bind"]);
    stage.mount("/volume/dir/made/deep", "bind", source.to_str().unwrap(), &["bind"]);
    stage.mount("/volume/dir/other", "tmpfs", "tmpfs", &[]);
    stage.script("grep -c volume /proc/self/mountinfo");
    stage.write_config();
    let stop = Arc::new(AtomicBool::new(false));
    let (dir, link, until) = (volume.join("dir"), volume.join("link"), stop.clone());
    let racer = std::thread::spawn(move || {
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        while !until.load(Ordering::Relaxed) {
            let _ = rustix::fs::renameat_with(rustix::fs::CWD, &dir, rustix::fs::CWD, &link, flags);
        }
    });
    let mut spurious = 0;
    for _ in 0..150 {
        spurious += u32::from(stage.run().status != 0);
    }
    stop.store(true, Ordering::Relaxed);
    racer.join().unwrap();
    assert_eq!(listing(&canary), ["file"], "nothing was made outside");
    eprintln!("{spurious} of 150 failed under the race");
    stage.is_clean();
}

/// CVE-2026-30892: a user that is no number ends up as root.
#[test]
fn a_user_that_is_no_number_is_refused() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc wraps a number that is too large to 0") {
        return;
    }
    stage.script("while :; do sleep 0.05; done");
    stage.detached();
    assert_eq!(stage.call(&["exec", "-u", "1", stage.id(), "id", "-u"]).ok().out, "1\n");
    assert_eq!(stage.call(&["exec", "-u", "1:2", stage.id(), "id", "-g"]).ok().out, "2\n");
    for user in ["1:", ":1", "0x1", " 1", "4294967295", "4294967296", "-1", "root", "1:x"] {
        let outcome = stage.call(&["exec", "-u", user, stage.id(), "id", "-u"]);
        assert!(outcome.status != 0 || outcome.out != "0\n", "{user:?}: {outcome:?}");
        if stage.is_ours() {
            assert_eq!(outcome.status, 255, "{user:?}: {outcome:?}");
        }
    }
    stage.delete();
}

/// CVE-2025-52565: the terminal's place is a symlink.
#[test]
fn a_console_that_is_a_symlink_is_not_followed() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc wants a terminal on stdin") {
        return;
    }
    let canary = canary(&stage);
    stage.config["process"]["terminal"] = json!(true);
    // The image's /dev is its own, with traps in it.
    let mounts = stage.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["destination"] != "/dev");
    for name in ["console", "ptmx"] {
        symlink(canary.join("file"), stage.rootfs().join("dev").join(name)).unwrap();
    }
    stage.script("stat -c %F /dev/console; tty");
    let outcome = stage.run();
    assert!(outcome.status != 0 || outcome.out.contains("/dev/pts/0"), "{outcome:?}");
    assert_eq!(std::fs::read_to_string(canary.join("file")).unwrap(), "host\n");
    stage.is_clean();
}

/// CVE-2021-43784: a length that overflows.
#[test]
fn very_long_words_are_told_or_work() {
    let Some(mut stage) = stage() else { return };
    for length in [255, 4095, 4096, 65_535, 65_536, 1_000_000] {
        let long = format!("/{}", "x".repeat(length));
        stage.mount("/mnt", "bind", &long, &["bind"]);
        assert_eq!(stage.run().status, 1);
        stage.is_clean();
        stage.config["mounts"].as_array_mut().unwrap().pop();
    }
    stage.config["process"]["env"] = json!(["PATH=/bin", format!("LONG={}", "x".repeat(100_000))]);
    stage.script("echo ${#LONG}");
    assert_eq!(stage.output(), "100000\n");
}
