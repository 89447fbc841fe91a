//! Container records: what a container is to be. Whether it runs is the business of `task`.

use std::borrow::Cow;

use prost_types::Timestamp;

use crate::catalog::{self, Catalog, Entry};
use crate::db::Durability;
use crate::db::record::{Container, Labels};
use crate::error::{Error, Result};
use crate::filter::present;
use crate::mask::{self, Path};
use crate::name::{check_identifier, check_labels};

/// The containers of all namespaces, by id.
pub(crate) type Containers = Catalog<Container>;

/// A container under its id.
pub(crate) type Info = catalog::Info<Container>;

impl Entry for Container {
    const NAME: &'static str = "id";
    const MAPS: [&'static str; 2] = ["labels", "extensions"];
    const DURABILITY: Durability = Durability::Process;

    fn labels(&self) -> &Labels {
        &self.labels
    }

    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        match path.first()?.as_str() {
            "image" => present(&self.image),
            "runtime" if path.get(1).is_some_and(|part| part == "name") => present(&self.runtime),
            _ => None,
        }
    }

    fn times(&mut self) -> (&mut Option<Timestamp>, &mut Option<Timestamp>) {
        (&mut self.created_at, &mut self.updated_at)
    }

    fn check(&self, id: &str) -> Result<()> {
        check_identifier("container", id)?;
        check_labels(&self.labels)?;
        let missing = |field: &str| Err(Error::invalid(format!("container {id:?}"), format!("{field} must be set")));
        if self.runtime.is_empty() {
            return missing("runtime.name");
        }
        if self.snapshotter.is_empty() && !self.snapshot_key.is_empty() {
            return missing("snapshotter");
        }
        if self.extensions.contains_key("") {
            return missing("the key of an extension");
        }
        Ok(())
    }

    fn replace(&mut self, wanted: &Container, path: Path<'_>) -> Result<()> {
        match path {
            Path::Entry("labels", entry) => mask::replace_entry(&mut self.labels, &wanted.labels, entry),
            Path::Entry(_, entry) => mask::replace_extension(&mut self.extensions, &wanted.extensions, entry),
            Path::Field("labels") => self.labels.clone_from(&wanted.labels),
            Path::Field("spec") => self.spec.clone_from(&wanted.spec),
            Path::Field("extensions") => self.extensions.clone_from(&wanted.extensions),
            Path::Field("image") => self.image.clone_from(&wanted.image),
            // As in containerd, whose masks name it as Go does.
            Path::Field("snapshotkey") => self.snapshot_key.clone_from(&wanted.snapshot_key),
            Path::Field(field) => return Err(mask::immutable("container", field)),
        }
        Ok(())
    }

    /// What cannot change must be as it was, so that it could become changeable without surprise.
    fn replace_all(&mut self, wanted: &Container) -> Result<()> {
        if self.snapshotter != wanted.snapshotter {
            return Err(mask::immutable("container", "snapshotter"));
        }
        if self.runtime != wanted.runtime {
            return Err(mask::immutable("container", "runtime.name"));
        }
        let fields = ["labels", "spec", "extensions", "image", "snapshotkey"];
        fields.into_iter().try_for_each(|field| self.replace(wanted, Path::Field(field)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost_types::Any;

    use super::*;
    use crate::db::Store;
    use crate::filter::Filters;
    use crate::name::Namespace;

    fn info(id: &str) -> Info {
        let record = Container {
            runtime: "io.containerd.runc.v2".to_owned(),
            spec: Some(Any { type_url: "t".to_owned(), value: b"{}".to_vec() }),
            ..Container::default()
        };
        Info { name: id.to_owned(), record }
    }

    #[test]
    fn records_come_and_go() {
        let directory = tempfile::tempdir().unwrap();
        let containers = Containers::new(Arc::new(Store::open(directory.path()).unwrap()));
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

    #[test]
    fn what_is_missing_or_fixed_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let containers = Containers::new(Arc::new(Store::open(directory.path()).unwrap()));
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
