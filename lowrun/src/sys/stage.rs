//! `mount(2)` in the place of `open_tree`, `fsopen` and `move_mount`: where a filter around lowrun denies those.
//!
//! They make a mount detached and attach it to a handle; `mount(2)` makes it attached, at a path. So it is made on a
//! stage, and moved from there. The stage is a tmpfs over the top of the container's root, there only while something
//! is on it, because a path of the host leads there. From a handle of the root names do not, but `..` does: while the
//! stage is there, paths in the root are resolved without the kernel's `..` (see `path`). All paths that `mount(2)`
//! gets are those of descriptors in a verified procfs.
//!
//! ```text
//! clone, new file system --> on the stage, with a handle of its own --attach--> at its target
//! ```

use std::cell::RefCell;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use super::mount::{self, FsOption};
use super::{Call, Failure, Result, mount_old};

/// Most stages that a sweep takes off one place.
const SWEEPS_MAX: usize = 8;
/// Most bytes of options that `mount(2)` reads.
const DATA_MAX: usize = 4095;

/// Options whose values are labels, taken out of the text by SELinux before the file system sees it.
const LABELS: [&str; 4] = ["context", "fscontext", "defcontext", "rootcontext"];

/// Options of the superblock that `mount(2)` takes as flags.
const SUPERBLOCK: [(&str, u64); 9] = [
    ("sync", libc::MS_SYNCHRONOUS),
    ("dirsync", libc::MS_DIRSYNC),
    ("lazytime", 1 << 25),
    ("mand", libc::MS_MANDLOCK),
    ("iversion", libc::MS_I_VERSION),
    ("async", 0),
    ("nolazytime", 0),
    ("nomand", 0),
    ("noiversion", 0),
];

thread_local! {
    static STAGE: RefCell<Stage> = RefCell::default();
}

#[derive(Default)]
struct Stage {
    /// Whether copies of mounts are made here.
    clones: bool,
    /// Whether new file systems are made here.
    filesystems: bool,
    /// Whether mounts are moved by `mount(2)`.
    moves: bool,
    /// The container's root.
    root: Option<OwnedFd>,
    /// The source that it names in the mount table: by it one that was left over is known, and whose it was.
    name: String,
    /// The tmpfs, while it is there.
    top: Option<OwnedFd>,
    /// Names that were used on it.
    names: u32,
    /// The ids of the mounts that are on it.
    mounts: Vec<u64>,
}

/// Finds out which of the newer calls are denied. What asks must be allowed to mount: else the kernel itself denies them.
pub fn find_denied(proc: BorrowedFd<'_>) {
    let open_tree = is_denied(rustix::mount::open_tree(CWD, c"", OpenTreeFlags::from_bits_retain(u32::MAX)));
    let none = MoveMountFlags::from_bits_retain(u32::MAX);
    let move_mount = is_denied(rustix::mount::move_mount(proc, c"", proc, c"", none));
    let fsopen = is_denied(rustix::mount::fsopen(c"", FsOpenFlags::from_bits_retain(u32::MAX)));
    let fsconfig = is_denied(rustix::mount::fsconfig_create(proc));
    let none = FsMountFlags::from_bits_retain(u32::MAX);
    let fsmount = is_denied(rustix::mount::fsmount(proc, none, rustix::mount::MountAttrFlags::empty()));
    STAGE.with_borrow_mut(|stage| {
        // What was made detached only the newer call can attach.
        stage.clones = open_tree || move_mount;
        stage.filesystems = fsopen || fsconfig || fsmount || move_mount;
        stage.moves = move_mount;
    });
}

/// Nonsense is refused for what it is (`EINVAL`) by a call that is there.
fn is_denied<T>(result: rustix::io::Result<T>) -> bool {
    matches!(result, Err(Errno::NOSYS | Errno::PERM))
}

/// Whether copies of mounts are made on the stage: then what can be done to detached copies alone cannot be done.
pub fn makes_clones() -> bool {
    STAGE.with_borrow(|stage| stage.clones)
}

pub(super) fn makes_filesystems() -> bool {
    STAGE.with_borrow(|stage| stage.filesystems)
}

/// Says where the container's root is: from now on there can be a stage, of that name.
pub fn found_root(root: BorrowedFd<'_>, name: impl FnOnce() -> String) -> Result<()> {
    if !makes_clones() && !makes_filesystems() {
        return Ok(());
    }
    let root = root.try_clone_to_owned().call("fcntl")?;
    STAGE.with_borrow_mut(|stage| (stage.root, stage.name) = (Some(root), name()));
    Ok(())
}

/// Takes the stage away with all that is still on it.
pub fn clear() -> Result<()> {
    STAGE.with_borrow_mut(Stage::clear)
}

/// Binds a directory to itself, with all below; gives the new mount.
pub fn bind_to_itself(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    mount_old::enter_proc()?;
    let path = path_of(dir);
    rustix::mount::mount_bind_recursive(&path, &path).call("mount")?;
    over(dir)
}

/// A copy of the mount that a handle leads to, on the stage.
pub(super) fn clone(source: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd> {
    let is_dir = is_directory(source)?;
    STAGE.with_borrow_mut(|stage| {
        stage.make(is_dir, |place| {
            let source = path_of(source);
            match recursive {
                true => rustix::mount::mount_bind_recursive(&source, place),
                false => rustix::mount::mount_bind(&source, place),
            }
            .call("mount")
        })
    })
}

/// A new file system, on the stage.
pub(super) fn new_filesystem(fstype: &str, source: &str, options: &[FsOption<'_>], attr: u64) -> Result<OwnedFd> {
    let (data, superblock) = data(options)?;
    let flags = MountFlags::from_bits_retain(superblock) | mount_old::flags_of(attr);
    STAGE.with_borrow_mut(|stage| {
        stage.make(true, |place| rustix::mount::mount(source, place, fstype, flags, data.as_c_str()).call("mount"))
    })
}

/// Options as the text that `mount(2)` takes, and those that it takes as flags.
pub(super) fn data(options: &[FsOption<'_>]) -> Result<(CString, u32)> {
    let mut flags = 0;
    let mut words: Vec<String> = Vec::new();
    for option in options {
        match option {
            FsOption::Flag(name) => match SUPERBLOCK.iter().find(|(word, _)| word == name) {
                Some((_, flag)) => flags |= *flag as u32,
                None => words.push((*name).to_owned()),
            },
            // A label may have a comma of its own; to other options a quotation mark is a part of the value.
            FsOption::Value(name, value) if LABELS.contains(name) && value.contains(',') => {
                words.push(format!("{name}=\"{value}\""));
            }
            FsOption::Value(name, value) => words.push(format!("{name}={value}")),
        }
    }
    let text = words.join(",");
    if text.len() > DATA_MAX {
        return Err(Failure { call: "mount", errno: Errno::TOOBIG });
    }
    CString::new(text).map(|text| (text, flags)).map_err(|_| Failure { call: "mount", errno: Errno::INVAL })
}

/// Tells that a mount has left the stage, if it was there; moves it where the newer call is denied.
pub(super) fn attach(
    mount: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    move_mount: impl FnOnce() -> Result<()>,
) -> Result<()> {
    STAGE.with_borrow_mut(|stage| {
        stage.make_private()?;
        if stage.moves {
            mount_old::enter_proc()?;
            rustix::mount::mount_move(path_of(mount), path_of(target)).call("mount")?;
        } else {
            move_mount()?;
        }
        stage.forget(mount)
    })
}

/// Whether the stage is there, and the container's root is below it.
pub fn is_up() -> bool {
    STAGE.with_borrow(|stage| stage.top.is_some())
}

/// Takes away the stage of that name that a container side without a mount namespace left over `rootfs` when it was
/// killed; what is below it is not ours to take. `proc` is a verified procfs: in a namespace that was joined it may be the
/// image's.
pub fn sweep(proc: BorrowedFd<'_>, rootfs: &Path, name: &str) -> Result<()> {
    // A creation leaves one; who makes more of the kind, faster than they go, is not waited for.
    for _ in 0..SWEEPS_MAX {
        if !is_over(proc, rootfs, name)? {
            break;
        }
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        rustix::mount::unmount(rootfs, flags).call("umount2")?;
    }
    Ok(())
}

/// Whether the mount that the path leads to is a stage: one that is covered by something else would not be what goes.
fn is_over(proc: BorrowedFd<'_>, rootfs: &Path, name: &str) -> Result<bool> {
    let Ok(handle) = mount::open_source(rootfs) else { return Ok(false) };
    let id = mount::id(handle.as_fd())?.to_string();
    let mounts = super::read_kernel_file_at(proc, "self/mountinfo")?;
    let mounts = String::from_utf8_lossy(&mounts);
    let is_stage = |line: &str| {
        let (place, kind) = line.split_once(" - ").unwrap_or_default();
        kind.split(' ').nth(1) == Some(name) && place.split(' ').next() == Some(&id)
    };
    Ok(mounts.lines().any(is_stage))
}

impl Stage {
    /// Has something mounted on the stage, at a new place of its own.
    fn make(&mut self, is_dir: bool, mount: impl FnOnce(&str) -> Result<()>) -> Result<OwnedFd> {
        let name = self.names.to_string();
        self.names += 1;
        let top = self.open()?;
        if is_dir {
            rustix::fs::mkdirat(top, &name, Mode::from_raw_mode(0o700)).call("mkdirat")?;
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::openat(top, &name, flags, Mode::from_raw_mode(0o600)).call("openat")?;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = rustix::fs::openat(top, &name, flags, Mode::empty()).call("openat")?;
        mount_old::enter_proc()?;
        mount(&path_of(place.as_fd()))?;
        let made = rustix::fs::openat(top, &name, flags, Mode::empty()).call("openat")?;
        self.mounts.push(mount::id(made.as_fd())?);
        Ok(made)
    }

    /// A mount has gone elsewhere; one that never was on the stage changes nothing.
    fn forget(&mut self, mount: BorrowedFd<'_>) -> Result<()> {
        if self.mounts.is_empty() {
            return Ok(());
        }
        let gone = mount::id(mount)?;
        self.mounts.retain(|id| *id != gone);
        if self.mounts.is_empty() { self.clear() } else { Ok(()) }
    }

    fn open(&mut self) -> Result<BorrowedFd<'_>> {
        if self.top.is_none() {
            let root = self.root.as_ref().ok_or(Failure { call: "mount", errno: Errno::NOSYS })?;
            rustix::process::fchdir(root).call("fchdir")?;
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            rustix::mount::mount(&self.name, ".", "tmpfs", flags, c"mode=700").call("mount")?;
            self.top = Some(over(root.as_fd())?);
        }
        self.top.as_ref().map(AsFd::as_fd).ok_or(Failure { call: "mount", errno: Errno::NOSYS })
    }

    /// From a shared mount nothing can be moved away, and what is done to the root's propagation is done to the stage.
    fn make_private(&self) -> Result<()> {
        let Some(top) = &self.top else { return Ok(()) };
        rustix::process::fchdir(top).call("fchdir")?;
        rustix::mount::mount_change(".", MountPropagationFlags::PRIVATE).call("mount")
    }

    fn clear(&mut self) -> Result<()> {
        let Some(top) = self.top.take() else { return Ok(()) };
        self.mounts.clear();
        rustix::process::fchdir(&top).call("fchdir")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).call("umount2")
    }
}

/// A handle of what is mounted over a directory.
///
/// A handle of the directory leads below the mount, and its name may be another's by now. But `/..` is the root, with
/// what is mounted over it: so the directory is the root for a moment. The working directory changes.
fn over(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own = rustix::fs::open("/", flags, Mode::empty()).call("open")?;
    rustix::process::fchdir(dir).call("fchdir")?;
    rustix::process::chroot(".").call("chroot")?;
    let over = rustix::fs::open("/..", flags, Mode::empty()).call("open");
    rustix::process::fchdir(&own).call("fchdir")?;
    rustix::process::chroot(".").call("chroot")?;
    over
}

/// The path of a descriptor, from procfs as the working directory.
fn path_of(fd: BorrowedFd<'_>) -> String {
    format!("self/fd/{}", fd.as_raw_fd())
}

fn is_directory(fd: BorrowedFd<'_>) -> Result<bool> {
    Ok(rustix::fs::fstat(fd).call("fstat")?.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_a_text_and_flags() {
        let options = [
            FsOption::Flag("newinstance"),
            FsOption::Value("mode", "755"),
            FsOption::Flag("sync"),
            FsOption::Flag("async"),
        ];
        let (text, flags) = data(&options).unwrap();
        assert_eq!((text.to_str(), u64::from(flags)), (Ok("newinstance,mode=755"), libc::MS_SYNCHRONOUS));
        let label = [FsOption::Value("context", "a:b:c1,c2")];
        assert_eq!(data(&label).unwrap().0.to_str(), Ok("context=\"a:b:c1,c2\""));
        let layers = [FsOption::Value("lowerdir", r"/a\,b:/c"), FsOption::Value("rootcontext", "a:b:c1,c2")];
        assert_eq!(data(&layers).unwrap().0.to_str(), Ok("lowerdir=/a\\,b:/c,rootcontext=\"a:b:c1,c2\""));
        let long = "x".repeat(DATA_MAX);
        assert_eq!(data(&[FsOption::Flag(&long), FsOption::Flag("y")]).unwrap_err().errno, Errno::TOOBIG);
    }
}
