//! Giving a container's cgroup to the container: the user that its process is may then make cgroups below.
//!
//! As the spec's "Cgroup ownership" has it: on v2 alone, where delegation is safe, and only the directory and the files
//! that the kernel names for it.

use std::path::Path;

use rustix::fs::Uid;
use rustix::io::Errno;

use crate::fault::{Attempt, Code, Result};
use crate::sys::Call;

/// Tells which files a delegate owns (Linux 4.15).
const LIST: &str = "/sys/kernel/cgroup/delegate";
const BEFORE_LIST: &str = "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n";

/// Makes `uid` the owner of the directory.
pub(super) fn give(dir: &Path, uid: u32) -> Result<()> {
    let files = std::fs::read_to_string(LIST).unwrap_or_else(|_| BEFORE_LIST.to_owned());
    chown(dir, uid)?;
    // A file of a controller that is not enabled is not there.
    files.lines().filter(|file| !file.contains('/')).try_for_each(|file| chown(&dir.join(file), uid))
}

fn chown(path: &Path, uid: u32) -> Result<()> {
    match rustix::fs::chown(path, Some(Uid::from_raw(uid)), None) {
        Err(Errno::NOENT) => Ok(()),
        result => result.call("chown").attempt(Code::CgroupFailed, || format!("give {} to user {uid}", path.display())),
    }
}
