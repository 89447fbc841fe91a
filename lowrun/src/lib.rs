//! lowrun: the OCI runtime of Strata. It sets a container up, and exits.
//!
//! `cli` reads the command line; `plan` turns config.json into an ordered plan, without touching the system; `create`
//! is the host side and `init` the container side of making it, and `channel` what they say to each other; `cgroup`
//! and `state` are what a container leaves on the host. `sys` holds the only unsafe code.

pub mod cgroup;
pub mod channel;
pub mod cli;
pub mod create;
pub mod criu;
pub mod fault;
pub mod init;
pub mod log;
pub mod path;
pub mod plan;
pub mod rdt;
pub mod rootless;
pub mod spec;
pub mod state;
pub mod sys;
pub mod systemd;
pub mod trace;
