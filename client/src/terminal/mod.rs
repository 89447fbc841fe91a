//! The person's side: raw mode, size, detach keys, reading standard input, writing output that is byte-exact and does not
//! hold anything else up, and signals.

pub(crate) mod detach;
pub(crate) mod raw;
pub(crate) mod signals;
pub(crate) mod sink;
pub(crate) mod size;
pub(crate) mod stdin;
