//! Layers as GNU tar writes them, unpacked by a supervisor (shimd, or with `SUBJECT=theirs` Debian's containerd) and by
//! GNU tar itself: every file must be the same in type, mode, owner, time, content, attributes and links. And archives
//! that are broken: refused at once, with nothing of them to be seen.

mod source;
mod tree;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use integration::{Supervised, supervisor};
use serde_json::json;
use sha2::{Digest, Sha256};
use tree::{Tree, look};

const FORMS: [&str; 5] = ["gnu", "oldgnu", "posix", "ustar", "v7"];
const PACKINGS: [&str; 3] = ["", "+gzip", "+zstd"];

#[test]
fn layers_of_every_form_are_unpacked_as_tar_does() {
    supervisor(|s| {
        for (index, form) in FORMS.into_iter().enumerate() {
            let seed = index as u64;
            let directory = s.path(&format!("tmp/source-{form}"));
            source::make(&directory, form, seed, s.is_ours());
            let archive = tar(s, form, &directory);
            let mut expected = extracted(s, &archive, form);
            let packing = PACKINGS[index % PACKINGS.len()];
            let mut seen = unpacked(s, form, &[&archive], packing);
            if !s.is_ours() {
                // containerd leaves the root's time as it is.
                expected.remove(".");
                seen.remove(".");
            }
            assert_same(&format!("{form}{packing}"), &expected, &seen);
        }
    });
}

#[test]
fn whiteouts_hide_what_lies_below() {
    supervisor(|s| {
        let base = source::archive(&[("a", "1"), ("d/x", "2"), ("d/y", "3"), ("o/old", "4"), ("r/old", "5")]);
        let mut whiteouts = vec![(".wh.a", ""), ("d/.wh.x", ""), ("o/.wh..wh..opq", ""), ("o/new", "6"), (".wh.r", "")];
        // A directory that no entry tells of, made anew where it was hidden: containerd refuses it.
        whiteouts.extend(Some(("r/new", "7")).filter(|_| s.is_ours()));
        let top = source::archive(&whiteouts);
        let seen = unpacked(s, "whiteouts", &[&base, &top], "+gzip");
        let files: Vec<&str> = seen.keys().map(String::as_str).collect();
        let expected = [".", "d", "d/y", "o", "o/new", "r", "r/new"];
        assert_eq!(files, expected[..if s.is_ours() { 7 } else { 5 }]);
    });
}

#[test]
fn what_is_broken_is_refused_at_once_and_leaves_nothing() {
    supervisor(|s| {
        let good = source::archive(&[("a", "1"), ("b", "2")]);
        let memory = resident_kib(s);
        for (name, archive, packing) in source::broken(&good) {
            let before = s.text(&["snapshots", "ls"]);
            let start = Instant::now();
            let image = import(s, &name, &[(archive, packing)], &[&good]);
            assert!(image.is_err(), "{name} was taken");
            assert!(start.elapsed() < Duration::from_secs(5), "{name} took {:?}", start.elapsed());
            let committed = |text: &str| text.lines().filter(|line| line.contains("Committed")).count();
            assert_eq!(committed(&s.text(&["snapshots", "ls"])), committed(&before), "{name} is there");
        }
        let grown = resident_kib(s).saturating_sub(memory);
        assert!(!s.is_ours() || grown < 64 << 10, "{grown} KiB");
        assert!(s.ctr(&["images", "ls"]).output().code == 0);
        // The same way takes what is whole.
        assert_eq!(unpacked(s, "good", &[&good], "").len(), 3);
    });
}

fn resident_kib(s: &mut Supervised) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{}/status", s.daemon().pid())).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("the daemon lives")
}

/// `directory` as GNU tar packs it.
fn tar(s: &Supervised, form: &str, directory: &Path) -> Vec<u8> {
    let attributes = if form == "posix" { "--xattrs --xattrs-include='*'" } else { "" };
    let sparse = if matches!(form, "gnu" | "posix") { "--sparse" } else { "" };
    let script =
        format!("tar --format={form} {attributes} {sparse} --numeric-owner -C {} -cf - .", directory.display());
    let out = s.shell(&script).output();
    assert_eq!(out.code, 0, "{}", out.errors());
    out.stdout
}

/// An archive as GNU tar unpacks it.
fn extracted(s: &Supervised, archive: &[u8], name: &str) -> Tree {
    let place = s.path(&format!("tmp/tar-{name}"));
    std::fs::create_dir(&place).expect("a directory");
    let script =
        format!("tar --xattrs --xattrs-include='*' --numeric-owner --same-owner -C {} -xpf -", place.display());
    let out = s.shell(&script).input(archive).output();
    assert_eq!(out.code, 0, "{}", out.errors());
    look(&place)
}

/// Layers as the supervisor unpacks them, seen through a view.
fn unpacked(s: &Supervised, name: &str, layers: &[&Vec<u8>], packing: &'static str) -> Tree {
    let packed: Vec<_> = layers.iter().map(|layer| (pack(layer, packing), packing)).collect();
    let top = import(s, name, &packed, layers).unwrap_or_else(|error| panic!("{name}: {error}"));
    let place = s.path(&format!("tmp/view-{name}"));
    std::fs::create_dir(&place).expect("a mount point");
    let view = format!("view-{name}");
    let mount = s.text(&["snapshots", "view", "-t", &place.display().to_string(), &view, &top]);
    let out = s.shell(&mount).output();
    assert_eq!(out.code, 0, "{}", out.errors());
    let seen = look(&place);
    s.shell(&format!("umount {}", place.display())).output().ok();
    // Nothing refers to it: a collection may have been faster.
    s.run(&["snapshots", "rm", &view]);
    seen
}

fn pack(layer: &[u8], packing: &str) -> Vec<u8> {
    match packing {
        "+gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut encoder, layer).expect("compress in memory");
            encoder.finish().expect("compress in memory")
        }
        "+zstd" => zstd::encode_all(layer, 3).expect("compress in memory"),
        _ => layer.to_vec(),
    }
}

/// Imports an image of `packed` layers, each said to be of a diff id of `plain`, and unpacks it: the topmost snapshot.
fn import(s: &Supervised, name: &str, packed: &[(Vec<u8>, &str)], plain: &[&Vec<u8>]) -> Result<String, String> {
    let layout = s.path(&format!("tmp/layout-{}", name.replace(' ', "-")));
    let archive = write_layout(&layout, packed, plain);
    let out = s.run(&["images", "import", "--base-name", "example.org/unpack", &archive.display().to_string()]);
    if out.code != 0 {
        return Err(out.errors());
    }
    let chain =
        plain.iter().map(|layer| digest(layer)).reduce(|parent, diff| digest(format!("{parent} {diff}").as_bytes()));
    Ok(chain.expect("an image has layers"))
}

fn write_layout(layout: &Path, packed: &[(Vec<u8>, &str)], plain: &[&Vec<u8>]) -> PathBuf {
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("a layout");
    let store = |bytes: &[u8], kind: &str| {
        let name = digest(bytes);
        std::fs::write(blobs.join(&name["sha256:".len()..]), bytes).expect("a blob");
        json!({"digest": name, "size": bytes.len(), "mediaType": kind})
    };
    let layers: Vec<_> = packed
        .iter()
        .map(|(bytes, packing)| store(bytes, &format!("application/vnd.oci.image.layer.v1.tar{packing}")))
        .collect();
    let diff_ids: Vec<_> = plain.iter().map(|layer| digest(layer)).collect();
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = store(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
    let mut manifest = store(manifest.to_string().as_bytes(), kind);
    let tag = layout.file_name().expect("a name").to_string_lossy().into_owned();
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(layout.join("index.json"), index.to_string()).expect("an index");
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a layout");
    let archive = layout.with_extension("tar");
    let mut builder = tar::Builder::new(std::fs::File::create(&archive).expect("an archive"));
    builder.append_dir_all(".", layout).expect("an archive");
    builder.finish().expect("an archive");
    archive
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn assert_same(what: &str, expected: &Tree, seen: &Tree) {
    assert!(expected.len() >= 14, "{what}: tar unpacked only {} files", expected.len());
    let paths: std::collections::BTreeSet<_> = expected.keys().chain(seen.keys()).collect();
    let different: Vec<String> = paths
        .into_iter()
        .filter(|path| expected.get(*path) != seen.get(*path))
        .map(|path| format!("{path}\n  tar  {:?}\n  here {:?}", expected.get(path), seen.get(path)))
        .collect();
    assert!(different.is_empty(), "{what}:\n{}", different.join("\n"));
}
