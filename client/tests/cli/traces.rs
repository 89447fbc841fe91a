//! `--trace`: the table, the page, Perfetto's file.

use crate::fake::Fake;
use crate::support::run;

#[test]
fn the_table_goes_to_standard_error() {
    let fake = Fake::start();
    let ended = run(&fake, "run --trace echo hi");
    assert_eq!((ended.code, ended.out.as_str()), (0, "hi\n"));
    for line in [
        "  1  parse",
        "  2  validate",
        "  3  pull",
        "  7  create",
        "       clone",
        "  9  watch",
        " 10  report",
        "     total",
    ] {
        assert!(ended.err.lines().any(|shown| shown.starts_with(line)), "{line}: {}", ended.err);
    }
    let parents = fake.shared().traceparents.clone();
    assert!(parents.len() == 1 && parents[0].starts_with("00-") && parents[0].ends_with("-01"), "{parents:?}");
}

#[test]
fn a_file_takes_it_instead() {
    let fake = Fake::start();
    let html = fake.folder().join("t.html");
    let json = fake.folder().join("t.json");
    run(&fake, &format!("run --trace {} echo hi", html.display())).is(0, "hi\n", "");
    run(&fake, &format!("run --trace={} echo hi", json.display())).is(0, "hi\n", "");
    let page = std::fs::read_to_string(html).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("\"name\":\"clone\""));
    let events: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert!(events["traceEvents"].as_array().unwrap().iter().any(|event| event["name"] == "validate"));
    let wrong = run(&fake, "run --trace=t.txt echo hi");
    assert_eq!(wrong.code, 125);
    let unwritable = run(&fake, "run --trace /nonexistent/t.html exit 3");
    assert_eq!(unwritable.code, 125);
    assert!(unwritable.err.contains("write the trace to /nonexistent/t.html"), "{}", unwritable.err);
}

#[test]
fn nothing_is_traced_unasked() {
    let fake = Fake::start();
    run(&fake, "run echo --trace x.html").is(0, "--trace x.html\n", "");
    assert!(fake.shared().traceparents.is_empty());
}
