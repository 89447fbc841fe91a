//! Where things lie, and that only root can look at them.

use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

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

/// Asks the file system to place the directories of `directory` far from each other (`T` of chattr(1)); one that knows
/// no such wish goes on as before.
///
/// ext4 puts a new file into its directory's group of inodes and looks at each inode there in turn, and one that was
/// freed within the last minutes costs it a look at the disk's buffers (`recently_deleted`). Where layers and
/// containers come and go within one group, thousands of such looks go before each new file: a pull after a removal
/// took three times as long.
pub(crate) fn spread(directory: &Path) {
    let asked = File::open(directory).and_then(|directory| {
        let flags = ioctl_getflags(&directory)? | IFlags::TOPDIR;
        Ok(ioctl_setflags(&directory, flags)?)
    });
    if let Err(error) = asked {
        tracing::debug!(directory = %directory.display(), %error, "spread directories");
    }
}

fn make(directory: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(directory)?;
    // It may have been there, from an older version or made by hand.
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(mode))
}
