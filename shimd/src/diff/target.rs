//! Where a layer goes: what the mounts of a prepared snapshot say.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::unpack::Whiteouts;
use crate::error::{Error, Result};
use crate::snapshot::Mount;

/// A directory to unpack into, without mounting anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) root: PathBuf,
    /// Directories of the layers below, the nearest first.
    pub(crate) lower: Vec<PathBuf>,
    pub(crate) whiteouts: Whiteouts,
}

impl Target {
    /// The target that `mounts` describe: one overlay with an upper directory, or one writable bind.
    pub(crate) fn from_mounts(mounts: &[Mount]) -> Result<Target> {
        let [mount] = mounts else {
            return Err(Error::invalid("mounts of the diff", "there must be exactly one"));
        };
        match mount.kind.as_str() {
            "overlay" => overlay(mount),
            "bind" => bind(mount),
            other => Err(Error::Unimplemented { what: format!("apply a layer to a mount of type {other:?}") }),
        }
    }

    pub(crate) fn open_lower(&self) -> Result<Vec<OwnedFd>> {
        let open = |path: &PathBuf| {
            File::open(path).map(OwnedFd::from).map_err(|error| Error::io(format!("open {}", path.display()), error))
        };
        self.lower.iter().map(open).collect()
    }
}

fn overlay(mount: &Mount) -> Result<Target> {
    let option = |key: &str| mount.options.iter().find_map(|option| option.strip_prefix(key)?.strip_prefix('='));
    let upper = option("upperdir").ok_or_else(|| Error::invalid("mounts of the diff", "the overlay is read-only"))?;
    let lower = option("lowerdir").unwrap_or_default();
    Ok(Target {
        root: absolute(upper)?,
        lower: lower.split(':').filter(|path| !path.is_empty()).map(absolute).collect::<Result<_>>()?,
        whiteouts: Whiteouts::Overlay,
    })
}

fn bind(mount: &Mount) -> Result<Target> {
    if mount.options.iter().any(|option| option == "ro") {
        return Err(Error::invalid("mounts of the diff", "the bind is read-only"));
    }
    Ok(Target { root: absolute(&mount.source)?, lower: Vec::new(), whiteouts: Whiteouts::Remove })
}

fn absolute(path: &str) -> Result<PathBuf> {
    if path.starts_with('/') {
        Ok(PathBuf::from(path))
    } else {
        Err(Error::invalid(format!("path {path:?} in the mounts of the diff"), "it must be absolute"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            kind: kind.to_owned(),
            source: source.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    #[test]
    fn mounts_name_a_target() {
        let target = Target::from_mounts(&[mount(
            "overlay",
            "overlay",
            &["index=off", "workdir=/w", "upperdir=/u", "lowerdir=/b:/a"],
        )])
        .unwrap();
        assert_eq!(target.root, PathBuf::from("/u"));
        assert_eq!(target.lower, [PathBuf::from("/b"), PathBuf::from("/a")]);
        let target = Target::from_mounts(&[mount("bind", "/s", &["rw", "rbind"])]).unwrap();
        assert_eq!((target.root, target.whiteouts), (PathBuf::from("/s"), Whiteouts::Remove));
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        for mounts in [
            vec![],
            vec![mount("bind", "/s", &["ro", "rbind"])],
            vec![mount("overlay", "overlay", &["lowerdir=/b:/a"])],
            vec![mount("bind", "relative", &["rw"])],
            vec![mount("ext4", "/dev/x", &[])],
        ] {
            assert!(Target::from_mounts(&mounts).is_err());
        }
    }
}
