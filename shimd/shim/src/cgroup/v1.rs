//! Counters of cgroup version 1, as `io.containerd.cgroups.v1.Metrics`.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use proto_shim::cgroups_v1::{
    BlkIoEntry, BlkIoStat, CpuStat, CpuUsage, HugetlbStat, MemoryEntry, MemoryOomControl, MemoryStat, Metrics,
    PidsStat, Throttle,
};
use rustix::event::EventfdFlags;
use rustix::fs::{Mode, OFlags};

use super::{Table, number, read_file};

/// Nanoseconds of the ticks in which `cpuacct.stat` counts.
const TICK_NS: u64 = 10_000_000;

/// The counters of all controllers that `directory_of` knows.
pub(super) fn stats(directory_of: impl Fn(&str) -> Option<PathBuf>) -> Metrics {
    let memory = directory_of("memory");
    Metrics {
        hugetlb: directory_of("hugetlb").map(|directory| hugetlb(&directory)).unwrap_or_default(),
        pids: directory_of("pids").map(|directory| pids(&directory)),
        cpu: cpu(directory_of("cpu").as_deref(), directory_of("cpuacct").as_deref()),
        memory: memory.as_deref().map(memory_stat),
        blkio: directory_of("blkio").map(|directory| blkio(&directory)),
        memory_oom_control: memory.as_deref().map(oom_control),
        ..Metrics::default()
    }
}

fn pids(directory: &Path) -> PidsStat {
    let limit = number(&directory.join("pids.max"));
    // No limit is told as zero.
    PidsStat { current: number(&directory.join("pids.current")), limit: if limit == u64::MAX { 0 } else { limit } }
}

fn cpu(cpu: Option<&Path>, cpuacct: Option<&Path>) -> Option<CpuStat> {
    if cpu.is_none() && cpuacct.is_none() {
        return None;
    }
    Some(CpuStat { usage: cpuacct.map(usage), throttling: cpu.map(throttling) })
}

fn usage(directory: &Path) -> CpuUsage {
    let text = read_file(directory.join("cpuacct.stat")).unwrap_or_default();
    let ticks = Table::parse(&text);
    let per_cpu = read_file(directory.join("cpuacct.usage_percpu")).unwrap_or_default();
    CpuUsage {
        total: number(&directory.join("cpuacct.usage")),
        kernel: ticks.or_zero("system") * TICK_NS,
        user: ticks.or_zero("user") * TICK_NS,
        per_cpu: per_cpu.split_whitespace().filter_map(|word| word.parse().ok()).collect(),
    }
}

fn throttling(directory: &Path) -> Throttle {
    let text = read_file(directory.join("cpu.stat")).unwrap_or_default();
    let table = Table::parse(&text);
    Throttle {
        periods: table.or_zero("nr_periods"),
        throttled_periods: table.or_zero("nr_throttled"),
        throttled_time: table.or_zero("throttled_time"),
    }
}

fn memory_stat(directory: &Path) -> MemoryStat {
    let text = read_file(directory.join("memory.stat")).unwrap_or_default();
    let table = Table::parse(&text);
    let at = |key| table.or_zero(key);
    MemoryStat {
        cache: at("cache"),
        rss: at("rss"),
        rss_huge: at("rss_huge"),
        mapped_file: at("mapped_file"),
        dirty: at("dirty"),
        writeback: at("writeback"),
        pg_pg_in: at("pgpgin"),
        pg_pg_out: at("pgpgout"),
        pg_fault: at("pgfault"),
        pg_maj_fault: at("pgmajfault"),
        inactive_anon: at("inactive_anon"),
        active_anon: at("active_anon"),
        inactive_file: at("inactive_file"),
        active_file: at("active_file"),
        unevictable: at("unevictable"),
        hierarchical_memory_limit: at("hierarchical_memory_limit"),
        hierarchical_swap_limit: at("hierarchical_memsw_limit"),
        total_cache: at("total_cache"),
        total_rss: at("total_rss"),
        total_rss_huge: at("total_rss_huge"),
        total_mapped_file: at("total_mapped_file"),
        total_dirty: at("total_dirty"),
        total_writeback: at("total_writeback"),
        total_pg_pg_in: at("total_pgpgin"),
        total_pg_pg_out: at("total_pgpgout"),
        total_pg_fault: at("total_pgfault"),
        total_pg_maj_fault: at("total_pgmajfault"),
        total_inactive_anon: at("total_inactive_anon"),
        total_active_anon: at("total_active_anon"),
        total_inactive_file: at("total_inactive_file"),
        total_active_file: at("total_active_file"),
        total_unevictable: at("total_unevictable"),
        usage: Some(memory_entry(directory, "")),
        swap: Some(memory_entry(directory, "memsw.")),
        kernel: Some(memory_entry(directory, "kmem.")),
        kernel_tcp: Some(memory_entry(directory, "kmem.tcp.")),
    }
}

fn memory_entry(directory: &Path, part: &str) -> MemoryEntry {
    let at = |name: &str| number(&directory.join(format!("memory.{part}{name}")));
    MemoryEntry {
        limit: at("limit_in_bytes"),
        usage: at("usage_in_bytes"),
        max: at("max_usage_in_bytes"),
        failcnt: at("failcnt"),
    }
}

fn oom_control(directory: &Path) -> MemoryOomControl {
    let text = read_file(directory.join("memory.oom_control")).unwrap_or_default();
    let table = Table::parse(&text);
    MemoryOomControl {
        oom_kill_disable: table.or_zero("oom_kill_disable"),
        under_oom: table.or_zero("under_oom"),
        oom_kill: table.or_zero("oom_kill"),
    }
}

fn hugetlb(directory: &Path) -> Vec<HugetlbStat> {
    super::v2::page_sizes(directory, ".usage_in_bytes")
        .into_iter()
        .map(|pagesize| {
            let at = |name: &str| number(&directory.join(format!("hugetlb.{pagesize}.{name}")));
            HugetlbStat { usage: at("usage_in_bytes"), max: at("max_usage_in_bytes"), failcnt: at("failcnt"), pagesize }
        })
        .collect()
}

fn blkio(directory: &Path) -> BlkIoStat {
    let at = |name: &str| blkio_entries(&read_file(directory.join(name)).unwrap_or_default());
    let or = |entries: Vec<BlkIoEntry>, name: &str| if entries.is_empty() { at(name) } else { entries };
    BlkIoStat {
        io_service_bytes_recursive: or(
            at("blkio.bfq.io_service_bytes_recursive"),
            "blkio.throttle.io_service_bytes_recursive",
        ),
        io_serviced_recursive: or(at("blkio.bfq.io_serviced_recursive"), "blkio.throttle.io_serviced_recursive"),
        io_queued_recursive: at("blkio.io_queued_recursive"),
        io_service_time_recursive: at("blkio.io_service_time_recursive"),
        io_wait_time_recursive: at("blkio.io_wait_time_recursive"),
        io_merged_recursive: at("blkio.io_merged_recursive"),
        io_time_recursive: at("blkio.time_recursive"),
        sectors_recursive: at("blkio.sectors_recursive"),
    }
}

/// Lines of `major:minor operation value`, or without the operation.
fn blkio_entries(text: &str) -> Vec<BlkIoEntry> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let (op, value) = match (words.next()?, words.next()) {
            (op, Some(value)) => (op, value),
            (value, None) => ("", value),
        };
        Some(BlkIoEntry {
            op: op.to_owned(),
            device: String::new(),
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            value: value.parse().ok()?,
        })
    };
    text.lines().filter_map(entry).collect()
}

/// An eventfd that the kernel signals at an OOM in the cgroup, and when the cgroup goes.
pub(super) fn watch_kills(directory: &Path) -> io::Result<OwnedFd> {
    let events = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let control = rustix::fs::open(directory.join("memory.oom_control"), flags, Mode::empty())?;
    let line = format!("{} {}", events.as_raw_fd(), control.as_raw_fd());
    fs::write(directory.join("cgroup.event_control"), line)?;
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_counters_with_and_without_operations() {
        let entries = blkio_entries("8:0 Read 10\n8:16 7\nTotal 17\n");
        assert_eq!(entries.len(), 2);
        assert_eq!((entries[0].op.as_str(), entries[0].value), ("Read", 10));
        assert_eq!((entries[1].minor, entries[1].value), (16, 7));
    }
}
