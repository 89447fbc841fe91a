//! Changing limits that are in force: what an update does not name goes on as it is.
//!
//! v2 keeps two numbers in one file (`cpu.max`) and counts swap apart from memory, while the spec counts them together:
//! an update of one needs what is in force of the other. v1 has a file for each.

use std::path::Path;

use super::{Cgroup, read};
use crate::fault::Result;
use crate::spec::{Cpu, Memory, Resources};

impl Cgroup {
    /// Puts changed limits in force.
    pub fn update(&self, resources: &Resources) -> Result<()> {
        let mut resources = resources.clone();
        if let (true, Some(hierarchy)) = (self.is_unified(), self.unified()) {
            resources.cpu = resources.cpu.map(|cpu| with_cpu_in_force(&hierarchy.dir, cpu));
            resources.memory = resources.memory.map(|memory| with_memory_in_force(&hierarchy.dir, memory));
        }
        self.set(&resources)
    }
}

fn with_cpu_in_force(dir: &Path, mut cpu: Cpu) -> Cpu {
    let (quota, period) = (cpu.quota.unwrap_or(0), cpu.period.unwrap_or(0));
    if (quota == 0) == (period == 0) {
        return cpu;
    }
    let text = read(&dir.join("cpu.max")).unwrap_or_default();
    let (old_quota, old_period) = text.trim().split_once(' ').unwrap_or_default();
    if quota == 0 {
        cpu.quota = old_quota.parse().ok();
    } else {
        cpu.period = old_period.parse().ok();
    }
    cpu
}

fn with_memory_in_force(dir: &Path, mut memory: Memory) -> Memory {
    let in_force = |file: &str| read(&dir.join(file)).ok()?.trim().parse::<i64>().ok();
    let (limit, swap) = (memory.limit.unwrap_or(0), memory.swap.unwrap_or(0));
    if limit == 0 && swap > 0 {
        memory.limit = in_force("memory.max");
    } else if limit > 0 && swap == 0 {
        // A limit on both together stays what it was; without swap it stays without.
        let both = in_force("memory.max").zip(in_force("memory.swap.max").filter(|swap| *swap != 0));
        memory.swap = both.map(|(limit, swap)| limit.saturating_add(swap));
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn half_of_cpu_max_keeps_the_other_half() {
        let dir = dir(&[("cpu.max", "50000 200000\n")]);
        let new = with_cpu_in_force(dir.path(), Cpu { quota: Some(7000), ..Cpu::default() });
        assert_eq!((new.quota, new.period), (Some(7000), Some(200_000)));
        let new = with_cpu_in_force(dir.path(), Cpu { period: Some(9000), ..Cpu::default() });
        assert_eq!((new.quota, new.period), (Some(50_000), Some(9000)));
    }

    #[test]
    fn memory_and_swap_together_keep_their_limit() {
        let limited = dir(&[("memory.max", "100\n"), ("memory.swap.max", "50\n")]);
        let new = with_memory_in_force(limited.path(), Memory { limit: Some(120), ..Memory::default() });
        assert_eq!(new.swap, Some(150));
        let new = with_memory_in_force(limited.path(), Memory { swap: Some(300), ..Memory::default() });
        assert_eq!(new.limit, Some(100));
        let swapless = dir(&[("memory.max", "100\n"), ("memory.swap.max", "0\n")]);
        for limit in [50, 120] {
            let new = with_memory_in_force(swapless.path(), Memory { limit: Some(limit), ..Memory::default() });
            assert_eq!((new.limit, new.swap), (Some(limit), None));
        }
        let free = dir(&[("memory.max", "max\n"), ("memory.swap.max", "max\n")]);
        let new = with_memory_in_force(free.path(), Memory { limit: Some(120), ..Memory::default() });
        assert_eq!(new.swap, None);
    }
}
