//! The leases service.

use proto_containerd::services::leases as wire;
use proto_containerd::services::leases::leases_server::Leases;
use tonic::{Request, Response, Status};

use super::Api;
use super::convert::{labels, required, wire_labels};
use super::scope::{OrStatus, Scope};
use crate::filter::Filters;
use crate::lease::{self, Info, Resource};

const STEP: &str = "take-over";

#[tonic::async_trait]
impl Leases for Api {
    async fn create(&self, request: Request<wire::CreateRequest>) -> Result<Response<wire::CreateResponse>, Status> {
        let scope = Scope::making(&request, self).or_status(STEP)?;
        let request = request.into_inner();
        let info = lease::create(&self.store, &scope.namespace, &request.id, labels(request.labels)).or_status(STEP)?;
        Ok(Response::new(wire::CreateResponse { lease: Some(to_wire(info)) }))
    }

    async fn delete(&self, request: Request<wire::DeleteRequest>) -> Result<Response<()>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let request = request.into_inner();
        lease::delete(&self.store, &scope.namespace, &request.id).or_status(STEP)?;
        if request.sync {
            self.gc.run().await.or_status(STEP)?;
        } else {
            self.gc.schedule();
        }
        Ok(Response::new(()))
    }

    async fn list(&self, request: Request<wire::ListRequest>) -> Result<Response<wire::ListResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let filters = Filters::parse(&request.get_ref().filters).or_status(STEP)?;
        let leases = lease::list(&self.store, &scope.namespace, &filters).or_status(STEP)?;
        Ok(Response::new(wire::ListResponse { leases: leases.into_iter().map(to_wire).collect() }))
    }

    async fn add_resource(&self, request: Request<wire::AddResourceRequest>) -> Result<Response<()>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let request = request.into_inner();
        let resource = resource(required(request.resource, "resource").or_status(STEP)?);
        lease::add_resource(&self.store, &scope.namespace, &request.id, &resource).or_status(STEP)?;
        Ok(Response::new(()))
    }

    async fn delete_resource(&self, request: Request<wire::DeleteResourceRequest>) -> Result<Response<()>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let request = request.into_inner();
        let resource = resource(required(request.resource, "resource").or_status(STEP)?);
        lease::delete_resource(&self.store, &scope.namespace, &request.id, &resource).or_status(STEP)?;
        self.gc.schedule();
        Ok(Response::new(()))
    }

    async fn list_resources(
        &self,
        request: Request<wire::ListResourcesRequest>,
    ) -> Result<Response<wire::ListResourcesResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let found = lease::resources(&self.store, &scope.namespace, &request.get_ref().id).or_status(STEP)?;
        let resources = found.into_iter().map(|found| wire::Resource { id: found.id, r#type: found.kind }).collect();
        Ok(Response::new(wire::ListResourcesResponse { resources }))
    }
}

fn resource(wire: wire::Resource) -> Resource {
    Resource { kind: wire.r#type, id: wire.id }
}

fn to_wire(info: Info) -> wire::Lease {
    wire::Lease { id: info.id, created_at: info.record.created_at, labels: wire_labels(info.record.labels) }
}
