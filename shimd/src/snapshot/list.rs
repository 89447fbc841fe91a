//! Looking at snapshots.

use std::borrow::Cow;

use super::Snapshots;
use crate::clock;
use crate::db::record::{Labels, Snapshot, SnapshotKind};
use crate::db::{Access, Durability, key, prefix, tail};
use crate::error::Result;
use crate::filter::{Fields, Filters, label};
use crate::mask;
use crate::name::{Namespace, check_labels, check_name};

/// A snapshot under its name.
pub(crate) struct Info {
    pub(crate) name: String,
    pub(crate) record: Snapshot,
}

impl Fields for Info {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        match path.first()?.as_str() {
            "name" => Some(Cow::Borrowed(&self.name)),
            "parent" => Some(Cow::Borrowed(&self.record.parent)),
            "kind" => match self.record.kind() {
                SnapshotKind::Active => Some("active".into()),
                SnapshotKind::View => Some("view".into()),
                SnapshotKind::Committed => Some("committed".into()),
                SnapshotKind::Unknown => None,
            },
            "labels" => label(&self.record.labels, &path[1..]),
            _ => None,
        }
    }
}

impl Snapshots {
    pub(crate) fn stat(&self, namespace: &Namespace, name: &str) -> Result<Info> {
        let record = self.require(&self.store.read()?, namespace, name)?;
        Ok(Info { name: name.to_owned(), record })
    }

    /// Replaces labels, as `paths` of a field mask say.
    pub(crate) fn update(&self, namespace: &Namespace, name: &str, labels: &Labels, paths: &[String]) -> Result<Info> {
        check_name("snapshot name", name)?;
        check_labels(labels)?;
        let entry = key(&[namespace.as_str(), name]);
        let record = self.store.write(Durability::Process, |writer| {
            let mut record = self.require(writer, namespace, name)?;
            mask::update_labels("snapshot", &mut record.labels, labels, paths)?;
            record.updated_at = Some(clock::now());
            writer.put_in(self.snapshotter.table(), &entry, &record)?;
            Ok(record)
        })?;
        Ok(Info { name: name.to_owned(), record })
    }

    pub(crate) fn list(&self, namespace: &Namespace, filters: &Filters) -> Result<Vec<Info>> {
        let mut found = Vec::new();
        let table = self.snapshotter.table();
        self.store.read()?.each_in(table, &prefix(&[namespace.as_str()]), |entry, record: Snapshot| {
            let info = Info { name: tail(entry, 1), record };
            if filters.matches(&info) {
                found.push(info);
            }
            Ok(())
        })?;
        Ok(found)
    }
}
