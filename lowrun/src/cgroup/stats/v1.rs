//! What the v1 hierarchies have counted.

use std::path::{Path, PathBuf};

use super::{BlockEntry, BlockIo, Cgroup, CpuSet, CpuUsage, Huge, Memory, MemoryEntry, Pids, Stats, Throttling};
use super::{huge_page_sizes, number, read, table};

/// `USER_HZ`: cpuacct.stat counts in hundredths of a second on every architecture of today.
const TICK_NS: u64 = 10_000_000;

pub(super) fn usage(cgroup: &Cgroup) -> Stats {
    let dir = |name: &str| cgroup.controller(name).map(|hierarchy| hierarchy.dir.clone());
    let mut stats = Stats::default();
    if let Some(cpuacct) = dir("cpuacct") {
        stats.cpu.usage = cpu_usage(&cpuacct);
    }
    if let Some(cpu) = dir("cpu") {
        let counts = table(&cpu, "cpu.stat");
        let count = |name: &str| counts.get(name).copied().unwrap_or(0);
        stats.cpu.throttling = Throttling {
            periods: count("nr_periods"),
            throttled_periods: count("nr_throttled"),
            throttled_time: count("throttled_time"),
        };
    }
    stats.cpuset = dir("cpuset").map(|dir| cpuset(&dir)).unwrap_or_default();
    stats.memory = dir("memory").map(|dir| memory(&dir)).unwrap_or_default();
    if let Some(pids) = dir("pids") {
        stats.pids = Pids { current: number(&pids, "pids.current"), limit: number(&pids, "pids.max") };
    }
    stats.blkio = dir("blkio").map(|dir| block_io(&dir)).unwrap_or_default();
    for (dir, size) in dir("hugetlb").into_iter().flat_map(sizes) {
        // The reservation's counters (5.7) tell more than those of faults.
        let reserved = format!("hugetlb.{size}.rsvd");
        let is_there = dir.join(format!("{reserved}.usage_in_bytes")).exists();
        let prefix = if is_there { reserved } else { format!("hugetlb.{size}") };
        let count = |name: &str| number(&dir, &format!("{prefix}.{name}"));
        let huge = Huge { usage: count("usage_in_bytes"), max: count("max_usage_in_bytes"), failcnt: count("failcnt") };
        stats.hugetlb.insert(size, huge);
    }
    stats
}

fn sizes(dir: PathBuf) -> Vec<(PathBuf, String)> {
    huge_page_sizes(&dir, ".usage_in_bytes").into_iter().map(|size| (dir.clone(), size)).collect()
}

fn cpu_usage(dir: &Path) -> CpuUsage {
    let ticks = table(dir, "cpuacct.stat");
    let nanoseconds = |name: &str| ticks.get(name).copied().unwrap_or(0) * TICK_NS;
    let per_cpu = read(&dir.join("cpuacct.usage_percpu")).unwrap_or_default();
    let all = read(&dir.join("cpuacct.usage_all")).unwrap_or_default();
    // A head, then `cpu user system` for each.
    let column = |index: usize| {
        let lines = all.lines().skip(1).filter_map(|line| line.split_whitespace().nth(index)?.parse().ok());
        lines.collect::<Vec<u64>>()
    };
    CpuUsage {
        total: number(dir, "cpuacct.usage"),
        percpu: per_cpu.split_whitespace().filter_map(|text| text.parse().ok()).collect(),
        percpu_user: column(1),
        percpu_kernel: column(2),
        kernel: nanoseconds("system"),
        user: nanoseconds("user"),
    }
}

fn cpuset(dir: &Path) -> CpuSet {
    // Mounted with `noprefix`, the files lack their controller's name.
    let prefix = if dir.join("cpuset.cpus").exists() { "cpuset." } else { "" };
    let count = |name: &str| number(dir, &format!("{prefix}{name}"));
    let list = |name: &str| parse_list(&read(&dir.join(format!("{prefix}{name}"))).unwrap_or_default());
    let level = read(&dir.join(format!("{prefix}sched_relax_domain_level"))).unwrap_or_default();
    CpuSet {
        cpus: list("cpus"),
        cpu_exclusive: count("cpu_exclusive"),
        mems: list("mems"),
        mem_hardwall: count("mem_hardwall"),
        mem_exclusive: count("mem_exclusive"),
        memory_migrate: count("memory_migrate"),
        memory_spread_page: count("memory_spread_page"),
        memory_spread_slab: count("memory_spread_slab"),
        memory_pressure: count("memory_pressure"),
        sched_load_balance: count("sched_load_balance"),
        sched_relax_domain_level: level.trim().parse().unwrap_or(0),
    }
}

/// `0-2,5`.
fn parse_list(text: &str) -> Vec<u16> {
    let range = |part: &str| -> Option<std::ops::RangeInclusive<u16>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

fn memory(dir: &Path) -> Memory {
    let raw = table(dir, "memory.stat");
    let entry = |prefix: &str| {
        let count = |name: &str| number(dir, &format!("memory.{prefix}{name}"));
        MemoryEntry {
            limit: count("limit_in_bytes"),
            usage: count("usage_in_bytes"),
            max: count("max_usage_in_bytes"),
            failcnt: count("failcnt"),
        }
    };
    Memory {
        cache: raw.get("cache").copied().unwrap_or(0),
        usage: entry(""),
        swap: entry("memsw."),
        kernel: entry("kmem."),
        kernel_tcp: entry("kmem.tcp."),
        raw,
        psi: None,
    }
}

/// Who counts differs by I/O scheduler: the first that counts is taken, as runc does.
fn block_io(dir: &Path) -> BlockIo {
    for prefix in ["blkio.bfq.", "blkio."] {
        let list = |name: &str| entries(dir, &format!("{prefix}{name}_recursive"));
        if let Some(serviced) = list("io_serviced").filter(|list| !list.is_empty()) {
            return BlockIo {
                io_service_bytes_recursive: list("io_service_bytes").unwrap_or_default(),
                io_serviced_recursive: serviced,
                io_queued_recursive: list("io_queued").unwrap_or_default(),
                io_service_time_recursive: list("io_service_time").unwrap_or_default(),
                io_wait_time_recursive: list("io_wait_time").unwrap_or_default(),
                io_merged_recursive: list("io_merged").unwrap_or_default(),
                io_time_recursive: list("time").unwrap_or_default(),
                sectors_recursive: list("sectors").unwrap_or_default(),
                psi: None,
            };
        }
    }
    let throttle = |name: &str| {
        let recursive = entries(dir, &format!("blkio.throttle.{name}_recursive"));
        recursive.or_else(|| entries(dir, &format!("blkio.throttle.{name}"))).unwrap_or_default()
    };
    BlockIo {
        io_service_bytes_recursive: throttle("io_service_bytes"),
        io_serviced_recursive: throttle("io_serviced"),
        ..BlockIo::default()
    }
}

fn entries(dir: &Path, file: &str) -> Option<Vec<BlockEntry>> {
    let text = read(&dir.join(file)).ok()?;
    Some(text.lines().filter_map(parse_entry).collect())
}

/// `8:0 Read 4096`, or without an operation; the last line, `Total N`, is of no device.
fn parse_entry(line: &str) -> Option<BlockEntry> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let (first, second) = (words.next()?, words.next());
    let (op, value) = second.map_or(("", first), |value| (first, value));
    Some(BlockEntry {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        op: op.to_owned(),
        value: value.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_numbers_are_spread_out() {
        assert_eq!(parse_list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(parse_list(""), [0_u16; 0]);
    }

    #[test]
    fn lines_of_block_io_have_a_device() {
        let entry = |op: &str, value| BlockEntry { major: 8, minor: 16, op: op.to_owned(), value };
        assert_eq!(parse_entry("8:16 Read 4096"), Some(entry("Read", 4096)));
        assert_eq!(parse_entry("8:16 7"), Some(entry("", 7)));
        assert_eq!(parse_entry("Total 4096"), None);
    }
}
