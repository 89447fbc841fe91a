//! What the cgroup has used: the numbers of `lowrun events`, in the fields of runc's.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Cgroup, read};

/// All numbers that the hierarchies give; a controller that is missing leaves zeros.
pub fn usage(cgroup: &Cgroup) -> Value {
    if cgroup.is_unified() { unified(cgroup) } else { v1(cgroup) }
}

fn number(dir: &Path, file: &str) -> u64 {
    // "max" is no number: runc writes the largest one.
    match read(&dir.join(file)).unwrap_or_default().trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
    }
}

/// A file of `name value` lines.
fn table(dir: &Path, file: &str) -> Map<String, Value> {
    let text = read(&dir.join(file)).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.filter_map(|(name, value)| Some((name.to_owned(), json!(value.trim().parse::<u64>().ok()?)))).collect()
}

fn v1(cgroup: &Cgroup) -> Value {
    let dir = |name: &str| cgroup.controller(name).map(|hierarchy| hierarchy.dir.clone()).unwrap_or_default();
    let (memory, pids, cpuacct, cpu) = (dir("memory"), dir("pids"), dir("cpuacct"), dir("cpu"));
    let stat = table(&memory, "memory.stat");
    let usage = |prefix: &str| {
        let file = |name: &str| format!("memory.{prefix}{name}");
        json!({
            "limit": number(&memory, &file("limit_in_bytes")),
            "usage": number(&memory, &file("usage_in_bytes")),
            "max": number(&memory, &file("max_usage_in_bytes")),
            "failcnt": number(&memory, &file("failcnt")),
        })
    };
    let ticks = table(&cpuacct, "cpuacct.stat");
    let per_cpu: Vec<u64> = read(&cpuacct.join("cpuacct.usage_percpu"))
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|text| text.parse().ok())
        .collect();
    // cpuacct.stat counts in hundredths of a second.
    let nanoseconds = |name: &str| ticks.get(name).and_then(Value::as_u64).unwrap_or(0) * 10_000_000;
    let throttling = table(&cpu, "cpu.stat");
    json!({
        "cpu": {
            "usage": {
                "total": number(&cpuacct, "cpuacct.usage"),
                "percpu": per_cpu,
                "kernel": nanoseconds("system"),
                "user": nanoseconds("user"),
            },
            "throttling": {
                "periods": throttling.get("nr_periods"),
                "throttledPeriods": throttling.get("nr_throttled"),
                "throttledTime": throttling.get("throttled_time"),
            },
        },
        "memory": {
            "cache": stat.get("cache"),
            "usage": usage(""),
            "swap": usage("memsw."),
            "kernel": usage("kmem."),
            "kernelTCP": usage("kmem.tcp."),
            "raw": stat,
        },
        "pids": pids_usage(&pids),
        "blkio": {},
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

fn pids_usage(dir: &Path) -> Value {
    let limit = number(dir, "pids.max");
    json!({ "current": number(dir, "pids.current"), "limit": if limit == u64::MAX { 0 } else { limit } })
}

fn unified(cgroup: &Cgroup) -> Value {
    let dir = cgroup.unified().map(|hierarchy| hierarchy.dir.clone()).unwrap_or_default();
    let cpu = table(&dir, "cpu.stat");
    let microseconds = |name: &str| cpu.get(name).and_then(Value::as_u64).unwrap_or(0) * 1_000;
    let stat = table(&dir, "memory.stat");
    let swap_current = number(&dir, "memory.swap.current");
    json!({
        "cpu": {
            "usage": {
                "total": microseconds("usage_usec"),
                "kernel": microseconds("system_usec"),
                "user": microseconds("user_usec"),
            },
            "throttling": {
                "periods": cpu.get("nr_periods"),
                "throttledPeriods": cpu.get("nr_throttled"),
                "throttledTime": microseconds("throttled_usec"),
            },
        },
        "memory": {
            "cache": stat.get("file"),
            "usage": {
                "limit": number(&dir, "memory.max"),
                "usage": number(&dir, "memory.current"),
                "max": number(&dir, "memory.peak"),
                "failcnt": 0,
            },
            "swap": {
                "limit": number(&dir, "memory.swap.max"),
                "usage": swap_current,
                "failcnt": 0,
            },
            "kernel": { "failcnt": 0 },
            "kernelTCP": { "failcnt": 0 },
            "raw": stat,
        },
        "pids": pids_usage(&dir),
        "blkio": {},
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": null,
    })
}
