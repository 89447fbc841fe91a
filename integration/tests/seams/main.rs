//! Every seam with somebody else's program on its other side.
//!
//! - [`shims`]: a shim under a supervisor, each pairing of ours and theirs; containerd with its own shim proves the test.
//! - [`stores`]: `ctr` on what a supervisor keeps: images, content, snapshots, leases, namespaces, containers.
//! - [`engine`]: engined over a containerd with its own shim and runc.
//!
//! The life of one container over each pairing of shim and runtime is in `tests/shim.rs`, `ctr`'s first steps are in
//! `tests/containerd.rs`.

mod engine;
mod shims;
mod stores;
