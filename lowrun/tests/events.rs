//! `events`: stats in runc's fields, and what happens to a container's memory.

mod stage;

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use stage::{PATIENCE, Stage, stage};

const LOOP: &str = "while :; do sleep 0.05; done";

/// A running `events` and its lines.
struct Events {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Events {
    fn begin(stage: &Stage, flags: &[&str]) -> Events {
        let mut command = stage.command();
        let mut child = command.arg("events").args(flags).arg(stage.id()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Events { child, lines }
    }

    /// The next event of a kind; the others pass.
    fn next(&mut self, kind: &str) -> Value {
        let begun = Instant::now();
        for line in self.lines.by_ref() {
            // The stats alone would go on for ever.
            assert!(begun.elapsed() < PATIENCE, "never: {kind}");
            let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
            if event["type"] == kind {
                return event;
            }
        }
        panic!("it ended without {kind}");
    }

    /// Waits for its end, which is a success. What it still says is read: it would wait at a full pipe.
    fn end(mut self) {
        self.lines.by_ref().for_each(drop);
        assert!(self.child.wait().unwrap().success());
    }
}

#[test]
fn stats_have_runcs_fields() {
    let Some(mut stage) = stage() else { return };
    stage.config["linux"]["resources"]["pids"] = json!({ "limit": 50 });
    stage.config["linux"]["resources"]["memory"] = json!({ "limit": 1 << 28 });
    stage.script(LOOP);
    stage.detached();
    let line = stage.call(&["events", "--stats", stage.id()]).ok().out;
    assert!(line.starts_with(&format!("{{\"type\":\"stats\",\"id\":\"{}\",\"data\":{{\"cpu\":", stage.id())), "{line}");
    let data = serde_json::from_str::<Value>(&line).unwrap()["data"].take();
    assert!(data["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    assert_eq!(data["memory"]["usage"]["limit"], 1 << 28);
    assert_eq!(data["pids"]["limit"], 50);
    for field in ["cpuset", "blkio", "hugetlb", "intel_rdt"] {
        assert!(data[field].is_object(), "{field}: {line}");
    }
    assert!(data["memory"]["raw"].as_object().unwrap().len() > 10);
    stage.delete();
}

#[test]
fn stats_come_at_each_interval_until_the_container_is_gone() {
    let Some(mut stage) = stage() else { return };
    stage.script(LOOP);
    stage.detached();
    let mut events = Events::begin(&stage, &["--interval", "50ms"]);
    let first = events.next("stats");
    let second = events.next("stats");
    let total = |event: &Value| event["data"]["cpu"]["usage"]["total"].as_u64().unwrap();
    assert!(total(&second) >= total(&first));
    stage.delete();
    events.end();
}

#[test]
fn an_oom_kill_is_told() {
    let Some(mut stage) = stage() else { return };
    stage.config["linux"]["resources"]["memory"] = json!({ "limit": 16 << 20, "swap": 16 << 20 });
    stage.script(LOOP);
    stage.detached();
    let mut events = Events::begin(&stage, &["--interval", "50ms"]);
    // As stats come, it waits for the kill already.
    events.next("stats");
    let outcome = stage.exec("x=$(dd if=/dev/zero bs=1M count=64 | tr '\\0' x)");
    assert_ne!(outcome.status, 0, "{outcome:?}");
    assert_eq!(events.next("oom"), json!({ "type": "oom", "id": stage.id() }));
    stage.delete();
    events.end();
}

#[test]
fn memory_pressure_is_told_where_it_is_asked_for() {
    let Some(mut stage) = stage() else { return };
    if stage.differs("lowrun's own") {
        return;
    }
    // Version 2 tells of processes that wait for memory: one that has more than this is made to wait. Where it is killed
    // instead, because its file system is memory and nothing can be reclaimed, nobody waits for long.
    let (limit, unified) =
        if stage::is_v2() { (128 << 20, json!({ "memory.high": "16777216" })) } else { (24 << 20, json!({})) };
    stage.config["linux"]["resources"]["unified"] = unified;
    stage.config["linux"]["resources"]["memory"] = json!({ "limit": limit, "swap": limit });
    stage.script(LOOP);
    stage.detached();
    let mut events = Events::begin(&stage, &["--interval", "50ms", "--pressure", "low"]);
    events.next("stats");
    // More of the page cache than may stay: it is reclaimed all the time.
    let script = "while :; do dd if=/dev/zero of=/tmp/big bs=1M count=64 2>/dev/null; done";
    stage.call(&["exec", "-d", stage.id(), "sh", "-c", script]).ok();
    let event = events.next("memory-pressure");
    assert_eq!(event["data"]["level"], "low");
    stage.delete();
    events.end();
    stage.call(&["events", "--pressure", "moon", stage.id()]).fails(1, "does not exist");
}

#[test]
fn wrong_words_are_told() {
    let Some(mut stage) = stage() else { return };
    stage.script(LOOP);
    stage.detached();
    for interval in ["0s", "-1s"] {
        stage.call(&["events", "--interval", interval, stage.id()]).fails(1, "greater than 0");
    }
    assert_eq!(stage.call(&["events", "--interval", "moon", stage.id()]).status, 1);
    stage.call(&["kill", stage.id(), "KILL"]).ok();
    stage::eventually("stopped", || stage.status() == "stopped");
    stage.call(&["events", stage.id()]).fails(1, "is not running");
    stage.delete();
}
