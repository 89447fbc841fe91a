//! Where things lie, and that only root can look at them.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Makes `directory` with its parents, and makes sure that nobody but the owner can enter it: layers hold programs with
/// set-id bits that a local user must not reach.
pub(crate) fn make_private(directory: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    // It may have been there, from an older version or made by hand.
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
}
