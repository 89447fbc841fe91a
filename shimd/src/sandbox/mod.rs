//! Sandboxes: what containers of a pod share. The records here say what a sandbox is to be; whether it runs is the business
//! of its [`controller`].

pub(crate) mod controller;

use std::borrow::Cow;
use std::sync::Arc;

use crate::clock;
use crate::db::record::Sandbox;
use crate::db::{Access, Durability, Store, Table, key, prefix, tail};
use crate::error::{Error, Result};
use crate::filter::{Fields, Filters, label, present};
use crate::mask::{self, Path};
use crate::name::{Namespace, check_identifier, check_labels};

/// A sandbox under its id.
#[derive(Debug)]
pub(crate) struct Info {
    pub(crate) id: String,
    pub(crate) record: Sandbox,
}

impl Fields for Info {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        match path.first()?.as_str() {
            "id" => present(&self.id),
            "labels" => label(&self.record.labels, &path[1..]),
            _ => None,
        }
    }
}

/// The sandboxes of all namespaces.
pub(crate) struct Sandboxes(pub(crate) Arc<Store>);

impl Sandboxes {
    pub(crate) fn get(&self, namespace: &Namespace, id: &str) -> Result<Info> {
        let record = self.0.read()?.require(&key(&[namespace.as_str(), id]), id)?;
        Ok(Info { id: id.to_owned(), record })
    }

    pub(crate) fn list(&self, namespace: &Namespace, filters: &Filters) -> Result<Vec<Info>> {
        let mut found = Vec::new();
        self.0.read()?.each(&prefix(&[namespace.as_str()]), |entry, record: Sandbox| {
            let info = Info { id: tail(entry, 1), record };
            if filters.matches(&info) {
                found.push(info);
            }
            Ok(())
        })?;
        Ok(found)
    }

    pub(crate) fn create(&self, namespace: &Namespace, mut info: Info) -> Result<Info> {
        check(&info)?;
        let now = Some(clock::now());
        info.record.created_at = now;
        info.record.updated_at = now;
        let entry = key(&[namespace.as_str(), &info.id]);
        self.0.write(Durability::Process, |writer| {
            if writer.bytes(Table::Sandboxes, &entry)?.is_some() {
                return Err(Error::exists("sandbox", &info.id));
            }
            writer.put(&entry, &info.record)
        })?;
        Ok(info)
    }

    /// Replaces the fields that `fields` name; all that can be replaced where there are none.
    pub(crate) fn update(&self, namespace: &Namespace, wanted: Info, fields: &[String]) -> Result<Info> {
        let entry = key(&[namespace.as_str(), &wanted.id]);
        self.0.write(Durability::Process, |writer| {
            let mut record: Sandbox = writer.require(&entry, &wanted.id)?;
            if fields.is_empty() {
                if record.runtime != wanted.record.runtime {
                    return Err(mask::immutable("sandbox", "runtime.name"));
                }
                for field in ["labels", "extensions", "spec", "runtime"] {
                    replace(&mut record, &wanted.record, Path::Field(field))?;
                }
            }
            for path in mask::paths(fields, &["labels", "extensions"]) {
                replace(&mut record, &wanted.record, path)?;
            }
            record.updated_at = Some(clock::now());
            let info = Info { id: wanted.id.clone(), record };
            check(&info)?;
            writer.put(&entry, &info.record)?;
            Ok(info)
        })
    }

    pub(crate) fn delete(&self, namespace: &Namespace, id: &str) -> Result<()> {
        let entry = key(&[namespace.as_str(), id]);
        self.0.write(Durability::Process, |writer| {
            writer.require::<Sandbox>(&entry, id)?;
            writer.remove(Table::Sandboxes, &entry)
        })
    }
}

fn check(info: &Info) -> Result<()> {
    check_identifier("sandbox", &info.id)?;
    check_labels(&info.record.labels)?;
    if info.record.runtime.is_empty() {
        return Err(Error::invalid(format!("sandbox {:?}", info.id), "runtime.name must be set"));
    }
    Ok(())
}

fn replace(record: &mut Sandbox, wanted: &Sandbox, path: Path<'_>) -> Result<()> {
    match path {
        Path::Entry("labels", entry) => mask::replace_entry(&mut record.labels, &wanted.labels, entry),
        Path::Entry(_, entry) => match wanted.extensions.get(entry) {
            Some(extension) => drop(record.extensions.insert(entry.to_owned(), extension.clone())),
            None => drop(record.extensions.remove(entry)),
        },
        Path::Field("labels") => record.labels.clone_from(&wanted.labels),
        Path::Field("extensions") => record.extensions.clone_from(&wanted.extensions),
        Path::Field("spec") => record.spec.clone_from(&wanted.spec),
        Path::Field("runtime") => {
            record.runtime.clone_from(&wanted.runtime);
            record.runtime_options.clone_from(&wanted.runtime_options);
        }
        Path::Field(field) => return Err(mask::immutable("sandbox", field)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(id: &str, runtime: &str) -> Info {
        Info { id: id.to_owned(), record: Sandbox { runtime: runtime.to_owned(), ..Sandbox::default() } }
    }

    #[test]
    fn records_come_change_and_go() {
        let directory = tempfile::tempdir().unwrap();
        let sandboxes = Sandboxes(Arc::new(Store::open(directory.path()).unwrap()));
        let ns = Namespace::parse("ns").unwrap();
        sandboxes.create(&ns, info("a", "x.v1")).unwrap();
        assert!(matches!(sandboxes.create(&ns, info("a", "x.v1")), Err(Error::Exists { .. })));
        assert!(matches!(sandboxes.create(&ns, info("b", "")), Err(Error::Invalid { .. })));
        let mut wanted = info("a", "y.v1");
        wanted.record.labels.insert("k".to_owned(), "v".to_owned());
        let updated = sandboxes.update(&ns, wanted, &["labels.k".to_owned()]).unwrap();
        assert_eq!((updated.record.labels["k"].as_str(), updated.record.runtime.as_str()), ("v", "x.v1"));
        assert!(sandboxes.update(&ns, info("a", "y.v1"), &[]).is_err());
        assert!(sandboxes.update(&ns, info("a", "x.v1"), &["sandboxer".to_owned()]).is_err());
        let filters = Filters::parse(&["labels.k==v".to_owned()]).unwrap();
        assert_eq!(sandboxes.list(&ns, &filters).unwrap().len(), 1);
        sandboxes.delete(&ns, "a").unwrap();
        assert!(sandboxes.get(&ns, "a").unwrap_err().is_not_found());
        assert!(sandboxes.delete(&ns, "a").unwrap_err().is_not_found());
    }
}
