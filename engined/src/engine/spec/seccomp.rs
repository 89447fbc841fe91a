//! seccomp: from a profile with conditions to the `linux.seccomp` of one container.
//!
//! A profile says which rules hold on which architecture, for which capabilities, from which kernel on; what stays is
//! what the OCI spec can say. The default profile is a table ([`super::seccomp_default`]), a person's own is Docker's
//! JSON. The default's text is rendered once for each set of capabilities and shared by all containers that have it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::capability::CapabilitySet;
use super::seccomp_default::RULES;
use crate::engine::error::Error;

/// Most sets of capabilities whose rendered profile is remembered: a host has few, and each takes 8 KiB.
const RENDERED_MAX: usize = 16;
const EPERM: u32 = 1;

/// What happens at a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Allow,
    Errno(u32),
}

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Equal,
    NotEqual,
    Less,
    Greater,
    /// The bits of this mask equal the value.
    MaskedEqual(u64),
}

/// A kernel's version, as far as profiles compare it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kernel {
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl Kernel {
    /// Reads "6.1.0-18-amd64" or "4.8".
    fn parse(release: &str) -> Option<Kernel> {
        let mut parts = release.split(|c: char| !c.is_ascii_digit());
        Some(Kernel { major: parts.next()?.parse().ok()?, minor: parts.next()?.parse().ok()? })
    }

    fn running() -> Option<Kernel> {
        Kernel::parse(rustix::system::uname().release().to_str().ok()?)
    }
}

/// When a rule holds. Empty lists ask nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Condition {
    /// One of them must be the machine's (Go's names).
    pub(super) arches: &'static [&'static str],
    pub(super) not_arches: &'static [&'static str],
    /// The container must have all of them.
    pub(super) caps: &'static [&'static str],
    /// The container must have none of them.
    pub(super) not_caps: &'static [&'static str],
    pub(super) min_kernel: Option<Kernel>,
}

impl Condition {
    pub(super) const ALWAYS: Condition =
        Condition { arches: &[], not_arches: &[], caps: &[], not_caps: &[], min_kernel: None };
}

/// One row of the default profile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub(super) names: &'static [&'static str],
    pub(super) verdict: Verdict,
    /// Index, comparison, value.
    pub(super) args: &'static [(u32, Op, u64)],
    pub(super) condition: Condition,
}

/// `linux.seccomp` of the OCI spec.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Oci<'a> {
    default_action: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_errno_ret: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    architectures: Vec<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    flags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    listener_path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    listener_metadata: Option<String>,
    syscalls: Vec<OciSyscall<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OciSyscall<'a> {
    names: Cow<'a, [Cow<'a, str>]>,
    action: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno_ret: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<OciArg>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OciArg {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// The machine's architecture in Go's name, and the ABIs that its kernel accepts.
fn native() -> (&'static str, &'static [&'static str]) {
    if cfg!(target_arch = "aarch64") {
        ("arm64", &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"])
    } else {
        ("amd64", &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"])
    }
}

/// Rendered default profiles, by capabilities.
#[derive(Default)]
pub(crate) struct DefaultProfile {
    rendered: Mutex<HashMap<CapabilitySet, Arc<RawValue>>>,
}

impl DefaultProfile {
    /// The default profile for a container that has `caps`.
    pub(crate) fn for_caps(&self, caps: CapabilitySet) -> Arc<RawValue> {
        let mut rendered = self.rendered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = rendered.get(&caps) {
            return Arc::clone(text);
        }
        if rendered.len() >= RENDERED_MAX {
            rendered.clear();
        }
        let text: Arc<RawValue> = Arc::from(render_default(caps, Kernel::running()));
        rendered.insert(caps, Arc::clone(&text));
        text
    }
}

fn render_default(caps: CapabilitySet, kernel: Option<Kernel>) -> Box<RawValue> {
    let (arch, abis) = native();
    let holds = |rule: &&Rule| {
        let condition = &rule.condition;
        (condition.arches.is_empty() || condition.arches.contains(&arch))
            && !condition.not_arches.contains(&arch)
            && condition.caps.iter().all(|cap| caps.has_name(cap))
            && !condition.not_caps.iter().any(|cap| caps.has_name(cap))
            && condition.min_kernel.is_none_or(|least| kernel.is_none_or(|kernel| kernel >= least))
    };
    let profile = Oci {
        default_action: "SCMP_ACT_ERRNO".into(),
        default_errno_ret: Some(EPERM),
        architectures: abis.iter().map(|abi| Cow::from(*abi)).collect(),
        flags: Vec::new(),
        listener_path: None,
        listener_metadata: None,
        syscalls: RULES.iter().filter(holds).map(to_oci).collect(),
    };
    serde_json::value::to_raw_value(&profile).unwrap_or_else(|error| unreachable!("a table is always JSON: {error}"))
}

fn to_oci(rule: &Rule) -> OciSyscall<'static> {
    let (action, errno_ret) = match rule.verdict {
        Verdict::Allow => ("SCMP_ACT_ALLOW", None),
        Verdict::Errno(errno) => ("SCMP_ACT_ERRNO", Some(errno)),
    };
    let arg = |&(index, op, value): &(u32, Op, u64)| {
        let (op, value, value_two) = match op {
            Op::Equal => ("SCMP_CMP_EQ", value, 0),
            Op::NotEqual => ("SCMP_CMP_NE", value, 0),
            Op::Less => ("SCMP_CMP_LT", value, 0),
            Op::Greater => ("SCMP_CMP_GT", value, 0),
            Op::MaskedEqual(mask) => ("SCMP_CMP_MASKED_EQ", mask, value),
        };
        OciArg { index, value, value_two, op: op.to_owned() }
    };
    OciSyscall {
        names: rule.names.iter().map(|name| Cow::from(*name)).collect(),
        action: action.into(),
        errno_ret,
        args: rule.args.iter().map(arg).collect(),
    }
}

/// A profile in Docker's JSON format.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Docker {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    arch_map: Option<Vec<DockerArch>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
    #[serde(default)]
    syscalls: Option<Vec<DockerRule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DockerArch {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DockerRule {
    /// The old form: one name.
    #[serde(default)]
    name: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<OciArg>>,
    #[serde(default, rename = "comment")]
    _comment: Option<String>,
    #[serde(default)]
    includes: DockerCondition,
    #[serde(default)]
    excludes: DockerCondition,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DockerCondition {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

impl DockerRule {
    fn holds(&self, caps: CapabilitySet, arch: &str, kernel: Option<Kernel>) -> bool {
        let is_old = |least: &Option<String>| {
            let least = least.as_deref().and_then(Kernel::parse);
            least.zip(kernel).is_some_and(|(least, kernel)| kernel < least)
        };
        let names = |list: &Option<Vec<String>>, held: &dyn Fn(&str) -> bool| {
            list.as_deref().unwrap_or_default().iter().map(|name| held(name)).collect::<Vec<bool>>()
        };
        let has_cap = |cap: &str| caps.has_name(cap);
        let is_arch = |name: &str| name == arch;
        let wanted_arches = names(&self.includes.arches, &is_arch);
        (wanted_arches.is_empty() || wanted_arches.contains(&true))
            && !names(&self.excludes.arches, &is_arch).contains(&true)
            && !names(&self.includes.caps, &has_cap).contains(&false)
            && !names(&self.excludes.caps, &has_cap).contains(&true)
            && !is_old(&self.includes.min_kernel)
            && (self.excludes.min_kernel.is_none() || is_old(&self.excludes.min_kernel))
    }
}

/// What a person's own profile comes to for a container that has `caps`.
pub(crate) fn custom(profile: &[u8], caps: CapabilitySet) -> Result<Arc<RawValue>, Error> {
    let unreadable = |source| Error::SeccompProfile { source };
    let docker: Docker = serde_json::from_slice(profile).map_err(unreadable)?;
    let (arch, abis) = native();
    let kernel = Kernel::running();
    let rules = docker.syscalls.unwrap_or_default().into_iter().filter(|rule| rule.holds(caps, arch, kernel));
    let resolved = Oci {
        default_action: docker.default_action.into(),
        default_errno_ret: docker.default_errno_ret,
        architectures: match (docker.architectures, docker.arch_map) {
            (Some(listed), _) if !listed.is_empty() => listed.into_iter().map(Cow::from).collect(),
            (_, Some(map)) => of_this_machine(map, abis[0]),
            _ => Vec::new(),
        },
        flags: docker.flags.unwrap_or_default(),
        listener_path: docker.listener_path,
        listener_metadata: docker.listener_metadata,
        syscalls: rules.map(from_docker).collect(),
    };
    serde_json::value::to_raw_value(&resolved).map(Arc::from).map_err(unreadable)
}

fn of_this_machine(map: Vec<DockerArch>, native: &str) -> Vec<Cow<'static, str>> {
    let Some(entry) = map.into_iter().find(|entry| entry.architecture == native) else { return Vec::new() };
    std::iter::once(entry.architecture).chain(entry.sub_architectures.unwrap_or_default()).map(Cow::from).collect()
}

fn from_docker(rule: DockerRule) -> OciSyscall<'static> {
    let mut names = rule.names.unwrap_or_default();
    if !rule.name.is_empty() {
        names.push(rule.name);
    }
    OciSyscall {
        names: names.into_iter().map(Cow::from).collect(),
        action: rule.action.into(),
        errno_ret: rule.errno_ret,
        args: rule.args.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn rendered(caps: CapabilitySet) -> Value {
        let kernel = Some(Kernel { major: 6, minor: 1 });
        serde_json::from_str(render_default(caps, kernel).get()).unwrap()
    }

    fn allows<'a>(profile: &'a Value, name: &str) -> Vec<&'a Value> {
        let rules = profile["syscalls"].as_array().unwrap().iter();
        rules.filter(|rule| rule["names"].as_array().unwrap().iter().any(|listed| listed == name)).collect()
    }

    #[test]
    fn dangerous_calls_are_closed_by_default() {
        let profile = rendered(CapabilitySet::DEFAULT);
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        for name in [
            "keyctl",
            "add_key",
            "request_key",
            "io_uring_setup",
            "userfaultfd",
            "bpf",
            "fsopen",
            "fsconfig",
            "mount",
            "unshare",
            "setns",
            "open_by_handle_at",
            "perf_event_open",
            "kexec_load",
            "init_module",
            "reboot",
            "swapon",
            "open_tree",
            "move_mount",
        ] {
            assert!(allows(&profile, name).is_empty(), "{name}");
        }
        for name in ["read", "openat2", "execve", "ptrace", "chroot"] {
            assert!(!allows(&profile, name).is_empty(), "{name}");
        }
    }

    #[test]
    fn af_alg_and_af_vsock_cannot_be_reached() {
        let profile = rendered(CapabilitySet::ALL);
        let open = |family: u64| {
            allows(&profile, "socket").iter().any(|rule| {
                let arg = &rule["args"][0];
                let value = arg["value"].as_u64().unwrap();
                match arg["op"].as_str().unwrap() {
                    "SCMP_CMP_LT" => family < value,
                    "SCMP_CMP_EQ" => family == value,
                    "SCMP_CMP_GT" => family > value,
                    other => panic!("{other}"),
                }
            })
        };
        assert!(open(1) && open(2) && open(10) && open(16) && open(39) && open(44));
        assert!(!open(38) && !open(40));
        let socketcall = allows(&profile, "socketcall");
        assert_eq!((socketcall.len(), &socketcall[0]["args"][0]["op"]), (1, &Value::from("SCMP_CMP_NE")));
    }

    #[test]
    fn capabilities_open_what_they_are_for() {
        let profile = rendered(CapabilitySet::ALL);
        for name in ["mount", "bpf", "reboot", "open_by_handle_at"] {
            assert!(!allows(&profile, name).is_empty(), "{name}");
        }
        assert!(allows(&profile, "clone3").iter().all(|rule| rule["action"] == "SCMP_ACT_ALLOW"));
        let plain = rendered(CapabilitySet::DEFAULT);
        assert_eq!(allows(&plain, "clone3")[0]["errnoRet"], 38);
        assert_eq!(allows(&plain, "clone")[0]["args"][0]["op"], "SCMP_CMP_MASKED_EQ");
    }

    #[test]
    fn a_rendered_profile_is_shared() {
        let profiles = DefaultProfile::default();
        let first = profiles.for_caps(CapabilitySet::DEFAULT);
        assert!(Arc::ptr_eq(&first, &profiles.for_caps(CapabilitySet::DEFAULT)));
        assert!(!Arc::ptr_eq(&first, &profiles.for_caps(CapabilitySet::ALL)));
    }

    #[test]
    fn a_profile_of_ones_own_is_resolved() {
        let profile = br#"{
            "defaultAction": "SCMP_ACT_ALLOW",
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}],
            "syscalls": [
                {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
                {"name": "rmdir", "action": "SCMP_ACT_KILL"},
                {"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["b"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_CHOWN"]}},
                {"names": ["c"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["vax"]}},
                {"names": ["d"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}}
            ]}"#;
        let text = custom(profile, CapabilitySet::DEFAULT).unwrap();
        let value: Value = serde_json::from_str(text.get()).unwrap();
        let names: Vec<&str> =
            value["syscalls"].as_array().unwrap().iter().map(|rule| rule["names"][0].as_str().unwrap()).collect();
        assert_eq!(names, ["mkdir", "rmdir"]);
        assert_eq!(value["architectures"].as_array().unwrap().len(), 2);
        assert_eq!(value["syscalls"][0]["errnoRet"], 13);
    }

    #[test]
    fn what_is_no_profile_is_refused() {
        for text in ["", "{}", "[]", r#"{"defaultAction": 1}"#, r#"{"defaultAction": "X", "unheard": 1}"#] {
            assert!(custom(text.as_bytes(), CapabilitySet::DEFAULT).is_err(), "{text}");
        }
    }

    #[test]
    fn kernels_are_compared() {
        assert_eq!(Kernel::parse("6.1.0-18-amd64"), Some(Kernel { major: 6, minor: 1 }));
        assert!(Kernel::parse("5.10").unwrap() > Kernel::parse("4.19.3").unwrap());
        assert_eq!(Kernel::parse("x"), None);
    }
}
