//! config.json as lowrun reads it: the fields of runtime-spec 1.3 that a runtime for Linux acts upon.
//!
//! As lenient as runc: unknown fields are ignored, every field may be missing or null, and what a missing field means
//! is decided in `plan`, not here. Nothing is validated beyond the JSON types; those are, also of fields without an effect,
//! because runc refuses there what is of another type. The seccomp section stays raw text: its
//! bytes are the key of the filter cache, and on a hit nobody reads it.

pub mod any_case;
mod foreign;
mod joined;
mod linux;
mod place;
mod process;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

pub use linux::*;
pub use process::*;

/// The newest runtime-spec that lowrun follows; `ociVersion` in the state.
pub const OCI_VERSION: &str = "1.3.0";

/// Go writes nil slices and maps as null: read them as empty.
pub(crate) fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// config.json.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    #[serde(deserialize_with = "nullable")]
    pub oci_version: String,
    pub process: Option<Box<Process>>,
    pub root: Option<Root>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub domainname: String,
    #[serde(deserialize_with = "nullable")]
    pub mounts: Vec<Mount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    pub linux: Option<Box<Linux>>,
    #[serde(deserialize_with = "foreign::solaris", skip_serializing)]
    pub solaris: (),
    #[serde(deserialize_with = "foreign::windows", skip_serializing)]
    pub windows: (),
    #[serde(deserialize_with = "foreign::vm", skip_serializing)]
    pub vm: (),
    #[serde(deserialize_with = "foreign::zos", skip_serializing)]
    pub zos: (),
    #[serde(deserialize_with = "foreign::freebsd", skip_serializing)]
    pub freebsd: (),
}

/// Where the root file system is.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Root {
    #[serde(deserialize_with = "nullable")]
    pub path: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_false")]
    pub readonly: bool,
}

/// One mount, in the order in which it is made.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mount {
    #[serde(deserialize_with = "nullable")]
    pub destination: String,
    #[serde(rename = "type", deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub source: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub uid_mappings: Vec<IdMapping>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub gid_mappings: Vec<IdMapping>,
}

/// A range of ids, as in `/proc/PID/uid_map`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default)]
pub struct IdMapping {
    #[serde(rename = "containerID", deserialize_with = "nullable")]
    pub container_id: u32,
    #[serde(rename = "hostID", deserialize_with = "nullable")]
    pub host_id: u32,
    #[serde(deserialize_with = "nullable")]
    pub size: u32,
}

/// Programs to run at points of the container's life.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub prestart: Vec<Hook>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub create_runtime: Vec<Hook>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub create_container: Vec<Hook>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub start_container: Vec<Hook>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub poststart: Vec<Hook>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub poststop: Vec<Hook>,
}

/// One hook; `args[0]` is `argv[0]`, `timeout` is in seconds.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Hook {
    #[serde(deserialize_with = "nullable")]
    pub path: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}

pub(crate) fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_and_unknown_fields_are_read_as_absent() {
        let text = r#"{"ociVersion":"1.0.2","mounts":null,"process":{"args":null,"user":null,"future":1},"hooks":null,
            "linux":{"namespaces":null,"resources":{"devices":null,"memory":{"limit":null}}},"vm":{}}"#;
        let spec: Spec = any_case::from_str(text).unwrap();
        assert_eq!(spec.oci_version, "1.0.2");
        assert!(spec.mounts.is_empty());
        assert!(spec.process.unwrap().args.is_empty());
        assert!(spec.linux.unwrap().namespaces.is_empty());
    }

    #[test]
    fn a_wrong_type_is_an_error_that_names_the_line() {
        let error = any_case::from_str::<Spec>(r#"{"mounts":7}"#).unwrap_err();
        assert!(error.to_string().contains("line 1"), "{error}");
    }

    #[test]
    fn the_seccomp_section_keeps_its_bytes() {
        let text = r#"{"linux":{"seccomp":{ "defaultAction" : "SCMP_ACT_ALLOW" }}}"#;
        let spec: Spec = any_case::from_str(text).unwrap();
        let raw = spec.linux.unwrap().seccomp.unwrap();
        assert_eq!(raw.get(), r#"{ "defaultAction" : "SCMP_ACT_ALLOW" }"#);
    }
}
