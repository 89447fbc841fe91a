//! Namespaces. One begins to exist with the first thing that is made in it, or by itself.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::db::record::{Labels, Namespace as Record};
use crate::db::{Access, Durability, Store, Table, key, prefix, tail};
use crate::error::{Error, Result};
use crate::filter::{Fields, Filters, label, present};
use crate::mask;
use crate::name::{Namespace, check_labels};

/// A namespace under its name.
pub(crate) struct Info {
    pub(crate) name: String,
    pub(crate) labels: Labels,
}

impl Fields for Info {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        match path.first()?.as_str() {
            "name" => present(&self.name),
            "labels" => label(&self.labels, &path[1..]),
            _ => None,
        }
    }
}

/// All namespaces.
pub(crate) struct Namespaces {
    store: Arc<Store>,
    /// Those that are known to exist: nearly every request asks.
    known: Mutex<HashSet<Namespace>>,
}

impl Namespaces {
    pub(crate) fn new(store: Arc<Store>) -> Namespaces {
        Namespaces { store, known: Mutex::default() }
    }

    /// Makes sure that a namespace exists.
    pub(crate) fn ensure(&self, name: &Namespace) -> Result<()> {
        if self.known().contains(name) {
            return Ok(());
        }
        match self.create(name, Labels::new()) {
            Ok(()) | Err(Error::Exists { .. }) => {
                self.known().insert(name.clone());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn create(&self, name: &Namespace, labels: Labels) -> Result<()> {
        check_labels(&labels)?;
        let entry = key(&[name.as_str()]);
        self.store.write(Durability::Process, |writer| {
            if writer.bytes(Table::Namespaces, &entry)?.is_some() {
                return Err(Error::exists("namespace", name.as_str()));
            }
            writer.put(&entry, &Record { labels })
        })
    }

    /// The labels of a namespace. One that does not exist yet has none, as in containerd: Docker's daemon looks for
    /// defaults in labels before anything is in its namespace.
    pub(crate) fn labels(&self, name: &Namespace) -> Result<Labels> {
        let record: Option<Record> = self.store.read()?.get(&key(&[name.as_str()]))?;
        Ok(record.unwrap_or_default().labels)
    }

    pub(crate) fn list(&self, filters: &Filters) -> Result<Vec<Info>> {
        let mut found = Vec::new();
        self.store.read()?.each(&[], |entry, record: Record| {
            let info = Info { name: tail(entry, 0), labels: record.labels };
            if filters.matches(&info) {
                found.push(info);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Changes a namespace's labels. One that does not exist begins to, as in containerd: clients set the defaults of a
    /// namespace before anything is in it.
    pub(crate) fn update(&self, name: &Namespace, labels: &Labels, paths: &[String]) -> Result<Labels> {
        check_labels(labels)?;
        let entry = key(&[name.as_str()]);
        self.store.write(Durability::Process, |writer| {
            let mut record: Record = writer.get(&entry)?.unwrap_or_default();
            // A mask of all labels is an empty one, as in containerd.
            if let Some(path) = paths.iter().find(|path| path.as_str() == "labels") {
                return Err(mask::immutable("namespace", path));
            }
            mask::update_labels("namespace", &mut record.labels, labels, paths)?;
            writer.put(&entry, &record)?;
            Ok(record.labels)
        })
    }

    /// Removes an empty namespace.
    pub(crate) fn delete(&self, name: &Namespace) -> Result<()> {
        const HELD: [(Table, &str); 7] = [
            (Table::Containers, "containers"),
            (Table::Images, "images"),
            (Table::Blobs, "content"),
            (Table::Snapshots, "snapshots"),
            (Table::NativeSnapshots, "snapshots"),
            (Table::Leases, "leases"),
            (Table::Sandboxes, "sandboxes"),
        ];
        let entry = key(&[name.as_str()]);
        self.store.write(Durability::Process, |writer| {
            writer.require::<Record>(&entry, name.as_str())?;
            for (table, what) in HELD {
                if writer.any(table, &prefix(&[name.as_str()]))? {
                    return Err(Error::refused(
                        format!("namespace {:?}", name.as_str()),
                        format!("it still has {what}"),
                    ));
                }
            }
            writer.remove(Table::Namespaces, &entry)
        })?;
        self.known().remove(name);
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, HashSet<Namespace>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::record::Lease;

    #[test]
    fn only_an_empty_namespace_goes() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path()).unwrap());
        let namespaces = Namespaces::new(store.clone());
        let ns = Namespace::parse("ns").unwrap();
        namespaces.ensure(&ns).unwrap();
        namespaces.ensure(&ns).unwrap();
        assert!(matches!(namespaces.create(&ns, Labels::new()), Err(Error::Exists { .. })));
        let entry = key(&["ns", "l"]);
        store.write(Durability::Process, |writer| writer.put(&entry, &Lease::default())).unwrap();
        assert!(namespaces.delete(&ns).unwrap_err().to_string().contains("leases"));
        store.write(Durability::Process, |writer| writer.remove(Table::Leases, &entry)).unwrap();
        namespaces.delete(&ns).unwrap();
        assert!(namespaces.list(&Filters::default()).unwrap().is_empty());
        namespaces.ensure(&ns).unwrap();
        assert_eq!(namespaces.list(&Filters::default()).unwrap().len(), 1);
    }
}
