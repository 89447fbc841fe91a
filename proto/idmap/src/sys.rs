//! The system calls that rustix has not: `mount_setattr(2)`, and a process that is nothing but its user namespace.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Of linux/mount.h.
const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;
const AT_RECURSIVE: libc::c_int = 0x8000;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// What is mapped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// One mount, to be read only.
    Layer,
    /// A mount and all beneath it.
    Tree,
}

/// Maps the ids of a detached mount as in the user namespace.
pub(crate) fn map_ids(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>, extent: Extent) -> io::Result<()> {
    const EMPTY: &CStr = c"";
    let (attr_set, flags) = match extent {
        Extent::Layer => (MOUNT_ATTR_IDMAP | MOUNT_ATTR_RDONLY, libc::AT_EMPTY_PATH),
        Extent::Tree => (MOUNT_ATTR_IDMAP, libc::AT_EMPTY_PATH | AT_RECURSIVE),
    };
    let userns_fd = u64::try_from(namespace.as_raw_fd()).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    let attr = MountAttr { attr_set, attr_clr: 0, propagation: 0, userns_fd };
    // SAFETY: the path is an empty C string, the structure lives through the call and its true size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            EMPTY.as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A process that does nothing, until this is dropped.
pub(crate) struct Sleeper(libc::pid_t);

impl Sleeper {
    /// In a user namespace of its own. Its end is told by no signal and to no `wait` for any child: whoever has others is
    /// not disturbed.
    pub(crate) fn in_user_namespace() -> io::Result<Sleeper> {
        // SAFETY: getpid has no preconditions.
        let parent = unsafe { libc::getpid() };
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: without CLONE_VM and a stack it is a fork: the child has a copy of this memory, in which locks may be held
        // for ever, so that it makes system calls alone. The arguments after the flags are none in any order.
        let pid = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER, none, none, none, none) };
        match pid {
            -1 => Err(io::Error::last_os_error()),
            0 => sleep(parent),
            pid => libc::pid_t::try_from(pid).map(Sleeper).map_err(io::Error::other),
        }
    }

    pub(crate) fn pid(&self) -> libc::pid_t {
        self.0
    }
}

/// What the child does.
fn sleep(parent: libc::pid_t) -> ! {
    // SAFETY: plain system calls. It ends with the thread that made it; if that was gone before, it has another parent.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        while libc::getppid() == parent {
            libc::poll(std::ptr::null_mut(), 0, -1);
        }
        libc::_exit(0)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // SAFETY: nobody else waits for a child of this kind, so the pid is its own until the call that follows.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), libc::__WALL);
        }
    }
}
