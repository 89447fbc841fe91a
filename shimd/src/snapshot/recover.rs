//! After a start: records and directories are made to agree, and what a power cut may have damaged is dropped.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use super::{Snapshots, Unsynced};
use crate::db::record::{Snapshot, SnapshotKind};
use crate::db::{Access, Durability, Reader, tail};
use crate::error::{Error, Result};
use crate::lease;
use crate::name::Namespace;

/// A record with the names in its key.
struct Known {
    namespace: Namespace,
    name: String,
    record: Snapshot,
}

impl Snapshots {
    pub(super) fn recover(&self) -> Result<()> {
        let known = self.read_all(&self.store.read()?)?;
        let directories = self.directories()?;
        let (lost, kept): (Vec<_>, Vec<_>) = split_lost(known, |known| {
            directories.contains(&known.record.directory) && !self.may_be_damaged(&known.record)
        });
        self.forget(&lost)?;
        let used: HashSet<u64> = kept.iter().map(|known| known.record.directory).collect();
        for number in directories.difference(&used) {
            self.discard(*number);
        }
        let next = directories.iter().max().map_or(1, |number| number + 1);
        self.next.store(next, Ordering::Relaxed);
        self.pending().extend(
            kept.into_iter()
                .filter(|known| !known.record.unsynced_boot.is_empty())
                .map(|Known { namespace, name, record }| Unsynced { namespace, name, directory: record.directory }),
        );
        Ok(())
    }

    fn may_be_damaged(&self, record: &Snapshot) -> bool {
        record.kind() == SnapshotKind::Committed
            && !record.unsynced_boot.is_empty()
            && record.unsynced_boot != self.boot_id
    }

    fn directories(&self) -> Result<HashSet<u64>> {
        let failed = |error| Error::io(format!("list {}", self.directory.display()), error);
        let mut numbers = HashSet::new();
        for entry in std::fs::read_dir(&self.directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            numbers.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        Ok(numbers)
    }

    fn forget(&self, lost: &[Known]) -> Result<()> {
        if lost.is_empty() {
            return Ok(());
        }
        tracing::warn!(count = lost.len(), "snapshots are dropped: their files are not there or were not synced");
        self.store.write(Durability::Process, |writer| {
            for known in lost {
                self.leave(writer, &known.namespace, &known.name, &known.record)?;
                lease::release_all(writer, &known.namespace, self.snapshotter.resource(), &known.name)?;
            }
            Ok(())
        })
    }

    fn read_all(&self, view: &Reader) -> Result<Vec<Known>> {
        let mut known = Vec::new();
        view.each_in(self.snapshotter.table(), &[], |entry, record: Snapshot| {
            known.push(Known { namespace: Namespace::parse(&tail(entry, 0))?, name: tail(entry, 1), record });
            Ok(())
        })?;
        Ok(known)
    }
}

/// Splits off what is not `whole` and everything that stands on it.
fn split_lost(known: Vec<Known>, whole: impl Fn(&Known) -> bool) -> (Vec<Known>, Vec<Known>) {
    let parents: HashMap<(&str, &str), (&str, bool)> = known
        .iter()
        .map(|known| ((known.namespace.as_str(), known.name.as_str()), (known.record.parent.as_str(), whole(known))))
        .collect();
    let stands = |known: &Known| {
        let namespace = known.namespace.as_str();
        let mut name = known.name.as_str();
        // A chain cannot be longer than there are snapshots, should records ever point in a circle.
        for _ in 0..=parents.len() {
            match parents.get(&(namespace, name)) {
                Some((_, false)) | None => return false,
                Some(("", true)) => return true,
                Some((parent, true)) => name = parent,
            }
        }
        false
    };
    let verdicts: Vec<bool> = known.iter().map(stands).collect();
    let mut verdicts = verdicts.into_iter();
    known.into_iter().partition(|_| !verdicts.next().unwrap_or_default())
}
