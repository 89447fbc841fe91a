//! The steps of a run as spans; see ARCHITECTURE.md for the table. A traced request gathers them.

/// A span of the path of a run, as the engine sees it: `step!("assemble", &id)`.
macro_rules! step {
    ($name:literal) => {
        tracing::info_span!(target: strata_trace::collect::TARGET, $name, layer = "engine")
    };
    ($name:literal, $detail:expr) => {
        tracing::info_span!(target: strata_trace::collect::TARGET, $name, layer = "engine", detail = %$detail)
    };
}

pub(crate) use step;
