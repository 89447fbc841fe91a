//! The store of sandboxes.

use proto_containerd::services::sandbox as wire;
use proto_containerd::services::sandbox::store_server::Store;
use proto_containerd::types;
use tonic::{Request, Response, Status};

use super::Api;
use super::convert::{labels, required, wire_labels};
use super::scope::{OrStatus, Scope};
use crate::db::record::Sandbox as Record;
use crate::filter::Filters;
use crate::sandbox::Info;

const STEP: &str = "take-over";

#[tonic::async_trait]
impl Store for Api {
    async fn create(
        &self,
        request: Request<wire::StoreCreateRequest>,
    ) -> Result<Response<wire::StoreCreateResponse>, Status> {
        let scope = Scope::making(&request, self).or_status(STEP)?;
        let sandbox = required(request.into_inner().sandbox, "sandbox").or_status(STEP)?;
        let info = self.sandboxes.create(&scope.namespace, from_wire(sandbox)).or_status(STEP)?;
        Ok(Response::new(wire::StoreCreateResponse { sandbox: Some(to_wire(info)) }))
    }

    async fn update(
        &self,
        request: Request<wire::StoreUpdateRequest>,
    ) -> Result<Response<wire::StoreUpdateResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let request = request.into_inner();
        let sandbox = from_wire(required(request.sandbox, "sandbox").or_status(STEP)?);
        let info = self.sandboxes.update(&scope.namespace, sandbox, &request.fields).or_status(STEP)?;
        Ok(Response::new(wire::StoreUpdateResponse { sandbox: Some(to_wire(info)) }))
    }

    async fn delete(
        &self,
        request: Request<wire::StoreDeleteRequest>,
    ) -> Result<Response<wire::StoreDeleteResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        self.sandboxes.delete(&scope.namespace, &request.get_ref().sandbox_id).or_status(STEP)?;
        Ok(Response::new(wire::StoreDeleteResponse {}))
    }

    async fn list(
        &self,
        request: Request<wire::StoreListRequest>,
    ) -> Result<Response<wire::StoreListResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let filters = Filters::parse(&request.get_ref().filters).or_status(STEP)?;
        let found = self.sandboxes.list(&scope.namespace, &filters).or_status(STEP)?;
        Ok(Response::new(wire::StoreListResponse { list: found.into_iter().map(to_wire).collect() }))
    }

    async fn get(&self, request: Request<wire::StoreGetRequest>) -> Result<Response<wire::StoreGetResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let info = self.sandboxes.get(&scope.namespace, &request.get_ref().sandbox_id).or_status(STEP)?;
        Ok(Response::new(wire::StoreGetResponse { sandbox: Some(to_wire(info)) }))
    }
}

fn from_wire(wire: types::Sandbox) -> Info {
    let runtime = wire.runtime.unwrap_or_default();
    let record = Record {
        labels: labels(wire.labels),
        runtime: runtime.name,
        runtime_options: runtime.options,
        spec: wire.spec,
        extensions: wire.extensions.into_iter().collect(),
        created_at: wire.created_at,
        updated_at: wire.updated_at,
        sandboxer: wire.sandboxer,
    };
    Info { name: wire.sandbox_id, record }
}

fn to_wire(info: Info) -> types::Sandbox {
    let record = info.record;
    types::Sandbox {
        sandbox_id: info.name,
        runtime: Some(types::sandbox::Runtime { name: record.runtime, options: record.runtime_options }),
        spec: record.spec,
        labels: wire_labels(record.labels),
        created_at: record.created_at,
        updated_at: record.updated_at,
        extensions: record.extensions.into_iter().collect(),
        sandboxer: record.sandboxer,
    }
}
