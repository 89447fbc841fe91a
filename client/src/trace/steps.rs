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

/// The clock is one, but spans of asynchronous code are opened and closed a little beside what they enclose.
const SLACK_NS: u64 = 3_000;

/// A span in its place.
pub(super) struct Row {
    /// The step's number; empty for what happened within one.
    pub(super) number: &'static str,
    pub(super) span: Span,
    /// 0 for a step.
    pub(super) depth: usize,
}

/// The rows of a trace: the steps that happened, in order, each followed by its parts; what belongs to no step last.
pub(super) fn rows(trace: &Trace) -> Vec<Row> {
    let steps: Vec<Vec<usize>> = STEPS.iter().map(|(_, name)| pieces(trace, name)).collect();
    let parents = parents(trace, &steps);
    let mut rows = Vec::new();
    for ((number, _), pieces) in STEPS.iter().zip(&steps) {
        if let Some(span) = joined(trace, pieces) {
            rows.push(Row { number, span, depth: 0 });
            pieces.iter().for_each(|&piece| add_children(trace, &parents, Place::In(piece), 1, &mut rows));
        }
    }
    add_children(trace, &parents, Place::Nowhere, 0, &mut rows);
    rows
}

/// Where a span belongs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It is a step, or a piece of one.
    Step,
    /// Within the span of that index.
    In(usize),
    Nowhere,
}

/// The spans that are the step `name`: of the layer that spent longest with it, each that lies in no other one. A layer
/// may come to a step twice (validate: the words, then the image).
fn pieces(trace: &Trace, name: &str) -> Vec<usize> {
    let named = |index: &usize| trace.spans[*index].name.replace(' ', "-") == name;
    let named: Vec<usize> = (0..trace.spans.len()).filter(named).collect();
    let Some(&longest) = named.iter().max_by_key(|&&index| trace.spans[index].duration_ns) else { return Vec::new() };
    let of_layer = |index: &&usize| trace.spans[**index].layer == trace.spans[longest].layer;
    let outermost = |index: &&usize| !named.iter().any(|&other| contains(trace, other, **index));
    named.iter().filter(of_layer).filter(outermost).copied().collect()
}

/// The pieces of a step as one span: from the first one's beginning, as long as all of them.
fn joined(trace: &Trace, pieces: &[usize]) -> Option<Span> {
    let spans = || pieces.iter().map(|&piece| &trace.spans[piece]);
    let longest = spans().max_by_key(|span| span.duration_ns)?;
    let start_ns = spans().map(|span| span.start_ns).min()?;
    Some(Span { start_ns, duration_ns: spans().map(|span| span.duration_ns).sum(), ..longest.clone() })
}

/// For each span its place: a step has none around it, any other the narrowest span that contains it, else (a layer's
/// share of a step, seen a little outside it) the step of its name.
fn parents(trace: &Trace, steps: &[Vec<usize>]) -> Vec<Place> {
    let place = |child: usize| {
        if steps.iter().any(|pieces| pieces.contains(&child)) {
            return Place::Step;
        }
        let around: Vec<usize> = (0..trace.spans.len()).filter(|&index| contains(trace, index, child)).collect();
        let narrowest = around.iter().copied().min_by_key(|&index| trace.spans[index].duration_ns);
        let name = trace.spans[child].name.replace(' ', "-");
        let own = STEPS.iter().position(|(_, step)| *step == name).map_or(&[][..], |step| &steps[step]);
        let is_step = |index: usize| steps.iter().any(|pieces| pieces.contains(&index));
        // Steps that go on at the same time: a layer's share stands below the step of its name.
        let own_around = own.iter().copied().find(|piece| around.contains(piece));
        match narrowest {
            Some(step) if is_step(step) => Place::In(own_around.unwrap_or(step)),
            Some(span) => Place::In(span),
            None => own.first().map_or(Place::Nowhere, |&piece| Place::In(piece)),
        }
    };
    (0..trace.spans.len()).map(place).collect()
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

fn add_children(trace: &Trace, parents: &[Place], of: Place, depth: usize, rows: &mut Vec<Row>) {
    let mut children: Vec<usize> = (0..trace.spans.len()).filter(|&child| parents[child] == of).collect();
    children.sort_by_key(|&child| trace.spans[child].start_ns);
    for child in children {
        rows.push(Row { number: "", span: trace.spans[child].clone(), depth });
        add_children(trace, parents, Place::In(child), depth + 1, rows);
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
    fn a_step_in_two_pieces_is_one_row_and_other_layers_shares_stand_below() {
        let mut trace = sample();
        let again = Span { start_ns: trace.spans[1].start_ns + 250_000, duration_ns: 40_000, ..trace.spans[1].clone() };
        let late = Span { layer: "engine".to_owned(), start_ns: 10_500_000, duration_ns: 1, ..trace.spans[12].clone() };
        trace.spans.extend([again, late]);
        let rows = rows(&trace);
        let of = |number: &str| rows.iter().position(|row| row.number == number).unwrap();
        assert_eq!(rows[of("2")].span.duration_ns, 240_000);
        assert_eq!(rows[of("10") + 1].span.layer, "engine");
        assert_eq!((rows[of("10") + 1].depth, rows.len()), (1, trace.spans.len() - 1));
    }

    #[test]
    fn of_steps_at_the_same_time_the_one_of_the_name_is_chosen() {
        let mut trace = sample();
        trace.spans[3].duration_ns = 1_100_000;
        let share =
            Span { layer: "shim".to_owned(), start_ns: 2_850_000, duration_ns: 10_000, ..trace.spans[4].clone() };
        trace.spans.push(share);
        let rows = rows(&trace);
        let at = rows.iter().position(|row| row.span.layer == "shim" && row.span.name == "assemble").unwrap();
        assert_eq!((rows[at - 1].number, rows[at].depth), ("6", 1));
    }

    #[test]
    fn equal_spans_make_no_circle() {
        let mut trace = sample();
        let twin = Span { name: "x".to_owned(), ..trace.spans[1].clone() };
        trace.spans.extend([twin.clone(), twin.clone(), twin]);
        assert_eq!(rows(&trace).len(), trace.spans.len());
    }
}
