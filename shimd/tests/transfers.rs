//! Transfers whose client goes away, or comes in between.

mod rig;

use std::time::Duration;

use proto_containerd::any;
use proto_containerd::services::streaming::StreamInit;
use proto_containerd::services::transfer::TransferRequest;
use proto_containerd::services::{leases, snapshots};
use proto_containerd::types::transfer::{Data, ImageImportStream, ImageStore, UnpackConfiguration};
use rig::{Lab, SNAPSHOTTER};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

async fn leases(lab: &Lab) -> usize {
    lab.leases().await.list(leases::ListRequest::default()).await.unwrap().into_inner().leases.len()
}

#[tokio::test]
async fn an_import_that_is_broken_off_leaves_no_lease() {
    let lab = Lab::start().await;
    let (client, messages) = tokio::sync::mpsc::channel(4);
    client.send(any(&StreamInit { id: "archive".to_owned() })).await.unwrap();
    let stream = lab.streaming().await.stream(ReceiverStream::new(messages)).await.unwrap();
    let mut stream = stream.into_inner();
    stream.next().await.unwrap().unwrap();
    let request = TransferRequest {
        source: Some(any(&ImageImportStream { stream: "archive".to_owned(), ..Default::default() })),
        destination: Some(any(&ImageStore { name: "example.org/a:1".to_owned(), ..Default::default() })),
        options: None,
    };
    let mut transfer = lab.transfer().await;
    let transferring = tokio::spawn(async move { transfer.transfer(request).await });
    // The archive never comes to its end.
    let mut begun = rig::layer(&[("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)]);
    begun.truncate(1024);
    client.send(any(&Data { data: begun })).await.unwrap();
    while leases(&lab).await == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    transferring.abort();
    drop((client, stream));
    let began = std::time::Instant::now();
    while leases(&lab).await != 0 {
        assert!(began.elapsed() < rig::PATIENCE, "the lease of a transfer that nobody wants is left");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// An archive of an image of one layer, without what is in the content store already: config, manifest, layer.
async fn archive(lab: &Lab, layer: &[u8]) -> Vec<u8> {
    let config = serde_json::json!({
        "architecture": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [rig::digest(layer)] },
    })
    .to_string();
    let descriptor = |kind: &str, data: &[u8]| {
        let media_type = format!("application/vnd.oci.image.{kind}");
        serde_json::json!({ "mediaType": media_type, "digest": rig::digest(data), "size": data.len() })
    };
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": descriptor("config.v1+json", config.as_bytes()),
        "layers": [descriptor("layer.v1.tar", layer)],
    })
    .to_string();
    let manifests = [descriptor("manifest.v1+json", manifest.as_bytes())];
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": manifests }).to_string();
    for (name, blob) in [("config", config.as_bytes()), ("manifest", manifest.as_bytes()), ("data", layer)] {
        lab.write(name, blob, Default::default()).await.unwrap();
    }
    rig::layer(&[("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#), ("index.json", index.as_bytes())])
}

async fn snapshots(lab: &Lab) -> Vec<String> {
    let request = snapshots::ListSnapshotsRequest { snapshotter: SNAPSHOTTER.to_owned(), filters: Vec::new() };
    let mut stream = lab.snapshots().await.list(request).await.unwrap().into_inner();
    let mut names = Vec::new();
    while let Some(found) = stream.message().await.unwrap() {
        names.extend(found.info.into_iter().map(|info| info.name));
    }
    names
}

#[tokio::test]
async fn a_layer_that_a_client_unpacks_meanwhile_is_taken_as_it_is() {
    let lab = Lab::start_with_lease().await;
    let layer = rig::layer(&[("big", &rig::registry::noise(1, 24 << 20))]);
    let archive = archive(&lab, &layer).await;
    let (client, messages) = tokio::sync::mpsc::channel(4);
    client.send(any(&StreamInit { id: "archive".to_owned() })).await.unwrap();
    let stream = lab.streaming().await.stream(ReceiverStream::new(messages)).await.unwrap();
    let mut stream = stream.into_inner();
    stream.next().await.unwrap().unwrap();
    let unpack = UnpackConfiguration { snapshotter: SNAPSHOTTER.to_owned(), ..Default::default() };
    let store = ImageStore { name: "example.org/a:1".to_owned(), unpacks: vec![unpack], ..Default::default() };
    let request = TransferRequest {
        source: Some(any(&ImageImportStream { stream: "archive".to_owned(), ..Default::default() })),
        destination: Some(any(&store)),
        options: None,
    };
    let mut transfer = lab.transfer().await;
    let transferring = tokio::spawn(async move { transfer.transfer(request).await });
    client.send(any(&Data { data: archive })).await.unwrap();
    drop(client);
    while !snapshots(&lab).await.iter().any(|name| name.starts_with("extract-")) {
        assert!(!transferring.is_finished(), "nothing was unpacked: {:?}", transferring.await);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    lab.prepare("mine", "").await;
    lab.commit("mine", &rig::digest(&layer)).await;
    transferring.await.unwrap().unwrap();
    assert_eq!(snapshots(&lab).await, [rig::digest(&layer)]);
}
