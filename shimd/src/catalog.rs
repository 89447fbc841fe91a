//! Catalogs: records that clients name, list by filters, change by field masks and remove. What an entry must have,
//! what of it can change and what can be asked for, says the file of its kind: `container`, `image`, `sandbox`.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::sync::Arc;

use prost_types::Timestamp;

use crate::clock;
use crate::db::record::Labels;
use crate::db::{Access, Durability, Record, Store, key, prefix, tail};
use crate::error::{Error, Result};
use crate::filter::{Fields, Filters, label, present};
use crate::mask::{self, Path};
use crate::name::Namespace;

/// Entries of a page.
const PAGE: usize = 128;

/// What differs from catalog to catalog.
pub(crate) trait Entry: Record + Clone {
    /// What filters call the name.
    const NAME: &'static str;
    /// The fields of which a mask can name a single entry: `labels.KEY`.
    const MAPS: [&'static str; 2];
    /// What a change outlives.
    const DURABILITY: Durability;

    fn labels(&self) -> &Labels;

    /// What filters ask for beside the name and the labels.
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>>;

    /// When it was made, and when it was changed last.
    fn times(&mut self) -> (&mut Option<Timestamp>, &mut Option<Timestamp>);

    /// Whether it may be under this name.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the field.
    fn check(&self, name: &str) -> Result<()>;

    /// Takes over one field, or one entry of it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for one that cannot change.
    fn replace(&mut self, wanted: &Self, path: Path<'_>) -> Result<()>;

    /// Takes over all that can change.
    ///
    /// # Errors
    /// [`Error::Invalid`] where something differs that cannot.
    fn replace_all(&mut self, wanted: &Self) -> Result<()>;
}

/// An entry under its name.
#[derive(Debug)]
pub(crate) struct Info<R> {
    pub(crate) name: String,
    pub(crate) record: R,
}

impl<R: Entry> Fields for Info<R> {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        match path.first()?.as_str() {
            first if first == R::NAME => present(&self.name),
            "labels" => label(self.record.labels(), &path[1..]),
            _ => self.record.field(path),
        }
    }
}

/// A part of a list.
pub(crate) struct Page<R> {
    pub(crate) found: Vec<Info<R>>,
    /// After which the next one begins; `None` when this is the last.
    pub(crate) last: Option<String>,
}

/// The entries of all namespaces.
pub(crate) struct Catalog<R> {
    store: Arc<Store>,
    of: PhantomData<fn() -> R>,
}

impl<R> Clone for Catalog<R> {
    fn clone(&self) -> Self {
        Catalog { store: self.store.clone(), of: PhantomData }
    }
}

impl<R: Entry> Catalog<R> {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Catalog { store, of: PhantomData }
    }

    pub(crate) fn get(&self, namespace: &Namespace, name: &str) -> Result<Info<R>> {
        let record = self.store.read()?.require(&key(&[namespace.as_str(), name]), name)?;
        Ok(Info { name: name.to_owned(), record })
    }

    pub(crate) fn list(&self, namespace: &Namespace, filters: &Filters) -> Result<Vec<Info<R>>> {
        if let Some(names) = filters.pinned(R::NAME) {
            return self.find(namespace, filters, &names);
        }
        let mut found = Vec::new();
        self.store.read()?.each(&prefix(&[namespace.as_str()]), |entry, record: R| {
            let info = Info { name: tail(entry, 1), record };
            if filters.matches(&info) {
                found.push(info);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Some of the list: those that come after a name. Pages are looked up one by one, so that neither much memory nor
    /// a view of the store is held for a client that reads slowly.
    pub(crate) fn page(&self, namespace: &Namespace, filters: &Filters, after: &str) -> Result<Page<R>> {
        if let Some(names) = filters.pinned(R::NAME) {
            return Ok(Page { found: self.find(namespace, filters, &names)?, last: None });
        }
        let mut page = Page { found: Vec::new(), last: None };
        let (within, after) = (prefix(&[namespace.as_str()]), key(&[namespace.as_str(), after]));
        self.store.read()?.each_after(&within, &after, |entry, record: R| {
            let info = Info { name: tail(entry, 1), record };
            if filters.matches(&info) {
                page.found.push(info);
            }
            if page.found.len() < PAGE {
                return Ok(ControlFlow::Continue(()));
            }
            page.last = page.found.last().map(|info| info.name.clone());
            Ok(ControlFlow::Break(()))
        })?;
        Ok(page)
    }

    /// Those of `names` that are there and match.
    fn find(&self, namespace: &Namespace, filters: &Filters, names: &BTreeSet<&str>) -> Result<Vec<Info<R>>> {
        let reader = self.store.read()?;
        let mut found = Vec::new();
        for name in names {
            let Some(record) = reader.get(&key(&[namespace.as_str(), name]))? else { continue };
            let info = Info { name: (*name).to_owned(), record };
            if filters.matches(&info) {
                found.push(info);
            }
        }
        Ok(found)
    }

    pub(crate) fn create(&self, namespace: &Namespace, mut info: Info<R>) -> Result<Info<R>> {
        info.record.check(&info.name)?;
        let now = Some(clock::now());
        let (created_at, updated_at) = info.record.times();
        (*created_at, *updated_at) = (now, now);
        let entry = key(&[namespace.as_str(), &info.name]);
        self.store.write(R::DURABILITY, |writer| {
            if writer.bytes(R::TABLE, &entry)?.is_some() {
                return Err(Error::exists(R::NOUN, &info.name));
            }
            writer.put(&entry, &info.record)
        })?;
        Ok(info)
    }

    /// Replaces the fields that `paths` of a field mask name; all that can be replaced where there are none.
    pub(crate) fn update(&self, namespace: &Namespace, wanted: Info<R>, paths: &[String]) -> Result<Info<R>> {
        if wanted.name.is_empty() {
            return Err(Error::invalid(format!("{} to update", R::NOUN), format!("{} must be set", R::NAME)));
        }
        let entry = key(&[namespace.as_str(), &wanted.name]);
        self.store.write(R::DURABILITY, |writer| {
            let mut record: R = writer.require(&entry, &wanted.name)?;
            if paths.is_empty() {
                record.replace_all(&wanted.record)?;
            }
            for path in mask::paths(paths, &R::MAPS) {
                record.replace(&wanted.record, path)?;
            }
            *record.times().1 = Some(clock::now());
            record.check(&wanted.name)?;
            writer.put(&entry, &record)?;
            Ok(Info { name: wanted.name, record })
        })
    }

    pub(crate) fn delete(&self, namespace: &Namespace, name: &str) -> Result<()> {
        self.delete_if(namespace, name, |_| Ok(()))
    }

    /// Removes an entry that `may_go` does not refuse.
    pub(crate) fn delete_if(
        &self,
        namespace: &Namespace,
        name: &str,
        may_go: impl FnOnce(&R) -> Result<()>,
    ) -> Result<()> {
        let entry = key(&[namespace.as_str(), name]);
        self.store.write(R::DURABILITY, |writer| {
            may_go(&writer.require(&entry, name)?)?;
            writer.remove(R::TABLE, &entry)
        })
    }
}

#[cfg(test)]
mod tests {
    use prost_types::Any;

    use super::*;
    use crate::db::record::Container;

    fn info(id: &str) -> Info<Container> {
        let spec = Some(Any { type_url: "t".to_owned(), value: b"{}".to_vec() });
        let record = Container { runtime: "io.containerd.runc.v2".to_owned(), spec, ..Container::default() };
        Info { name: id.to_owned(), record }
    }

    fn in_pages(containers: &Catalog<Container>, namespace: &Namespace, filters: &[&str]) -> Vec<String> {
        let texts: Vec<String> = filters.iter().map(|text| (*text).to_owned()).collect();
        let filters = Filters::parse(&texts).unwrap();
        let (mut ids, mut after) = (Vec::new(), Some(String::new()));
        while let Some(id) = after {
            let page = containers.page(namespace, &filters, &id).unwrap();
            assert!(page.found.len() <= PAGE);
            ids.extend(page.found.into_iter().map(|info| info.name));
            after = page.last;
        }
        ids
    }

    #[test]
    fn a_list_of_many_pages_is_whole_and_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let containers = Catalog::new(Arc::new(Store::open(directory.path()).unwrap()));
        let (ns, other) = (Namespace::parse("ns").unwrap(), Namespace::parse("nt").unwrap());
        let ids: Vec<String> = (0..2 * PAGE + 1).map(|number| format!("c{number:04}")).collect();
        for id in &ids {
            containers.create(&ns, info(id)).unwrap();
        }
        containers.create(&other, info("c0000")).unwrap();
        let list = |filters: &[&str]| {
            let texts: Vec<String> = filters.iter().map(|text| (*text).to_owned()).collect();
            let found = containers.list(&ns, &Filters::parse(&texts).unwrap()).unwrap();
            found.into_iter().map(|info| info.name).collect::<Vec<_>>()
        };
        for filters in [&[][..], &["id~=c"], &["id==c0007", "id==c0003", "id==gone"], &["id==c0007,image==x"]] {
            assert_eq!(in_pages(&containers, &ns, filters), list(filters));
        }
        assert_eq!(list(&[]), ids);
        assert_eq!(list(&["id==c0007", "id==c0003", "id==gone"]), ["c0003", "c0007"]);
        assert!(list(&["id==c0007,image==x"]).is_empty());
    }

    #[test]
    fn an_update_says_of_what() {
        let directory = tempfile::tempdir().unwrap();
        let containers = Catalog::new(Arc::new(Store::open(directory.path()).unwrap()));
        let ns = Namespace::parse("ns").unwrap();
        assert!(matches!(containers.update(&ns, info(""), &[]), Err(Error::Invalid { .. })));
        assert!(containers.update(&ns, info("a"), &[]).unwrap_err().is_not_found());
    }
}
