//! Docker's behaviours, from the command line down to the kernel.
//!
//! Each test here is true of Docker: `SUBJECT=theirs` runs it on Debian's dockerd. Where ours says more (words of errors,
//! `explain`, traces), the test stands in `errors.rs` or `trace.rs`.

mod exec;
mod images;
mod lifecycle;
mod limits;
mod mounts;
mod network;
mod output;
mod program;
mod security;
mod show;
mod terminal;
