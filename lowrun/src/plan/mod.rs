//! From config.json to an ordered plan, without touching the system.
//!
//! Called by `cli` for `create` and `run`; `create` and `init` execute the plan and decide nothing about the spec. All
//! that can be wrong with a spec by itself is found here, before anything exists that would have to be undone.

pub mod capabilities;
pub mod devices;
pub mod mounts;
pub mod namespaces;
pub mod net_devices;
pub mod process;
pub mod sysctl;
pub mod unit;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::fault::{Code, Fault, Result};
use crate::path::clean;
use crate::spec::{self, Spec};
use devices::{DeviceNode, DeviceRule};
use mounts::{IdMap, MountKind, MountPlan};
use namespaces::{Kind, Namespaces};
use process::ProcessPlan;

/// All that making a container takes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Absolute.
    pub rootfs: PathBuf,
    pub root_readonly: bool,
    /// `MS_*` and whether it goes for all below; `None` is rslave.
    pub root_propagation: Option<(u64, bool)>,
    pub namespaces: Namespaces,
    pub uid_mappings: Vec<spec::IdMapping>,
    pub gid_mappings: Vec<spec::IdMapping>,
    /// Lines for `timens_offsets`.
    pub time_offsets: String,
    pub hostname: String,
    pub domainname: String,
    pub mounts: Vec<MountPlan>,
    pub devices: Vec<DeviceNode>,
    /// Whether `/dev` is ours to fill; not so when it is a bind mount.
    pub fills_dev: bool,
    pub masked_paths: Vec<PathBuf>,
    pub readonly_paths: Vec<PathBuf>,
    pub mount_label: String,
    /// Path below `/proc` and value.
    pub sysctl: Vec<(String, String)>,
    pub process: ProcessPlan,
    pub seccomp: Option<Box<RawValue>>,
    pub net_devices: Vec<net_devices::NetDevice>,
    pub intel_rdt: Option<spec::IntelRdt>,
    pub personality: Option<u64>,
    pub memory_policy: Option<MemoryPolicy>,
    pub cgroup: CgroupPlan,
    pub hooks: spec::Hooks,
}

/// Where the cgroup is and what it limits.
#[derive(Clone, Debug)]
pub struct CgroupPlan {
    pub path: CgroupPath,
    /// Whether the spec names it.
    pub is_named: bool,
    /// With the systemd driver, which takes no notice of `path`.
    pub unit: Option<unit::UnitPlan>,
    /// Who is to own it, on v2.
    pub owner: Option<u32>,
    pub resources: Box<spec::Resources>,
    pub devices: Vec<DeviceRule>,
}

/// A place in the hierarchies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupPath {
    /// From the root of each hierarchy, without a leading slash.
    Absolute(PathBuf),
    /// Below lowrun's own cgroup.
    Relative(PathBuf),
}

/// `set_mempolicy(2)`. Kept in the state file, for `exec`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct MemoryPolicy {
    pub mode: i32,
    pub nodes: Vec<u64>,
}

/// Plans the container `id` from the config.json of `bundle` (absolute).
pub fn plan(id: &str, bundle: &Path, spec: &Spec) -> Result<Plan> {
    check_version(&spec.oci_version)?;
    let root = spec.root.as_ref().ok_or_else(|| invalid("root", "root must be specified"))?;
    let process = spec.process.as_ref().ok_or_else(|| invalid("process", "process property must not be empty"))?;
    let absent = spec::Linux::default();
    let linux = spec.linux.as_deref().unwrap_or(&absent);
    let namespaces = Namespaces::parse(&linux.namespaces)?;
    check_namespaces(spec, linux, &namespaces)?;
    linux.intel_rdt.as_ref().map_or(Ok(()), crate::rdt::check)?;
    let rootfs = clean(&bundle.join(&root.path).to_string_lossy());
    let mut mounts = mounts(spec, bundle, &namespaces)?;
    mounts.iter_mut().for_each(|mount| mount.strip_root(&rootfs));
    let resources = linux.resources.clone().unwrap_or_default();
    let owner = cgroup_owner(spec, linux, &namespaces, &mounts);
    Ok(Plan {
        rootfs,
        root_readonly: root.readonly,
        root_propagation: root_propagation(&linux.rootfs_propagation)?,
        uid_mappings: linux.uid_mappings.clone(),
        gid_mappings: linux.gid_mappings.clone(),
        time_offsets: time_offsets(linux)?,
        hostname: spec.hostname.clone(),
        domainname: spec.domainname.clone(),
        devices: devices::nodes(&linux.devices)?,
        fills_dev: !mounts.iter().any(is_bind_over_dev),
        mounts,
        masked_paths: linux.masked_paths.iter().map(|path| clean(path)).collect(),
        readonly_paths: linux.readonly_paths.iter().map(|path| clean(path)).collect(),
        mount_label: linux.mount_label.clone(),
        sysctl: sysctl::parse(&linux.sysctl, &namespaces)?,
        process: ProcessPlan::parse(process)?,
        seccomp: linux.seccomp.clone(),
        net_devices: net_devices::parse(&linux.net_devices, &namespaces)?,
        intel_rdt: linux.intel_rdt.clone(),
        personality: linux.personality.as_ref().map(personality).transpose()?,
        memory_policy: linux.memory_policy.as_ref().map(memory_policy).transpose()?,
        cgroup: CgroupPlan {
            path: cgroup_path(id, &linux.cgroups_path)?,
            is_named: !linux.cgroups_path.is_empty(),
            unit: None,
            owner,
            devices: devices::rules(&resources.devices)?,
            resources,
        },
        hooks: hooks(spec)?,
        namespaces,
    })
}

impl Plan {
    /// Whether a bind's source lies in the container's own root: then earlier mounts may have made it.
    pub fn is_in_root(&self, source: &Path) -> bool {
        clean(&source.to_string_lossy()).starts_with(&self.rootfs)
    }
}

/// The bundle's path as the state shows it.
pub fn clean_bundle(bundle: &Path) -> PathBuf {
    clean(&bundle.to_string_lossy())
}

fn invalid(field: &str, cause: impl Into<String>) -> Box<Fault> {
    Fault::new(Code::SpecInvalid, field).cause(cause)
}

/// runtime-spec is versioned semantically: what is not 1.x means something else.
fn check_version(version: &str) -> Result<()> {
    let numbers: Vec<Option<u32>> =
        version.split(['-', '+']).next().unwrap_or_default().split('.').map(|part| part.parse().ok()).collect();
    match numbers[..] {
        [Some(1), Some(_), Some(_)] => Ok(()),
        [Some(_), Some(_), Some(_)] => Err(invalid("ociVersion", format!("version {version} is not supported"))),
        _ => Err(invalid("ociVersion", format!("{version:?} is not a version"))),
    }
}

fn check_namespaces(spec: &Spec, linux: &spec::Linux, namespaces: &Namespaces) -> Result<()> {
    if !spec.hostname.is_empty() && !namespaces.has(Kind::Uts) {
        return Err(invalid("hostname", "unable to set hostname without a private UTS namespace"));
    }
    if !spec.domainname.is_empty() && !namespaces.has(Kind::Uts) {
        return Err(invalid("domainname", "unable to set domainname without a private UTS namespace"));
    }
    if !linux.restricts_no_path() && !namespaces.has(Kind::Mount) {
        let cause = "unable to restrict sys entries without a private MNT namespace";
        return Err(invalid("linux.maskedPaths", cause));
    }
    let mapped = !linux.uid_mappings.is_empty() || !linux.gid_mappings.is_empty();
    if namespaces.is_new(Kind::User) && (linux.uid_mappings.is_empty() || linux.gid_mappings.is_empty()) {
        return Err(invalid("linux.uidMappings", "a new user namespace needs uid and gid mappings"));
    }
    if mapped && !namespaces.has(Kind::User) {
        return Err(invalid("linux.uidMappings", "user namespace mappings specified, but no user namespace"));
    }
    if !linux.time_offsets.is_empty() && !namespaces.is_new(Kind::Time) {
        return Err(invalid("linux.timeOffsets", "time namespace offsets specified, but no new time namespace"));
    }
    Ok(())
}

fn mounts(spec: &Spec, bundle: &Path, namespaces: &Namespaces) -> Result<Vec<MountPlan>> {
    let plans: Vec<MountPlan> = spec
        .mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| MountPlan::parse(index, mount, bundle))
        .collect::<Result<_>>()?;
    let implied = |plan: &&MountPlan| plan.id_map.as_ref().is_some_and(IdMap::is_implied);
    if let Some(plan) = plans.iter().find(implied).filter(|_| !namespaces.has(Kind::User)) {
        let cause = "id-mapped mounts need mappings of their own where the container has no user namespace";
        return Err(invalid(&format!("mounts[{}]", plan.index), cause));
    }
    if let Some(plan) = plans.iter().find(|plan| plan.destination == Path::new("/")) {
        let field = format!("mounts[{}].destination", plan.index);
        return Err(invalid(&field, "a mount may not be on top of the root file system"));
    }
    Ok(plans)
}

fn is_bind_over_dev(mount: &MountPlan) -> bool {
    mount.destination == Path::new("/dev") && matches!(mount.kind, MountKind::Bind { .. })
}

fn root_propagation(word: &str) -> Result<Option<(u64, bool)>> {
    if word.is_empty() {
        return Ok(None);
    }
    match mounts::propagation(word) {
        Some(propagation) => Ok(Some(propagation)),
        None => Err(invalid("linux.rootfsPropagation", format!("rootfsPropagation={word} is not supported"))),
    }
}

fn time_offsets(linux: &spec::Linux) -> Result<String> {
    let mut lines = String::new();
    for (clock, offset) in &linux.time_offsets {
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return Err(invalid("linux.timeOffsets", format!("clock {clock:?} has no offset")));
        }
        lines += &format!("{clock} {} {}\n", offset.secs, offset.nanosecs);
    }
    Ok(lines)
}

fn personality(section: &spec::Personality) -> Result<u64> {
    match section.domain.as_str() {
        "LINUX" => Ok(0),
        "LINUX32" => Ok(8),
        other => Err(invalid("linux.personality", format!("invalid personality domain {other}"))),
    }
}

/// Modes of memory policies, by number.
pub const MEMORY_MODES: [&str; 7] = [
    "MPOL_DEFAULT",
    "MPOL_PREFERRED",
    "MPOL_BIND",
    "MPOL_INTERLEAVE",
    "MPOL_LOCAL",
    "MPOL_PREFERRED_MANY",
    "MPOL_WEIGHTED_INTERLEAVE",
];

/// Flags of memory policies.
pub const MEMORY_FLAGS: [(&str, i32); 3] =
    [("MPOL_F_STATIC_NODES", 1 << 15), ("MPOL_F_RELATIVE_NODES", 1 << 14), ("MPOL_F_NUMA_BALANCING", 1 << 13)];

fn memory_policy(section: &spec::MemoryPolicy) -> Result<MemoryPolicy> {
    let field = "linux.memoryPolicy";
    let mode = MEMORY_MODES.iter().position(|name| *name == section.mode);
    let mode = mode.ok_or_else(|| invalid(field, format!("invalid memory policy mode {:?}", section.mode)))? as i32;
    let nodes = cpu_list(&section.nodes)
        .ok_or_else(|| invalid(field, format!("invalid memory policy node in {:?}", section.nodes)))?;
    let count: u32 = nodes.iter().map(|mask| mask.count_ones()).sum();
    match mode {
        0 | 4 if count != 0 => return Err(invalid(field, format!("mode requires 0 nodes but got {count}"))),
        2 | 3 | 5 | 6 if count == 0 => return Err(invalid(field, "mode requires at least 1 node but got 0")),
        _ => {}
    }
    let mut flags = 0;
    for flag in &section.flags {
        let known = MEMORY_FLAGS.iter().find(|(name, _)| name == flag);
        flags |= known.ok_or_else(|| invalid(field, format!("invalid memory policy flag {flag:?}")))?.1;
    }
    Ok(MemoryPolicy { mode: mode | flags, nodes })
}

/// A list such as `0-2,7` as a bit mask; `None` if it is not one.
pub fn cpu_list(text: &str) -> Option<Vec<u64>> {
    const HIGHEST: usize = 8191;
    let mut mask = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last > HIGHEST {
            return None;
        }
        mask.resize(mask.len().max(last / 64 + 1), 0_u64);
        (first..=last).for_each(|number| mask[number / 64] |= 1 << (number % 64));
    }
    Some(mask)
}

/// Longest name of a directory, in bytes.
const NAME_MAX: usize = 255;

fn cgroup_path(id: &str, path: &str) -> Result<CgroupPath> {
    let cleaned = clean(path);
    let below = cleaned.strip_prefix("/").unwrap_or(&cleaned).to_owned();
    // What no directory can be called could not be looked for either, when the container is removed.
    if path.contains('\0') || below.iter().any(|name| name.len() > NAME_MAX) {
        return Err(invalid(
            "linux.cgroupsPath",
            format!("no name of a directory: a zero byte, or over {NAME_MAX} bytes"),
        ));
    }
    Ok(match path {
        "" => CgroupPath::Relative(PathBuf::from(id)),
        path if path.starts_with('/') => CgroupPath::Absolute(below),
        _ => CgroupPath::Relative(below),
    })
}

/// The user of the host that the container's process is, if the container can see and change its own cgroup: it has a
/// cgroup namespace, and a mount of it that can be written.
fn cgroup_owner(spec: &Spec, linux: &spec::Linux, namespaces: &Namespaces, mounts: &[MountPlan]) -> Option<u32> {
    let is_seen = mounts.iter().any(|mount| {
        let is_cgroup = matches!(mount.kind, MountKind::Cgroup { .. });
        is_cgroup && mount.destination == Path::new("/sys/fs/cgroup") && !mount.attr.is_readonly()
    });
    if !is_seen || !namespaces.is_new(Kind::Cgroup) {
        return None;
    }
    let uid = spec.process.as_ref().map_or(0, |process| process.user.uid);
    // Without a user namespace, root owns it anyway.
    if !namespaces.has(Kind::User) {
        return Some(uid).filter(|uid| *uid != 0);
    }
    let range =
        linux.uid_mappings.iter().find(|map| uid.checked_sub(map.container_id).is_some_and(|at| at < map.size))?;
    range.host_id.checked_add(uid - range.container_id)
}

fn hooks(spec: &Spec) -> Result<spec::Hooks> {
    let hooks = spec.hooks.clone().unwrap_or_default();
    let all = [
        ("prestart", &hooks.prestart),
        ("createRuntime", &hooks.create_runtime),
        ("createContainer", &hooks.create_container),
        ("startContainer", &hooks.start_container),
        ("poststart", &hooks.poststart),
        ("poststop", &hooks.poststop),
    ];
    for (point, hooks) in all {
        for (index, hook) in hooks.iter().enumerate() {
            let field = format!("hooks.{point}[{index}]");
            if !hook.path.starts_with('/') {
                return Err(invalid(&field, format!("path {:?} is not absolute", hook.path)));
            }
            if hook.timeout.is_some_and(|seconds| seconds <= 0) {
                return Err(invalid(&field, "the timeout must be greater than zero"));
            }
        }
    }
    Ok(hooks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(extra: &str) -> Spec {
        let text = format!(
            r#"{{"ociVersion":"1.2.0","root":{{"path":"rootfs"}},"process":{{"cwd":"/","args":["true"]}},{extra}
                "annotations":{{}}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn planned(extra: &str) -> Result<Plan> {
        plan("c1", Path::new("/bundle"), &spec(extra))
    }

    #[test]
    fn paths_of_the_bundle_are_made_absolute() {
        let plan = planned("").unwrap();
        assert_eq!(plan.rootfs, Path::new("/bundle/rootfs"));
        assert_eq!(plan.cgroup.path, CgroupPath::Relative("c1".into()));
        assert!(plan.fills_dev);
    }

    #[test]
    fn a_field_that_needs_a_namespace_says_so() {
        for (extra, field) in [
            (r#""hostname":"h","#, "hostname"),
            (r#""domainname":"d","#, "domainname"),
            (r#""linux":{"maskedPaths":["/proc/kcore"]},"#, "linux.maskedPaths"),
            (r#""linux":{"namespaces":[{"type":"user"}]},"#, "linux.uidMappings"),
            (r#""linux":{"uidMappings":[{"size":1}]},"#, "linux.uidMappings"),
            (r#""linux":{"timeOffsets":{"boottime":{"secs":1}}},"#, "linux.timeOffsets"),
            (r#""linux":{"rootfsPropagation":"sideways"},"#, "linux.rootfsPropagation"),
            (r#""hooks":{"poststop":[{"path":"x"}]},"#, "hooks.poststop[0]"),
            (r#""mounts":[{"destination":"/x/.."}],"#, "mounts[0].destination"),
        ] {
            let fault = planned(extra).unwrap_err();
            assert_eq!((fault.code, fault.message.as_str()), (Code::SpecInvalid, field));
        }
    }

    #[test]
    fn versions_other_than_1_are_refused() {
        for version in ["1.0.0", "1.2.1-rc1", "1.3.0+dev"] {
            assert!(check_version(version).is_ok(), "{version}");
        }
        for version in ["", "2.0.0", "1", "x.y.z", "0.9.0"] {
            assert!(check_version(version).is_err(), "{version}");
        }
    }

    #[test]
    fn cgroup_paths_cannot_climb() {
        assert_eq!(cgroup_path("c", "/a/../../b").unwrap(), CgroupPath::Absolute("b".into()));
        assert_eq!(cgroup_path("c", "../a").unwrap(), CgroupPath::Relative("a".into()));
    }

    #[test]
    fn lists_of_cpus_are_masks() {
        assert_eq!(cpu_list("0-2,65"), Some(vec![0b111, 0b10]));
        assert_eq!(cpu_list(""), Some(vec![]));
        for text in ["3-1", "x", "-1", "99999999"] {
            assert_eq!(cpu_list(text), None, "{text}");
        }
    }
}
