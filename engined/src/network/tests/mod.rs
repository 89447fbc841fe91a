//! Tests against the kernel: real bridges, namespaces, rules and packets.
//!
//! Each runs in a network and a mount namespace of its own, as root; without root it says that it was skipped. Nothing of
//! the machine is touched. The protections are tested with a control: the same probe goes through when the protection is
//! taken away, so a probe that never works proves nothing here.

mod crash;
mod firewall;
mod harness;
mod lifecycle;
mod protection;
mod reach;
mod speed;
