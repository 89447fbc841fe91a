//! The table that a run of the benchmarks ends with, on the screen and in docs/benchmarks.md.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::measure::Pair;

/// One comparison.
pub(crate) struct Row {
    pub(crate) what: String,
    unit: &'static str,
    ours: f64,
    theirs: f64,
    ratio: f64,
    /// At most so many times theirs.
    owed: f64,
}

impl Row {
    pub(crate) fn new(what: String, unit: &'static str, pair: &Pair, owed: f64) -> Row {
        Row { what, unit, ours: pair.ours(), theirs: pair.theirs(), ratio: pair.ratio(), owed }
    }

    /// A row of two single figures.
    pub(crate) fn of(what: String, unit: &'static str, ours: f64, theirs: f64, owed: f64) -> Row {
        Row { what, unit, ours, theirs, ratio: ours / theirs, owed }
    }

    pub(crate) fn kept(&self) -> bool {
        self.ratio <= self.owed
    }
}

/// The rows as a Markdown table.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text =
        String::from("| measured | ours | theirs | ratio | owed | |\n| --- | --- | --- | --- | --- | --- |\n");
    for row in rows {
        let verdict = if row.kept() { "kept" } else { "**missed**" };
        let _ = writeln!(
            text,
            "| {} | {:.2} {} | {:.2} {} | {:.3} × | at most {} × | {verdict} |",
            row.what, row.ours, row.unit, row.theirs, row.unit, row.ratio, row.owed
        );
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
