//! Which of an index's images is meant for a machine.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An operating system and a processor, in the names of Go's toolchain, as the OCI specifications use them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64`.
    #[serde(default)]
    pub architecture: String,
    /// `v8` of arm64, `v2` to `v4` of amd64; empty: the baseline.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// The machine that this program runs on.
    pub fn host() -> Platform {
        Platform { os: "linux".into(), architecture: host_architecture().into(), variant: host_variant().into() }
    }

    /// How well an image for `offered` runs where `self` is wanted: higher is better, `None` is not at all.
    pub fn rank(&self, offered: &Platform) -> Option<u8> {
        if offered.os != self.os || offered.architecture != self.architecture {
            return None;
        }
        let (wanted, level) = (self.level()?, offered.level()?);
        // A processor runs what was built for its level or a lower one; the highest of those is the best.
        (level <= wanted).then_some(level)
    }

    /// The variant as a number; `None` for one that is not known, which then matches nothing.
    fn level(&self) -> Option<u8> {
        let baseline = match self.architecture.as_str() {
            "amd64" => 1,
            "arm64" => 8,
            "arm" => 7,
            _ => 0,
        };
        match self.variant.as_str() {
            "" => Some(baseline),
            variant => variant.strip_prefix('v')?.split('.').next()?.parse().ok(),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// A text that is not `os/architecture[/variant]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformError(String);

impl fmt::Display for PlatformError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "platform {:?} is not of the form os/architecture[/variant]", self.0)
    }
}

impl std::error::Error for PlatformError {}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Platform, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let word =
            |part: &&str| !part.is_empty() && part.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c));
        let (os, architecture, variant) = match *parts.as_slice() {
            [os, architecture] => (os, architecture, ""),
            [os, architecture, variant] => (os, architecture, variant),
            _ => return Err(PlatformError(text.chars().take(64).collect())),
        };
        if !parts.iter().all(word) {
            return Err(PlatformError(text.chars().take(64).collect()));
        }
        Ok(Platform { os: os.into(), architecture: normal(architecture).into(), variant: variant.into() })
    }
}

/// Other names that people use for the same processors.
fn normal(architecture: &str) -> &str {
    match architecture {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// The x86-64 micro-architecture level of this processor (psABI), as far as the features that tell them apart go.
#[cfg(target_arch = "x86_64")]
fn host_variant() -> &'static str {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("cmpxchg16b") && has!("popcnt") && has!("sse4.2") && has!("ssse3");
    let v3 = v2 && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("fma") && has!("lzcnt") && has!("movbe");
    let v4 = v3 && has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    match (v4, v3, v2) {
        (true, ..) => "v4",
        (_, true, _) => "v3",
        (.., true) => "v2",
        _ => "",
    }
}

#[cfg(target_arch = "aarch64")]
fn host_variant() -> &'static str {
    "v8"
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn host_variant() -> &'static str {
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn a_processor_runs_its_level_and_lower_ones() {
        let v3 = platform("linux/amd64/v3");
        assert_eq!(v3.rank(&platform("linux/amd64")), Some(1));
        assert_eq!(v3.rank(&platform("linux/amd64/v2")), Some(2));
        assert_eq!(v3.rank(&platform("linux/amd64/v4")), None);
        assert_eq!(v3.rank(&platform("linux/arm64")), None);
        assert_eq!(v3.rank(&platform("windows/amd64")), None);
        assert_eq!(v3.rank(&Platform { variant: "vX".into(), ..platform("linux/amd64") }), None);
        assert_eq!(platform("linux/arm64").rank(&platform("linux/arm64/v8")), Some(8));
        assert_eq!(platform("linux/arm64/v8").rank(&platform("linux/arm64")), Some(8));
    }

    #[test]
    fn texts() {
        assert_eq!(platform("linux/x86_64").to_string(), "linux/amd64");
        assert_eq!(platform("linux/arm/v7").to_string(), "linux/arm/v7");
        for bad in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/amd 64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
        assert!(Platform::host().rank(&Platform::host()).is_some());
    }
}
