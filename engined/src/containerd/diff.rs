//! Unpacking a layer's blob into a snapshot.

use proto_containerd::services::diff as rpc;
use proto_containerd::types::Mount;
use strata_fault::Fault;
use strata_registry::Descriptor;

use super::{Client, answer, images};

impl Client {
    /// Unpacks the blob into the mounts. The answer is the digest of the tar that came out: the layer's diff id.
    pub(crate) async fn apply(&self, layer: &Descriptor, mounts: Vec<Mount>) -> Result<String, Fault> {
        // A manifest's annotations are its maker's, and some supervisors act upon them.
        let diff = proto_containerd::types::Descriptor { annotations: Default::default(), ..images::wire(layer) };
        let request = rpc::ApplyRequest { diff: Some(diff), mounts, ..Default::default() };
        let response = answer("pull", self.diff().apply(request).await)?;
        Ok(response.applied.map(|applied| applied.digest).unwrap_or_default())
    }
}
