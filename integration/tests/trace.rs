//! `run --trace`: the ten steps of a run, each with its time, from every layer; as a table, as a page, as a file for other
//! tools.

use std::fs;

use integration::{Stack, ours};
use serde_json::Value;

/// The steps in their order, as the table names them, and the layers that have a part in a run.
const STEPS: [&str; 11] = [
    "parse",
    "validate",
    "pull",
    "configure",
    "take-over",
    "assemble",
    "connect",
    "create",
    "start",
    "watch",
    "report",
];
const LAYERS: [&str; 5] = ["client", "engine", "supervisor", "shim", "runtime"];

fn traced(s: &Stack, to: Option<&str>) -> (String, i32) {
    let mut arguments = vec!["run", "--rm", "--trace"];
    arguments.extend(to);
    arguments.extend([s.busybox(), "sh", "-c", "echo out; exit 3"]);
    let out = s.run(&arguments);
    assert_eq!(out.text(), "out", "the program's output is its own");
    (out.errors(), out.code)
}

/// The rows of the table that stand for steps: number, name, start and time in ms.
fn rows(table: &str) -> Vec<(String, Option<f64>)> {
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = words.first()?.trim_end_matches('b');
        number.parse::<u32>().ok()?;
        let took =
            words.iter().filter_map(|word| word.parse::<f64>().ok()).nth(if words[0].contains('b') { 1 } else { 2 });
        Some(((*words.get(1)?).to_owned(), took))
    };
    table.lines().filter_map(row).collect()
}

#[test]
fn the_table_has_every_step_in_order() {
    ours(|s| {
        let (table, code) = traced(s, None);
        assert_eq!(code, 3, "{table}");
        let rows = rows(&table);
        let names: Vec<&str> = rows.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, STEPS, "{table}");
        for (name, took) in rows.iter().filter(|(name, _)| name != "pull") {
            assert!(took.is_some_and(|ms| (0.0..10_000.0).contains(&ms)), "{name} took {took:?}: {table}");
        }
        for layer in LAYERS {
            assert!(table.contains(&format!(" {layer} ")), "no {layer} in {table}");
        }
    });
}

#[test]
fn the_sum_is_the_time_that_it_took() {
    ours(|s| {
        s.run(&["run", "--rm", s.busybox(), "true"]).ok();
        let start = std::time::Instant::now();
        let out = s.run(&["run", "--rm", "--trace", s.busybox(), "true"]).ok();
        let wall_ms = start.elapsed().as_secs_f64() * 1e3;
        let table = out.errors();
        let total = table.lines().find_map(|line| line.trim().strip_prefix("total")).unwrap_or_default();
        let total: f64 = total.trim().parse().unwrap_or_else(|_| panic!("no total in {table}"));
        // What the table does not see: the client's exec and exit.
        assert!(total <= wall_ms && total > wall_ms * 0.3, "{total} ms of {wall_ms} ms: {table}");
    });
}

#[test]
fn a_run_that_pulls_shows_the_pull() {
    ours(|s| {
        let image = s.image("stubborn");
        let out = s.run(&["run", "--rm", "--trace", &image, "true"]).ok();
        let rows = rows(&out.errors());
        let pull = rows.iter().find(|(name, _)| name == "pull").and_then(|(_, took)| *took);
        assert!(pull.is_some_and(|ms| ms > 1.0), "{}", out.errors());
        assert!(out.errors().contains(" registry "), "{}", out.errors());
    });
}

#[test]
fn a_page_that_needs_no_network() {
    ours(|s| {
        let path = s.site().path("tmp/trace.html").display().to_string();
        traced(s, Some(&path));
        let page = fs::read_to_string(&path).expect("the page");
        assert!(page.starts_with("<!") && page.trim_end().ends_with("</html>"), "{}", &page[..page.len().min(200)]);
        for outside in ["src=\"http", "href=\"http", "@import", "fetch(", "src=\"//"] {
            assert!(!page.contains(outside), "{outside} is in the page");
        }
        for step in STEPS.iter().filter(|step| **step != "pull") {
            assert!(page.contains(step), "no {step} in the page");
        }
    });
}

#[test]
fn a_file_for_perfetto() {
    ours(|s| {
        let path = s.site().path("tmp/trace.json").display().to_string();
        traced(s, Some(&path));
        let trace: Value = serde_json::from_str(&fs::read_to_string(&path).expect("the file")).expect("JSON");
        let events = trace["traceEvents"].as_array().expect("events");
        let spans: Vec<&Value> = events.iter().filter(|event| event["ph"] == "X").collect();
        for span in &spans {
            assert!(span["name"].is_string() && span["ts"].is_number() && span["dur"].is_number(), "{span}");
            assert!(span["pid"].is_number() && span["tid"].is_number(), "{span}");
        }
        for step in STEPS.iter().filter(|step| **step != "pull") {
            assert!(spans.iter().any(|span| span["name"] == *step), "no {step}");
        }
    });
}

#[test]
fn a_run_that_fails_is_traced_as_far_as_it_came() {
    ours(|s| {
        let out = s.run(&["run", "--rm", "--trace", s.busybox(), "no-such-program"]).code(127);
        assert!(out.errors().contains("no-such-program") && out.errors().contains("configure"), "{}", out.errors());
    });
}

#[test]
fn a_detached_run_is_traced_too() {
    ours(|s| {
        let out = s.run(&["run", "-d", "--trace", s.busybox(), "sleep", "1000"]).ok();
        assert_eq!(out.text().len(), 64);
        assert!(rows(&out.errors()).iter().any(|(name, took)| name == "start" && took.is_some()), "{}", out.errors());
    });
}
