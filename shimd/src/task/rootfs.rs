//! Root file systems that shimd mounts itself: where ids are mapped in one, and the shim is too old to know how. It
//! lies where the shim would have mounted it, and goes with the bundle.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use proto_shim::types::Mount;
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};
use strata_idmap::{Mapping, with_mapped_layers};

use crate::diff::run_blocking;
use crate::error::{Error, Result};
use crate::shim::bundle::{Bundle, LAYERS};

/// The version of the task service that shims serve from containerd 2.0 on. These map ids.
const MAPPING_SINCE: i32 = 3;
/// What mount(2) takes as options, with the final NUL. Of more it would take the beginning, and of the layers some.
const OPTIONS_MAX: usize = 4096;

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
        move_mount(&tree, "", CWD, &self.rootfs, flags)?;
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
            if data.as_bytes().len() >= OPTIONS_MAX {
                return self.overlay_by_layers(names, &others);
            }
            Ok(rustix::mount::mount("overlay", &self.rootfs, "overlay", self.flags, data.as_c_str())?)
        })
    }

    /// A layer at a time, which takes Linux 6.5.
    fn overlay_by_layers(&self, names: &[String], others: &[&str]) -> io::Result<()> {
        let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        names.iter().try_for_each(|name| fsconfig_set_string(&overlay, "lowerdir+", name.as_str()))?;
        others.iter().try_for_each(|option| match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&overlay, key, value),
            None => fsconfig_set_flag(&overlay, *option),
        })?;
        fsconfig_create(&overlay)?;
        let is_read_only = self.flags.contains(MountFlags::RDONLY);
        let attributes = if is_read_only { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
        let mounted = fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        Ok(move_mount(&mounted, "", CWD, &self.rootfs, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_mapped_layers_are_all_mounted() {
        let directory = tempfile::tempdir().unwrap();
        if !rustix::process::geteuid().is_root() || !strata_idmap::is_supported(directory.path()) {
            return eprintln!("skipped: mapping a mount needs root and Linux 5.19");
        }
        let layer = |number: usize| directory.path().join(format!("layer-{number}"));
        let layers: Vec<String> = (0..300)
            .map(|number| {
                std::fs::create_dir(layer(number)).unwrap();
                std::fs::write(layer(number).join(number.to_string()), "").unwrap();
                layer(number).display().to_string()
            })
            .collect();
        let path = |name: &str| directory.path().join(name).display().to_string();
        ["rootfs", "upper", "work"].iter().for_each(|name| std::fs::create_dir(path(name)).unwrap());
        let options = [
            "uidmap=0:7000:10",
            "gidmap=0:8000:10",
            "index=off",
            &format!("workdir={}", path("work")),
            &format!("upperdir={}", path("upper")),
            &format!("lowerdir={}", layers.join(":")),
        ];
        let mount = Mount {
            r#type: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options: options.map(str::to_owned).to_vec(),
            ..Mount::default()
        };
        mount_mapped(&mount, directory.path()).unwrap();
        let rootfs = directory.path().join("rootfs");
        let count = std::fs::read_dir(&rootfs).unwrap().count();
        rustix::mount::unmount(&rootfs, rustix::mount::UnmountFlags::empty()).unwrap();
        assert_eq!(count, layers.len());
    }
}
