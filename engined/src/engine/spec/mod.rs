//! From a request and an image to an OCI runtime spec: what Docker gives a container by default, and what was asked for.
//!
//! [`render`] is pure but for the devices of a privileged container. What it needs of the machine ([`Machine`]) is read
//! once, when the engine starts.

pub(crate) mod capability;
mod devices;
mod oci;
pub(crate) mod passwd;
pub(crate) mod program;
pub(crate) mod seccomp;
mod seccomp_default;
pub(crate) mod user;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::value::RawValue;

use self::capability::CapabilitySet;
use self::program::Program;
use self::seccomp::DefaultProfile;
use self::user::User;
use super::container::wanted::{Mount, MountKind, NetworkMode, Resources, Seccomp, Ulimit, Wanted};
use super::error::{Error, Field};

/// The period of the processor's quota, in microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// Magic of cgroup v2's file system (linux/magic.h).
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// What a container may read of the kernel but could learn too much from, or that costs too much to read.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// What a container may read but not write.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Character devices that every container may use: null, zero, full, random, urandom, tty, console, ptmx, terminals.
const CHARACTER_DEVICES: [(i64, Option<i64>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// What the spec must know of the machine and of this instance.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) is_cgroup2: bool,
    /// What a container can have at most.
    pub(crate) bounding: CapabilitySet,
    /// `/sys/devices/system/cpu/cpu*/thermal_throttle`, where the machine has them.
    thermal: Vec<String>,
    /// `/strata-0`.
    pub(crate) cgroup_parent: String,
    pub(crate) systemd_cgroup: bool,
}

impl Machine {
    /// Looks at the machine.
    pub(crate) fn look(cgroup_parent: String, systemd_cgroup: bool) -> Machine {
        let magic = rustix::fs::statfs("/sys/fs/cgroup").map(|fs| fs.f_type as u64);
        let throttle = |cpu: usize| format!("/sys/devices/system/cpu/cpu{cpu}/thermal_throttle");
        let is_there = |path: &String| Path::new(path).exists();
        Machine {
            is_cgroup2: magic.is_ok_and(|magic| magic == CGROUP2_SUPER_MAGIC),
            bounding: CapabilitySet::bounding(),
            thermal: (0..).map(throttle).take_while(is_there).collect(),
            cgroup_parent,
            systemd_cgroup,
        }
    }

    /// The container's cgroup as runc's convention writes it.
    fn cgroups_path(&self, id: &str) -> String {
        if self.systemd_cgroup {
            let slice = self.cgroup_parent.trim_matches('/').replace('/', "-");
            return format!("{slice}.slice:strata:{id}");
        }
        format!("{}/{id}", self.cgroup_parent)
    }
}

/// Files of the host that are mounted into every container.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EtcFiles<'a> {
    pub(crate) hosts: &'a str,
    pub(crate) hostname: &'a str,
    pub(crate) resolv_conf: &'a str,
}

/// What a spec is made of.
pub(crate) struct Ingredients<'a> {
    pub(crate) id: &'a str,
    pub(crate) wanted: &'a Wanted,
    pub(crate) program: &'a Program,
    pub(crate) hostname: &'a str,
    pub(crate) etc: EtcFiles<'a>,
    /// The pinned network namespace; `None`: one of its own that nobody pins.
    pub(crate) network_namespace: Option<&'a str>,
    pub(crate) machine: &'a Machine,
    pub(crate) profiles: &'a DefaultProfile,
}

/// The spec as JSON.
pub(crate) fn render(ingredients: &Ingredients<'_>) -> Result<Vec<u8>, Error> {
    let wanted = ingredients.wanted;
    let caps = capabilities(wanted, ingredients.machine)?;
    let spec = oci::Spec {
        oci_version: oci::VERSION,
        process: process(wanted, ingredients.program, None, caps),
        root: oci::Root { path: "rootfs", readonly: wanted.read_only_rootfs },
        hostname: ingredients.hostname,
        mounts: mounts(ingredients),
        annotations: BTreeMap::new(),
        linux: linux(ingredients, caps)?,
    };
    serde_json::to_vec(&spec).map_err(|source| Error::Json { what: "the runtime spec", source })
}

/// The process of an exec, as JSON.
pub(crate) fn render_exec(
    wanted: &Wanted,
    program: &Program,
    size: Option<(u32, u32)>,
    caps: CapabilitySet,
) -> Result<Vec<u8>, Error> {
    let process = process(wanted, program, size, caps);
    serde_json::to_vec(&process).map_err(|source| Error::Json { what: "the process of an exec", source })
}

fn process<'a>(
    wanted: &'a Wanted,
    program: &'a Program,
    size: Option<(u32, u32)>,
    caps: CapabilitySet,
) -> oci::Process<'a> {
    oci::Process {
        terminal: wanted.tty,
        console_size: size.map(|(width, height)| oci::ConsoleSize { width, height }),
        user: oci::ProcessUser { uid: program.user.uid, gid: program.user.gid, additional_gids: &program.user.groups },
        args: &program.args,
        env: &program.env,
        cwd: &program.cwd,
        capabilities: held(caps, &program.user),
        rlimits: wanted.ulimits.iter().map(rlimit).collect(),
        no_new_privileges: wanted.security.no_new_privileges,
        // The shim's own is lower: it must not be inherited.
        oom_score_adj: 0,
    }
}

/// What the container may ever have. What was asked for by name and cannot be had is refused; of everything it is left out.
pub(crate) fn capabilities(wanted: &Wanted, machine: &Machine) -> Result<CapabilitySet, Error> {
    let security = &wanted.security;
    if security.privileged {
        return Ok(machine.bounding);
    }
    if let Some(name) = machine.bounding.lacks(&security.cap_add) {
        return Err(Error::invalid(Field::CapAdd, name, "a capability that the engine itself has"));
    }
    Ok(CapabilitySet::adjusted(&security.cap_add, &security.cap_drop).and(machine.bounding))
}

/// Root has them; another user may gain them by a program's own capabilities only, as after execve(2). Nothing is
/// inheritable or ambient (CVE-2016-8867, CVE-2022-24769).
fn held(set: CapabilitySet, user: &User) -> oci::Capabilities {
    let names = set.names();
    let own = if user.uid == 0 { names.clone() } else { Vec::new() };
    oci::Capabilities { bounding: names, effective: own.clone(), permitted: own }
}

fn rlimit(ulimit: &Ulimit) -> oci::Rlimit {
    let value = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    oci::Rlimit {
        kind: format!("RLIMIT_{}", ulimit.name.to_ascii_uppercase()),
        soft: value(ulimit.soft),
        hard: value(ulimit.hard),
    }
}

fn linux<'a>(ingredients: &Ingredients<'a>, caps: CapabilitySet) -> Result<oci::Linux<'a>, Error> {
    let wanted = ingredients.wanted;
    let privileged = wanted.security.privileged;
    let mut masked: Vec<String> = MASKED.iter().map(|path| (*path).to_owned()).collect();
    masked.extend(ingredients.machine.thermal.iter().cloned());
    Ok(oci::Linux {
        sysctl: sysctl(wanted.network.mode),
        resources: resources(&wanted.resources, privileged),
        cgroups_path: ingredients.machine.cgroups_path(ingredients.id),
        namespaces: namespaces(ingredients),
        devices: if privileged { devices::host() } else { Vec::new() },
        seccomp: seccomp(wanted, caps, ingredients.profiles)?,
        masked_paths: if privileged { Vec::new() } else { masked },
        readonly_paths: if privileged { Vec::new() } else { READ_ONLY.to_vec() },
    })
}

/// Low ports and pings need no privilege in a network of one's own, as in Docker.
fn sysctl(mode: NetworkMode) -> BTreeMap<&'static str, &'static str> {
    match mode {
        NetworkMode::Host => BTreeMap::new(),
        NetworkMode::Bridge | NetworkMode::None => BTreeMap::from([
            ("net.ipv4.ip_unprivileged_port_start", "0"),
            ("net.ipv4.ping_group_range", "0 2147483647"),
        ]),
    }
}

fn seccomp(wanted: &Wanted, caps: CapabilitySet, profiles: &DefaultProfile) -> Result<Option<Arc<RawValue>>, Error> {
    match &wanted.security.seccomp {
        Seccomp::Unconfined => Ok(None),
        // A person's own profile holds for a privileged container too.
        Seccomp::Profile(text) => seccomp::custom(text.as_bytes(), caps).map(Some),
        Seccomp::Default if wanted.security.privileged => Ok(None),
        Seccomp::Default => Ok(Some(profiles.for_caps(caps))),
    }
}

fn resources(wanted: &Resources, privileged: bool) -> oci::Resources {
    oci::Resources {
        devices: if privileged { vec![any_device(true)] } else { device_rules() },
        memory: wanted.memory.map(|limit| oci::Memory { limit }),
        cpu: wanted.nano_cpus.map(|nano_cpus| oci::Cpu {
            quota: (nano_cpus.saturating_mul(CPU_PERIOD_US) / 1_000_000_000) as i64,
            period: CPU_PERIOD_US,
        }),
        pids: wanted.pids.map(|limit| oci::Pids { limit }),
    }
}

const fn any_device(allow: bool) -> oci::DeviceRule {
    oci::DeviceRule { allow, kind: None, major: None, minor: None, access: "rwm" }
}

/// Nothing, then what is harmless. Any node may be made, as the right to use it is another matter.
fn device_rules() -> Vec<oci::DeviceRule> {
    let make = |kind| oci::DeviceRule { allow: true, kind: Some(kind), major: None, minor: None, access: "m" };
    let mut rules = vec![any_device(false), make("c"), make("b")];
    rules.extend(CHARACTER_DEVICES.iter().map(|&(major, minor)| oci::DeviceRule {
        allow: true,
        kind: Some("c"),
        major: Some(major),
        minor,
        access: "rwm",
    }));
    rules
}

fn namespaces<'a>(ingredients: &Ingredients<'a>) -> Vec<oci::Namespace<'a>> {
    let own = |kind| oci::Namespace { kind, path: None };
    let mut namespaces = vec![own("mount"), own("uts"), own("ipc"), own("pid")];
    if ingredients.wanted.network.mode != NetworkMode::Host {
        namespaces.push(oci::Namespace { kind: "network", path: ingredients.network_namespace });
    }
    // On cgroup v1 Docker gives none: programs look for the host's paths there.
    if ingredients.machine.is_cgroup2 && !ingredients.wanted.security.privileged {
        namespaces.push(own("cgroup"));
    }
    namespaces
}

fn mounts<'a>(ingredients: &Ingredients<'a>) -> Vec<oci::Mount<'a>> {
    let wanted = ingredients.wanted;
    let mut mounts = default_mounts(wanted.security.privileged);
    let is_wanted =
        |destination: &str| wanted.mounts.iter().any(|mount| mount.target.as_path() == Path::new(destination));
    mounts.retain(|mount| !is_wanted(mount.destination));
    let etc = ingredients.etc;
    let files = [("/etc/resolv.conf", etc.resolv_conf), ("/etc/hostname", etc.hostname), ("/etc/hosts", etc.hosts)];
    let files =
        files.into_iter().filter(|(target, _)| !is_wanted(target)).map(|(target, source)| etc_file(target, source));
    let mut asked: Vec<oci::Mount<'a>> = wanted.mounts.iter().map(asked_mount).chain(files).collect();
    // What lies deeper comes later, else it would be hidden.
    asked.sort_by_key(|mount| Path::new(mount.destination).components().count());
    mounts.extend(asked);
    mounts
}

fn default_mounts(privileged: bool) -> Vec<oci::Mount<'static>> {
    let access = if privileged { "rw" } else { "ro" };
    let mount = |destination, kind, source, options: &[&str]| oci::Mount {
        destination,
        kind,
        source,
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    };
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &[access, "nosuid", "noexec", "nodev"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ]
}

fn etc_file<'a>(destination: &'static str, source: &'a str) -> oci::Mount<'a> {
    let options = ["rbind", "rprivate"].map(str::to_owned).to_vec();
    oci::Mount { destination, kind: "bind", source, options }
}

fn asked_mount(mount: &Mount) -> oci::Mount<'_> {
    let destination = mount.target.as_str();
    let access = if mount.read_only { "ro" } else { "rw" };
    match &mount.kind {
        MountKind::Bind { source, propagation, recursive, .. } => {
            let bind = if *recursive { "rbind" } else { "bind" };
            let mut options = vec![bind.to_owned(), propagation.as_str().to_owned(), access.to_owned()];
            if mount.read_only && *recursive {
                // What is mounted below the source is read-only too.
                options.push("rro".to_owned());
            }
            oci::Mount { destination, kind: "bind", source: source.to_str().unwrap_or_default(), options }
        }
        MountKind::Tmpfs { size, mode } => {
            let mut options = ["nosuid", "nodev", "noexec", access].map(str::to_owned).to_vec();
            options.extend(size.map(|size| format!("size={size}")));
            options.push(format!("mode={:o}", mode.unwrap_or(0o1777)));
            oci::Mount { destination, kind: "tmpfs", source: "tmpfs", options }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::capability::CapabilityName;
    use super::*;
    use crate::engine::container::wanted::tests::plain;
    use crate::engine::container::wanted::{ContainerPath, Propagation};
    use crate::engine::signal::Signal;
    use serde_json::Value;

    fn machine() -> Machine {
        Machine {
            is_cgroup2: false,
            bounding: CapabilitySet::ALL,
            thermal: Vec::new(),
            cgroup_parent: "/strata-t".to_owned(),
            systemd_cgroup: false,
        }
    }

    fn program(uid: u32) -> Program {
        Program {
            args: vec!["true".to_owned()],
            env: vec!["PATH=/bin".to_owned()],
            cwd: "/".to_owned(),
            user_as_written: String::new(),
            user: User { uid, gid: uid, groups: vec![uid], home: None },
            stop_signal: Signal::TERM,
        }
    }

    fn rendered(wanted: &Wanted, program: &Program, machine: &Machine) -> Value {
        let ingredients = Ingredients {
            id: "abc",
            wanted,
            program,
            hostname: "box",
            etc: EtcFiles { hosts: "/s/hosts", hostname: "/s/hostname", resolv_conf: "/s/resolv.conf" },
            network_namespace: Some("/s/netns/abc"),
            machine,
            profiles: &DefaultProfile::default(),
        };
        serde_json::from_slice(&render(&ingredients).unwrap()).unwrap()
    }

    fn destinations(spec: &Value) -> Vec<&str> {
        spec["mounts"].as_array().unwrap().iter().map(|mount| mount["destination"].as_str().unwrap()).collect()
    }

    #[test]
    fn a_plain_container() {
        let mut spec = rendered(&plain("busybox"), &program(0), &machine());
        let linux = spec["linux"].as_object_mut().unwrap();
        assert!(linux.remove("seccomp").unwrap()["syscalls"].as_array().unwrap().len() > 10);
        let golden = include_str!("golden.json");
        let expected: Value = serde_json::from_str(golden).unwrap();
        assert_eq!(spec, expected, "{}", serde_json::to_string_pretty(&spec).unwrap());
    }

    #[test]
    fn another_user_has_no_capabilities() {
        let spec = rendered(&plain("x"), &program(1000), &machine());
        let caps = &spec["process"]["capabilities"];
        assert_eq!(caps["bounding"].as_array().unwrap().len(), 14);
        assert!(caps["effective"].as_array().unwrap().is_empty() && caps["permitted"].as_array().unwrap().is_empty());
        assert!(caps.get("ambient").is_none() && caps.get("inheritable").is_none());
        assert_eq!(spec["process"]["user"]["additionalGids"][0], 1000);
    }

    #[test]
    fn privileged_means_everything() {
        let mut wanted = plain("x");
        wanted.security.privileged = true;
        let spec = rendered(&wanted, &program(0), &machine());
        let linux = &spec["linux"];
        assert!(linux.get("seccomp").is_none() && linux.get("maskedPaths").is_none());
        assert_eq!(linux["resources"]["devices"][0]["allow"], true);
        assert!(linux["devices"].as_array().unwrap().iter().any(|device| device["path"] == "/dev/null"));
        assert!(spec["process"]["capabilities"]["effective"].as_array().unwrap().len() > 36);
    }

    #[test]
    fn what_the_engine_lacks_nobody_gets() {
        let machine = Machine { bounding: CapabilitySet::DEFAULT, ..machine() };
        let mut wanted = plain("x");
        wanted.security.privileged = true;
        assert_eq!(capabilities(&wanted, &machine).unwrap(), CapabilitySet::DEFAULT);
        wanted.security.privileged = false;
        wanted.security.cap_add = vec![CapabilityName::All];
        assert_eq!(capabilities(&wanted, &machine).unwrap(), CapabilitySet::DEFAULT);
        wanted.security.cap_add = vec![CapabilityName::parse(Field::CapAdd, "SYS_ADMIN").unwrap()];
        assert!(capabilities(&wanted, &machine).is_err());
    }

    #[test]
    fn networks() {
        let kinds = |wanted: &Wanted| {
            let spec = rendered(wanted, &program(0), &machine());
            let all = spec["linux"]["namespaces"].as_array().unwrap().clone();
            all.into_iter().find(|namespace| namespace["type"] == "network")
        };
        let mut wanted = plain("x");
        assert_eq!(kinds(&wanted).unwrap()["path"], "/s/netns/abc");
        wanted.network.mode = NetworkMode::Host;
        assert_eq!(kinds(&wanted), None);
    }

    #[test]
    fn cgroup2_brings_a_namespace_and_systemd_a_slice() {
        let machine = Machine { is_cgroup2: true, systemd_cgroup: true, ..machine() };
        let spec = rendered(&plain("x"), &program(0), &machine);
        let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
        assert!(namespaces.iter().any(|namespace| namespace["type"] == "cgroup"));
        assert_eq!(spec["linux"]["cgroupsPath"], "strata-t.slice:strata:abc");
    }

    #[test]
    fn mounts_that_were_asked_for() {
        let mount = |target: &str, read_only, kind| Mount {
            target: ContainerPath::parse(Field::MountTarget, target).unwrap(),
            read_only,
            kind,
        };
        let mut wanted = plain("x");
        wanted.mounts = vec![
            mount("/a/b/c", true, MountKind::bind("/src", Propagation::Rslave, false, true).unwrap()),
            mount("/a", false, MountKind::tmpfs(1024, 0o700).unwrap()),
            mount("/dev/shm", false, MountKind::tmpfs(0, 0).unwrap()),
            mount("/etc/hosts", false, MountKind::bind("/h", Propagation::Rprivate, false, false).unwrap()),
        ];
        let spec = rendered(&wanted, &program(0), &machine());
        let order = destinations(&spec);
        let at = |target: &str| order.iter().position(|destination| *destination == target).unwrap();
        assert!(at("/a") < at("/a/b/c"));
        assert_eq!(order.iter().filter(|target| **target == "/dev/shm").count(), 1);
        let mounts = spec["mounts"].as_array().unwrap();
        assert_eq!(mounts[at("/etc/hosts")]["source"], "/h");
        assert_eq!(mounts[at("/a/b/c")]["options"], serde_json::json!(["rbind", "rslave", "ro", "rro"]));
        assert_eq!(
            mounts[at("/a")]["options"],
            serde_json::json!(["nosuid", "nodev", "noexec", "rw", "size=1024", "mode=700"])
        );
    }

    #[test]
    fn limits() {
        let mut wanted = plain("x");
        wanted.resources = Resources { memory: Some(8 << 20), nano_cpus: Some(500_000_000), pids: Some(50) };
        wanted.ulimits = vec![Ulimit { name: "nofile".to_owned(), soft: Some(10), hard: None }];
        wanted.security.no_new_privileges = true;
        let spec = rendered(&wanted, &program(0), &machine());
        let resources = &spec["linux"]["resources"];
        assert_eq!(resources["memory"]["limit"], 8 << 20);
        assert_eq!((&resources["cpu"]["quota"], &resources["cpu"]["period"]), (&50_000.into(), &100_000.into()));
        assert_eq!(resources["pids"]["limit"], 50);
        assert_eq!(spec["process"]["rlimits"][0]["type"], "RLIMIT_NOFILE");
        assert_eq!(spec["process"]["rlimits"][0]["hard"], u64::MAX);
        assert_eq!(spec["process"]["noNewPrivileges"], true);
    }
}
