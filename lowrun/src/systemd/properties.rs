//! Limits as properties of a unit: what systemd knows of them. It would undo at its next look (`daemon-reload`) what was
//! only written to files; what it does not know is only written to files.

use super::wire::Value;
use crate::fault::{Code, Fault, Result};
use crate::plan;
use crate::plan::devices::{Access, DeviceKind, DeviceRule};
use crate::spec::{Cpu, Memory, Resources};

/// A property to set.
pub type Property = (String, Value);

/// `infinity` where systemd counts.
const INFINITY: u64 = u64::MAX;
const DEFAULT_PERIOD: u64 = 100_000;

/// The properties of a container's limits, and the limits as systemd will round them: what goes to the files is to be
/// the same.
pub fn of(resources: &Resources, unified: bool) -> Result<(Vec<Property>, Resources)> {
    let mut rounded = resources.clone();
    let mut list = List::default();
    if let Some(memory) = &resources.memory {
        list.memory(memory, unified)?;
    }
    if let Some(cpu) = &mut rounded.cpu {
        list.cpu(cpu, unified)?;
    }
    if let Some(weight) = resources.block_io.as_ref().and_then(|block| block.weight).filter(|weight| *weight != 0)
        && !unified
    {
        list.number("BlockIOWeight", u64::from(weight));
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) {
        list.number("TasksMax", tasks(limit));
    }
    if unified {
        list.unified(resources)?;
    }
    Ok((list.properties, rounded))
}

/// systemd takes no 0 for the number of tasks.
fn tasks(limit: i64) -> u64 {
    u64::try_from(limit).map_or(INFINITY, |limit| limit.max(1))
}

#[derive(Debug, Default)]
struct List {
    properties: Vec<Property>,
}

impl List {
    fn push(&mut self, name: &str, value: Value) {
        self.properties.push((name.to_owned(), value));
    }

    fn number(&mut self, name: &str, number: u64) {
        self.push(name, Value::U64(number));
    }

    fn memory(&mut self, memory: &Memory, unified: bool) -> Result<()> {
        // -1 is u64::MAX, which is systemd's infinity.
        let set = |number: Option<i64>| number.filter(|number| *number != 0).map(|number| number as u64);
        if let Some(limit) = set(memory.limit) {
            self.number(if unified { "MemoryMax" } else { "MemoryLimit" }, limit);
        }
        if !unified {
            return Ok(());
        }
        if let Some(reservation) = set(memory.reservation) {
            self.number("MemoryLow", reservation);
        }
        if let Some(swap) = crate::cgroup::swap_alone(memory)? {
            self.number("MemorySwapMax", swap.parse().unwrap_or(INFINITY));
        }
        Ok(())
    }

    fn cpu(&mut self, cpu: &mut Cpu, unified: bool) -> Result<()> {
        let shares = cpu.shares.filter(|shares| *shares != 0);
        match (unified, shares) {
            // systemd's way to say that only idle time is given.
            (true, _) if cpu.idle == Some(1) => self.number("CPUWeight", 0),
            (true, Some(shares)) => self.number("CPUWeight", crate::cgroup::weight(shares)),
            (false, Some(shares)) => self.number("CPUShares", shares),
            (_, None) => {}
        }
        if let Some(quota) = self.quota(cpu.quota.unwrap_or(0), cpu.period.unwrap_or(0)) {
            cpu.quota = Some(quota);
        }
        self.list("AllowedCPUs", "linux.resources.cpu.cpus", &cpu.cpus)?;
        self.list("AllowedMemoryNodes", "linux.resources.cpu.mems", &cpu.mems)
    }

    /// systemd keeps whole percents of a CPU, and limits the unit's parent part to them: a container's quota is
    /// rounded up to the next one, or its own file could not be written. Gives the quota if it was rounded.
    fn quota(&mut self, quota: i64, period: u64) -> Option<i64> {
        const PERCENT_USEC: u64 = 10_000;
        const SECOND_USEC: u64 = 1_000_000;
        if period != 0 {
            self.number("CPUQuotaPeriodUSec", period);
        }
        if quota == 0 && period == 0 {
            return None;
        }
        let Some(quota_usec) = u64::try_from(quota).ok().filter(|quota| *quota > 0) else {
            self.number("CPUQuotaPerSecUSec", INFINITY);
            return None;
        };
        let period = if period == 0 { DEFAULT_PERIOD } else { period };
        let per_second = (u128::from(quota_usec) * u128::from(SECOND_USEC) / u128::from(period)) as u64;
        let rounded = per_second.next_multiple_of(PERCENT_USEC);
        self.number("CPUQuotaPerSecUSec", rounded);
        let is_rounded = rounded != per_second;
        is_rounded.then(|| (u128::from(rounded) * u128::from(period) / u128::from(SECOND_USEC)) as i64)
    }

    /// A list such as `0-2,7`, which systemd takes as a bit mask.
    fn list(&mut self, property: &str, field: &str, text: &str) -> Result<()> {
        if text.trim().is_empty() {
            return Ok(());
        }
        let invalid = || Fault::new(Code::LimitInvalid, field).cause(format!("{text:?} is not a list of numbers"));
        let words = plan::cpu_list(text).filter(|words| words.iter().any(|word| *word != 0)).ok_or_else(invalid)?;
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
        self.push(property, Value::bytes(&bytes));
        Ok(())
    }

    /// Files of cgroup v2 that the spec names itself, where systemd has a property for them.
    fn unified(&mut self, resources: &Resources) -> Result<()> {
        let is_idle = crate::cgroup::is_idle(resources);
        for (file, text) in &resources.unified {
            let text = text.trim();
            let invalid = || {
                Fault::new(Code::SpecInvalid, format!("linux.resources.unified {file:?}")).cause(format!("{text:?}"))
            };
            let number = || match text {
                "max" => Ok(INFINITY),
                text => text.parse::<u64>().map_err(|_| invalid()),
            };
            match file.as_str() {
                "cpu.idle" if is_idle => self.number("CPUWeight", 0),
                // The same property: the last one would count.
                "cpu.weight" if is_idle => {}
                "cpu.weight" => self.number("CPUWeight", number()?),
                "cpu.max" => {
                    let (quota, period) = quota_and_period(text).ok_or_else(invalid)?;
                    self.quota(quota, period);
                }
                "cpuset.cpus" => self.list("AllowedCPUs", "linux.resources.unified cpuset.cpus", text)?,
                "cpuset.mems" => self.list("AllowedMemoryNodes", "linux.resources.unified cpuset.mems", text)?,
                "memory.high" => self.number("MemoryHigh", number()?),
                "memory.low" => self.number("MemoryLow", number()?),
                "memory.min" => self.number("MemoryMin", number()?),
                "memory.max" => self.number("MemoryMax", number()?),
                "memory.swap.max" => self.number("MemorySwapMax", number()?),
                "pids.max" => self.number("TasksMax", number()?.max(1)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// `max`, `50000`, `50000 100000`; unlimited is 0.
fn quota_and_period(text: &str) -> Option<(i64, u64)> {
    let mut words = text.split_whitespace();
    let quota = match words.next()? {
        "max" => 0,
        quota => quota.parse().ok()?,
    };
    let period = words.next().map_or(Some(DEFAULT_PERIOD), |period| period.parse().ok())?;
    words.next().is_none().then_some((quota, period))
}

/// The device rules. systemd has only lists of what is allowed: where everything is open but for a few, v2 leaves it to
/// the container's own program; on v1, where systemd would open the rest at its next look, it hears that all is closed,
/// and what is then written to the files counts.
pub fn devices(rules: &[DeviceRule], unified: bool) -> Vec<Property> {
    let list = |entries: Vec<Value>| ("DeviceAllow".to_owned(), Value::Array("(ss)".to_owned(), entries));
    let policy = |word: &str| ("DevicePolicy".to_owned(), Value::text(word));
    let (open, exceptions) = reduce(rules);
    // The empty list takes away what the unit had.
    if open && (unified || exceptions.is_empty()) {
        return vec![list(Vec::new()), policy("auto")];
    }
    let allowed = if open { &[][..] } else { &exceptions[..] };
    vec![list(Vec::new()), policy("strict"), list(allowed.iter().filter_map(device_entry).collect())]
}

/// What the rules come to: whether everything is open, and the exceptions from that.
fn reduce(rules: &[DeviceRule]) -> (bool, Vec<DeviceRule>) {
    let mut open = false;
    let mut list: Vec<DeviceRule> = Vec::new();
    for rule in rules.iter().flat_map(by_kind) {
        if rule.kind == DeviceKind::All {
            (open, list) = (rule.allow, Vec::new());
            continue;
        }
        let is_same =
            |other: &DeviceRule| (other.kind, other.major, other.minor) == (rule.kind, rule.major, rule.minor);
        let at = list.iter().position(is_same);
        let before = at.map(|at| list.remove(at).access).unwrap_or_default();
        let access = if rule.allow == open { before.without(rule.access) } else { before.with(rule.access) };
        if access != Access::default() {
            list.push(DeviceRule { allow: !open, access, ..rule });
        }
    }
    (open, list)
}

/// A rule for both kinds is one for each, unless it is about everything.
fn by_kind(rule: &DeviceRule) -> Vec<DeviceRule> {
    let everything = rule.major.is_none() && rule.minor.is_none() && rule.access == Access::ALL;
    if rule.kind != DeviceKind::All || everything {
        return vec![*rule];
    }
    [DeviceKind::Block, DeviceKind::Char].map(|kind| DeviceRule { kind, ..*rule }).to_vec()
}

/// `(/dev/char/1:3, rwm)`, `(char-136, rw)`, `(block-*, m)`.
fn device_entry(rule: &DeviceRule) -> Option<Value> {
    let kind = if rule.kind == DeviceKind::Block { "block" } else { "char" };
    let path = match (rule.major, rule.minor) {
        (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
        (Some(major), None) => format!("{kind}-{major}"),
        (None, None) => format!("{kind}-*"),
        (None, Some(_)) => return None,
    };
    Some(Value::Struct(vec![Value::Str(path), Value::Str(rule.access.letters())]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::devices::rules;
    use crate::spec;

    fn properties(json: &str) -> (Vec<Property>, Resources) {
        of(&serde_json::from_str(json).unwrap(), true).unwrap()
    }

    fn number(properties: &[Property], name: &str) -> Option<u64> {
        properties.iter().find(|(has, _)| has == name).and_then(|(_, value)| match value {
            Value::U64(number) => Some(*number),
            _ => None,
        })
    }

    #[test]
    fn limits_are_properties() {
        let (list, _) = properties(
            r#"{"memory":{"limit":100,"swap":300,"reservation":50},"cpu":{"shares":1024,"quota":50000,"period":100000,"cpus":"0-1,9"},
                "pids":{"limit":0}}"#,
        );
        for (name, expected) in [
            ("MemoryMax", 100),
            ("MemorySwapMax", 200),
            ("MemoryLow", 50),
            ("CPUWeight", 100),
            ("CPUQuotaPeriodUSec", 100_000),
            ("CPUQuotaPerSecUSec", 500_000),
            ("TasksMax", 1),
        ] {
            assert_eq!(number(&list, name), Some(expected), "{name}");
        }
        assert!(list.contains(&("AllowedCPUs".to_owned(), Value::bytes(&[0b11, 0b10]))));
    }

    #[test]
    fn no_limit_is_infinity() {
        let (list, _) = properties(r#"{"memory":{"limit":-1},"cpu":{"quota":-1},"pids":{"limit":-1}}"#);
        for name in ["MemoryMax", "MemorySwapMax", "CPUQuotaPerSecUSec", "TasksMax"] {
            assert_eq!(number(&list, name), Some(INFINITY), "{name}");
        }
    }

    #[test]
    fn a_quota_is_rounded_up_to_a_percent_for_both() {
        let (list, rounded) = properties(r#"{"cpu":{"quota":5500,"period":100000}}"#);
        assert_eq!(number(&list, "CPUQuotaPerSecUSec"), Some(60_000));
        assert_eq!(rounded.cpu.unwrap().quota, Some(6_000));
    }

    #[test]
    fn unified_files_with_a_property_are_told() {
        let (list, _) = properties(
            r#"{"unified":{"memory.high":" 77 ","cpu.max":"max","pids.max":"0","cpuset.mems":"0","hugetlb.2MB.max":"0"}}"#,
        );
        assert_eq!(number(&list, "MemoryHigh"), Some(77));
        assert_eq!(number(&list, "CPUQuotaPerSecUSec"), Some(INFINITY));
        assert_eq!(number(&list, "TasksMax"), Some(1));
        assert_eq!(list.len(), 5);
        let bad: Resources = serde_json::from_str(r#"{"unified":{"memory.high":"a"}}"#).unwrap();
        assert_eq!(of(&bad, true).unwrap_err().code, Code::SpecInvalid);
    }

    #[test]
    fn who_is_idle_has_no_weight() {
        let weights = |text: &str| {
            let (list, _) = properties(text);
            list.iter()
                .filter(|(name, _)| name == "CPUWeight")
                .map(|(_, value)| format!("{value:?}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(weights(r#"{"unified":{"cpu.idle":"1","cpu.weight":"8"}}"#), ["U64(0)"]);
        assert_eq!(weights(r#"{"unified":{"cpu.idle":"0","cpu.weight":"8"}}"#), ["U64(8)"]);
        assert_eq!(weights(r#"{"cpu":{"idle":1,"shares":200}}"#), ["U64(0)"]);
        assert_eq!(weights(r#"{"cpu":{"idle":1},"unified":{"cpu.weight":"8"}}"#), ["U64(0)"]);
    }

    #[test]
    fn a_list_of_devices_is_what_is_allowed_in_the_end() {
        let rule = |allow, kind: &str, major: Option<i64>, access: &str| spec::DeviceRule {
            allow,
            kind: kind.to_owned(),
            major,
            minor: None,
            access: access.to_owned(),
        };
        let shown = |section: &[spec::DeviceRule]| format!("{:?}", devices(&rules(section).unwrap(), true));
        let default = shown(&[rule(false, "", None, "rwm")]);
        assert!(
            default.contains("strict") && default.contains("/dev/char/1:3") && default.contains("block-*"),
            "{default}"
        );
        // What is left of an allowance after a denial.
        let changed = shown(&[rule(true, "b", Some(8), "rw"), rule(false, "b", Some(8), "w")]);
        assert!(changed.contains(r#"Str("block-8"), Str("r")"#), "{changed}");
        let split = shown(&[rule(true, "b", Some(8), "r"), rule(true, "b", Some(8), "w")]);
        assert!(split.contains(r#"Str("block-8"), Str("rw")"#), "{split}");
        assert!(shown(&[rule(true, "a", None, "rwm")]).contains("auto"));
        // Open but for one: systemd cannot say it.
        let holed = rules(&[rule(true, "a", None, "rwm"), rule(false, "b", Some(8), "w")]).unwrap();
        assert!(format!("{:?}", devices(&holed, true)).contains("auto"));
        assert!(!format!("{:?}", devices(&holed, false)).contains("auto"));
    }
}
