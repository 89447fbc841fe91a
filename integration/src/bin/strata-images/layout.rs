//! An image as an OCI image layout on disk (image-spec image-layout.md).

use std::fs;
use std::io::Write as _;
use std::path::Path;

use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::layer::Layer;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// When every image says that it was made.
const CREATED: &str = "2023-11-14T22:13:20Z";

/// What an image says about the program it is for.
#[derive(Clone, Default)]
pub(crate) struct Config {
    pub(crate) command: Vec<String>,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) user: String,
    pub(crate) working_dir: String,
    pub(crate) stop_signal: String,
    pub(crate) exposed: Vec<String>,
    pub(crate) labels: Vec<(String, String)>,
}

/// How layers are compressed.
#[derive(Clone, Copy)]
pub(crate) enum Compression {
    Gzip,
    Zstd,
}

impl Compression {
    fn media_type(self) -> String {
        format!("{LAYER}+{}", if matches!(self, Compression::Gzip) { "gzip" } else { "zstd" })
    }

    fn compressed(self, tar: &[u8]) -> Vec<u8> {
        match self {
            Compression::Gzip => gzip(tar),
            Compression::Zstd => zstd::encode_all(tar, 0).expect("writing to memory does not fail"),
        }
    }
}

/// An image that is to be written.
pub(crate) struct Image {
    pub(crate) layers: Vec<Layer>,
    pub(crate) config: Config,
}

impl Image {
    /// Writes the layout; `index.json` comes last, so that a layout with one is whole.
    pub(crate) fn write(&self, target: &Path, compression: Compression) -> Result<(), String> {
        let layers = self.layers.iter().map(|layer| {
            let tar = layer.tar();
            (digest(&tar), compression.compressed(&tar))
        });
        write_layout(target, &compression.media_type(), layers, &self.config)
    }
}

/// Of each layer the digest of its archive, and the archive compressed.
fn write_layout(
    target: &Path,
    media_type: &str,
    layers: impl Iterator<Item = (String, Vec<u8>)>,
    config: &Config,
) -> Result<(), String> {
    let blobs = target.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(|error| format!("create {}: {error}", blobs.display()))?;
    let (mut descriptors, mut diff_ids) = (Vec::new(), Vec::new());
    for (diff_id, bytes) in layers {
        diff_ids.push(diff_id);
        descriptors.push(blob(&blobs, media_type, &bytes)?);
    }
    let config = blob(&blobs, CONFIG, config_document(config, &diff_ids).to_string().as_bytes())?;
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": descriptors});
    let mut manifest = blob(&blobs, MANIFEST, manifest.to_string().as_bytes())?;
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    manifest["platform"] = json!({"os": "linux", "architecture": architecture()});
    write(&target.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes())?;
    write(&target.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string().as_bytes())
}

fn config_document(config: &Config, diff_ids: &[String]) -> Value {
    let exposed: serde_json::Map<String, Value> = config.exposed.iter().map(|port| (port.clone(), json!({}))).collect();
    let labels: serde_json::Map<String, Value> =
        config.labels.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let history: Vec<Value> =
        diff_ids.iter().map(|_| json!({"created": CREATED, "created_by": "strata-images"})).collect();
    let mut document = json!({
        "created": CREATED,
        "architecture": architecture(),
        "os": "linux",
        "config": {"Env": config.env},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": history,
    });
    let settings = &mut document["config"];
    set(settings, "Cmd", json!(config.command), config.command.is_empty());
    set(settings, "Entrypoint", json!(config.entrypoint), config.entrypoint.is_empty());
    set(settings, "User", json!(config.user), config.user.is_empty());
    set(settings, "WorkingDir", json!(config.working_dir), config.working_dir.is_empty());
    set(settings, "StopSignal", json!(config.stop_signal), config.stop_signal.is_empty());
    set(settings, "ExposedPorts", Value::Object(exposed), config.exposed.is_empty());
    set(settings, "Labels", Value::Object(labels), config.labels.is_empty());
    document
}

fn set(settings: &mut Value, key: &str, value: Value, is_empty: bool) {
    if !is_empty {
        settings[key] = value;
    }
}

/// The processor's name as images have it (Go's GOARCH).
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(data).expect("writing to memory does not fail");
    encoder.finish().expect("writing to memory does not fail")
}

fn digest(data: &[u8]) -> String {
    let hash = Sha256::digest(data);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Stores `data` by its digest and returns its descriptor.
fn blob(blobs: &Path, media_type: &str, data: &[u8]) -> Result<Value, String> {
    let digest = digest(data);
    write(&blobs.join(digest.trim_start_matches("sha256:")), data)?;
    Ok(json!({"mediaType": media_type, "digest": digest, "size": data.len()}))
}

fn write(path: &Path, data: &[u8]) -> Result<(), String> {
    fs::write(path, data).map_err(|error| format!("write {}: {error}", path.display()))
}
