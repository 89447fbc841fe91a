//! Seam 2: `ctr` on what a supervisor keeps. Each test runs on containerd, which proves it, and on shimd.

use std::fs;

use integration::{Daemonship, Supervised, supervised_by, wait};
use serde_json::Value;
use sha2::{Digest, Sha256};

macro_rules! on_both {
    ($($name:ident)*) => {
        mod of_containerd { $(#[test] fn $name() { super::supervised_by(super::Daemonship::Containerd, super::$name) })* }
        mod of_shimd { $(#[test] fn $name() { super::supervised_by(super::Daemonship::Shimd, super::$name) })* }
    };
}

on_both! {
    images_are_tagged_checked_exported_and_removed
    an_image_is_mounted
    blobs_are_read_written_labelled_and_removed
    snapshots_are_prepared_committed_and_removed
    leases_hold_what_nothing_else_does
    namespaces_have_labels_and_end_empty
    containers_tell_what_they_were_made_from
    the_daemon_tells_of_itself
}

/// The first words of a table's rows.
fn column(text: &str) -> Vec<&str> {
    text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"))
}

/// The digest of the image's target.
fn target(s: &Supervised) -> String {
    let text = s.text(&["images", "ls"]);
    let digest = text.split_whitespace().find(|word| word.starts_with("sha256:"));
    digest.unwrap_or_else(|| panic!("no digest in {text}")).to_owned()
}

/// Every blob's digest.
fn blobs(s: &Supervised) -> Vec<String> {
    s.text(&["content", "ls", "-q"]).lines().map(str::to_owned).collect()
}

fn images_are_tagged_checked_exported_and_removed(s: &mut Supervised) {
    s.run(&["images", "tag", s.busybox(), "example.org/other:2"]).ok();
    let twin = s.run(&["images", "tag", s.busybox(), "example.org/other:2"]);
    assert!(twin.code != 0 && twin.errors().contains("already exists"), "{}", twin.errors());
    assert_eq!(s.text(&["images", "ls", "-q"]), "example.org/busybox:latest\nexample.org/other:2");
    assert_eq!(s.text(&["images", "ls", "-q", "name==example.org/other:2"]), "example.org/other:2");
    s.run(&["images", "label", "example.org/other:2", "colour=blue"]).ok();
    assert_eq!(s.text(&["images", "ls", "-q", "labels.colour==blue"]), "example.org/other:2");
    let text = s.text(&["images", "check"]);
    assert!(text.contains("complete (3/3)") || text.contains("complete (2/2)"), "{text}");
    let archive = s.path("tmp/exported.tar").display().to_string();
    s.run(&["images", "export", &archive, "example.org/other:2"]).ok();
    let kept = target(s);
    s.run(&["images", "rm", "--sync", s.busybox()]).ok();
    assert!(blobs(s).contains(&kept) && blobs(s).len() >= 3, "{:?}", blobs(s));
    s.run(&["images", "rm", "--sync", "example.org/other:2"]).ok();
    assert_eq!(blobs(s), Vec::<String>::new());
    assert_eq!(column(&s.text(&["snapshots", "ls"])), Vec::<&str>::new());
    s.run(&["images", "import", &archive]).ok();
    assert_eq!(s.text(&["images", "ls", "-q"]), "example.org/other:2");
    s.run(&["run", "--rm", "example.org/other:2", "again", "true"]).ok();
    let missing = s.run(&["images", "tag", "example.org/nowhere:1", "example.org/x:1"]);
    assert!(missing.code != 0 && missing.errors().contains("not found"), "{}", missing.errors());
}

fn an_image_is_mounted(s: &mut Supervised) {
    let place = s.path("tmp/image");
    fs::create_dir(&place).expect("a directory");
    let place = place.display().to_string();
    s.run(&["images", "mount", s.busybox(), &place]).ok();
    assert!(fs::exists(format!("{place}/bin/sh")).expect("the mount"));
    assert!(fs::write(format!("{place}/new"), "").is_err());
    s.run(&["images", "unmount", "--rm", &place]).ok();
    assert!(!fs::exists(format!("{place}/bin")).expect("the directory"));
}

fn blobs_are_read_written_labelled_and_removed(s: &mut Supervised) {
    let digest = target(s);
    let out = s.run(&["content", "get", &digest]).ok();
    let hashed = Sha256::digest(&out.stdout).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(format!("sha256:{hashed}"), digest);
    assert!(json(&out.text())["schemaVersion"] == 2);

    let data = (0..100_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
    let hashed = Sha256::digest(&data).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let own = format!("sha256:{hashed}");
    let wrong = format!("sha256:{}", "0".repeat(64));
    let size = data.len().to_string();
    let out = s.ctr(&["content", "ingest", "--expected-digest", &wrong, "wrong"]).input(&data).output();
    assert!(out.code != 0 && out.errors().contains(&wrong), "{}", out.errors());
    assert!(!blobs(s).contains(&own));
    let ingest = ["content", "ingest", "--expected-digest", &own, "--expected-size", &size, "right"];
    // Nothing holds the blob before it is labelled: a collection may come in between.
    wait::until_true("the blob is there and labelled", || {
        s.ctr(&ingest).input(&data).output();
        s.run(&["content", "label", &own, "containerd.io/gc.root=now"]).code == 0
    });
    assert!(blobs(s).contains(&own));
    assert!(s.run(&["content", "get", &own]).ok().stdout == data);
    let text = s.text(&["content", "ls", "labels.\"containerd.io/gc.root\"==now"]);
    assert_eq!(column(&text), [own.as_str()]);
    s.run(&["content", "rm", &own]).ok();
    assert!(!blobs(s).contains(&own));
    let out = s.run(&["content", "get", &own]);
    assert!(out.code != 0 && out.errors().contains("not found"), "{}", out.errors());
}

fn snapshots_are_prepared_committed_and_removed(s: &mut Supervised) {
    let text = s.text(&["snapshots", "ls"]);
    let chain = *column(&text).first().unwrap_or_else(|| panic!("no snapshot in {text}"));
    assert_eq!(json(&s.text(&["snapshots", "info", chain]))["Kind"], "Committed");
    let root = s.path("tmp/root");
    fs::create_dir(&root).expect("a directory");
    let root = root.display().to_string();

    let commands = s.text(&["snapshots", "prepare", "--target", &root, "work", chain]);
    mount(s, &commands);
    assert!(fs::exists(format!("{root}/bin/sh")).expect("the mount"));
    fs::write(format!("{root}/mine"), "kept").expect("write into the snapshot");
    assert!(s.text(&["snapshots", "mounts", &root, "work"]).contains("overlay"));
    assert_eq!(json(&s.text(&["snapshots", "info", "work"]))["Parent"], chain);
    s.shell(&format!("umount {root}")).output().ok();
    let twin = s.run(&["snapshots", "prepare", "work", chain]);
    assert!(twin.code != 0 && twin.errors().contains("already exists"), "{}", twin.errors());
    s.run(&["snapshots", "commit", "layer", "work"]).ok();
    assert!(s.text(&["snapshots", "usage", "layer"]).contains("KiB"), "{}", s.text(&["snapshots", "usage", "layer"]));

    let commands = s.text(&["snapshots", "view", "--target", &root, "look", "layer"]);
    mount(s, &commands);
    assert_eq!(fs::read_to_string(format!("{root}/mine")).expect("the file"), "kept");
    assert!(fs::write(format!("{root}/new"), "").is_err());
    s.shell(&format!("umount {root}")).output().ok();
    // Nothing roots a view that ctr makes: a collection may have been faster.
    s.run(&["snapshots", "rm", "look"]);
    s.run(&["snapshots", "prepare", "top", "layer"]).ok();
    let tree = s.text(&["snapshots", "tree"]);
    let depth = |name: &str| tree.lines().find(|line| line.contains(name)).map(|line| line.find(name));
    assert!(depth(chain) < depth("layer") && depth("layer") < depth("top"), "{tree}");
    let held = s.run(&["snapshots", "rm", "layer"]);
    assert_ne!(held.code, 0, "a snapshot with a child was removed");
    s.run(&["snapshots", "rm", "top"]).ok();
    s.run(&["snapshots", "rm", "layer"]).ok();
    assert!(!column(&s.text(&["snapshots", "ls"])).contains(&"layer"));
}

/// Runs the mount commands that `ctr snapshots` printed.
fn mount(s: &Supervised, commands: &str) {
    assert!(commands.starts_with("mount -t "), "{commands}");
    s.shell(commands).output().ok();
}

fn leases_hold_what_nothing_else_does(s: &mut Supervised) {
    s.run(&["leases", "create", "--id", "held-_by", "purpose=test"]).ok();
    assert_eq!(column(&s.text(&["leases", "ls"])), ["held-_by"]);
    let twin = s.run(&["leases", "create", "--id", "held-_by"]);
    assert!(twin.code != 0 && twin.errors().contains("already exists"), "{}", twin.errors());
    let named = s.text(&["leases", "create"]);
    assert!(s.text(&["leases", "ls", "-q"]).lines().any(|line| line == named), "{named:?}");
    s.run(&["leases", "rm", &named]).ok();
    s.run(&["leases", "rm", "--sync", "held-_by"]).ok();
    assert_eq!(s.text(&["leases", "ls", "-q"]), "");
    assert_ne!(s.run(&["leases", "rm", "held-_by"]).code, 0);
    assert!(!blobs(s).is_empty(), "the image's blobs were collected");
}

fn namespaces_have_labels_and_end_empty(s: &mut Supervised) {
    let name = format!("{}-spare", s.namespace());
    s.run(&["namespaces", "create", &name, "colour=blue"]).ok();
    let text = s.text(&["namespaces", "ls"]);
    assert!(text.lines().any(|line| line.starts_with(&name) && line.contains("colour=blue")), "{text}");
    s.run(&["namespaces", "label", &name, "colour=red"]).ok();
    assert!(s.text(&["namespaces", "ls"]).contains("colour=red"));
    assert_ne!(s.run(&["namespaces", "create", &name]).code, 0);
    let full = s.run(&["namespaces", "rm", s.namespace()]);
    assert!(full.code != 0 && full.errors().contains("failed precondition"), "{}", full.errors());
    s.run(&["namespaces", "rm", &name]).ok();
    assert!(!s.text(&["namespaces", "ls", "-q"]).lines().any(|line| line == name));
    for bad in ["a/b", "-a", "a..b"] {
        assert_ne!(s.run(&["namespaces", "create", "--", bad]).code, 0, "{bad}");
    }
}

fn containers_tell_what_they_were_made_from(s: &mut Supervised) {
    s.run(&["containers", "create", "--label", "colour=blue", "--env", "A=1", s.busybox(), "made", "sleep", "1"]).ok();
    let info = json(&s.text(&["containers", "info", "made"]));
    let told = (&info["ID"], &info["Image"], &info["SnapshotKey"], &info["Runtime"]["Name"], &info["Labels"]["colour"]);
    assert_eq!(
        told,
        (&"made".into(), &s.busybox().into(), &"made".into(), &"io.containerd.runc.v2".into(), &"blue".into())
    );
    assert_eq!(info["Spec"]["process"]["args"], serde_json::json!(["sleep", "1"]));
    assert!(info["CreatedAt"].as_str().is_some_and(|time| time.starts_with("20")), "{info}");
    assert_eq!(s.text(&["containers", "ls", "-q", "labels.colour==blue"]), "made");
    assert_eq!(s.text(&["containers", "ls", "-q", "labels.colour==red"]), "");
    s.run(&["containers", "label", "made", "colour=red"]).ok();
    assert_eq!(s.text(&["containers", "ls", "-q", "labels.colour==red"]), "made");
    assert!(column(&s.text(&["snapshots", "ls"])).contains(&"made"));
    s.run(&["containers", "delete", "made"]).ok();
    assert_eq!(s.text(&["containers", "ls", "-q"]), "");
    wait::until_true("its snapshot goes", || !column(&s.text(&["snapshots", "ls"])).contains(&"made"));
    let gone = s.run(&["containers", "info", "made"]);
    assert!(gone.code != 0 && gone.errors().contains("not found"), "{}", gone.errors());
}

fn the_daemon_tells_of_itself(s: &mut Supervised) {
    let text = s.text(&["version"]);
    assert!(text.contains("Server:") && text.contains("UUID:"), "{text}");
    let text = s.text(&["plugins", "ls"]);
    let overlay = text.lines().find(|line| line.contains("overlayfs")).unwrap_or_else(|| panic!("{text}"));
    assert!(overlay.contains("io.containerd.snapshotter.v1") && overlay.contains("ok"), "{overlay}");
}
