//! An image of one layer, made of the host's static busybox and put into the supervisor over its own API.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use proto_containerd::services::containers::ListContainersRequest;
use proto_containerd::services::containers::containers_client::ContainersClient;
use proto_containerd::services::content::content_client::ContentClient;
use proto_containerd::services::content::{WriteAction, WriteContentRequest};
use proto_containerd::services::diff::ApplyRequest;
use proto_containerd::services::diff::diff_client::DiffClient;
use proto_containerd::services::images::images_client::ImagesClient;
use proto_containerd::services::images::{CreateImageRequest, Image};
use proto_containerd::services::namespaces::namespaces_client::NamespacesClient;
use proto_containerd::services::namespaces::{CreateNamespaceRequest, Namespace};
use proto_containerd::services::snapshots::snapshots_client::SnapshotsClient;
use proto_containerd::services::snapshots::{
    CommitSnapshotRequest, Kind, ListSnapshotsRequest, PrepareSnapshotRequest,
};
use proto_containerd::types::Descriptor;
use sha2::{Digest, Sha256};
use tonic::transport::Channel;
use tonic::{Code, Request};

const NAMESPACE: &str = "strata";
const SNAPSHOTTER: &str = "overlayfs";
/// What the image's shell is called by.
const APPLETS: [&str; 24] = [
    "sh",
    "cat",
    "echo",
    "true",
    "false",
    "sleep",
    "id",
    "env",
    "ls",
    "head",
    "tail",
    "seq",
    "wc",
    "hostname",
    "mount",
    "touch",
    "stty",
    "kill",
    "grep",
    "wget",
    "pwd",
    "tr",
    "dd",
    "sha256sum",
];

/// The host's static busybox.
pub(crate) fn busybox() -> Option<PathBuf> {
    let path = Path::new("/bin/busybox");
    let bytes = std::fs::read(path).ok()?;
    // A dynamic program names its interpreter.
    let is_dynamic = bytes.windows(7).take(4096).any(|window| window == b"/lib64/" || window == b"ld-linu");
    (!is_dynamic).then(|| path.to_owned())
}

fn layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let program = std::fs::read(busybox().expect("busybox was looked for")).expect("read busybox");
    for (path, mode) in [("bin/", 0o755), ("etc/", 0o755), ("tmp/", 0o1777), ("mnt/", 0o755)] {
        entry(&mut tar, path, mode, &[]);
    }
    entry(&mut tar, "bin/busybox", 0o755, &program);
    entry(&mut tar, "etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/srv:/bin/sh\n");
    entry(&mut tar, "etc/group", 0o644, b"root:x:0:\nweb:x:102:\nadm:x:4:web\n");
    entry(&mut tar, "etc/plain", 0o644, b"no program\n");
    for applet in APPLETS {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox").expect("add a link");
    }
    tar.into_inner().expect("end the archive")
}

fn entry(tar: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    if path.ends_with('/') {
        header.set_entry_type(tar::EntryType::Directory);
    }
    tar.append_data(&mut header, path, bytes).expect("add an entry");
}

fn digest(bytes: &[u8]) -> String {
    let sum: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{sum}")
}

fn in_namespace<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", NAMESPACE.parse().expect("a header"));
    request
}

/// Keeps what nothing names yet: containerd collects garbage soon after its start.
fn gc_root() -> (String, String) {
    ("containerd.io/gc.root".to_owned(), "1970-01-01T00:00:00Z".to_owned())
}

struct Blob {
    media_type: &'static str,
    bytes: Vec<u8>,
    labels: HashMap<String, String>,
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Blob {
        Blob { media_type, bytes, labels: HashMap::from([gc_root()]) }
    }

    fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: self.media_type.to_owned(),
            digest: digest(&self.bytes),
            size: self.bytes.len() as i64,
            ..Default::default()
        }
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({"mediaType": self.media_type, "digest": digest(&self.bytes), "size": self.bytes.len()})
    }

    async fn write(&self, channel: &Channel) {
        let request = WriteContentRequest {
            action: WriteAction::Commit.into(),
            r#ref: format!("test-{}", digest(&self.bytes)),
            total: self.bytes.len() as i64,
            expected: digest(&self.bytes),
            data: self.bytes.clone().into(),
            labels: self.labels.clone(),
            ..Default::default()
        };
        let mut client = ContentClient::new(channel.clone()).max_encoding_message_size(16 << 20);
        let written = client.write(in_namespace(tokio_stream::iter([request]))).await;
        let mut answers = written.expect("write a blob").into_inner();
        loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(status) if status.code() == Code::AlreadyExists => return,
                Err(status) => panic!("write a blob: {status}"),
            }
        }
    }
}

/// Puts the image there, unpacked, under that name.
pub(crate) async fn import(channel: &Channel, name: &str) {
    make_namespace(channel).await;
    let layer = Blob::new("application/vnd.oci.image.layer.v1.tar", layer());
    let diff_id = digest(&layer.bytes);
    let config = serde_json::json!({
        "os": "linux", "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "config": {"Cmd": ["sh"], "Env": ["PATH=/bin", "LEAK"], "Labels": {"of": "image"}},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]}
    });
    let mut config = Blob::new("application/vnd.oci.image.config.v1+json", config.to_string().into_bytes());
    config.labels.insert(format!("containerd.io/gc.ref.snapshot.{SNAPSHOTTER}"), diff_id.clone());
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.json(), "layers": [layer.json()]
    });
    let mut manifest = Blob::new("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes());
    for (label, blob) in [("containerd.io/gc.ref.content.0", &config), ("containerd.io/gc.ref.content.1", &layer)] {
        manifest.labels.insert(label.to_owned(), digest(&blob.bytes));
    }
    for blob in [&layer, &config, &manifest] {
        blob.write(channel).await;
    }
    let image = Image { name: name.to_owned(), target: Some(manifest.descriptor()), ..Default::default() };
    let request = CreateImageRequest { image: Some(image), ..Default::default() };
    ImagesClient::new(channel.clone()).create(in_namespace(request)).await.expect("name the image");
    unpack(channel, &layer, &diff_id).await;
}

/// containerd listens before it serves.
async fn make_namespace(channel: &Channel) {
    let mut last = None;
    for _ in 0..200 {
        let namespace = Namespace { name: NAMESPACE.to_owned(), ..Default::default() };
        let request = CreateNamespaceRequest { namespace: Some(namespace) };
        match NamespacesClient::new(channel.clone()).create(request).await {
            Ok(_) => return,
            Err(status) if status.code() == Code::AlreadyExists => return,
            Err(status) => last = Some(status),
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("make a namespace: {last:?}");
}

async fn unpack(channel: &Channel, layer: &Blob, chain_id: &str) {
    let mut snapshots = SnapshotsClient::new(channel.clone());
    let prepare = PrepareSnapshotRequest {
        snapshotter: SNAPSHOTTER.to_owned(),
        key: "extract-test".to_owned(),
        labels: HashMap::from([gc_root()]),
        ..Default::default()
    };
    let mounts = snapshots.prepare(in_namespace(prepare)).await.expect("prepare a layer").into_inner().mounts;
    let apply = ApplyRequest { diff: Some(layer.descriptor()), mounts, ..Default::default() };
    DiffClient::new(channel.clone()).apply(in_namespace(apply)).await.expect("unpack a layer");
    let commit = CommitSnapshotRequest {
        snapshotter: SNAPSHOTTER.to_owned(),
        name: chain_id.to_owned(),
        key: "extract-test".to_owned(),
        ..Default::default()
    };
    snapshots.commit(in_namespace(commit)).await.expect("commit a layer");
}

/// Containers, and snapshots that are no layers, in the supervisor.
pub(crate) async fn left(channel: &Channel) -> (Vec<String>, Vec<String>) {
    let mut containers = ContainersClient::new(channel.clone());
    let listed = containers.list(in_namespace(ListContainersRequest::default())).await.expect("list containers");
    let containers = listed.into_inner().containers.into_iter().map(|container| container.id).collect();
    let request = ListSnapshotsRequest { snapshotter: SNAPSHOTTER.to_owned(), ..Default::default() };
    let listed = SnapshotsClient::new(channel.clone()).list(in_namespace(request)).await;
    let mut stream = listed.expect("list snapshots").into_inner();
    let mut snapshots = Vec::new();
    while let Some(part) = stream.message().await.expect("list snapshots") {
        let passing = part.info.into_iter().filter(|info| info.kind() != Kind::Committed);
        snapshots.extend(passing.map(|info| info.name));
    }
    (containers, snapshots)
}
