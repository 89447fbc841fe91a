//! Which hierarchies there are, where they are mounted, and where in them lowrun itself is.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::fault::{Attempt, Code, Fault, Result};
use crate::sys::{self, Call};

/// Where every distribution mounts the hierarchies.
const MOUNTS: &str = "/sys/fs/cgroup";
const CGROUP_MAGIC: u64 = 0x0027_e0eb;
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// lowrun's own place in a hierarchy.
#[derive(Debug, PartialEq, Eq)]
pub struct Own {
    /// As in `/proc/self/cgroup`; empty for v2.
    pub controllers: String,
    pub mount: PathBuf,
    /// Below `mount`, without a leading slash.
    pub path: PathBuf,
}

/// Whether the machine has cgroup v2 only.
pub fn is_unified() -> bool {
    magic(Path::new(MOUNTS)) == Some(CGROUP2_MAGIC)
}

/// Every usable hierarchy.
pub fn own() -> Result<Vec<Own>> {
    let text =
        crate::sys::read_kernel_file("/proc/self/cgroup").attempt(Code::CgroupFailed, || "read /proc/self/cgroup")?;
    let text = String::from_utf8_lossy(&text);
    let unified = is_unified();
    let own: Vec<Own> = text.lines().filter_map(parse).filter_map(|line| place(line, unified)).collect();
    if own.is_empty() {
        return Err(Fault::new(Code::CgroupFailed, "find the cgroup hierarchies")
            .cause(format!("nothing of /proc/self/cgroup is mounted below {MOUNTS}")));
    }
    Ok(own)
}

/// `4:memory:/path` as controllers and path.
fn parse(line: &str) -> Option<(&str, &str)> {
    let mut parts = line.splitn(3, ':');
    parts.next()?;
    Some((parts.next()?, parts.next()?))
}

fn place((controllers, path): (&str, &str), unified: bool) -> Option<Own> {
    let mount = match controllers {
        "" if unified => PathBuf::from(MOUNTS),
        _ if unified => return None,
        "" => Path::new(MOUNTS).join("unified"),
        named => Path::new(MOUNTS).join(named.strip_prefix("name=").unwrap_or(named)),
    };
    let wanted = if controllers.is_empty() { CGROUP2_MAGIC } else { CGROUP_MAGIC };
    // A hierarchy that is not mounted limits nothing: like runc, go without it.
    if magic(&mount) != Some(wanted) {
        return None;
    }
    let path = path.trim_start_matches('/');
    // Above the root of lowrun's own cgroup namespace there is nothing for us: use the root.
    let path = if path.starts_with("..") { "" } else { path };
    Some(Own { controllers: controllers.to_owned(), mount, path: PathBuf::from(path) })
}

/// The v2 cgroup of another process, as a path of this mount namespace.
pub fn unified_of(pidfd: BorrowedFd<'_>) -> sys::Result<PathBuf> {
    let missing = sys::Failure { call: "read(cgroup)", errno: Errno::NOENT };
    let pid = sys::pidfd::number(pidfd)?;
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).call("open")?;
    let path = text.lines().filter_map(parse).find(|(controllers, _)| controllers.is_empty()).ok_or(missing)?.1;
    let mount = if is_unified() { PathBuf::from(MOUNTS) } else { Path::new(MOUNTS).join("unified") };
    Ok(mount.join(path.trim_start_matches('/')))
}

fn magic(path: &Path) -> Option<u64> {
    rustix::fs::statfs(path).ok().map(|stat| stat.f_type as u64)
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
