//! `lowrun update`: other limits for a running container.

use super::Global;
use super::args::{Command, Typed, obsolete, option};
use crate::cgroup::ignored_weight;
use crate::fault::{Attempt, Code, Fault, Result, Step};
use crate::rdt;
use crate::spec::{IntelRdt, Resources};
use crate::state::{Container, Status};
use crate::sys::Call;

pub(super) const UPDATE: Command = Command {
    name: "update",
    about: "change the limits of a container",
    description: "With --resources FILE the limits are read as JSON, in the form of runtime-spec's linux.resources (memory, cpu, pids,\n\
                  blockIO, unified); what is not named stays as it is, and the other flags are not looked at.",
    arguments: "CONTAINER",
    flags: &[
        option("resources", Some('r'), "FILE", "read the limits from a JSON file, or from stdin for -"),
        option("blkio-weight", None, "WEIGHT", "weight of block I/O, 10 to 1000"),
        option("cpu-period", None, "USEC", "length of a CPU period"),
        option("cpu-quota", None, "USEC", "CPU time in a period"),
        option("cpu-burst", None, "USEC", "CPU time that may be saved up"),
        option("cpu-share", None, "SHARES", "weight of CPU time"),
        option("cpu-rt-period", None, "USEC", "length of a realtime period"),
        option("cpu-rt-runtime", None, "USEC", "realtime CPU time in a period"),
        option("cpuset-cpus", None, "LIST", "CPUs"),
        option("cpuset-mems", None, "LIST", "memory nodes"),
        option("cpu-idle", None, "0|1", "whether the container gets idle CPU time only"),
        option("memory", None, "BYTES", "memory"),
        option("memory-reservation", None, "BYTES", "memory under pressure"),
        option("memory-swap", None, "BYTES", "memory and swap; -1 is unlimited"),
        option("pids-limit", None, "N", "tasks"),
        option("l3-cache-schema", None, "SCHEMA", "Intel RDT: part of the L3 cache"),
        option("mem-bw-schema", None, "SCHEMA", "Intel RDT: part of the memory bandwidth"),
        obsolete("kernel-memory"),
        obsolete("kernel-memory-tcp"),
    ],
    count: (1, 1),
    flags_end_after: usize::MAX,
};

pub(super) fn update(global: &Global, typed: &Typed) -> Result<i32> {
    let container = Container::load(&global.root, typed.word(0)?)?;
    if container.status() == Status::Stopped {
        return Err(container.not_running());
    }
    let mut resources = match typed.text("resources")?.filter(|path| !path.is_empty()) {
        Some(path) => read(path)?,
        None => from_flags(typed)?,
    };
    if let Some(memory) = &mut resources.memory
        && memory.limit == Some(-1)
        && memory.swap.is_none()
    {
        memory.swap = Some(-1);
    }
    for flag in ["kernel-memory", "kernel-memory-tcp"] {
        if bytes(typed, flag)?.is_some() {
            global.log.warn("Kernel memory settings are ignored and will be removed");
        }
    }
    if let Some(words) = ignored_weight(&resources).filter(|_| container.state.cgroup.is_unified()) {
        global.log.warn(words);
    }
    let schemas = schemas(&container, typed)?;
    container.state.cgroup.update(&resources).step("update:limits")?;
    schemas.map_or(Ok(()), |(group, section)| group.update(&section)).step("update:limits").map(|()| 0)
}

/// The container's group of Intel RDT and its new schemas, if there are any. Only a container that was made with such a
/// section has a group whose schema can change.
fn schemas<'a>(container: &'a Container, typed: &Typed) -> Result<Option<(&'a rdt::Group, IntelRdt)>> {
    let text = |flag| typed.text(flag).map(|text| text.unwrap_or_default().to_owned());
    let (l3_cache_schema, mem_bw_schema) = (text("l3-cache-schema")?, text("mem-bw-schema")?);
    let section = IntelRdt { l3_cache_schema, mem_bw_schema, ..IntelRdt::default() };
    if section == IntelRdt::default() {
        return Ok(None);
    }
    rdt::check(&section)?;
    let flag = if section.l3_cache_schema.is_empty() { "mem-bw-schema" } else { "l3-cache-schema" };
    let without = || {
        Fault::new(Code::Unsupported, format!("update --{flag}")).cause("the container has no Intel RDT configuration")
    };
    container.state.rdt.as_ref().map(|group| Some((group, section))).ok_or_else(without)
}

fn read(path: &str) -> Result<Resources> {
    let text = if path == "-" { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) };
    let text = text.call("open").attempt(Code::InvalidArgument, || format!("read {path}"))?;
    crate::spec::any_case::from_str(&text)
        .map_err(|error| Fault::new(Code::SpecInvalid, format!("read {path}")).cause(error.to_string()))
}

fn from_flags(typed: &Typed) -> Result<Resources> {
    let mut resources = Resources::default();
    let cpu = resources.cpu.get_or_insert_default();
    cpu.period = number(typed, "cpu-period")?;
    cpu.quota = number(typed, "cpu-quota")?;
    cpu.burst = number(typed, "cpu-burst")?;
    cpu.shares = number(typed, "cpu-share")?;
    cpu.realtime_period = number(typed, "cpu-rt-period")?;
    cpu.realtime_runtime = number(typed, "cpu-rt-runtime")?;
    cpu.cpus = typed.text("cpuset-cpus")?.unwrap_or_default().to_owned();
    cpu.mems = typed.text("cpuset-mems")?.unwrap_or_default().to_owned();
    cpu.idle = number(typed, "cpu-idle")?;
    let memory = resources.memory.get_or_insert_default();
    memory.limit = bytes(typed, "memory")?;
    memory.reservation = bytes(typed, "memory-reservation")?;
    memory.swap = bytes(typed, "memory-swap")?;
    resources.pids.get_or_insert_default().limit = typed.number("pids-limit")?;
    resources.block_io.get_or_insert_default().weight = typed.number("blkio-weight")?;
    Ok(resources)
}

/// As runc: an empty value is none.
fn number<T: std::str::FromStr>(typed: &Typed, flag: &str) -> Result<Option<T>> {
    if typed.text(flag)?.is_some_and(str::is_empty) { Ok(None) } else { typed.number(flag) }
}

fn bytes(typed: &Typed, flag: &str) -> Result<Option<i64>> {
    let Some(text) = typed.text(flag)?.filter(|text| !text.is_empty()) else { return Ok(None) };
    let invalid = || Fault::new(Code::InvalidArgument, format!("invalid value for {flag}")).cause(format!("{text:?}"));
    parse_bytes(text).ok_or_else(invalid).map(Some)
}

/// `-1`, `1024`, `512k`, `1.5GiB`; the letters mean powers of 1024.
fn parse_bytes(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    let unit = text[end..].trim_start().to_ascii_lowercase();
    let unit = unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit);
    let power = ["", "k", "m", "g", "t", "p"].iter().position(|known| *known == unit)?;
    let bytes = number * 1024_f64.powi(power as i32);
    (bytes >= 0.0 && bytes < i64::MAX as f64).then_some(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_memory_are_read() {
        for (text, bytes) in [
            ("-1", -1),
            ("1024", 1024),
            ("1k", 1024),
            ("2MiB", 2 << 20),
            ("1.5g", 3 << 29),
            ("3 Mb", 3 << 20),
            ("0b", 0),
        ] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in ["", "x", "-2", "1z", "k"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }
}
