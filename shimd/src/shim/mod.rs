//! Shims: the programs that watch containers, started and spoken to by containerd's shim v2 protocol.
//!
//! [`runtime`] finds the program, [`launch`] runs its `start` and `delete`, [`address`] reads what it answered,
//! [`client`] speaks the task service over ttrpc.

pub(crate) mod address;
pub(crate) mod client;
pub(crate) mod launch;
pub(crate) mod runtime;

pub(crate) use address::Endpoint;
pub(crate) use client::Shim;
pub(crate) use launch::Launcher;
