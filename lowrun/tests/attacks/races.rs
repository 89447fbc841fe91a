//! Somebody else swaps parts of a shared volume while the container is made. `LOWRUN_RACE_SECONDS` is for how long.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;

use crate::canary::Canary;
use crate::naive;
use crate::race::{self, Racer};
use crate::stage::{Stage, stage};

/// A volume with the directory `dir`, mounted at `/volume`; and as a part of the image for the naive steps.
fn volume(stage: &mut Stage) -> std::path::PathBuf {
    let volume = stage.rootfs().join("volume");
    fs::create_dir_all(volume.join("dir")).unwrap();
    stage.mount("/volume", "bind", volume.to_str().unwrap(), &["bind"]);
    volume
}

/// CVE-2021-30465, CVE-2024-45310: a mount point in a shared volume is swapped for a symlink.
#[test]
fn a_swapped_mount_point_leads_nowhere_outside() {
    let Some(mut stage) = stage() else { return };
    let canary = Canary::new(&stage);
    let volume = volume(&mut stage);
    let source = stage.dir.path().join("source");
    fs::create_dir(&source).unwrap();
    stage.mount("/volume/dir/made/deep", "bind", source.to_str().unwrap(), &["bind"]);
    stage.mount("/volume/dir/other", "tmpfs", "tmpfs", &[]);
    stage.script("cat /proc/self/mountinfo");
    let racer = Racer::against_symlink(&volume, "dir", canary.path());
    race::falls(|| {
        naive::look_then_make_dirs(&stage.rootfs(), "/volume/dir/made/deep");
        canary.is_hit()
    });
    drop(racer);
    canary.falls();
    let _racer = Racer::new(volume.join("dir"), volume.join("swapped-in"));
    race::rounds(|| {
        let outcome = stage.run();
        let of_source = outcome.out.lines().filter(|line| line.contains("/source /")).count();
        assert!(outcome.status != 0 || of_source == 1, "{outcome:?}");
        canary.is_untouched();
        outcome.status == 0
    });
    stage.is_clean();
}

/// CVE-2025-52881, CVE-2025-62596: a mount is led into /proc by a race, so that settings are written elsewhere.
#[test]
fn a_race_covers_no_part_of_proc_and_diverts_no_setting() {
    let Some(mut stage) = stage() else { return };
    let canary = Canary::new(&stage);
    let volume = volume(&mut stage);
    // For the naive step the link leads to the host's canary, for the container into its procfs.
    fs::write(volume.join("dir/file"), "").unwrap();
    let racer = Racer::against_symlink(&volume, "dir", canary.path());
    race::falls(|| {
        naive::look_then_write(&stage.rootfs(), "/volume/dir/file", "evil");
        canary.is_hit()
    });
    drop(racer);
    fs::remove_dir_all(&volume).unwrap();
    fs::create_dir_all(volume.join("dir/kernel")).unwrap();
    stage.mount("/volume/dir/kernel", "tmpfs", "tmpfs", &[]);
    stage.config["linux"]["sysctl"] = json!({ "kernel.domainname": "wanted.example", "net.ipv4.ip_forward": "1" });
    stage.script(
        "cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward; grep -c '/proc/sys/' /proc/self/mountinfo",
    );
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let _racer = Racer::against_symlink(&volume, "dir", Path::new("/proc/sys"));
    race::rounds(|| {
        let outcome = stage.run();
        let refused = outcome.err.contains("inside /proc") || outcome.err.contains("mount point");
        assert!(outcome.out == "wanted.example\n1\n0\n" || refused, "{outcome:?}");
        !refused
    });
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), pattern);
    stage.is_clean();
}

/// CVE-2025-31133, CVE-2025-62161: /dev/null of the container is swapped for a symlink while masks are made.
#[test]
fn masks_are_the_real_null_device() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc before 1.2.8 is open to it") {
        return;
    }
    let canary = Canary::new(&stage);
    // /dev is a volume that somebody else writes to.
    let dev = stage.rootfs().join("dev");
    let mounts = stage.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev/"));
    mounts[1] = json!({ "destination": "/dev", "type": "bind", "source": dev, "options": ["bind"] });
    symlink(canary.file(), dev.join("null")).unwrap();
    naive::cover_and_write(&stage.rootfs(), "/dev/null", "/etc/passwd");
    canary.falls();
    fs::rename(dev.join("null"), dev.join("swapped-in")).unwrap();
    let real = rustix::fs::makedev(1, 3);
    let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::from_raw_mode(0o666));
    rustix::fs::mknodat(rustix::fs::CWD, dev.join("null"), kind, mode, real).unwrap();
    let _racer = Racer::new(dev.join("null"), dev.join("swapped-in"));
    stage.config["linux"]["maskedPaths"] = json!(["/proc/keys", "/etc/passwd"]);
    stage.script(
        "stat -c '%F %t:%T' /proc/keys /etc/passwd; echo x > /proc/keys; chmod 000 /proc/keys 2>/dev/null; true",
    );
    let before = fs::metadata("/dev/null").unwrap().permissions();
    race::rounds(|| {
        let outcome = stage.run();
        let null = "character special file 1:3\n";
        assert!(outcome.status != 0 || outcome.out == [null, null].concat(), "{outcome:?}");
        outcome.status == 0
    });
    assert_eq!(fs::metadata("/dev/null").unwrap().permissions(), before, "the host's node is as it was");
    canary.is_untouched();
    stage.is_clean();
}
