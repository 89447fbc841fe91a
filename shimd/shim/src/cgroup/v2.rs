//! Counters of cgroup version 2, as `io.containerd.cgroups.v2.Metrics`.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use proto_shim::cgroups_v2::{
    CpuStat, HugeTlbStat, IoEntry, IoStat, MemoryEvents, MemoryStat, Metrics, PidsStat, PsiData, PsiStats,
};
use rustix::fs::inotify;

use super::{Table, number, read_file};

pub(super) fn stats(directory: &Path) -> Metrics {
    Metrics {
        pids: Some(pids(directory)),
        cpu: Some(cpu(directory)),
        memory: Some(memory(directory)),
        io: Some(IoStat { usage: io_entries(&text(directory, "io.stat")), psi: pressure(directory, "io") }),
        hugetlb: hugetlb(directory),
        memory_events: Some(memory_events(directory)),
        ..Metrics::default()
    }
}

fn text(directory: &Path, name: &str) -> String {
    read_file(directory.join(name)).unwrap_or_default()
}

fn pids(directory: &Path) -> PidsStat {
    let limit = number(&directory.join("pids.max"));
    PidsStat { current: number(&directory.join("pids.current")), limit: if limit == u64::MAX { 0 } else { limit } }
}

fn cpu(directory: &Path) -> CpuStat {
    let text = text(directory, "cpu.stat");
    let table = Table::parse(&text);
    CpuStat {
        usage_usec: table.or_zero("usage_usec"),
        user_usec: table.or_zero("user_usec"),
        system_usec: table.or_zero("system_usec"),
        nr_periods: table.or_zero("nr_periods"),
        nr_throttled: table.or_zero("nr_throttled"),
        throttled_usec: table.or_zero("throttled_usec"),
        psi: pressure(directory, "cpu"),
        nr_bursts: table.or_zero("nr_bursts"),
        burst_usec: table.or_zero("burst_usec"),
    }
}

fn memory(directory: &Path) -> MemoryStat {
    let text = text(directory, "memory.stat");
    let table = Table::parse(&text);
    let at = |key| table.or_zero(key);
    let file = |name: &str| number(&directory.join(name));
    MemoryStat {
        anon: at("anon"),
        file: at("file"),
        kernel_stack: at("kernel_stack"),
        slab: at("slab"),
        sock: at("sock"),
        shmem: at("shmem"),
        file_mapped: at("file_mapped"),
        file_dirty: at("file_dirty"),
        file_writeback: at("file_writeback"),
        anon_thp: at("anon_thp"),
        inactive_anon: at("inactive_anon"),
        active_anon: at("active_anon"),
        inactive_file: at("inactive_file"),
        active_file: at("active_file"),
        unevictable: at("unevictable"),
        slab_reclaimable: at("slab_reclaimable"),
        slab_unreclaimable: at("slab_unreclaimable"),
        pgfault: at("pgfault"),
        pgmajfault: at("pgmajfault"),
        workingset_refault: at("workingset_refault_anon") + at("workingset_refault_file"),
        workingset_activate: at("workingset_activate_anon") + at("workingset_activate_file"),
        workingset_nodereclaim: at("workingset_nodereclaim"),
        pgrefill: at("pgrefill"),
        pgscan: at("pgscan"),
        pgsteal: at("pgsteal"),
        pgactivate: at("pgactivate"),
        pgdeactivate: at("pgdeactivate"),
        pglazyfree: at("pglazyfree"),
        pglazyfreed: at("pglazyfreed"),
        thp_fault_alloc: at("thp_fault_alloc"),
        thp_collapse_alloc: at("thp_collapse_alloc"),
        usage: file("memory.current"),
        usage_limit: file("memory.max"),
        swap_usage: file("memory.swap.current"),
        swap_limit: file("memory.swap.max"),
        max_usage: file("memory.peak"),
        swap_max_usage: file("memory.swap.peak"),
        psi: pressure(directory, "memory"),
    }
}

fn memory_events(directory: &Path) -> MemoryEvents {
    let text = text(directory, "memory.events");
    let table = Table::parse(&text);
    MemoryEvents {
        low: table.or_zero("low"),
        high: table.or_zero("high"),
        max: table.or_zero("max"),
        oom: table.or_zero("oom"),
        oom_kill: table.or_zero("oom_kill"),
        oom_group_kill: table.or_zero("oom_group_kill"),
    }
}

fn pressure(directory: &Path, resource: &str) -> Option<PsiStats> {
    let text = read_file(directory.join(format!("{resource}.pressure"))).ok()?;
    let line = |kind: &str| text.lines().find_map(|line| line.strip_prefix(kind)).map(pressure_line);
    Some(PsiStats { some: line("some "), full: line("full ") })
}

/// `avg10=0.00 avg60=0.00 avg300=0.00 total=0`
fn pressure_line(line: &str) -> PsiData {
    let mut data = PsiData::default();
    for (key, value) in line.split_whitespace().filter_map(|word| word.split_once('=')) {
        match key {
            "avg10" => data.avg10 = value.parse().unwrap_or(0.0),
            "avg60" => data.avg60 = value.parse().unwrap_or(0.0),
            "avg300" => data.avg300 = value.parse().unwrap_or(0.0),
            "total" => data.total = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    data
}

/// Lines of `major:minor rbytes=… wbytes=… rios=… wios=…`.
fn io_entries(text: &str) -> Vec<IoEntry> {
    let entry = |line: &str| {
        let (device, counters) = line.split_once(' ')?;
        let (major, minor) = device.split_once(':')?;
        let counter = |name: &str| {
            let mut pairs = counters.split_whitespace().filter_map(|word| word.split_once('='));
            pairs.find(|(key, _)| *key == name).and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
        };
        Some(IoEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            rbytes: counter("rbytes"),
            wbytes: counter("wbytes"),
            rios: counter("rios"),
            wios: counter("wios"),
        })
    };
    text.lines().filter_map(entry).collect()
}

fn hugetlb(directory: &Path) -> Vec<HugeTlbStat> {
    page_sizes(directory, ".current")
        .into_iter()
        .map(|pagesize| {
            let at = |name: &str| directory.join(format!("hugetlb.{pagesize}.{name}"));
            let events = read_file(at("events")).unwrap_or_default();
            HugeTlbStat {
                current: number(&at("current")),
                max: number(&at("max")),
                failcnt: Table::parse(&events).or_zero("max"),
                pagesize,
            }
        })
        .collect()
}

/// The sizes that stand in file names `hugetlb.SIZE` + `ending`.
pub(super) fn page_sizes(directory: &Path, ending: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let size = |entry: io::Result<fs::DirEntry>| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(ending)?;
        (!size.contains('.')).then(|| size.to_owned())
    };
    let mut sizes: Vec<String> = entries.filter_map(size).collect();
    sizes.sort();
    sizes
}

/// An inotify instance that wakes when `memory.events` changes.
pub(super) fn watch_kills(directory: &Path) -> io::Result<OwnedFd> {
    let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&events, directory.join("memory.events"), inotify::WatchFlags::MODIFY)?;
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_and_pressure_lines() {
        let entries = io_entries("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0\n8:16 \n");
        assert_eq!((entries[0].rbytes, entries[0].wios, entries[1].rbytes), (1, 4, 0));
        let data = pressure_line("avg10=1.50 avg60=0.20 avg300=0.00 total=12");
        assert_eq!((data.avg10, data.avg60, data.total), (1.5, 0.2, 12));
    }
}
