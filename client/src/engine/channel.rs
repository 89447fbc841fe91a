//! One HTTP/2 connection on a unix socket, as the transport of tonic's generated clients.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tonic::body::Body;

use super::address::Address;
use crate::error::Error;

/// How much engined may send ahead on one stream: enough that output flows without waiting for our answers, bounded so
/// that a slow reader of ours holds the container back rather than filling memory.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Large frames: fewer headers, fewer copies.
const FRAME_MAX: u32 = 1 << 20;
/// Trailers carry spans.
const HEADERS_MAX: u32 = 256 << 10;

/// A connection. Clones share it.
#[derive(Clone)]
pub(crate) struct Channel(http2::SendRequest<Body>);

impl Channel {
    /// Connects; the first request goes out with the connection's own greeting.
    pub(crate) async fn connect(address: &Address) -> Result<Channel, Error> {
        let path = address.path();
        let stream =
            UnixStream::connect(path).await.map_err(|source| Error::Connect { path: path.to_owned(), source })?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_MAX)
            .max_header_list_size(HEADERS_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| Error::Handshake { path: path.to_owned(), source })?;
        // Its end is seen by the requests that it carries.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Channel(sender))
    }

    /// A socket has no name that HTTP knows; servers refuse a path here.
    pub(crate) fn origin() -> Uri {
        Uri::from_static("http://localhost")
    }
}

impl tower_service::Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
