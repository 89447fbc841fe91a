//! The real daemon, asked over its gRPC API, above real supervisors: Debian's containerd with runc, and shimd with our shim
//! and lowrun where they are built.
//!
//! Each test has network and mount namespaces of its own and a directory of its own; what it leaves there is a failure.
//! They need root, busybox as a static program, and the supervisor's programs; each says what it misses and is skipped.

mod crash;
mod exec;
mod faults;
mod harness;
mod image;
mod lifecycle;
mod streams;
mod system;
