//! The same image in the other forms that registries hold: an index of platforms, Docker's own types, layers compressed
//! otherwise or not at all, and forms that are wrong.

use std::io::{Read, Write};
use std::path::Path;

use flate2::read::GzDecoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Registry, blob_of, digest_of, only_manifest, read_json};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A form of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// An OCI index with this machine's platform among others; the others' manifests are not there.
    Index,
    /// An index that has only another platform.
    ForeignIndex,
    /// Docker's manifest schema 2 with Docker's media types.
    Docker,
    /// Layers as plain tar.
    Plain,
    /// Layers compressed with zstd.
    Zstd,
    /// A manifest whose layer sizes are one byte too large.
    WrongSize,
    /// A config whose diff ids are not those of the layers.
    WrongDiffId,
    /// A manifest that is no JSON.
    Garbage,
}

impl Registry {
    /// Places a form of the image of an OCI layout under `repository:latest`.
    ///
    /// # Errors
    /// When the layout is not whole.
    pub fn add_variant(&self, layout: &Path, repository: &str, variant: Variant) -> Result<(), String> {
        self.add(layout, repository, "original")?;
        let digest = only_manifest(layout)?;
        let mut manifest = read_json(&blob_of(layout, &digest))?;
        match variant {
            Variant::Index => return self.add_index(repository, &digest, &manifest, architecture()),
            Variant::ForeignIndex => return self.add_index(repository, &digest, &manifest, "s390x"),
            Variant::Garbage => return self.add_manifest(repository, b"{ this is no JSON"),
            Variant::Docker => dockerise(&mut manifest),
            Variant::Plain => self.recompress(layout, repository, &mut manifest, OCI_LAYER, |tar| Ok(tar.to_vec()))?,
            Variant::Zstd => {
                self.recompress(layout, repository, &mut manifest, &format!("{OCI_LAYER}+zstd"), zstd_of)?
            }
            Variant::WrongSize => enlarge(&mut manifest),
            Variant::WrongDiffId => self.swap_diff_ids(layout, repository, &mut manifest)?,
        }
        self.add_manifest(repository, manifest.to_string().as_bytes())
    }

    /// Places the image of an OCI layout under `repository:latest`, with labels in its config.
    ///
    /// # Errors
    /// When the layout is not whole.
    pub fn add_labelled(&self, layout: &Path, repository: &str, labels: &Value) -> Result<(), String> {
        self.add(layout, repository, "original")?;
        let mut manifest = read_json(&blob_of(layout, &only_manifest(layout)?))?;
        let mut config = read_json(&blob_of(layout, digest_of(&manifest["config"])?))?;
        config["config"]["Labels"] = labels.clone();
        self.replace_config(repository, &mut manifest, &config)?;
        self.add_manifest(repository, manifest.to_string().as_bytes())
    }

    fn add_index(&self, repository: &str, digest: &str, manifest: &Value, architecture: &str) -> Result<(), String> {
        let size = manifest.to_string().len();
        let entry = |digest: &str, architecture: &str| json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": size, "platform": {"os": "linux", "architecture": architecture}});
        let absent = digest_text(b"nobody has this");
        let manifests = [entry(&absent, "riscv64"), entry(digest, architecture), entry(&absent, "ppc64le")];
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        self.add_manifest(repository, index.to_string().as_bytes())
    }

    fn recompress(
        &self,
        layout: &Path,
        repository: &str,
        manifest: &mut Value,
        media_type: &str,
        compress: impl Fn(&[u8]) -> Result<Vec<u8>, String>,
    ) -> Result<(), String> {
        for layer in manifest["layers"].as_array_mut().ok_or("no layers")? {
            let bytes = compress(&inflate(&blob_of(layout, digest_of(layer)?))?)?;
            let digest = self.add_bytes(repository, &bytes)?;
            *layer = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        }
        Ok(())
    }

    fn swap_diff_ids(&self, layout: &Path, repository: &str, manifest: &mut Value) -> Result<(), String> {
        let mut config = read_json(&blob_of(layout, digest_of(&manifest["config"])?))?;
        for diff_id in config["rootfs"]["diff_ids"].as_array_mut().ok_or("no diff ids")? {
            *diff_id = json!(digest_text(b"another layer"));
        }
        self.replace_config(repository, manifest, &config)
    }

    fn replace_config(&self, repository: &str, manifest: &mut Value, config: &Value) -> Result<(), String> {
        let bytes = config.to_string().into_bytes();
        manifest["config"]["digest"] = json!(self.add_bytes(repository, &bytes)?);
        manifest["config"]["size"] = json!(bytes.len());
        Ok(())
    }

    /// Stores a blob that a repository has, and returns its digest.
    fn add_bytes(&self, repository: &str, bytes: &[u8]) -> Result<String, String> {
        let digest = digest_text(bytes);
        self.write_blob(&digest, bytes)?;
        self.link_layer(repository, &digest)?;
        Ok(digest)
    }

    fn add_manifest(&self, repository: &str, bytes: &[u8]) -> Result<(), String> {
        let digest = digest_text(bytes);
        self.write_blob(&digest, bytes)?;
        self.link_manifest(repository, "latest", &digest)
    }
}

fn dockerise(manifest: &mut Value) {
    manifest["mediaType"] = json!("application/vnd.docker.distribution.manifest.v2+json");
    manifest["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
    for layer in manifest["layers"].as_array_mut().into_iter().flatten() {
        layer["mediaType"] = json!("application/vnd.docker.image.rootfs.diff.tar.gzip");
    }
}

fn enlarge(manifest: &mut Value) {
    for layer in manifest["layers"].as_array_mut().into_iter().flatten() {
        layer["size"] = json!(layer["size"].as_u64().unwrap_or_default() + 1);
    }
}

fn inflate(path: &Path) -> Result<Vec<u8>, String> {
    let file = std::fs::File::open(path).map_err(|error| format!("open {}: {error}", path.display()))?;
    let mut tar = Vec::new();
    GzDecoder::new(file).read_to_end(&mut tar).map_err(|error| format!("inflate {}: {error}", path.display()))?;
    Ok(tar)
}

fn zstd_of(tar: &[u8]) -> Result<Vec<u8>, String> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).map_err(|error| format!("start zstd: {error}"))?;
    encoder.write_all(tar).and_then(|()| encoder.finish()).map_err(|error| format!("compress with zstd: {error}"))
}

fn digest_text(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The processor's name as images have it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
