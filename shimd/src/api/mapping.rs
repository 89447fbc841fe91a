//! Clients that know mounts in which ids are mapped, and those that do not.

use tonic::metadata::MetadataMap;

use crate::snapshot::Mount;

/// The gRPC library of Go from which on clients know them: 1.60. Those of containerd 1.x have 1.59 at most, of 2.x
/// 1.67.
const SINCE: u32 = 60;

/// Whether a client knows what to do with such a mount. The Go clients of containerd 1.x do not, and mount snapshots
/// themselves, to look up users.
pub(super) fn knows_mappings(metadata: &MetadataMap) -> bool {
    let agent = metadata.get("user-agent").and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let minor = agent.split("grpc-go/1.").nth(1).and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    minor.is_none_or(|minor| minor >= SINCE)
}

/// The mounts as that client can make them: for one who does not know mappings without, as containerd 1.x gave them.
pub(super) fn for_client(mut mounts: Vec<Mount>, knows_mappings: bool) -> Vec<Mount> {
    let is_plain =
        |option: &String| knows_mappings || !(option.starts_with("uidmap=") || option.starts_with("gidmap="));
    mounts.iter_mut().for_each(|mount| mount.options.retain(is_plain));
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_clients_of_containerd_1_get_plain_mounts() {
        let knows = |agent: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("user-agent", agent.parse().unwrap());
            knows_mappings(&metadata)
        };
        assert!(!knows("grpc-go/1.33.3") && !knows("containerd/1.7.24 grpc-go/1.59.0"));
        assert!(knows("grpc-go/1.67.1") && knows("grpc-go/1.81.0-dev") && knows("tonic/0.14.9") && knows(""));
        assert!(knows_mappings(&MetadataMap::new()));
        let options = ["uidmap=0:1:1", "gidmap=0:1:1", "ro"].map(str::to_owned).to_vec();
        let mount = Mount { kind: "bind".to_owned(), source: "/x".to_owned(), options };
        assert_eq!(for_client(vec![mount.clone()], true)[0], mount);
        assert_eq!(for_client(vec![mount], false)[0].options, ["ro"]);
    }
}
