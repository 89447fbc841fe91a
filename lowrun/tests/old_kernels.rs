//! Kernels and filters that have less than lowrun would like: newer calls fail, and the container is the same.

mod stage;

use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall};
use serde_json::json;
use stage::{Outcome, Stage, stage};

/// Calls that may be missing, together, and since when they are there.
const CALLS: [(&str, &[&str]); 5] = [
    ("mount_setattr, 5.12", &["mount_setattr"]),
    ("close_range, 5.9", &["close_range"]),
    ("openat2, 5.6", &["openat2"]),
    ("clone3, 5.3", &["clone3"]),
    ("all of them", &["mount_setattr", "close_range", "openat2", "clone3", "faccessat2"]),
];

/// Runs something in a thread for which these calls fail; what it starts inherits that.
fn without<T: Send>(calls: &'static [&'static str], errno: i32, act: impl FnOnce() -> T + Send) -> T {
    let filtered = move || {
        let mut filter = ScmpFilterContext::new(ScmpAction::Allow).unwrap();
        filter.set_ctl_nnp(false).unwrap();
        for call in calls {
            filter.add_rule(ScmpAction::Errno(errno), ScmpSyscall::from_name(call).unwrap()).unwrap();
        }
        filter.load().unwrap();
        act()
    };
    std::thread::scope(|scope| scope.spawn(filtered).join().unwrap())
}

/// A container with something of everything that the calls are for.
fn rich(stage: &mut Stage) {
    let source = stage.dir.path().join("source");
    std::fs::create_dir_all(&source).unwrap();
    std::fs::write(source.join("file"), "content\n").unwrap();
    std::fs::write(stage.rootfs().join("etc/fixed"), "fixed\n").unwrap();
    std::fs::create_dir_all(stage.rootfs().join("secret")).unwrap();
    std::os::unix::fs::symlink("/target/deep", stage.rootfs().join("link")).unwrap();
    let path = source.to_str().unwrap().to_owned();
    stage.mount("/ro", "bind", &path, &["bind", "ro", "nosuid", "nodev", "noexec", "noatime"]);
    stage.mount("/file", "bind", &format!("{path}/file"), &["rbind", "ro", "rprivate"]);
    stage.mount("/link/mnt", "bind", &path, &["bind", "rw", "rslave"]);
    stage.mount("/small", "tmpfs", "tmpfs", &["size=64k", "mode=711", "ro", "nosuid"]);
    stage.config["root"]["readonly"] = json!(true);
    stage.config["linux"]["maskedPaths"] = json!(["/proc/kcore", "/proc/keys", "/secret", "/sys/firmware"]);
    stage.config["linux"]["readonlyPaths"] = json!(["/etc/fixed", "/proc/sys"]);
    stage.config["linux"]["rootfsPropagation"] = json!("rprivate");
    stage.script(
        "cat /file /target/deep/mnt/file; touch /target/deep/mnt/made && rm /target/deep/mnt/made && echo open; \
         for f in /ro/x /x /small/x /secret/x; do (touch $f) 2>/dev/null || echo closed; done; \
         (echo x > /etc/fixed) 2>/dev/null || echo kept; (echo x > /proc/sys/kernel/shmmax) 2>/dev/null || echo kept; \
         cat /proc/kcore; grep -cE ' (/ro|/file|/small|/target/deep/mnt) ' /proc/self/mountinfo; \
         grep ' /ro ' /proc/self/mountinfo | cut -d' ' -f6; ls /proc/self/fd | wc -l; ls -d /sys/fs/cgroup/* | wc -l",
    );
    for applet in ["rm", "cut"] {
        std::os::unix::fs::symlink("busybox", stage.rootfs().join("bin").join(applet)).unwrap();
    }
}

fn life(stage: &Stage) -> Outcome {
    stage.call(&["create", stage.id()]).ok();
    stage.call(&["start", stage.id()]).ok();
    let outcome = stage.exec("echo in; cat /proc/self/cgroup | wc -l");
    stage.delete();
    outcome
}

#[test]
fn a_missing_call_changes_nothing() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("runc needs some of them") {
        return;
    }
    rich(&mut stage);
    let expected = stage.output();
    assert!(expected.starts_with("content\ncontent\nopen\nclosed\nclosed\nclosed\nclosed\nkept\nkept\n"), "{expected}");
    for (what, calls) in CALLS {
        for errno in [libc::ENOSYS, libc::EPERM] {
            // The C library of the test itself starts programs by clone3, and falls back on ENOSYS only.
            if errno == libc::EPERM && calls.contains(&"clone3") {
                continue;
            }
            let seen = without(calls, errno, || stage.run());
            assert_eq!((seen.status, seen.out.as_str()), (0, expected.as_str()), "{what}, {errno}: {seen:?}");
        }
    }
    stage.config["root"]["readonly"] = json!(false);
    stage.script("while :; do sleep 0.05; done");
    let expected = life(&stage).ok().out;
    for (what, calls) in CALLS {
        let seen = without(calls, libc::ENOSYS, || life(&stage));
        assert_eq!((seen.status, seen.out.as_str()), (0, expected.as_str()), "{what}: {seen:?}");
    }
}

#[test]
fn what_only_the_newer_call_can_do_is_refused_by_name() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("the words are lowrun's") {
        return;
    }
    let source = stage.dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let path = source.to_str().unwrap();
    stage.mount("/all", "bind", path, &["rbind", "rro"]);
    without(&["mount_setattr"], libc::ENOSYS, || stage.run()).fails(1, "/all");
    stage.is_clean();
}
