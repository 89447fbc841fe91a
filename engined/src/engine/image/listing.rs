//! The list of images: one entry per image, with all its names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use prost_types::Timestamp;
use strata_fault::Fault;
use strata_registry::{Digest, Reference};

use super::{Image, Images};

/// An image in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) id: String,
    /// With a tag, as people write them.
    pub(crate) references: Vec<String>,
    /// `repository@digest`, as people write them.
    pub(crate) digests: Vec<String>,
    pub(crate) created: Option<SystemTime>,
    /// Bytes of the unpacked layers.
    pub(crate) size: u64,
    pub(crate) labels: BTreeMap<String, String>,
}

impl Images {
    /// All images that are whole, newest first.
    ///
    /// # Errors
    /// The supervisor fails.
    pub(crate) async fn list(&self) -> Result<Vec<Summary>, Fault> {
        let mut summaries: Vec<Summary> = Vec::new();
        for group in by_id(self.load_all().await?) {
            let size = self.size(&group[0]).await?;
            summaries.push(summary(&group, size));
        }
        summaries.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.references.cmp(&b.references)));
        Ok(summaries)
    }

    /// One image as the list has it.
    ///
    /// # Errors
    /// The supervisor fails.
    pub(crate) async fn summary(&self, image: &Arc<Image>) -> Result<Summary, Fault> {
        let others = self.load_all().await?.into_iter().filter(|other| other.id == image.id);
        // Its name may have been taken away a moment ago.
        let names: Vec<_> = others.chain([Arc::clone(image)]).collect();
        Ok(summary(&names, self.size(image).await?))
    }

    /// Bytes of all unpacked layers. What a layer takes never changes, so it is asked for once.
    async fn size(&self, image: &Image) -> Result<u64, Fault> {
        let mut sum = 0;
        for chain_id in image.config.chain_ids() {
            sum += self.layer_size(&chain_id).await?;
        }
        Ok(sum)
    }

    async fn layer_size(&self, chain_id: &Digest) -> Result<u64, Fault> {
        if let Some(size) = self.memory.size(chain_id.as_str()) {
            return Ok(size);
        }
        // A layer that is not unpacked takes no space.
        let Some(size) = self.client.layer_size(&self.snapshotter, chain_id).await? else { return Ok(0) };
        self.memory.remember_size(chain_id.as_str(), size);
        Ok(size)
    }
}

/// Images that are one and the same, in the order of their ids.
fn by_id(images: Vec<Arc<Image>>) -> Vec<Vec<Arc<Image>>> {
    let mut groups: BTreeMap<String, Vec<Arc<Image>>> = BTreeMap::new();
    for image in images {
        groups.entry(image.id.clone()).or_default().push(image);
    }
    groups.into_values().collect()
}

/// `names` are of one image, and at least one.
fn summary(names: &[Arc<Image>], size: u64) -> Summary {
    let (mut references, mut digests) = (Vec::new(), Vec::new());
    for image in names {
        match image.reference.parse::<Reference>() {
            Ok(reference) => {
                references.extend(reference.tag().map(|_| image.familiar.clone()));
                digests.push(format!("{}@{}", reference.familiar_name(), image.digest));
            }
            Err(_) => references.push(image.reference.clone()),
        }
    }
    for list in [&mut references, &mut digests] {
        list.sort_unstable();
        list.dedup();
    }
    let Image { id, config, .. } = &*names[0];
    let created = config.created.as_deref().and_then(created);
    Summary { id: id.clone(), references, digests, created, size, labels: config.config.labels.clone() }
}

/// When the image was made; builders that want the same image each time write the year 1970 or 1, or nothing.
fn created(text: &str) -> Option<SystemTime> {
    SystemTime::try_from(text.parse::<Timestamp>().ok()?).ok()
}

#[cfg(test)]
mod unit {
    use bytes::Bytes;

    use super::*;
    use crate::engine::image::ImageConfig;

    fn image(reference: &str, id: &str) -> Arc<Image> {
        let config = ImageConfig { created: Some("2026-01-02T03:04:05.5Z".into()), ..Default::default() };
        Arc::new(Image {
            reference: reference.into(),
            familiar: super::super::catalog::familiar(reference),
            digest: "sha256:d".into(),
            id: id.into(),
            chain_id: String::new(),
            config,
            config_bytes: Bytes::new(),
        })
    }

    #[test]
    fn names_of_one_image_come_together() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let images = vec![
            image("docker.io/library/nginx:latest", "1"),
            image("h:5000/a:1", "2"),
            image("docker.io/library/nginx:1.25", "1"),
            image(&format!("docker.io/library/nginx@{digest}"), "1"),
        ];
        let groups = by_id(images);
        assert_eq!(groups.len(), 2);
        let summary = summary(&groups[0], 7);
        assert_eq!(summary.references, ["nginx:1.25", "nginx:latest"]);
        assert_eq!(summary.digests, ["nginx@sha256:d"]);
        assert_eq!(summary.size, 7);
        let at = summary.created.unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(at.as_millis(), 1_767_323_045_500);
    }

    #[test]
    fn times_that_are_none() {
        assert_eq!(created("yesterday"), None);
        assert!(created("1970-01-01T00:00:00Z").is_some());
        assert!(created("2026-01-02T03:04:05+02:00").is_some());
    }
}
