//! System calls that the crates in use do not have. The only unsafe code of shimd.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

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
