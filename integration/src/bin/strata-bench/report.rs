//! The table that a run of the benchmarks ends with, on the screen and in docs/benchmarks.md.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::measure::Pair;

/// What is owed of a figure: against theirs, by itself, or both.
#[derive(Clone, Copy, Default)]
pub(crate) struct Owed {
    times_at_most: Option<f64>,
    times_at_least: Option<f64>,
    at_most: Option<f64>,
    at_least: Option<f64>,
}

impl Owed {
    const NOTHING: Owed = Owed { times_at_most: None, times_at_least: None, at_most: None, at_least: None };

    /// At most so many times theirs.
    pub(crate) const fn times(times: f64) -> Owed {
        Owed { times_at_most: Some(times), ..Owed::NOTHING }
    }

    /// At least so many times theirs.
    pub(crate) const fn at_least_times(times: f64) -> Owed {
        Owed { times_at_least: Some(times), ..Owed::NOTHING }
    }

    /// At most so much.
    pub(crate) const fn at_most(figure: f64) -> Owed {
        Owed { at_most: Some(figure), ..Owed::NOTHING }
    }

    /// At least so much.
    pub(crate) const fn at_least(figure: f64) -> Owed {
        Owed { at_least: Some(figure), ..Owed::NOTHING }
    }

    /// And at most so much.
    pub(crate) const fn and_at_most(self, figure: f64) -> Owed {
        Owed { at_most: Some(figure), ..self }
    }

    fn is_kept(&self, figure: f64, ratio: f64) -> bool {
        self.times_at_most.is_none_or(|bound| ratio <= bound)
            && self.times_at_least.is_none_or(|bound| ratio >= bound)
            && self.at_most.is_none_or(|bound| figure <= bound)
            && self.at_least.is_none_or(|bound| figure >= bound)
    }

    fn words(&self, unit: &str) -> String {
        let bounds = [
            self.times_at_most.map(|bound| format!("at most {bound} ×")),
            self.times_at_least.map(|bound| format!("at least {bound} ×")),
            self.at_most.map(|bound| format!("at most {bound} {unit}")),
            self.at_least.map(|bound| format!("at least {bound} {unit}")),
        ];
        bounds.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// One comparison, or one figure that stands by itself.
pub(crate) struct Row {
    pub(crate) what: String,
    unit: &'static str,
    ours: f64,
    /// Theirs, and the ratio.
    compared: Option<(f64, f64)>,
    owed: Owed,
}

impl Row {
    /// Of which at most `owed` times theirs is owed.
    pub(crate) fn new(what: String, unit: &'static str, pair: &Pair, owed: f64) -> Row {
        Row::of_pair(what, unit, pair, Owed::times(owed))
    }

    pub(crate) fn of_pair(what: String, unit: &'static str, pair: &Pair, owed: Owed) -> Row {
        Row { what, unit, ours: pair.ours(), compared: Some((pair.theirs(), pair.ratio())), owed }
    }

    /// A row of two single figures.
    pub(crate) fn of(what: String, unit: &'static str, ours: f64, theirs: f64, owed: f64) -> Row {
        Row { what, unit, ours, compared: Some((theirs, ours / theirs)), owed: Owed::times(owed) }
    }

    /// A row without a peer.
    pub(crate) fn alone(what: String, unit: &'static str, ours: f64, owed: Owed) -> Row {
        Row { what, unit, ours, compared: None, owed }
    }

    pub(crate) fn kept(&self) -> bool {
        self.owed.is_kept(self.ours, self.compared.map_or(1.0, |(_, ratio)| ratio))
    }
}

/// The rows as a Markdown table.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text =
        String::from("| measured | ours | theirs | ratio | owed | |\n| --- | --- | --- | --- | --- | --- |\n");
    for row in rows {
        let verdict = if row.kept() { "kept" } else { "**missed**" };
        let theirs = row.compared.map_or_else(String::new, |(theirs, _)| format!("{theirs:.2} {}", row.unit));
        let ratio = row.compared.map_or_else(String::new, |(_, ratio)| format!("{ratio:.3} ×"));
        let owed = row.owed.words(row.unit);
        let _ =
            writeln!(text, "| {} | {:.2} {} | {theirs} | {ratio} | {owed} | {verdict} |", row.what, row.ours, row.unit);
    }
    text
}

const BEGIN: &str = "<!-- measured: begin -->";
const END: &str = "<!-- measured: end -->";

/// Replaces the measured part of `document` by `text`.
pub(crate) fn write_into(document: &Path, text: &str) {
    let old = fs::read_to_string(document).unwrap_or_else(|_| format!("# Benchmarks\n\n{BEGIN}\n{END}\n"));
    let (Some(begin), Some(end)) = (old.find(BEGIN), old.find(END)) else {
        panic!("{} has lost its marks {BEGIN} and {END}", document.display());
    };
    let new = format!("{}{BEGIN}\n\n{text}\n{}", &old[..begin], &old[end..]);
    fs::write(document, new).unwrap_or_else(|error| panic!("write {}: {error}", document.display()));
}
