//! Who the supervisor is, and that our namespace exists there.

use proto_containerd::services::namespaces::{CreateNamespaceRequest, Namespace};
use strata_fault::Fault;

use super::{Client, answer};

/// What the supervisor says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Version {
    pub(crate) version: String,
}

impl Client {
    /// What the supervisor says of itself.
    pub(crate) async fn supervisor_version(&self) -> Result<Version, Fault> {
        let response = answer("version", self.version().version(()).await)?;
        Ok(Version { version: response.version })
    }

    /// Makes our namespace there if need be.
    pub(crate) async fn ensure_namespace(&self, name: &str) -> Result<(), Fault> {
        let namespace = Namespace { name: name.to_owned(), ..Default::default() };
        match self.namespaces().create(CreateNamespaceRequest { namespace: Some(namespace) }).await {
            Err(status) if status.code() == tonic::Code::AlreadyExists => Ok(()),
            outcome => answer("recover", outcome).map(drop),
        }
    }
}
