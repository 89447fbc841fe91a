//! What a system call does to the world, as far as a crash before or after it makes a difference.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use libc::c_long;

/// Whose system call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Shimd,
    Shim,
    Runtime,
    /// shimd's helper that talks to registries.
    Courier,
}

impl Role {
    /// By the program that a process runs; none: a user's.
    pub(crate) fn of(pid: i32) -> Option<Role> {
        let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        // The shim executes it on a mount of its file alone, which lies nowhere.
        if exe == Path::new("/") {
            return Some(Role::Runtime);
        }
        let name = exe.file_name()?.to_str()?.trim_end_matches(" (deleted)").to_owned();
        [
            ("shimd", Role::Shimd),
            ("containerd-shim-strata-v1", Role::Shim),
            ("lowrun", Role::Runtime),
            // lowrun's sealed copy of itself.
            ("memfd:lowrun", Role::Runtime),
            ("shimd-registry", Role::Courier),
        ]
        .into_iter()
        .find_map(|(program, role)| (program == name).then_some(role))
    }

    pub(crate) fn parse(word: &str) -> Option<Role> {
        [Role::Shimd, Role::Shim, Role::Runtime, Role::Courier].into_iter().find(|role| format!("{role:?}") == word)
    }
}

/// Calls that change something whatever their arguments are.
const PLAIN: &[(c_long, &str)] = &[
    (libc::SYS_mkdirat, "mkdir"),
    (libc::SYS_renameat2, "rename"),
    (libc::SYS_unlinkat, "unlink"),
    (libc::SYS_symlinkat, "symlink"),
    (libc::SYS_linkat, "link"),
    (libc::SYS_mknodat, "mknod"),
    (libc::SYS_mount, "mount"),
    (libc::SYS_move_mount, "mount"),
    (libc::SYS_mount_setattr, "mount-attributes"),
    (libc::SYS_umount2, "unmount"),
    (libc::SYS_pivot_root, "pivot"),
    (libc::SYS_pwrite64, "store"),
    (libc::SYS_ftruncate, "store"),
    (libc::SYS_copy_file_range, "copy-file"),
    (libc::SYS_fdatasync, "sync"),
    (libc::SYS_fsync, "sync"),
    (libc::SYS_syncfs, "sync"),
    (libc::SYS_bind, "bind"),
    (libc::SYS_connect, "connect"),
    (libc::SYS_execve, "exec"),
    (libc::SYS_unshare, "namespaces"),
    (libc::SYS_setns, "namespaces"),
    (libc::SYS_pidfd_send_signal, "signal"),
];

#[cfg(target_arch = "x86_64")]
const OLDER: &[(c_long, &str)] = &[
    (libc::SYS_mkdir, "mkdir"),
    (libc::SYS_rename, "rename"),
    (libc::SYS_renameat, "rename"),
    (libc::SYS_unlink, "unlink"),
    (libc::SYS_rmdir, "unlink"),
    (libc::SYS_symlink, "symlink"),
    (libc::SYS_link, "link"),
    (libc::SYS_fork, "process"),
    (libc::SYS_vfork, "process"),
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[(c_long, &str)] = &[];

/// What a thread that has just entered a system call is about to do; none: nothing that others could see.
pub(crate) fn effect_of(thread: i32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{thread}/syscall")).ok()?;
    let mut words = text.split_whitespace();
    let number: c_long = words.next()?.parse().ok()?;
    let arguments: Vec<u64> =
        words.filter_map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok()).collect();
    if let Some((_, name)) = PLAIN.iter().chain(OLDER).find(|(call, _)| *call == number) {
        return Some((*name).to_owned());
    }
    match number {
        libc::SYS_openat => (*arguments.get(2)? & libc::O_CREAT as u64 != 0).then(|| "create".to_owned()),
        libc::SYS_write | libc::SYS_writev | libc::SYS_sendto | libc::SYS_sendmsg => {
            Some(format!("write-{}", written_to(thread, *arguments.first()?)?))
        }
        libc::SYS_kill => (*arguments.get(1)? != 0).then(|| "signal".to_owned()),
        libc::SYS_clone => is_process(*arguments.first()?),
        libc::SYS_clone3 => is_process(flags_at(thread, *arguments.first()?)?),
        _ => None,
    }
}

/// A thread is nobody else's.
fn is_process(flags: u64) -> Option<String> {
    (flags & libc::CLONE_THREAD as u64 == 0).then(|| "process".to_owned())
}

/// The first field of `clone_args`.
fn flags_at(thread: i32, address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    fs::File::open(format!("/proc/{thread}/mem")).ok()?.read_exact_at(&mut bytes, address).ok()?;
    Some(u64::from_ne_bytes(bytes))
}

/// The kind of file that a descriptor is; none: one that wakes only the process itself, or its log.
fn written_to(thread: i32, descriptor: u64) -> Option<&'static str> {
    if descriptor == 2 {
        return None;
    }
    let target = fs::read_link(format!("/proc/{thread}/fd/{descriptor}")).ok()?;
    let text = target.to_str()?;
    if text.starts_with("socket:") {
        return Some("socket");
    }
    if text.starts_with("pipe:") {
        return Some("pipe");
    }
    if target.starts_with("/sys/fs/cgroup") {
        return Some("cgroup");
    }
    if target.starts_with(Path::new("/proc")) || target.starts_with("/dev") {
        return Some("proc");
    }
    target.is_absolute().then_some("file")
}
