//! The client against the server, over real sockets.
#![cfg(feature = "tokio")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use strata_ttrpc::message::UNIMPLEMENTED;
use strata_ttrpc::server::{self, Handler};
use strata_ttrpc::{CallError, CallOptions, Client, Request, Status};
use tokio::net::UnixStream;

/// A message of one string field, as `prost_types` has one at hand.
type Text = prost_types_text::Text;

mod prost_types_text {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Text {
        #[prost(string, tag = "1")]
        pub(crate) text: String,
    }
}

fn text(words: &str) -> Text {
    Text { text: words.to_owned() }
}

struct Echo;

impl Handler for Echo {
    async fn call(&self, request: Request) -> Result<Vec<u8>, Status> {
        match request.method.as_str() {
            "Echo" => Ok(request.payload),
            "Hang" => std::future::pending().await,
            _ => Err(Status::new(UNIMPLEMENTED, format!("no method {}", request.method))),
        }
    }
}

fn start(path: &Path) -> tokio::task::JoinHandle<()> {
    tokio::spawn(server::serve(server::listen(path).unwrap(), Arc::new(Echo)))
}

#[tokio::test]
async fn calls_go_through_a_path_longer_than_sun_path() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    let path = deep.join("socket");
    let server = start(&path);
    let client = Client::connect(&path).await.unwrap();
    let long = "x".repeat(1 << 20);
    for words in ["a", "", long.as_str()] {
        let reply = client.call::<_, Text>("s", "Echo", &text(words), &CallOptions::default()).await.unwrap();
        assert_eq!(reply.message.text, words);
    }
    server.abort();
}

#[tokio::test]
async fn many_calls_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let server = start(&path);
    let client = Client::connect(&path).await.unwrap();
    let calls = (0..200).map(|at| {
        let client = client.clone();
        tokio::spawn(async move {
            let words = format!("{at}-{}", "y".repeat(at * 100));
            let reply = client.call::<_, Text>("s", "Echo", &text(&words), &CallOptions::default()).await.unwrap();
            assert_eq!(reply.message.text, words);
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    server.abort();
}

#[tokio::test]
async fn a_status_and_an_oversized_request() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let server = start(&path);
    let client = Client::connect(&path).await.unwrap();
    let error = client.call::<_, Text>("s", "None", &text(""), &CallOptions::default()).await.unwrap_err();
    assert!(matches!(&error, CallError::Status(status) if status.code() == UNIMPLEMENTED), "{error:?}");
    let long = text(&"x".repeat(5 << 20));
    let error = client.call::<_, Text>("s", "Echo", &long, &CallOptions::default()).await.unwrap_err();
    assert!(matches!(error, CallError::Oversized(_)), "{error:?}");
    server.abort();
}

#[tokio::test]
async fn a_broken_connection_fails_all_calls_at_once() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let client = Client::from_stream(ours);
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                client.call::<_, Text>("s", "Hang", &text(""), &CallOptions::default()).await.unwrap_err()
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!client.is_closed());
    drop(theirs);
    for call in calls {
        let error = tokio::time::timeout(Duration::from_secs(2), call).await.unwrap().unwrap();
        assert!(matches!(error, CallError::Closed(_)), "{error:?}");
    }
    client.closed().await;
    let error = client.call::<_, Text>("s", "Echo", &text(""), &CallOptions::default()).await.unwrap_err();
    assert!(matches!(error, CallError::Closed(_)), "{error:?}");
}

#[tokio::test]
async fn a_call_that_times_out_leaves_the_connection_usable() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let client = Client::from_stream(ours);
    let options = CallOptions { timeout: Some(Duration::from_millis(20)), ..CallOptions::default() };
    let error = client.call::<_, Text>("s", "Hang", &text(""), &options).await.unwrap_err();
    assert!(matches!(error, CallError::TimedOut), "{error:?}");
    // The late answer to stream 1 is ignored, the one to stream 3 is taken.
    let mut bytes = Vec::new();
    for stream in [1, 3] {
        let response = strata_ttrpc::Response::default();
        strata_ttrpc::frame::append(&mut bytes, stream, strata_ttrpc::frame::KIND_RESPONSE, &response).unwrap();
    }
    let second = tokio::spawn(async move {
        client.call::<_, Text>("s", "Echo", &text(""), &CallOptions::default()).await.unwrap();
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    tokio::io::AsyncWriteExt::write_all(&mut theirs, &bytes).await.unwrap();
    second.await.unwrap();
}
