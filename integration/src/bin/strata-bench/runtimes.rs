//! lowrun beside crun and runc on the same bundle.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use crate::measure::{Pair, ms, timed};
use crate::report::Row;

const RUNS: usize = 40;
const WARM_UP: usize = 3;

/// crun refuses to run where controllers lie on both versions of cgroups. In mount namespaces of their own all contestants
/// see version 1 alone.
fn hide_hybrid_hierarchy() {
    let unified = Path::new("/sys/fs/cgroup/unified");
    if !unified.exists() {
        return;
    }
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).expect("unshare the mount namespace: be root");
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("make the mounts private");
    umount2(unified, MntFlags::MNT_DETACH).expect("unmount cgroup v2");
}

/// Measures what a runtime alone costs.
pub(crate) fn rows(ours: &Path, peers: &[(String, PathBuf, f64)], work: &Path) -> Vec<Row> {
    hide_hybrid_hierarchy();
    let bundle = default_bundle(work);
    let mut rows = Vec::new();
    for (name, theirs, owed) in peers {
        let (our_root, their_root) = (work.join("root-ours"), work.join(format!("root-{name}")));
        let mut turn = 0;
        let mut run = |program: &Path, root: &Path| {
            turn += 1;
            let mut command = Command::new(program);
            command.arg("--root").arg(root).arg("run").arg("--bundle").arg(&bundle).arg(format!("bench-{turn}"));
            timed(&mut command)
        };
        let mut processor = (Vec::new(), Vec::new());
        let run = std::cell::RefCell::new(&mut run);
        let pair = Pair::interleaved(
            WARM_UP,
            RUNS,
            || {
                let cost = run.borrow_mut()(ours, &our_root);
                processor.0.push(ms(cost.processor));
                ms(cost.wall)
            },
            || {
                let cost = run.borrow_mut()(theirs, &their_root);
                processor.1.push(ms(cost.processor));
                ms(cost.wall)
            },
        );
        rows.push(Row::new(format!("`lowrun run` of `true`, default bundle, against {name}"), "ms", &pair, *owed));
        let ratio = crate::measure::median(&processor.0) / crate::measure::median(&processor.1);
        println!("  processor time against {name}: {ratio:.2} x");
    }
    rows
}

/// A bundle with the spec that `runc spec` writes, without a terminal, running a static `true`.
fn default_bundle(work: &Path) -> PathBuf {
    let bundle = work.join("bundle");
    let bin = bundle.join("rootfs/bin");
    fs::create_dir_all(&bin).expect("create the bundle");
    fs::copy("/bin/busybox", bin.join("busybox")).expect("copy busybox: install busybox-static");
    fs::set_permissions(bin.join("busybox"), fs::Permissions::from_mode(0o755)).expect("chmod busybox");
    for applet in ["true", "sh", "sleep"] {
        symlink("busybox", bin.join(applet)).expect("link an applet");
    }
    fs::write(bundle.join("config.json"), default_spec().to_string()).expect("write config.json");
    bundle
}

fn default_spec() -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/true"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "bench",
        "mounts": default_mounts(),
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "cgroup"},
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

fn default_mounts() -> Value {
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
         "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
         "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
    ])
}
