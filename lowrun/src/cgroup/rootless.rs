//! cgroups of somebody who may not make them: gone without, where the spec names none and limits nothing.

use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;
use rustix::process::Pid;
use serde_json::Value;

use super::discover::{self, Own};
use super::{Cgroup, Hierarchy, Top, add_to, make_all};
use crate::fault::{Code, Fault, Result};
use crate::plan::CgroupPlan;
use crate::spec::Resources;

impl Cgroup {
    /// Makes the directories that may be made and leaves the others out of this cgroup for good; a path that the spec
    /// names must be made. Limits of what was left out are refused later, where they are set.
    pub fn keep_permitted(&mut self, is_named: bool) -> Result<()> {
        let everything = self.hierarchies.len();
        let mut kept = Vec::with_capacity(everything);
        for hierarchy in self.hierarchies.drain(..) {
            // Who gives a user cgroups of v1 does not think of the v2 hierarchy beside them, which runc leaves alone.
            let matters = is_named && (everything == 1 || !hierarchy.is_unified());
            match make_usable(&hierarchy) {
                Ok(()) => kept.push(hierarchy),
                Err(failure) if !matters && is_refusal(failure.errno) => {}
                Err(failure) => {
                    Cgroup { hierarchies: kept, unit: None }.give_back(false);
                    let attempted = format!("make cgroup {}", hierarchy.dir.display());
                    return Err(Fault::of(Code::CgroupFailed, attempted, failure));
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

    /// With lowrun's own places in the hierarchies that it goes without, where the container's processes stay; as it is,
    /// where no hierarchy is to be found.
    pub fn with_own(&self) -> Cgroup {
        let is_missing = |own: &Own| self.hierarchies.iter().all(|kept| kept.controllers != own.controllers);
        let others = discover::own().unwrap_or_default().into_iter().filter(is_missing).map(stays);
        Cgroup { hierarchies: self.hierarchies.iter().cloned().chain(others).collect(), unit: self.unit.clone() }
    }

    /// Moves a process in and puts limits in force, where that is allowed.
    pub fn enter_permitted(&self, pid: Pid, plan: &CgroupPlan) -> Result<()> {
        self.set(&plan.resources)?;
        // And those of devices, which only root may limit; a user namespace makes none.
        let _ = self.limit(plan);
        let matters = plan.is_named || limits_anything(&plan.resources);
        for hierarchy in &self.hierarchies {
            match add_to(hierarchy, pid) {
                // Directories of the own user, but not the one that this process comes from: no matter, where nobody
                // counts on them.
                Err(fault) if !matters && fault.code == Code::CgroupFailed => {}
                result => result?,
            }
        }
        Ok(())
    }
}

/// Where lowrun is, and what it starts stays.
fn stays(own: Own) -> Hierarchy {
    let place = own.mount.join(own.path);
    // In a container of Docker's on v1 lowrun is told the machine's path, of which the mount shows the last directory alone.
    let dir = if place.exists() { place } else { own.mount.clone() };
    Hierarchy { controllers: own.controllers, mount: own.mount, dir, top: Top::default() }
}

/// Whether there is any limit but those of devices. Engines write empty sections, and zeros where they mean none.
fn limits_anything(resources: &Resources) -> bool {
    fn says_anything(value: &Value) -> bool {
        match value {
            Value::Null => false,
            Value::Bool(is) => *is,
            Value::Number(number) => number.as_f64() != Some(0.0),
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => items.iter().any(says_anything),
            Value::Object(fields) => fields.values().any(says_anything),
        }
    }
    let others = Resources { devices: Vec::new(), ..resources.clone() };
    serde_json::to_value(others).is_ok_and(|value| says_anything(&value))
}

fn make_usable(hierarchy: &Hierarchy) -> crate::sys::Result<()> {
    make_all(hierarchy)?;
    // One that somebody else made may be there and still be closed.
    let file = hierarchy.dir.join("cgroup.procs");
    // By the real ids, which are the effective ones: for those the older call does.
    match rustix::fs::accessat(CWD, &file, Access::WRITE_OK, AtFlags::empty()) {
        Err(errno) if is_refusal(errno) => Err(crate::sys::Failure { call: "faccessat", errno }),
        _ => Ok(()),
    }
}

fn is_refusal(errno: Errno) -> bool {
    matches!(errno, Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::NOENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_sections_and_devices_are_no_limits() {
        for (text, limits) in [
            ("{}", false),
            (r#"{"devices":[{"allow":false,"access":"rwm"}],"memory":{},"cpu":{"shares":0}}"#, false),
            (r#"{"memory":{"limit":1048576}}"#, true),
            (r#"{"unified":{"memory.high":"1"}}"#, true),
        ] {
            let resources: Resources = serde_json::from_str(text).unwrap();
            assert_eq!(limits_anything(&resources), limits, "{text}");
        }
    }
}
