//! Images: names for content. An image that was made survives a power cut.

use std::borrow::Cow;
use std::sync::Arc;

use crate::clock;
use crate::db::record::Image;
use crate::db::{Access, Durability, Store, Table, key, prefix, tail};
use crate::error::{Error, Result};
use crate::filter::{Fields, Filters, label, present};
use crate::mask::{self, Path};
use crate::name::{Digest, Namespace, check_labels, check_name};

/// An image under its name.
pub(crate) struct Info {
    pub(crate) name: String,
    pub(crate) record: Image,
}

impl Fields for Info {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        match path.first()?.as_str() {
            "name" => present(&self.name),
            "target" => match path.get(1)?.as_str() {
                "digest" => present(&self.record.digest),
                "mediatype" => present(&self.record.media_type),
                _ => None,
            },
            "labels" => label(&self.record.labels, &path[1..]),
            "annotations" => label(&self.record.annotations, &path[1..]),
            _ => None,
        }
    }
}

/// The images of all namespaces.
#[derive(Clone)]
pub(crate) struct Images(pub(crate) Arc<Store>);

impl Images {
    pub(crate) fn get(&self, namespace: &Namespace, name: &str) -> Result<Info> {
        let record = self.0.read()?.require(&key(&[namespace.as_str(), name]), name)?;
        Ok(Info { name: name.to_owned(), record })
    }

    pub(crate) fn list(&self, namespace: &Namespace, filters: &Filters) -> Result<Vec<Info>> {
        let (reader, mut found) = (self.0.read()?, Vec::new());
        if let Some(names) = filters.pinned("name") {
            for name in names {
                let record = reader.get(&key(&[namespace.as_str(), name]))?;
                found.extend(record.map(|record| Info { name: name.to_owned(), record }));
            }
            found.retain(|info| filters.matches(info));
            return Ok(found);
        }
        reader.each(&prefix(&[namespace.as_str()]), |entry, record: Image| {
            let info = Info { name: tail(entry, 1), record };
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
        let entry = key(&[namespace.as_str(), &info.name]);
        self.0.write(Durability::Synced, |writer| {
            if writer.bytes(Table::Images, &entry)?.is_some() {
                return Err(Error::exists("image", &info.name));
            }
            writer.put(&entry, &info.record)
        })?;
        Ok(info)
    }

    /// Replaces the fields that `paths` of a field mask name; all where there are none.
    pub(crate) fn update(&self, namespace: &Namespace, wanted: Info, paths: &[String]) -> Result<Info> {
        check_name("image name", &wanted.name)?;
        let entry = key(&[namespace.as_str(), &wanted.name]);
        self.0.write(Durability::Synced, |writer| {
            let mut record: Image = writer.require(&entry, &wanted.name)?;
            let created_at = record.created_at;
            if paths.is_empty() {
                record = wanted.record.clone();
            }
            for path in mask::paths(paths, &["labels", "annotations"]) {
                replace(&mut record, &wanted.record, path)?;
            }
            record.created_at = created_at;
            record.updated_at = Some(clock::now());
            let info = Info { name: wanted.name.clone(), record };
            check(&info)?;
            writer.put(&entry, &info.record)?;
            Ok(info)
        })
    }

    /// Forgets a name; with `expected`, only if it still means that digest.
    pub(crate) fn delete(&self, namespace: &Namespace, name: &str, expected: Option<&str>) -> Result<()> {
        let entry = key(&[namespace.as_str(), name]);
        self.0.write(Durability::Synced, |writer| {
            let record: Image = writer.require(&entry, name)?;
            if expected.is_some_and(|digest| digest != record.digest) {
                return Err(Error::not_found("image with that target", name));
            }
            writer.remove(Table::Images, &entry)
        })
    }
}

fn check(info: &Info) -> Result<()> {
    check_name("image name", &info.name)?;
    check_labels(&info.record.labels)?;
    Digest::parse(&info.record.digest)?;
    let invalid = |why: &str| Err(Error::invalid(format!("target of image {:?}", info.name), why));
    if info.record.media_type.is_empty() {
        return invalid("it has no media type");
    }
    if info.record.size <= 0 {
        return invalid("its size must be more than zero");
    }
    Ok(())
}

fn replace(record: &mut Image, wanted: &Image, path: Path<'_>) -> Result<()> {
    match path {
        Path::Entry("labels", entry) => mask::replace_entry(&mut record.labels, &wanted.labels, entry),
        Path::Entry(_, entry) => mask::replace_entry(&mut record.annotations, &wanted.annotations, entry),
        Path::Field("labels") => record.labels.clone_from(&wanted.labels),
        Path::Field("annotations") => record.annotations.clone_from(&wanted.annotations),
        Path::Field("target") => {
            record.media_type.clone_from(&wanted.media_type);
            record.digest.clone_from(&wanted.digest);
            record.size = wanted.size;
            record.annotations.clone_from(&wanted.annotations);
        }
        Path::Field(field) => return Err(mask::immutable("image", field)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, digit: char) -> Info {
        let record = Image {
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            digest: format!("sha256:{}", String::from(digit).repeat(64)),
            size: 7,
            ..Image::default()
        };
        Info { name: name.to_owned(), record }
    }

    #[test]
    fn names_come_move_and_go() {
        let directory = tempfile::tempdir().unwrap();
        let images = Images(Arc::new(Store::open(directory.path()).unwrap()));
        let ns = Namespace::parse("ns").unwrap();
        images.create(&ns, info("docker.io/library/busybox:latest", 'a')).unwrap();
        let moved = info("docker.io/library/busybox:latest", 'b');
        let moved = images.update(&ns, moved, &["target".to_owned()]).unwrap();
        assert!(moved.record.digest.ends_with('b') && moved.record.created_at.is_some());
        let old = info("x", 'a').record.digest;
        assert!(images.delete(&ns, &moved.name, Some(&old)).unwrap_err().is_not_found());
        images.delete(&ns, &moved.name, Some(&moved.record.digest)).unwrap();
        assert!(images.list(&ns, &Filters::default()).unwrap().is_empty());
    }

    #[test]
    fn targets_are_checked() {
        let directory = tempfile::tempdir().unwrap();
        let images = Images(Arc::new(Store::open(directory.path()).unwrap()));
        let ns = Namespace::parse("ns").unwrap();
        for spoil in [
            |record: &mut Image| record.digest = "sha256:../../x".to_owned(),
            |record: &mut Image| record.size = 0,
            |record: &mut Image| record.media_type.clear(),
        ] {
            let mut bad = info("x", 'a');
            spoil(&mut bad.record);
            assert!(matches!(images.create(&ns, bad), Err(Error::Invalid { .. })));
        }
    }
}
