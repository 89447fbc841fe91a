//! What must happen in a child between fork and exec, and the one process-wide setting of the harness.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
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

/// Has the kernel answer each sync of the child, and of its children, with success and do nothing.
pub(crate) fn lose_syncs(command: &mut Command) {
    let filter = sync_filter();
    let install = move || {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        // SAFETY: the program and the instructions that it points to live until prctl returns; the kernel copies them.
        match unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: prctl is async-signal-safe, and the closure allocates nothing: the filter was made before.
    unsafe { command.pre_exec(install) };
}

/// For the system's own calls alone: our programs and Go's are of the machine's word size.
fn sync_filter() -> Vec<libc::sock_filter> {
    let instruction = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let syncs = [libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_syncfs, libc::SYS_sync, libc::SYS_msync];
    let mut filter = vec![instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
    for (index, number) in syncs.iter().enumerate() {
        let to_end = (syncs.len() - index) as u8;
        filter.push(instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, to_end, 0, *number as u32));
    }
    let answer = libc::BPF_RET | libc::BPF_K;
    filter.push(instruction(answer, 0, 0, libc::SECCOMP_RET_ALLOW));
    // An error of number 0 is success.
    filter.push(instruction(answer, 0, 0, libc::SECCOMP_RET_ERRNO));
    filter
}
