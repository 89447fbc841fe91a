//! The streaming service: streams under names that clients choose, for other requests to refer to.

use std::io;

use futures_util::stream::{BoxStream, StreamExt};
use prost_types::Any;
use proto_containerd::services::streaming as wire;
use proto_containerd::services::streaming::streaming_server::Streaming;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming as Messages};

use super::Api;
use super::convert::required;
use super::scope::{OrStatus, Scope};
use crate::error::Error;
use crate::transfer::stream::{QUEUE, Stream};

const STEP: &str = "pull";
/// What a client is told when its stream is known.
const ACKNOWLEDGED: &str = "google.protobuf.Empty";

#[tonic::async_trait]
impl Streaming for Api {
    type StreamStream = BoxStream<'static, Result<Any, Status>>;

    async fn stream(&self, request: Request<Messages<Any>>) -> Result<Response<Self::StreamStream>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let mut messages = request.into_inner();
        let first = required(messages.message().await?, "the first message").or_status(STEP)?;
        let id = stream_id(&first).or_status(STEP)?;
        let (to_transfer, incoming) = mpsc::channel(QUEUE);
        let (outgoing, to_client) = mpsc::channel(QUEUE);
        let acknowledged = Any { type_url: ACKNOWLEDGED.to_owned(), value: Vec::new() };
        // The queue is new and has room.
        let _ = outgoing.try_send(acknowledged);
        self.transfers.streams.offer(&scope.namespace, &id, Stream { incoming, outgoing }).or_status(STEP)?;
        tokio::spawn(pass_on(messages, to_transfer));
        Ok(Response::new(ReceiverStream::new(to_client).map(Ok).boxed()))
    }
}

fn stream_id(first: &Any) -> Result<String, Error> {
    let invalid = |why: String| Error::invalid("the first message", why);
    let init: Option<wire::StreamInit> =
        proto_containerd::from_any(first).map_err(|error| invalid(error.to_string()))?;
    init.map(|init| init.id).ok_or_else(|| invalid(format!("{:?} is no StreamInit", first.type_url)))
}

/// Until one of the two has enough.
async fn pass_on(mut messages: Messages<Any>, to_transfer: mpsc::Sender<io::Result<Any>>) {
    loop {
        let message = tokio::select! {
            message = messages.message() => message,
            () = to_transfer.closed() => return,
        };
        let message = match message {
            Ok(Some(message)) => Ok(message),
            Ok(None) => return,
            Err(status) => Err(io::Error::new(io::ErrorKind::ConnectionReset, status.message().to_owned())),
        };
        let is_last = message.is_err();
        if to_transfer.send(message).await.is_err() || is_last {
            return;
        }
    }
}
