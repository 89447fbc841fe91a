//! Images of documents in the content store, imported by the transfer service.

use std::collections::HashMap;

use proto_containerd::any;
use proto_containerd::services::streaming::StreamInit;
use proto_containerd::services::transfer::TransferRequest;
use proto_containerd::types::transfer::{Data, ImageImportStream, ImageStore, UnpackConfiguration};
use serde_json::{Value, json};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Lab, SNAPSHOTTER, digest, layer};

/// What a document says of another one, of the type `application/vnd.oci.image.<kind>`.
pub(crate) fn descriptor(kind: &str, data: &[u8]) -> Value {
    json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest(data), "size": data.len() })
}

/// The config of an image of plain layers.
pub(crate) fn config(layers: &[&[u8]]) -> Value {
    let diff_ids: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
    let architecture = std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64");
    json!({ "architecture": architecture, "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids } })
}

/// The manifest of an image of plain layers.
pub(crate) fn manifest(config: &Value, layers: &[&[u8]]) -> Value {
    let layers: Vec<_> = layers.iter().map(|layer| descriptor("layer.v1.tar", layer)).collect();
    json!({ "schemaVersion": 2, "config": descriptor("config.v1+json", config.to_string().as_bytes()), "layers": layers })
}

impl Lab {
    /// Puts blobs into the content store; those that are there stay.
    pub(crate) async fn store(&self, blobs: &[&[u8]]) {
        for blob in blobs {
            let _ = self.write(&digest(blob), blob, HashMap::new()).await;
        }
    }

    /// Imports an archive that has nothing but an index; what that names is in the content store.
    pub(crate) async fn import(&self, index: &Value, to_unpack: bool) -> Result<(), Status> {
        let index = index.to_string();
        let archive = layer(&[("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#), ("index.json", index.as_bytes())]);
        let (client, messages) = tokio::sync::mpsc::channel(4);
        client.send(any(&StreamInit { id: "archive".to_owned() })).await.unwrap();
        let mut stream = self.streaming().await.stream(ReceiverStream::new(messages)).await?.into_inner();
        stream.next().await.unwrap()?;
        client.send(any(&Data { data: archive })).await.unwrap();
        drop(client);
        let unpack = UnpackConfiguration { snapshotter: SNAPSHOTTER.to_owned(), ..Default::default() };
        let store = ImageStore {
            name: "example.org/a:1".to_owned(),
            unpacks: to_unpack.then_some(unpack).into_iter().collect(),
            ..Default::default()
        };
        let request = TransferRequest {
            source: Some(any(&ImageImportStream { stream: "archive".to_owned(), ..Default::default() })),
            destination: Some(any(&store)),
            options: None,
        };
        self.transfer().await.transfer(request).await.map(drop)
    }
}
