//! Mount options: from the words of config.json to what the mount calls take.

use std::path::{Path, PathBuf};

use crate::fault::{Code, Fault, Result};
use crate::path::{PATH_MAX, TOO_LONG, clean};
use crate::spec::{self, IdMapping};
use crate::sys::mount::{
    MOUNT_ATTR_ATIME_MASK, MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY, MOUNT_ATTR_RELATIME, MOUNT_ATTR_STRICTATIME,
    MountAttr,
};

/// One mount, ready to be made.
#[derive(Clone, Debug)]
pub struct MountPlan {
    /// Place in config.json, for messages.
    pub index: usize,
    /// Absolute and clean, as the container sees it.
    pub destination: PathBuf,
    pub kind: MountKind,
    /// Attributes asked for, of this mount alone.
    pub attr: AttrChange,
    /// Attributes asked for with the `r…` options, of this mount and all below it.
    pub recursive_attr: AttrChange,
    /// `MS_SHARED` and so on, and whether it goes for all below, in order.
    pub propagation: Vec<(u64, bool)>,
    pub id_map: Option<IdMap>,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// A file or directory of the host.
    Bind { source: PathBuf, recursive: bool },
    /// A new file system.
    Filesystem { fstype: String, source: String, options: Vec<(String, Option<String>)>, copy_up: bool },
    /// The container's view of the cgroup hierarchies.
    Cgroup { options: Vec<(String, Option<String>)> },
}

/// `MOUNT_ATTR_*` to set and to clear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttrChange {
    pub set: u64,
    pub clear: u64,
}

/// The mappings of an id-mapped mount; empty ones mean those of the container's user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    pub uids: Vec<IdMapping>,
    pub gids: Vec<IdMapping>,
    pub recursive: bool,
}

impl IdMap {
    /// Whether the mappings are those of the container's user namespace.
    pub fn is_implied(&self) -> bool {
        self.uids.is_empty()
    }

    /// Whether both map the same ids.
    pub fn maps_as(&self, other: &IdMap) -> bool {
        (&self.uids, &self.gids) == (&other.uids, &other.gids)
    }
}

impl AttrChange {
    fn set(&mut self, attr: u64) {
        if attr & !MOUNT_ATTR_ATIME_MASK == 0 {
            // The access time mode is an enumeration: setting one means clearing the mask first.
            self.set = self.set & !MOUNT_ATTR_ATIME_MASK | attr;
            self.clear |= MOUNT_ATTR_ATIME_MASK;
        } else {
            self.set |= attr;
            self.clear &= !attr;
        }
    }

    /// Of one mount alone: as for mount(8), "atime" takes back what was said before it, and what the source has stays.
    fn take_back(&mut self, attr: u64) {
        if attr & !MOUNT_ATTR_ATIME_MASK != 0 {
            return self.clear(attr);
        }
        if self.clear & MOUNT_ATTR_ATIME_MASK != 0 && self.set & MOUNT_ATTR_ATIME_MASK == attr {
            self.set &= !MOUNT_ATTR_ATIME_MASK;
            self.clear &= !MOUNT_ATTR_ATIME_MASK;
        }
    }

    fn clear(&mut self, attr: u64) {
        if attr & !MOUNT_ATTR_ATIME_MASK == 0 {
            // "ratime", "rnorelatime": back to the kernel's default, relatime.
            self.set(MOUNT_ATTR_RELATIME);
        } else {
            self.set &= !attr;
            self.clear |= attr;
        }
    }

    /// Nothing was asked for.
    pub fn is_empty(self) -> bool {
        self == AttrChange::default()
    }

    /// Whether anything was said about access times.
    pub fn is_about_atime(self) -> bool {
        self.clear & MOUNT_ATTR_ATIME_MASK != 0 || self.set & MOUNT_ATTR_NODIRATIME != 0
    }

    /// Whether the mount is to be read-only.
    pub fn is_readonly(self) -> bool {
        self.set & MOUNT_ATTR_RDONLY != 0
    }

    /// As the system call takes it.
    pub fn to_attr(self) -> MountAttr {
        MountAttr { set: self.set, clear: self.clear & !(self.set & !MOUNT_ATTR_ATIME_MASK), ..MountAttr::default() }
    }
}

/// Options that set (`true`) or clear an attribute of a mount. With an `r` before it, each goes for all below.
const ATTRIBUTES: [(&str, bool, u64); 16] = [
    ("ro", true, MOUNT_ATTR_RDONLY),
    ("rw", false, MOUNT_ATTR_RDONLY),
    ("nosuid", true, MOUNT_ATTR_NOSUID),
    ("suid", false, MOUNT_ATTR_NOSUID),
    ("nodev", true, MOUNT_ATTR_NODEV),
    ("dev", false, MOUNT_ATTR_NODEV),
    ("noexec", true, MOUNT_ATTR_NOEXEC),
    ("exec", false, MOUNT_ATTR_NOEXEC),
    ("nodiratime", true, MOUNT_ATTR_NODIRATIME),
    ("diratime", false, MOUNT_ATTR_NODIRATIME),
    ("relatime", true, MOUNT_ATTR_RELATIME),
    ("norelatime", false, MOUNT_ATTR_RELATIME),
    ("noatime", true, MOUNT_ATTR_NOATIME),
    ("atime", false, MOUNT_ATTR_NOATIME),
    ("strictatime", true, MOUNT_ATTR_STRICTATIME),
    ("nostrictatime", false, MOUNT_ATTR_STRICTATIME),
];
/// As [`ATTRIBUTES`]; apart because these two take no prefix `no` in their clearing form.
const SYMLINK_ATTRIBUTES: [(&str, bool, u64); 2] =
    [("nosymfollow", true, MOUNT_ATTR_NOSYMFOLLOW), ("symfollow", false, MOUNT_ATTR_NOSYMFOLLOW)];

/// Options of the superblock rather than of the mount: handed on to a new file system, without meaning for a bind.
const SUPERBLOCK: [&str; 9] =
    ["sync", "async", "dirsync", "lazytime", "nolazytime", "mand", "nomand", "iversion", "noiversion"];

/// Options that mean nothing here.
const IGNORED: [&str; 4] = ["defaults", "loud", "silent", "remount"];

/// Podman's and Buildah's marks of a bind whose source is to be labelled for SELinux (`z`, `Z`) or given to the user (`U`), which they
/// have done by then. Buildah before 1.29 leaves them in the spec. runc 1.1 handed them to a kernel that reads no options of a
/// bind; runc 1.2 refuses them.
const DONE_BEFORE: [&str; 3] = ["z", "Z", "U"];

const PROPAGATION: [(&str, u64, bool); 8] = [
    ("private", libc::MS_PRIVATE, false),
    ("rprivate", libc::MS_PRIVATE, true),
    ("shared", libc::MS_SHARED, false),
    ("rshared", libc::MS_SHARED, true),
    ("slave", libc::MS_SLAVE, false),
    ("rslave", libc::MS_SLAVE, true),
    ("unbindable", libc::MS_UNBINDABLE, false),
    ("runbindable", libc::MS_UNBINDABLE, true),
];

/// File systems whose superblock may be shared with the host: `ro` is an attribute of the mount alone there.
const SHARED_SUPERBLOCK: [&str; 4] = ["proc", "sysfs", "mqueue", "cgroup2"];

/// The propagation of that name, and whether it is recursive.
pub fn propagation(word: &str) -> Option<(u64, bool)> {
    PROPAGATION.iter().find(|(name, ..)| *name == word).map(|(_, flag, recursive)| (*flag, *recursive))
}

/// Every option with a meaning of its own, sorted, for `features`.
pub fn known_options() -> Vec<String> {
    let attributes = ATTRIBUTES.iter().chain(&SYMLINK_ATTRIBUTES).map(|(name, ..)| *name);
    let recursive = attributes.clone().map(|name| format!("r{name}"));
    let others = ["bind", "rbind", "idmap", "ridmap", "tmpcopyup"];
    let plain = attributes.chain(SUPERBLOCK).chain(IGNORED).chain(others).chain(PROPAGATION.iter().map(|p| p.0));
    let mut all: Vec<String> = plain.map(str::to_owned).chain(recursive).collect();
    all.sort_unstable();
    all
}

impl MountPlan {
    /// Reads `mounts[index]`; a bind's relative source is below `bundle`.
    pub fn parse(index: usize, mount: &spec::Mount, bundle: &Path) -> Result<MountPlan> {
        let invalid = |cause: &str| Fault::new(Code::SpecInvalid, format!("mounts[{index}]")).cause(cause);
        if [&mount.destination, &mount.source, &mount.kind].iter().any(|text| text.contains('\0')) {
            return Err(invalid("mount field contains null byte"));
        }
        let paths = [("destination", &mount.destination), ("source", &mount.source)];
        if let Some((field, _)) = paths.iter().find(|(_, path)| path.len() > PATH_MAX) {
            return Err(Fault::new(Code::SpecInvalid, format!("mounts[{index}].{field}")).cause(TOO_LONG));
        }
        let mut words = Options::default();
        mount.options.iter().for_each(|option| words.take(option));
        let kind = words.kind(mount, bundle).map_err(invalid)?;
        let id_map = words.id_map(mount);
        if id_map.is_some() && !matches!(kind, MountKind::Bind { .. }) {
            return Err(invalid("id-mapped mounts are only supported for bind-mounts"));
        }
        if id_map.as_ref().is_some_and(|map| map.uids.is_empty() != map.gids.is_empty()) {
            return Err(invalid("id-mapped mounts must have both uid and gid mappings specified"));
        }
        Ok(MountPlan {
            index,
            destination: clean(&mount.destination),
            kind,
            attr: words.attr,
            recursive_attr: words.recursive_attr,
            propagation: words.propagation,
            id_map,
        })
    }

    /// As runc: a destination that is written with the host's path of the root means the place below it.
    pub fn strip_root(&mut self, rootfs: &Path) {
        if let Ok(below) = self.destination.strip_prefix(rootfs)
            && rootfs != Path::new("/")
        {
            self.destination = Path::new("/").join(below);
        }
    }

    /// Where it goes and what it is, for messages.
    pub fn describe(&self) -> String {
        let destination = self.destination.display();
        match &self.kind {
            MountKind::Bind { source, .. } => format!("bind {} at {destination}", source.display()),
            MountKind::Filesystem { fstype, .. } => format!("mount {fstype} at {destination}"),
            MountKind::Cgroup { .. } => format!("mount cgroup at {destination}"),
        }
    }
}

#[derive(Default)]
struct Options {
    bind: Option<bool>,
    attr: AttrChange,
    recursive_attr: AttrChange,
    propagation: Vec<(u64, bool)>,
    superblock: Vec<(String, Option<String>)>,
    data: Vec<(String, Option<String>)>,
    copy_up: bool,
    id_map: Option<bool>,
}

impl Options {
    fn take(&mut self, option: &str) {
        if let Some((set, attr)) = attribute(option) {
            if set { self.attr.set(attr) } else { self.attr.take_back(attr) }
        } else if let Some((set, attr)) = option.strip_prefix('r').and_then(attribute) {
            if set { self.recursive_attr.set(attr) } else { self.recursive_attr.clear(attr) }
        } else if let Some(propagation) = propagation(option) {
            self.propagation.push(propagation);
        } else if SUPERBLOCK.contains(&option) {
            self.superblock.push((option.to_owned(), None));
        } else if !IGNORED.contains(&option) {
            self.take_word(option);
        }
    }

    fn take_word(&mut self, option: &str) {
        match option {
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.id_map = Some(false),
            "ridmap" => self.id_map = Some(true),
            "" => {}
            data => {
                // One word may hold several options of the file system.
                let parts = data.split(',').filter(|part| !part.is_empty()).map(|part| match part.split_once('=') {
                    Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                    None => (part.to_owned(), None),
                });
                self.data.extend(parts);
            }
        }
    }

    fn kind(&self, mount: &spec::Mount, bundle: &Path) -> std::result::Result<MountKind, &'static str> {
        // A type of "bind" without the option is a bind too: callers of crun and of old runcs write it so.
        if let Some(recursive) = self.bind.or((mount.kind == "bind").then_some(false)) {
            if self.data.iter().any(|(name, _)| !DONE_BEFORE.contains(&name.as_str())) {
                return Err("bind mounts cannot have any filesystem-specific options applied");
            }
            return Ok(MountKind::Bind { source: bundle.join(&mount.source), recursive });
        }
        if mount.kind == "cgroup" {
            return Ok(MountKind::Cgroup { options: self.data.clone() });
        }
        let mut options = self.superblock.clone();
        if self.attr.is_readonly() && mount.kind != "tmpfs" && !SHARED_SUPERBLOCK.contains(&mount.kind.as_str()) {
            options.push(("ro".to_owned(), None));
        }
        options.extend(self.data.iter().cloned());
        let (fstype, source) = (mount.kind.clone(), mount.source.clone());
        Ok(MountKind::Filesystem { fstype, source, options, copy_up: self.copy_up })
    }

    fn id_map(&self, mount: &spec::Mount) -> Option<IdMap> {
        let asked = self.id_map.is_some() || !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty();
        asked.then(|| IdMap {
            uids: mount.uid_mappings.clone(),
            gids: mount.gid_mappings.clone(),
            recursive: self.id_map.unwrap_or(false),
        })
    }
}

fn attribute(option: &str) -> Option<(bool, u64)> {
    let known = ATTRIBUTES.iter().chain(&SYMLINK_ATTRIBUTES).find(|(name, ..)| *name == option);
    known.map(|(_, set, attr)| (*set, *attr))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: &str, source: &str, options: &[&str]) -> Result<MountPlan> {
        let mount = spec::Mount {
            destination: "/data/../mnt".to_owned(),
            kind: kind.to_owned(),
            source: source.to_owned(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            ..spec::Mount::default()
        };
        MountPlan::parse(3, &mount, Path::new("/bundle"))
    }

    #[test]
    fn words_of_the_file_system_are_told_from_words_of_the_mount() {
        let plan = parse("tmpfs", "shm", &["nosuid", "mode=1777", "size=64k,nr_inodes=4", "strictatime"]).unwrap();
        assert_eq!(plan.destination, Path::new("/mnt"));
        assert_eq!(plan.attr.set, MOUNT_ATTR_NOSUID | MOUNT_ATTR_STRICTATIME);
        let MountKind::Filesystem { options, .. } = plan.kind else { panic!("not a file system") };
        let names: Vec<_> = options.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["mode", "size", "nr_inodes"]);
    }

    #[test]
    fn a_bind_has_no_data_and_a_source_in_the_bundle() {
        let plan = parse("none", "src", &["rbind", "ro", "rprivate"]).unwrap();
        assert_eq!(plan.kind, MountKind::Bind { source: "/bundle/src".into(), recursive: true });
        assert_eq!(plan.propagation, [(libc::MS_PRIVATE, true)]);
        assert!(parse("none", "src", &["bind", "size=1"]).unwrap_err().one_line().contains("mounts[3]"));
        assert!(parse("none", "src", &["bind", "z", "Z", "U"]).is_ok());
        assert!(parse("none", "src", &["bind", "z", "size=1"]).is_err());
    }

    #[test]
    fn the_last_of_two_contrary_options_wins() {
        let plan = parse("none", "/s", &["bind", "ro", "rw", "nosuid"]).unwrap();
        assert_eq!(plan.attr.to_attr().set, MOUNT_ATTR_NOSUID);
        assert_eq!(plan.attr.to_attr().clear, MOUNT_ATTR_RDONLY);
        let plan = parse("none", "/s", &["bind", "noatime", "strictatime"]).unwrap();
        assert_eq!(plan.attr.set, MOUNT_ATTR_STRICTATIME);
        assert_eq!(plan.attr.clear, MOUNT_ATTR_ATIME_MASK);
    }

    #[test]
    fn recursive_attributes_stand_apart() {
        let plan = parse("none", "/s", &["rbind", "rro", "rnosuid"]).unwrap();
        assert!(plan.attr.is_empty());
        assert_eq!(plan.recursive_attr.set, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID);
    }

    #[test]
    fn a_null_byte_is_refused() {
        assert!(parse("none", "/s\0/x", &["bind"]).is_err());
    }

    #[test]
    fn sysfs_is_read_only_as_a_mount_and_ext4_as_a_file_system() {
        let names = |plan: MountPlan| match plan.kind {
            MountKind::Filesystem { options, .. } => options.into_iter().map(|(name, _)| name).collect::<Vec<_>>(),
            _ => Vec::new(),
        };
        assert!(names(parse("sysfs", "sysfs", &["ro"]).unwrap()).is_empty());
        assert_eq!(names(parse("ext4", "/dev/x", &["ro"]).unwrap()), ["ro"]);
    }
}
