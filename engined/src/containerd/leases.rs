//! Leases: what is made under one is not collected as garbage before its end.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use prost_types::Timestamp;
use proto_containerd::services::leases as rpc;
use strata_fault::Fault;

use super::{Client, answer, answer_if_found};

/// Label with the time after which a lease holds nothing, should its owner never come to delete it.
const EXPIRE: &str = "containerd.io/gc.expire";

/// Something that a lease holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    /// A blob, by digest.
    Blob(String),
    /// A snapshot.
    Snapshot { snapshotter: String, key: String },
}

impl Resource {
    fn wire(self) -> rpc::Resource {
        match self {
            Resource::Blob(id) => rpc::Resource { id, r#type: "content".to_owned() },
            Resource::Snapshot { snapshotter, key } => {
                rpc::Resource { id: key, r#type: format!("snapshots/{snapshotter}") }
            }
        }
    }
}

impl Client {
    /// Makes a lease that ends by itself after `life`.
    pub(crate) async fn create_lease(&self, id: &str, life: Duration) -> Result<(), Fault> {
        let expire = Timestamp::from(SystemTime::now() + life).to_string();
        let labels = HashMap::from([(EXPIRE.to_owned(), expire)]);
        answer("pull", self.leases().create(rpc::CreateRequest { id: id.to_owned(), labels }).await).map(drop)
    }

    /// Ends a lease; one that is gone is no error.
    pub(crate) async fn delete_lease(&self, id: &str) -> Result<(), Fault> {
        let request = rpc::DeleteRequest { id: id.to_owned(), sync: false };
        answer_if_found("pull", self.leases().delete(request).await).map(drop)
    }

    /// Lets a lease hold something that exists.
    pub(crate) async fn hold(&self, lease: &str, resource: Resource) -> Result<(), Fault> {
        let request = rpc::AddResourceRequest { id: lease.to_owned(), resource: Some(resource.wire()) };
        answer("pull", self.leases().add_resource(request).await).map(drop)
    }

    /// The ids of all leases of our namespace that begin with `prefix`.
    pub(crate) async fn list_leases(&self, prefix: &str) -> Result<Vec<String>, Fault> {
        let response = answer("recover", self.leases().list(rpc::ListRequest::default()).await)?;
        let ids = response.leases.into_iter().map(|lease| lease.id);
        Ok(ids.filter(|id| id.starts_with(prefix)).collect())
    }
}
