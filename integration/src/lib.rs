//! The harness: real processes over public seams, in a place of their own, with a look afterwards at what they left.
//!
//! A test asks for a *stack* ([`flow`], [`ours()`], [`theirs()`]) and talks to it through a command line, as a person would:
//!
//! ```no_run
//! integration::flow(|stack| {
//!     let out = stack.run(&["run", "--rm", stack.busybox(), "sh", "-c", "exit 7"]);
//!     assert_eq!(out.code, 7);
//! });
//! ```
//!
//! - [`lab`]: the place: network and mount namespaces, a directory, a name that its cgroups carry.
//! - [`leak`]: what there is before and after, and the difference.
//! - [`stack`]: who is under test: our daemons, or Debian's dockerd (`SUBJECT=theirs`), and the registry beside them.
//! - [`installation`]: the same daemons for a person: `make up`, `make down`, `make demo`.
//! - [`call`], [`terminal`]: running a command line, with pipes or with a terminal.
//!
//! A behaviour that is Docker's is first proved on Docker: `SUBJECT=theirs` runs the same tests through its client. A
//! test that needs what this machine lacks says so by [`skip()`], and the runner counts it.

pub mod call;
pub mod daemon;
pub mod daemonless;
pub mod http;
pub mod installation;
pub mod lab;
pub mod leak;
pub mod process;
pub mod programs;
pub mod registry;
pub mod runtime;
pub mod site;
pub mod skip;
pub mod stack;
pub mod supervisor;
mod sys;
pub mod terminal;
pub mod wait;

pub use call::{Call, Output, Running};
pub use daemonless::{Caller, Daemonless, daemonless};
pub use runtime::runtime;
pub use skip::skip;
pub use stack::{Stack, Subject, flow, ours, ours_with, theirs, theirs_on_shimd, theirs_over, theirs_with};
pub use supervisor::{
    Daemonship, Supervised, newer_containerd, newer_supervisor, supervised_by, supervised_with, supervisor,
};
