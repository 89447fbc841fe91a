//! Tracing of a request: the spans that it opened anywhere come back in the trailer `strata-spans-bin`.
//!
//! A request without a sampled `traceparent` costs one look at its headers.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use prost::Message;
use strata_trace::collect::Collector;
use strata_trace::{SPANS_TRAILER, Spans, TRACEPARENT, TraceParent};
use tonic::metadata::{MetadataMap, MetadataValue};
use tower::{Layer, Service};
use tracing::{Instrument, Span};

/// Most bytes of spans in a trailer: clients bound their headers, mostly to 16 KiB, and base64 adds a third.
const SPANS_BYTES_MAX: usize = 9 << 10;
const GRPC_STATUS: &str = "grpc-status";

/// Puts [`Traced`] around a service.
#[derive(Clone, Copy)]
pub(super) struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Traced<S> {
        Traced { inner }
    }
}

/// A service whose traced requests hand their spans back.
#[derive(Clone)]
pub(super) struct Traced<S> {
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Traced<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = Response<TracedBody<R>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if !is_sampled(request.headers()) {
            let response = self.inner.call(request);
            return Box::pin(async { Ok(response.await?.map(|inner| TracedBody { inner, trace: None })) });
        }
        let collector = Collector::default();
        let root = collector.root();
        let response = root.in_scope(|| self.inner.call(request)).instrument(root.clone());
        Box::pin(async move {
            let mut response = response.await?;
            // A refusal without a body has its status among the headers, and no trailers.
            if response.headers().contains_key(GRPC_STATUS) {
                insert(response.headers_mut(), &collector);
            }
            Ok(response.map(|inner| TracedBody { inner, trace: Some((collector, root)) }))
        })
    }
}

fn is_sampled(headers: &HeaderMap) -> bool {
    let text = headers.get(TRACEPARENT).and_then(|value| value.to_str().ok());
    text.and_then(TraceParent::parse).is_some_and(|context| context.is_sampled())
}

/// Spans as they are sent: as many as a header may hold.
pub(super) fn encoded(collector: &Collector) -> Vec<u8> {
    let mut spans = collector.take();
    loop {
        let bytes = Spans { spans: spans.clone() }.encode_to_vec();
        if bytes.len() <= SPANS_BYTES_MAX {
            return bytes;
        }
        // The shortest say least.
        spans.sort_by_key(|span| std::cmp::Reverse(span.duration_ns));
        spans.truncate(spans.len() * 3 / 4);
    }
}

fn insert(headers: &mut HeaderMap, collector: &Collector) {
    let bytes = encoded(collector);
    if bytes.is_empty() {
        return;
    }
    let mut metadata = MetadataMap::from_headers(std::mem::take(headers));
    metadata.insert_bin(SPANS_TRAILER, MetadataValue::from_bytes(&bytes));
    *headers = metadata.into_headers();
}

fn with_spans(frame: Frame<Bytes>, collector: &Collector) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            insert(&mut trailers, collector);
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

/// A body whose trailers get the spans.
pub(super) struct TracedBody<B> {
    inner: B,
    /// The root is held to the end, as what a stream still does belongs to the request.
    trace: Option<(Collector, Span)>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for TracedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        Poll::Ready(match (frame, &self.trace) {
            (Some(Ok(frame)), Some((collector, _))) => Some(Ok(with_spans(frame, collector))),
            (frame, _) => frame,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
