//! What must happen in a child between fork and exec, and the one process-wide setting of the harness.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::Signal;

/// Makes orphans below this process its children, so that it can tell whose they are.
///
/// # Panics
/// When the kernel refuses, which it does not.
pub(crate) fn adopt_orphans() {
    nix::sys::prctl::set_child_subreaper(true).expect("prctl(PR_SET_CHILD_SUBREAPER)");
}

/// Has the kernel kill the child when the thread that starts it ends: a test that is killed leaves no daemon.
pub(crate) fn die_with_parent(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe, and the closure allocates nothing.
    unsafe { command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from)) };
}

/// Gives the child a session of its own whose terminal is its standard input.
pub(crate) fn lead_terminal_session(command: &mut Command) {
    let lead = || {
        rustix::process::setsid()?;
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        Ok(())
    };
    // SAFETY: setsid and ioctl are async-signal-safe, and the closure allocates nothing.
    unsafe { command.pre_exec(lead) };
}
