//! Limits in the files of cgroup v2.

use std::path::Path;

use rustix::io::Errno;

use super::{Hierarchy, read, v1::rdma_line, write, write_limit};
use crate::fault::{Attempt, Code, Fault, Result};
use crate::spec::{BlockIo, Cpu, HugepageLimit, Memory, Resources, ThrottleDevice};

/// Hands the controllers down from the root of the hierarchy to the container's directory: all that there are, as
/// runc does, so that a later `update` and `events` find them.
pub(super) fn enable_controllers(hierarchy: &Hierarchy, resources: &Resources) -> Result<()> {
    let below = hierarchy.dir.strip_prefix(&hierarchy.mount).unwrap_or(Path::new(""));
    let available = read(&hierarchy.mount.join("cgroup.controllers"))
        .attempt(Code::CgroupFailed, || format!("list the controllers of {}", hierarchy.mount.display()))?;
    let wanted: Vec<&str> = available.split_whitespace().collect();
    let mut dir = hierarchy.mount.clone();
    for name in below {
        enable(&dir, &wanted);
        dir.push(name);
    }
    check_enabled(&hierarchy.dir, resources)
}

/// Enables what can be enabled in the children of `dir`; one that cannot be (a realtime process in it, a threaded
/// cgroup) is missed only by a limit that needs it.
fn enable(dir: &Path, wanted: &[&str]) {
    let file = dir.join("cgroup.subtree_control");
    let enabled = read(&file).unwrap_or_default();
    let missing: Vec<&&str> =
        wanted.iter().filter(|controller| !enabled.split_whitespace().any(|has| has == **controller)).collect();
    if missing.is_empty() {
        return;
    }
    let all: Vec<String> = missing.iter().map(|controller| format!("+{controller}")).collect();
    if write(&file, &all.join(" ")).is_err() {
        for one in all {
            let _ = write(&file, &one);
        }
    }
}

fn check_enabled(dir: &Path, resources: &Resources) -> Result<()> {
    let has = read(&dir.join("cgroup.controllers")).unwrap_or_default();
    let needs = [
        ("memory", resources.memory.as_ref().is_some_and(|memory| memory.limit.unwrap_or(0) != 0)),
        ("cpu", resources.cpu.as_ref().is_some_and(|cpu| cpu.shares.unwrap_or(0) != 0 || cpu.quota.unwrap_or(0) != 0)),
        ("cpuset", resources.cpu.as_ref().is_some_and(|cpu| !cpu.cpus.is_empty() || !cpu.mems.is_empty())),
        ("pids", resources.pids.as_ref().is_some_and(|pids| pids.limit.unwrap_or(0) > 0)),
    ];
    let missing = needs.iter().find(|(name, needed)| *needed && !has.split_whitespace().any(|one| one == *name));
    match missing {
        None => Ok(()),
        Some((name, _)) => Err(Fault::new(Code::Unsupported, format!("limit cgroup {}", dir.display()))
            .cause(format!("the controller {name} is not available there"))),
    }
}

/// Puts all limits but those of devices in force.
pub(super) fn set(hierarchy: &Hierarchy, resources: &Resources) -> Result<()> {
    let dir = hierarchy.dir.as_path();
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) {
        write_limit(dir, "pids.max", &tasks(limit))?;
    }
    if let Some(memory) = &resources.memory {
        set_memory(dir, memory)?;
    }
    if let Some(block) = &resources.block_io {
        set_block_io(dir, block)?;
    }
    if let Some(cpu) = &resources.cpu {
        set_cpu(dir, cpu, is_idle(resources))?;
    }
    for limit in &resources.hugepage_limits {
        set_hugepages(dir, limit)?;
    }
    for (device, limit) in &resources.rdma {
        write_limit(dir, "rdma.max", &rdma_line(device, limit))?;
    }
    set_unified(dir, resources)
}

/// The number of tasks as the file takes it. 0 is the smallest limit that systemd has too, which is 1: as runc.
pub(super) fn tasks(limit: i64) -> String {
    if limit < 0 { "max".to_owned() } else { limit.max(1).to_string() }
}

fn set_hugepages(dir: &Path, limit: &HugepageLimit) -> Result<()> {
    let value = limit.limit.to_string();
    let size = check_page_size(&limit.page_size)?;
    write_limit(dir, &format!("hugetlb.{size}.max"), &value)?;
    // The reservation limit came later (5.7): without it a container could reserve more than it may use.
    let reservation = format!("hugetlb.{size}.rsvd.max");
    if dir.join(&reservation).exists() { write_limit(dir, &reservation, &value) } else { Ok(()) }
}

/// A size is a part of a file's name.
pub(super) fn check_page_size(size: &str) -> Result<&str> {
    if !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Ok(size);
    }
    Err(Fault::new(Code::SpecInvalid, "linux.resources.hugepageLimits").cause(format!("invalid page size {size:?}")))
}

/// What a person is told whose weight for the CPU is left out: a cgroup that gets idle time alone can have none.
pub(crate) fn ignored_weight(resources: &Resources) -> Option<&'static str> {
    let by_field = resources.cpu.as_ref().and_then(|cpu| cpu.shares).is_some_and(|shares| shares != 0);
    let is_left_out = is_idle(resources) && (by_field || resources.unified.contains_key("cpu.weight"));
    // The first words are runc's, by which its users know it.
    is_left_out.then_some("unable to apply both cpu.weight and cpu.idle: the weight is left out")
}

/// Whether it gets idle time alone: the file that the spec names counts after the field.
pub(crate) fn is_idle(resources: &Resources) -> bool {
    let by_field = resources.cpu.as_ref().is_some_and(|cpu| cpu.idle == Some(1));
    resources.unified.get("cpu.idle").map_or(by_field, |text| text.trim() == "1")
}

/// Files named by the spec itself, in the container's directory and nowhere else.
fn set_unified(dir: &Path, resources: &Resources) -> Result<()> {
    let is_idle = is_idle(resources);
    for (file, value) in resources.unified.iter().filter(|(file, _)| !(is_idle && *file == "cpu.weight")) {
        let field = || format!("linux.resources.unified {file:?}");
        let controller = match file.split_once('.') {
            _ if file.contains('/') => {
                let cause = format!("unified resource {file:?} must be a file name (no slashes)");
                return Err(Fault::new(Code::SpecInvalid, field()).cause(cause));
            }
            Some((controller, _)) if !controller.is_empty() => controller,
            _ => {
                let cause = format!("unified resource {file:?} must be in the form CONTROLLER.PARAMETER");
                return Err(Fault::new(Code::SpecInvalid, field()).cause(cause));
            }
        };
        if !dir.join(file).exists() && controller != "cgroup" && !has_controller(dir, controller) {
            let cause = format!("unified resource {file:?} can't be set: controller {controller:?} not available");
            return Err(Fault::new(Code::Unsupported, field()).cause(cause));
        }
        // Files with one value per line take one line per write.
        for line in value.lines() {
            write_limit(dir, file, line)?;
        }
    }
    Ok(())
}

fn has_controller(dir: &Path, name: &str) -> bool {
    read(&dir.join("cgroup.controllers")).is_ok_and(|text| text.split_whitespace().any(|one| one == name))
}

/// A number of the spec as v2 writes it: -1 is `max`.
fn amount(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

fn set_memory(dir: &Path, memory: &Memory) -> Result<()> {
    check_before_update(dir, memory)?;
    if let Some(swap) = swap_alone(memory)? {
        write_swap(dir, &swap)?;
    }
    if let Some(limit) = memory.limit.filter(|limit| *limit != 0) {
        write_limit(dir, "memory.max", &amount(limit))?;
    }
    if let Some(reservation) = memory.reservation.filter(|reservation| *reservation != 0) {
        write_limit(dir, "memory.low", &amount(reservation))?;
    }
    Ok(())
}

/// v1 and the spec count memory and swap together, v2 counts swap alone.
pub(crate) fn swap_alone(memory: &Memory) -> Result<Option<String>> {
    let limit = memory.limit.unwrap_or(0);
    let invalid = |cause: &str| Fault::new(Code::LimitInvalid, "linux.resources.memory.swap").cause(cause);
    match memory.swap.unwrap_or(0) {
        // Unlimited memory and no word about swap: unlimited too.
        0 if limit == -1 => Ok(Some("max".to_owned())),
        0 => Ok(None),
        -1 => Ok(Some("max".to_owned())),
        swap if swap < 0 => Err(invalid("is negative")),
        // Nothing to take away.
        swap if limit == -1 => Ok(Some(swap.to_string())),
        _ if limit == 0 => Err(invalid("unable to set swap limit without memory limit")),
        swap if swap < limit => Err(invalid("memory+swap limit should be >= memory limit")),
        swap => Ok(Some((swap - limit).to_string())),
    }
}

fn write_swap(dir: &Path, swap: &str) -> Result<()> {
    match write(&dir.join("memory.swap.max"), swap) {
        // Without swap accounting in the kernel there is nothing to unlimit.
        Err(failure) if failure.errno == Errno::NOENT && matches!(swap, "max" | "0") => Ok(()),
        Err(_) => write_limit(dir, "memory.swap.max", swap),
        Ok(()) => Ok(()),
    }
}

/// Refuses a limit that would have the container killed at once, where that was asked for.
pub(super) fn check_before_update(dir: &Path, memory: &Memory) -> Result<()> {
    if memory.check_before_update != Some(true) {
        return Ok(());
    }
    let Some(usage) = read(&dir.join("memory.current")).ok().and_then(|text| text.trim().parse::<i64>().ok()) else {
        return Ok(());
    };
    for (name, field, limit) in [("memory+swap", "swap", memory.swap), ("memory", "limit", memory.limit)] {
        if let Some(limit) = limit.filter(|limit| *limit > 0 && *limit <= usage) {
            return Err(Fault::new(Code::LimitInvalid, format!("linux.resources.memory.{field}"))
                .cause(format!("rejecting {name} limit {limit} <= usage {usage}")));
        }
    }
    Ok(())
}

fn set_cpu(dir: &Path, cpu: &Cpu, is_idle: bool) -> Result<()> {
    if let Some(idle) = cpu.idle {
        write_limit(dir, "cpu.idle", &idle.to_string())?;
    }
    // The weight of an idle cgroup cannot be set, and it may be idle already: an update, or systemd, which was told before.
    let is_idle = is_idle || cpu.idle == Some(1);
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0 && !is_idle) {
        write_limit(dir, "cpu.weight", &weight(shares).to_string())?;
    }
    set_bandwidth(dir, cpu)?;
    if !cpu.cpus.is_empty() {
        write_limit(dir, "cpuset.cpus", &cpu.cpus)?;
    }
    if !cpu.mems.is_empty() {
        write_limit(dir, "cpuset.mems", &cpu.mems)?;
    }
    Ok(())
}

/// The kernel keeps the burst at most the quota at every moment: one that grows past the old quota goes second.
fn set_bandwidth(dir: &Path, cpu: &Cpu) -> Result<()> {
    const BURST: &str = "cpu.max.burst";
    let has_quota = cpu.quota.unwrap_or(0) != 0 || cpu.period.unwrap_or(0) != 0;
    let mut later = None;
    if let Some(burst) = cpu.burst.map(|burst| burst.to_string()) {
        match write(&dir.join(BURST), &burst) {
            Ok(()) => {}
            Err(failure) if failure.errno == Errno::INVAL && has_quota => later = Some(burst),
            Err(_) => write_limit(dir, BURST, &burst)?,
        }
    }
    if has_quota {
        let quota = cpu.quota.filter(|quota| *quota > 0).map_or("max".to_owned(), |quota| quota.to_string());
        let period = cpu.period.filter(|period| *period != 0).unwrap_or(100_000);
        write_limit(dir, "cpu.max", &format!("{quota} {period}"))?;
    }
    later.map_or(Ok(()), |burst| write_limit(dir, BURST, &burst))
}

/// Shares (2 to 262144, 1024 is normal) as a weight (1 to 10000, 100 is normal). A straight line between the ends would
/// give a normal container 39; runc and crun agreed on this quadratic in the logarithms, which maps all three points.
pub(crate) fn weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10_f64.powf(exponent).ceil() as u64
}

fn set_block_io(dir: &Path, block: &BlockIo) -> Result<()> {
    // bfq counts like the spec; io.weight, of the cost model, counts from 1 to 10000.
    let weights = [block.weight].into_iter().chain(block.weight_device.iter().map(|device| device.weight));
    let bfq = weights.flatten().any(|weight| weight != 0) && dir.join("io.bfq.weight").exists();
    let (file, scale): (_, fn(u16) -> u64) =
        if bfq { ("io.bfq.weight", u64::from) } else { ("io.weight", cost_weight) };
    if let Some(weight) = block.weight.filter(|weight| *weight != 0) {
        write_limit(dir, file, &format!("default {}", scale(weight)))?;
    }
    for device in &block.weight_device {
        if let Some(weight) = device.weight.filter(|weight| *weight != 0) {
            write_limit(dir, file, &format!("{}:{} {}", device.major, device.minor, scale(weight)))?;
        }
    }
    let throttles: [(&str, &[ThrottleDevice]); 4] = [
        ("rbps", &block.throttle_read_bps_device),
        ("wbps", &block.throttle_write_bps_device),
        ("riops", &block.throttle_read_iops_device),
        ("wiops", &block.throttle_write_iops_device),
    ];
    for (name, devices) in throttles {
        for device in devices {
            write_limit(dir, "io.max", &format!("{}:{} {name}={}", device.major, device.minor, device.rate))?;
        }
    }
    Ok(())
}

/// 10 to 1000 as 1 to 10000.
fn cost_weight(weight: u16) -> u64 {
    1 + u64::from(weight).saturating_sub(10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(limit: i64, swap: i64) -> Memory {
        Memory { limit: Some(limit), swap: Some(swap), ..Memory::default() }
    }

    #[test]
    fn a_weight_beside_idle_is_told_to_be_left_out() {
        let is_told = |text: &str| {
            ignored_weight(&serde_json::from_str(text).unwrap())
                .is_some_and(|words| words.starts_with("unable to apply both"))
        };
        assert!(is_told(r#"{"cpu":{"idle":1,"shares":200}}"#));
        assert!(is_told(r#"{"unified":{"cpu.idle":"1","cpu.weight":"8"}}"#));
        assert!(is_told(r#"{"cpu":{"idle":1},"unified":{"cpu.weight":"8"}}"#));
        assert!(is_told(r#"{"cpu":{"shares":200},"unified":{"cpu.idle":"1"}}"#));
        assert!(!is_told(r#"{"cpu":{"idle":0,"shares":200},"unified":{"cpu.weight":"8"}}"#));
        assert!(!is_told(r#"{"cpu":{"idle":1}}"#));
    }

    #[test]
    fn the_weight_of_who_is_idle_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let written = |text: &str| {
            for file in ["cpu.idle", "cpu.weight"] {
                std::fs::write(dir.path().join(file), "").unwrap();
            }
            let at = dir.path().to_owned();
            let (mount, top) = (at.clone(), super::super::Top::default());
            let hierarchy = Hierarchy { controllers: String::new(), mount, dir: at, top };
            set(&hierarchy, &serde_json::from_str(text).unwrap()).unwrap();
            ["cpu.idle", "cpu.weight"].map(|file| std::fs::read_to_string(dir.path().join(file)).unwrap())
        };
        assert_eq!(written(r#"{"cpu":{"idle":1,"shares":200}}"#), ["1", ""]);
        assert_eq!(written(r#"{"cpu":{"idle":1},"unified":{"cpu.weight":"8"}}"#), ["1", ""]);
        assert_eq!(written(r#"{"cpu":{"shares":200},"unified":{"cpu.idle":"1"}}"#), ["1", ""]);
        assert_eq!(written(r#"{"cpu":{"idle":0},"unified":{"cpu.weight":"8"}}"#), ["0", "8"]);
    }

    #[test]
    fn swap_is_counted_alone() {
        assert_eq!(swap_alone(&memory(100, 300)).unwrap().as_deref(), Some("200"));
        assert_eq!(swap_alone(&memory(100, 100)).unwrap().as_deref(), Some("0"));
        assert_eq!(swap_alone(&memory(100, -1)).unwrap().as_deref(), Some("max"));
        assert_eq!(swap_alone(&memory(100, 0)).unwrap(), None);
        assert!(swap_alone(&memory(100, 99)).is_err());
        assert!(swap_alone(&memory(0, 99)).is_err());
        assert_eq!(swap_alone(&memory(-1, 99)).unwrap().as_deref(), Some("99"));
        assert_eq!(swap_alone(&memory(-1, 0)).unwrap().as_deref(), Some("max"));
    }

    #[test]
    fn shares_become_weights_at_the_ends_and_in_the_middle() {
        for (shares, expected) in [(2, 1), (1024, 100), (262_144, 10_000), (0, 1), (1 << 40, 10_000)] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
        assert!(weight(512) < 100 && weight(2048) > 100);
    }
}
