//! The containers service.

use std::sync::Arc;

use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use proto_containerd::events;
use proto_containerd::services::containers as wire;
use proto_containerd::services::containers::containers_server::Containers;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use super::Api;
use super::convert::{labels, mask, required, wire_labels};
use super::scope::{OrStatus, Scope};
use crate::container::Info;
use crate::daemon::Daemon;
use crate::db::record::Container as Record;
use crate::filter::Filters;

const STEP: &str = "take-over";

#[tonic::async_trait]
impl Containers for Api {
    async fn get(
        &self,
        request: Request<wire::GetContainerRequest>,
    ) -> Result<Response<wire::GetContainerResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let info = self.containers.get(&scope.namespace, &request.get_ref().id).or_status(STEP)?;
        Ok(Response::new(wire::GetContainerResponse { container: Some(to_wire(info)) }))
    }

    async fn list(
        &self,
        request: Request<wire::ListContainersRequest>,
    ) -> Result<Response<wire::ListContainersResponse>, Status> {
        let containers = list(self, &request).await?.into_iter().map(to_wire).collect();
        Ok(Response::new(wire::ListContainersResponse { containers }))
    }

    type ListStreamStream = BoxStream<'static, Result<wire::ListContainerMessage, Status>>;

    async fn list_stream(
        &self,
        request: Request<wire::ListContainersRequest>,
    ) -> Result<Response<Self::ListStreamStream>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let filters = Arc::new(Filters::parse(&request.get_ref().filters).or_status(STEP)?);
        let daemon = self.0.clone();
        let pages = stream::try_unfold(Some(String::new()), move |after| {
            let (daemon, namespace, filters) = (daemon.clone(), scope.namespace.clone(), filters.clone());
            async move {
                let Some(after) = after else { return Ok(None) };
                let page = move || daemon.containers.page(&namespace, &filters, &after);
                let page = crate::diff::run_blocking(page).await.or_status(STEP)?;
                Ok::<_, Status>(Some((page.found, page.last)))
            }
        });
        let message = |info| Ok(wire::ListContainerMessage { container: Some(to_wire(info)) });
        Ok(Response::new(pages.map_ok(move |found| stream::iter(found.into_iter().map(message))).try_flatten().boxed()))
    }

    async fn create(
        &self,
        request: Request<wire::CreateContainerRequest>,
    ) -> Result<Response<wire::CreateContainerResponse>, Status> {
        let scope = Scope::making(&request, self).or_status(STEP)?;
        let container = required(request.into_inner().container, "container").or_status(STEP)?;
        let span = crate::span!("take-over", "supervisor", container.id);
        async {
            let info = from_wire(container);
            let event = events::ContainerCreate {
                id: info.name.clone(),
                image: info.record.image.clone(),
                runtime: Some(events::container_create::Runtime {
                    name: info.record.runtime.clone(),
                    options: info.record.runtime_options.clone(),
                }),
            };
            let info = self.containers.create(&scope.namespace, info).or_status(STEP)?;
            self.events.publish(&scope.namespace, "/containers/create", &event);
            Ok(Response::new(wire::CreateContainerResponse { container: Some(to_wire(info)) }))
        }
        .instrument(span)
        .await
    }

    async fn update(
        &self,
        request: Request<wire::UpdateContainerRequest>,
    ) -> Result<Response<wire::UpdateContainerResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let request = request.into_inner();
        let container = required(request.container, "container").or_status(STEP)?;
        let paths = mask(request.update_mask);
        let info = self.containers.update(&scope.namespace, from_wire(container), &paths).or_status(STEP)?;
        let event = events::ContainerUpdate {
            id: info.name.clone(),
            image: info.record.image.clone(),
            labels: wire_labels(info.record.labels.clone()),
            snapshot_key: info.record.snapshot_key.clone(),
        };
        self.events.publish(&scope.namespace, "/containers/update", &event);
        Ok(Response::new(wire::UpdateContainerResponse { container: Some(to_wire(info)) }))
    }

    async fn delete(&self, request: Request<wire::DeleteContainerRequest>) -> Result<Response<()>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let id = request.into_inner().id;
        self.tasks.check_unused(&scope.namespace, &id).or_status(STEP)?;
        self.containers.delete(&scope.namespace, &id).or_status(STEP)?;
        self.events.publish(&scope.namespace, "/containers/delete", &events::ContainerDelete { id });
        self.gc.schedule();
        Ok(Response::new(()))
    }
}

async fn list(daemon: &Arc<Daemon>, request: &Request<wire::ListContainersRequest>) -> Result<Vec<Info>, Status> {
    let scope = Scope::of(request).or_status(STEP)?;
    let filters = Filters::parse(&request.get_ref().filters).or_status(STEP)?;
    let daemon = daemon.clone();
    crate::diff::run_blocking(move || daemon.containers.list(&scope.namespace, &filters)).await.or_status(STEP)
}

fn from_wire(wire: wire::Container) -> Info {
    let runtime = wire.runtime.unwrap_or_default();
    let record = Record {
        labels: labels(wire.labels),
        image: wire.image,
        runtime: runtime.name,
        runtime_options: runtime.options,
        spec: wire.spec,
        snapshotter: wire.snapshotter,
        snapshot_key: wire.snapshot_key,
        created_at: wire.created_at,
        updated_at: wire.updated_at,
        extensions: wire.extensions.into_iter().collect(),
        sandbox: wire.sandbox,
    };
    Info { name: wire.id, record }
}

fn to_wire(info: Info) -> wire::Container {
    let record = info.record;
    wire::Container {
        id: info.name,
        labels: wire_labels(record.labels),
        image: record.image,
        runtime: Some(wire::container::Runtime { name: record.runtime, options: record.runtime_options }),
        spec: record.spec,
        snapshotter: record.snapshotter,
        snapshot_key: record.snapshot_key,
        created_at: record.created_at,
        updated_at: record.updated_at,
        extensions: record.extensions.into_iter().collect(),
        sandbox: record.sandbox,
    }
}
