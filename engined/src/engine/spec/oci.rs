//! The OCI runtime specification, as far as the engine writes it (runtime-spec 1.2, config.md and config-linux.md).
//!
//! Types of our own rather than a crate's: they are only written, never read, borrow what they can, and leave out what is
//! not said, so that a spec costs one pass over its text.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;

/// The version of the specification whose fields are used.
pub(crate) const VERSION: &str = "1.1.0";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Spec<'a> {
    pub(crate) oci_version: &'static str,
    pub(crate) process: Process<'a>,
    pub(crate) root: Root,
    pub(crate) hostname: &'a str,
    pub(crate) mounts: Vec<Mount<'a>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<&'static str, &'a str>,
    pub(crate) linux: Linux<'a>,
}

#[derive(Serialize)]
pub(crate) struct Root {
    pub(crate) path: &'static str,
    pub(crate) readonly: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Process<'a> {
    pub(crate) terminal: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) console_size: Option<ConsoleSize>,
    pub(crate) user: ProcessUser<'a>,
    pub(crate) args: &'a [String],
    pub(crate) env: &'a [String],
    pub(crate) cwd: &'a str,
    pub(crate) capabilities: Capabilities,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) rlimits: Vec<Rlimit>,
    pub(crate) no_new_privileges: bool,
    pub(crate) oom_score_adj: i32,
}

#[derive(Clone, Copy, Serialize)]
pub(crate) struct ConsoleSize {
    pub(crate) width: u32,
    pub(crate) height: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProcessUser<'a> {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    #[serde(skip_serializing_if = "<[u32]>::is_empty")]
    pub(crate) additional_gids: &'a [u32],
}

#[derive(Clone, Default, Serialize)]
pub(crate) struct Capabilities {
    pub(crate) bounding: Vec<&'static str>,
    pub(crate) effective: Vec<&'static str>,
    pub(crate) permitted: Vec<&'static str>,
}

#[derive(Serialize)]
pub(crate) struct Rlimit {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

#[derive(Serialize)]
pub(crate) struct Mount<'a> {
    pub(crate) destination: &'a str,
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) source: &'a str,
    pub(crate) options: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Linux<'a> {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) sysctl: BTreeMap<&'static str, &'static str>,
    pub(crate) resources: Resources,
    pub(crate) cgroups_path: String,
    pub(crate) namespaces: Vec<Namespace<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) devices: Vec<Device>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seccomp: Option<Arc<RawValue>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) masked_paths: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) readonly_paths: Vec<&'static str>,
}

#[derive(Serialize)]
pub(crate) struct Resources {
    pub(crate) devices: Vec<DeviceRule>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu: Option<Cpu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pids: Option<Pids>,
}

#[derive(Clone, Copy, Serialize)]
pub(crate) struct DeviceRule {
    pub(crate) allow: bool,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) major: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) minor: Option<i64>,
    pub(crate) access: &'static str,
}

#[derive(Serialize)]
pub(crate) struct Memory {
    pub(crate) limit: u64,
}

#[derive(Serialize)]
pub(crate) struct Cpu {
    /// Microseconds.
    pub(crate) quota: i64,
    /// Microseconds.
    pub(crate) period: u64,
}

#[derive(Serialize)]
pub(crate) struct Pids {
    pub(crate) limit: i64,
}

#[derive(Serialize)]
pub(crate) struct Namespace<'a> {
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<&'a str>,
}

/// A device node to be made in the container.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Device {
    pub(crate) path: String,
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) major: i64,
    pub(crate) minor: i64,
    pub(crate) file_mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}
