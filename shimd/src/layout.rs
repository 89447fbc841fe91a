//! Where things lie, and that only root can look at them.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Makes `directory` with its parents; everybody may pass through, nobody but the owner may look: the root of a
/// container's user namespace finds its bundle there.
pub(crate) fn make_passage(directory: &Path) -> io::Result<()> {
    make(directory, 0o711)
}

/// Makes `directory` with its parents, and makes sure that nobody but the owner can enter it: layers hold programs with
/// set-id bits that a local user must not reach.
pub(crate) fn make_private(directory: &Path) -> io::Result<()> {
    make(directory, 0o700)
}

fn make(directory: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(directory)?;
    // It may have been there, from an older version or made by hand.
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(mode))
}
