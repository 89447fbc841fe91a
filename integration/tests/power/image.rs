//! Images of which each file is known: what a registry serves, and what must then be seen in their snapshots.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::json;
use sha2::{Digest, Sha256};

/// Paths, and what is there in words.
pub(crate) type Tree = BTreeMap<String, String>;

/// One layer: what it makes of a tree.
pub(crate) struct Layer {
    /// A path and its content; none where a whiteout stands.
    files: Vec<(String, Option<Vec<u8>>)>,
    is_zstd: bool,
}

impl Layer {
    /// `count` small files and one larger one below `directory`, different for each `seed`.
    pub(crate) fn new(directory: &str, seed: u64, count: usize) -> Layer {
        let mut random = crate::cut::Random(seed);
        let mut bytes = |length: usize| -> Vec<u8> { (0..length).map(|_| random.next() as u8).collect() };
        let mut files = vec![(format!("{directory}/large"), Some(bytes(300_000)))];
        files.extend((0..count).map(|number| (format!("{directory}/f{number}"), Some(bytes(100 + number * 150)))));
        Layer { files, is_zstd: false }
    }

    pub(crate) fn without(mut self, path: &str) -> Layer {
        self.files.push((path.to_owned(), None));
        self
    }

    pub(crate) fn zstd(self) -> Layer {
        Layer { is_zstd: true, ..self }
    }

    fn apply(&self, tree: &mut Tree) {
        for (path, content) in &self.files {
            match content {
                Some(content) => {
                    let directory = path.split('/').next().expect("a first part").to_owned();
                    tree.insert(directory, "directory 755".to_owned());
                    tree.insert(path.clone(), format!("file 640 {}", digest(content)));
                }
                None => drop(tree.remove(path)),
            }
        }
    }

    fn archive(&self) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o640);
            header.set_mtime(1_600_000_000);
            let (path, content) = match content {
                Some(content) => (path.clone(), &content[..]),
                None => (path.replace('/', "/.wh."), &[][..]),
            };
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, path, content).expect("an archive in memory");
        }
        builder.into_inner().expect("an archive in memory")
    }

    fn compress(&self, plain: &[u8]) -> (&'static str, Vec<u8>) {
        if self.is_zstd {
            return ("zstd", zstd::encode_all(plain, 3).expect("compress in memory"));
        }
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).expect("compress in memory");
        ("gzip", encoder.finish().expect("compress in memory"))
    }
}

/// Writes an image as an OCI layout, and gives for each of its chain ids the tree that belongs to it.
pub(crate) fn write_layout(layers: &[&Layer], layout: &Path) -> Vec<(String, Tree)> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a layout");
    let store = |bytes: &[u8]| {
        let name = digest(bytes);
        fs::write(blobs.join(&name["sha256:".len()..]), bytes).expect("a blob");
        json!({"digest": name, "size": bytes.len()})
    };
    let (mut diff_ids, mut descriptors, mut chain) = (Vec::new(), Vec::new(), Vec::<(String, Tree)>::new());
    for layer in layers {
        let plain = layer.archive();
        let (form, packed) = layer.compress(&plain);
        let mut descriptor = store(&packed);
        descriptor["mediaType"] = json!(format!("application/vnd.oci.image.layer.v1.tar+{form}"));
        descriptors.push(descriptor);
        let diff_id = digest(&plain);
        let (chain_id, mut tree) = match chain.last() {
            Some((parent, tree)) => (digest(format!("{parent} {diff_id}").as_bytes()), tree.clone()),
            None => (diff_id.clone(), Tree::new()),
        };
        layer.apply(&mut tree);
        chain.push((chain_id, tree));
        diff_ids.push(diff_id);
    }
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/none"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let mut config = store(config.to_string().as_bytes());
    config["mediaType"] = json!("application/vnd.oci.image.config.v1+json");
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": descriptors});
    let mut manifest = store(manifest.to_string().as_bytes());
    manifest["mediaType"] = json!(kind);
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).expect("an index");
    chain
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The tree below a directory.
pub(crate) fn look(directory: &Path) -> std::io::Result<Tree> {
    let mut tree = Tree::new();
    let mut left = vec![directory.to_path_buf()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(&next)? {
            let path = entry?.path();
            let data = fs::symlink_metadata(&path)?;
            let mode = data.permissions().mode() & 0o7777;
            let what = if data.is_dir() {
                left.push(path.clone());
                format!("directory {mode:o}")
            } else if data.is_file() {
                format!("file {mode:o} {}", digest(&fs::read(&path)?))
            } else if data.file_type().is_char_device() {
                format!("device {}", data.rdev())
            } else {
                format!("{:?}", data.file_type())
            };
            let name = path.strip_prefix(directory).expect("it is below").display().to_string();
            tree.insert(name, what);
        }
    }
    Ok(tree)
}

/// The first differences between two trees, in words; none where there are none.
pub(crate) fn difference(expected: &Tree, seen: &Tree) -> Option<String> {
    let missing = expected.iter().filter(|(path, what)| seen.get(*path) != Some(what));
    let mut words: Vec<String> = missing
        .map(|(path, what)| format!("{path}: {:?} instead of {what:?}", seen.get(path).map_or("nothing", |seen| seen)))
        .collect();
    words.extend(seen.keys().filter(|path| !expected.contains_key(*path)).map(|path| format!("{path}: too much")));
    let count = words.len();
    words.truncate(3);
    (count > 0).then(|| format!("{count} differences: {}", words.join("; ")))
}
