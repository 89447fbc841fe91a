//! What the v2 hierarchy has counted.

use std::path::Path;

use super::{BlockEntry, BlockIo, Cgroup, Cpu, CpuUsage, Huge, Memory, MemoryEntry, Pids, Stats, Throttling};
use super::{huge_page_sizes, number, pressure, read, table};

pub(super) fn usage(cgroup: &Cgroup) -> Stats {
    let Some(dir) = cgroup.unified().map(|hierarchy| hierarchy.dir.as_path()) else { return Stats::default() };
    let mut stats = Stats { cpu: cpu(dir), memory: memory(dir), pids: pids(dir), ..Stats::default() };
    stats.blkio = block_io(&read(&dir.join("io.stat")).unwrap_or_default());
    stats.blkio.psi = pressure(dir, "io.pressure");
    for size in huge_page_sizes(dir, ".current") {
        let reserved = dir.join(format!("hugetlb.{size}.rsvd.current")).exists();
        let current = if reserved { format!("hugetlb.{size}.rsvd.current") } else { format!("hugetlb.{size}.current") };
        let failcnt = table(dir, &format!("hugetlb.{size}.events")).get("max").copied().unwrap_or(0);
        stats.hugetlb.insert(size, Huge { usage: number(dir, &current), max: 0, failcnt });
    }
    stats
}

fn cpu(dir: &Path) -> Cpu {
    let counts = table(dir, "cpu.stat");
    let count = |name: &str| counts.get(name).copied().unwrap_or(0);
    let usage = CpuUsage {
        total: count("usage_usec") * 1_000,
        kernel: count("system_usec") * 1_000,
        user: count("user_usec") * 1_000,
        ..CpuUsage::default()
    };
    let throttling = Throttling {
        periods: count("nr_periods"),
        throttled_periods: count("nr_throttled"),
        throttled_time: count("throttled_usec") * 1_000,
    };
    Cpu { usage, throttling, psi: pressure(dir, "cpu.pressure") }
}

fn memory(dir: &Path) -> Memory {
    let raw = table(dir, "memory.stat");
    let entry = |prefix: &str| MemoryEntry {
        limit: number(dir, &format!("memory.{prefix}max")),
        usage: number(dir, &format!("memory.{prefix}current")),
        max: number(dir, &format!("memory.{prefix}peak")),
        failcnt: 0,
    };
    let (usage, alone) = (entry(""), entry("swap."));
    // Told as on v1, memory and swap together; of that sum there is no peak.
    let swap = MemoryEntry {
        limit: if alone.limit == u64::MAX { u64::MAX } else { alone.limit.saturating_add(usage.limit) },
        usage: alone.usage + usage.usage,
        max: 0,
        failcnt: 0,
    };
    Memory {
        cache: raw.get("file").copied().unwrap_or(0),
        usage,
        swap,
        kernel: MemoryEntry::default(),
        kernel_tcp: MemoryEntry::default(),
        raw,
        psi: pressure(dir, "memory.pressure"),
    }
}

/// Without the controller, processes are counted.
fn pids(dir: &Path) -> Pids {
    if dir.join("pids.current").exists() {
        return Pids { current: number(dir, "pids.current"), limit: number(dir, "pids.max") };
    }
    let processes = read(&dir.join("cgroup.procs")).or_else(|_| read(&dir.join("cgroup.threads")));
    Pids { current: processes.unwrap_or_default().lines().count() as u64, limit: 0 }
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`, told in the words of v1.
fn block_io(text: &str) -> BlockIo {
    let mut block_io = BlockIo::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let device = words.next().and_then(|word| word.split_once(':'));
        let device = device.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let Some((major, minor)) = device else { continue };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let (list, op) = match name {
                "rbytes" => (&mut block_io.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut block_io.io_service_bytes_recursive, "Write"),
                "rios" => (&mut block_io.io_serviced_recursive, "Read"),
                "wios" => (&mut block_io.io_serviced_recursive, "Write"),
                _ => continue,
            };
            list.push(BlockEntry { major, minor, op: op.to_owned(), value: value.parse().unwrap_or(0) });
        }
    }
    block_io
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_io_is_told_in_the_words_of_v1() {
        let block_io = block_io("8:0 rbytes=4096 wbytes=0 rios=1 wios=2 dbytes=0 dios=0\n");
        let entry = |op: &str, value| BlockEntry { major: 8, minor: 0, op: op.to_owned(), value };
        assert_eq!(block_io.io_service_bytes_recursive, [entry("Read", 4096), entry("Write", 0)]);
        assert_eq!(block_io.io_serviced_recursive, [entry("Read", 1), entry("Write", 2)]);
    }
}
