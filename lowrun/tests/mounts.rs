//! Mounts of a container: kinds, options, places, and what they must not reach.

mod stage;

use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;
use stage::stage;

/// The options of the mount at `place`, as the container's mountinfo shows them.
fn options(mountinfo: &str, place: &str) -> String {
    let line = mountinfo.lines().rfind(|line| line.split(' ').nth(4) == Some(place));
    let line = line.unwrap_or_else(|| panic!("{place} is not mounted in {mountinfo}"));
    line.split(' ').nth(5).unwrap().to_owned()
}

#[test]
fn the_root_can_be_read_only() {
    let Some(mut stage) = stage() else { return };
    stage.config["root"]["readonly"] = json!(true);
    stage.script("(touch /x) 2>/dev/null || echo closed; touch /dev/shm/x && echo open");
    assert_eq!(stage.output(), "closed\nopen\n");
}

#[test]
fn binds_have_the_options_asked_for() {
    let Some(mut stage) = stage() else { return };
    let source = stage.dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), "content\n").unwrap();
    let path = source.to_str().unwrap();
    stage.mount("/mnt/ro", "none", path, &["bind", "ro", "nosuid", "nodev", "noexec"]);
    stage.mount("/mnt/rw", "", path, &["rbind", "rw"]);
    stage.mount("/mnt/file", "bind", source.join("file").to_str().unwrap(), &["bind", "noatime"]);
    stage.script(
        "cat /mnt/file; (touch /mnt/ro/x) 2>/dev/null || echo closed; touch /mnt/rw/made && echo open; \
         cat /proc/self/mountinfo",
    );
    let seen = stage.output();
    assert!(seen.starts_with("content\nclosed\nopen\n"), "{seen}");
    let ro = options(&seen, "/mnt/ro");
    assert!(["ro", "nosuid", "nodev", "noexec"].iter().all(|word| ro.split(',').any(|o| o == *word)), "{ro}");
    assert!(options(&seen, "/mnt/rw").starts_with("rw"));
    assert!(options(&seen, "/mnt/file").contains("noatime"));
    assert!(source.join("made").exists());
    assert!(stage.rootfs().join("mnt/file").is_file(), "the mount point of a file is a file");
}

#[test]
fn a_relative_source_is_in_the_bundle() {
    let Some(mut stage) = stage() else { return };
    std::fs::create_dir(stage.bundle().join("data")).unwrap();
    std::fs::write(stage.bundle().join("data/file"), "here\n").unwrap();
    stage.mount("/data", "bind", "data", &["bind"]);
    stage.args(&["cat", "/data/file"]);
    assert_eq!(stage.output(), "here\n");
}

#[test]
fn recursive_options_reach_mounts_below() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("a behaviour of later runcs too") {
        return;
    }
    let source = stage.dir.path().join("tree");
    std::fs::create_dir_all(source.join("sub")).unwrap();
    // The inner mount is the container's own: made by a first bind, seen by a second.
    stage.mount("/tree", "bind", source.to_str().unwrap(), &["rbind", "rro"]);
    stage.mount("/plain", "bind", source.to_str().unwrap(), &["rbind", "ro"]);
    stage.script("(touch /tree/x) 2>/dev/null || echo closed; cat /proc/self/mountinfo");
    let seen = stage.output();
    assert!(seen.starts_with("closed\n"), "{seen}");
    assert!(options(&seen, "/tree").starts_with("ro"));
}

#[test]
fn a_tmpfs_takes_the_mode_of_what_it_covers() {
    let Some(mut stage) = stage() else { return };
    std::fs::create_dir(stage.rootfs().join("cover")).unwrap();
    std::fs::set_permissions(stage.rootfs().join("cover"), std::os::unix::fs::PermissionsExt::from_mode(0o1751))
        .unwrap();
    stage.mount("/cover", "tmpfs", "tmpfs", &["size=64k"]);
    stage.mount("/told", "tmpfs", "tmpfs", &["mode=700", "size=64k", "ro"]);
    stage.mount("/made/for/it", "tmpfs", "tmpfs", &["size=64k"]);
    stage.script("stat -c %a /cover /told /made/for/it; (touch /told/x) 2>/dev/null || echo closed");
    assert_eq!(stage.output(), "1751\n700\n1777\nclosed\n");
}

#[test]
fn a_tmpfs_can_begin_with_a_copy() {
    let Some(mut stage) = stage() else { return };
    let dir = stage.rootfs().join("full");
    std::fs::create_dir_all(dir.join("sub")).unwrap();
    std::fs::write(dir.join("file"), "copied\n").unwrap();
    std::fs::write(dir.join("sub/deep"), "deep\n").unwrap();
    symlink("file", dir.join("link")).unwrap();
    std::os::unix::fs::chown(dir.join("file"), Some(7), Some(8)).unwrap();
    std::fs::set_permissions(dir.join("file"), std::os::unix::fs::PermissionsExt::from_mode(0o604)).unwrap();
    stage.mount("/full", "tmpfs", "tmpfs", &["tmpcopyup"]);
    stage.script("cat /full/link /full/sub/deep; stat -c '%a %u:%g' /full/file; touch /full/new");
    assert_eq!(stage.output(), "copied\ndeep\n604 7:8\n");
    assert!(!dir.join("new").exists(), "the image is not written to");
}

#[test]
fn symlinks_of_the_image_stay_in_the_image() {
    let Some(mut stage) = stage() else { return };
    let outside = stage.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    symlink(&outside, stage.rootfs().join("absolute")).unwrap();
    symlink("../../../../../../..", stage.rootfs().join("climbing")).unwrap();
    let source = stage.dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    for destination in ["/absolute/a", "/climbing/b", "/absolute"] {
        stage.mount(destination, "bind", source.to_str().unwrap(), &["bind"]);
    }
    stage.script("grep -c source /proc/self/mountinfo; ls -d /b");
    assert_eq!(stage.output(), "3\n/b\n");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "nothing was made outside");
    assert!(stage.rootfs().join("b").is_dir());
}

#[test]
fn a_missing_source_and_an_unknown_file_system_are_told() {
    let Some(mut stage) = stage() else { return };
    stage.mount("/mnt", "bind", "/no/such/source", &["bind"]);
    stage.run().fails(1, "/no/such/source");
    stage.is_clean();
    stage.config["mounts"].as_array_mut().unwrap().pop();
    stage.mount("/mnt", "moonfs", "moon", &[]);
    stage.run().fails(1, "no such device");
    stage.is_clean();
}

#[test]
fn a_file_covers_no_directory() {
    let Some(mut stage) = stage() else { return };
    for (destination, source) in [("/etc", "/etc/passwd"), ("/etc/passwd", "/etc")] {
        stage.mount(destination, "bind", source, &["bind"]);
        stage.run().fails(1, "not a directory");
        stage.is_clean();
        stage.config["mounts"].as_array_mut().unwrap().pop();
    }
}

#[test]
fn nothing_covers_proc() {
    let Some(mut stage) = stage() else { return };
    let source = stage.dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let source = source.to_str().unwrap().to_owned();
    for (destination, kind, options) in [
        ("/proc", "bind", &["bind"][..]),
        ("/proc", "tmpfs", &[]),
        ("/proc/sys", "bind", &["bind"]),
        ("/proc/self/attr", "tmpfs", &[]),
        ("/tmp/../proc/bus", "bind", &["bind"]),
    ] {
        stage.mount(destination, kind, &source, options);
        let outcome = stage.run();
        assert_eq!(outcome.status, 1, "{destination}: {outcome:?}");
        stage.is_clean();
        stage.config["mounts"].as_array_mut().unwrap().pop();
    }
    let file = stage.dir.path().join("meminfo");
    std::fs::write(&file, "MemTotal: 1 kB\n").unwrap();
    stage.mount("/proc/meminfo", "bind", file.to_str().unwrap(), &["bind"]);
    stage.args(&["cat", "/proc/meminfo"]);
    assert_eq!(stage.output(), "MemTotal: 1 kB\n");
}

#[test]
fn propagation_is_as_asked() {
    let Some(mut stage) = stage() else { return };
    let source = stage.dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let source = source.to_str().unwrap().to_owned();
    stage.mount("/shared", "bind", &source, &["rbind", "rshared"]);
    stage.mount("/private", "bind", &source, &["rbind", "rprivate"]);
    stage.config["linux"]["rootfsPropagation"] = json!("rslave");
    stage.args(&["cat", "/proc/self/mountinfo"]);
    let seen = stage.output();
    let optional = |place: &str| {
        let line = seen.lines().find(|line| line.split(' ').nth(4) == Some(place)).unwrap();
        line.split(' ').skip(6).take_while(|field| *field != "-").collect::<Vec<_>>().join(" ")
    };
    assert!(optional("/shared").contains("shared:"), "{seen}");
    assert_eq!(optional("/private"), "");
    if stage.differs("runc before 1.2 leaves the root private") {
        return;
    }
    stage.config["linux"]["rootfsPropagation"] = json!("shared");
    let seen = stage.output();
    let root = seen.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    assert!(root.contains(" shared:"), "{seen}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(stage.dir.path().to_str().unwrap()), "nothing reached the host");
}

#[test]
fn the_cgroup_mount_shows_the_container_alone() {
    let Some(mut stage) = stage() else { return };
    stage.script(
        "cd /sys/fs/cgroup; ls; cat */cgroup.procs cgroup.procs 2>/dev/null | head -1; mkdir x */x 2>/dev/null; true",
    );
    let seen = stage.output();
    assert!(seen.contains("memory") || seen.contains("cgroup.controllers"), "{seen}");
    stage.namespace("cgroup", Some(""));
    stage.script("cat /proc/self/cgroup; ls /sys/fs/cgroup");
    let seen = stage.output();
    let paths: Vec<&str> =
        seen.lines().filter(|line| line.contains(':')).map(|line| line.rsplit(':').next().unwrap()).collect();
    assert!(paths.iter().all(|path| *path == "/"), "{seen}");
}

#[test]
fn mounts_of_the_container_are_not_the_hosts() {
    let Some(mut stage) = stage() else { return };
    stage.script("cat /proc/self/mountinfo");
    let seen = stage.output();
    assert!(!seen.contains(" /run/") && !Path::new("/proc").join("self/nothing").exists());
    let roots = seen.lines().filter(|line| line.split(' ').nth(4) == Some("/")).count();
    assert_eq!(roots, 1, "the old root is gone: {seen}");
}

#[test]
fn without_pivot_the_container_still_sees_its_root_alone() {
    let Some(mut stage) = stage() else { return };
    stage.script("ls /bin/sh && ls /; mount | grep -c ' / '");
    let outcome = stage.call(&["run", "--no-pivot", stage.id()]).ok();
    assert!(outcome.out.starts_with("/bin/sh\n"), "{outcome:?}");
    stage.is_clean();
}

#[test]
fn a_relative_path_among_options_is_the_callers() {
    let Some(mut stage) = stage() else { return };
    let layer = stage.bundle().join("layer");
    std::fs::create_dir(&layer).unwrap();
    std::fs::write(layer.join("found"), "layer\n").unwrap();
    // After those of /dev and the hierarchies, which are mounted in directories of their own.
    stage.mount("/mix", "overlay", "overlay", &["lowerdir=layer:rootfs"]);
    stage.script("cat /mix/found");
    assert_eq!(stage.output(), "layer\n");
}

#[test]
fn what_is_covered_gets_no_more_mounts() {
    let Some(mut stage) = stage() else { return };
    let volume = stage.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    symlink("/dev", volume.join("link")).unwrap();
    stage.mount("/dev", "tmpfs", "tmpfs", &["mode=755"]);
    stage.mount("/dev/v", "bind", volume.to_str().unwrap(), &["bind"]);
    // Leads to /dev, and covers it.
    stage.mount("/dev/v/link", "tmpfs", "tmpfs", &["mode=755"]);
    stage.mount("/dev/late", "tmpfs", "tmpfs", &["mode=751"]);
    stage.script("stat -c %a /dev/late; ls -d /dev/v 2>/dev/null");
    assert_eq!(stage.run().out, "751\n");
}
