//! Status details, which not every client can bear.
//!
//! A fault travels in `grpc-status-details-bin` as a `google.rpc.ErrorInfo`. containerd's Go client (2.x) turns each
//! detail into an error of its own, and one whose type it was not built with into the words "proto: not found", which
//! `ctr` then prints below the message. Such a client could do nothing with the fault, so it gets the message alone.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::header::USER_AGENT;
use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

const DETAILS: &str = "grpc-status-details-bin";
/// How Go's gRPC library begins to name itself.
const GO: &[u8] = b"grpc-go/";

/// Adds [`Fitting`] around a service.
#[derive(Clone)]
pub(super) struct DetailsLayer;

impl<S> Layer<S> for DetailsLayer {
    type Service = Fitting<S>;

    fn layer(&self, inner: S) -> Fitting<S> {
        Fitting(inner)
    }
}

/// A service whose errors have details only for those who can read them.
#[derive(Clone)]
pub(super) struct Fitting<S>(S);

impl<S, Q> Service<Request<Q>> for Fitting<S>
where
    S: Service<Request<Q>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let agent = request.headers().get(USER_AGENT);
        let is_go = agent.is_some_and(|agent| agent.as_bytes().starts_with(GO));
        let answer = self.0.call(request);
        if !is_go {
            return Box::pin(answer);
        }
        Box::pin(async move {
            let mut response = answer.await?;
            // An error without a body ends with its headers.
            response.headers_mut().remove(DETAILS);
            Ok(response)
        })
    }
}
