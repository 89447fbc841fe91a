//! A `tracing` layer that gathers the spans of one request.
//!
//! A daemon puts one [`CollectLayer`] into its subscriber and wraps the work of a request in [`Collector::root`]. Each
//! `tracing` span that is opened under that root, in whatever task the root is carried to, ends up in the collector,
//! together with the spans that lower layers handed back ([`Collector::add`]). Requests without a collector cost one
//! look-up per span.
//!
//! A span is gathered when its target is [`TARGET`]; the field `layer` names its layer and `detail` what it was about:
//!
//! ```ignore
//! let span = tracing::info_span!(target: strata_trace::collect::TARGET, "assemble", layer = "supervisor", detail = %key);
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::{SPANS_MAX, Span, now_ns};

/// The target of spans that belong to the path of a run.
pub const TARGET: &str = "strata::path";
const ROOT: &str = "request";

/// The spans of one request. Clones share them.
#[derive(Clone, Default)]
pub struct Collector(Arc<Mutex<Vec<Span>>>);

impl Collector {
    /// The span under which everything is gathered; carry it with `tracing::Instrument`.
    pub fn root(&self) -> tracing::Span {
        let span = tracing::error_span!(target: TARGET, ROOT);
        span.with_subscriber(|(id, dispatch)| {
            if let Some(layer) = dispatch.downcast_ref::<AttachHandle>() {
                (layer.attach)(dispatch, id, self.clone());
            }
        });
        span
    }

    /// Adds spans that a lower layer handed back.
    pub fn add(&self, spans: impl IntoIterator<Item = Span>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = SPANS_MAX.saturating_sub(all.len());
        all.extend(spans.into_iter().take(room));
    }

    /// Takes what was gathered so far.
    pub fn take(&self) -> Vec<Span> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The collector of the request that is being served, if it is traced.
pub fn current() -> Option<Collector> {
    tracing::Span::current()
        .with_subscriber(|(id, dispatch)| {
            dispatch.downcast_ref::<AttachHandle>().and_then(|handle| (handle.find)(dispatch, id))
        })
        .flatten()
}

/// The layer itself; see the module's text.
pub struct CollectLayer<S> {
    handle: AttachHandle,
    _subscriber: std::marker::PhantomData<fn(S)>,
}

/// Lets [`Collector::root`] reach into a subscriber whose concrete type it does not know.
struct AttachHandle {
    attach: fn(&tracing::Dispatch, &Id, Collector),
    find: fn(&tracing::Dispatch, &Id) -> Option<Collector>,
}

impl<S> Default for CollectLayer<S>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    fn default() -> CollectLayer<S> {
        CollectLayer {
            handle: AttachHandle { attach: attach::<S>, find: find::<S> },
            _subscriber: std::marker::PhantomData,
        }
    }
}

fn attach<S: tracing::Subscriber + for<'a> LookupSpan<'a>>(dispatch: &tracing::Dispatch, id: &Id, to: Collector) {
    if let Some(span) = dispatch.downcast_ref::<S>().and_then(|registry| registry.span(id)) {
        span.extensions_mut().insert(to);
    }
}

fn find<S: tracing::Subscriber + for<'a> LookupSpan<'a>>(dispatch: &tracing::Dispatch, id: &Id) -> Option<Collector> {
    let span = dispatch.downcast_ref::<S>()?.span(id)?;
    span.extensions().get::<Collector>().cloned()
}

/// A gathered span while it is open.
struct Open(Span);

impl<S> Layer<S> for CollectLayer<S>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let Some(collector) = span.parent().and_then(|parent| parent.extensions().get::<Collector>().cloned()) else {
            return;
        };
        let mut extensions = span.extensions_mut();
        if attributes.metadata().target() == TARGET {
            let mut open = Span { name: attributes.metadata().name().to_owned(), ..Span::default() };
            attributes.record(&mut Fields(&mut open));
            open.start_ns = now_ns();
            extensions.insert(Open(open));
        }
        extensions.insert(collector);
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let open = span.extensions_mut().remove::<Open>();
        if let (Some(Open(mut done)), Some(collector)) = (open, span.extensions().get::<Collector>()) {
            done.duration_ns = now_ns() - done.start_ns;
            collector.add([done]);
        }
    }

    unsafe fn downcast_raw(&self, id: std::any::TypeId) -> Option<*const ()> {
        if id == std::any::TypeId::of::<Self>() {
            Some(std::ptr::from_ref(self).cast())
        } else if id == std::any::TypeId::of::<AttachHandle>() {
            Some(std::ptr::from_ref(&self.handle).cast())
        } else {
            None
        }
    }
}

struct Fields<'a>(&'a mut Span);

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "layer" => self.0.layer = value.to_owned(),
            "detail" => self.0.detail = value.to_owned(),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "detail" {
            self.0.detail = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    #[test]
    fn spans_under_a_root_are_gathered_and_others_not() {
        let subscriber = tracing_subscriber::registry().with(CollectLayer::default());
        tracing::subscriber::with_default(subscriber, || {
            let collector = Collector::default();
            tracing::info_span!(target: TARGET, "outside", layer = "engine").in_scope(|| {});
            let root = collector.root();
            root.in_scope(|| {
                tracing::info_span!(target: TARGET, "assemble", layer = "supervisor", detail = "key").in_scope(|| {
                    tracing::info_span!("noise").in_scope(|| assert!(current().is_some()));
                });
            });
            drop(root);
            let spans = collector.take();
            assert_eq!(spans.len(), 1);
            assert_eq!(
                (spans[0].name.as_str(), spans[0].layer.as_str(), spans[0].detail.as_str()),
                ("assemble", "supervisor", "key")
            );
            assert!(current().is_none());
        });
    }
}
