//! Which hierarchies there are, where they are mounted, and where in them lowrun itself is.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::fault::{Attempt, Code, Fault, Result};
use crate::sys::{self, Call};

/// Where every distribution mounts the hierarchies.
const MOUNTS: &str = "/sys/fs/cgroup";
const CGROUP_MAGIC: u64 = 0x0027_e0eb;
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// lowrun's own place in a hierarchy.
#[derive(Debug)]
pub struct Own {
    /// As in `/proc/self/cgroup`; empty for v2.
    pub controllers: String,
    pub mount: PathBuf,
    /// A handle of `mount`.
    pub top: OwnedFd,
    /// Below `mount`, without a leading slash.
    pub path: PathBuf,
}

/// Whether the machine has cgroup v2 only.
pub fn is_unified() -> bool {
    rustix::fs::statfs(MOUNTS).is_ok_and(|stat| stat.f_type as u64 == CGROUP2_MAGIC)
}

/// Every usable hierarchy.
pub fn own() -> Result<Vec<Own>> {
    let text =
        crate::sys::read_kernel_file("/proc/self/cgroup").attempt(Code::CgroupFailed, || "read /proc/self/cgroup")?;
    let text = String::from_utf8_lossy(&text);
    let attempted = || format!("open {MOUNTS}");
    let mounts = open_mount(CWD, MOUNTS).attempt(Code::CgroupFailed, attempted)?;
    let place = |mounts: OwnedFd| {
        let unified = magic(mounts.as_fd()) == Some(CGROUP2_MAGIC);
        let places = text.lines().filter_map(parse).map(|line| place(line, mounts.as_fd(), unified));
        places.filter_map(sys::Result::transpose).collect()
    };
    let own: sys::Result<Vec<Own>> = mounts.map_or(Ok(Vec::new()), place);
    let own = own.attempt(Code::CgroupFailed, attempted)?;
    if own.is_empty() {
        return Err(Fault::new(Code::CgroupFailed, "find the cgroup hierarchies")
            .cause(format!("nothing of /proc/self/cgroup is mounted below {MOUNTS}")));
    }
    Ok(own)
}

/// `4:memory:/path` as controllers and path.
pub(super) fn parse(line: &str) -> Option<(&str, &str)> {
    let mut parts = line.splitn(3, ':');
    parts.next()?;
    Some((parts.next()?, parts.next()?))
}

/// A place in one hierarchy, whose mount is looked for in `mounts`: from there the way is shorter than from the root.
fn place((controllers, path): (&str, &str), mounts: BorrowedFd<'_>, unified: bool) -> sys::Result<Option<Own>> {
    let name = match controllers {
        "" if unified => "",
        _ if unified => return Ok(None),
        "" => "unified",
        named => named.strip_prefix("name=").unwrap_or(named),
    };
    let mount = if name.is_empty() { PathBuf::from(MOUNTS) } else { Path::new(MOUNTS).join(name) };
    let Some(top) = open_mount(mounts, if name.is_empty() { "." } else { name })? else { return Ok(None) };
    let wanted = if controllers.is_empty() { CGROUP2_MAGIC } else { CGROUP_MAGIC };
    // A hierarchy that is not mounted limits nothing: like runc, go without it.
    if magic(top.as_fd()) != Some(wanted) {
        return Ok(None);
    }
    let path = path.trim_start_matches('/');
    // Above the root of lowrun's own cgroup namespace there is nothing for us: use the root.
    let path = if path.starts_with("..") { "" } else { path };
    Ok(Some(Own { controllers: controllers.to_owned(), mount, top, path: PathBuf::from(path) }))
}

/// The v2 cgroup of another process, as a path of this mount namespace.
pub fn unified_of(pidfd: BorrowedFd<'_>) -> sys::Result<PathBuf> {
    let missing = sys::Failure { call: "read(cgroup)", errno: Errno::NOENT };
    let pid = sys::pidfd::number(pidfd)?;
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).call("open")?;
    // It is still there: so the text was of it, and not of another that got its number.
    sys::pidfd::number(pidfd)?;
    let path = text.lines().filter_map(parse).find(|(controllers, _)| controllers.is_empty()).ok_or(missing)?.1;
    let mount = if is_unified() { PathBuf::from(MOUNTS) } else { Path::new(MOUNTS).join("unified") };
    Ok(mount.join(path.trim_start_matches('/')))
}

/// A handle of a directory that hierarchies may be mounted in or on; `None` if it is not there, or not for lowrun.
fn open_mount(dir: BorrowedFd<'_>, name: &str) -> sys::Result<Option<OwnedFd>> {
    match rustix::fs::openat(dir, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(None),
        result => result.call("openat").map(Some),
    }
}

fn magic(handle: BorrowedFd<'_>) -> Option<u64> {
    rustix::fs::fstatfs(handle).ok().map(|stat| stat.f_type as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_split_at_the_first_two_colons() {
        assert_eq!(parse("4:memory:/a:b"), Some(("memory", "/a:b")));
        assert_eq!(parse("0::/"), Some(("", "/")));
        assert_eq!(parse("nonsense"), None);
    }
}
