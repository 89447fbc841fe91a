//! The steps that the fallen runtimes took: a path of the container is joined to one of the host and then used. They
//! stand here so that each attack is seen to work on them.

use std::io::Write;
use std::path::{Component, Path};
use std::process::{Command, Stdio};

/// Makes a directory of the container by its joined path.
pub(crate) fn make_dirs(rootfs: &Path, path: &str) {
    let _ = std::fs::create_dir_all(join(rootfs, path));
}

/// Writes a file of the container by its joined path.
pub(crate) fn write(rootfs: &Path, path: &str, text: &str) {
    let _ = std::fs::write(join(rootfs, path), text);
}

/// As [`make_dirs`], after a look whether there is a symlink on the way: what was looked at may have changed.
pub(crate) fn look_then_make_dirs(rootfs: &Path, path: &str) {
    if !has_symlink(rootfs, path) {
        make_dirs(rootfs, path);
    }
}

/// As [`write`] of a file that is there, after a look.
pub(crate) fn look_then_write(rootfs: &Path, path: &str, text: &str) {
    if !has_symlink(rootfs, path) {
        let file = std::fs::OpenOptions::new().write(true).truncate(true).open(join(rootfs, path));
        let _ = file.and_then(|mut file| file.write_all(text.as_bytes()));
    }
}

/// Covers a file of the container with what is at the joined path `source`, then lets the container write to it.
pub(crate) fn cover_and_write(rootfs: &Path, source: &str, target: &str) {
    let script = "mount --bind \"$0\" \"$1\" && echo evil > \"$1\"";
    let _ = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .args([join(rootfs, source), join(rootfs, target)])
        .stderr(Stdio::null())
        .status();
}

fn join(rootfs: &Path, path: &str) -> std::path::PathBuf {
    rootfs.join(path.trim_start_matches('/'))
}

fn has_symlink(rootfs: &Path, path: &str) -> bool {
    let mut here = rootfs.to_owned();
    Path::new(path).components().filter(|part| matches!(part, Component::Normal(_))).any(|part| {
        here.push(part);
        here.is_symlink()
    })
}
