//! An image's config document: what the image's maker says about it and about how to run it.
//!
//! It is a stranger's text: read into types, bounded in size before it comes here, and never looked into for anything
//! that steers the engine (its labels are labels, nothing else).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};
use strata_registry::{Digest, LAYERS_MAX};

/// The config of an image, as the OCI image specification has it. A list that is null is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ImageConfig {
    /// RFC 3339, as the maker wrote it.
    pub(crate) created: Option<String>,
    pub(crate) os: String,
    pub(crate) architecture: String,
    pub(crate) variant: String,
    pub(crate) config: RunConfig,
    /// Digests of the layers' tars, lowest first.
    pub(crate) diff_ids: Vec<String>,
}

/// How a container of the image is run where nobody says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RunConfig {
    #[serde(deserialize_with = "or_empty")]
    pub(crate) user: String,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) env: Vec<String>,
    #[serde(deserialize_with = "words")]
    pub(crate) entrypoint: Vec<String>,
    #[serde(deserialize_with = "words")]
    pub(crate) cmd: Vec<String>,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) working_dir: String,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_empty")]
    pub(crate) stop_signal: String,
    #[serde(deserialize_with = "keys")]
    pub(crate) exposed_ports: BTreeSet<String>,
    #[serde(deserialize_with = "keys")]
    pub(crate) volumes: BTreeSet<String>,
}

/// Why a document is no image config.
#[derive(Debug)]
pub(crate) enum ConfigError {
    Json(serde_json::Error),
    /// Of another operating system.
    Os(String),
    /// `rootfs.type` is not `layers`.
    RootFs(String),
    DiffId(String),
    /// The manifest has another number of layers.
    Layers {
        diff_ids: usize,
        layers: usize,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Json(_) => f.write_str("read it as JSON of an image config"),
            ConfigError::Os(os) => write!(f, "the image is for {os:?}, not for linux"),
            ConfigError::RootFs(kind) => write!(f, "its rootfs is of type {kind:?}, not of layers"),
            ConfigError::DiffId(text) => write!(f, "its diff id {text:?} is no digest"),
            ConfigError::Layers { diff_ids, layers } => {
                write!(f, "it has {diff_ids} diff ids, and the manifest {layers} layers")
            }
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ConfigError::Json(error) => Some(error),
            _ => None,
        }
    }
}

impl ImageConfig {
    /// Reads a config whose manifest has so many layers.
    pub(crate) fn parse(bytes: &[u8], layers: usize) -> Result<ImageConfig, ConfigError> {
        let wire: Wire = serde_json::from_slice(bytes).map_err(ConfigError::Json)?;
        if !["", "linux"].contains(&wire.os.as_str()) {
            return Err(ConfigError::Os(shown(&wire.os)));
        }
        let rootfs = wire.rootfs.unwrap_or_default();
        if !["", "layers"].contains(&rootfs.kind.as_str()) {
            return Err(ConfigError::RootFs(shown(&rootfs.kind)));
        }
        if rootfs.diff_ids.len() != layers || layers > LAYERS_MAX {
            return Err(ConfigError::Layers { diff_ids: rootfs.diff_ids.len(), layers });
        }
        if let Some(bad) = rootfs.diff_ids.iter().find(|text| text.parse::<Digest>().is_err()) {
            return Err(ConfigError::DiffId(shown(bad)));
        }
        Ok(ImageConfig {
            created: wire.created,
            os: wire.os,
            architecture: wire.architecture,
            variant: wire.variant,
            config: wire.config.unwrap_or_default(),
            diff_ids: rootfs.diff_ids,
        })
    }

    /// The names of the snapshots of the layers, lowest first: each says what all layers up to it are.
    pub(crate) fn chain_ids(&self) -> Vec<Digest> {
        let mut chain: Vec<Digest> = Vec::with_capacity(self.diff_ids.len());
        for diff_id in &self.diff_ids {
            chain.push(match chain.last() {
                None => diff_id.parse().expect("diff ids were checked when the config was read"),
                Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
            });
        }
        chain
    }
}

#[derive(Deserialize)]
struct Wire {
    created: Option<String>,
    #[serde(default, deserialize_with = "or_empty")]
    os: String,
    #[serde(default, deserialize_with = "or_empty")]
    architecture: String,
    #[serde(default, deserialize_with = "or_empty")]
    variant: String,
    config: Option<RunConfig>,
    rootfs: Option<RootFs>,
}

#[derive(Default, Deserialize)]
struct RootFs {
    #[serde(rename = "type", default, deserialize_with = "or_empty")]
    kind: String,
    #[serde(default, deserialize_with = "or_empty")]
    diff_ids: Vec<String>,
}

/// Null is the same as nothing.
fn or_empty<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A list of words, or one word: old builders wrote a bare text.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        Many(Vec<String>),
        One(String),
    }
    Ok(match Option::<Words>::deserialize(deserializer)? {
        Some(Words::Many(words)) => words,
        Some(Words::One(word)) => vec![word],
        None => Vec::new(),
    })
}

/// Go has no sets: they are maps to empty objects.
fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
    let map = Option::<BTreeMap<String, IgnoredAny>>::deserialize(deserializer)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

/// At most 64 characters of a stranger's text.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    #[test]
    fn a_config_as_builders_write_it() {
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","created":"2026-01-02T03:04:05Z","config":{{
                "User":"www","ExposedPorts":{{"80/tcp":{{}}}},"Env":["PATH=/bin"],"Entrypoint":["/e"],"Cmd":null,
                "Volumes":{{"/data":{{}}}},"WorkingDir":"/w","Labels":{{"a":"b"}},"StopSignal":"SIGQUIT",
                "OnBuild":null}},"rootfs":{{"type":"layers","diff_ids":["{A}","{B}"]}},"history":[{{}}]}}"#
        );
        let config = ImageConfig::parse(text.as_bytes(), 2).unwrap();
        assert_eq!((config.config.user.as_str(), config.config.cmd.len()), ("www", 0));
        assert!(config.config.exposed_ports.contains("80/tcp") && config.config.volumes.contains("/data"));
        assert_eq!(config.config.labels["a"], "b");
        // sha256 of "A B", as text.
        let chain = config.chain_ids();
        assert_eq!(chain[0].as_str(), A);
        assert_eq!(chain[1], Digest::of(format!("{A} {B}").as_bytes()));
    }

    #[test]
    fn what_is_missing_or_null_is_empty() {
        for text in ["{}", r#"{"config":null,"rootfs":null}"#, r#"{"config":{"Env":null,"Labels":null},"rootfs":{}}"#] {
            let config = ImageConfig::parse(text.as_bytes(), 0).unwrap();
            assert_eq!((config.config, config.diff_ids), (RunConfig::default(), Vec::new()), "{text}");
        }
        let one = ImageConfig::parse(br#"{"config":{"Cmd":"sh"}}"#, 0).unwrap();
        assert_eq!(one.config.cmd, ["sh"]);
    }

    #[test]
    fn what_is_refused() {
        let refused = |text: &str, layers| ImageConfig::parse(text.as_bytes(), layers).unwrap_err().to_string();
        assert!(refused("[]", 0).contains("JSON"));
        assert!(refused(r#"{"os":"windows"}"#, 0).contains("windows"));
        assert!(refused(r#"{"rootfs":{"type":"base"}}"#, 0).contains("base"));
        assert!(refused(r#"{"rootfs":{"diff_ids":[]}}"#, 1).contains("1 layers"));
        assert!(refused(r#"{"rootfs":{"diff_ids":["sha256:../x"]}}"#, 1).contains("no digest"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,100}", layers in 0usize..3) {
            let _ = ImageConfig::parse(text.as_bytes(), layers);
        }
    }
}
