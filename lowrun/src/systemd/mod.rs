//! The systemd driver: a container's cgroup is a unit of systemd's, made, changed and removed over D-Bus.
//!
//! Called by `cgroup`, and only with `--systemd-cgroup`. systemd makes the directories that it knows and moves the first
//! process there; what it does not know (on v1 some controllers, everywhere some limits) is done in files, as by the
//! cgroupfs driver, which also reads, freezes and kills.
//!
//! No crate of D-Bus: six calls of one peer need neither an async runtime nor two megabytes.

pub mod bus;
pub mod properties;
pub mod text;
pub mod wire;

use std::cell::Cell;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fault::{Code, Fault, Result};
use crate::plan::unit::UnitPlan;
use bus::{Bus, Refusal};
use properties::Property;
use wire::Value;

/// From here on a unit of systemd's may say what an OOM kill means for the rest of it.
const OOM_POLICY_VERSION: u32 = 253;

/// A container's unit. Kept in the state file.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Unit {
    pub name: String,
    /// Whether it belongs to the user's own manager.
    pub of_user: bool,
    /// What systemd calls it: no other creation's unit has the same, though it may have the name. Empty in states of
    /// older versions.
    #[serde(default)]
    pub description: String,
}

/// Whether the machine was started by systemd (`sd_booted(3)`).
pub fn check_running() -> Result<()> {
    if Path::new("/run/systemd/system").is_dir() {
        return Ok(());
    }
    Err(Fault::new(Code::Unsupported, "--systemd-cgroup")
        .cause("systemd not running on this host, cannot use systemd cgroups manager"))
}

/// Where the manager's own cgroup is in the hierarchies, without a leading slash.
pub fn base(of_user: bool) -> Result<PathBuf> {
    if !of_user {
        return Ok(PathBuf::new());
    }
    let answer = Bus::connect(true)?.property("ControlGroup")?;
    let path = answer.map_err(|refusal| refused("ask the user's systemd where it is", &refusal))?;
    Ok(PathBuf::from(path.first().map_or("", String::as_str).trim_start_matches('/')))
}

/// Makes the unit with a process in it, and waits until it is there. `is_made` tells, also after a failure, whether
/// there is one to be stopped.
pub fn start(
    plan: &UnitPlan,
    (description, pid): (&str, i32),
    limits: Vec<Property>,
    oom_group: Option<&str>,
    is_made: &Cell<bool>,
) -> Result<()> {
    let mut bus = Bus::connect(plan.of_user)?;
    let mut properties = basic(plan, description, pid);
    // Later ones win: what an annotation says is the last word but for limits.
    // Not for the description, by which the unit is known again as ours.
    properties.extend(plan.properties.iter().filter(|(name, _)| name != "Description").cloned());
    properties.extend(limits);
    if let Some(policy) = oom_group.and_then(oom_policy)
        && version(&mut bus)? >= OOM_POLICY_VERSION
    {
        properties.push(("OOMPolicy".to_owned(), Value::text(policy)));
    }
    let attempted = || format!("start unit {}", plan.name);
    let arguments = [
        Value::text(&plan.name),
        Value::text("replace"),
        to_value(properties),
        Value::Array("(sa(sv))".to_owned(), Vec::new()),
    ];
    let mut answer = bus.ask("StartTransientUnit", &arguments)?;
    if answer.as_ref().is_err_and(|refusal| refusal.is("UnitExists")) {
        // A unit of that name that has failed stays until it is told to go.
        let _ = bus.ask("ResetFailedUnit", &[Value::text(&plan.name)])?;
        answer = bus.ask("StartTransientUnit", &arguments)?;
    }
    let job = answer.map_err(|refusal| {
        // Somebody else's: whoever cleans up must not stop it.
        let code = if refusal.is("UnitExists") { Code::CgroupInUse } else { Code::CgroupFailed };
        Fault::new(code, attempted()).cause(refusal.words())
    })?;
    is_made.set(true);
    let job = job.into_iter().next().unwrap_or_default();
    match bus.wait_for(&job)?.as_str() {
        "done" => Ok(()),
        result => {
            let _ = bus.ask("ResetFailedUnit", &[Value::text(&plan.name)]);
            Err(Fault::new(Code::CgroupFailed, attempted()).cause(format!("its job ended as {result:?}")))
        }
    }
}

/// What every unit has: its place, the process, delegation, counters.
fn basic(plan: &UnitPlan, description: &str, pid: i32) -> Vec<Property> {
    let mut properties = vec![("Description".to_owned(), Value::text(description))];
    let mut set = |name: &str, value: Value| properties.push((name.to_owned(), value));
    if plan.name.ends_with(".slice") {
        // The parent of a slice follows from its name.
        set("Wants", Value::texts([plan.slice.as_str()]));
    } else {
        set("Slice", Value::text(&plan.slice));
        set("Delegate", Value::Bool(true));
        set("PIDs", Value::Array("u".to_owned(), vec![Value::U32(pid as u32)]));
    }
    // Counted from the start: the kernel does not count afterwards what was there before.
    for accounting in ["MemoryAccounting", "CPUAccounting", "IOAccounting", "TasksAccounting"] {
        set(accounting, Value::Bool(true));
    }
    // Else the unit would go at shutdown before the engine that owns it, and want what a boot has.
    set("DefaultDependencies", Value::Bool(false));
    properties
}

fn oom_policy(group: &str) -> Option<&'static str> {
    match group.trim() {
        "0" => Some("continue"),
        "1" => Some("kill"),
        _ => None,
    }
}

fn version(bus: &mut Bus) -> Result<u32> {
    let answer = bus.property("Version")?;
    let text = answer.map_err(|refusal| refused("ask systemd for its version", &refusal))?;
    let digits: String = text
        .first()
        .map_or("", String::as_str)
        .trim_start_matches('v')
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    Ok(digits.parse().unwrap_or(0))
}

fn to_value(properties: Vec<Property>) -> Value {
    let one = |(name, value): Property| Value::Struct(vec![Value::Str(name), Value::Variant(Box::new(value))]);
    Value::Array("(sv)".to_owned(), properties.into_iter().map(one).collect())
}

fn refused(attempted: &str, refusal: &Refusal) -> Box<Fault> {
    Fault::new(Code::CgroupFailed, attempted).cause(refusal.words())
}

impl Unit {
    /// Changes properties, until the unit ends.
    pub fn set(&self, properties: Vec<Property>) -> Result<()> {
        if properties.is_empty() {
            return Ok(());
        }
        let arguments = [Value::text(&self.name), Value::Bool(true), to_value(properties)];
        let answer = Bus::connect(self.of_user)?.ask("SetUnitProperties", &arguments)?;
        answer.map(drop).map_err(|refusal| refused(&format!("set the limits of unit {}", self.name), &refusal))
    }

    /// Moves a process into the unit, or into a cgroup below it: for those who may not move it themselves.
    pub fn attach(&self, below: &str, pid: i32) -> Result<()> {
        let pids = Value::Array("u".to_owned(), vec![Value::U32(pid as u32)]);
        let arguments = [Value::text(&self.name), Value::text(below), pids];
        let answer = Bus::connect(self.of_user)?.ask("AttachProcessesToUnit", &arguments)?;
        answer.map(drop).map_err(|refusal| refused(&format!("move a process into unit {}", self.name), &refusal))
    }

    /// Whether a unit of this name is there that somebody else has made: this one has not been made yet, or has gone with
    /// its last process. In doubt it is not.
    pub fn is_anothers(&self) -> bool {
        !self.description.is_empty() && Bus::connect(self.of_user).is_ok_and(|mut bus| self.is_anothers_by(&mut bus))
    }

    fn is_anothers_by(&self, bus: &mut Bus) -> bool {
        let Ok(Ok(path)) = bus.ask("GetUnit", &[Value::text(&self.name)]) else { return false };
        let description = path.first().map(|path| bus.unit_property(path, "Description"));
        matches!(description, Some(Ok(Ok(text))) if text.first() != Some(&self.description))
    }

    /// Ends the unit and waits until it is gone. One that is gone already is no failure: a scope goes with its last
    /// process.
    pub fn stop(&self) -> Result<()> {
        let mut bus = Bus::connect(self.of_user)?;
        let name = [Value::text(&self.name), Value::text("replace")];
        match bus.ask("StopUnit", &name)? {
            Ok(answer) => drop(bus.wait_for(answer.first().map_or("", String::as_str))?),
            Err(refusal) if refusal.is("NoSuchUnit") => return Ok(()),
            Err(refusal) => return Err(refused(&format!("stop unit {}", self.name), &refusal)),
        }
        // One that failed, as after an OOM kill, would stay.
        bus.ask("ResetFailedUnit", &name[..1]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    /// A systemd whose unit of any name has this description.
    fn manager(description: &'static str) -> Bus {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let answers = [Value::ObjectPath("/unit".to_owned()), Value::Variant(Box::new(Value::text(description)))];
            for (serial, answer) in (1..).zip(answers) {
                let mut call = [0; 4096];
                let _ = theirs.read(&mut call).unwrap();
                theirs.write_all(&wire::returned(serial, &[answer])).unwrap();
            }
        });
        Bus::over(ours, Duration::from_secs(5))
    }

    #[test]
    fn a_unit_of_the_same_name_may_be_anothers() {
        let own = "lowrun container c, created now";
        let unit = Unit { name: "lowrun-c.scope".to_owned(), of_user: false, description: own.to_owned() };
        assert!(!unit.is_anothers_by(&mut manager(own)));
        assert!(unit.is_anothers_by(&mut manager("lowrun container c, created before")));
    }
}
