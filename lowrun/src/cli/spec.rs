//! `lowrun spec`: a config.json to begin with.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::{Value, json};

use super::args::{Command, Typed, option, switch};
use super::{Global, indented};
use crate::cgroup::discover;
use crate::fault::{Attempt, Code, Fault, Result};
use crate::spec::OCI_VERSION;
use crate::sys::Call;

pub(super) const SPEC: Command = Command {
    name: "spec",
    about: "write a config.json to begin with",
    description: "The file is config.json, and must not be there yet. It describes a container that runs sh in ./rootfs:\n\n    \
                  mkdir rootfs && tar -C rootfs -xf image.tar\n    \
                  lowrun spec\n    \
                  lowrun run c1",
    arguments: "",
    flags: &[
        option("bundle", Some('b'), "DIR", "where to write it (default: the working directory)"),
        switch("rootless", None, "for a user without privilege"),
    ],
    count: (0, 0),
    flags_end_after: usize::MAX,
};

pub(super) fn spec(_: &Global, typed: &Typed) -> Result<i32> {
    let bundle = typed.value("bundle").filter(|path| !path.is_empty());
    let path = Path::new(bundle.map_or(".".as_ref(), |path| path.as_os_str())).join("config.json");
    let mut document = example(discover::is_unified());
    if typed.is_on("rootless") {
        to_rootless(&mut document);
    }
    write(&path, &document).map(|()| 0)
}

fn write(path: &Path, document: &Value) -> Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o666).open(path);
    let mut file = match file {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Fault::new(Code::BundleInvalid, format!("File {} exists. Remove it first", path.display())));
        }
        result => result.call("open").attempt(Code::BundleInvalid, || format!("write {}", path.display()))?,
    };
    file.write_all(indented(document, "\t").as_bytes())
        .call("write")
        .attempt(Code::BundleInvalid, || format!("write {}", path.display()))
}

/// The container that `runc spec` describes, field by field in its order: a shell, few capabilities, a read-only root, the usual mounts.
fn example(unified: bool) -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| match options {
        [] => json!({ "destination": destination, "type": kind, "source": source }),
        _ => json!({ "destination": destination, "type": kind, "source": source, "options": options }),
    };
    let mut namespaces: Vec<Value> =
        ["pid", "network", "ipc", "uts", "mount"].iter().map(|kind| json!({ "type": kind })).collect();
    if unified {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "runc",
        "mounts": [
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount(
                "/dev/pts",
                "devpts",
                "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            ),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": namespaces,
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// A user namespace with the caller as root, the host's network, the host's sysfs, no limits and no other ids.
fn to_rootless(document: &mut Value) {
    let ids = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let linux = &document["linux"];
    let mut namespaces = linux["namespaces"].clone();
    if let Some(namespaces) = namespaces.as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({ "type": "user" }));
    }
    document["linux"] = json!({
        "uidMappings": [{ "containerID": 0, "hostID": ids.0, "size": 1 }],
        "gidMappings": [{ "containerID": 0, "hostID": ids.1, "size": 1 }],
        "namespaces": namespaces,
        "maskedPaths": linux["maskedPaths"],
        "readonlyPaths": linux["readonlyPaths"],
    });
    let Some(mounts) = document["mounts"].as_array_mut() else { return };
    for mount in mounts {
        if mount["destination"] == "/sys" {
            *mount = json!({
                "destination": "/sys", "type": "none", "source": "/sys",
                "options": ["rbind", "nosuid", "noexec", "nodev", "ro"],
            });
        }
        if let Some(options) = mount.get_mut("options").and_then(Value::as_array_mut) {
            options.retain(|option| option.as_str().is_none_or(|o| !o.starts_with("gid=") && !o.starts_with("uid=")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan;
    use crate::spec::Spec;

    #[test]
    fn the_example_can_be_planned() {
        for unified in [false, true] {
            let spec: Spec = serde_json::from_value(example(unified)).unwrap();
            let plan = plan::plan("c", Path::new("/b"), &spec).unwrap();
            assert_eq!(plan.mounts.len(), 7);
        }
    }

    #[test]
    fn the_rootless_example_maps_the_caller() {
        let mut document = example(false);
        to_rootless(&mut document);
        let spec: Spec = serde_json::from_value(document).unwrap();
        let plan = plan::plan("c", Path::new("/b"), &spec).unwrap();
        assert_eq!(plan.uid_mappings[0].host_id, rustix::process::geteuid().as_raw());
        assert!(plan.namespaces.is_new(crate::plan::namespaces::Kind::User));
    }
}
