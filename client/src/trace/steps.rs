//! The spans of a call in the order of a run's ten steps, each with what happened within it below it.

use strata_trace::Span;

use super::{Trace, end_ns};

/// The steps as DESIGN section 2 numbers them, by the names that spans have.
pub(super) const STEPS: [(&str, &str); 11] = [
    ("1", "parse"),
    ("2", "validate"),
    ("3", "pull"),
    ("4", "configure"),
    ("5", "take-over"),
    ("6", "assemble"),
    ("6b", "connect"),
    ("7", "create"),
    ("8", "start"),
    ("9", "watch"),
    ("10", "report"),
];

/// Clocks are one, but a caller's span may end some microseconds before its callee's is closed.
const SLACK_NS: u64 = 50_000;

/// A span in its place.
pub(super) struct Row<'a> {
    /// The step's number; empty for what happened within one.
    pub(super) number: &'static str,
    pub(super) span: &'a Span,
    /// 0 for a step.
    pub(super) depth: usize,
}

/// The rows of a trace: the steps that happened, in order, each followed by its parts; what belongs to no step last.
pub(super) fn rows(trace: &Trace) -> Vec<Row<'_>> {
    let steps: Vec<Option<usize>> = STEPS.iter().map(|(_, name)| outermost(trace, name)).collect();
    let parents = parents(trace, &steps);
    let mut rows = Vec::new();
    for ((number, _), step) in STEPS.iter().zip(&steps) {
        if let Some(step) = step {
            rows.push(Row { number, span: &trace.spans[*step], depth: 0 });
            add_children(trace, &parents, Some(*step), 1, &mut rows);
        }
    }
    let mut strays = Vec::new();
    add_children(trace, &parents, None, 0, &mut strays);
    strays.retain(|row| !rows.iter().any(|known| std::ptr::eq(known.span, row.span)));
    rows.extend(strays);
    rows
}

/// The span that is the step `name`: of several layers' spans of that name, the longest.
fn outermost(trace: &Trace, name: &str) -> Option<usize> {
    let named = trace.spans.iter().enumerate().filter(|(_, span)| span.name.replace(' ', "-") == name);
    named.max_by_key(|(_, span)| span.duration_ns).map(|(index, _)| index)
}

/// For each span the narrowest other span that contains it; a step has none.
fn parents(trace: &Trace, steps: &[Option<usize>]) -> Vec<Option<usize>> {
    let is_step = |index: usize| steps.contains(&Some(index));
    (0..trace.spans.len())
        .map(|child| {
            if is_step(child) {
                return None;
            }
            let around = (0..trace.spans.len()).filter(|&index| contains(trace, index, child));
            around.min_by_key(|&index| trace.spans[index].duration_ns)
        })
        .collect()
}

fn contains(trace: &Trace, outer: usize, inner: usize) -> bool {
    let (around, within) = (&trace.spans[outer], &trace.spans[inner]);
    // Of two that last equally long the earlier one is around the other, so that there is no circle.
    let wider = (around.duration_ns, inner) > (within.duration_ns, outer);
    wider
        && within.start_ns + SLACK_NS >= around.start_ns
        && end_ns(within) <= end_ns(around) + SLACK_NS
        && within.start_ns < end_ns(around)
}

fn add_children<'a>(
    trace: &'a Trace,
    parents: &[Option<usize>],
    of: Option<usize>,
    depth: usize,
    rows: &mut Vec<Row<'a>>,
) {
    let mut children: Vec<usize> = (0..trace.spans.len()).filter(|&child| parents[child] == of).collect();
    children.sort_by_key(|&child| trace.spans[child].start_ns);
    for child in children {
        rows.push(Row { number: "", span: &trace.spans[child], depth });
        add_children(trace, parents, Some(child), depth + 1, rows);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn parts_stand_below_their_step() {
        let trace = sample();
        let shown: Vec<String> = rows(&trace)
            .iter()
            .map(|row| format!("{}{}{}", row.number, ".".repeat(row.depth), row.span.name))
            .collect();
        assert_eq!(
            shown,
            [
                "1parse",
                "2validate",
                "4configure",
                "5take-over",
                "6assemble",
                "6bconnect",
                "7create",
                ".create",
                "..clone",
                "..mounts",
                "8start",
                "9watch",
                "10report"
            ]
        );
    }

    #[test]
    fn equal_spans_make_no_circle() {
        let mut trace = sample();
        let twin = Span { name: "x".to_owned(), ..trace.spans[1].clone() };
        trace.spans.extend([twin.clone(), twin.clone(), twin]);
        assert_eq!(rows(&trace).len(), trace.spans.len());
    }
}
