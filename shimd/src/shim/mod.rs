//! Shims: the programs that watch containers, started and spoken to by containerd's shim v2 protocol.
//!
//! [`shims`] knows how a shim comes and goes, whoever it is for: [`runtime`] finds its program, [`bundle`] is where it
//! works, [`launch`] runs its `start` and `delete` by [`spawner`], [`address`] reads what it answered, [`client`]
//! speaks its services over ttrpc, [`log`] hears what it says of itself, [`stray`] finds what nobody has the address
//! of.

pub(crate) mod address;
pub(crate) mod bundle;
pub(crate) mod client;
pub(crate) mod launch;
pub(crate) mod log;
pub(crate) mod runtime;
pub(crate) mod shims;
mod spawner;
mod stray;

pub(crate) use address::Endpoint;
pub(crate) use client::Shim;
pub(crate) use launch::Launcher;
pub(crate) use shims::{Connection, OwnedSubject, Shims};
pub(crate) use spawner::Spawner;
