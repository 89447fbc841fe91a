//! The trace of a request: who asked for it travels with the task that serves it.

use strata_trace::TraceParent;
use tracing::Instrument;

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

/// Does work in a task of its own, which goes on when the caller goes away, under the caller's trace.
pub(crate) async fn detached<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let work = work.instrument(tracing::Span::current());
    let task = match parent() {
        Some(parent) => tokio::spawn(under(parent, work)),
        None => tokio::spawn(work),
    };
    match task.await {
        Ok(outcome) => outcome,
        // It is never aborted.
        Err(failure) => std::panic::resume_unwind(failure.into_panic()),
    }
}

/// A span of the path of a run, gathered when the request is traced: name, layer, what it is about.
#[macro_export]
macro_rules! span {
    ($name:literal, $layer:literal, $detail:expr) => {
        tracing::info_span!(target: strata_trace::collect::TARGET, $name, layer = $layer, detail = %$detail)
    };
}
