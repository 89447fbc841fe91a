//! System calls that the crates in use do not have. The only unsafe code of shimd.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::mpsc::channel;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Lets the runtime watch when a descriptor becomes readable.
pub(crate) fn readable(owner: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the registration owns the descriptor, which is closed only after it was taken off the watch.
    let registered = unsafe { AsyncFd::register_with_interest(owner, Interest::READABLE) };
    registered.map_err(|error| error.into_parts().1)
}

/// Asks the kernel to begin writing out `length` bytes from `offset`, and does not wait for it.
pub(crate) fn begin_write_out(file: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<()> {
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    // SAFETY: the descriptor is open for the length of the borrow; the call takes no pointers.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Keeps the memory of an idle daemon small: few arenas, and what is free goes back to the kernel early.
pub(crate) fn limit_malloc() {
    // SAFETY: mallopt only sets parameters; it is called before other threads exist.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 << 10);
    }
}

/// Gives freed memory back to the kernel, after work that used much of it.
pub(crate) fn trim_malloc() {
    // SAFETY: malloc_trim may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives the calling thread a umask of its own, and sets it to zero: files are then made with the mode they shall have.
pub(crate) fn private_umask() -> io::Result<()> {
    // SAFETY: unsharing the file system attributes (root, working directory, umask) of a thread touches no memory.
    if unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: umask cannot fail and takes no pointers.
    unsafe { libc::umask(0) };
    Ok(())
}

/// Starts a thread with a table of descriptors of its own: in it are the standard streams and `kept`, which leaves the
/// table of the others. `body` must not use any other descriptor of the process: in that table its number is free, or
/// something else. So it owns none that it was not given on the thread, logs nothing and wakes no task of the runtime.
pub(crate) fn start_with_own_descriptors(
    name: &str,
    kept: OwnedFd,
    body: impl FnOnce(OwnedFd) + Send + 'static,
) -> io::Result<()> {
    let number = kept.as_raw_fd();
    let (answer, made) = channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let table = keep_descriptor_alone(number);
        let is_made = table.is_ok();
        if answer.send(table).is_ok() && is_made {
            // SAFETY: the number is open in this thread's own table, and nothing else there owns it.
            body(unsafe { OwnedFd::from_raw_fd(number) });
        }
    })?;
    // Until then the thread shares the table that `kept` is closed in.
    let table = made.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
    drop(kept);
    table
}

fn keep_descriptor_alone(kept: RawFd) -> io::Result<()> {
    let kept = kept.cast_unsigned();
    // SAFETY: unsharing the table touches no memory, and the table of the other threads stays as it is.
    if unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let ranges = [(3, kept.saturating_sub(1)), (kept.max(2) + 1, libc::c_uint::MAX)];
    for (first, last) in ranges.into_iter().filter(|(first, last)| first <= last) {
        // SAFETY: only this thread's table is closed, and nothing that lives on this thread owns a number in it.
        if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Has the kernel keep the status of children until it is asked for, whatever shimd was started with (`SIGCHLD`
/// ignored).
pub(crate) fn hear_of_children() {
    // SAFETY: the default action is no function; other threads do not exist yet.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
    }
}

/// `struct pidfd_info` of Linux 6.15, as far as it is needed: 64 bytes, the exit status in the ninth `u32`.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ruid: u32,
    rgid: u32,
    euid: u32,
    egid: u32,
    suid: u32,
    sgid: u32,
    fsuid: u32,
    fsgid: u32,
    exit_code: i32,
}

/// `PIDFD_INFO_EXIT`: the exit code is asked for, and, in the answer, there.
const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// `_IOWR(0xFF, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: libc::c_ulong = 0xC000_FF0B | ((size_of::<PidfdInfo>() as libc::c_ulong) << 16);

/// How the process behind a pidfd ended, as a shell would say it; `None` while it runs or is a zombie, and on kernels
/// before 6.15, which do not tell.
pub(crate) fn exit_status(pidfd: BorrowedFd<'_>) -> Option<u32> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the request names the size of the struct, and the struct outlives the call.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    if result != 0 || info.mask & PIDFD_INFO_EXIT == 0 {
        return None;
    }
    let status = info.exit_code;
    Some(if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) as u32 } else { libc::WEXITSTATUS(status) as u32 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn the_exit_of_a_reaped_process_is_known() {
        let mut child = std::process::Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        child.wait().unwrap();
        match exit_status(pidfd.as_fd()) {
            Some(status) => assert_eq!(status, 7),
            None => eprintln!("skipped: this kernel does not tell exits by pidfd"),
        }
    }
}
