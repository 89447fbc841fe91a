//! Bad input that is too much: too deep, too many layers, no room, a path that is too long, documents that are two
//! things at once. Each row is asked of Debian's containerd, which proves it, and of shimd; those of transfers of a
//! containerd 2.x, as Debian's knows none. (Each write that fails is `crashes`' part.)

mod rig;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use proto_containerd::services::{content, diff, leases, snapshots};
use rig::asked::{Asked, ask, on_both};
use rig::{Lab, SNAPSHOTTER, digest, documents};
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::{Value, json};
use tonic::Code::{FailedPrecondition, InvalidArgument, NotFound, Ok as Fine, ResourceExhausted, Unknown};

on_both! {
    deep_directories
    more_layers_than_overlayfs_takes
    a_full_disk
    something_mounted_in_a_snapshot
}

mod of_containerd_2 {
    #[tokio::test]
    async fn documents_that_cannot_be() {
        let Some(lab) = super::Lab::start_theirs_with_lease().await else { return };
        super::ask(lab, true, async |asked| super::documents_that_cannot_be(asked).await).await;
    }
}

#[tokio::test]
async fn documents_that_cannot_be_of_shimd() {
    ask(Lab::start_with_lease().await, false, async |asked| documents_that_cannot_be(asked).await).await;
}

/// The path of a socket that is longer than `sun_path`, in a directory that is there.
fn long_socket(directory: &Path) -> PathBuf {
    let long = directory.join("d".repeat(110));
    std::fs::create_dir(&long).unwrap();
    long.join("s")
}

/// A shimd that ends with its test, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A small disk that is mounted while this is there.
struct Disk(PathBuf);

impl Disk {
    fn at(path: PathBuf) -> Disk {
        let size = c"size=24m,mode=700";
        rustix::mount::mount("disk", &path, "tmpfs", MountFlags::empty(), Some(size)).unwrap();
        Disk(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Of a test that failed, shimd may have it open still.
        let flags = if std::thread::panicking() { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        let unmounted = rustix::mount::unmount(&self.0, flags);
        assert!(std::thread::panicking() || unmounted.is_ok(), "{unmounted:?}");
    }
}

/// containerd refuses it. Here it is bound by a short way, and who wants to speak with shimd takes one, too.
#[test]
fn shimd_serves_at_an_address_that_is_too_long_for_a_socket() {
    let directory = tempfile::tempdir().unwrap();
    let socket = long_socket(directory.path());
    let short = directory.path().join("short");
    std::os::unix::fs::symlink(socket.parent().unwrap(), &short).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_shimd"));
    command.arg("--root").arg(directory.path().join("lib")).arg("--state").arg(directory.path().join("run"));
    command.arg("--opt").arg(directory.path().join("opt")).arg("--address").arg(&socket);
    let mut shimd = Running(command.stderr(Stdio::null()).spawn().unwrap());
    let began = std::time::Instant::now();
    while std::os::unix::net::UnixStream::connect(short.join("s")).is_err() {
        assert!(began.elapsed() < rig::PATIENCE && shimd.0.try_wait().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&shimd.0), rustix::process::Signal::TERM).unwrap();
    assert!(shimd.0.wait().unwrap().success());
    assert_eq!(std::fs::read_dir(&short).unwrap().count(), 0);
}

#[test]
fn containerd_refuses_an_address_that_is_too_long() {
    if !rig::is_root() || !Path::new("/usr/bin/containerd").exists() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = long_socket(directory.path());
    let config = directory.path().join("config.toml");
    std::fs::write(
        &config,
        "version = 2\ndisabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.internal.v1.opt']\n",
    )
    .unwrap();
    let mut command = Command::new("/usr/bin/containerd");
    command.arg("--config").arg(&config).arg("--root").arg(directory.path().join("lib"));
    command.arg("--state").arg(directory.path().join("run")).arg("--address").arg(&socket);
    let output = command.output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && words.contains(&socket.display().to_string()), "{words}");
}

fn prepare(key: &str, parent: &str) -> snapshots::PrepareSnapshotRequest {
    let (key, parent) = (key.to_owned(), parent.to_owned());
    snapshots::PrepareSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key, parent, ..Default::default() }
}

fn view(key: &str, parent: &str) -> snapshots::ViewSnapshotRequest {
    let (key, parent) = (key.to_owned(), parent.to_owned());
    snapshots::ViewSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key, parent, ..Default::default() }
}

fn commit(key: &str, name: &str) -> snapshots::CommitSnapshotRequest {
    let (key, name) = (key.to_owned(), name.to_owned());
    snapshots::CommitSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key, name, ..Default::default() }
}

/// A directory in a directory in a directory…
fn make_deep(top: &Path, depth: usize) {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let mut deepest = openat(CWD, top, flags, Mode::empty()).unwrap();
    for _ in 0..depth {
        mkdirat(&deepest, "d", Mode::RWXU).unwrap();
        deepest = openat(&deepest, "d", flags, Mode::empty()).unwrap();
    }
}

async fn deep_directories(asked: &mut Asked) {
    let left = asked.lab.prepare("empty", "").await;
    // Paths end at 4,096 bytes.
    for (depth, theirs, ours) in [(1800, Fine, Fine), (2100, Unknown, Unknown)] {
        let key = depth.to_string();
        let right = asked.lab.prepare(&key, "").await;
        make_deep(Path::new(&right[0].source), depth);
        let (left, r#ref) = (left.clone(), format!("diff-{depth}"));
        let request = diff::DiffRequest { left, right, r#ref, ..Default::default() };
        let told = asked.lab.diff().await.diff(request).await;
        asked.expect_either(&format!("{depth} deep"), told, theirs, ours);
        let request = snapshots::UsageRequest { snapshotter: SNAPSHOTTER.to_owned(), key };
        let told = asked.lab.snapshots().await.usage(request).await;
        asked.expect_either(&format!("usage, {depth} deep"), told, theirs, ours);
    }
}

async fn more_layers_than_overlayfs_takes(asked: &mut Asked) {
    let mut client = asked.lab.snapshots().await;
    let mut parent = String::new();
    for number in 0..501 {
        for of in [SNAPSHOTTER, "native"].map(str::to_owned) {
            let request = snapshots::PrepareSnapshotRequest { snapshotter: of.clone(), ..prepare("work", &parent) };
            client.prepare(request).await.unwrap();
            let request = snapshots::CommitSnapshotRequest { snapshotter: of, ..commit("work", &number.to_string()) };
            client.commit(request).await.unwrap();
        }
        parent = number.to_string();
    }
    // containerd gives mounts that cannot be made.
    asked.expect_either("prepare", client.prepare(prepare("a", &parent)).await, Fine, FailedPrecondition);
    asked.expect_either("view", client.view(view("b", &parent)).await, Fine, FailedPrecondition);
    asked.expect("prepare one less", client.prepare(prepare("c", "499")).await, Fine);
    let request = snapshots::PrepareSnapshotRequest { snapshotter: "native".to_owned(), ..prepare("d", &parent) };
    asked.expect("prepare a copy", client.prepare(request).await, Fine);
}

async fn a_full_disk(asked: &mut Asked) {
    if !rig::is_root() {
        return;
    }
    let layer = rig::layer(&[("file", &[7; 4 << 20])]);
    asked.lab.stop();
    let disk = Disk::at(asked.lab.path("lib"));
    asked.lab.up().await;
    let lease = leases::CreateRequest { id: "lab".to_owned(), labels: HashMap::new() };
    asked.lab.leases().await.create(lease).await.unwrap();
    asked.lab.write("layer", &rig::gzip(&layer), HashMap::new()).await.unwrap();
    let mounts = asked.lab.prepare("work", "").await;
    let left = asked.lab.prepare("empty", "").await;
    let filler = disk.0.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    drop(file);
    let big = rig::registry::noise(1, 1 << 20);
    let written = asked.lab.write("big", &big, HashMap::new()).await;
    asked.expect_either("write", written, Unknown, ResourceExhausted);
    let blob = rig::gzip(&layer);
    let applied = asked.lab.apply(&digest(&blob), blob.len(), mounts.clone()).await;
    asked.expect_either("apply", applied, Unknown, ResourceExhausted);
    let right = mounts.clone();
    let request = diff::DiffRequest { left, right, r#ref: "diff".to_owned(), ..Default::default() };
    let packed = asked.lab.diff().await.diff(request).await;
    asked.expect_either("diff", packed, Unknown, ResourceExhausted);
    std::fs::remove_file(filler).unwrap();
    let info = content::InfoRequest { digest: digest(&big) };
    asked.expect("nothing half-made is seen", asked.lab.content().await.info(info).await, NotFound);
    asked.expect("write with room", asked.lab.write("big", &big, HashMap::new()).await, Fine);
    asked.expect("apply with room", asked.lab.apply(&digest(&blob), blob.len(), mounts).await, Fine);
    asked.lab.stop();
    drop(disk);
}

async fn something_mounted_in_a_snapshot(asked: &mut Asked) {
    if !rig::is_root() {
        return;
    }
    let left = asked.lab.prepare("empty", "").await;
    let right = asked.lab.prepare("work", "").await;
    let inside = Path::new(&right[0].source).join("inside");
    std::fs::create_dir(&inside).unwrap();
    let disk = Disk::at(inside);
    let noise = rig::registry::noise(1, 1 << 20);
    std::fs::write(disk.0.join("file"), &noise).unwrap();
    let request = diff::DiffRequest { left, right, r#ref: "diff".to_owned(), ..Default::default() };
    let told = asked.lab.diff().await.diff(request).await;
    if let Some(layer) = told.as_ref().ok().and_then(|told| told.get_ref().diff.as_ref()) {
        assert!(layer.size as usize > noise.len(), "it is part of the layer: {}", layer.size);
    }
    // containerd cannot take off its own mount of the snapshot, as the other has come along, and leaves both.
    asked.expect_either("diff", told, Unknown, Fine);
    drop(disk);
    asked.lab.stop();
    asked.lab.sweep();
}

async fn documents_that_cannot_be(asked: &mut Asked) {
    let layer = rig::layer(&[("f", b"data")]);
    let layers: Vec<&[u8]> = vec![&layer; 3000];
    let one = [layer.as_slice()];
    let config = documents::config(&one);
    let good = documents::manifest(&config, &one);
    let index = |manifest: &Value| {
        let manifest = documents::descriptor("manifest.v1+json", manifest.to_string().as_bytes());
        json!({ "schemaVersion": 2, "manifests": [manifest] })
    };
    let with = |document: &Value, more: &Value| {
        let mut document = document.clone();
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        document
    };
    let both = with(&good, &index(&good));
    let many = (documents::config(&layers), documents::manifest(&documents::config(&layers), &layers));
    let deep = &layers[..501];
    let deep = (documents::config(deep), documents::manifest(&documents::config(deep), deep));
    let more_layers = documents::manifest(&config, &layers[..2]);
    for document in [&config, &good, &both, &many.0, &many.1, &deep.0, &deep.1, &more_layers] {
        asked.lab.store(&[document.to_string().as_bytes()]).await;
    }
    asked.lab.store(&[&layer]).await;
    for (what, index, to_unpack, theirs, ours) in [
        ("a manifest that is an index, too", index(&both), false, Unknown, InvalidArgument),
        ("an index that is a manifest, too", both.clone(), false, Fine, InvalidArgument),
        ("3,000 layers", index(&many.1), false, Fine, Fine),
        // containerd makes a snapshot of which there is no mount.
        ("more layers than overlayfs takes", index(&deep.1), true, Fine, FailedPrecondition),
        ("more layers than the config has", index(&more_layers), true, Unknown, InvalidArgument),
        ("a manifest that is not there", index(&json!({ "a": 1 })), false, NotFound, NotFound),
        ("all right", index(&good), true, Fine, Fine),
    ] {
        asked.expect_either(what, asked.lab.import(&index, to_unpack).await, theirs, ours);
    }
}
