//! The trace of a request: who asked for it travels with the task that serves it.

use strata_trace::TraceParent;

tokio::task_local! {
    static PARENT: TraceParent;
}

/// The trace context of the request that is being served, if its caller wants spans.
pub(crate) fn parent() -> Option<TraceParent> {
    PARENT.try_with(|parent| *parent).ok()
}

/// Serves a request under a trace context.
pub(crate) async fn under<F: Future>(parent: TraceParent, work: F) -> F::Output {
    PARENT.scope(parent, work).await
}

/// A span of the path of a run, gathered when the request is traced: name, layer, what it is about.
#[macro_export]
macro_rules! span {
    ($name:literal, $layer:literal, $detail:expr) => {
        tracing::info_span!(target: strata_trace::collect::TARGET, $name, layer = $layer, detail = %$detail)
    };
}
