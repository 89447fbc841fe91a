//! Giving up privileges. Who is not root has none to give up.

use rustix::process::{Gid, Uid, getuid};
use rustix::thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// The user and the group that own nothing.
const NOBODY: u32 = 65534;

/// Becomes nobody, for good. The process has one thread yet, so its thread's identity is its own.
pub(crate) fn give_up() -> rustix::io::Result<()> {
    if getuid().is_root() {
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        set_thread_groups(&[])?;
        set_thread_res_gid(group, group, group)?;
        // With the user go the capabilities, of the three sets of the thread and of all that it starts.
        set_thread_res_uid(user, user, user)?;
    }
    set_no_new_privs(true)
}
