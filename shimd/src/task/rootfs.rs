//! Root file systems that shimd mounts itself: where ids are mapped in one, and the shim is too old to know how. It
//! lies where the shim would have mounted it, and goes with the bundle.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use proto_shim::types::Mount;
use rustix::mount::{MountFlags, MoveMountFlags};
use strata_idmap::{Mapping, with_mapped_layers};

use crate::diff::run_blocking;
use crate::error::{Error, Result};
use crate::shim::bundle::{Bundle, LAYERS};

/// The version of the task service that shims serve from containerd 2.0 on. These map ids.
const MAPPING_SINCE: i32 = 3;

/// Mounts what a shim of that version cannot; gives what is left for the shim.
pub(super) async fn left_for_shim(mounts: &[Mount], version: i32, bundle: &Bundle) -> Result<Vec<Mount>> {
    let is_mapped = mounts.iter().any(|mount| mount.options.iter().any(|option| option.starts_with("uidmap=")));
    if version >= MAPPING_SINCE || !is_mapped {
        return Ok(mounts.to_vec());
    }
    let (mounts, bundle) = (mounts.to_vec(), bundle.path.clone());
    run_blocking(move || mounts.iter().try_for_each(|mount| mount_mapped(mount, &bundle))).await?;
    Ok(Vec::new())
}

/// What is to be mounted, with what the kernel is told.
struct Mapped<'a> {
    mapping: Mapping,
    flags: MountFlags,
    options: Vec<&'a str>,
    rootfs: PathBuf,
}

fn mount_mapped(mount: &Mount, bundle: &Path) -> Result<()> {
    let rootfs = bundle.join("rootfs");
    let failed = |error| Error::io(format!("mount {} {:?} on {}", mount.r#type, mount.source, rootfs.display()), error);
    let mut options = mount.options.clone();
    let mapping = Mapping::take_from(&mut options).map_err(failed)?;
    let mapping = mapping.ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let flags = if options.iter().any(|option| option == "ro") { MountFlags::RDONLY } else { MountFlags::empty() };
    let is_data = |option: &&str| !matches!(*option, "ro" | "rw" | "bind" | "rbind");
    let options = options.iter().map(String::as_str).filter(is_data).collect();
    let mapped = Mapped { mapping, flags, options, rootfs: rootfs.clone() };
    match mount.r#type.as_str() {
        "bind" => mapped.bind(Path::new(&mount.source)).map_err(failed),
        "overlay" => mapped.overlay(&bundle.join(LAYERS)).map_err(failed),
        other => Err(Error::Unimplemented { what: format!("mount of type {other:?} with mapped ids") }),
    }
}

impl Mapped<'_> {
    fn bind(&self, source: &Path) -> io::Result<()> {
        let tree = self.mapping.clone_tree(source)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&tree, "", rustix::fs::CWD, &self.rootfs, flags)?;
        if !self.flags.is_empty() {
            rustix::mount::mount_remount(&self.rootfs, MountFlags::BIND | self.flags, c"")?;
        }
        Ok(())
    }

    fn overlay(&self, scratch: &Path) -> io::Result<()> {
        let (layers, others): (Vec<&str>, Vec<&str>) =
            self.options.iter().copied().partition(|option| option.starts_with("lowerdir="));
        let layers = layers.iter().flat_map(|option| option["lowerdir=".len()..].split(':')).collect::<Vec<_>>();
        with_mapped_layers(&layers, &self.mapping, scratch, |names| {
            let lower = format!("lowerdir={}", names.join(":"));
            let data = CString::new([&others[..], &[lower.as_str()]].concat().join(","))?;
            Ok(rustix::mount::mount("overlay", &self.rootfs, "overlay", self.flags, data.as_c_str())?)
        })
    }
}
