//! What somebody wants a container to be: a request whose every value has been read and found possible.
//!
//! The front doors make it of their wire types by these constructors, so that each value is judged in one place and the
//! refusal names the field. What the image has to say is not here yet.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::id::Name;
use crate::engine::error::{Error, Field};
use crate::engine::signal::Signal;
use crate::engine::spec::capability::CapabilityName;
use crate::engine::spec::user::UserSpec;
use crate::network::Protocol;

/// Docker's floor: less does not even start a program.
const MEMORY_MIN: u64 = 6 << 20;
/// The kernel's quota of a hundredth of a processor: 1 ms in each 100 ms.
const NANO_CPUS_MIN: u64 = 10_000_000;
/// Longest host name, in bytes (`__NEW_UTS_LEN`).
const HOSTNAME_MAX: usize = 64;

/// A container as somebody wants it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Wanted {
    /// As it was written.
    pub(crate) image: String,
    pub(crate) name: Option<Name>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) command: Vec<String>,
    /// `None`: the image's; an empty list: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) entrypoint: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) env: Vec<EnvVar>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) working_dir: Option<ContainerPath>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<UserSpec>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hostname: Option<Hostname>,
    #[serde(default)]
    pub(crate) tty: bool,
    #[serde(default)]
    pub(crate) open_stdin: bool,
    #[serde(default)]
    pub(crate) stdin_once: bool,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) mounts: Vec<Mount>,
    pub(crate) network: Network,
    #[serde(default)]
    pub(crate) resources: Resources,
    #[serde(default)]
    pub(crate) security: Security,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stop_signal: Option<Signal>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stop_timeout_s: Option<u32>,
    #[serde(default)]
    pub(crate) restart: RestartPolicy,
    #[serde(default)]
    pub(crate) auto_remove: bool,
    #[serde(default)]
    pub(crate) read_only_rootfs: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) ulimits: Vec<Ulimit>,
}

impl Wanted {
    /// Judges what no single value shows.
    pub(crate) fn checked(self) -> Result<Wanted, Error> {
        if self.image.is_empty() {
            return Err(Error::invalid(Field::Image, "", "the name or id of an image"));
        }
        if self.auto_remove && self.restart != RestartPolicy::No {
            return Err(Error::Conflict { one: "auto_remove", other: "a restart policy" });
        }
        if self.network.mode != NetworkMode::Bridge && !self.network.ports.is_empty() {
            return Err(Error::Conflict { one: "network.ports", other: "a network that is not the bridge" });
        }
        self.check_words()?;
        self.check_targets()?;
        Ok(self)
    }

    /// A program's arguments cannot hold the byte that ends them.
    fn check_words(&self) -> Result<(), Error> {
        let entrypoint = self.entrypoint.iter().flatten().map(|word| (Field::Entrypoint, word));
        let command = self.command.iter().map(|word| (Field::Command, word));
        match entrypoint.chain(command).find(|(_, word)| word.contains('\0')) {
            Some((field, word)) => Err(Error::invalid(field, word, "words without a NUL")),
            None => Ok(()),
        }
    }

    fn check_targets(&self) -> Result<(), Error> {
        if self.mounts.iter().any(|mount| mount.target.as_str() == "/") {
            return Err(Error::invalid(Field::MountTarget, "/", "a path below the root"));
        }
        let mut targets: Vec<&Path> = self.mounts.iter().map(|mount| mount.target.as_path()).collect();
        targets.sort_unstable();
        match targets.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Error::invalid(Field::MountTarget, pair[0].to_string_lossy(), "each target once")),
            None => Ok(()),
        }
    }
}

/// `NAME=value`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct EnvVar(String);

impl EnvVar {
    pub(crate) fn parse(text: &str) -> Result<EnvVar, Error> {
        let has_name = text.split_once('=').is_some_and(|(name, _)| !name.is_empty());
        if has_name && !text.contains('\0') {
            Ok(EnvVar(text.to_owned()))
        } else {
            Err(Error::invalid(Field::Env, text, "NAME=value"))
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for EnvVar {
    type Error = Error;

    fn try_from(text: String) -> Result<EnvVar, Error> {
        EnvVar::parse(&text)
    }
}

impl From<EnvVar> for String {
    fn from(var: EnvVar) -> String {
        var.0
    }
}

/// An absolute path in a container, without `.` and `..`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct ContainerPath(String);

impl ContainerPath {
    pub(crate) fn parse(field: Field, text: &str) -> Result<ContainerPath, Error> {
        let path = Path::new(text);
        if !path.is_absolute() || text.contains('\0') {
            return Err(Error::invalid(field, text, "an absolute path"));
        }
        // What was a string before is one after.
        Ok(ContainerPath(cleaned(path).to_string_lossy().into_owned()))
    }

    pub(crate) fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// As Docker cleans paths: by their words, before anything is resolved. `..` stops at the root.
fn cleaned(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// A host name (RFC 1123, with the underscore that Docker allows too).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Hostname(String);

impl Hostname {
    pub(crate) fn parse(text: &str) -> Result<Hostname, Error> {
        let is_label = |label: &str| {
            let bytes = label.as_bytes();
            let is_inner = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            !bytes.is_empty() && bytes[0] != b'-' && bytes[bytes.len() - 1] != b'-' && bytes.iter().all(is_inner)
        };
        if text.len() <= HOSTNAME_MAX && text.split('.').all(is_label) {
            Ok(Hostname(text.to_owned()))
        } else {
            Err(Error::invalid(Field::Hostname, text, "letters, digits, '-', '_' and '.', at most 64 characters"))
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A mount that was asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub(crate) target: ContainerPath,
    #[serde(default)]
    pub(crate) read_only: bool,
    pub(crate) kind: MountKind,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum MountKind {
    Bind {
        source: PathBuf,
        propagation: Propagation,
        /// Make the source as an empty directory when it is missing.
        create_source: bool,
        recursive: bool,
    },
    Tmpfs {
        size: Option<u64>,
        /// Permission bits.
        mode: Option<u32>,
    },
}

impl MountKind {
    /// A bind mount of a path of the host.
    pub(crate) fn bind(
        source: &str,
        propagation: Propagation,
        create_source: bool,
        recursive: bool,
    ) -> Result<MountKind, Error> {
        if !source.starts_with('/') || source.contains('\0') {
            return Err(Error::invalid(Field::MountSource, source, "an absolute path on the host"));
        }
        Ok(MountKind::Bind { source: cleaned(Path::new(source)), propagation, create_source, recursive })
    }

    /// A file system in memory; 0 is no wish.
    pub(crate) fn tmpfs(size: u64, mode: u32) -> Result<MountKind, Error> {
        if mode > 0o7777 {
            return Err(Error::invalid(Field::TmpfsMode, format!("{mode:o}"), "permission bits, 0 to 07777"));
        }
        Ok(MountKind::Tmpfs { size: (size > 0).then_some(size), mode: (mode > 0).then_some(mode) })
    }
}

/// Which mounts below a bind mount's source and target show on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Propagation {
    Private,
    Rprivate,
    Shared,
    Rshared,
    Slave,
    Rslave,
}

impl Propagation {
    pub(crate) fn parse(text: &str) -> Result<Propagation, Error> {
        Ok(match text {
            "private" => Propagation::Private,
            "" | "rprivate" => Propagation::Rprivate,
            "shared" => Propagation::Shared,
            "rshared" => Propagation::Rshared,
            "slave" => Propagation::Slave,
            "rslave" => Propagation::Rslave,
            _ => {
                return Err(Error::invalid(
                    Field::MountPropagation,
                    text,
                    "private, rprivate, shared, rshared, slave or rslave",
                ));
            }
        })
    }

    /// As the mount option is called.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Propagation::Private => "private",
            Propagation::Rprivate => "rprivate",
            Propagation::Shared => "shared",
            Propagation::Rshared => "rshared",
            Propagation::Slave => "slave",
            Propagation::Rslave => "rslave",
        }
    }
}

/// Where a container is on the network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Network {
    pub(crate) mode: NetworkMode,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) ports: Vec<Port>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NetworkMode {
    Bridge,
    None,
    Host,
}

/// A port to be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Port {
    pub(crate) host_ip: IpAddr,
    /// 0: a free one is chosen.
    pub(crate) host_port: u16,
    pub(crate) container_port: u16,
    pub(crate) protocol: Protocol,
}

impl Port {
    /// Reads a published port; an empty address is every address, an empty protocol is tcp.
    pub(crate) fn parse(host_ip: &str, host_port: u32, container_port: u32, protocol: &str) -> Result<Port, Error> {
        let number = |port: u32, least: u32| {
            let port = u16::try_from(port).ok().filter(|port| u32::from(*port) >= least);
            port.ok_or(least)
        };
        let host_port =
            number(host_port, 0).map_err(|_| Error::invalid(Field::Ports, host_port.to_string(), "0 to 65535"))?;
        let container_port = number(container_port, 1)
            .map_err(|_| Error::invalid(Field::Ports, container_port.to_string(), "1 to 65535"))?;
        let protocol = match protocol {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(Error::invalid(Field::Ports, protocol, "tcp or udp")),
        };
        let host_ip = match host_ip {
            "" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            text => text.parse().map_err(|_| Error::invalid(Field::HostIp, text, "an IP address of this host"))?,
        };
        Ok(Port { host_ip, host_port, container_port, protocol })
    }
}

/// Limits; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Resources {
    /// Bytes.
    pub(crate) memory: Option<u64>,
    /// Billionths of a processor.
    pub(crate) nano_cpus: Option<u64>,
    pub(crate) pids: Option<i64>,
}

impl Resources {
    /// Reads limits, of which 0 is none. `cpus` is how many processors the host has.
    pub(crate) fn parse(memory: u64, nano_cpus: u64, pids: i64, cpus: u64) -> Result<Resources, Error> {
        if memory != 0 && !(MEMORY_MIN..=i64::MAX as u64).contains(&memory) {
            return Err(Error::invalid(Field::Memory, memory.to_string(), "0 or at least 6291456 bytes (6 MiB)"));
        }
        let too_many = nano_cpus > cpus.saturating_mul(1_000_000_000);
        if nano_cpus != 0 && (nano_cpus < NANO_CPUS_MIN || too_many) {
            let accepted = "0 or 10000000 (0.01 processors) up to the host's processors";
            return Err(Error::invalid(Field::NanoCpus, nano_cpus.to_string(), accepted));
        }
        if pids < -1 {
            return Err(Error::invalid(Field::PidsLimit, pids.to_string(), "-1 or 0 (unlimited) or a positive number"));
        }
        Ok(Resources {
            memory: (memory > 0).then_some(memory),
            nano_cpus: (nano_cpus > 0).then_some(nano_cpus),
            pids: (pids > 0).then_some(pids),
        })
    }
}

/// What a container may do.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Security {
    #[serde(default)]
    pub(crate) privileged: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) cap_add: Vec<CapabilityName>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) cap_drop: Vec<CapabilityName>,
    #[serde(default)]
    pub(crate) no_new_privileges: bool,
    #[serde(default)]
    pub(crate) seccomp: Seccomp,
}

/// Which system calls a container may make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Seccomp {
    #[default]
    Default,
    Unconfined,
    /// A profile in Docker's JSON format.
    Profile(String),
}

impl Seccomp {
    pub(crate) fn profile(bytes: &[u8]) -> Result<Seccomp, Error> {
        let text = std::str::from_utf8(bytes)
            .map_err(|_| Error::invalid(Field::Seccomp, "(not UTF-8)", "a profile in Docker's JSON format"))?;
        // Whether it means something is known only with the capabilities; whether it is a profile at all, now.
        crate::engine::spec::seccomp::custom(bytes, crate::engine::spec::capability::CapabilitySet::DEFAULT)?;
        Ok(Seccomp::Profile(text.to_owned()))
    }
}

/// When a container is started again that has ended by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RestartPolicy {
    #[default]
    No,
    /// After a failure; 0 is without a bound.
    OnFailure {
        max_retries: u32,
    },
    Always,
    UnlessStopped,
}

/// A resource limit of processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ulimit {
    /// Without `RLIMIT_`, in lower case.
    pub(crate) name: String,
    /// `None`: unlimited.
    pub(crate) soft: Option<u64>,
    pub(crate) hard: Option<u64>,
}

/// What getrlimit(2) knows.
const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

impl Ulimit {
    /// Reads a limit; -1 is unlimited.
    pub(crate) fn parse(name: &str, soft: i64, hard: i64) -> Result<Ulimit, Error> {
        let is_known = ULIMITS.contains(&name);
        if !is_known {
            return Err(Error::invalid(Field::Ulimits, name, "a limit of getrlimit(2) such as nofile or nproc"));
        }
        let limit = |value: i64| match value {
            -1 => Ok(None),
            value => u64::try_from(value).map(Some).map_err(|_| {
                Error::invalid(Field::Ulimits, format!("{name}={soft}:{hard}"), "-1 (unlimited) or a number from 0 on")
            }),
        };
        let ulimit = Ulimit { name: name.to_owned(), soft: limit(soft)?, hard: limit(hard)? };
        if ulimit.soft.unwrap_or(u64::MAX) > ulimit.hard.unwrap_or(u64::MAX) {
            let accepted = "a soft limit that is not above the hard one";
            return Err(Error::invalid(Field::Ulimits, format!("{name}={soft}:{hard}"), accepted));
        }
        Ok(ulimit)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A container that asks for nothing but an image.
    pub(crate) fn plain(image: &str) -> Wanted {
        Wanted {
            image: image.to_owned(),
            name: None,
            command: Vec::new(),
            entrypoint: None,
            env: Vec::new(),
            working_dir: None,
            user: None,
            hostname: None,
            tty: false,
            open_stdin: false,
            stdin_once: false,
            labels: BTreeMap::new(),
            mounts: Vec::new(),
            network: Network { mode: NetworkMode::Bridge, ports: Vec::new() },
            resources: Resources::default(),
            security: Security::default(),
            stop_signal: None,
            stop_timeout_s: None,
            restart: RestartPolicy::No,
            auto_remove: false,
            read_only_rootfs: false,
            ulimits: Vec::new(),
        }
    }

    #[test]
    fn paths_are_cleaned_and_stay_inside() {
        for (text, clean) in [("/", "/"), ("/a/../b", "/b"), ("/../../etc", "/etc"), ("//a/./b/", "/a/b")] {
            let path = ContainerPath::parse(Field::WorkingDir, text).unwrap();
            assert_eq!(path.as_path(), Path::new(clean), "{text}");
        }
        for text in ["", "a", "./a", "/a\0b"] {
            assert!(ContainerPath::parse(Field::WorkingDir, text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn environment_variables_have_names() {
        for text in ["A=", "A=b=c", "a.b=1", "A=\n"] {
            assert!(EnvVar::parse(text).is_ok(), "{text}");
        }
        for text in ["", "A", "=x", "A=\0"] {
            assert!(EnvVar::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn hostnames() {
        for text in ["web", "web-1.example.org", "a_b", "1"] {
            assert!(Hostname::parse(text).is_ok(), "{text}");
        }
        for text in ["", "-a", "a-", "a..b", "a b", "a/b", &"a".repeat(65)] {
            assert!(Hostname::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn limits_out_of_range_are_named() {
        assert!(Resources::parse(0, 0, 0, 2).is_ok());
        assert!(Resources::parse(6 << 20, 1_500_000_000, -1, 2).is_ok());
        for (memory, cpus, pids) in [(1, 0, 0), (u64::MAX, 0, 0), (0, 1, 0), (0, 3_000_000_000, 0), (0, 0, -2)] {
            let fault = strata_fault::Fault::from(Resources::parse(memory, cpus, pids, 2).unwrap_err());
            assert_eq!(fault.code, strata_fault::code::LIMIT_INVALID, "{memory} {cpus} {pids}");
        }
    }

    #[test]
    fn ports() {
        let port = Port::parse("", 0, 80, "").unwrap();
        assert_eq!((port.host_port, port.container_port, port.protocol), (0, 80, Protocol::Tcp));
        assert!(port.host_ip.is_unspecified());
        assert!(Port::parse("127.0.0.1", 65535, 53, "udp").is_ok());
        for (ip, host, inner, protocol) in
            [("", 65536, 80, ""), ("", 1, 0, ""), ("", 1, 65536, ""), ("", 1, 1, "sctp"), ("localhost", 1, 1, "")]
        {
            assert!(Port::parse(ip, host, inner, protocol).is_err(), "{ip} {host} {inner} {protocol}");
        }
    }

    #[test]
    fn ulimits() {
        let limit = Ulimit::parse("nofile", 1024, -1).unwrap();
        assert_eq!((limit.soft, limit.hard), (Some(1024), None));
        for (name, soft, hard) in [("files", 1, 1), ("nofile", -1, 5), ("nofile", 6, 5), ("nofile", -2, 5)] {
            assert!(Ulimit::parse(name, soft, hard).is_err(), "{name} {soft} {hard}");
        }
    }
}
