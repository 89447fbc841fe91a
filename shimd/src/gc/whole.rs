//! What is on disk equals what is reachable: random histories over a real store with real files, and a model that knows
//! what must be left.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::content::{Commit, Opening, Writer as ContentWriter};
use crate::db::record::{Container, Image, Labels, Namespace as NamespaceRecord, SnapshotKind};
use crate::diff::provisional::Provisional;
use crate::lease::Resource;
use crate::snapshot::{Request, Snapshots};
use crate::trash::Trash;

/// Names of each kind in a history.
const NAMES: u8 = 6;
/// From here on the numbers of snapshots are those of committed ones.
const COMMITTED: u8 = 100;

/// What may happen, to things by their numbers.
#[derive(Clone, Debug)]
enum Step {
    /// A blob whose labels refer to another blob, a snapshot, or make it a root; perhaps under a lease.
    Write {
        blob: u8,
        refers: Option<u8>,
        stands_for: Option<u8>,
        is_root: bool,
        lease: Option<u8>,
    },
    /// Bytes that are never committed.
    Begin {
        ingest: u8,
        lease: Option<u8>,
    },
    Abort {
        ingest: u8,
    },
    Prepare {
        snapshot: u8,
        parent: Option<u8>,
        is_root: bool,
        lease: Option<u8>,
    },
    Commit {
        snapshot: u8,
    },
    RemoveSnapshot {
        snapshot: u8,
    },
    Name {
        image: u8,
        blob: u8,
    },
    Unname {
        image: u8,
    },
    Contain {
        container: u8,
        snapshot: u8,
    },
    Uncontain {
        container: u8,
    },
    Lease {
        lease: u8,
        kind: u8,
    },
    Unlease {
        lease: u8,
    },
    Hold {
        lease: u8,
        blob: u8,
    },
    Collect,
    /// Close and open all again, as after a kill.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let n = || 0..NAMES;
    let maybe = || proptest::option::of(0..NAMES);
    prop_oneof![
        4 => (n(), maybe(), maybe(), proptest::bool::weighted(0.1), maybe())
            .prop_map(|(blob, refers, stands_for, is_root, lease)| Step::Write { blob, refers, stands_for, is_root, lease }),
        1 => (n(), maybe()).prop_map(|(ingest, lease)| Step::Begin { ingest, lease }),
        1 => n().prop_map(|ingest| Step::Abort { ingest }),
        4 => (n(), maybe(), proptest::bool::weighted(0.1), maybe())
            .prop_map(|(snapshot, parent, is_root, lease)| Step::Prepare { snapshot, parent, is_root, lease }),
        4 => n().prop_map(|snapshot| Step::Commit { snapshot }),
        2 => (n(), any::<bool>())
            .prop_map(|(n, is_layer)| Step::RemoveSnapshot { snapshot: if is_layer { n + COMMITTED } else { n } }),
        2 => (n(), n()).prop_map(|(image, blob)| Step::Name { image, blob }),
        1 => n().prop_map(|image| Step::Unname { image }),
        2 => (n(), n()).prop_map(|(container, snapshot)| Step::Contain { container, snapshot }),
        1 => n().prop_map(|container| Step::Uncontain { container }),
        2 => (n(), 0..3u8).prop_map(|(lease, kind)| Step::Lease { lease, kind }),
        1 => n().prop_map(|lease| Step::Unlease { lease }),
        1 => (n(), n()).prop_map(|(lease, blob)| Step::Hold { lease, blob }),
        2 => Just(Step::Collect),
        1 => Just(Step::Restart),
    ]
}

/// The parts of a store, over a directory.
struct Parts {
    store: Arc<Store>,
    content: Arc<Content>,
    snapshots: Snapshotters,
}

fn open(root: &Path) -> Parts {
    let store = Arc::new(Store::open(root).unwrap());
    store.write(Durability::Process, |writer| writer.put(b"ns", &NamespaceRecord::default())).unwrap();
    let provisional = Arc::new(Provisional::open(root).unwrap());
    let content = Arc::new(Content::open(root, store.clone(), provisional).unwrap());
    let trash = Arc::new(Trash::open(root.join("trash")).unwrap());
    let snapshots =
        Snapshotters::open(|of| Snapshots::open(of, root, store.clone(), trash.clone(), "boot".to_owned())).unwrap();
    Parts { store, content, snapshots }
}

fn namespace() -> Namespace {
    Namespace::parse("ns").unwrap()
}

fn snapshot_name(snapshot: u8) -> String {
    if snapshot < COMMITTED { format!("active-{snapshot}") } else { format!("layer-{}", snapshot - COMMITTED) }
}

fn bytes(blob: u8) -> Vec<u8> {
    vec![blob; 100 + usize::from(blob)]
}

fn digest(blob: u8) -> Digest {
    use sha2::Digest as _;
    Digest::from_sha256(&sha2::Sha256::digest(bytes(blob)))
}

/// What the model knows of a thing that labels can speak for.
#[derive(Clone, Debug, Default)]
struct Labelled {
    blob: Option<u8>,
    snapshot: Option<u8>,
    is_root: bool,
}

/// What there must be.
#[derive(Clone, Debug, Default)]
struct Model {
    blobs: BTreeMap<u8, Labelled>,
    ingests: BTreeSet<u8>,
    /// Parent, and whether it is a root.
    snapshots: BTreeMap<u8, (Option<u8>, bool)>,
    images: BTreeMap<u8, u8>,
    containers: BTreeMap<u8, u8>,
    /// Kind: 0 an ordinary one, 1 flat, 2 expired. And the blobs and snapshots that it holds.
    leases: BTreeMap<u8, (u8, BTreeSet<u8>, BTreeSet<u8>)>,
}

impl Model {
    /// What is left when all else is collected.
    fn collect(&mut self) {
        self.leases.retain(|_, (kind, _, _)| *kind != 2);
        let (mut blobs, mut snapshots) = (BTreeSet::new(), BTreeSet::new());
        let mut todo_blobs: Vec<u8> = self.images.values().copied().collect();
        let mut todo_snapshots: Vec<u8> = self.containers.values().copied().collect();
        todo_blobs.extend(self.blobs.iter().filter(|(_, of)| of.is_root).map(|(blob, _)| *blob));
        todo_snapshots.extend(self.snapshots.iter().filter(|(_, of)| of.1).map(|(snapshot, _)| *snapshot));
        let mut flat_blobs: BTreeSet<u8> = BTreeSet::new();
        for (kind, held_blobs, held_snapshots) in self.leases.values() {
            // Snapshots have no labels here that lead on but to their parents, which are always needed.
            todo_snapshots.extend(held_snapshots);
            if *kind == 0 { todo_blobs.extend(held_blobs) } else { flat_blobs.extend(held_blobs) }
        }
        while let Some(blob) = todo_blobs.pop() {
            if let Some(of) = self.blobs.get(&blob).filter(|_| blobs.insert(blob)) {
                todo_blobs.extend(of.blob);
                todo_snapshots.extend(of.snapshot);
            }
        }
        while let Some(snapshot) = todo_snapshots.pop() {
            if let Some(of) = self.snapshots.get(&snapshot).filter(|_| snapshots.insert(snapshot)) {
                todo_snapshots.extend(of.0);
            }
        }
        blobs.extend(flat_blobs);
        // What is held is never collected, so that no lease lets go of anything.
        self.blobs.retain(|blob, _| blobs.contains(blob));
        self.snapshots.retain(|snapshot, _| snapshots.contains(snapshot));
    }

    fn hold_blob(&mut self, lease: Option<u8>, blob: u8) {
        if let Some((_, blobs, _)) = lease.and_then(|lease| self.leases.get_mut(&lease)) {
            blobs.insert(blob);
        }
    }

    fn is_parent(&self, snapshot: u8) -> bool {
        self.snapshots.values().any(|of| of.0 == Some(snapshot))
    }
}

/// A history as it goes: the store, and what is known of it.
struct History {
    parts: Option<Parts>,
    model: Model,
}

impl History {
    fn parts(&self) -> &Parts {
        self.parts.as_ref().unwrap()
    }

    /// The lease, if there is one of that number.
    fn lease(&self, lease: Option<u8>) -> Option<u8> {
        lease.filter(|lease| self.model.leases.contains_key(lease))
    }

    fn opening(&self, reference: String, lease: Option<u8>) -> Opening {
        let lease = lease.map(|lease| lease.to_string());
        Opening { namespace: namespace(), lease, reference, expected: None, total: 0, unpack: None }
    }

    async fn take(&mut self, step: &Step, root: &Path) {
        match step.clone() {
            Step::Write { blob, refers, stands_for, is_root, lease } => {
                let snapshot = stands_for.map(|snapshot| snapshot + COMMITTED);
                let labels = Labelled { blob: refers, snapshot, is_root };
                self.write(blob, labels, self.lease(lease)).await;
            }
            Step::Begin { ingest, lease } => self.begin(ingest, self.lease(lease)).await,
            Step::Abort { ingest } => {
                let aborted = self.parts().content.abort(&namespace(), &format!("begun-{ingest}"));
                assert_eq!(aborted.is_ok(), self.model.ingests.remove(&ingest));
            }
            Step::Prepare { snapshot, parent, is_root, lease } => {
                self.prepare(snapshot, parent, is_root, self.lease(lease))
            }
            Step::Commit { snapshot } => self.commit(snapshot),
            Step::RemoveSnapshot { snapshot } => self.remove_snapshot(snapshot),
            Step::Name { image, blob } => {
                self.put(format!("image-{image}"), &Image { digest: digest(blob).to_string(), ..Image::default() });
                self.model.images.insert(image, blob);
            }
            Step::Unname { image } => {
                self.remove(Table::Images, format!("image-{image}"));
                self.model.images.remove(&image);
            }
            Step::Contain { container, snapshot } => {
                let (snapshotter, snapshot_key) = (Snapshotter::Overlayfs.name().to_owned(), snapshot_name(snapshot));
                self.put(format!("c{container}"), &Container { snapshotter, snapshot_key, ..Container::default() });
                self.model.containers.insert(container, snapshot);
            }
            Step::Uncontain { container } => {
                self.remove(Table::Containers, format!("c{container}"));
                self.model.containers.remove(&container);
            }
            Step::Lease { lease, kind } => self.make_lease(lease, kind),
            Step::Unlease { lease } => {
                let deleted = lease::delete(&self.parts().store, &namespace(), &lease.to_string());
                assert_eq!(deleted.is_ok(), self.model.leases.remove(&lease).is_some());
            }
            Step::Hold { lease, blob } => {
                if self.model.leases.contains_key(&lease) && self.model.blobs.contains_key(&blob) {
                    let held = Resource { kind: lease::CONTENT.to_owned(), id: digest(blob).to_string() };
                    lease::add_resource(&self.parts().store, &namespace(), &lease.to_string(), &held).unwrap();
                    self.model.hold_blob(Some(lease), blob);
                }
            }
            Step::Collect => {
                let Parts { store, content, snapshots } = self.parts();
                collect(store, content, snapshots, Scope::All).unwrap();
                self.model.collect();
            }
            Step::Restart => {
                self.parts = None;
                self.parts = Some(open(root));
            }
        }
    }

    async fn write(&mut self, blob: u8, of: Labelled, lease: Option<u8>) {
        let mut labels = Labels::new();
        labels.extend(of.blob.map(|to| ("containerd.io/gc.ref.content.l.0".to_owned(), digest(to).to_string())));
        labels.extend(of.snapshot.map(|to| ("containerd.io/gc.ref.snapshot.overlayfs".to_owned(), snapshot_name(to))));
        labels.extend(of.is_root.then(|| ("containerd.io/gc.root".to_owned(), "now".to_owned())));
        let opening = self.opening(format!("blob-{blob}"), lease);
        let mut writer = ContentWriter::open(self.parts().content.clone(), opening).await.unwrap();
        writer.write(bytes(blob).into()).await.unwrap();
        let written = writer.commit(Commit { expected: None, total: 0, labels }).await;
        assert_eq!(written.is_ok(), !self.model.blobs.contains_key(&blob));
        self.model.blobs.entry(blob).or_insert(of);
        // Whoever brings what is there holds it, too.
        self.model.hold_blob(lease, blob);
    }

    async fn begin(&mut self, ingest: u8, lease: Option<u8>) {
        let opening = self.opening(format!("begun-{ingest}"), lease);
        let mut writer = ContentWriter::open(self.parts().content.clone(), opening).await.unwrap();
        writer.write(vec![ingest; 10].into()).await.unwrap();
        writer.digest().await.unwrap();
        drop(writer);
        self.model.ingests.insert(ingest);
        // Its worker lets go of it a moment later.
        while self.parts().content.is_written(&namespace(), &format!("begun-{ingest}")) {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    fn prepare(&mut self, snapshot: u8, parent: Option<u8>, is_root: bool, lease: Option<u8>) {
        let parent = parent.map(|parent| parent + COMMITTED).filter(|parent| self.model.snapshots.contains_key(parent));
        let labels = is_root.then(|| ("containerd.io/gc.root".to_owned(), "now".to_owned()));
        let lease_id = lease.map(|lease| lease.to_string());
        let request = Request {
            namespace: namespace(),
            lease: lease_id,
            key: snapshot_name(snapshot),
            parent: parent.map(snapshot_name).unwrap_or_default(),
            labels: labels.into_iter().collect(),
        };
        let made = self.parts().snapshots.of(Snapshotter::Overlayfs).make(SnapshotKind::Active, request).is_ok();
        assert_eq!(made, !self.model.snapshots.contains_key(&snapshot));
        if made {
            self.model.snapshots.insert(snapshot, (parent, is_root));
            if let Some((_, _, held)) = lease.and_then(|lease| self.model.leases.get_mut(&lease)) {
                held.insert(snapshot);
            }
        }
    }

    /// A layer has the labels of its commit: none.
    fn commit(&mut self, snapshot: u8) {
        let (from, to) = (snapshot_name(snapshot), snapshot_name(snapshot + COMMITTED));
        let committed = self
            .parts()
            .snapshots
            .of(Snapshotter::Overlayfs)
            .commit(&namespace(), None, &from, &to, Labels::new())
            .is_ok();
        let is_free = !self.model.snapshots.contains_key(&(snapshot + COMMITTED));
        assert_eq!(committed, is_free && self.model.snapshots.contains_key(&snapshot));
        if committed {
            let (parent, _) = self.model.snapshots.remove(&snapshot).unwrap();
            self.model.snapshots.insert(snapshot + COMMITTED, (parent, false));
        }
    }

    fn remove_snapshot(&mut self, snapshot: u8) {
        let removed =
            self.parts().snapshots.of(Snapshotter::Overlayfs).remove(&namespace(), &snapshot_name(snapshot)).is_ok();
        assert_eq!(removed, self.model.snapshots.contains_key(&snapshot) && !self.model.is_parent(snapshot));
        if removed {
            self.model.snapshots.remove(&snapshot);
            for (_, _, held) in self.model.leases.values_mut() {
                held.remove(&snapshot);
            }
        }
    }

    fn make_lease(&mut self, lease: u8, kind: u8) {
        let label = match kind {
            1 => Some(("containerd.io/gc.flat".to_owned(), String::new())),
            2 => Some(("containerd.io/gc.expire".to_owned(), "2001-01-01T00:00:00Z".to_owned())),
            _ => None,
        };
        let made = lease::create(&self.parts().store, &namespace(), &lease.to_string(), label.into_iter().collect());
        assert_eq!(made.is_ok(), !self.model.leases.contains_key(&lease));
        self.model.leases.entry(lease).or_insert((kind, BTreeSet::new(), BTreeSet::new()));
    }

    /// All that holds anything goes, but for labels that make roots.
    fn let_go(&mut self) {
        for image in std::mem::take(&mut self.model.images).into_keys() {
            self.remove(Table::Images, format!("image-{image}"));
        }
        for container in std::mem::take(&mut self.model.containers).into_keys() {
            self.remove(Table::Containers, format!("c{container}"));
        }
        for lease in std::mem::take(&mut self.model.leases).into_keys() {
            lease::delete(&self.parts().store, &namespace(), &lease.to_string()).unwrap();
        }
    }

    fn put<R: crate::db::Record>(&self, name: String, record: &R) {
        self.parts().store.write(Durability::Process, |writer| writer.put(&key(&["ns", &name]), record)).unwrap();
    }

    fn remove(&self, table: Table, name: String) {
        self.parts().store.write(Durability::Process, |writer| writer.remove(table, &key(&["ns", &name]))).unwrap();
    }
}

/// The names in a directory.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// What lies in the store's directories is what the model has, no more and no less; the trash is emptied behind.
fn assert_disk_is(model: &Model, root: &Path) {
    let blobs: BTreeSet<String> =
        model.blobs.keys().map(|blob| digest(*blob).as_str().trim_start_matches("sha256:").to_owned()).collect();
    assert_eq!(names(&root.join("content/blobs/sha256")), blobs);
    assert_eq!(names(&root.join("content/ingest")).len(), model.ingests.len());
    assert_eq!(names(&root.join("snapshots")).len(), model.snapshots.len());
    let begun = std::time::Instant::now();
    while !names(&root.join("trash")).is_empty() {
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "the trash is not emptied");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

async fn live(steps: &[Step]) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let mut history = History { parts: Some(open(root)), model: Model::default() };
    for step in steps {
        history.take(step, root).await;
        if matches!(step, Step::Collect | Step::Restart) {
            assert_disk_is(&history.model, root);
        }
    }
    history.take(&Step::Collect, root).await;
    assert_disk_is(&history.model, root);
    history.let_go();
    history.take(&Step::Collect, root).await;
    assert_disk_is(&history.model, root);
    // Where no label makes a root all the space has come back.
    let Model { blobs, snapshots, .. } = &history.model;
    if !blobs.values().any(|of| of.is_root) && !snapshots.values().any(|of| of.1) {
        assert!(blobs.is_empty() && snapshots.is_empty(), "{blobs:?} {snapshots:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]
    #[test]
    fn what_is_on_disk_is_what_is_reachable(steps in proptest::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(live(&steps));
    }
}
