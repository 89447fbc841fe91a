//! The trace as a table for a terminal.

use super::Trace;
use super::steps::{Row, STEPS, rows};
use crate::output::quote;

/// Below this a gap between steps is not worth a word.
const GAP_NS: u64 = 50_000;

/// The ten steps with their times, what happened within each indented below it, and the sum.
pub(super) fn text(trace: &Trace) -> String {
    let rows = rows(trace);
    let name_width = rows.iter().map(|row| row.depth * 2 + row.span.name.len()).max().unwrap_or(0).max(12);
    let mut text = format!("\n     {:name_width$}  {:<11}  {:>9}  {:>9}\n", "step", "layer", "at ms", "took ms");
    let mut at = 0;
    for (number, name) in STEPS {
        match rows.iter().position(|row| row.number == number) {
            None => text.push_str(&format!("{number:>3}  {name:name_width$}  {:<11}  {:>9}  {:>9}\n", "", "", "-")),
            Some(step) => {
                at = rows[step + 1..].iter().position(|row| row.depth == 0).map_or(rows.len(), |next| step + 1 + next);
                rows[step..at].iter().for_each(|row| text.push_str(&line(trace, row, name_width)));
            }
        }
    }
    rows[at..].iter().filter(|row| row.number.is_empty()).for_each(|row| text.push_str(&line(trace, row, name_width)));
    text.push_str(&format!("     {:name_width$}  {:<11}  {:>9}  {:>9}\n", "total", "", "", ms(trace.total_ns())));
    let between = between_steps(trace, &rows);
    if between >= GAP_NS {
        text.push_str(&format!("     {:name_width$}  {:<11}  {:>9}  {:>9}\n", "between", "", "", ms(between)));
    }
    text
}

fn line(trace: &Trace, row: &Row, name_width: usize) -> String {
    let name = format!("{}{}", "  ".repeat(row.depth), row.span.name);
    let at = ms(row.span.start_ns.saturating_sub(trace.began_ns));
    let took = ms(row.span.duration_ns);
    let line = format!(
        "{:>3}  {name:name_width$}  {:<11}  {at:>9}  {took:>9}  {}",
        row.number,
        row.span.layer,
        short(&row.span.detail)
    );
    format!("{}\n", line.trim_end())
}

/// Ids and digests by their first digits; other words as they are.
fn short(detail: &str) -> String {
    let is_long = |word: &str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let words = detail.split(' ').map(|word| {
        let digits = word.strip_prefix("sha256:").unwrap_or(word);
        if is_long(digits) { quote::short_id(digits) } else { word }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// The time in which no step was under way: on the wire, or waiting to be scheduled.
fn between_steps(trace: &Trace, rows: &[Row]) -> u64 {
    let mut steps: Vec<(u64, u64)> = rows
        .iter()
        .filter(|row| row.depth == 0)
        .map(|row| (row.span.start_ns, row.span.start_ns.saturating_add(row.span.duration_ns)))
        .collect();
    steps.sort_unstable();
    let (mut reached, mut idle) = (trace.began_ns, 0);
    for (start, end) in steps {
        idle += start.saturating_sub(reached);
        reached = reached.max(end);
    }
    idle
}

fn ms(ns: u64) -> String {
    format!("{:.3}", ns as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn ids_are_shortened() {
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(short(&format!("extract {id} sha256:{id} nginx")), "extract 0123456789ab 0123456789ab nginx");
    }

    #[test]
    fn the_ten_steps_with_their_times() {
        let shown = text(&sample());
        let expected = "
     step          layer            at ms    took ms
  1  parse         client           0.000      0.800
  2  validate      engine           0.900      0.200  busybox
  3  pull                                          -
  4  configure     engine           1.100      0.300
  5  take-over     supervisor       1.400      0.400
  6  assemble      supervisor       1.800      0.600
 6b  connect       network          1.850      0.500  bridge
  7  create        engine           2.400      3.000
       create      shim             2.600      2.700
         clone     runtime          2.800      0.400
         mounts    runtime          3.200      0.900  12 mounts <&>
  8  start         shim             5.400      0.700
  9  watch         client           6.100      3.000
 10  report        client           9.100      0.100
     total                                     9.200
     between                                   0.100
";
        assert_eq!(shown, expected);
    }
}
