//! Snapshots: root file systems as layers, kept as overlayfs wants them; or, of the snapshotter `native`, as whole
//! directories.
//!
//! ```text
//!   <root>/snapshots/<number>/fs     what this layer holds; the upper directory while it is active
//!   <root>/snapshots/<number>/work   overlayfs's own, of active ones
//!   <root>/native/<number>/fs        the whole; none of a view, which shows its parent's
//! ```
//! A snapshot is a record (kind, parent, directory) and that directory. Nothing is mounted here: who asks gets the
//! mounts to make. Making one is three `mkdir`s and one write to the store; nothing on that way grows with the number
//! of snapshots. (A native one is a copy of its parent.) Removing one is a write and a rename into the trash.
//!
//! ```text
//!               prepare                 commit                     remove
//!   (nothing) ----------> active ---------------------> committed --------> (nothing)
//!        |                   \______ remove ______________________________/
//!        +-- view --> view --------- remove ---> (nothing)
//! ```
//! Files of a committed snapshot are synced in the background. Until then its record carries the boot id: after a power
//! cut it is dropped, with all that stands on it, and unpacked again from the blobs.

mod kept;
mod list;
mod mapping;
mod recover;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{Gid, Mode, OFlags, Uid};

use crate::clock;
use crate::db::record::{Labels, Snapshot, SnapshotKind, Usage};
use crate::db::{Access, Durability, Store, Writer, key, prefix};
use crate::error::{Chain, Error, Result};
use crate::lease;
use crate::name::{Namespace, check_labels, check_name};
use crate::trash::Trash;
use crate::{layout, tree};
pub(crate) use kept::{Snapshotter, Snapshotters};
pub(crate) use list::Info;

/// A mount for somebody to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) kind: String,
    pub(crate) source: String,
    pub(crate) options: Vec<String>,
}

/// The snapshots of all namespaces that one snapshotter keeps.
pub(crate) struct Snapshots {
    snapshotter: Snapshotter,
    store: Arc<Store>,
    trash: Arc<Trash>,
    directory: PathBuf,
    handle: OwnedFd,
    next: AtomicU64,
    boot_id: String,
    /// Committed in this boot and not synced yet.
    unsynced: Mutex<Vec<Unsynced>>,
    /// Options of every overlay mount.
    options: Vec<String>,
    /// Whether ids can be mapped where they lie, once somebody asked.
    maps_ids: OnceLock<bool>,
}

/// A committed snapshot whose files may be in memory only.
struct Unsynced {
    namespace: Namespace,
    name: String,
    /// Another snapshot can have the name by the time of the sync.
    directory: u64,
}

/// What a snapshot is made from.
pub(crate) struct Request {
    pub(crate) namespace: Namespace,
    pub(crate) lease: Option<String>,
    pub(crate) key: String,
    /// Empty for a first layer.
    pub(crate) parent: String,
    pub(crate) labels: Labels,
}

impl Snapshots {
    /// Opens the snapshots under `root` and makes records and directories agree.
    pub(crate) fn open(
        snapshotter: Snapshotter,
        root: &Path,
        store: Arc<Store>,
        trash: Arc<Trash>,
        boot_id: String,
    ) -> Result<Snapshots> {
        let directory = root.join(snapshotter.directory());
        let failed = |error| Error::io(format!("open {}", directory.display()), error);
        layout::make_private(&directory).map_err(failed)?;
        layout::spread(&directory);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::open(&directory, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        let snapshots = Snapshots {
            snapshotter,
            store,
            trash,
            directory,
            handle,
            next: AtomicU64::new(1),
            boot_id,
            unsynced: Mutex::default(),
            options: overlay_options(),
            maps_ids: OnceLock::new(),
        };
        snapshots.recover()?;
        Ok(snapshots)
    }

    /// Who keeps them.
    pub(crate) fn snapshotter(&self) -> Snapshotter {
        self.snapshotter
    }

    /// Where they lie.
    pub(crate) fn root(&self) -> String {
        self.directory.display().to_string()
    }

    /// Makes a snapshot that can be written (`Active`) or only looked at (`View`), and names its mounts. Where it
    /// [copies](Self::copies) that blocks for as long as it takes.
    pub(crate) fn make(&self, kind: SnapshotKind, request: Request) -> Result<Vec<Mount>> {
        let Request { namespace, lease, key, parent, labels } = request;
        check_name("snapshot key", &key)?;
        check_labels(&labels)?;
        let owner = if self.snapshotter == Snapshotter::Overlayfs { mapping::root(&labels)? } else { None };
        let layers = {
            let view = self.store.read()?;
            self.check_new(&view, &namespace, &key)?;
            self.layers(&view, &namespace, &parent)?
        };
        let directory = self.next.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.make_directories(directory, kind, layers.first().copied(), owner) {
            self.discard(directory);
            // A parent that went meanwhile is the reason.
            self.check_same(&self.store.read()?, &namespace, &parent, &layers)?;
            return Err(error);
        }
        let now = Some(clock::now());
        let record = Snapshot {
            directory,
            kind: kind.into(),
            parent,
            labels,
            created_at: now,
            updated_at: now,
            ..Snapshot::default()
        };
        let written = self.store.write(Durability::Process, |writer| {
            self.check_new(writer, &namespace, &key)?;
            self.check_same(writer, &namespace, &record.parent, &layers)?;
            lease::hold(writer, &namespace, lease.as_deref(), self.snapshotter.resource(), &key)?;
            self.enter(writer, &namespace, &key, &record)
        });
        match written {
            Ok(()) => Ok(self.mounts_of(&record, &layers)),
            Err(error) => {
                self.discard(directory);
                Err(error)
            }
        }
    }

    /// Whether making it takes a copy of its parent.
    pub(super) fn copies(&self, kind: SnapshotKind, request: &Request) -> bool {
        self.snapshotter == Snapshotter::Native && kind == SnapshotKind::Active && !request.parent.is_empty()
    }

    /// Refuses where the parent has gone, and perhaps another of its name has come, of which nothing was copied.
    fn check_same(&self, view: &impl Access, namespace: &Namespace, parent: &str, layers: &[u64]) -> Result<()> {
        if self.layers(view, namespace, parent)? == layers {
            return Ok(());
        }
        Err(Error::not_found("snapshot", parent))
    }

    fn check_new(&self, view: &impl Access, namespace: &Namespace, name: &str) -> Result<()> {
        match view.bytes(self.snapshotter.table(), &key(&[namespace.as_str(), name]))? {
            Some(_) => Err(Error::exists("snapshot", name)),
            None => Ok(()),
        }
    }

    fn make_directories(
        &self,
        number: u64,
        kind: SnapshotKind,
        parent: Option<u64>,
        owner: Option<(u32, u32)>,
    ) -> Result<()> {
        let name = number.to_string();
        let make = |path: &str, mode: u32| {
            rustix::fs::mkdirat(&self.handle, path, Mode::from_raw_mode(mode))
                .map_err(|error| Error::io(format!("make snapshot directory {path:?}"), error))
        };
        make(&name, 0o700)?;
        let upper = format!("{name}/fs");
        make(&upper, 0o755)?;
        let is_active = kind == SnapshotKind::Active;
        match (self.snapshotter, parent) {
            (Snapshotter::Native, Some(parent)) if is_active => return self.copy(parent, &upper),
            (Snapshotter::Native, _) => return Ok(()),
            (Snapshotter::Overlayfs, _) if is_active => make(&format!("{name}/work"), 0o711)?,
            (Snapshotter::Overlayfs, _) => {}
        }
        if let Some(parent) = parent {
            self.look_like(&upper, parent)?;
        }
        match owner {
            // An upper directory is not mapped: root's files in it are its own. A first layer is, where that can be.
            Some(owner) if parent.is_some() || !self.maps_ids() => self.give(&upper, owner),
            _ => Ok(()),
        }
    }

    fn give(&self, directory: &str, (user, group): (u32, u32)) -> Result<()> {
        let (user, group) = (Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
        rustix::fs::chownat(&self.handle, directory, user, group, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| Error::io(format!("give snapshot directory {directory:?} to who is root"), error))
    }

    /// Whether a client has given the layers to who is root already, file by file, which the root shows.
    fn is_copied(&self, record: &Snapshot, layers: &[u64]) -> bool {
        let Some(parent) = layers.first() else { return false };
        let root = mapping::root(&record.labels).ok().flatten();
        let stat = rustix::fs::statat(&self.handle, format!("{parent}/fs"), rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
        stat.is_ok_and(|stat| root != Some((0, 0)) && root == Some((stat.st_uid, stat.st_gid)))
    }

    /// Whether who mounts a snapshot can map its ids: else clients copy it, if they must.
    pub(crate) fn maps_ids(&self) -> bool {
        let is_asked = || self.snapshotter == Snapshotter::Overlayfs && strata_idmap::is_supported(&self.directory);
        *self.maps_ids.get_or_init(is_asked)
    }

    /// Copies all of `parent`.
    fn copy(&self, parent: u64, to: &str) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |path: &str| rustix::fs::openat(&self.handle, path, flags, Mode::empty());
        let copy = || {
            tree::copy::copy(open(&format!("{parent}/fs"))?, open(to)?)?;
            // What is here of the image has no other copy below it: a record must not outlive it.
            rustix::fs::syncfs(&self.handle)
        };
        copy().map_err(|error| Error::io(format!("copy snapshot directory {parent}"), error))
    }

    /// The root of an overlay looks like the root of its upper directory, so that takes after the layer below.
    fn look_like(&self, upper: &str, parent: u64) -> Result<()> {
        let failed = |error| Error::io(format!("copy the owner and mode of layer {parent}"), error);
        let stat = rustix::fs::statat(&self.handle, format!("{parent}/fs"), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed)?;
        let mode = Mode::from_raw_mode(stat.st_mode);
        if mode.as_raw_mode() & 0o7777 == 0o755 && stat.st_uid == 0 && stat.st_gid == 0 {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&self.handle, upper, flags, Mode::empty()).map_err(failed)?;
        let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        rustix::fs::fchown(&directory, Some(owner), Some(group)).map_err(failed)?;
        rustix::fs::fchmod(&directory, mode).map_err(failed)
    }

    /// The mounts of an active snapshot or a view.
    pub(crate) fn mounts(&self, namespace: &Namespace, name: &str) -> Result<Vec<Mount>> {
        let view = self.store.read()?;
        let record = self.require(&view, namespace, name)?;
        if record.kind() == SnapshotKind::Committed {
            return Err(Error::refused(format!("snapshot {name:?}"), "it is committed and has no mounts"));
        }
        let layers = self.layers(&view, namespace, &record.parent)?;
        Ok(self.mounts_of(&record, &layers))
    }

    fn mounts_of(&self, record: &Snapshot, layers: &[u64]) -> Vec<Mount> {
        let is_active = record.kind() == SnapshotKind::Active;
        let access = if is_active { "rw" } else { "ro" };
        // The orders of options are containerd's.
        let mut mounts = match (self.snapshotter, layers) {
            (Snapshotter::Native, [nearest, ..]) if !is_active => vec![bind(self.upper(*nearest), ["rbind", access])],
            (Snapshotter::Native, _) => vec![bind(self.upper(record.directory), ["rbind", access])],
            (Snapshotter::Overlayfs, []) => vec![bind(self.upper(record.directory), [access, "rbind"])],
            (Snapshotter::Overlayfs, [only]) if !is_active => vec![bind(self.upper(*only), [access, "rbind"])],
            (Snapshotter::Overlayfs, layers) => vec![self.overlay(is_active.then_some(record.directory), layers)],
        };
        let mapping = mapping::options(&record.labels);
        if !mapping.is_empty() && self.maps_ids() && !self.is_copied(record, layers) {
            mounts.iter_mut().for_each(|mount| drop(mount.options.splice(..0, mapping.iter().cloned())));
        }
        mounts
    }

    fn overlay(&self, active: Option<u64>, layers: &[u64]) -> Mount {
        let mut options = Vec::with_capacity(4);
        if let Some(number) = active {
            options.push(format!("workdir={}/{number}/work", self.directory.display()));
            options.push(format!("upperdir={}", self.upper(number)));
        }
        let lower: Vec<String> = layers.iter().map(|number| self.upper(*number)).collect();
        options.push(format!("lowerdir={}", lower.join(":")));
        options.extend(self.options.iter().cloned());
        Mount { kind: "overlay".to_owned(), source: "overlay".to_owned(), options }
    }

    fn upper(&self, number: u64) -> String {
        format!("{}/{number}/fs", self.directory.display())
    }

    /// Freezes the active snapshot `from` as `name`.
    pub(crate) fn commit(
        &self,
        namespace: &Namespace,
        lease: Option<&str>,
        from: &str,
        name: &str,
        labels: Labels,
    ) -> Result<()> {
        check_name("snapshot name", name)?;
        check_labels(&labels)?;
        let directory = self.store.write(Durability::Process, |writer| {
            // Before the other is looked for: who commits a second time learns that it is done.
            self.check_new(writer, namespace, name)?;
            let mut record = self.require(writer, namespace, from)?;
            if record.kind() != SnapshotKind::Active {
                return Err(Error::refused(format!("snapshot {from:?}"), "only an active snapshot can be committed"));
            }
            self.leave(writer, namespace, from, &record)?;
            lease::release(writer, namespace, lease, self.snapshotter.resource(), from)?;
            record.kind = SnapshotKind::Committed.into();
            record.labels = labels;
            // What it is called from now on begins now.
            record.created_at = Some(clock::now());
            record.updated_at = record.created_at;
            record.unsynced_boot.clone_from(&self.boot_id);
            lease::hold(writer, namespace, lease, self.snapshotter.resource(), name)?;
            self.enter(writer, namespace, name, &record)?;
            Ok(record.directory)
        })?;
        self.pending().push(Unsynced { namespace: namespace.clone(), name: name.to_owned(), directory });
        Ok(())
    }

    /// Removes a snapshot on which nothing stands. Its name is free at once; the files go later.
    pub(crate) fn remove(&self, namespace: &Namespace, name: &str) -> Result<()> {
        let directory = self.store.write(Durability::Process, |writer| self.remove_in(writer, namespace, name))?;
        self.trash.take(&self.directory.join(directory.to_string()))
    }

    /// The records' part of [`Snapshots::remove`]: the number of the directory that must go.
    pub(crate) fn remove_in(&self, writer: &mut Writer, namespace: &Namespace, name: &str) -> Result<u64> {
        let record = self.require(writer, namespace, name)?;
        if writer.any(self.snapshotter.children(), &prefix(&[namespace.as_str(), name]))? {
            return Err(Error::refused(format!("remove snapshot {name:?}"), "other snapshots stand on it"));
        }
        self.leave(writer, namespace, name, &record)?;
        lease::release_all(writer, namespace, self.snapshotter.resource(), name)?;
        Ok(record.directory)
    }

    /// What the snapshot's own layer takes on disk. Walks its files, but for a committed one only once.
    pub(crate) fn usage(&self, namespace: &Namespace, name: &str) -> Result<Usage> {
        let record = self.require(&self.store.read()?, namespace, name)?;
        if let Some(usage) = record.usage {
            return Ok(usage);
        }
        // It shows what others have.
        if record.kind() == SnapshotKind::View {
            return Ok(Usage::default());
        }
        let usage = tree::usage(Path::new(&self.upper(record.directory)))
            .map_err(|error| Error::io(format!("measure snapshot {name:?}"), error))?;
        if record.kind() == SnapshotKind::Committed {
            self.remember_usage(&key(&[namespace.as_str(), name]), &record, usage)?;
        }
        Ok(usage)
    }

    fn remember_usage(&self, entry: &[u8], measured: &Snapshot, usage: Usage) -> Result<()> {
        self.store.write(Durability::Process, |writer| {
            let table = self.snapshotter.table();
            let current: Option<Snapshot> = writer.get_in(table, entry)?;
            match current.filter(|current| current.directory == measured.directory) {
                Some(current) => writer.put_in(table, entry, &Snapshot { usage: Some(usage), ..current }),
                None => Ok(()),
            }
        })
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, Vec<Unsynced>> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Syncs the files of what was committed since the last time. Blocks for as long as the disk needs.
    pub(crate) fn sync_committed(&self) -> Result<()> {
        let committed = std::mem::take(&mut *self.pending());
        if committed.is_empty() {
            return Ok(());
        }
        if let Err(error) = rustix::fs::syncfs(&self.handle) {
            self.pending().extend(committed);
            return Err(Error::io("sync the snapshots' file system", error));
        }
        self.store.write(Durability::Process, |writer| {
            let table = self.snapshotter.table();
            for Unsynced { namespace, name, directory } in &committed {
                let entry = key(&[namespace.as_str(), name]);
                let record: Option<Snapshot> = writer.get_in(table, &entry)?;
                if let Some(record) = record.filter(|record| record.directory == *directory) {
                    writer.put_in(table, &entry, &Snapshot { unsynced_boot: String::new(), ..record })?;
                }
            }
            Ok(())
        })
    }

    /// Removes a directory that no record tells of.
    pub(crate) fn discard(&self, number: u64) {
        if let Err(error) = self.trash.take(&self.directory.join(number.to_string())) {
            tracing::warn!(error = %Chain(&error), "discard the directory of a snapshot");
        }
    }

    /// The snapshot of that name.
    fn require(&self, view: &impl Access, namespace: &Namespace, name: &str) -> Result<Snapshot> {
        let record = view.get_in(self.snapshotter.table(), &key(&[namespace.as_str(), name]))?;
        record.ok_or_else(|| Error::not_found("snapshot", name))
    }

    /// Directories of `parent` and everything that its files are in, the nearest first; none where there is no parent.
    fn layers(&self, view: &impl Access, namespace: &Namespace, parent: &str) -> Result<Vec<u64>> {
        let mut layers = Vec::new();
        let mut next = self.require_committed(view, namespace, parent)?;
        while let Some(record) = next {
            layers.push(record.directory);
            let Some(most) = self.snapshotter.layers_max() else { break };
            if layers.len() > most {
                return Err(Error::refused(format!("snapshot {parent:?}"), format!("it has more than {most} layers")));
            }
            next = self.require_committed(view, namespace, &record.parent)?;
        }
        Ok(layers)
    }

    /// The committed snapshot of that name; `None` where the name is empty.
    fn require_committed(&self, view: &impl Access, namespace: &Namespace, name: &str) -> Result<Option<Snapshot>> {
        if name.is_empty() {
            return Ok(None);
        }
        let record = self.require(view, namespace, name)?;
        if record.kind() == SnapshotKind::Committed {
            Ok(Some(record))
        } else {
            Err(Error::invalid(format!("parent snapshot {name:?}"), "it is not committed"))
        }
    }

    /// Writes a record, and that it stands on its parent.
    fn enter(&self, writer: &mut Writer, namespace: &Namespace, name: &str, record: &Snapshot) -> Result<()> {
        writer.put_in(self.snapshotter.table(), &key(&[namespace.as_str(), name]), record)?;
        if record.parent.is_empty() {
            return Ok(());
        }
        writer.mark(self.snapshotter.children(), &key(&[namespace.as_str(), &record.parent, name]))
    }

    /// The reverse of [`Snapshots::enter`].
    fn leave(&self, writer: &mut Writer, namespace: &Namespace, name: &str, record: &Snapshot) -> Result<()> {
        writer.remove(self.snapshotter.table(), &key(&[namespace.as_str(), name]))?;
        if record.parent.is_empty() {
            return Ok(());
        }
        writer.remove(self.snapshotter.children(), &key(&[namespace.as_str(), &record.parent, name]))
    }
}

fn bind(source: String, options: [&str; 2]) -> Mount {
    Mount { kind: "bind".to_owned(), source, options: options.map(str::to_owned).to_vec() }
}

/// An index would tie a lower directory to one upper one; ours are shared by many.
fn overlay_options() -> Vec<String> {
    let has_index = Path::new("/sys/module/overlay/parameters/index").exists();
    if has_index { vec!["index=off".to_owned()] } else { Vec::new() }
}

#[cfg(test)]
mod tests;
