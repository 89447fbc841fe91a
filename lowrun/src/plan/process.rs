//! The process section as the container side executes it: numbers, masks and ready-made strings.

use std::path::PathBuf;

use crate::fault::{Code, Fault, Result};
use crate::plan::capabilities::{Capabilities, names};
use crate::spec;
use crate::sys::process::SchedAttr;

/// A program to run in a container.
#[derive(Clone, Debug)]
pub struct ProcessPlan {
    pub args: Vec<String>,
    /// Checked, each name once (the last one counts), without an empty HOME.
    pub env: Vec<String>,
    /// Whether HOME must come from the container's passwd.
    pub wants_home: bool,
    pub cwd: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub umask: Option<u32>,
    pub capabilities: Capabilities,
    pub rlimits: Vec<Rlimit>,
    pub no_new_privileges: bool,
    pub apparmor_profile: String,
    pub selinux_label: String,
    pub oom_score_adj: Option<i32>,
    pub scheduler: Option<SchedAttr>,
    /// Class and level as `ioprio_set(2)` takes them.
    pub io_priority: Option<i32>,
    pub cpu_affinity: CpuAffinity,
    pub terminal: bool,
    pub console_size: Option<spec::ConsoleSize>,
    /// What a person should know and that stops nothing.
    pub warnings: Vec<String>,
}

/// CPUs of an exec before and after it enters the cgroup, as bit masks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuAffinity {
    pub initial: Option<Vec<u64>>,
    pub last: Option<Vec<u64>>,
}

/// A limit as `prlimit(2)` takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rlimit {
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

impl Rlimit {
    /// Its name in the spec.
    pub fn name(&self) -> &'static str {
        RLIMITS.get(self.resource as usize).copied().unwrap_or("an unknown limit")
    }
}

/// Names by number, as in `asm-generic/resource.h`.
const RLIMITS: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

const SCHED_POLICIES: [(&str, u32); 7] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_ISO", 4),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];

const SCHED_FLAGS: [(&str, u64); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];

/// The kernel knows no such process; without this check its words, which runc tells, would name no field.
fn check_effective(capabilities: &Capabilities) -> Result<()> {
    let refused = capabilities.effective & !capabilities.permitted;
    if refused == 0 {
        return Ok(());
    }
    Err(Fault::new(Code::SpecInvalid, "process.capabilities.effective")
        .cause(format!("not in process.capabilities.permitted: {}", names(refused))))
}

/// Id that means "no change" to the kernel: never a user.
const INVALID_ID: u32 = u32::MAX;

impl ProcessPlan {
    /// Reads the section; the fields that must be there are those that runc wants.
    pub fn parse(section: &spec::Process) -> Result<ProcessPlan> {
        check_required(section)?;
        let (env, wants_home) = environment(&section.env)?;
        let (capabilities, unknown) = Capabilities::parse(section.capabilities.as_ref());
        check_effective(&capabilities)?;
        let mut warnings = Vec::new();
        if !unknown.is_empty() {
            warnings.push(format!("ignoring unknown or unavailable capabilities: [{}]", unknown.join(" ")));
        }
        Ok(ProcessPlan {
            args: section.args.clone(),
            env,
            wants_home,
            cwd: PathBuf::from(&section.cwd),
            uid: section.user.uid,
            gid: section.user.gid,
            groups: section.user.additional_gids.clone(),
            umask: section.user.umask,
            capabilities,
            rlimits: rlimits(&section.rlimits)?,
            no_new_privileges: section.no_new_privileges,
            apparmor_profile: section.apparmor_profile.clone(),
            selinux_label: section.selinux_label.clone(),
            oom_score_adj: oom_score_adj(section.oom_score_adj)?,
            scheduler: section.scheduler.as_ref().map(scheduler).transpose()?,
            io_priority: section.io_priority.as_ref().map(io_priority).transpose()?,
            cpu_affinity: cpu_affinity(section.exec_cpu_affinity.as_ref())?,
            terminal: section.terminal,
            console_size: section.console_size.filter(|size| size.width != 0 && size.height != 0),
            warnings,
        })
    }

    /// The value of PATH in the program's environment.
    pub fn search_path(&self) -> &str {
        self.env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default()
    }
}

fn invalid(field: &str, cause: impl Into<String>) -> Box<Fault> {
    Fault::new(Code::SpecInvalid, format!("process.{field}")).cause(cause)
}

fn check_required(section: &spec::Process) -> Result<()> {
    if section.cwd.is_empty() {
        return Err(invalid("cwd", "Cwd property must not be empty"));
    }
    if !section.cwd.starts_with('/') {
        return Err(invalid("cwd", "Cwd must be an absolute path"));
    }
    if section.args.is_empty() {
        return Err(invalid("args", "args must not be empty"));
    }
    if let Some(index) = section.args.iter().position(|arg| arg.contains('\0')) {
        return Err(invalid(&format!("args[{index}]"), "contains a null byte"));
    }
    let ids = [section.user.uid, section.user.gid];
    if ids.iter().chain(&section.user.additional_gids).any(|id| *id == INVALID_ID) {
        return Err(Fault::new(Code::UserInvalid, "process.user").cause(format!("{INVALID_ID} is not an id")));
    }
    Ok(())
}

/// The environment with each name once, and whether HOME is missing.
fn environment(entries: &[String]) -> Result<(Vec<String>, bool)> {
    let mut kept: Vec<&String> = Vec::with_capacity(entries.len());
    let mut has_home = None;
    for (index, entry) in entries.iter().enumerate().rev() {
        let field = || format!("env[{index}]");
        let (name, value) =
            entry.split_once('=').ok_or_else(|| invalid(&field(), "invalid environment variable: missing '='"))?;
        if name.is_empty() {
            return Err(invalid(&field(), "invalid environment variable: name cannot be empty"));
        }
        if entry.contains('\0') {
            return Err(invalid(&field(), "invalid environment variable: contains nul byte"));
        }
        let known = kept.iter().any(|other| other.split_once('=').is_some_and(|(other, _)| other == name));
        // An empty HOME, if it is the last one, means the one of passwd, whatever stood before it.
        if known || name == "HOME" && has_home == Some(false) {
            continue;
        }
        if name == "HOME" {
            has_home = Some(!value.is_empty());
        }
        if name != "HOME" || !value.is_empty() {
            kept.push(entry);
        }
    }
    Ok((kept.into_iter().rev().cloned().collect(), has_home != Some(true)))
}

fn rlimits(section: &[spec::Rlimit]) -> Result<Vec<Rlimit>> {
    let mut limits: Vec<Rlimit> = Vec::with_capacity(section.len());
    for (index, limit) in section.iter().enumerate() {
        let field = format!("rlimits[{index}]");
        let resource = RLIMITS.iter().position(|name| *name == limit.kind);
        let resource = resource.ok_or_else(|| invalid(&field, format!("wrong rlimit value: {}", limit.kind)))? as u32;
        if limits.iter().any(|other| other.resource == resource) {
            return Err(invalid(&field, format!("{} is there twice", limit.kind)));
        }
        limits.push(Rlimit { resource, soft: limit.soft, hard: limit.hard });
    }
    Ok(limits)
}

fn cpu_affinity(section: Option<&spec::CpuAffinity>) -> Result<CpuAffinity> {
    let mask = |list: &str| match super::cpu_list(list) {
        _ if list.is_empty() => Ok(None),
        Some(mask) => Ok(Some(mask)),
        None => Err(invalid("execCPUAffinity", format!("{list:?} is not a list of CPUs"))),
    };
    match section {
        None => Ok(CpuAffinity::default()),
        Some(section) => Ok(CpuAffinity { initial: mask(&section.initial)?, last: mask(&section.last)? }),
    }
}

fn oom_score_adj(value: Option<i32>) -> Result<Option<i32>> {
    match value {
        Some(value) if !(-1000..=1000).contains(&value) => {
            Err(Fault::new(Code::LimitInvalid, "process.oomScoreAdj").cause(format!("{value} is not in -1000..=1000")))
        }
        value => Ok(value),
    }
}

fn scheduler(section: &spec::Scheduler) -> Result<SchedAttr> {
    if section.policy.is_empty() {
        return Err(invalid("scheduler", "scheduler policy is required"));
    }
    let policy = SCHED_POLICIES.iter().find(|(name, _)| *name == section.policy).map(|(_, number)| *number);
    let policy = policy.ok_or_else(|| invalid("scheduler.policy", format!("invalid policy {:?}", section.policy)))?;
    if matches!(policy, 0 | 3) && !(-20..=19).contains(&section.nice) {
        return Err(invalid("scheduler.nice", format!("{} is not in -20..=19", section.nice)));
    }
    if section.priority != 0 && !matches!(policy, 1 | 2) {
        return Err(invalid("scheduler.priority", "is for SCHED_FIFO and SCHED_RR only"));
    }
    if policy != 6 && (section.runtime, section.deadline, section.period) != (0, 0, 0) {
        return Err(invalid("scheduler", "runtime, deadline and period are for SCHED_DEADLINE only"));
    }
    let mut flags = 0;
    for flag in &section.flags {
        let known = SCHED_FLAGS.iter().find(|(name, _)| name == flag);
        flags |= known.ok_or_else(|| invalid("scheduler.flags", format!("invalid flag {flag:?}")))?.1;
    }
    let priority = u32::try_from(section.priority).map_err(|_| invalid("scheduler.priority", "is negative"))?;
    Ok(SchedAttr {
        policy,
        flags,
        nice: section.nice,
        priority,
        runtime: section.runtime,
        deadline: section.deadline,
        period: section.period,
        ..SchedAttr::default()
    })
}

fn io_priority(section: &spec::IoPriority) -> Result<i32> {
    if !(0..=7).contains(&section.priority) {
        return Err(invalid("ioPriority", format!("invalid ioPriority.Priority: {}", section.priority)));
    }
    let class = match section.class.as_str() {
        "IOPRIO_CLASS_RT" => 1,
        "IOPRIO_CLASS_BE" => 2,
        "IOPRIO_CLASS_IDLE" => 3,
        other => return Err(invalid("ioPriority", format!("invalid ioPriority.Class: {other:?}"))),
    };
    Ok(class << 13 | section.priority)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section() -> spec::Process {
        spec::Process { cwd: "/".to_owned(), args: vec!["true".to_owned()], ..spec::Process::default() }
    }

    fn env(entries: &[&str]) -> Result<(Vec<String>, bool)> {
        environment(&entries.iter().map(|&entry| entry.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let (kept, wants_home) = env(&["A=1", "B=2", "A=3", "HOME=/x", "HOME="]).unwrap();
        assert_eq!(kept, ["B=2", "A=3"]);
        assert!(wants_home);
        assert!(!env(&["HOME=/root"]).unwrap().1);
    }

    #[test]
    fn what_is_not_a_variable_is_refused() {
        for entry in ["A", "=1", "A=\0"] {
            assert!(env(&[entry]).is_err(), "{entry:?}");
        }
    }

    #[test]
    fn required_fields_are_required() {
        let mut without_cwd = section();
        without_cwd.cwd.clear();
        let mut relative = section();
        relative.cwd = "tmp".to_owned();
        let mut without_args = section();
        without_args.args.clear();
        for section in [without_cwd, relative, without_args] {
            assert_eq!(ProcessPlan::parse(&section).unwrap_err().code, Code::SpecInvalid);
        }
    }

    #[test]
    fn the_id_that_means_no_change_is_no_user() {
        let mut section = section();
        section.user.uid = u32::MAX;
        assert_eq!(ProcessPlan::parse(&section).unwrap_err().code, Code::UserInvalid);
    }

    #[test]
    fn what_is_effective_is_permitted() {
        let parsed = |effective: &[&str], permitted: &[&str]| {
            let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
            let (effective, permitted) = (names(effective), names(permitted));
            let sets = spec::Capabilities { effective, permitted, ..spec::Capabilities::default() };
            ProcessPlan::parse(&spec::Process { capabilities: Some(sets), ..section() })
        };
        assert!(parsed(&["CAP_KILL"], &["CAP_CHOWN", "CAP_KILL"]).is_ok());
        assert!(parsed(&["CAP_KILL", "CAP_MOON"], &["CAP_KILL"]).is_ok(), "an unknown one is warned of");
        let fault = parsed(&["CAP_KILL", "CAP_CHOWN"], &["CAP_KILL"]).unwrap_err();
        let told = "process.capabilities.effective: not in process.capabilities.permitted: CAP_CHOWN";
        assert!(fault.one_line().ends_with(told), "{}", fault.one_line());
    }

    #[test]
    fn limits_and_priorities_are_checked() {
        let limit = |kind: &str| spec::Rlimit { kind: kind.to_owned(), hard: 2, soft: 1 };
        assert_eq!(rlimits(&[limit("RLIMIT_NOFILE")]).unwrap()[0].resource, 7);
        assert!(rlimits(&[limit("RLIMIT_MOON")]).is_err());
        assert!(rlimits(&[limit("RLIMIT_CPU"), limit("RLIMIT_CPU")]).is_err());
        assert!(oom_score_adj(Some(1001)).is_err());
        let io = spec::IoPriority { class: "IOPRIO_CLASS_BE".to_owned(), priority: 4 };
        assert_eq!(io_priority(&io).unwrap(), 2 << 13 | 4);
    }

    #[test]
    fn a_scheduler_takes_only_what_its_policy_knows() {
        let scheduler_of = |policy: &str, priority| {
            scheduler(&spec::Scheduler { policy: policy.to_owned(), priority, ..spec::Scheduler::default() })
        };
        assert_eq!(scheduler_of("SCHED_FIFO", 5).unwrap().priority, 5);
        assert!(scheduler_of("SCHED_OTHER", 5).is_err());
        assert!(scheduler_of("", 0).is_err());
    }
}
