//! Attributes of the calling process, and its replacement by another program.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::{Failure, Result, check};

/// `linux/nsfs.h`; the same for each architecture.
const NS_GET_PARENT: libc::Ioctl = 0xb702;

/// Joins the namespaces `kinds` (`CLONE_NEW*`) of a namespace file, or of a process by its pidfd (Linux 5.8).
pub fn setns(fd: BorrowedFd<'_>, kinds: u64) -> Result<()> {
    // SAFETY: takes integers only. lowrun has one thread and shares no file system attributes.
    check("setns", unsafe { libc::setns(fd.as_raw_fd(), kinds as libc::c_int) }.into()).map(drop)
}

/// The namespace in which a PID or user namespace was made; `EPERM` if that is around the caller's own.
pub fn parent_namespace(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    // SAFETY: takes integers only, and gives a descriptor that is the caller's alone.
    let parent = check("ioctl(NS_GET_PARENT)", unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_PARENT) }.into())?;
    // SAFETY: see above.
    Ok(unsafe { OwnedFd::from_raw_fd(parent as i32) })
}

/// Makes new namespaces `kinds` (`CLONE_NEW*`).
pub fn unshare(kinds: u64) -> Result<()> {
    // SAFETY: takes integers only; no CLONE_FILES, so that no descriptor changes hands.
    check("unshare", unsafe { libc::unshare(kinds as libc::c_int) }.into()).map(drop)
}

/// Sets the ids of the process, groups first; without `groups` the supplementary groups stay.
pub fn set_ids(uid: u32, gid: u32, groups: Option<&[u32]>) -> Result<()> {
    if let Some(groups) = groups {
        // SAFETY: pointer and length describe `groups`. The raw call avoids glibc's signal to all threads.
        check("setgroups", unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    }
    // SAFETY: takes integers only.
    check("setresgid", unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })
        .or_else(|failure| set_id((libc::SYS_setgid, libc::SYS_getresgid), gid, failure))?;
    // SAFETY: takes integers only.
    check("setresuid", unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })
        .or_else(|failure| set_id((libc::SYS_setuid, libc::SYS_getresuid), uid, failure))
        .map(drop)
}

/// By the call that runc makes: a filter that was made for it alone refuses the other. Without privilege that one sets less
/// than all three ids, so they are looked at; `refused` is what the other call gave.
fn set_id((set, read): (libc::c_long, libc::c_long), id: u32, refused: Failure) -> Result<libc::c_long> {
    let mut ids = [!id; 3];
    // SAFETY: takes an integer only.
    check("setid", unsafe { libc::syscall(set, id) }).map_err(|_| refused)?;
    let [real, effective, saved] = &mut ids;
    // SAFETY: three places for an id each, which nobody else has.
    let result = unsafe { libc::syscall(read, &raw mut *real, &raw mut *effective, &raw mut *saved) };
    check("getresid", result).map_err(|_| refused)?;
    if ids == [id; 3] { Ok(0) } else { Err(refused) }
}

/// `no_new_privs`, for good.
pub fn set_no_new_privs() -> Result<()> {
    // SAFETY: takes integers only.
    check("prctl(PR_SET_NO_NEW_PRIVS)", unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into()).map(drop)
}

/// Whether others of the same user may trace this process and read its `/proc` files. A child inherits it.
pub fn set_dumpable(dumpable: bool) -> Result<()> {
    let value = libc::c_ulong::from(dumpable);
    // SAFETY: takes integers only.
    check("prctl(PR_SET_DUMPABLE)", unsafe { libc::prctl(libc::PR_SET_DUMPABLE, value, 0, 0, 0) }.into()).map(drop)
}

/// Overwrites the environment that the process was started with, where `/proc/PID/environ` shows it.
pub fn forget_environment() {
    unsafe extern "C" {
        static environ: *mut *mut libc::c_char;
    }
    // SAFETY: `environ` ends with a null pointer, and each string before it, whoever made it, is writable and ends with
    // a NUL; lowrun has one thread and holds no reference into them.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            std::ptr::write_bytes(*entry, 0, libc::strlen(*entry));
            entry = entry.add(1);
        }
    }
}

/// Makes the descriptor `number`, which something else holds, a copy of `with`.
pub fn replace(number: std::os::fd::RawFd, with: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: takes integers only; what holds the number goes on with it.
    check("dup3", unsafe { libc::dup3(with.as_raw_fd(), number, libc::O_CLOEXEC) }.into()).map(drop)
}

/// Makes orphans below this process its children.
pub fn set_subreaper() -> Result<()> {
    // SAFETY: takes integers only.
    check("prctl(PR_SET_CHILD_SUBREAPER)", unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }.into())
        .map(drop)
}

/// The name in `/proc/PID/comm`, at most 15 bytes.
pub fn set_name(name: &CStr) {
    // SAFETY: the kernel reads at most 16 bytes of a NUL-terminated string.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// `personality(2)`.
pub fn set_personality(persona: u64) -> Result<()> {
    // SAFETY: takes integers only.
    check("personality", unsafe { libc::personality(persona as libc::c_ulong) }.into()).map(drop)
}

/// Joins a new session keyring called `name` and gives its serial number.
pub fn join_session_keyring(name: &CStr) -> Result<i32> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: `name` ends in NUL and outlives the call.
    check("keyctl(JOIN_SESSION_KEYRING)", unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr())
    })
    .map(|serial| serial as i32)
}

/// Sets the permissions of a key.
pub fn set_key_permissions(serial: i32, permissions: u32) -> Result<()> {
    const KEYCTL_SETPERM: libc::c_long = 5;
    // SAFETY: takes integers only.
    check("keyctl(SETPERM)", unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, libc::c_long::from(serial), libc::c_long::from(permissions))
    })
    .map(drop)
}

/// `struct sched_attr`, first version.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedAttr {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// `sched_setattr(2)` of the calling thread.
pub fn set_scheduler(attr: SchedAttr) -> Result<()> {
    let attr = SchedAttr { size: size_of::<SchedAttr>() as u32, ..attr };
    // SAFETY: `attr` says its own size and outlives the call.
    check("sched_setattr", unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) }).map(drop)
}

/// `ioprio_set(2)` of the calling process.
pub fn set_io_priority(value: i32) -> Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_long = 1;
    // SAFETY: takes integers only.
    check("ioprio_set", unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, value) }).map(drop)
}

/// `set_mempolicy(2)`; `nodes` is a bit mask.
pub fn set_memory_policy(mode: i32, nodes: &[u64]) -> Result<()> {
    let bits = nodes.len() * 64;
    // The kernel counts one bit less than it is told.
    let bits = if bits == 0 { 0 } else { bits + 1 };
    let mask = if nodes.is_empty() { std::ptr::null() } else { nodes.as_ptr() };
    // SAFETY: pointer and bit count describe `nodes`.
    check("set_mempolicy", unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) }).map(drop)
}

/// `sched_setaffinity(2)` of the calling thread; `mask` has a bit for each CPU.
pub fn set_affinity(mask: &[u64]) -> Result<()> {
    // SAFETY: pointer and size in bytes describe `mask`.
    check("sched_setaffinity", unsafe {
        libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(mask), mask.as_ptr())
    })
    .map(drop)
}

/// All CPUs again for the calling thread, also those that come later; the kernel leaves out what the cpuset has not.
///
/// A failure changes nothing: then the thread keeps what it inherited.
pub fn reset_affinity() {
    let _ = set_affinity(&[u64::MAX; 128]);
}

/// The CPUs of the calling thread, of the first 64.
pub fn affinity() -> Result<u64> {
    let mut mask = [0_u64; 128];
    // SAFETY: pointer and size in bytes describe `mask`.
    check("sched_getaffinity", unsafe {
        libc::syscall(libc::SYS_sched_getaffinity, 0, size_of_val(&mask), mask.as_mut_ptr())
    })?;
    Ok(mask[0])
}

/// Closes every descriptor from `first` on but those of `kept`.
///
/// For a process that will only execute a program, or end: owners of the descriptors must not be used any more. Where
/// the kernel cannot do it in one call, `listed` tells which are open.
pub fn close_from(first: u32, kept: &[Option<i32>], listed: impl Fn() -> Result<Vec<u32>>) -> Result<()> {
    let mut kept: Vec<u32> = kept.iter().flatten().map(|fd| *fd as u32).filter(|fd| *fd >= first).collect();
    kept.sort_unstable();
    let mut start = first;
    for keep in kept {
        if keep > start {
            close_range(start, keep - 1, &listed)?;
        }
        start = keep + 1;
    }
    close_range(start, libc::c_uint::MAX, &listed)
}

/// Has no program that is started from now on inherit a descriptor from `first` on: a caller may have left some open.
/// Where the kernel cannot do it in one call, `listed` tells which are open.
pub fn close_on_exec_from(first: u32, listed: impl FnOnce() -> Result<Vec<u32>>) {
    // SAFETY: it closes nothing.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if check("close_range", result).is_err() {
        // Not before Linux 5.11, or refused by a filter.
        each(first, libc::c_uint::MAX, listed, close_on_exec);
    }
}

/// Has the program of a command not inherit these descriptors, which stay open for this process's own.
pub fn close_on_exec_in(command: &mut std::process::Command, descriptors: std::ops::Range<u32>) {
    // A program that is started without a step in between is started cheaper.
    if descriptors.is_empty() {
        return;
    }
    let mark = move || {
        descriptors.clone().for_each(|fd| close_on_exec(fd as i32));
        Ok(())
    };
    // SAFETY: between fork and exec it only makes calls that are allowed there, and allocates nothing.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, mark) };
}

fn close_on_exec(fd: i32) {
    // SAFETY: closes nothing; a descriptor that is not open is no harm.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
}

/// As [`close_from`], of one descriptor.
pub fn close(fd: i32) {
    // SAFETY: see `close_from`; a descriptor that is not open is no harm.
    unsafe { libc::close(fd) };
}

fn close_range(first: u32, last: u32, listed: impl FnOnce() -> Result<Vec<u32>>) -> Result<()> {
    // SAFETY: see `close_from`.
    let result = check("close_range", unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) });
    if result.is_err() {
        // Not there before Linux 5.9, or refused by the container's filter.
        each(first, last, listed, close);
    }
    Ok(())
}

/// Acts on the open descriptors of a range. Those above a limit that was lowered since are among what is listed; where
/// nothing can be listed, all numbers are gone through that are usual.
fn each(first: u32, last: u32, listed: impl FnOnce() -> Result<Vec<u32>>, act: impl Fn(i32)) {
    const HIGHEST: u64 = 1 << 16;
    let limit = || rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(HIGHEST);
    match listed() {
        Ok(open) => open.into_iter().filter(|fd| (first..=last).contains(fd)).for_each(|fd| act(fd as i32)),
        Err(_) => (first..=last.min(limit().min(HIGHEST) as u32)).for_each(|fd| act(fd as i32)),
    }
}

/// Strings laid out as `execve(2)` takes them. Made before privileges go.
pub struct Strings {
    _owned: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl Strings {
    /// Takes the strings over.
    pub fn new(owned: Vec<CString>) -> Strings {
        let pointers = owned.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
        Strings { _owned: owned, pointers }
    }
}

/// Replaces the program; returns only on failure.
pub fn execve(path: &CStr, arguments: &Strings, environment: &Strings) -> Failure {
    // SAFETY: both arrays end in a null pointer and their strings are owned by the arguments.
    let result = unsafe { libc::execve(path.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr()) };
    check("execve", result.into()).err().unwrap_or(Failure { call: "execve", errno: rustix::io::Errno::IO })
}

/// Replaces the program by what a descriptor refers to; returns only on failure.
pub fn fexecve(program: BorrowedFd<'_>, arguments: &Strings, environment: &Strings) -> Failure {
    // SAFETY: as in `execve`; the empty path with AT_EMPTY_PATH names the descriptor itself.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    check("execveat", result).err().unwrap_or(Failure { call: "execveat", errno: rustix::io::Errno::IO })
}

/// Ends the process at once, without running what `exit(3)` runs.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

/// `prlimit(2)`, by the number of the resource; of the calling process without a pid.
pub fn set_rlimit(pid: Option<rustix::process::Pid>, resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    let pid = pid.map_or(0, |pid| pid.as_raw_nonzero().get());
    let none = std::ptr::null_mut::<libc::rlimit64>();
    // SAFETY: `limit` outlives the call; no old limit is asked for.
    check("prlimit", unsafe { libc::syscall(libc::SYS_prlimit64, pid, resource, &raw const limit, none) }).map(drop)
}

/// Whether a descriptor that the caller passed is open.
pub fn is_open(fd: u32) -> bool {
    // SAFETY: asks for the flags of a descriptor, by number; nothing is owned or closed.
    fd <= i32::MAX as u32 && unsafe { libc::fcntl(fd as i32, libc::F_GETFD) } != -1
}

/// Whether a descriptor is open that the caller passed: all that lowrun has opened itself closes at `execve(2)`.
pub fn is_inherited(fd: u32) -> bool {
    // SAFETY: as in `is_open`.
    fd <= i32::MAX as u32
        && matches!(unsafe { libc::fcntl(fd as i32, libc::F_GETFD) }, flags if flags >= 0 && flags & libc::FD_CLOEXEC == 0)
}

/// Takes a descriptor that the caller of lowrun handed over by its number, from 3 on.
pub fn take_descriptor(number: i32) -> OwnedFd {
    // SAFETY: such a number comes from the command line; lowrun itself has opened nothing under it, because it was open
    // before lowrun began, and each is taken once.
    unsafe { OwnedFd::from_raw_fd(number) }
}
