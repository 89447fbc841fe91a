//! The configuration: a TOML file, and flags that win over it.
//!
//! Unknown keys are errors, as are values that cannot be: a daemon that starts has understood everything it was told.

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use clap::Parser;
use serde::Deserialize;

/// Longest name of an instance: `strata-<instance>` becomes the name of a link, and those have 15 bytes.
const INSTANCE_MAX: usize = 8;

/// engined: the engine of Strata.
#[derive(Debug, Parser)]
#[command(name = "engined", version)]
pub(crate) struct Flags {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where what must last is kept
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Where what a reboot ends is kept
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// The socket that clients ask
    #[arg(long, value_name = "SOCKET")]
    pub(crate) address: Option<PathBuf>,
    /// The socket of shimd, or of a containerd
    #[arg(long, value_name = "SOCKET")]
    pub(crate) containerd: Option<PathBuf>,
    /// Least severe messages to be written: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// The form of messages
    #[arg(long, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
    /// Remove every trace that this instance's network left on the host, and exit
    #[arg(long)]
    pub(crate) remove_network: bool,
}

/// The form in which messages are written to stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

/// What the daemon was told, whole.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Where what must last is kept.
    pub(crate) root: PathBuf,
    /// Where what a reboot ends is kept.
    pub(crate) state: PathBuf,
    /// The socket that clients ask.
    pub(crate) address: PathBuf,
    /// The group that may use the socket, by number.
    pub(crate) socket_gid: Option<u32>,
    /// The socket of the supervisor.
    pub(crate) containerd: PathBuf,
    /// The supervisor's namespace that is ours.
    pub(crate) namespace: String,
    /// Tells engines on one host apart: it names the bridge, the nftables table and the parent cgroup.
    pub(crate) instance: String,
    pub(crate) snapshotter: String,
    /// The runtime of containers, as containerd names it.
    pub(crate) runtime: String,
    pub(crate) runtime_options: RuntimeOptions,
    pub(crate) network: Network,
    pub(crate) registry: Registry,
    pub(crate) log: Log,
    pub(crate) log_level: String,
    pub(crate) log_format: LogFormat,
}

/// Options of a runtime that understands runc's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RuntimeOptions {
    /// The OCI runtime's program; empty: the shim's own choice.
    pub(crate) binary_name: String,
    /// The OCI runtime's directory of states; empty: `lowrun` in `state`.
    pub(crate) root: String,
    pub(crate) systemd_cgroup: bool,
}

/// The bridge.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Network {
    /// Empty: `strata-<instance>`.
    pub(crate) bridge: String,
    /// `ADDRESS/PREFIX`; absent: one that the host has no route to.
    pub(crate) subnet: Option<String>,
    pub(crate) gateway: Option<Ipv4Addr>,
    pub(crate) mtu: Option<u32>,
    /// Whether the host's `net.ipv4.ip_forward` may be switched on.
    pub(crate) ip_forward: bool,
    /// How many network namespaces are prepared ahead, at most; more are made when three in four are taken.
    pub(crate) prepared: usize,
}

impl Default for Network {
    fn default() -> Network {
        Network { bridge: String::new(), subnet: None, gateway: None, mtu: None, ip_forward: true, prepared: 8 }
    }
}

/// Image registries.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Registry {
    /// `host:port` of registries that may be spoken to in plain HTTP; loopback always may.
    pub(crate) insecure: Vec<String>,
    /// Hosts that are asked for Docker Hub's images first.
    pub(crate) mirrors: Vec<String>,
    /// PEM files of further certificate authorities.
    pub(crate) ca_files: Vec<PathBuf>,
    /// A directory with a hosts.toml per registry, as containerd has them.
    pub(crate) hosts_dir: Option<PathBuf>,
}

/// The logs of containers.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    pub(crate) segment_bytes: u64,
    pub(crate) keep_bytes: u64,
}

impl Default for Log {
    fn default() -> Log {
        let limits = strata_log::Limits::default();
        Log { segment_bytes: limits.segment_bytes, keep_bytes: limits.keep_bytes }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config {
            root: "/var/lib/strata/engined".into(),
            state: "/run/strata/engined".into(),
            address: "/run/strata/engined.sock".into(),
            socket_gid: None,
            containerd: "/run/shimd/shimd.sock".into(),
            namespace: "strata".to_owned(),
            instance: "0".to_owned(),
            snapshotter: "overlayfs".to_owned(),
            runtime: STRATA_RUNTIME.to_owned(),
            runtime_options: RuntimeOptions::default(),
            network: Network::default(),
            registry: Registry::default(),
            log: Log::default(),
            log_level: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }
}

/// The runtime whose shim writes our log itself.
pub(crate) const STRATA_RUNTIME: &str = "io.containerd.strata.v1";

/// Why the daemon cannot be configured so.
#[derive(Debug)]
pub(crate) enum ConfigError {
    Read { path: PathBuf, source: io::Error },
    Parse { path: PathBuf, source: toml::de::Error },
    Value { key: &'static str, value: String, why: &'static str },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Read { path, .. } => write!(f, "read the configuration file {}", path.display()),
            ConfigError::Parse { path, .. } => write!(f, "understand the configuration file {}", path.display()),
            ConfigError::Value { key, value, why } => write!(f, "configuration: {key} = {value:?} {why}"),
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ConfigError::Read { source, .. } => Some(source),
            ConfigError::Parse { source, .. } => Some(source),
            ConfigError::Value { .. } => None,
        }
    }
}

impl Config {
    /// The file that the flags name, then the flags.
    pub(crate) fn load(flags: &Flags) -> Result<Config, ConfigError> {
        let mut config = match &flags.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        config.apply(flags);
        config.check()?;
        Ok(config)
    }

    fn read(path: &Path) -> Result<Config, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })
    }

    fn apply(&mut self, flags: &Flags) {
        fn set<T: Clone>(field: &mut T, flag: &Option<T>) {
            if let Some(value) = flag {
                field.clone_from(value);
            }
        }
        set(&mut self.root, &flags.root);
        set(&mut self.state, &flags.state);
        set(&mut self.address, &flags.address);
        set(&mut self.containerd, &flags.containerd);
        set(&mut self.log_level, &flags.log_level);
        set(&mut self.log_format, &flags.log_format);
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key, value: &str, why| Err(ConfigError::Value { key, value: value.to_owned(), why });
        for (key, path) in
            [("root", &self.root), ("state", &self.state), ("address", &self.address), ("containerd", &self.containerd)]
        {
            if !path.is_absolute() {
                return refuse(key, &path.to_string_lossy(), "is not an absolute path");
            }
        }
        let is_word = |text: &str| {
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        };
        if !is_word(&self.instance) || self.instance.len() > INSTANCE_MAX {
            return refuse("instance", &self.instance, "is not 1 to 8 letters, digits, '-' or '_'");
        }
        if !is_word(&self.namespace) {
            return refuse("namespace", &self.namespace, "is not made of letters, digits, '-' and '_'");
        }
        if self.log.keep_bytes < self.log.segment_bytes {
            return refuse("log.keep_bytes", &self.log.keep_bytes.to_string(), "is less than log.segment_bytes");
        }
        Ok(())
    }

    /// The bridge's name.
    pub(crate) fn bridge(&self) -> String {
        match self.network.bridge.as_str() {
            "" => format!("strata-{}", self.instance),
            name => name.to_owned(),
        }
    }

    /// The name of the nftables table.
    pub(crate) fn nft_table(&self) -> String {
        format!("strata-{}", self.instance)
    }

    /// The cgroup that holds the cgroups of this instance's containers.
    pub(crate) fn cgroup_parent(&self) -> String {
        format!("/strata-{}", self.instance)
    }

    /// Where the OCI runtime keeps its states.
    pub(crate) fn runtime_root(&self) -> String {
        match self.runtime_options.root.as_str() {
            "" => self.state.join("lowrun").to_string_lossy().into_owned(),
            root => root.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Config, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn a_whole_file_is_understood() {
        let config = parsed(
            r#"
            root = "/r"
            state = "/s"
            address = "/a.sock"
            containerd = "/c.sock"
            instance = "t1"
            runtime = "io.containerd.runc.v2"
            [runtime_options]
            binary_name = "/usr/sbin/runc"
            [network]
            subnet = "10.99.0.0/24"
            ip_forward = false
            [registry]
            insecure = ["example.test:5000"]
            [log]
            segment_bytes = 8388608
            "#,
        )
        .unwrap();
        assert!(config.check().is_ok());
        assert_eq!((config.bridge().as_str(), config.cgroup_parent().as_str()), ("strata-t1", "/strata-t1"));
        assert_eq!(config.runtime_root(), "/s/lowrun");
    }

    #[test]
    fn unknown_keys_are_errors() {
        for text in ["rot = '/x'", "[network]\nbrigde = 'x'", "[runtime_options]\nx = 1", "[log]\nx = 1"] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (text, key) in [
            ("root = 'relative'", "root"),
            ("instance = 'a/b'", "instance"),
            ("instance = 'much-too-long'", "instance"),
            ("instance = ''", "instance"),
            ("namespace = 'a b'", "namespace"),
            ("[log]\nkeep_bytes = 1", "log.keep_bytes"),
        ] {
            let error = parsed(text).unwrap().check().unwrap_err();
            assert!(matches!(&error, ConfigError::Value { key: named, .. } if *named == key), "{text}: {error}");
        }
    }

    #[test]
    fn flags_win() {
        let mut config = parsed("root = '/r'").unwrap();
        config.apply(&Flags::parse_from(["engined", "--root", "/x", "--log-format", "json"]));
        assert_eq!((config.root.to_str(), config.log_format), (Some("/x"), LogFormat::Json));
    }
}
