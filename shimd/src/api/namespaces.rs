//! The namespaces service.

use proto_containerd::events;
use proto_containerd::services::namespaces as wire;
use proto_containerd::services::namespaces::namespaces_server::Namespaces;
use tonic::{Request, Response, Status};

use super::Api;
use super::convert::{labels, mask, required, wire_labels};
use super::scope::OrStatus;
use crate::db::record::Labels;
use crate::error::Error;
use crate::filter::Filters;
use crate::name::Namespace;

const STEP: &str = "take-over";

#[tonic::async_trait]
impl Namespaces for Api {
    async fn get(
        &self,
        request: Request<wire::GetNamespaceRequest>,
    ) -> Result<Response<wire::GetNamespaceResponse>, Status> {
        let name = Namespace::parse(&request.get_ref().name).or_status(STEP)?;
        let labels = self.namespaces.labels(&name).or_status(STEP)?;
        Ok(Response::new(wire::GetNamespaceResponse { namespace: Some(to_wire(name.as_str(), labels)) }))
    }

    async fn list(
        &self,
        request: Request<wire::ListNamespacesRequest>,
    ) -> Result<Response<wire::ListNamespacesResponse>, Status> {
        let filters = Filters::parse(&[request.into_inner().filter]).or_status(STEP)?;
        let found = self.namespaces.list(&filters).or_status(STEP)?;
        let namespaces = found.into_iter().map(|info| to_wire(&info.name, info.labels)).collect();
        Ok(Response::new(wire::ListNamespacesResponse { namespaces }))
    }

    async fn create(
        &self,
        request: Request<wire::CreateNamespaceRequest>,
    ) -> Result<Response<wire::CreateNamespaceResponse>, Status> {
        let wanted = required(request.into_inner().namespace, "namespace").or_status(STEP)?;
        let name = Namespace::parse(&wanted.name).or_status(STEP)?;
        self.namespaces.create(&name, labels(wanted.labels.clone())).or_status(STEP)?;
        let event = events::NamespaceCreate { name: wanted.name.clone(), labels: wanted.labels.clone() };
        self.events.publish(&name, "/namespaces/create", &event);
        Ok(Response::new(wire::CreateNamespaceResponse { namespace: Some(wanted) }))
    }

    async fn update(
        &self,
        request: Request<wire::UpdateNamespaceRequest>,
    ) -> Result<Response<wire::UpdateNamespaceResponse>, Status> {
        let request = request.into_inner();
        let wanted = required(request.namespace, "namespace").or_status(STEP)?;
        let name = Namespace::parse(&wanted.name).or_status(STEP)?;
        let updated =
            self.namespaces.update(&name, &labels(wanted.labels), &mask(request.update_mask)).or_status(STEP)?;
        let namespace = to_wire(name.as_str(), updated);
        let event = events::NamespaceUpdate { name: namespace.name.clone(), labels: namespace.labels.clone() };
        self.events.publish(&name, "/namespaces/update", &event);
        Ok(Response::new(wire::UpdateNamespaceResponse { namespace: Some(namespace) }))
    }

    async fn delete(&self, request: Request<wire::DeleteNamespaceRequest>) -> Result<Response<()>, Status> {
        let name = &request.get_ref().name;
        // None can have such a name.
        let name = Namespace::parse(name).map_err(|_| Error::not_found("namespace", name)).or_status(STEP)?;
        self.namespaces.delete(&name).or_status(STEP)?;
        self.events.publish(&name, "/namespaces/delete", &events::NamespaceDelete { name: name.to_string() });
        Ok(Response::new(()))
    }
}

fn to_wire(name: &str, labels: Labels) -> wire::Namespace {
    wire::Namespace { name: name.to_owned(), labels: wire_labels(labels) }
}
