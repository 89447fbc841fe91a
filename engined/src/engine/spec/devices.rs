//! The host's device nodes, for privileged containers.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::oci::Device;

/// Most nodes that a container is given: more than any `/dev` has.
const NODES_MAX: usize = 4096;
/// Directories of `/dev` that a container has of its own.
const OWN: [&str; 4] = ["pts", "shm", "mqueue", "fd"];

/// Every block and character device below `/dev`. A node that goes while it is looked at is left out.
pub(crate) fn host() -> Vec<Device> {
    let mut found = Vec::new();
    gather(Path::new("/dev"), &mut found);
    found
}

fn gather(directory: &Path, found: &mut Vec<Device>) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if found.len() >= NODES_MAX {
            return;
        }
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(status) = entry.metadata() else { continue };
        if status.is_dir() && !OWN.iter().any(|own| name == *own) {
            gather(&path, found);
        } else if let Some(device) = device(&path, &status) {
            found.push(device);
        }
    }
}

fn device(path: &Path, status: &std::fs::Metadata) -> Option<Device> {
    let kind = match status.file_type() {
        kind if kind.is_block_device() => "b",
        kind if kind.is_char_device() => "c",
        _ => return None,
    };
    // A container's console is its own terminal.
    if path == Path::new("/dev/console") {
        return None;
    }
    Some(Device {
        path: path.to_str()?.to_owned(),
        kind,
        major: rustix::fs::major(status.rdev()).into(),
        minor: rustix::fs::minor(status.rdev()).into(),
        file_mode: status.mode() & 0o7777,
        uid: status.uid(),
        gid: status.gid(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_null_device_is_found_and_no_terminal_of_others() {
        let found = host();
        let null = found.iter().find(|device| device.path == "/dev/null").unwrap();
        assert_eq!((null.kind, null.major, null.minor), ("c", 1, 3));
        assert!(!found.iter().any(|device| device.path.starts_with("/dev/pts/")));
    }
}
