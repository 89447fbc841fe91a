//! Images: names for content. An image that was made survives a power cut.

use std::borrow::Cow;

use prost_types::Timestamp;

use crate::catalog::{self, Catalog, Entry};
use crate::db::Durability;
use crate::db::record::{Image, Labels};
use crate::error::{Error, Result};
use crate::filter::{label, present};
use crate::mask::{self, Path};
use crate::name::{Digest, Namespace, check_labels, check_name};

/// The images of all namespaces, by name.
pub(crate) type Images = Catalog<Image>;

/// An image under its name.
pub(crate) type Info = catalog::Info<Image>;

impl Entry for Image {
    const NAME: &'static str = "name";
    const MAPS: [&'static str; 2] = ["labels", "annotations"];
    const DURABILITY: Durability = Durability::Synced;

    fn labels(&self) -> &Labels {
        &self.labels
    }

    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        match path.first()?.as_str() {
            "target" => match path.get(1)?.as_str() {
                "digest" => present(&self.digest),
                "mediatype" => present(&self.media_type),
                _ => None,
            },
            "annotations" => label(&self.annotations, &path[1..]),
            _ => None,
        }
    }

    fn times(&mut self) -> (&mut Option<Timestamp>, &mut Option<Timestamp>) {
        (&mut self.created_at, &mut self.updated_at)
    }

    fn check(&self, name: &str) -> Result<()> {
        check_name("image name", name)?;
        check_labels(&self.labels)?;
        Digest::parse(&self.digest)?;
        let invalid = |why: &str| Err(Error::invalid(format!("target of image {name:?}"), why));
        if self.media_type.is_empty() {
            return invalid("it has no media type");
        }
        if self.size <= 0 {
            return invalid("its size must be more than zero");
        }
        Ok(())
    }

    fn replace(&mut self, wanted: &Image, path: Path<'_>) -> Result<()> {
        match path {
            Path::Entry("labels", entry) => mask::replace_entry(&mut self.labels, &wanted.labels, entry),
            Path::Entry(_, entry) => mask::replace_entry(&mut self.annotations, &wanted.annotations, entry),
            Path::Field("labels") => self.labels.clone_from(&wanted.labels),
            Path::Field("annotations") => self.annotations.clone_from(&wanted.annotations),
            Path::Field("target") => {
                self.media_type.clone_from(&wanted.media_type);
                self.digest.clone_from(&wanted.digest);
                self.size = wanted.size;
                self.annotations.clone_from(&wanted.annotations);
            }
            Path::Field(field) => return Err(mask::immutable("image", field)),
        }
        Ok(())
    }

    fn replace_all(&mut self, wanted: &Image) -> Result<()> {
        ["labels", "target"].into_iter().try_for_each(|field| self.replace(wanted, Path::Field(field)))
    }
}

impl Images {
    /// Forgets a name that still means that digest.
    pub(crate) fn delete_meaning(&self, namespace: &Namespace, name: &str, digest: &str) -> Result<()> {
        self.delete_if(namespace, name, |record| match record.digest == digest {
            true => Ok(()),
            false => Err(Error::not_found("image with that target", name)),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::db::Store;
    use crate::filter::Filters;

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
        let images = Images::new(Arc::new(Store::open(directory.path()).unwrap()));
        let ns = Namespace::parse("ns").unwrap();
        images.create(&ns, info("docker.io/library/busybox:latest", 'a')).unwrap();
        let moved = info("docker.io/library/busybox:latest", 'b');
        let moved = images.update(&ns, moved, &["target".to_owned()]).unwrap();
        assert!(moved.record.digest.ends_with('b') && moved.record.created_at.is_some());
        let old = info("x", 'a').record.digest;
        assert!(images.delete_meaning(&ns, &moved.name, &old).unwrap_err().is_not_found());
        images.delete_meaning(&ns, &moved.name, &moved.record.digest).unwrap();
        assert!(images.list(&ns, &Filters::default()).unwrap().is_empty());
    }

    #[test]
    fn targets_are_checked() {
        let directory = tempfile::tempdir().unwrap();
        let images = Images::new(Arc::new(Store::open(directory.path()).unwrap()));
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
