//! The images service.

use proto_containerd::services::images as wire;
use proto_containerd::services::images::images_server::Images;
use proto_containerd::types::Descriptor;
use tonic::{Request, Response, Status};

use super::Api;
use super::convert::{labels, mask, required, wire_labels};
use super::scope::{OrStatus, Scope};
use crate::db::record::Image as Record;
use crate::diff::run_blocking;
use crate::filter::Filters;
use crate::image::Info;

const STEP: &str = "pull";

#[tonic::async_trait]
impl Images for Api {
    async fn get(&self, request: Request<wire::GetImageRequest>) -> Result<Response<wire::GetImageResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let info = self.images.get(&scope.namespace, &request.get_ref().name).or_status(STEP)?;
        Ok(Response::new(wire::GetImageResponse { image: Some(to_wire(info)) }))
    }

    async fn list(
        &self,
        request: Request<wire::ListImagesRequest>,
    ) -> Result<Response<wire::ListImagesResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let filters = Filters::parse(&request.get_ref().filters).or_status(STEP)?;
        let daemon = self.clone();
        let found = run_blocking(move || daemon.images.list(&scope.namespace, &filters)).await.or_status(STEP)?;
        Ok(Response::new(wire::ListImagesResponse { images: found.into_iter().map(to_wire).collect() }))
    }

    async fn create(
        &self,
        request: Request<wire::CreateImageRequest>,
    ) -> Result<Response<wire::CreateImageResponse>, Status> {
        let scope = Scope::making(&request, self).or_status(STEP)?;
        let image = required(request.into_inner().image, "image").or_status(STEP)?;
        let (daemon, namespace) = (self.clone(), scope.namespace.clone());
        // Waits for the disk: what an image names must be there after a power cut.
        let made = run_blocking(move || {
            daemon.content.sync_names()?;
            daemon.images.create(&namespace, from_wire(image))
        });
        let info = made.await.or_status(STEP)?;
        let event = wire::ImageCreate { name: info.name.clone(), labels: wire_labels(info.record.labels.clone()) };
        self.events.publish(&scope.namespace, "/images/create", &event);
        Ok(Response::new(wire::CreateImageResponse { image: Some(to_wire(info)) }))
    }

    async fn update(
        &self,
        request: Request<wire::UpdateImageRequest>,
    ) -> Result<Response<wire::UpdateImageResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let request = request.into_inner();
        let image = from_wire(required(request.image, "image").or_status(STEP)?);
        let paths = mask(request.update_mask);
        let (daemon, namespace) = (self.clone(), scope.namespace.clone());
        let updated = run_blocking(move || {
            daemon.content.sync_names()?;
            daemon.images.update(&namespace, image, &paths)
        });
        let info = updated.await.or_status(STEP)?;
        let event = wire::ImageUpdate { name: info.name.clone(), labels: wire_labels(info.record.labels.clone()) };
        self.events.publish(&scope.namespace, "/images/update", &event);
        Ok(Response::new(wire::UpdateImageResponse { image: Some(to_wire(info)) }))
    }

    async fn delete(&self, request: Request<wire::DeleteImageRequest>) -> Result<Response<()>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let request = request.into_inner();
        match &request.target {
            Some(target) => self.images.delete_meaning(&scope.namespace, &request.name, &target.digest),
            None => self.images.delete(&scope.namespace, &request.name),
        }
        .or_status(STEP)?;
        self.events.publish(&scope.namespace, "/images/delete", &wire::ImageDelete { name: request.name });
        if request.sync {
            self.gc.run().await.or_status(STEP)?;
        } else {
            self.gc.schedule();
        }
        Ok(Response::new(()))
    }
}

fn from_wire(wire: wire::Image) -> Info {
    let target = wire.target.unwrap_or_default();
    let record = Record {
        labels: labels(wire.labels),
        media_type: target.media_type,
        digest: target.digest,
        size: target.size,
        annotations: labels(target.annotations),
        created_at: wire.created_at,
        updated_at: wire.updated_at,
    };
    Info { name: wire.name, record }
}

fn to_wire(info: Info) -> wire::Image {
    let record = info.record;
    wire::Image {
        name: info.name,
        labels: wire_labels(record.labels),
        target: Some(Descriptor {
            media_type: record.media_type,
            digest: record.digest,
            size: record.size,
            annotations: wire_labels(record.annotations),
        }),
        created_at: record.created_at,
        updated_at: record.updated_at,
    }
}
