//! Limits in the files of cgroup v1.

use std::cmp::Ordering;
use std::path::Path;

use rustix::io::Errno;

use super::v2::{check_page_size, tasks};
use super::{Cgroup, Hierarchy, read, write, write_limit, write_to};
use crate::fault::{Attempt, Code, Fault, Result};
use crate::plan::devices::{DeviceKind, DeviceRule};
use crate::spec::{BlockIo, Cpu, Memory, NetworkClass, Resources, ThrottleDevice};
use crate::sys::Call;

/// What a cpuset must have before it takes a process.
const CPUSET_FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// Puts all limits but those of devices in force.
pub(super) fn set(cgroup: &Cgroup, resources: &Resources) -> Result<()> {
    if let Some(memory) = &resources.memory {
        set_memory(dir(cgroup, "memory", "linux.resources.memory", is_empty_memory(memory))?, memory)?;
    }
    if let Some(cpu) = &resources.cpu {
        set_cpu(dir(cgroup, "cpu", "linux.resources.cpu", is_empty_cpu(cpu))?, cpu)?;
        let absent = cpu.cpus.is_empty() && cpu.mems.is_empty();
        set_cpuset(dir(cgroup, "cpuset", "linux.resources.cpu.cpus", absent)?, cpu)?;
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) {
        set_pids(dir(cgroup, "pids", "linux.resources.pids", limit < 0)?, limit)?;
    }
    if let Some(block) = &resources.block_io {
        set_block_io(dir(cgroup, "blkio", "linux.resources.blockIO", is_empty_block_io(block))?, block)?;
    }
    set_others(cgroup, resources)
}

fn set_others(cgroup: &Cgroup, resources: &Resources) -> Result<()> {
    for limit in &resources.hugepage_limits {
        if let Some(dir) = dir(cgroup, "hugetlb", "linux.resources.hugepageLimits", false)? {
            let size = check_page_size(&limit.page_size)?;
            write_limit(dir, &format!("hugetlb.{size}.limit_in_bytes"), &limit.limit.to_string())?;
            // Since 5.7: else more could be reserved than may be used.
            let reservation = format!("hugetlb.{size}.rsvd.limit_in_bytes");
            if dir.join(&reservation).exists() {
                write_limit(dir, &reservation, &limit.limit.to_string())?;
            }
        }
    }
    if let Some(network) = &resources.network {
        set_network(cgroup, network)?;
    }
    for (device, limit) in &resources.rdma {
        if let Some(dir) = dir(cgroup, "rdma", "linux.resources.rdma", false)? {
            write_limit(dir, "rdma.max", &rdma_line(device, limit))?;
        }
    }
    Ok(())
}

/// `mlx5_0 hca_handle=2 hca_object=2000`, for v1 and v2.
pub(super) fn rdma_line(device: &str, limit: &crate::spec::Rdma) -> String {
    let mut line = device.to_owned();
    if let Some(handles) = limit.hca_handles {
        line += &format!(" hca_handle={handles}");
    }
    if let Some(objects) = limit.hca_objects {
        line += &format!(" hca_object={objects}");
    }
    line
}

/// The directory of a controller; one that is missing is an error only if something was asked of it.
fn dir<'c>(cgroup: &'c Cgroup, controller: &str, field: &str, nothing_asked: bool) -> Result<Option<&'c Path>> {
    match cgroup.controller(controller) {
        Some(hierarchy) => Ok(Some(&hierarchy.dir)),
        None if nothing_asked => Ok(None),
        None => {
            // The words that callers of runc know, whether the kernel has no such controller or the user no right to it.
            Err(Fault::new(Code::Unsupported, field)
                .cause(format!("cannot set {controller} limit"))
                .cause("container could not join or create cgroup"))
        }
    }
}

fn is_empty_memory(memory: &Memory) -> bool {
    let numbers = [memory.limit, memory.reservation, memory.swap];
    numbers.iter().all(|number| number.unwrap_or(0) == 0) && memory.swappiness.is_none()
}

fn is_empty_cpu(cpu: &Cpu) -> bool {
    let times = [cpu.quota, cpu.realtime_runtime].iter().all(|time| time.unwrap_or(0) == 0);
    let periods = [cpu.shares, cpu.period, cpu.realtime_period].iter().all(|number| number.unwrap_or(0) == 0);
    times && periods && cpu.burst.is_none() && cpu.idle.is_none()
}

fn is_empty_block_io(block: &BlockIo) -> bool {
    block.weight.unwrap_or(0) == 0
        && block.weight_device.is_empty()
        && block.throttle_read_bps_device.is_empty()
        && block.throttle_write_bps_device.is_empty()
        && block.throttle_read_iops_device.is_empty()
        && block.throttle_write_iops_device.is_empty()
}

fn set_memory(dir: Option<&Path>, memory: &Memory) -> Result<()> {
    const LIMIT: &str = "memory.limit_in_bytes";
    const SWAP: &str = "memory.memsw.limit_in_bytes";
    let Some(dir) = dir else { return Ok(()) };
    let limit = memory.limit.filter(|limit| *limit != 0);
    let swap = memory.swap.filter(|swap| *swap != 0);
    // Unlimited memory with limited swap cannot be: runc lifts both.
    let swap = if limit == Some(-1) && swap.is_none() && dir.join(SWAP).exists() { Some(-1) } else { swap };
    check_before_update(dir, memory)?;
    match (limit, swap) {
        (Some(limit), Some(swap)) => set_both(dir, (LIMIT, limit), (SWAP, swap))?,
        (Some(limit), None) => set_limit(dir, LIMIT, limit)?,
        (None, Some(swap)) => write_limit(dir, SWAP, &swap.to_string())?,
        (None, None) => {}
    }
    if let Some(reservation) = memory.reservation.filter(|reservation| *reservation != 0) {
        write_limit(dir, "memory.soft_limit_in_bytes", &reservation.to_string())?;
    }
    if memory.disable_oom_killer == Some(true) {
        write_limit(dir, "memory.oom_control", "1")?;
    }
    match memory.swappiness {
        Some(swappiness) if swappiness > 100 && swappiness != u64::MAX => {
            Err(Fault::new(Code::LimitInvalid, "linux.resources.memory.swappiness")
                .cause(format!("invalid memory swappiness value: {swappiness} (valid range is 0-100)")))
        }
        // -1 of callers that have no word for "as it is".
        None | Some(u64::MAX) => Ok(()),
        Some(swappiness) => write_limit(dir, "memory.swappiness", &swappiness.to_string()),
    }
}

/// The kernel keeps memory at most memory and swap at every moment: a limit that grows past the old swap limit goes
/// second.
fn set_both(dir: &Path, limit: (&str, i64), swap: (&str, i64)) -> Result<()> {
    if write(&dir.join(limit.0), &limit.1.to_string()).is_ok() {
        return write_limit(dir, swap.0, &swap.1.to_string());
    }
    write_limit(dir, swap.0, &swap.1.to_string())?;
    set_limit(dir, limit.0, limit.1)
}

/// A limit below what is used, which nothing can be taken away from, is told with how much that is.
fn set_limit(dir: &Path, file: &str, limit: i64) -> Result<()> {
    let failure = match write(&dir.join(file), &limit.to_string()) {
        Err(failure) if failure.errno == Errno::BUSY => failure,
        Ok(()) => return Ok(()),
        Err(_) => return write_limit(dir, file, &limit.to_string()),
    };
    let number = |file: &str| read(&dir.join(file)).unwrap_or_default().trim().to_owned();
    let (usage, peak) = (number("memory.usage_in_bytes"), number("memory.max_usage_in_bytes"));
    let message = format!("unable to set memory limit to {limit} (current usage: {usage}, peak usage: {peak})");
    Err(Fault::of(Code::LimitInvalid, message, failure))
}

pub(super) fn check_before_update(dir: &Path, memory: &Memory) -> Result<()> {
    let Some(limit) = memory.limit.filter(|limit| *limit > 0) else { return Ok(()) };
    if memory.check_before_update != Some(true) {
        return Ok(());
    }
    let usage: i64 = read(&dir.join("memory.usage_in_bytes")).unwrap_or_default().trim().parse().unwrap_or(0);
    if usage < limit {
        return Ok(());
    }
    Err(Fault::new(Code::LimitInvalid, "linux.resources.memory.limit")
        .cause(format!("rejecting memory limit {limit} <= usage {usage}")))
}

fn set_cpu(dir: Option<&Path>, cpu: &Cpu) -> Result<()> {
    let Some(dir) = dir else { return Ok(()) };
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        set_shares(dir, shares)?;
    }
    set_in_order(
        dir,
        ("cpu.cfs_quota_us", cpu.quota.filter(|quota| *quota != 0)),
        ("cpu.cfs_period_us", cpu.period.filter(|period| *period != 0)),
        // Kernels before 5.14 know no burst: as runc, go without.
        ("cpu.cfs_burst_us", cpu.burst.filter(|_| dir.join("cpu.cfs_burst_us").exists())),
    )?;
    if let Some(idle) = cpu.idle {
        write_limit(dir, "cpu.idle", &idle.to_string())?;
    }
    set_in_order(
        dir,
        ("cpu.rt_runtime_us", cpu.realtime_runtime.filter(|runtime| *runtime != 0)),
        ("cpu.rt_period_us", cpu.realtime_period.filter(|period| *period != 0)),
        ("", None),
    )
}

/// The kernel takes what is out of its range for the nearest that is in it, in silence.
fn set_shares(dir: &Path, shares: u64) -> Result<()> {
    write_limit(dir, "cpu.shares", &shares.to_string())?;
    let taken: u64 = read(&dir.join("cpu.shares")).unwrap_or_default().trim().parse().unwrap_or(shares);
    let bound = match shares.cmp(&taken) {
        Ordering::Equal => return Ok(()),
        Ordering::Greater => "maximum",
        Ordering::Less => "minimum",
    };
    Err(Fault::new(Code::LimitInvalid, "linux.resources.cpu.shares")
        .cause(format!("the {bound} allowed cpu-shares is {taken}")))
}

/// Writes a time, its period and its burst. With the old time a new period or burst may be too much for the parent:
/// what is refused is tried again when the new time is in force.
fn set_in_order(
    dir: &Path,
    (time_file, time): (&str, Option<i64>),
    period: (&str, Option<u64>),
    burst: (&str, Option<u64>),
) -> Result<()> {
    let mut later = Vec::new();
    for (file, value) in [period, burst] {
        let Some(value) = value.map(|value| value.to_string()) else { continue };
        match write(&dir.join(file), &value) {
            Ok(()) => {}
            Err(failure) if failure.errno == Errno::INVAL && time.is_some() => later.push((file, value)),
            Err(_) => write_limit(dir, file, &value)?,
        }
    }
    if let Some(time) = time {
        write_limit(dir, time_file, &time.to_string())?;
    }
    later.iter().try_for_each(|(file, value)| write_limit(dir, file, value))
}

fn set_cpuset(dir: Option<&Path>, cpu: &Cpu) -> Result<()> {
    let Some(dir) = dir else { return Ok(()) };
    if !cpu.cpus.is_empty() {
        write_limit(dir, "cpuset.cpus", &cpu.cpus)?;
    }
    if !cpu.mems.is_empty() {
        write_limit(dir, "cpuset.mems", &cpu.mems)?;
    }
    Ok(())
}

/// A v1 cpuset is born empty and takes no process so: each new directory takes what its parent has. One that was just
/// made below the mount itself need not be looked into; one deeper may have been filled by the kernel (see below).
pub(super) fn fill_cpuset(hierarchy: &Hierarchy, is_new: bool) -> Result<()> {
    if !is_new || hierarchy.dir.parent() != Some(&hierarchy.mount) {
        return CPUSET_FILES.iter().try_for_each(|file| filled(&hierarchy.dir, file, &hierarchy.mount).map(drop));
    }
    CPUSET_FILES.iter().try_for_each(|file| {
        let above = filled(&hierarchy.mount, file, &hierarchy.mount)?;
        let attempted = || format!("fill {}", hierarchy.dir.join(file).display());
        let file = hierarchy.open_write(file).attempt(Code::CgroupFailed, attempted)?;
        write_to(&file, above.trim()).attempt(Code::CgroupFailed, attempted)
    })
}

/// What a file of a cpuset has, taken from above if that was nothing; the cpuset of the mount itself is never empty.
fn filled(dir: &Path, file: &str, mount: &Path) -> Result<String> {
    let attempted = || format!("fill {}", dir.join(file).display());
    let has = read(&dir.join(file)).attempt(Code::CgroupFailed, attempted)?;
    match dir.parent().filter(|_| has.trim().is_empty() && dir != mount) {
        None => Ok(has),
        Some(parent) => {
            let above = filled(parent, file, mount)?;
            write(&dir.join(file), above.trim()).attempt(Code::CgroupFailed, attempted)?;
            Ok(above)
        }
    }
}

/// Has the kernel fill the cpusets that will be made in a directory of ours, as it is made: it compares what is written
/// later with each sibling, and walks through all of them (cgroups-v1/cpusets.rst, 1.2, `cgroup.clone_children`).
pub(super) fn fill_cpusets_to_come(hierarchy: &Hierarchy, dir: &Path) {
    let own = Hierarchy { dir: dir.to_owned(), ..hierarchy.clone() };
    // Without it each is filled when it is made.
    let _ = fill_cpuset(&own, false).map(|()| write(&dir.join("cgroup.clone_children"), "1"));
}

fn set_pids(dir: Option<&Path>, limit: i64) -> Result<()> {
    let Some(dir) = dir else { return Ok(()) };
    write_limit(dir, "pids.max", &tasks(limit))
}

fn set_block_io(dir: Option<&Path>, block: &BlockIo) -> Result<()> {
    let Some(dir) = dir else { return Ok(()) };
    // The names depend on the scheduler: bfq has its own.
    let prefix = if dir.join("blkio.bfq.weight").exists() { "blkio.bfq." } else { "blkio." };
    if let Some(weight) = block.weight.filter(|weight| *weight != 0) {
        write_limit(dir, &format!("{prefix}weight"), &weight.to_string())?;
    }
    if let Some(weight) = block.leaf_weight.filter(|weight| *weight != 0) {
        write_limit(dir, "blkio.leaf_weight", &weight.to_string())?;
    }
    for device in &block.weight_device {
        if let Some(weight) = device.weight.filter(|weight| *weight != 0) {
            let line = format!("{}:{} {weight}", device.major, device.minor);
            write_limit(dir, &format!("{prefix}weight_device"), &line)?;
        }
        if let Some(weight) = device.leaf_weight.filter(|weight| *weight != 0) {
            let line = format!("{}:{} {weight}", device.major, device.minor);
            write_limit(dir, "blkio.leaf_weight_device", &line)?;
        }
    }
    let throttles: [(&str, &[ThrottleDevice]); 4] = [
        ("blkio.throttle.read_bps_device", &block.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", &block.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", &block.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", &block.throttle_write_iops_device),
    ];
    for (file, devices) in throttles {
        for device in devices {
            write_limit(dir, file, &format!("{}:{} {}", device.major, device.minor, device.rate))?;
        }
    }
    Ok(())
}

fn set_network(cgroup: &Cgroup, network: &NetworkClass) -> Result<()> {
    if let Some(class) = network.class_id.filter(|class| *class != 0)
        && let Some(dir) = dir(cgroup, "net_cls", "linux.resources.network.classID", false)?
    {
        write_limit(dir, "net_cls.classid", &class.to_string())?;
    }
    for entry in &network.priorities {
        if let Some(dir) = dir(cgroup, "net_prio", "linux.resources.network.priorities", false)? {
            write_limit(dir, "net_prio.ifpriomap", &format!("{} {}", entry.name, entry.priority))?;
        }
    }
    Ok(())
}

/// Puts the device rules in force, from a closed door on: what no rule allows is denied, whatever the first rule is.
pub(super) fn set_devices(hierarchy: &Hierarchy, rules: &[DeviceRule]) -> Result<()> {
    let dir = &hierarchy.dir;
    let attempted = || format!("set the device rules of cgroup {}", dir.display());
    let allow = hierarchy.open_write("devices.allow").attempt(Code::CgroupFailed, attempted)?;
    let deny = hierarchy.open_write("devices.deny").attempt(Code::CgroupFailed, attempted)?;
    for (allowed, line) in device_lines(rules) {
        let file = if allowed { &allow } else { &deny };
        rustix::io::write(file, line.as_bytes()).call("write").map_err(|failure| {
            let file = if allowed { "devices.allow" } else { "devices.deny" };
            Fault::of(Code::CgroupFailed, format!("write {line:?} to {}", dir.join(file).display()), failure)
        })?;
    }
    Ok(())
}

/// The writes that a list of rules comes to. A rule for all devices makes what stands before it moot, and after it the
/// rules that say the same.
fn device_lines(rules: &[DeviceRule]) -> Vec<(bool, String)> {
    let is_blanket = |rule: &DeviceRule| {
        rule.kind == DeviceKind::All && rule.major.is_none() && rule.minor.is_none() && rule.access.letters() == "rwm"
    };
    let last_blanket = rules.iter().rposition(is_blanket);
    let open = last_blanket.is_some_and(|at| rules[at].allow);
    let rest = &rules[last_blanket.map_or(0, |at| at + 1)..];
    let mut lines = vec![(open, "a".to_owned())];
    for rule in rest.iter().filter(|rule| rule.allow != open) {
        let kinds: &[char] = match rule.kind {
            DeviceKind::All => &['b', 'c'],
            DeviceKind::Block => &['b'],
            DeviceKind::Char => &['c'],
        };
        let number = |value: Option<u32>| value.map_or("*".to_owned(), |value| value.to_string());
        for kind in kinds {
            let line = format!("{kind} {}:{} {}", number(rule.major), number(rule.minor), rule.access.letters());
            lines.push((rule.allow, line));
        }
    }
    // A denial that follows an allowance of the same device still has to be said.
    if rest.iter().any(|rule| rule.allow == open) && rest.iter().any(|rule| rule.allow != open) {
        return all_lines(open, rest);
    }
    lines
}

fn all_lines(open: bool, rules: &[DeviceRule]) -> Vec<(bool, String)> {
    let mut lines = vec![(open, "a".to_owned())];
    for rule in rules {
        let one = device_lines(&[DeviceRule { allow: true, ..*rule }]);
        lines.extend(one.into_iter().skip(1).map(|(_, line)| (rule.allow, line)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::devices::rules;
    use crate::spec;

    fn rule(allow: bool, kind: &str, major: Option<i64>, access: &str) -> spec::DeviceRule {
        spec::DeviceRule { allow, kind: kind.to_owned(), major, minor: None, access: access.to_owned() }
    }

    #[test]
    fn without_any_rule_the_door_is_closed_and_the_default_devices_are_let_in() {
        let lines = device_lines(&rules(&[]).unwrap());
        assert_eq!(lines[0], (false, "a".to_owned()));
        assert!(lines.contains(&(true, "c 1:3 rwm".to_owned())));
        assert!(lines.contains(&(true, "c *:* m".to_owned())));
    }

    #[test]
    fn a_privileged_container_needs_one_write() {
        let section = [rule(false, "", None, "rwm"), rule(true, "a", None, "rwm")];
        assert_eq!(device_lines(&rules(&section).unwrap()), [(true, "a".to_owned())]);
    }

    #[test]
    fn denials_after_allowances_keep_their_order() {
        let section = [rule(true, "b", Some(8), "rw"), rule(false, "b", Some(8), "w")];
        let lines = device_lines(&rules(&section).unwrap());
        let allow = lines.iter().position(|line| *line == (true, "b 8:* rw".to_owned())).unwrap();
        let deny = lines.iter().position(|line| *line == (false, "b 8:* w".to_owned())).unwrap();
        assert!(allow < deny);
    }
}
