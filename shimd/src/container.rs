//! Container records: what a container is to be. Whether it runs is the business of `task`.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::clock;
use crate::db::record::Container;
use crate::db::{Access, Durability, Store, Table, key, prefix, tail};
use crate::error::{Error, Result};
use crate::filter::{Fields, Filters, label, present};
use crate::mask::{self, Path};
use crate::name::{Namespace, check_identifier, check_labels};

/// A container under its id.
#[derive(Debug)]
pub(crate) struct Info {
    pub(crate) id: String,
    pub(crate) record: Container,
}

impl Fields for Info {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        match path.first()?.as_str() {
            "id" => present(&self.id),
            "image" => present(&self.record.image),
            "runtime" if path.get(1).is_some_and(|part| part == "name") => present(&self.record.runtime),
            "labels" => label(&self.record.labels, &path[1..]),
            _ => None,
        }
    }
}

/// Containers of a page.
const PAGE: usize = 128;

/// A part of a list.
pub(crate) struct Page {
    pub(crate) found: Vec<Info>,
    /// After which the next one begins; `None` when this is the last.
    pub(crate) last: Option<String>,
}

/// The containers of all namespaces.
pub(crate) struct Containers(pub(crate) Arc<Store>);

impl Containers {
    pub(crate) fn get(&self, namespace: &Namespace, id: &str) -> Result<Info> {
        let record = self.0.read()?.require(&key(&[namespace.as_str(), id]), id)?;
        Ok(Info { id: id.to_owned(), record })
    }

    pub(crate) fn list(&self, namespace: &Namespace, filters: &Filters) -> Result<Vec<Info>> {
        if let Some(ids) = filters.pinned("id") {
            return self.find(namespace, filters, &ids);
        }
        let mut found = Vec::new();
        self.0.read()?.each(&prefix(&[namespace.as_str()]), |entry, record: Container| {
            let info = Info { id: tail(entry, 1), record };
            if filters.matches(&info) {
                found.push(info);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Some of the list: those that come after an id. Pages are looked up one by one, so that neither much memory nor a
    /// view of the store is held for a client that reads slowly.
    pub(crate) fn page(&self, namespace: &Namespace, filters: &Filters, after: &str) -> Result<Page> {
        if let Some(ids) = filters.pinned("id") {
            return Ok(Page { found: self.find(namespace, filters, &ids)?, last: None });
        }
        let mut page = Page { found: Vec::new(), last: None };
        let (within, after) = (prefix(&[namespace.as_str()]), key(&[namespace.as_str(), after]));
        self.0.read()?.each_after(&within, &after, |entry, record: Container| {
            let info = Info { id: tail(entry, 1), record };
            if filters.matches(&info) {
                page.found.push(info);
            }
            if page.found.len() < PAGE {
                return Ok(ControlFlow::Continue(()));
            }
            page.last = page.found.last().map(|info| info.id.clone());
            Ok(ControlFlow::Break(()))
        })?;
        Ok(page)
    }

    /// Those of `ids` that are there and match.
    fn find(&self, namespace: &Namespace, filters: &Filters, ids: &BTreeSet<&str>) -> Result<Vec<Info>> {
        let reader = self.0.read()?;
        let mut found = Vec::new();
        for id in ids {
            let Some(record) = reader.get(&key(&[namespace.as_str(), id]))? else { continue };
            let info = Info { id: (*id).to_owned(), record };
            if filters.matches(&info) {
                found.push(info);
            }
        }
        Ok(found)
    }

    pub(crate) fn create(&self, namespace: &Namespace, mut info: Info) -> Result<Info> {
        check(&info)?;
        let now = Some(clock::now());
        info.record.created_at = now;
        info.record.updated_at = now;
        let entry = key(&[namespace.as_str(), &info.id]);
        self.0.write(Durability::Process, |writer| {
            if writer.bytes(Table::Containers, &entry)?.is_some() {
                return Err(Error::exists("container", &info.id));
            }
            writer.put(&entry, &info.record)
        })?;
        Ok(info)
    }

    /// Replaces the fields that `paths` of a field mask name; all that can be replaced where there are none.
    pub(crate) fn update(&self, namespace: &Namespace, wanted: Info, paths: &[String]) -> Result<Info> {
        let entry = key(&[namespace.as_str(), &wanted.id]);
        self.0.write(Durability::Process, |writer| {
            let mut record: Container = writer.require(&entry, &wanted.id)?;
            if paths.is_empty() {
                replace_all(&mut record, &wanted.record)?;
            }
            for path in mask::paths(paths, &["labels", "extensions"]) {
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
            if writer.bytes(Table::Containers, &entry)?.is_none() {
                return Err(Error::not_found("container", id));
            }
            writer.remove(Table::Containers, &entry)
        })
    }
}

fn check(info: &Info) -> Result<()> {
    check_identifier("container", &info.id)?;
    check_labels(&info.record.labels)?;
    let missing = |field: &str| Err(Error::invalid(format!("container {:?}", info.id), format!("{field} must be set")));
    if info.record.runtime.is_empty() {
        return missing("runtime.name");
    }
    if info.record.spec.is_none() {
        return missing("spec");
    }
    if info.record.snapshotter.is_empty() && !info.record.snapshot_key.is_empty() {
        return missing("snapshotter");
    }
    if info.record.extensions.contains_key("") {
        return missing("the key of an extension");
    }
    Ok(())
}

/// What cannot change must be as it was, so that it could become changeable without surprise.
fn replace_all(record: &mut Container, wanted: &Container) -> Result<()> {
    if record.snapshotter != wanted.snapshotter {
        return Err(mask::immutable("container", "snapshotter"));
    }
    if record.runtime != wanted.runtime {
        return Err(mask::immutable("container", "runtime.name"));
    }
    for field in ["labels", "spec", "extensions", "image", "snapshot_key"] {
        replace(record, wanted, Path::Field(field))?;
    }
    Ok(())
}

fn replace(record: &mut Container, wanted: &Container, path: Path<'_>) -> Result<()> {
    match path {
        Path::Entry("labels", entry) => mask::replace_entry(&mut record.labels, &wanted.labels, entry),
        Path::Entry(_, entry) => match wanted.extensions.get(entry) {
            Some(extension) => drop(record.extensions.insert(entry.to_owned(), extension.clone())),
            None => drop(record.extensions.remove(entry)),
        },
        Path::Field("labels") => record.labels.clone_from(&wanted.labels),
        Path::Field("spec") => record.spec.clone_from(&wanted.spec),
        Path::Field("extensions") => record.extensions.clone_from(&wanted.extensions),
        Path::Field("image") => record.image.clone_from(&wanted.image),
        // containerd's clients write it without the underscore.
        Path::Field("snapshot_key" | "snapshotkey") => record.snapshot_key.clone_from(&wanted.snapshot_key),
        Path::Field(field) => return Err(mask::immutable("container", field)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::Any;

    fn info(id: &str) -> Info {
        let record = Container {
            runtime: "io.containerd.runc.v2".to_owned(),
            spec: Some(Any { type_url: "t".to_owned(), value: b"{}".to_vec() }),
            ..Container::default()
        };
        Info { id: id.to_owned(), record }
    }

    #[test]
    fn records_come_and_go() {
        let directory = tempfile::tempdir().unwrap();
        let containers = Containers(Arc::new(Store::open(directory.path()).unwrap()));
        let (ns, other) = (Namespace::parse("ns").unwrap(), Namespace::parse("ns2").unwrap());
        containers.create(&ns, info("a")).unwrap();
        assert!(matches!(containers.create(&ns, info("a")), Err(Error::Exists { .. })));
        containers.create(&other, info("a")).unwrap();
        let mut wanted = info("a");
        wanted.record.labels.insert("x.y".to_owned(), "1".to_owned());
        wanted.record.image = "i".to_owned();
        let updated = containers.update(&ns, wanted, &["labels.x.y".to_owned()]).unwrap();
        assert_eq!((updated.record.labels["x.y"].as_str(), updated.record.image.as_str()), ("1", ""));
        let filters = Filters::parse(&["labels.\"x.y\"==1".to_owned()]).unwrap();
        assert_eq!(containers.list(&ns, &filters).unwrap().len(), 1);
        assert_eq!(containers.list(&other, &filters).unwrap().len(), 0);
        containers.delete(&ns, "a").unwrap();
        assert!(containers.get(&ns, "a").unwrap_err().is_not_found());
        assert!(containers.delete(&ns, "a").unwrap_err().is_not_found());
    }

    fn in_pages(containers: &Containers, namespace: &Namespace, filters: &[&str]) -> Vec<String> {
        let texts: Vec<String> = filters.iter().map(|text| (*text).to_owned()).collect();
        let filters = Filters::parse(&texts).unwrap();
        let (mut ids, mut after) = (Vec::new(), Some(String::new()));
        while let Some(id) = after {
            let page = containers.page(namespace, &filters, &id).unwrap();
            assert!(page.found.len() <= PAGE);
            ids.extend(page.found.into_iter().map(|info| info.id));
            after = page.last;
        }
        ids
    }

    #[test]
    fn a_list_of_many_pages_is_whole_and_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let containers = Containers(Arc::new(Store::open(directory.path()).unwrap()));
        let (ns, other) = (Namespace::parse("ns").unwrap(), Namespace::parse("nt").unwrap());
        let ids: Vec<String> = (0..2 * PAGE + 1).map(|number| format!("c{number:04}")).collect();
        for id in &ids {
            containers.create(&ns, info(id)).unwrap();
        }
        containers.create(&other, info("c0000")).unwrap();
        let list = |filters: &[&str]| {
            let texts: Vec<String> = filters.iter().map(|text| (*text).to_owned()).collect();
            let found = containers.list(&ns, &Filters::parse(&texts).unwrap()).unwrap();
            found.into_iter().map(|info| info.id).collect::<Vec<_>>()
        };
        for filters in [&[][..], &["id~=c"], &["id==c0007", "id==c0003", "id==gone"], &["id==c0007,image==x"]] {
            assert_eq!(in_pages(&containers, &ns, filters), list(filters));
        }
        assert_eq!(list(&[]), ids);
        assert_eq!(list(&["id==c0007", "id==c0003", "id==gone"]), ["c0003", "c0007"]);
        assert!(list(&["id==c0007,image==x"]).is_empty());
    }

    #[test]
    fn what_is_missing_or_fixed_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let containers = Containers(Arc::new(Store::open(directory.path()).unwrap()));
        let ns = Namespace::parse("ns").unwrap();
        let mut bad = info("a");
        bad.record.runtime.clear();
        assert!(containers.create(&ns, bad).unwrap_err().to_string().contains("runtime.name"));
        containers.create(&ns, info("a")).unwrap();
        let mut wanted = info("a");
        wanted.record.runtime = "other.v1".to_owned();
        assert!(containers.update(&ns, wanted, &[]).is_err());
        assert!(containers.update(&ns, info("a"), &["runtime".to_owned()]).is_err());
    }
}
