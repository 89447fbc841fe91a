//! The supervisor's snapshots of image layers. A committed one is named by its chain id: the digest of the diff ids of
//! all layers up to it. (A container's snapshot is in `containers`.)

use std::collections::HashMap;

use proto_containerd::services::snapshots as rpc;
use proto_containerd::types::Mount;
use strata_fault::{Fault, GrpcCode};
use strata_registry::Digest;

use super::{Client, answer, answer_if_found};

const STEP: &str = "pull";
/// Label that tells a snapshotter which layer is being prepared.
const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

/// A layer that is being unpacked.
#[derive(Clone, Debug)]
pub(crate) struct NewLayer<'a> {
    pub(crate) snapshotter: &'a str,
    /// Of the snapshot while it is filled.
    pub(crate) key: &'a str,
    /// Chain id of the layers below.
    pub(crate) parent: Option<&'a Digest>,
    /// Its name when it is committed.
    pub(crate) chain_id: &'a Digest,
}

impl NewLayer<'_> {
    fn labels(&self) -> HashMap<String, String> {
        HashMap::from([(SNAPSHOT_REF.to_owned(), self.chain_id.to_string())])
    }
}

impl Client {
    /// Makes room for a layer, and says where; `None` when the snapshotter has the layer already.
    pub(crate) async fn prepare_layer(&self, layer: &NewLayer<'_>) -> Result<Option<Vec<Mount>>, Fault> {
        let request = rpc::PrepareSnapshotRequest {
            snapshotter: layer.snapshotter.to_owned(),
            key: layer.key.to_owned(),
            parent: layer.parent.map(Digest::to_string).unwrap_or_default(),
            labels: layer.labels(),
        };
        match answer(STEP, self.snapshots().prepare(request).await) {
            Err(fault) if fault.grpc == GrpcCode::AlreadyExists => Ok(None),
            outcome => outcome.map(|response| Some(response.mounts)),
        }
    }

    /// Makes the layer what it shall be; `false` when somebody else was quicker, and the prepared one is still there.
    pub(crate) async fn commit_layer(&self, layer: &NewLayer<'_>) -> Result<bool, Fault> {
        let request = rpc::CommitSnapshotRequest {
            snapshotter: layer.snapshotter.to_owned(),
            name: layer.chain_id.to_string(),
            key: layer.key.to_owned(),
            labels: layer.labels(),
            ..Default::default()
        };
        match answer(STEP, self.snapshots().commit(request).await) {
            Err(fault) if fault.grpc == GrpcCode::AlreadyExists => Ok(false),
            outcome => outcome.map(|()| true),
        }
    }

    /// Whether the layers up to `chain_id` are unpacked.
    pub(crate) async fn has_layer(&self, snapshotter: &str, chain_id: &Digest) -> Result<bool, Fault> {
        let request = rpc::StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: chain_id.to_string() };
        Ok(answer_if_found(STEP, self.snapshots().stat(request).await)?.is_some())
    }

    /// Bytes that one layer takes, without those below; `None` when it is not there.
    pub(crate) async fn layer_size(&self, snapshotter: &str, chain_id: &Digest) -> Result<Option<u64>, Fault> {
        let request = rpc::UsageRequest { snapshotter: snapshotter.to_owned(), key: chain_id.to_string() };
        let response = answer_if_found("list", self.snapshots().usage(request).await)?;
        Ok(response.map(|usage| u64::try_from(usage.size).unwrap_or(0)))
    }
}
