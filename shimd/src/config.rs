//! Configuration: a TOML file, and flags that win over it. Unknown keys are errors.

use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use serde::Deserialize;

use crate::error::{Error, Result};

const DEFAULT_ROOT: &str = "/var/lib/shimd";
const DEFAULT_STATE: &str = "/run/shimd";
const REGISTRY_HELPER: &str = "shimd-registry";
const DEFAULT_ADDRESS: &str = "/run/shimd/shimd.sock";

/// The supervisor: keeps images and snapshots, and starts, watches and remembers containers, over containerd's API.
#[derive(Debug, Default, Parser)]
#[command(name = "shimd", version)]
pub(crate) struct Flags {
    /// Read the configuration from this TOML file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Keep content, snapshots and metadata in this directory [default: /var/lib/shimd].
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Keep bundles and shims' sockets in this directory [default: /run/shimd].
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Listen at this socket, and at SOCK.ttrpc for shims [default: /run/shimd/shimd.sock].
    #[arg(long, value_name = "SOCK")]
    pub(crate) address: Option<PathBuf>,
    /// Look for shims in this directory first.
    #[arg(long, value_name = "DIR")]
    pub(crate) shim_path: Option<PathBuf>,
    /// Clients install programs in this directory, whose bin/ is where shims and runtimes are looked for next
    /// [default: opt in the root].
    #[arg(long, value_name = "DIR")]
    pub(crate) opt: Option<PathBuf>,
    /// Talk to registries with this program [default: shimd-registry beside shimd].
    #[arg(long, value_name = "FILE")]
    pub(crate) registry_helper: Option<PathBuf>,
    /// Look in this directory for a hosts.toml per registry, with mirrors and certificates, as containerd has them.
    #[arg(long, value_name = "DIR")]
    pub(crate) registry_hosts: Option<PathBuf>,
    /// Form of the log on stderr.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,
    /// What is logged: off, error, warn, info, debug, trace, or a list of target=level.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: String,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    root: Option<PathBuf>,
    state: Option<PathBuf>,
    address: Option<PathBuf>,
    shim_path: Option<PathBuf>,
    opt: Option<PathBuf>,
    registry_helper: Option<PathBuf>,
    registry_hosts: Option<PathBuf>,
    /// Group whose members may use the socket, by number.
    group: Option<u32>,
}

/// What is in force.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) root: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) address: PathBuf,
    pub(crate) shim_path: Option<PathBuf>,
    pub(crate) opt: PathBuf,
    pub(crate) registry_helper: PathBuf,
    pub(crate) registry_hosts: Option<PathBuf>,
    pub(crate) group: Option<u32>,
}

impl Config {
    pub(crate) fn load(flags: &Flags) -> Result<Config> {
        let file = match &flags.config {
            Some(path) => read(path)?,
            None => File::default(),
        };
        let pick = |flag: &Option<PathBuf>, file: Option<PathBuf>, default: &str| {
            absolute(flag.clone().or(file).unwrap_or_else(|| default.into()))
        };
        let root = pick(&flags.root, file.root, DEFAULT_ROOT)?;
        Ok(Config {
            opt: match flags.opt.clone().or(file.opt) {
                Some(path) => absolute(path)?,
                None => root.join("opt"),
            },
            root,
            state: pick(&flags.state, file.state, DEFAULT_STATE)?,
            address: pick(&flags.address, file.address, DEFAULT_ADDRESS)?,
            shim_path: flags.shim_path.clone().or(file.shim_path).map(absolute).transpose()?,
            registry_helper: match flags.registry_helper.clone().or(file.registry_helper) {
                Some(path) => absolute(path)?,
                None => beside_shimd(REGISTRY_HELPER)?,
            },
            registry_hosts: flags.registry_hosts.clone().or(file.registry_hosts).map(absolute).transpose()?,
            group: file.group,
        })
    }

    /// Where shims publish their events.
    pub(crate) fn events_address(&self) -> PathBuf {
        let mut name = self.address.clone().into_os_string();
        name.push(".ttrpc");
        name.into()
    }
}

fn beside_shimd(name: &str) -> Result<PathBuf> {
    let shimd = std::env::current_exe().map_err(|source| Error::io("find the program of shimd", source))?;
    Ok(shimd.with_file_name(name))
}

fn read(path: &Path) -> Result<File> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::io(format!("read the configuration {}", path.display()), source))?;
    toml::from_str(&text).map_err(|error| {
        Error::invalid(format!("configuration {}", path.display()), error.to_string().trim_end().to_owned())
    })
}

/// Paths are handed to other programs, which have other working directories.
fn absolute(path: PathBuf) -> Result<PathBuf> {
    std::path::absolute(&path).map_err(|source| Error::io(format!("make {} absolute", path.display()), source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shimd.toml");
        std::fs::write(&path, "root = \"/a\"\nstate = \"/b\"\ngroup = 7\n").unwrap();
        let flags = Flags::try_parse_from(["shimd", "--config", path.to_str().unwrap(), "--state", "/c"]).unwrap();
        let config = Config::load(&flags).unwrap();
        assert_eq!(config.opt, PathBuf::from("/a/opt"));
        assert_eq!((config.root, config.state, config.group), ("/a".into(), "/c".into(), Some(7)));
        assert_eq!(config.address, PathBuf::from(DEFAULT_ADDRESS));
    }

    #[test]
    fn unknown_keys_are_errors() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("shimd.toml");
        std::fs::write(&path, "rooot = \"/a\"\n").unwrap();
        let flags = Flags { config: Some(path), ..Flags::default() };
        assert!(Config::load(&flags).unwrap_err().to_string().contains("rooot"));
    }
}
