//! The container's root file system: the mounts that a snapshotter described, made on the bundle's `rootfs`.
//!
//! An overlay with options of less than a page is one call of mount(2). Longer ones go through the new mount API, a
//! layer at a time, on kernels that know `lowerdir+` (6.5); before that, through short names relative to the directory
//! that all layers share. Where ids are mapped (`uidmap=`, `gidmap=`), each layer is, and named by a descriptor.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use proto_shim::types::Mount;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
};

use serde::Deserialize;
use serde::de::IgnoredAny;
use strata_idmap::Mapping;

use crate::error::Error;

/// What mount(2) takes as options, with the final NUL.
const OPTIONS_MAX: usize = 4096;

/// Where mapped layers lie in the bundle while they are mounted as one, on kernels that want them at a place.
pub(crate) const LAYERS: &str = "layers";

/// Makes all mounts on `rootfs`, or none.
pub(crate) fn mount_all(mounts: &[Mount], rootfs: &Path) -> Result<(), Error> {
    match rustix::fs::mkdir(rootfs, Mode::from_raw_mode(0o711)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(failed("make directory", rootfs, error)),
    }
    for (made, mount) in mounts.iter().enumerate() {
        if let Err(error) = mount_one(mount, rootfs) {
            (0..made).for_each(|_| unmount_quietly(rootfs));
            return Err(error);
        }
    }
    Ok(())
}

/// Takes every mount off `rootfs`, with whatever is mounted below.
pub(crate) fn unmount_all(rootfs: &Path) -> io::Result<()> {
    loop {
        match rustix::mount::unmount(rootfs, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Not a mount point (any more), or no such directory.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes every mount off `rootfs` and returns what keeps the file system alive.
///
/// The last reference to an overlay writes the whole file system below it to disk, which takes milliseconds to seconds.
/// So nobody should wait for that: the name is free when this returns, and the rest is done when the handle is dropped.
pub(crate) fn detach_all(rootfs: &Path) -> io::Result<OwnedFd> {
    let handle = rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    unmount_all(rootfs)?;
    Ok(handle)
}

/// What of a spec tells who looks at the mounted `rootfs` after the start.
#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    hooks: Hooks,
    #[serde(default)]
    linux: Linux,
}

#[derive(Default, Deserialize)]
struct Hooks {
    #[serde(default)]
    poststop: Vec<IgnoredAny>,
}

#[derive(Default, Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Vec<Namespace>,
}

#[derive(Deserialize)]
struct Namespace {
    r#type: String,
    #[serde(default)]
    path: String,
}

/// Whether the mount on a bundle's `rootfs` is needed while the program runs: without a mount namespace of its own the
/// container lives on it, and hooks that run at the end may look for it. So it is, too, where the spec cannot be read.
pub(crate) fn is_needed_after_start(bundle: &Path) -> bool {
    let config = std::fs::read(bundle.join("config.json")).unwrap_or_default();
    let Ok(spec) = serde_json::from_slice::<Spec>(&config) else { return true };
    let is_own_mount = |namespace: &Namespace| namespace.r#type == "mount" && namespace.path.is_empty();
    !spec.hooks.poststop.is_empty() || !spec.linux.namespaces.iter().any(is_own_mount)
}

fn unmount_quietly(rootfs: &Path) {
    // The failure that led here is the one to report.
    let _ = rustix::mount::unmount(rootfs, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
}

fn failed(attempt: &str, path: &Path, error: Errno) -> Error {
    Error::Mount { what: format!("{attempt} {}", path.display()), source: error.into() }
}

/// The options of a mount, sorted by who understands them.
#[derive(Debug, Default, PartialEq)]
struct Options {
    set: u32,
    bind: bool,
    recursive: bool,
    propagation: u32,
    /// For the file system, as they came.
    data: Vec<String>,
}

impl Options {
    /// The same with other names of the layers.
    fn of_layers(&self, names: &[String]) -> Options {
        let others = self.data.iter().filter(|option| !option.starts_with("lowerdir=")).cloned();
        Options { data: others.chain([format!("lowerdir={}", names.join(":"))]).collect(), ..*self }
    }
}

fn parse(options: &[String]) -> Options {
    let mut parsed = Options::default();
    for option in options {
        match flag(option) {
            Some((flag, true)) => parsed.set |= flag.bits(),
            Some((flag, false)) => parsed.set &= !flag.bits(),
            None => match option.as_str() {
                "bind" => parsed.bind = true,
                "rbind" => (parsed.bind, parsed.recursive) = (true, true),
                "defaults" | "rw" => {}
                word => match propagation(word) {
                    Some(flags) => parsed.propagation |= flags.bits(),
                    None => parsed.data.push(option.clone()),
                },
            },
        }
    }
    parsed
}

fn flag(word: &str) -> Option<(MountFlags, bool)> {
    Some(match word {
        "ro" => (MountFlags::RDONLY, true),
        "nosuid" => (MountFlags::NOSUID, true),
        "suid" => (MountFlags::NOSUID, false),
        "nodev" => (MountFlags::NODEV, true),
        "dev" => (MountFlags::NODEV, false),
        "noexec" => (MountFlags::NOEXEC, true),
        "exec" => (MountFlags::NOEXEC, false),
        "sync" => (MountFlags::SYNCHRONOUS, true),
        "dirsync" => (MountFlags::DIRSYNC, true),
        "noatime" => (MountFlags::NOATIME, true),
        "nodiratime" => (MountFlags::NODIRATIME, true),
        "relatime" => (MountFlags::RELATIME, true),
        "strictatime" => (MountFlags::STRICTATIME, true),
        _ => return None,
    })
}

fn propagation(word: &str) -> Option<MountPropagationFlags> {
    Some(match word {
        "private" => MountPropagationFlags::PRIVATE,
        "rprivate" => MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "rslave" => MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
        "shared" => MountPropagationFlags::SHARED,
        "rshared" => MountPropagationFlags::SHARED | MountPropagationFlags::REC,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    })
}

fn mount_one(mount: &Mount, rootfs: &Path) -> Result<(), Error> {
    if !mount.target.is_empty() {
        return Err(Error::Unimplemented { what: format!("mount on {:?} below the root file system", mount.target) });
    }
    let what = || format!("mount {} {:?} on", mount.r#type, mount.source);
    let mut options = parse(&mount.options);
    let mapping = Mapping::take_from(&mut options.data).map_err(|error| failed(&what(), rootfs, errno(&error)))?;
    let is_bind = options.bind || mount.r#type == "bind";
    let mounted = match mapping {
        Some(mapping) if is_bind => mapped_bind(mount, &options, &mapping, rootfs),
        None if is_bind => bind(mount, &options, rootfs),
        Some(mapping) if mount.r#type == "overlay" => mapped_overlay(mount, &options, &mapping, rootfs),
        None if mount.r#type == "overlay" => overlay(mount, &options, rootfs),
        Some(_) => Err(Errno::INVAL),
        None => plain(mount, &options, &options.data.join(","), rootfs),
    };
    let propagated = mounted.and_then(|()| match options.propagation {
        0 => Ok(()),
        bits => rustix::mount::mount_change(rootfs, MountPropagationFlags::from_bits_retain(bits)),
    });
    propagated.map_err(|error| failed(&what(), rootfs, error))
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn bind(mount: &Mount, options: &Options, rootfs: &Path) -> Result<(), Errno> {
    if options.recursive {
        rustix::mount::mount_bind_recursive(&mount.source, rootfs)?;
    } else {
        rustix::mount::mount_bind(&mount.source, rootfs)?;
    }
    set_flags(options, rootfs)
}

fn mapped_bind(mount: &Mount, options: &Options, mapping: &Mapping, rootfs: &Path) -> Result<(), Errno> {
    let tree = mapping.clone_tree(Path::new(&mount.source)).map_err(|error| errno(&error))?;
    rustix::mount::move_mount(&tree, "", CWD, rootfs, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    set_flags(options, rootfs)
}

/// Sets what a new bind mount does not take.
fn set_flags(options: &Options, rootfs: &Path) -> Result<(), Errno> {
    if options.set == 0 {
        return Ok(());
    }
    // The kernel ignores other flags than bind itself at the first call.
    let flags = MountFlags::BIND | MountFlags::from_bits_retain(options.set);
    rustix::mount::mount_remount(rootfs, flags, c"").inspect_err(|_| unmount_quietly(rootfs))
}

fn plain(mount: &Mount, options: &Options, data: &str, rootfs: &Path) -> Result<(), Errno> {
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::from_bits_retain(options.set);
    rustix::mount::mount(&mount.source, rootfs, &mount.r#type, flags, data.as_c_str())
}

fn overlay(mount: &Mount, options: &Options, rootfs: &Path) -> Result<(), Errno> {
    let data = options.data.join(",");
    if data.len() < OPTIONS_MAX {
        return plain(mount, options, &data, rootfs);
    }
    match overlay_by_layers(options, rootfs) {
        Err(Errno::NOSYS | Errno::INVAL) => overlay_by_short_names(mount, options, rootfs),
        other => other,
    }
}

fn mapped_overlay(mount: &Mount, options: &Options, mapping: &Mapping, rootfs: &Path) -> Result<(), Errno> {
    let layers: Vec<&str> = lower_layers(&options.data).collect();
    let scratch = rootfs.with_file_name(LAYERS);
    let mounted = strata_idmap::with_mapped_layers(&layers, mapping, &scratch, |names| {
        Ok(overlay(mount, &options.of_layers(names), rootfs)?)
    });
    mounted.map_err(|error| errno(&error))
}

fn overlay_by_layers(options: &Options, rootfs: &Path) -> Result<(), Errno> {
    let overlay = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for option in &options.data {
        match option.split_once('=') {
            Some(("lowerdir", layers)) => {
                layers
                    .split(':')
                    .try_for_each(|layer| rustix::mount::fsconfig_set_string(&overlay, "lowerdir+", layer))?;
            }
            Some((key, value)) => rustix::mount::fsconfig_set_string(&overlay, key, value)?,
            None => rustix::mount::fsconfig_set_flag(&overlay, option.as_str())?,
        }
    }
    rustix::mount::fsconfig_create(&overlay)?;
    let attributes = attributes_of(options.set)?;
    let mounted = rustix::mount::fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    rustix::mount::move_mount(&mounted, "", CWD, rootfs, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn attributes_of(set: u32) -> Result<MountAttrFlags, Errno> {
    const SAME: [(MountFlags, MountAttrFlags); 6] = [
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (MountFlags::NODIRATIME, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
    ];
    let known = SAME.iter().fold(MountFlags::RELATIME, |known, (flag, _)| known | *flag);
    if set & !known.bits() != 0 {
        return Err(Errno::INVAL);
    }
    let asked = SAME.iter().filter(|(flag, _)| set & flag.bits() != 0);
    Ok(asked.fold(MountAttrFlags::empty(), |attributes, (_, attribute)| attributes | *attribute))
}

/// Mounts from within the directory that all layers share, so that each is named by what differs.
fn overlay_by_short_names(mount: &Mount, options: &Options, rootfs: &Path) -> Result<(), Errno> {
    let layers: Vec<&str> = lower_layers(&options.data).collect();
    let Some(shared) = shared_directory(&layers) else { return Err(Errno::NAMETOOLONG) };
    let data: Vec<String> = options.data.iter().map(|option| shortened(option, &shared)).collect();
    let data = data.join(",");
    if data.len() >= OPTIONS_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    let target = std::path::absolute(rootfs).map_err(|_| Errno::NOENT)?;
    // The working directory is the process's, and there is one thread.
    let here = rustix::fs::open(".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::process::chdir(&shared)?;
    let mounted = plain(mount, options, &data, &target);
    rustix::process::fchdir(&here)?;
    mounted
}

fn lower_layers(data: &[String]) -> impl Iterator<Item = &str> {
    data.iter().filter_map(|option| option.strip_prefix("lowerdir=")).flat_map(|layers| layers.split(':'))
}

/// The longest directory that is above all layers.
fn shared_directory(layers: &[&str]) -> Option<PathBuf> {
    let mut shared = Path::new(layers.first()?).parent()?;
    while !layers.iter().all(|layer| Path::new(layer).starts_with(shared)) {
        shared = shared.parent()?;
    }
    Some(shared.to_owned())
}

fn shortened(option: &str, shared: &Path) -> String {
    let Some(layers) = option.strip_prefix("lowerdir=") else { return option.to_owned() };
    let short = |layer| Path::new(layer).strip_prefix(shared).unwrap_or(Path::new(layer)).display().to_string();
    let layers: Vec<String> = layers.split(':').map(short).collect();
    format!("lowerdir={}", layers.join(":"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_rootfs_stays_where_somebody_looks_at_it() {
        let needed = |config: &str| {
            let bundle = tempfile::tempdir().unwrap();
            std::fs::write(bundle.path().join("config.json"), config).unwrap();
            is_needed_after_start(bundle.path())
        };
        assert!(!needed(r#"{"linux":{"namespaces":[{"type":"pid"},{"type":"mount"}]}}"#));
        assert!(!needed(r#"{"hooks":{"prestart":[{}]},"linux":{"namespaces":[{"type":"mount"}]}}"#));
        assert!(needed(r#"{"linux":{"namespaces":[{"type":"mount","path":"/proc/1/ns/mnt"}]}}"#));
        assert!(needed(r#"{"hooks":{"poststop":[{"path":"/x"}]},"linux":{"namespaces":[{"type":"mount"}]}}"#));
        assert!(needed(r#"{"linux":{"namespaces":[{"type":"pid"}]}}"#));
        assert!(needed("no spec"));
    }

    #[test]
    fn flags_are_told_from_data() {
        let options = parse(&words(&["ro", "nosuid", "suid", "index=off", "lowerdir=/a:/b", "rbind", "rslave"]));
        assert_eq!(options.set, MountFlags::RDONLY.bits());
        assert_eq!(options.data, ["index=off", "lowerdir=/a:/b"]);
        assert!(options.bind && options.recursive);
        assert_eq!(options.propagation, (MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).bits());
    }

    #[test]
    fn layers_are_named_from_the_directory_they_share() {
        let data = words(&["index=off", "upperdir=/s/9/fs", "lowerdir=/s/1/fs:/s/22/fs"]);
        let layers: Vec<&str> = lower_layers(&data).collect();
        let shared = shared_directory(&layers).unwrap();
        assert_eq!(shared, Path::new("/s"));
        assert_eq!(shortened(&data[2], &shared), "lowerdir=1/fs:22/fs");
        assert_eq!(shortened(&data[1], &shared), data[1]);
    }

    #[test]
    fn many_layers_are_mounted_by_either_way() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return;
        }
        let temporary = tempfile::tempdir().unwrap();
        let layer = |number: usize| temporary.path().join(format!("a-layer-with-quite-a-long-name-{number:04}/fs"));
        let layers: Vec<String> = (0..100)
            .map(|number| {
                std::fs::create_dir_all(layer(number)).unwrap();
                std::fs::write(layer(number).join(number.to_string()), "").unwrap();
                layer(number).display().to_string()
            })
            .collect();
        let rootfs = temporary.path().join("rootfs");
        let mount = Mount {
            r#type: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options: vec![format!("lowerdir={}", layers.join(":"))],
            ..Mount::default()
        };
        assert!(mount.options[0].len() > OPTIONS_MAX);
        mount_all(std::slice::from_ref(&mount), &rootfs).unwrap();
        assert_eq!(std::fs::read_dir(&rootfs).unwrap().count(), 100);
        unmount_all(&rootfs).unwrap();
        overlay_by_short_names(&mount, &parse(&mount.options), &rootfs).unwrap();
        assert_eq!(std::fs::read_dir(&rootfs).unwrap().count(), 100);
        unmount_all(&rootfs).unwrap();
        assert_eq!(std::fs::read_dir(&rootfs).unwrap().count(), 0);
    }

    #[test]
    fn ids_are_mapped_without_a_copy() {
        use std::os::unix::fs::MetadataExt;
        let temporary = tempfile::tempdir().unwrap();
        if !rustix::process::geteuid().is_root() || !strata_idmap::is_supported(temporary.path()) {
            eprintln!("skipped: mapping a mount needs root and Linux 5.19");
            return;
        }
        let path = |name: &str| temporary.path().join(name).display().to_string();
        for name in ["one", "two", "upper", "work", "rootfs"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        std::fs::write(path("one/file"), "").unwrap();
        std::os::unix::fs::chown(path("upper"), Some(7000), Some(8000)).unwrap();
        let layers = [path("two"), path("one")].join(":");
        let mapping = ["uidmap=0:7000:10", "gidmap=0:8000:10"];
        let mount = |kind: &str, source: String, more: &[String]| Mount {
            r#type: kind.to_owned(),
            source,
            options: mapping.iter().map(|word| (*word).to_owned()).chain(more.iter().cloned()).collect(),
            ..Mount::default()
        };
        let upper = [format!("workdir={}", path("work")), format!("upperdir={}", path("upper"))];
        let lower = [format!("lowerdir={layers}"), "index=off".to_owned()];
        let rootfs = temporary.path().join("rootfs");
        for mount in [
            mount("overlay", "overlay".to_owned(), &[&upper[..], &lower[..]].concat()),
            mount("overlay", "overlay".to_owned(), &lower),
            mount("bind", path("one"), &words(&["ro", "rbind"])),
        ] {
            mount_all(std::slice::from_ref(&mount), &rootfs).unwrap();
            let file = std::fs::metadata(rootfs.join("file")).unwrap();
            let is_read_only = std::fs::write(rootfs.join("new"), "").is_err();
            unmount_all(&rootfs).unwrap();
            assert_eq!((file.uid(), file.gid()), (7000, 8000), "{mount:?}");
            assert_eq!(is_read_only, !mount.options.iter().any(|option| option.starts_with("upperdir")), "{mount:?}");
        }
        let half = Mount { options: words(&["uidmap=0:1:1", "rbind"]), ..mount("bind", path("one"), &[]) };
        assert!(mount_all(&[half], &rootfs).is_err());
    }
}
