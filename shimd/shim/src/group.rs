//! Which containers share a shim: those whose specs name the same group, as the containers of a pod do.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

/// Annotations that name a group, as containerd's own shim reads them; the first that is there counts.
const ANNOTATIONS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

#[derive(Default, Deserialize)]
struct Spec {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// The group of the container whose bundle this is. What is wrong with a spec is for the runtime to say.
pub(crate) fn of(bundle: &Path) -> Option<String> {
    let config = fs::read(bundle.join("config.json")).ok()?;
    // Nearly every spec has none, and is not parsed for it.
    if !ANNOTATIONS.iter().any(|name| contains(&config, name.as_bytes())) {
        return None;
    }
    let mut spec: Spec = serde_json::from_slice(&config).ok()?;
    ANNOTATIONS.iter().find_map(|name| spec.annotations.remove(*name)).filter(|group| !group.is_empty())
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(config: &str) -> Option<String> {
        let bundle = tempfile::tempdir().unwrap();
        fs::write(bundle.path().join("config.json"), config).unwrap();
        of(bundle.path())
    }

    #[test]
    fn a_group_is_an_annotation() {
        let both = r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"}}"#;
        assert_eq!(group(both).as_deref(), Some("g"));
        assert_eq!(group(r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#).as_deref(), Some("pod"));
        for without in ["{}", "no json", r#"{"process":{"args":["io.containerd.runc.v2.group"]}}"#] {
            assert_eq!(group(without), None, "{without}");
        }
        assert_eq!(group(r#"{"annotations":{"io.containerd.runc.v2.group":""}}"#), None);
        assert_eq!(of(Path::new("/nonexistent")), None);
    }
}
