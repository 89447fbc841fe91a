//! The programs that people run a runtime under, with Debian's packages: each test first over Debian's runc, which proves
//! the test, then over lowrun.
//!
//! - [`docker`]: dockerd with lowrun as its default runtime and as one of several.
//! - [`containerd`]: `ctr` with lowrun as `BinaryName` of the stock shim.
//! - [`podman`], [`rootless`]: Podman as root and as an unprivileged user.
//! - [`buildah`]: Buildah's `run` and `build`.
//!
//! (`SUBJECT=theirs-over-lowrun` runs all of `tests/flow` on dockerd over lowrun.)

mod buildah;
mod containerd;
mod docker;
mod podman;
mod rootless;

use std::path::PathBuf;

use integration::programs;

/// Debian's runc.
fn runc() -> PathBuf {
    programs::peer("runc").unwrap_or_else(|| PathBuf::from("/usr/sbin/runc"))
}

fn lowrun() -> PathBuf {
    programs::ours().join("lowrun")
}

/// A script that shows the value of a controller's file of its own cgroup, on version 1 and on version 2.
fn show(v1: &str, v2: &str) -> String {
    format!("cat /sys/fs/cgroup/{v1} 2>/dev/null || cat /sys/fs/cgroup/{v2}")
}
