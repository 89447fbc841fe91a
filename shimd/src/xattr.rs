//! Extended attributes of files that are held by a handle, also by one that opens nothing (`O_PATH`): links, devices.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Most bytes of a list of names, and of a value (both are the kernel's own bounds).
const SIZE_MAX: usize = 64 << 10;

/// Names and values.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// All of a file; none where the file system has none.
pub(crate) fn all(file: BorrowedFd<'_>) -> rustix::io::Result<Xattrs> {
    let path = path(file);
    let mut names = vec![0; SIZE_MAX];
    let length = match rustix::fs::listxattr(path.as_str(), &mut names) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        outcome => outcome?,
    };
    let mut value = vec![0; if length > 0 { SIZE_MAX } else { 0 }];
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let length = rustix::fs::getxattr(path.as_str(), OsStr::from_bytes(name), &mut value)?;
        found.push((name.to_vec(), value[..length].to_vec()));
    }
    Ok(found)
}

pub(crate) fn set(file: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::setxattr(path(file).as_str(), OsStr::from_bytes(name), value, XattrFlags::empty())
}

/// The handle's name in /proc: it leads to the very file.
fn path(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}
