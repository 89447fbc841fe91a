//! Container records of the supervisor: which spec, which snapshot, which runtime.

use std::collections::HashMap;

use prost_types::Any;
use proto_containerd::json_type;
use proto_containerd::services::containers as rpc;
use proto_containerd::services::snapshots;
use proto_containerd::types::Mount;
use proto_shim::runc::Options;
use strata_fault::Fault;

use super::{Client, answer, answer_if_found};

/// Label that keeps a snapshot which no container record names yet from the supervisor's collection of garbage.
const GC_ROOT: &str = "containerd.io/gc.root";

/// What the supervisor is told of a container.
#[derive(Clone, Debug)]
pub(crate) struct NewContainer {
    pub(crate) id: String,
    pub(crate) image: String,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) snapshotter: String,
    pub(crate) runtime: Runtime,
    /// An OCI runtime spec as JSON.
    pub(crate) spec: Vec<u8>,
}

/// A runtime, and what it is told.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    /// As containerd names them.
    pub(crate) name: String,
    pub(crate) binary_name: String,
    pub(crate) root: String,
    pub(crate) systemd_cgroup: bool,
}

impl Runtime {
    fn to_wire(&self) -> rpc::container::Runtime {
        let options = Options {
            binary_name: self.binary_name.clone(),
            root: self.root.clone(),
            systemd_cgroup: self.systemd_cgroup,
            ..Default::default()
        };
        rpc::container::Runtime { name: self.name.clone(), options: Some(proto_shim::any(&options)) }
    }
}

impl Client {
    /// Records a container. Its snapshot has the same key as it.
    pub(crate) async fn create_container(&self, new: NewContainer) -> Result<(), Fault> {
        let container = rpc::Container {
            snapshot_key: new.id.clone(),
            id: new.id,
            labels: new.labels,
            image: new.image,
            runtime: Some(new.runtime.to_wire()),
            spec: Some(Any { type_url: json_type::SPEC.to_owned(), value: new.spec }),
            snapshotter: new.snapshotter,
            ..Default::default()
        };
        let request = rpc::CreateContainerRequest { container: Some(container) };
        answer("take-over", self.containers().create(request).await).map(drop)
    }

    /// Forgets a container; one that is gone is no error.
    pub(crate) async fn delete_container(&self, id: &str) -> Result<(), Fault> {
        let request = rpc::DeleteContainerRequest { id: id.to_owned() };
        answer_if_found("remove", self.containers().delete(request).await).map(drop)
    }

    /// The ids of all containers in our namespace that bear a label of that value.
    pub(crate) async fn list_containers(&self, label: &str, value: &str) -> Result<Vec<String>, Fault> {
        let filters = vec![format!("labels.{label:?}=={value:?}")];
        let response = answer("recover", self.containers().list(rpc::ListContainersRequest { filters }).await)?;
        Ok(response.containers.into_iter().map(|container| container.id).collect())
    }

    /// A writable layer on top of `parent`, and how it is mounted. It is a root for the collector of garbage until it is
    /// removed, so that preparing needs no lease and no order against [`Client::create_container`].
    pub(crate) async fn prepare_snapshot(
        &self,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Result<Vec<Mount>, Fault> {
        let request = snapshots::PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: as_root(labels),
        };
        Ok(answer("assemble", self.snapshots().prepare(request).await)?.mounts)
    }

    /// A read-only look at `parent`, and how it is mounted.
    pub(crate) async fn view_snapshot(
        &self,
        snapshotter: &str,
        key: &str,
        parent: &str,
        labels: HashMap<String, String>,
    ) -> Result<Vec<Mount>, Fault> {
        let request = snapshots::ViewSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: as_root(labels),
        };
        Ok(answer("configure", self.snapshots().view(request).await)?.mounts)
    }

    /// How a snapshot is mounted; `None` when there is none.
    pub(crate) async fn snapshot_mounts(&self, snapshotter: &str, key: &str) -> Result<Option<Vec<Mount>>, Fault> {
        let request = snapshots::MountsRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
        let response = answer_if_found("assemble", self.snapshots().mounts(request).await)?;
        Ok(response.map(|response| response.mounts))
    }

    /// Removes a snapshot; one that is gone is no error.
    pub(crate) async fn remove_snapshot(&self, snapshotter: &str, key: &str) -> Result<(), Fault> {
        let request = snapshots::RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
        answer_if_found("remove", self.snapshots().remove(request).await).map(drop)
    }

    /// The keys of all snapshots that bear a label of that value.
    pub(crate) async fn list_snapshots(
        &self,
        snapshotter: &str,
        label: &str,
        value: &str,
    ) -> Result<Vec<String>, Fault> {
        let request = snapshots::ListSnapshotsRequest {
            snapshotter: snapshotter.to_owned(),
            filters: vec![format!("labels.{label:?}=={value:?}")],
        };
        let mut stream = answer("recover", self.snapshots().list(request).await)?;
        let mut keys = Vec::new();
        while let Some(part) = answer("recover", stream.message().await.map(tonic::Response::new))? {
            keys.extend(part.info.into_iter().map(|info| info.name));
        }
        Ok(keys)
    }
}

/// The value is the time since which it is a root; the collector looks at the key alone.
fn as_root(mut labels: HashMap<String, String>) -> HashMap<String, String> {
    labels.insert(GC_ROOT.to_owned(), "1970-01-01T00:00:00Z".to_owned());
    labels
}
