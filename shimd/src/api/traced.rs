//! Traces around every service: a request with a sampled `traceparent` gets the spans of its path in a trailer.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Frame, SizeHint};
use prost::Message;
use strata_trace::collect::Collector;
use strata_trace::{SPANS_TRAILER, Spans, TRACEPARENT, TraceParent};
use tonic::body::Body;
use tonic::metadata::{Binary, MetadataValue};
use tower::{Layer, Service};
use tracing::Instrument;

use crate::trace;

/// Adds [`Traced`] around a service.
#[derive(Clone)]
pub(super) struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Traced<S> {
        Traced(inner)
    }
}

/// A service whose traced requests hand their spans back.
#[derive(Clone)]
pub(super) struct Traced<S>(S);

impl<S, Q> Service<Request<Q>> for Traced<S>
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
        let Some(parent) = sampled(request.headers()) else {
            return Box::pin(self.0.call(request));
        };
        let collector = Collector::default();
        let root = collector.root();
        let answer = root.in_scope(|| self.0.call(request));
        Box::pin(async move {
            let response = trace::under(parent, answer.instrument(root)).await?;
            Ok(with_spans(response, collector))
        })
    }
}

fn sampled(headers: &HeaderMap) -> Option<TraceParent> {
    let parent = TraceParent::parse(headers.get(TRACEPARENT)?.to_str().ok()?)?;
    parent.is_sampled().then_some(parent)
}

fn with_spans(mut response: Response<Body>, collector: Collector) -> Response<Body> {
    // An error without a body ends with its headers: the spans go there.
    if response.headers().contains_key("grpc-status") {
        add_spans(response.headers_mut(), &collector);
        return response;
    }
    response.map(|body| Body::new(SpannedBody { body, collector }))
}

fn add_spans(headers: &mut HeaderMap, collector: &Collector) {
    let bytes = Spans { spans: collector.take() }.encode_to_vec();
    let value = MetadataValue::<Binary>::from_bytes(&bytes);
    if let Ok(value) = HeaderValue::from_bytes(value.as_encoded_bytes()) {
        headers.insert(SPANS_TRAILER, value);
    }
}

/// A body that puts the spans into its trailers, when everything has been done.
struct SpannedBody {
    body: Body,
    collector: Collector,
}

impl http_body::Body for SpannedBody {
    type Data = <Body as http_body::Body>::Data;
    type Error = <Body as http_body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        polled.map(|frame| {
            frame.map(|frame| {
                frame.map(|mut frame| {
                    if let Some(trailers) = frame.trailers_mut() {
                        add_spans(trailers, &self.collector);
                    }
                    frame
                })
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
