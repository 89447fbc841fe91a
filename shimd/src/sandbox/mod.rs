//! Sandboxes: what containers of a pod share. The records here say what a sandbox is to be; whether it runs is the
//! business of its [`controller`].

pub(crate) mod controller;

use std::borrow::Cow;

use prost_types::Timestamp;

use crate::catalog::{self, Catalog, Entry};
use crate::db::Durability;
use crate::db::record::{Labels, Sandbox};
use crate::error::{Error, Result};
use crate::mask::{self, Path};
use crate::name::{check_identifier, check_labels};

/// The sandboxes of all namespaces, by id.
pub(crate) type Sandboxes = Catalog<Sandbox>;

/// A sandbox under its id.
pub(crate) type Info = catalog::Info<Sandbox>;

impl Entry for Sandbox {
    const NAME: &'static str = "id";
    const MAPS: [&'static str; 2] = ["labels", "extensions"];
    const DURABILITY: Durability = Durability::Process;

    fn labels(&self) -> &Labels {
        &self.labels
    }

    fn field(&self, _: &[String]) -> Option<Cow<'_, str>> {
        None
    }

    fn times(&mut self) -> (&mut Option<Timestamp>, &mut Option<Timestamp>) {
        (&mut self.created_at, &mut self.updated_at)
    }

    fn check(&self, id: &str) -> Result<()> {
        check_identifier("sandbox", id)?;
        check_labels(&self.labels)?;
        if self.runtime.is_empty() {
            return Err(Error::invalid(format!("sandbox {id:?}"), "runtime.name must be set"));
        }
        Ok(())
    }

    fn replace(&mut self, wanted: &Sandbox, path: Path<'_>) -> Result<()> {
        match path {
            Path::Entry("labels", entry) => mask::replace_entry(&mut self.labels, &wanted.labels, entry),
            Path::Entry(_, entry) => mask::replace_extension(&mut self.extensions, &wanted.extensions, entry),
            Path::Field("labels") => self.labels.clone_from(&wanted.labels),
            Path::Field("extensions") => self.extensions.clone_from(&wanted.extensions),
            Path::Field("spec") => self.spec.clone_from(&wanted.spec),
            Path::Field("runtime") => {
                self.runtime.clone_from(&wanted.runtime);
                self.runtime_options.clone_from(&wanted.runtime_options);
            }
            Path::Field(field) => return Err(mask::immutable("sandbox", field)),
        }
        Ok(())
    }

    fn replace_all(&mut self, wanted: &Sandbox) -> Result<()> {
        if self.runtime != wanted.runtime {
            return Err(mask::immutable("sandbox", "runtime.name"));
        }
        let fields = ["labels", "extensions", "spec", "runtime"];
        fields.into_iter().try_for_each(|field| self.replace(wanted, Path::Field(field)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::db::Store;
    use crate::filter::Filters;
    use crate::name::Namespace;

    fn info(id: &str, runtime: &str) -> Info {
        Info { name: id.to_owned(), record: Sandbox { runtime: runtime.to_owned(), ..Sandbox::default() } }
    }

    #[test]
    fn records_come_change_and_go() {
        let directory = tempfile::tempdir().unwrap();
        let sandboxes = Sandboxes::new(Arc::new(Store::open(directory.path()).unwrap()));
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
