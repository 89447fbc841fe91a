//! Published attacks on runtimes, replayed: the number is that of the advisory; `docs/security.md` is the list of all.
//!
//! Each test first shows that its attack works where the protection is missing: on a setup that leaves it out, or on the
//! naive step that the fallen runtime took (`naive`). Then lowrun must end in an error or in a container whose walls
//! stand, and what the attack aimed at must be as it was (`canary`).

mod canary;
mod capabilities;
mod cgroups;
mod descriptors;
mod devices;
mod hooks;
mod lengths;
mod naive;
mod parameters;
mod processes;
mod race;
mod races;
mod rootfs;
#[path = "../stage/mod.rs"]
mod stage;
mod terminal;
mod users;
