//! Which of an index's images are meant.

use proto_containerd::types;
use serde::{Deserialize, Serialize};

/// An operating system and a processor, in Go's names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) architecture: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) os: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) variant: String,
    #[serde(rename = "os.version", default, skip_serializing_if = "String::is_empty")]
    pub(crate) os_version: String,
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) os_features: Vec<String>,
}

impl Platform {
    /// The machine that shimd runs on.
    pub(crate) fn host() -> Platform {
        Platform { os: "linux".to_owned(), architecture: architecture().to_owned(), ..Platform::default() }
    }

    /// Whether an image for `offered` is meant where `self` is wanted.
    pub(crate) fn accepts(&self, offered: &Platform) -> bool {
        let (wanted, offered) = (self.normal(), offered.normal());
        wanted.os == offered.os && wanted.architecture == offered.architecture && wanted.level() >= offered.level()
    }

    /// Other names of the same thing made one.
    fn normal(&self) -> Platform {
        let mut normal = self.clone();
        normal.os.make_ascii_lowercase();
        let (architecture, variant) = match self.architecture.to_ascii_lowercase().as_str() {
            "x86_64" | "x86-64" => ("amd64".to_owned(), None),
            "aarch64" => ("arm64".to_owned(), None),
            "armhf" => ("arm".to_owned(), Some("v7")),
            "armel" => ("arm".to_owned(), Some("v6")),
            other => (other.to_owned(), None),
        };
        normal.architecture = architecture;
        if let (Some(variant), true) = (variant, self.variant.is_empty()) {
            normal.variant = variant.to_owned();
        }
        normal
    }

    /// The variant as a number. A processor runs what was built for its level or a lower one.
    fn level(&self) -> u32 {
        let baseline = match self.architecture.as_str() {
            "amd64" => 1,
            "arm64" => 8,
            "arm" => 7,
            _ => 0,
        };
        let number = self.variant.trim_start_matches('v').split('.').next().unwrap_or_default();
        if self.variant.is_empty() { baseline } else { number.parse().unwrap_or(u32::MAX) }
    }
}

impl From<types::Platform> for Platform {
    fn from(wire: types::Platform) -> Platform {
        Platform {
            architecture: wire.architecture,
            os: wire.os,
            variant: wire.variant,
            os_version: wire.os_version,
            os_features: wire.os_features,
        }
    }
}

/// Go's name of this processor.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Platform { os: next(), architecture: next(), variant: next(), ..Platform::default() }
    }

    #[test]
    fn what_runs_where() {
        for (wanted, offered, is_meant) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/amd64", "linux/x86_64", true),
            ("linux/amd64", "linux/arm64", false),
            ("linux/amd64", "windows/amd64", false),
            ("linux/amd64", "linux/amd64/v2", false),
            ("linux/amd64/v3", "linux/amd64", true),
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm64/v8", "linux/aarch64", true),
            ("linux/arm/v7", "linux/arm/v6", true),
            ("linux/arm/v6", "linux/arm", false),
        ] {
            assert_eq!(platform(wanted).accepts(&platform(offered)), is_meant, "{wanted} {offered}");
        }
    }
}
