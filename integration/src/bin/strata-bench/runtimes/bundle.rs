//! The bundles that the runtimes are measured on.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// A bundle with the spec that `runc spec` writes, without a terminal, running a static program; with a seccomp profile
/// where one is given.
pub(super) fn bundle(work: &Path, name: &str, arguments: &[&str], seccomp: Option<&Value>) -> PathBuf {
    let bundle = work.join(name);
    let bin = bundle.join("rootfs/bin");
    // Where file systems are mounted; a runtime would make them, the floor does not.
    for directory in ["bin", "proc", "dev", "sys"] {
        fs::create_dir_all(bundle.join("rootfs").join(directory)).expect("create the bundle");
    }
    fs::copy("/bin/busybox", bin.join("busybox")).expect("copy busybox: install busybox-static");
    fs::set_permissions(bin.join("busybox"), fs::Permissions::from_mode(0o755)).expect("chmod busybox");
    for applet in ["true", "sh", "sleep"] {
        symlink("busybox", bin.join(applet)).expect("link an applet");
    }
    let mut spec = default_spec();
    spec["process"]["args"] = json!(arguments);
    if let Some(profile) = seccomp {
        spec["linux"]["seccomp"] = profile.clone();
    }
    fs::write(bundle.join("config.json"), spec.to_string()).expect("write config.json");
    bundle
}

fn default_spec() -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
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
