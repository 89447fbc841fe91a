//! What containers are made of: blobs, snapshots, records.

use std::collections::HashMap;

use prost_types::Any;
use proto_containerd::json_type;
use proto_containerd::services::content::{WriteAction, WriteContentRequest, WriteContentResponse};
use proto_containerd::services::snapshots::{CommitSnapshotRequest, PrepareSnapshotRequest};
use proto_containerd::services::{containers, diff};
use proto_containerd::types::{Descriptor, Mount};
use sha2::{Digest, Sha256};
use tonic::Status;

use super::{GZIP_LAYER, Lab, SNAPSHOTTER, ours};

impl Lab {
    /// Writes a blob in messages of 64 KiB; the first bears `labels`.
    pub(crate) async fn write(
        &self,
        reference: &str,
        data: &[u8],
        labels: HashMap<String, String>,
    ) -> Result<WriteContentResponse, Status> {
        let expected = digest(data);
        let mut messages = vec![WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: reference.to_owned(),
            total: data.len() as i64,
            expected: expected.clone(),
            labels,
            ..Default::default()
        }];
        messages.extend(data.chunks(64 << 10).scan(0, |offset, chunk| {
            let message = WriteContentRequest {
                action: WriteAction::Write.into(),
                offset: *offset,
                data: chunk.to_vec().into(),
                ..Default::default()
            };
            *offset += chunk.len() as i64;
            Some(message)
        }));
        messages.push(WriteContentRequest {
            action: WriteAction::Commit.into(),
            total: data.len() as i64,
            offset: data.len() as i64,
            expected,
            ..Default::default()
        });
        self.send(messages).await
    }

    /// Sends a write stream and gives the last answer.
    pub(crate) async fn send(&self, messages: Vec<WriteContentRequest>) -> Result<WriteContentResponse, Status> {
        let stream = tokio_stream::iter(messages);
        let mut answers = self.content().await.write(stream).await?.into_inner();
        let mut last = None;
        while let Some(answer) = answers.message().await? {
            last = Some(answer);
        }
        Ok(last.unwrap())
    }

    pub(crate) async fn prepare(&self, key: &str, parent: &str) -> Vec<Mount> {
        let request = PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        };
        self.snapshots().await.prepare(request).await.unwrap().into_inner().mounts
    }

    pub(crate) async fn commit(&self, key: &str, name: &str) {
        let request = CommitSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels: HashMap::from([("containerd.io/gc.root".to_owned(), "test".to_owned())]),
            parent: String::new(),
        };
        self.snapshots().await.commit(request).await.unwrap();
    }

    /// Applies a blob of `size` bytes to `mounts`, and gives the diff id.
    pub(crate) async fn apply(&self, digest: &str, size: usize, mounts: Vec<Mount>) -> Result<String, Status> {
        let descriptor = Descriptor {
            media_type: GZIP_LAYER.to_owned(),
            digest: digest.to_owned(),
            size: size as i64,
            annotations: HashMap::new(),
        };
        let request = diff::ApplyRequest { diff: Some(descriptor), mounts, ..Default::default() };
        Ok(self.diff().await.apply(request).await?.into_inner().applied.unwrap().digest)
    }

    /// A committed snapshot called `name` with a busybox in it.
    pub(crate) async fn busybox(&self, name: &str) {
        let layer = gzip(&busybox_layer());
        self.write("busybox", &layer, HashMap::new()).await.unwrap();
        let mounts = self.prepare("busybox-tmp", "").await;
        self.apply(&digest(&layer), layer.len(), mounts).await.unwrap();
        self.commit("busybox-tmp", name).await;
    }

    /// A container record of a program, and its snapshot; gives the mounts.
    pub(crate) async fn container(&self, id: &str, parent: &str, arguments: &[&str]) -> Vec<Mount> {
        self.container_in("", id, parent, arguments).await
    }

    /// The same, of a sandbox.
    pub(crate) async fn container_in(&self, sandbox: &str, id: &str, parent: &str, arguments: &[&str]) -> Vec<Mount> {
        let mounts = self.prepare(id, parent).await;
        let container = containers::Container {
            id: id.to_owned(),
            runtime: Some(containers::container::Runtime {
                name: if ours().is_some() { "io.containerd.strata.v1" } else { "io.containerd.runc.v2" }.to_owned(),
                options: Some(self.runtime_options()),
            }),
            spec: Some(self.spec(id, arguments)),
            snapshotter: SNAPSHOTTER.to_owned(),
            snapshot_key: id.to_owned(),
            sandbox: sandbox.to_owned(),
            ..Default::default()
        };
        let request = containers::CreateContainerRequest { container: Some(container) };
        self.containers().await.create(request).await.unwrap();
        mounts
    }

    /// What a container runs, and in which cgroup.
    pub(crate) fn spec(&self, id: &str, arguments: &[&str]) -> Any {
        let namespaces: Vec<_> =
            ["pid", "ipc", "uts", "mount", "network"].iter().map(|kind| serde_json::json!({ "type": kind })).collect();
        let spec = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": process(arguments),
            "root": { "path": "rootfs" },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "linux": { "cgroupsPath": self.cgroup(id), "namespaces": namespaces },
        });
        Any { type_url: json_type::SPEC.to_owned(), value: serde_json::to_vec(&spec).unwrap() }
    }

    /// The runtime keeps its state beside everything else of this test.
    pub(crate) fn runtime_options(&self) -> Any {
        let options = proto_shim::runc::Options { root: self.path("runc").display().to_string(), ..Default::default() };
        proto_shim::any(&options)
    }
}

pub(crate) fn digest(data: &[u8]) -> String {
    let hex: String = Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, data).unwrap();
    encoder.finish().unwrap()
}

/// A layer of files: path, contents.
pub(crate) fn layer(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o755);
        header.set_mtime(1_000_000_000);
        builder.append_data(&mut header, path, *data).unwrap();
    }
    builder.into_inner().unwrap()
}

fn busybox_layer() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for directory in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        builder.append_data(&mut header, directory, std::io::empty()).unwrap();
    }
    builder.append_path_with_name("/bin/busybox", "bin/busybox").unwrap();
    for applet in ["sh", "true", "echo", "sleep", "cat", "kill", "ls"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Link);
        // containerd gives the file the mode of each of its links.
        header.set_mode(0o755);
        header.set_size(0);
        builder.append_link(&mut header, format!("bin/{applet}"), "bin/busybox").unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn process(arguments: &[&str]) -> serde_json::Value {
    serde_json::json!({
        "user": { "uid": 0, "gid": 0 },
        "args": arguments,
        "env": ["PATH=/bin"],
        "cwd": "/",
    })
}

pub(crate) fn process_any(arguments: &[&str]) -> Any {
    Any { type_url: json_type::PROCESS.to_owned(), value: serde_json::to_vec(&process(arguments)).unwrap() }
}
