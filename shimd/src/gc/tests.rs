//! Collections over a real store; no root needed.

use std::path::Path;

use super::*;
use crate::db::record::{Blob, Container, Image, Labels, Lease, Namespace as NamespaceRecord, SnapshotKind};
use crate::diff::provisional::Provisional;
use crate::filter::Filters;
use crate::snapshot::{Request, Snapshots};
use crate::trash::Trash;

struct Rig {
    _directory: tempfile::TempDir,
    store: Arc<Store>,
    content: Arc<Content>,
    snapshots: Snapshotters,
    namespace: Namespace,
}

fn rig() -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let root: &Path = directory.path();
    let store = Arc::new(Store::open(root).unwrap());
    store.write(Durability::Process, |writer| writer.put(b"ns", &NamespaceRecord::default())).unwrap();
    let provisional = Arc::new(Provisional::open(root).unwrap());
    let content = Arc::new(Content::open(root, store.clone(), provisional).unwrap());
    let trash = Arc::new(Trash::open(root.join("trash")).unwrap());
    let snapshots =
        Snapshotters::open(|of| Snapshots::open(of, root, store.clone(), trash.clone(), "boot".to_owned())).unwrap();
    Rig { _directory: directory, store, content, snapshots, namespace: Namespace::parse("ns").unwrap() }
}

fn digest(digit: char) -> String {
    format!("sha256:{}", String::from(digit).repeat(64))
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

impl Rig {
    fn put<R: crate::db::Record>(&self, name: &str, record: &R) {
        self.store.write(Durability::Process, |writer| writer.put(&key(&["ns", name]), record)).unwrap();
    }

    fn blob(&self, digit: char, pairs: &[(&str, &str)]) {
        self.put(&digest(digit), &Blob { labels: labels(pairs), ..Blob::default() });
    }

    fn layer(&self, name: &str, parent: &str) {
        let request = Request {
            namespace: self.namespace.clone(),
            lease: None,
            key: "tmp".to_owned(),
            parent: parent.to_owned(),
            labels: Labels::new(),
        };
        self.snapshots.of(Snapshotter::Overlayfs).make(SnapshotKind::Active, request).unwrap();
        self.snapshots.of(Snapshotter::Overlayfs).commit(&self.namespace, None, "tmp", name, Labels::new()).unwrap();
    }

    fn collect(&self) -> (String, String) {
        collect(&self.store, &self.content, &self.snapshots, Scope::All).unwrap();
        let blobs = self.content.list(&self.namespace, &Filters::default()).unwrap();
        let snapshots = self.snapshots.of(Snapshotter::Overlayfs).list(&self.namespace, &Filters::default()).unwrap();
        let digits = blobs.iter().map(|info| info.digest.chars().last().unwrap()).collect();
        (digits, snapshots.into_iter().map(|info| info.name).collect::<Vec<_>>().join(" "))
    }
}

#[test]
fn what_an_image_reaches_stays() {
    let rig = rig();
    rig.blob(
        'a',
        &[("containerd.io/gc.ref.content.config", &digest('b')), ("containerd.io/gc.ref.content.l.0", &digest('c'))],
    );
    rig.blob('b', &[("containerd.io/gc.ref.snapshot.overlayfs", "top")]);
    rig.blob('c', &[]);
    rig.blob('d', &[]);
    rig.blob('e', &[("containerd.io/gc.root", "now")]);
    rig.layer("base", "");
    rig.layer("top", "base");
    rig.layer("other", "base");
    rig.put("image", &Image { digest: digest('a'), ..Image::default() });
    assert_eq!(rig.collect(), ("abce".to_owned(), "base top".to_owned()));
    rig.store.write(Durability::Process, |writer| writer.remove(Table::Images, &key(&["ns", "image"]))).unwrap();
    assert_eq!(rig.collect(), ("e".to_owned(), String::new()));
}

#[test]
fn containers_and_leases_hold() {
    let rig = rig();
    rig.layer("base", "");
    rig.layer("used", "base");
    rig.layer("free", "base");
    let container = Container {
        snapshotter: Snapshotter::Overlayfs.name().to_owned(),
        snapshot_key: "used".to_owned(),
        ..Container::default()
    };
    rig.put("c", &container);
    rig.blob('a', &[("containerd.io/gc.ref.content", &digest('b'))]);
    rig.blob('b', &[]);
    rig.put("lease", &Lease::default());
    let hold = |lease: &str, what: char| {
        rig.store.write(Durability::Process, |writer| {
            lease::hold(writer, &rig.namespace, Some(lease), lease::CONTENT, &digest(what))
        })
    };
    hold("lease", 'a').unwrap();
    assert_eq!(rig.collect(), ("ab".to_owned(), "base used".to_owned()));
    // A flat lease holds what it lists and nothing that leads on from there.
    rig.put("lease", &Lease { labels: labels(&[("containerd.io/gc.flat", "")]), ..Lease::default() });
    assert_eq!(rig.collect().0, "a");
    rig.put(
        "lease",
        &Lease { labels: labels(&[("containerd.io/gc.expire", "2001-01-01T00:00:00Z")]), ..Lease::default() },
    );
    assert_eq!(rig.collect().0, "");
    assert!(lease::list(&rig.store, &rig.namespace, &Filters::default()).unwrap().is_empty());
}

#[test]
fn a_lease_holds_an_image_that_has_expired() {
    let rig = rig();
    let expired = labels(&[("containerd.io/gc.expire", "2001-01-01T00:00:00Z")]);
    rig.put("image", &Image { digest: digest('a'), labels: expired, ..Image::default() });
    rig.blob('a', &[]);
    lease::create(&rig.store, &rig.namespace, "lease", Labels::new()).unwrap();
    let image = lease::Resource { kind: "images".to_owned(), id: "image".to_owned() };
    lease::add_resource(&rig.store, &rig.namespace, "lease", &image).unwrap();
    assert_eq!(rig.collect().0, "a");
    lease::delete_resource(&rig.store, &rig.namespace, "lease", &image).unwrap();
    assert_eq!(rig.collect().0, "");
}

#[test]
fn back_references() {
    let rig = rig();
    rig.blob('a', &[("containerd.io/gc.bref.container", "c")]);
    rig.blob('b', &[("containerd.io/gc.bref.container", "gone")]);
    rig.put("c", &Container::default());
    assert_eq!(rig.collect().0, "a");
}

#[test]
fn a_young_blob_without_a_lease_is_taken_only_when_all_is_asked_for() {
    let rig = rig();
    let young = Blob { is_unleased: true, created_at: Some(crate::clock::now()), ..Blob::default() };
    rig.put(&digest('a'), &young);
    rig.put(&digest('b'), &Blob { is_unleased: false, ..young.clone() });
    rig.put(&digest('c'), &Blob { created_at: None, ..young });
    assert_eq!(collect(&rig.store, &rig.content, &rig.snapshots, Scope::Settled).unwrap(), 1);
    let left = rig.content.list(&rig.namespace, &Filters::default()).unwrap();
    assert_eq!(left.into_iter().map(|info| info.digest).collect::<Vec<_>>(), [digest('a')]);
    assert_eq!(rig.collect().0, "");
}
