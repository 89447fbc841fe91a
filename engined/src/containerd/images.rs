//! The supervisor's names of content: images.

use std::collections::HashMap;

use prost_types::FieldMask;
use proto_containerd::services::events::SubscribeRequest;
use proto_containerd::services::images as rpc;
use proto_containerd::types;
use strata_fault::{Fault, GrpcCode};
use strata_registry::Descriptor;

use super::{Client, answer, answer_if_found};

/// A name and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageRecord {
    pub(crate) name: String,
    /// An index or a manifest.
    pub(crate) target: Descriptor,
}

/// A descriptor whose digest is of no known form makes no record: nothing could be done with it.
fn record(image: rpc::Image) -> Option<ImageRecord> {
    let target = image.target?;
    let target = Descriptor {
        digest: target.digest.parse().ok()?,
        size: u64::try_from(target.size).ok()?,
        media_type: target.media_type,
        annotations: target.annotations.into_iter().collect(),
        platform: None,
    };
    Some(ImageRecord { name: image.name, target })
}

pub(super) fn wire(descriptor: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        annotations: descriptor.annotations.clone().into_iter().collect(),
    }
}

impl Client {
    /// The image of that name; `None` when there is none.
    pub(crate) async fn image(&self, name: &str) -> Result<Option<ImageRecord>, Fault> {
        let request = rpc::GetImageRequest { name: name.to_owned() };
        let response = answer_if_found("validate", self.images().get(request).await)?;
        Ok(response.and_then(|response| response.image).and_then(record))
    }

    /// All images of our namespace.
    pub(crate) async fn list_images(&self) -> Result<Vec<ImageRecord>, Fault> {
        let response = answer("list", self.images().list(rpc::ListImagesRequest::default()).await)?;
        Ok(response.images.into_iter().filter_map(record).collect())
    }

    /// Makes `name` stand for `target`, whatever it stood for before.
    pub(crate) async fn put_image(&self, name: &str, target: &Descriptor) -> Result<(), Fault> {
        let image = rpc::Image {
            name: name.to_owned(),
            target: Some(wire(target)),
            labels: HashMap::new(),
            ..Default::default()
        };
        let create = rpc::CreateImageRequest { image: Some(image.clone()), ..Default::default() };
        match answer("pull", self.images().create(create).await) {
            Err(fault) if fault.grpc == GrpcCode::AlreadyExists => {}
            outcome => return outcome.map(drop),
        }
        let update_mask = Some(FieldMask { paths: vec!["target".to_owned()] });
        let update = rpc::UpdateImageRequest { image: Some(image), update_mask, ..Default::default() };
        answer("pull", self.images().update(update).await).map(drop)
    }

    /// Takes a name away; one that is gone is no error. What it stood for goes when nothing else needs it.
    pub(crate) async fn delete_image(&self, name: &str) -> Result<(), Fault> {
        let request = rpc::DeleteImageRequest { name: name.to_owned(), ..Default::default() };
        answer_if_found("remove", self.images().delete(request).await).map(drop)
    }

    /// Signals that images have changed, from now on.
    pub(crate) async fn subscribe_images(&self) -> Result<ImageChanges, Fault> {
        let filters = vec!["topic~=\"^/images/\"".to_owned()];
        answer("watch", self.events().subscribe(SubscribeRequest { filters }).await).map(ImageChanges)
    }
}

/// Changes of images, whoever made them.
pub(crate) struct ImageChanges(tonic::Streaming<types::Envelope>);

impl ImageChanges {
    /// Returns at the next change; `false` when the supervisor ended the stream.
    pub(crate) async fn next(&mut self) -> Result<bool, Fault> {
        let message = self.0.message().await.map(tonic::Response::new);
        Ok(answer("watch", message)?.is_some())
    }
}
