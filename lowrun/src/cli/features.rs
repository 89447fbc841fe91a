//! `lowrun features` and `lowrun --version`.

use serde_json::json;

use super::args::{Command, Typed};
use super::{Global, indented, print};
use crate::cgroup::discover;
use crate::create::seccomp::{ARCHITECTURES, FLAGS};
use crate::criu::CONFIG_ANNOTATION;
use crate::fault::Result;
use crate::plan::capabilities::NAMES;
use crate::plan::mounts::known_options;
use crate::plan::namespaces::Kind;
use crate::plan::{MEMORY_FLAGS, MEMORY_MODES, unit};
use crate::spec::OCI_VERSION;
use crate::sys::seccomp::knows_flags;

pub(super) const FEATURES: Command = Command {
    name: "features",
    about: "print what this lowrun can do, as JSON",
    description: "The document is that of runtime-spec's features.md.",
    arguments: "",
    flags: &[],
    count: (0, 0),
    flags_end_after: usize::MAX,
};

pub(super) const VERSION: Command = Command {
    name: "version",
    about: "print the version",
    description: "",
    arguments: "",
    flags: &[],
    count: (0, 0),
    flags_end_after: usize::MAX,
};

fn seccomp_version() -> String {
    libseccomp::ScmpVersion::current().map_or_else(|_| "unknown".to_owned(), |version| version.to_string())
}

/// The commit that this was built from, where the build names it: Docker and Podman show it.
fn commit() -> &'static str {
    option_env!("LOWRUN_COMMIT").unwrap_or("unknown")
}

pub(super) fn version(global: &Global, _: &Typed) -> Result<i32> {
    // Where it stands in for runc, it answers to that name: callers look for it.
    let name = if global.program == "runc" { "runc" } else { "lowrun" };
    let text = format!(
        "{name} version {}\ncommit: {}\nspec: {OCI_VERSION}\nlibseccomp: {}\n",
        env!("CARGO_PKG_VERSION"),
        commit(),
        seccomp_version()
    );
    print(&text).map(|()| 0)
}

pub(super) fn features(_: &Global, _: &Typed) -> Result<i32> {
    let namespaces = Kind::ALL.map(Kind::as_str);
    let flags: Vec<&str> = FLAGS.iter().map(|(name, _)| *name).collect();
    let supported: Vec<&str> = FLAGS.iter().filter(|(_, bit)| knows_flags(*bit)).map(|(name, _)| *name).collect();
    let architectures: Vec<&str> =
        ARCHITECTURES.iter().map(|(name, _)| *name).filter(|name| *name != "SCMP_ARCH_NATIVE").collect();
    let document = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": known_options(),
        "linux": {
            "namespaces": namespaces,
            "capabilities": NAMES.as_slice(),
            "cgroup": {
                "v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true,
            },
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE",
                ],
                "archs": architectures,
                "knownFlags": flags,
                "supportedFlags": supported,
            },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": true },
            "intelRdt": { "enabled": true, "schemata": true, "monitoring": true },
            "memoryPolicy": { "modes": MEMORY_MODES, "flags": MEMORY_FLAGS.map(|(name, _)| name) },
            "mountExtensions": { "idmap": { "enabled": true } },
            "netDevices": { "enabled": true },
        },
        "annotations": {
            "io.github.seccomp.libseccomp.version": seccomp_version(),
            // Podman looks for this one before it offers checkpoints.
            "org.opencontainers.runc.checkpoint.enabled": "true",
            "run.strata.lowrun.version": env!("CARGO_PKG_VERSION"),
            "run.strata.lowrun.cgroup": if discover::is_unified() { "v2" } else { "v1" },
        },
        // Whoever lets users write annotations keeps these from them: by the two last root's systemd and CRIU are told what to do.
        "potentiallyUnsafeConfigAnnotations": ["bundle", unit::ANNOTATION_PREFIX, CONFIG_ANNOTATION],
    });
    print(&(indented(&document, "    ") + "\n")).map(|()| 0)
}
