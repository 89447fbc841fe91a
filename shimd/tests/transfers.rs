//! Transfers whose client goes away, or comes in between.

mod rig;

use std::sync::Arc;
use std::time::Duration;

use proto_containerd::any;
use proto_containerd::services::streaming::StreamInit;
use proto_containerd::services::transfer::TransferRequest;
use proto_containerd::services::{leases, snapshots};
use proto_containerd::types::transfer::{Data, ImageImportStream, ImageStore};
use rig::{Lab, SNAPSHOTTER, documents};
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

async fn snapshots(lab: &Lab) -> Vec<String> {
    let request = snapshots::ListSnapshotsRequest { snapshotter: SNAPSHOTTER.to_owned(), filters: Vec::new() };
    let mut stream = lab.snapshots().await.list(request).await.unwrap().into_inner();
    let mut names = Vec::new();
    while let Some(found) = stream.message().await.unwrap() {
        names.extend(found.info.into_iter().map(|info| info.name));
    }
    names
}

/// Imports an image, and commits a snapshot of the name of its layer while that is unpacked; whether that was in time.
async fn import_beside(lab: &Arc<Lab>, seed: u64) -> bool {
    let layer = rig::layer(&[("big", &rig::registry::noise(seed, 24 << 20))]);
    let config = documents::config(&[&layer]);
    let manifest = documents::manifest(&config, &[&layer]);
    let (config, manifest) = (config.to_string(), manifest.to_string());
    lab.store(&[config.as_bytes(), manifest.as_bytes(), &layer]).await;
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [documents::descriptor("manifest.v1+json", manifest.as_bytes())],
    });
    let key = format!("mine-{seed}");
    lab.prepare(&key, "").await;
    let importing = lab.clone();
    let transferring = tokio::spawn(async move { importing.import(&index, true).await });
    while !snapshots(lab).await.iter().any(|name| name.starts_with("extract-")) && !transferring.is_finished() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let request = snapshots::CommitSnapshotRequest {
        snapshotter: SNAPSHOTTER.to_owned(),
        name: rig::digest(&layer),
        key,
        ..Default::default()
    };
    let committed = lab.snapshots().await.commit(request).await;
    transferring.await.unwrap().unwrap();
    committed.is_ok()
}

#[tokio::test]
async fn a_layer_that_a_client_unpacks_meanwhile_is_taken_as_it_is() {
    let lab = Arc::new(Lab::start_with_lease().await);
    let mut seed = 1;
    // On a busy machine the import may be done before it was seen to begin.
    while !import_beside(&lab, seed).await {
        seed += 1;
        assert!(seed < 10, "it was never in time");
    }
    assert!(!snapshots(&lab).await.iter().any(|name| name.starts_with("extract-")));
}
