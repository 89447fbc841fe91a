//! From blobs to snapshots: layers applied afterwards, and layers unpacked while they arrive.

mod rig;

use std::collections::HashMap;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use proto_containerd::services::content::content_client::ContentClient;
use proto_containerd::services::content::{DeleteContentRequest, WriteAction, WriteContentRequest};
use rig::{Lab, digest, gzip, layer};
use tonic::Code;

const DIFF_ID_LABEL: &str = "strata.io/unpack.diff-id";

fn option(mounts: &[proto_containerd::types::Mount], name: &str) -> PathBuf {
    let found = mounts[0].options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='));
    PathBuf::from(found.unwrap())
}

fn diff_id_label(plain: &[u8]) -> HashMap<String, String> {
    HashMap::from([(DIFF_ID_LABEL.to_owned(), digest(plain))])
}

fn provisional(lab: &Lab) -> usize {
    std::fs::read_dir(lab.path("lib/provisional")).unwrap().count()
}

#[tokio::test]
async fn layers_stack_up() {
    if !rig::is_root() {
        return;
    }
    let lab = Lab::start_with_lease().await;
    let (base, top) = (layer(&[("a", b"1"), ("d/b", b"2")]), layer(&[("d/.wh.b", b""), ("d/c", b"3")]));
    for (name, plain, parent) in [("base", &base, ""), ("top", &top, "base")] {
        let blob = gzip(plain);
        lab.write(name, &blob, HashMap::new()).await.unwrap();
        let mounts = lab.prepare("tmp", parent).await;
        assert_eq!(lab.apply(&digest(&blob), blob.len(), mounts).await.unwrap(), digest(plain));
        lab.commit("tmp", name).await;
    }
    let mounts = lab.prepare("c", "top").await;
    let lower = option(&mounts, "lowerdir").display().to_string();
    let (top, base) = lower.split_once(':').unwrap();
    assert!(std::fs::symlink_metadata(Path::new(top).join("d/b")).unwrap().file_type().is_char_device());
    assert_eq!(std::fs::read_to_string(Path::new(top).join("d/c")).unwrap(), "3");
    assert_eq!(std::fs::read_to_string(Path::new(base).join("d/b")).unwrap(), "2");
}

#[tokio::test]
async fn a_layer_is_unpacked_as_it_arrives() {
    if !rig::is_root() {
        return;
    }
    let lab = Lab::start_with_lease().await;
    let big: Vec<u8> = (0..5_000_000u32).map(|n| (n * 7 % 255) as u8).collect();
    let plain = layer(&[("big", &big), ("d/e/f", b"deep")]);
    let blob = gzip(&plain);
    lab.write("r", &blob, diff_id_label(&plain)).await.unwrap();
    rig::eventually("it is unpacked", || provisional(&lab) == 1).await;
    let mounts = lab.prepare("tmp", "").await;
    let root = PathBuf::from(&mounts[0].source);
    assert_eq!(lab.apply(&digest(&blob), blob.len(), mounts).await.unwrap(), digest(&plain));
    assert!(std::fs::read(root.join("big")).unwrap() == big);
    assert_eq!(std::fs::read_to_string(root.join("d/e/f")).unwrap(), "deep");
    rig::eventually("the provisional directory goes", || provisional(&lab) == 0).await;
    // The second time there is nothing to take, and the blob is applied as any.
    let mounts = lab.prepare("tmp2", "").await;
    let root = PathBuf::from(&mounts[0].source);
    lab.apply(&digest(&blob), blob.len(), mounts).await.unwrap();
    assert!(std::fs::read(root.join("big")).unwrap() == big);
}

#[tokio::test]
async fn a_layer_that_a_client_pulls_is_unpacked_as_it_arrives() {
    if !rig::is_root() {
        return;
    }
    let lab = Lab::start_with_lease().await;
    let plain = layer(&[("d/f", b"pulled")]);
    let blob = gzip(&plain);
    lab.write(&format!("layer-{}", digest(&blob)), &blob, HashMap::new()).await.unwrap();
    rig::eventually("it is unpacked", || provisional(&lab) == 1).await;
    let mounts = lab.prepare("tmp", "").await;
    let root = PathBuf::from(&mounts[0].source);
    assert_eq!(lab.apply(&digest(&blob), blob.len(), mounts).await.unwrap(), digest(&plain));
    assert_eq!(std::fs::read_to_string(root.join("d/f")).unwrap(), "pulled");
    // It was taken over, not unpacked once more.
    rig::eventually("the provisional directory goes", || provisional(&lab) == 0).await;
}

#[tokio::test]
async fn a_layer_that_nobody_applies_goes_with_its_blob() {
    if !rig::is_root() {
        return;
    }
    let lab = Lab::start_with_lease().await;
    let blob = gzip(&layer(&[("f", b"fetched")]));
    lab.write(&format!("layer-{}", digest(&blob)), &blob, HashMap::new()).await.unwrap();
    rig::eventually("it is unpacked", || provisional(&lab) == 1).await;
    let request = DeleteContentRequest { digest: digest(&blob) };
    lab.content().await.delete(request).await.unwrap();
    rig::eventually("the provisional directory goes", || provisional(&lab) == 0).await;
}

#[tokio::test]
async fn for_whole_directories_nothing_is_unpacked_as_it_arrives() {
    if !rig::is_root() {
        return;
    }
    let lab = Lab::start_with_lease().await;
    let blobs = ["1", "2", "3", "4"].map(|name| gzip(&layer(&[(name, b"data")])));
    let fetch = async |blob: &[u8]| {
        lab.write(&format!("layer-{}", digest(blob)), blob, HashMap::new()).await.unwrap();
    };
    let apply = async |blob: &[u8], mounts| lab.apply(&digest(blob), blob.len(), mounts).await.unwrap();
    let mounts = lab.prepare("tmp", "").await;
    for blob in &blobs[..2] {
        fetch(blob).await;
        rig::eventually("it is unpacked", || provisional(&lab) == 1).await;
        // The second goes into a directory that has files, as one does that is a copy of its parent.
        apply(blob, mounts.clone()).await;
        rig::eventually("it is taken, or goes", || provisional(&lab) == 0).await;
    }
    fetch(&blobs[2]).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(provisional(&lab), 0);
    lab.commit("tmp", "base").await;
    apply(&blobs[2], lab.prepare("tmp", "base").await).await;
    fetch(&blobs[3]).await;
    rig::eventually("it is unpacked again", || provisional(&lab) == 1).await;
}

#[tokio::test]
async fn what_is_there_already_is_not_taken_for_an_empty_layer() {
    if !rig::is_root() {
        return;
    }
    let lab = Lab::start_with_lease().await;
    let plain = layer(&[("f", b"shared")]);
    let blob = gzip(&plain);
    lab.write("r", &blob, HashMap::new()).await.unwrap();
    let opening = WriteContentRequest {
        r#ref: format!("layer-{}", digest(&blob)),
        total: blob.len() as i64,
        expected: digest(&blob),
        ..Default::default()
    };
    let stat = WriteContentRequest { action: WriteAction::Stat.into(), ..opening.clone() };
    let offset = opening.total;
    let commit = WriteContentRequest { action: WriteAction::Commit.into(), offset, ..opening };
    // Another namespace names what is there, and sends nothing.
    let mut content = ContentClient::new(lab.connect_as("other", None).await);
    let mut answers = content.write(tokio_stream::iter([stat, commit])).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
    let mounts = lab.prepare("tmp", "").await;
    let root = PathBuf::from(&mounts[0].source);
    assert_eq!(lab.apply(&digest(&blob), blob.len(), mounts).await.unwrap(), digest(&plain));
    assert_eq!(std::fs::read_to_string(root.join("f")).unwrap(), "shared");
}

#[tokio::test]
async fn directories_that_no_entry_tells_of_look_like_those_below() {
    if !rig::is_root() {
        return;
    }
    let lab = Lab::start_with_lease().await;
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o1711);
    header.set_uid(42);
    header.set_size(0);
    builder.append_data(&mut header, "d", std::io::empty()).unwrap();
    let base = builder.into_inner().unwrap();
    lab.write("base", &base, HashMap::new()).await.unwrap();
    let mounts = lab.prepare("tmp", "").await;
    lab.apply(&digest(&base), base.len(), mounts).await.unwrap();
    lab.commit("tmp", "base").await;
    let top = layer(&[("d/f", b"x")]);
    for labels in [diff_id_label(&top), HashMap::new()] {
        let blob = if labels.is_empty() { gzip(&top) } else { top.clone() };
        lab.write("top", &blob, labels).await.unwrap();
        let key = digest(&blob);
        let mounts = lab.prepare(&key, "base").await;
        let upper = option(&mounts, "upperdir");
        lab.apply(&digest(&blob), blob.len(), mounts).await.unwrap();
        let made = std::fs::metadata(upper.join("d")).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!((made.mode() & 0o7777, made.uid()), (0o1711, 42));
    }
}

#[tokio::test]
async fn a_wrong_diff_id_leaves_nothing_and_hinders_nothing() {
    if !rig::is_root() {
        return;
    }
    let lab = Lab::start_with_lease().await;
    let plain = layer(&[("f", b"x")]);
    let blob = gzip(&plain);
    lab.write("r", &blob, diff_id_label(b"something else")).await.unwrap();
    rig::eventually("the wrong tree goes", || provisional(&lab) == 0).await;
    let mounts = lab.prepare("tmp", "").await;
    assert_eq!(lab.apply(&digest(&blob), blob.len(), mounts).await.unwrap(), digest(&plain));
}

#[tokio::test]
async fn what_is_no_layer_is_refused() {
    if !rig::is_root() {
        return;
    }
    let lab = Lab::start_with_lease().await;
    let mut truncated = gzip(&layer(&[("f", &[1; 100_000])]));
    truncated.truncate(truncated.len() / 2);
    let escaping = {
        let mut bytes = layer(&[("aa/outside", b"x")]);
        bytes[..2].copy_from_slice(b"..");
        let sum: u32 = bytes[..512]
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes
    };
    for (name, blob) in [("truncated", truncated), ("text", b"this is no archive".repeat(100)), ("escaping", escaping)]
    {
        lab.write(name, &blob, diff_id_label(b"x")).await.unwrap();
        let mounts = lab.prepare(name, "").await;
        let error = lab.apply(&digest(&blob), blob.len(), mounts).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{name}: {error}");
    }
    assert!(!lab.path("lib/snapshots/outside").exists());
    rig::eventually("nothing is left", || provisional(&lab) == 0).await;
}

#[tokio::test]
async fn nothing_provisional_survives_a_kill() {
    if !rig::is_root() {
        return;
    }
    let mut lab = Lab::start_with_lease().await;
    let plain = layer(&[("f", b"x")]);
    lab.write("r", &gzip(&plain), diff_id_label(&plain)).await.unwrap();
    lab.prepare("active", "").await;
    lab.kill();
    std::fs::create_dir_all(lab.path("lib/snapshots/77/fs")).unwrap();
    lab.up().await;
    assert_eq!(provisional(&lab), 0);
    rig::eventually("what no record tells of goes", || !lab.path("lib/snapshots/77").exists()).await;
    assert_eq!(std::fs::read_dir(lab.path("lib/snapshots")).unwrap().count(), 1);
}

#[tokio::test]
async fn nobody_else_can_look() {
    if !rig::is_root() {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::start_with_lease().await;
    for path in ["lib", "run/shimd", "lib/content", "lib/snapshots", "lib/provisional", "lib/trash"] {
        assert_eq!(std::fs::metadata(lab.path(path)).unwrap().permissions().mode() & 0o7777, 0o700, "{path}");
    }
    for path in ["run/shimd.sock", "run/shimd.sock.ttrpc"] {
        assert_eq!(std::fs::metadata(lab.path(path)).unwrap().permissions().mode() & 0o777, 0o600, "{path}");
    }
}
