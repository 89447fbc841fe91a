//! cgroups of somebody who may not make them: gone without, where the spec names none and limits nothing.

use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;
use rustix::process::Pid;

use super::{Cgroup, Hierarchy, add_to, make_all};
use crate::fault::{Attempt, Code, Result};
use crate::plan::CgroupPlan;

impl Cgroup {
    /// Makes the directories that may be made and leaves the others out of this cgroup for good; a path that the spec
    /// names must be made. Limits of what was left out are refused later, where they are set.
    pub fn keep_permitted(&mut self, is_named: bool) -> Result<()> {
        let everything = self.hierarchies.len();
        let mut kept = Vec::with_capacity(everything);
        for hierarchy in self.hierarchies.drain(..) {
            match make_usable(&hierarchy) {
                Ok(()) => kept.push(hierarchy),
                Err(failure) if !is_named && is_refusal(failure.errno) => {}
                result => {
                    result.attempt(Code::CgroupFailed, || format!("make cgroup {}", hierarchy.dir.display()))?;
                }
            }
        }
        // The v2 hierarchy of a hybrid machine, left alone, would be taken for that of a machine with v2 only.
        if kept.len() < everything && matches!(&kept[..], [only] if only.is_unified()) {
            kept.clear();
        }
        self.hierarchies = kept;
        Ok(())
    }

    /// Moves a process in and puts limits in force, where that is allowed.
    pub fn enter_permitted(&self, pid: Pid, plan: &CgroupPlan) -> Result<()> {
        self.set(&plan.resources)?;
        // And those of devices, which only root may limit; a user namespace makes none.
        let _ = self.limit(plan);
        for hierarchy in &self.hierarchies {
            match add_to(hierarchy, pid) {
                // Directories of the own user, but not the one that this process comes from.
                Err(fault) if fault.code == Code::CgroupFailed => {}
                result => result?,
            }
        }
        Ok(())
    }
}

fn make_usable(hierarchy: &Hierarchy) -> crate::sys::Result<()> {
    make_all(hierarchy)?;
    // One that somebody else made may be there and still be closed.
    let file = hierarchy.dir.join("cgroup.procs");
    match rustix::fs::accessat(CWD, &file, Access::WRITE_OK, AtFlags::EACCESS) {
        Err(errno) if is_refusal(errno) => Err(crate::sys::Failure { call: "faccessat", errno }),
        _ => Ok(()),
    }
}

fn is_refusal(errno: Errno) -> bool {
    matches!(errno, Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::NOENT)
}
