//! Content, leases and the collection of garbage, over the API.

mod rig;

use std::collections::HashMap;

use proto_containerd::services::content::{
    AbortRequest, DeleteContentRequest, InfoRequest, ListContentRequest, ReadContentRequest, StatusRequest,
    WriteAction, WriteContentRequest,
};
use proto_containerd::services::images::{CreateImageRequest, DeleteImageRequest, Image};
use proto_containerd::services::leases;
use proto_containerd::types::Descriptor;
use rig::{Lab, digest};
use strata_fault::{Fault, Layer};
use tonic::Code;

fn request(action: WriteAction, reference: &str, offset: i64, data: &'static [u8]) -> WriteContentRequest {
    WriteContentRequest {
        action: action.into(),
        r#ref: reference.to_owned(),
        offset,
        data: data.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_blob_is_written_and_read() {
    let lab = Lab::start().await;
    let data: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let answer = lab.write("r", &data, HashMap::new()).await.unwrap();
    assert_eq!((answer.digest.as_str(), answer.offset), (digest(&data).as_str(), data.len() as i64));
    let mut content = lab.content().await;
    for (offset, size, expected) in
        [(0, 0, &data[..]), (10, 5, &data[10..15]), (2_999_990, 100, &data[2_999_990..]), (3_000_000, 0, &[])]
    {
        let request = ReadContentRequest { digest: digest(&data), offset, size };
        let mut stream = content.read(request).await.unwrap().into_inner();
        let mut read = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            assert_eq!(message.offset as usize, offset as usize + read.len());
            read.extend_from_slice(&message.data);
        }
        assert!(read == expected, "{offset} {size}");
    }
    let past = ReadContentRequest { digest: digest(&data), offset: 3_000_001, size: 0 };
    assert_eq!(content.read(past).await.unwrap_err().code(), Code::OutOfRange);
    let mut list = content
        .list(ListContentRequest { filters: vec![format!("digest=={}", digest(&data))] })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(list.message().await.unwrap().unwrap().info.len(), 1);
}

#[tokio::test]
async fn an_ingest_goes_on_after_a_kill() {
    let mut lab = Lab::start().await;
    let messages = vec![request(WriteAction::Write, "r", 0, b"first "), request(WriteAction::Stat, "r", 0, b"")];
    let answer = lab.send(messages).await.unwrap();
    assert_eq!((answer.offset, answer.digest), (6, digest(b"first ")));
    lab.kill();
    lab.up().await;
    let status = lab.content().await.status(StatusRequest { r#ref: "r".to_owned() }).await.unwrap().into_inner();
    assert_eq!(status.status.unwrap().offset, 6);
    let stale = lab.send(vec![request(WriteAction::Write, "r", 3, b"x")]).await.unwrap_err();
    assert_eq!(stale.code(), Code::OutOfRange);
    let messages = vec![request(WriteAction::Write, "r", 6, b"second"), request(WriteAction::Commit, "r", 12, b"")];
    let answer = lab.send(messages).await.unwrap();
    assert_eq!((answer.offset, answer.digest), (12, digest(b"first second")));
}

#[tokio::test]
async fn codes_are_containerds() {
    let lab = Lab::start().await;
    let mut content = lab.content().await;
    let unknown = InfoRequest { digest: digest(b"unknown") };
    assert_eq!(content.info(unknown).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(
        content.info(InfoRequest { digest: "md5:1".to_owned() }).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let bad_filter = ListContentRequest { filters: vec!["size=1".to_owned()] };
    assert_eq!(content.list(bad_filter).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(lab.send(vec![request(WriteAction::Stat, "", 0, b"")]).await.unwrap_err().code(), Code::InvalidArgument);
    let mut wrong = request(WriteAction::Commit, "r", 0, b"data");
    wrong.expected = digest(b"other");
    let status = lab.send(vec![wrong]).await.unwrap_err();
    let fault = Fault::from_grpc(&status, Layer::Engine, "");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!((fault.layer, fault.code.as_str()), (Layer::Supervisor, "DIGEST_MISMATCH"));
    lab.write("x", b"there", HashMap::new()).await.unwrap();
    assert_eq!(lab.write("x", b"there", HashMap::new()).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(content.abort(AbortRequest { r#ref: "gone".to_owned() }).await.unwrap_err().code(), Code::NotFound);
    let nameless =
        proto_containerd::services::content::content_client::ContentClient::new(lab.connect_as("a/b", None).await)
            .info(InfoRequest { digest: digest(b"x") })
            .await;
    assert_eq!(nameless.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn leases_hold_until_they_end() {
    let lab = Lab::start().await;
    let mut leases = lab.leases().await;
    leases.create(leases::CreateRequest { id: "l".to_owned(), labels: HashMap::new() }).await.unwrap();
    let mut held = proto_containerd::services::content::content_client::ContentClient::new(
        lab.connect_as("default", Some("l")).await,
    );
    let stream = tokio_stream::iter(vec![request(WriteAction::Commit, "r", 0, b"held")]);
    let mut answers = held.write(stream).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
    let config = digest(b"config");
    lab.write("c", b"config", HashMap::new()).await.unwrap();
    let manifest_labels = HashMap::from([("containerd.io/gc.ref.content.config".to_owned(), config.clone())]);
    lab.write("m", b"manifest", manifest_labels).await.unwrap();
    let target = Descriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        digest: digest(b"manifest"),
        size: 8,
        annotations: HashMap::new(),
    };
    let image = Image { name: "i".to_owned(), target: Some(target), ..Default::default() };
    lab.images().await.create(CreateImageRequest { image: Some(image), source_date_epoch: None }).await.unwrap();
    lab.write("g", b"garbage", HashMap::new()).await.unwrap();
    let delete = |sync| DeleteImageRequest { name: "i".to_owned(), sync, target: None };
    let info = |data: &[u8]| InfoRequest { digest: digest(data) };
    let mut content = lab.content().await;
    // Any removal sets off a collection; this one waits for it.
    leases.create(leases::CreateRequest { id: "other".to_owned(), labels: HashMap::new() }).await.unwrap();
    leases.delete(leases::DeleteRequest { id: "other".to_owned(), sync: true }).await.unwrap();
    for kept in [b"held".as_slice(), b"config", b"manifest"] {
        assert!(content.info(info(kept)).await.is_ok(), "{}", String::from_utf8_lossy(kept));
    }
    assert_eq!(content.info(info(b"garbage")).await.unwrap_err().code(), Code::NotFound);
    lab.images().await.delete(delete(true)).await.unwrap();
    assert!(content.info(info(b"held")).await.is_ok());
    assert_eq!(content.info(info(b"config")).await.unwrap_err().code(), Code::NotFound);
    leases.delete(leases::DeleteRequest { id: "l".to_owned(), sync: true }).await.unwrap();
    assert_eq!(content.info(info(b"held")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(std::fs::read_dir(lab.path("lib/content/blobs/sha256")).unwrap().count(), 0);
}

#[tokio::test]
async fn deleted_content_is_gone() {
    let mut lab = Lab::start().await;
    lab.write("r", b"data", HashMap::new()).await.unwrap();
    let mut content = lab.content().await;
    content.delete(DeleteContentRequest { digest: digest(b"data") }).await.unwrap();
    let again = content.delete(DeleteContentRequest { digest: digest(b"data") }).await.unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
    lab.stop();
    assert!(!lab.socket().exists());
}
