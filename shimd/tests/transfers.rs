//! Transfers whose client goes away.

mod rig;

use std::time::Duration;

use proto_containerd::any;
use proto_containerd::services::leases;
use proto_containerd::services::streaming::StreamInit;
use proto_containerd::services::transfer::TransferRequest;
use proto_containerd::types::transfer::{Data, ImageImportStream, ImageStore};
use rig::Lab;
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
