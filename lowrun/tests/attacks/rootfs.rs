//! Images whose root file system is shaped to lead a runtime out of it.

use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::canary::Canary;
use crate::naive;
use crate::stage::{Stage, stage};

/// CVE-2019-19921, CVE-2023-27561, CVE-2023-28642, CVE-2025-54867: the image's /proc or /sys is a symlink.
#[test]
fn proc_or_sys_as_a_symlink_is_refused() {
    let Some(stage) = stage() else { return };
    let canary = Canary::new(&stage);
    for name in ["proc", "sys"] {
        let place = stage.rootfs().join(name);
        fs::remove_dir(&place).unwrap();
        for target in [canary.path(), Path::new("/tmp"), Path::new("tmp"), Path::new("../../../../..")] {
            symlink(target, &place).unwrap();
            stage.run().fails(1, "must be mounted on ordinary directory");
            stage.is_clean();
            fs::remove_file(&place).unwrap();
        }
        canary.is_untouched();
        symlink(canary.path(), &place).unwrap();
        naive::make_dirs(&stage.rootfs(), &format!("{name}/self/attr"));
        canary.falls();
        fs::remove_file(&place).unwrap();
        fs::create_dir(&place).unwrap();
    }
}

/// CVE-2019-16884, and the volume of CVE-2019-19921: something else than a procfs is mounted over /proc or inside it.
#[test]
fn a_volume_over_proc_is_refused() {
    let Some(mut stage) = stage() else { return };
    let volume = stage.dir.path().join("volume");
    fs::create_dir_all(volume.join("self/attr")).unwrap();
    fs::write(volume.join("self/attr/exec"), "unconfined\n").unwrap();
    let source = volume.to_str().unwrap();
    // The same volume elsewhere is taken, and shows what the image's owner wrote.
    stage.mount("/elsewhere", "bind", source, &["bind"]);
    stage.script("cat /elsewhere/self/attr/exec");
    assert_eq!(stage.output(), "unconfined\n");
    symlink("proc", stage.rootfs().join("link")).unwrap();
    for destination in ["/proc", "//proc/.", "/dev/../proc", "/proc/self", "/proc/self/attr", "/proc/sys", "/link"] {
        for (kind, source) in [("bind", source), ("tmpfs", "tmpfs")] {
            stage.config["mounts"].as_array_mut().unwrap().pop();
            stage.mount(destination, kind, source, if kind == "bind" { &["bind"] } else { &[] });
            stage.run().fails(1, "cannot be mounted because it is");
            stage.is_clean();
        }
    }
    assert_eq!(fs::read_to_string(volume.join("self/attr/exec")).unwrap(), "unconfined\n");
}

/// The class of CVE-2019-16884, CVE-2025-52881 and CVE-2025-62596: settings land in files that the image brought along.
#[test]
fn settings_reach_the_kernel_and_not_the_images_proc() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc writes through the container's /proc") {
        return;
    }
    let fake = stage.rootfs().join("proc/sys/kernel/domainname");
    fs::create_dir_all(fake.parent().unwrap()).unwrap();
    fs::write(&fake, "fake\n").unwrap();
    stage.config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/proc");
    stage.config["linux"]["sysctl"] = json!({ "kernel.domainname": "wanted.example" });
    stage.config["linux"]["readonlyPaths"] = json!([]);
    stage.args(&["sleep", "1000"]);
    stage.detached();
    assert_eq!(fs::read_to_string(&fake).unwrap(), "fake\n");
    assert_eq!(domain_name(&stage), "wanted.example\n");
    // By the joined path the setting is lost, and nobody is told.
    naive::write(&stage.rootfs(), "/proc/sys/kernel/domainname", "lost.example");
    assert_eq!(fs::read_to_string(&fake).unwrap(), "lost.example");
    assert_eq!(domain_name(&stage), "wanted.example\n");
    stage.delete();
}

fn domain_name(stage: &Stage) -> String {
    let pid = stage.state()["pid"].to_string();
    let output =
        Command::new("nsenter").args(["--uts", "--target", &pid, "cat", "/proc/sys/kernel/domainname"]).output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

/// CVE-2026-41579, CVE-2026-47766: the image's /dev is a symlink out of the root.
#[test]
fn dev_as_a_symlink_reaches_nothing_outside() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc before 1.4 is open to it") {
        return;
    }
    let canary = Canary::new(&stage);
    let dev = stage.rootfs().join("dev");
    fs::remove_dir(&dev).unwrap();
    symlink(canary.path(), &dev).unwrap();
    // What runtimes do to make the link to the terminal multiplexer.
    fs::remove_file(dev.join("ptmx")).unwrap();
    symlink("pts/ptmx", dev.join("ptmx")).unwrap();
    canary.falls();
    stage.config["mounts"] = json!([{ "destination": "/proc", "type": "proc", "source": "proc" }]);
    for target in [canary.path().to_owned(), Path::new("../../../../../..").join(&canary.path().to_str().unwrap()[1..])]
    {
        fs::remove_file(&dev).unwrap();
        symlink(target, &dev).unwrap();
        let _ = stage.run();
        canary.is_untouched();
        stage.is_clean();
    }
}

/// CVE-2024-0132, CVE-2024-0133, and without a race CVE-2024-45310: a parent of a mount point is a symlink out of the root.
#[test]
fn a_mount_point_below_a_symlink_is_made_inside() {
    let Some(mut stage) = stage() else { return };
    let canary = Canary::new(&stage);
    let climbing = format!("../../../../../../../..{}", canary.path().display());
    for (name, target) in [("absolute", canary.path()), ("climbing", Path::new(&climbing))] {
        symlink(target, stage.rootfs().join(name)).unwrap();
        naive::make_dirs(&stage.rootfs(), &format!("/{name}/made/deep"));
        canary.falls();
        stage.mount(&format!("/{name}/made/deep"), "tmpfs", "tmpfs", &[]);
        stage.mount(&format!("/{name}/file/below"), "bind", "/etc/hostname", &["bind"]);
        stage.mount(&format!("/{name}/some/file"), "bind", "/etc/hostname", &["bind"]);
        // The third cannot be where it is to be on the host: there, `file` is a file.
        stage.script(&format!("grep -c -e made/deep -e file /proc/self/mountinfo; cat /{name}/some/file >/dev/null"));
        assert_eq!(stage.output().trim(), if name == "absolute" { "3" } else { "6" });
        canary.is_untouched();
    }
}

/// The class of CVE-2026-47262 for what lowrun itself reads of an image: a passwd that hangs or has no end.
#[test]
fn a_hostile_passwd_neither_hangs_nor_fills_memory() {
    let Some(mut stage) = stage() else { return };
    let passwd = stage.rootfs().join("etc/passwd");
    stage.config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    stage.script("echo $HOME");
    let shapes: [(&str, &str); 6] = [
        ("a FIFO", "mkfifo passwd"),
        ("a directory", "mkdir passwd"),
        ("a device without an end", "mknod passwd c 1 5"),
        ("a link to the kernel's memory", "ln -s /proc/kcore passwd"),
        ("a link to a descriptor", "ln -s /proc/self/fd/0 passwd"),
        ("a file of 4 GiB", "truncate -s 4G passwd"),
    ];
    for (what, command) in shapes {
        let clear = "rm -rf passwd";
        let script = format!("cd \"$0\" && {clear} && {command}");
        assert!(Command::new("sh").args(["-c", &script]).arg(passwd.parent().unwrap()).status().unwrap().success());
        let begun = Instant::now();
        let outcome = stage.call_after("ulimit -v 200000", &["run", stage.id()]).ok();
        assert_eq!(outcome.out, "/\n", "{what}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}: {:?}", begun.elapsed());
    }
    assert!(fs::symlink_metadata(&passwd).unwrap().is_file());
    // Read whole, under the same limit, it does not fit.
    let script = "ulimit -v 200000; exec dd bs=4G count=1 of=/dev/null \"if=$0\"";
    let whole = Command::new("sh").args(["-c", script]).arg(&passwd).output().unwrap();
    assert!(!whole.status.success(), "{whole:?}");
    // And a FIFO opened as any file hangs.
    fs::remove_file(&passwd).unwrap();
    assert!(Command::new("mkfifo").arg(&passwd).status().unwrap().success());
    assert!(fs::symlink_metadata(&passwd).unwrap().file_type().is_fifo());
    assert_eq!(Command::new("timeout").arg("0.3").arg("cat").arg(&passwd).status().unwrap().code(), Some(124));
}
