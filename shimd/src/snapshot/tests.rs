//! Snapshots on a real file system; no root needed.

use super::*;
use crate::filter::Filters;

struct Rig {
    directory: tempfile::TempDir,
    snapshots: Snapshots,
    namespace: Namespace,
}

fn open(of: Snapshotter, root: &Path, boot: &str) -> Snapshots {
    let store = Arc::new(Store::open(root).unwrap());
    let trash = Arc::new(Trash::open(root.join("trash")).unwrap());
    Snapshots::open(of, root, store, trash, boot.to_owned()).unwrap()
}

fn request(namespace: &Namespace, key: &str, parent: &str) -> Request {
    let (namespace, key, parent) = (namespace.clone(), key.to_owned(), parent.to_owned());
    Request { namespace, lease: None, key, parent, labels: Labels::new() }
}

fn rig() -> Rig {
    rig_of(Snapshotter::Overlayfs)
}

fn rig_of(snapshotter: Snapshotter) -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let snapshots = open(snapshotter, directory.path(), "boot-1");
    Rig { directory, snapshots, namespace: Namespace::parse("ns").unwrap() }
}

impl Rig {
    fn prepare(&self, name: &str, parent: &str) -> Result<Vec<Mount>> {
        self.make(SnapshotKind::Active, name, parent)
    }

    fn make(&self, kind: SnapshotKind, key: &str, parent: &str) -> Result<Vec<Mount>> {
        self.snapshots.make(kind, request(&self.namespace, key, parent))
    }

    fn layer(&self, name: &str, parent: &str) {
        self.prepare("tmp", parent).unwrap();
        self.snapshots.commit(&self.namespace, None, "tmp", name, Labels::new()).unwrap();
    }

    fn reopen(self, boot: &str) -> Rig {
        let Rig { directory, snapshots, namespace } = self;
        let snapshotter = snapshots.snapshotter();
        drop(snapshots);
        let snapshots = open(snapshotter, directory.path(), boot);
        Rig { directory, snapshots, namespace }
    }

    fn names(&self) -> Vec<String> {
        self.snapshots.list(&self.namespace, &Filters::default()).unwrap().into_iter().map(|info| info.name).collect()
    }
}

fn option<'a>(mounts: &'a [Mount], name: &str) -> Option<&'a str> {
    mounts[0].options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
}

#[test]
fn mounts_are_those_of_containerd() {
    let rig = rig();
    let first = rig.prepare("a", "").unwrap();
    assert_eq!((first[0].kind.as_str(), first[0].options.join(",")), ("bind", "rw,rbind".to_owned()));
    rig.snapshots.commit(&rig.namespace, None, "a", "A", Labels::new()).unwrap();
    rig.layer("B", "A");
    let view = rig.make(SnapshotKind::View, "v", "A").unwrap();
    assert_eq!((view[0].source.clone(), view[0].options.join(",")), (first[0].source.clone(), "ro,rbind".to_owned()));
    let top = rig.prepare("c", "B").unwrap();
    let lower: Vec<&str> = option(&top, "lowerdir").unwrap().split(':').collect();
    assert_eq!((top[0].kind.as_str(), lower.len(), lower[1]), ("overlay", 2, first[0].source.as_str()));
    assert!(Path::new(option(&top, "upperdir").unwrap()).is_dir());
    assert!(Path::new(option(&top, "workdir").unwrap()).is_dir());
    assert_eq!(rig.snapshots.mounts(&rig.namespace, "c").unwrap(), top);
    assert!(rig.snapshots.mounts(&rig.namespace, "B").is_err());
    let view = rig.make(SnapshotKind::View, "w", "B").unwrap();
    assert_eq!(option(&view, "upperdir"), None);
}

#[test]
fn labels_that_map_ids_are_told_to_who_mounts() {
    use std::os::unix::fs::MetadataExt;
    let rig = rig();
    if !rustix::process::geteuid().is_root() || !rig.snapshots.maps_ids() {
        eprintln!("skipped: mapping a mount needs root and Linux 5.19");
        return;
    }
    rig.layer("A", "");
    rig.layer("B", "A");
    let make = |kind, key: &str, parent: &str, (users, groups): (&str, &str)| {
        let labels = [("uidmapping", users), ("gidmapping", groups)]
            .map(|(name, value)| (format!("containerd.io/snapshot/{name}"), value.to_owned()));
        let request = Request { labels: labels.into(), ..request(&rig.namespace, key, parent) };
        rig.snapshots.make(kind, request)
    };
    let mapping = ("0:7000:10", "0:8000:10");
    for (kind, parent) in [(SnapshotKind::Active, "B"), (SnapshotKind::View, "A"), (SnapshotKind::Active, "")] {
        let mounts = make(kind, &format!("of {parent}"), parent, mapping).unwrap();
        assert_eq!(mounts[0].options[..2], ["uidmap=0:7000:10", "gidmap=0:8000:10"]);
        assert_eq!(rig.snapshots.mounts(&rig.namespace, &format!("of {parent}")).unwrap(), mounts);
        // A first layer is mapped itself; what is above others is not.
        let written = std::fs::metadata(option(&mounts, "upperdir").unwrap_or(&mounts[0].source)).unwrap();
        let owner = if parent == "B" { (7000, 8000) } else { (0, 0) };
        assert_eq!((written.uid(), written.gid()), owner, "of {parent:?}");
    }
    // Whose files a client has given away already are mapped no second time.
    rig.prepare("copy", "B").unwrap();
    let copy = option(&rig.snapshots.mounts(&rig.namespace, "copy").unwrap(), "upperdir").unwrap().to_owned();
    std::os::unix::fs::chown(copy, Some(7000), Some(8000)).unwrap();
    rig.snapshots.commit(&rig.namespace, None, "copy", "copied", Labels::new()).unwrap();
    let mounts = make(SnapshotKind::Active, "of a copy", "copied", mapping).unwrap();
    assert_eq!(option(&mounts, "uidmap"), None);
    for bad in [("x", "0:1:1"), ("0:1:1", "1:1:1"), ("0:1", "")] {
        assert!(matches!(make(SnapshotKind::Active, "c", "B", bad), Err(Error::Invalid { .. })), "{bad:?}");
    }
    rig.make(SnapshotKind::Active, "c", "B").unwrap();
}

#[test]
fn the_wrong_order_is_refused() {
    let rig = rig();
    assert!(rig.prepare("x", "gone").unwrap_err().is_not_found());
    rig.prepare("a", "").unwrap();
    assert!(matches!(rig.prepare("a", ""), Err(Error::Exists { .. })));
    assert!(matches!(rig.prepare("b", "a"), Err(Error::Invalid { .. })));
    rig.snapshots.commit(&rig.namespace, None, "a", "A", Labels::new()).unwrap();
    let committed = rig.snapshots.stat(&rig.namespace, "A").unwrap().record;
    assert_eq!(committed.created_at, committed.updated_at, "a committed one begins with its commit, as in containerd");
    assert!(rig.snapshots.commit(&rig.namespace, None, "A", "AA", Labels::new()).is_err());
    rig.prepare("b", "A").unwrap();
    assert!(matches!(rig.snapshots.remove(&rig.namespace, "A"), Err(Error::Refused { .. })));
    rig.snapshots.remove(&rig.namespace, "b").unwrap();
    rig.snapshots.remove(&rig.namespace, "A").unwrap();
    assert!(rig.names().is_empty());
}

#[test]
fn a_restart_keeps_what_is_whole() {
    let rig = rig();
    rig.layer("A", "");
    let mounts = rig.prepare("b", "A").unwrap();
    let stray = rig.directory.path().join("snapshots/99");
    std::fs::create_dir(&stray).unwrap();
    let rig = rig.reopen("boot-1");
    assert_eq!(rig.names(), ["A", "b"]);
    assert!(!stray.exists());
    assert_eq!(rig.snapshots.mounts(&rig.namespace, "b").unwrap(), mounts);
    std::fs::remove_dir_all(Path::new(option(&mounts, "upperdir").unwrap()).parent().unwrap()).unwrap();
    assert_eq!(rig.reopen("boot-1").names(), ["A"]);
}

#[test]
fn after_a_power_cut_only_what_was_synced_is_there() {
    let rig = rig();
    rig.layer("A", "");
    rig.snapshots.sync_committed().unwrap();
    rig.layer("B", "A");
    rig.prepare("c", "B").unwrap();
    rig.prepare("d", "A").unwrap();
    let rig = rig.reopen("boot-2");
    assert_eq!(rig.names(), ["A", "d"]);
    assert!(rig.snapshots.remove(&rig.namespace, "A").is_err());
    rig.snapshots.remove(&rig.namespace, "d").unwrap();
    rig.snapshots.remove(&rig.namespace, "A").unwrap();
}

#[test]
fn numbers_are_not_used_twice() {
    let rig = rig();
    let first = rig.prepare("a", "").unwrap();
    let rig = rig.reopen("boot-1");
    assert_ne!(rig.prepare("b", "").unwrap()[0].source, first[0].source);
}

#[test]
fn usage_counts_files() {
    let rig = rig();
    let mounts = rig.prepare("a", "").unwrap();
    std::fs::write(Path::new(&mounts[0].source).join("f"), vec![1; 10_000]).unwrap();
    let usage = rig.snapshots.usage(&rig.namespace, "a").unwrap();
    assert_eq!(usage.inodes, 2);
    assert!(usage.bytes >= 10_000);
    rig.snapshots.commit(&rig.namespace, None, "a", "A", Labels::new()).unwrap();
    assert_eq!(rig.snapshots.usage(&rig.namespace, "A").unwrap(), usage);
    rig.make(SnapshotKind::View, "v", "A").unwrap();
    assert_eq!(rig.snapshots.usage(&rig.namespace, "v").unwrap(), Usage::default());
}

#[test]
fn a_native_snapshot_is_a_copy_of_its_parent() {
    let rig = rig_of(Snapshotter::Native);
    let first = rig.prepare("a", "").unwrap()[0].source.clone();
    std::fs::write(format!("{first}/f"), "1").unwrap();
    rig.snapshots.commit(&rig.namespace, None, "a", "A", Labels::new()).unwrap();
    let second = rig.prepare("b", "A").unwrap().remove(0);
    assert_eq!((second.kind.as_str(), second.options.join(",")), ("bind", "rbind,rw".to_owned()));
    assert_eq!(std::fs::read_to_string(format!("{}/f", second.source)).unwrap(), "1");
    std::fs::write(format!("{}/f", second.source), "2").unwrap();
    rig.snapshots.commit(&rig.namespace, None, "b", "B", Labels::new()).unwrap();
    let view = rig.make(SnapshotKind::View, "v", "B").unwrap().remove(0);
    assert_eq!((view.source.as_str(), view.options.join(",")), (second.source.as_str(), "rbind,ro".to_owned()));
    assert_eq!(std::fs::read_to_string(format!("{first}/f")).unwrap(), "1");
    assert!(matches!(rig.snapshots.remove(&rig.namespace, "A"), Err(Error::Refused { .. })));
    let rig = rig.reopen("boot-1");
    assert_eq!(rig.names(), ["A", "B", "v"]);
    assert_eq!(rig.snapshots.mounts(&rig.namespace, "v").unwrap(), [view]);
}

#[test]
fn a_copy_that_fails_or_is_cut_off_leaves_nothing() {
    let rig = rig_of(Snapshotter::Native);
    rig.layer("A", "");
    let parent = rig.directory.path().join("native/1");
    std::fs::rename(&parent, rig.directory.path().join("aside")).unwrap();
    assert!(rig.prepare("b", "A").is_err());
    std::fs::rename(rig.directory.path().join("aside"), &parent).unwrap();
    let there = |rig: &Rig| std::fs::read_dir(rig.directory.path().join("native")).unwrap().count();
    assert_eq!((there(&rig), rig.names()), (1, vec!["A".to_owned()]));
    // As a kill in the middle of a copy leaves it.
    std::fs::create_dir_all(rig.directory.path().join("native/7/fs/half")).unwrap();
    let rig = rig.reopen("boot-1");
    assert_eq!((there(&rig), rig.names()), (1, vec!["A".to_owned()]));
    // What was not synced before a power cut goes with what was copied of it.
    rig.layer("B", "A");
    let rig = rig.reopen("boot-2");
    assert_eq!((there(&rig), rig.names()), (0, Vec::new()));
}

#[test]
fn of_a_parent_that_goes_meanwhile_nothing_is_made() {
    // Where all was copied before the parent went, there are more files the next time.
    let tried = [4000, 16_000, 64_000].into_iter().any(a_parent_goes_during_a_copy);
    assert!(tried, "each copy was made before its parent could go");
}

/// Whether the copy was not done before.
fn a_parent_goes_during_a_copy(files: usize) -> bool {
    let rig = rig_of(Snapshotter::Native);
    let source = rig.prepare("a", "").unwrap()[0].source.clone();
    for number in 0..files {
        std::fs::write(format!("{source}/{number}"), "x").unwrap();
    }
    rig.snapshots.commit(&rig.namespace, None, "a", "A", Labels::new()).unwrap();
    let (removed, made) = std::thread::scope(|scope| {
        let making = scope.spawn(|| rig.prepare("b", "A"));
        let copy = rig.directory.path().join("native/2/fs");
        while !making.is_finished() && std::fs::read_dir(&copy).map_or(0, |copied| copied.take(10).count()) < 10 {
            std::thread::yield_now();
        }
        (rig.snapshots.remove(&rig.namespace, "A"), making.join().unwrap())
    });
    if made.is_ok() && removed.is_err() {
        return false;
    }
    removed.unwrap();
    assert!(made.as_ref().is_err_and(Error::is_not_found), "{made:?}");
    assert!(rig.names().is_empty());
    assert_eq!(std::fs::read_dir(rig.directory.path().join("native")).unwrap().count(), 0);
    true
}

#[tokio::test]
async fn copies_wait_for_each_other_and_hold_up_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path()).unwrap());
    let trash = Arc::new(Trash::open(directory.path().join("trash")).unwrap());
    let open = |of| Snapshots::open(of, directory.path(), store.clone(), trash.clone(), "boot".to_owned());
    let snapshots = Snapshotters::open(open).unwrap();
    let namespace = Namespace::parse("ns").unwrap();
    let native = snapshots.of(Snapshotter::Native);
    let source = native.make(SnapshotKind::Active, request(&namespace, "a", "")).unwrap()[0].source.clone();
    for number in 0..500 {
        std::fs::write(format!("{source}/{number}"), "x").unwrap();
    }
    native.commit(&namespace, None, "a", "A", Labels::new()).unwrap();
    let made = (0..12).map(|number| {
        let (snapshots, request) = (snapshots.clone(), request(&namespace, &format!("b{number}"), "A"));
        tokio::spawn(async move { snapshots.make(Snapshotter::Native, SnapshotKind::Active, request).await.unwrap() })
    });
    let made: Vec<_> = made.collect();
    let entries = |path: PathBuf| std::fs::read_dir(path).map_or(0, Iterator::count);
    let mut most = 0;
    // This runtime has one thread: that is free meanwhile.
    while made.iter().any(|made| !made.is_finished()) {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        let copies = std::fs::read_dir(directory.path().join("native")).unwrap();
        most = most.max(copies.filter(|copy| entries(copy.as_ref().unwrap().path().join("fs")) < 500).count());
    }
    // One may have come for one that was done while they were counted.
    assert!((1..=2 * kept::COPIES_MAX).contains(&most), "{most} at once");
    for made in made {
        assert_eq!(std::fs::read_dir(&made.await.unwrap()[0].source).unwrap().count(), 500);
    }
}

#[tokio::test]
async fn a_copy_whose_caller_goes_away_goes_where_nobody_will_look_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path()).unwrap());
    let trash = Arc::new(Trash::open(directory.path().join("trash")).unwrap());
    let open = |of| Snapshots::open(of, directory.path(), store.clone(), trash.clone(), "boot".to_owned());
    let snapshots = Snapshotters::open(open).unwrap();
    let namespace = Namespace::parse("ns").unwrap();
    let native = snapshots.of(Snapshotter::Native);
    let source = native.make(SnapshotKind::Active, request(&namespace, "a", "")).unwrap()[0].source.clone();
    for number in 0..2000 {
        std::fs::write(format!("{source}/{number}"), "x").unwrap();
    }
    native.commit(&namespace, None, "a", "A", Labels::new()).unwrap();
    let kind = SnapshotKind::Active;
    for key in ["kept", "unwanted"] {
        let request = request(&namespace, key, "A");
        let begun = match key {
            "kept" => tokio::spawn({
                let snapshots = snapshots.clone();
                async move { snapshots.make(Snapshotter::Native, kind, request).await }
            }),
            _ => tokio::spawn({
                let snapshots = snapshots.clone();
                async move { snapshots.make_while_wanted(Snapshotter::Native, kind, request).await }
            }),
        };
        let copies = || std::fs::read_dir(directory.path().join("native")).unwrap().count();
        let before = copies();
        while copies() == before {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        begun.abort();
        assert!(begun.await.unwrap_err().is_cancelled());
    }
    let has = |key: &str| native.stat(&namespace, key).is_ok();
    let directories = || std::fs::read_dir(directory.path().join("native")).unwrap().count();
    let began = std::time::Instant::now();
    while !has("kept") || has("unwanted") || directories() > 2 {
        assert!(began.elapsed().as_secs() < 20, "kept: {}, unwanted: {}", has("kept"), has("unwanted"));
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[test]
fn snapshotters_share_no_names() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path()).unwrap());
    let trash = Arc::new(Trash::open(directory.path().join("trash")).unwrap());
    let open = |of| Snapshots::open(of, directory.path(), store.clone(), trash.clone(), "boot".to_owned());
    let snapshots = Snapshotters::open(open).unwrap();
    let namespace = Namespace::parse("ns").unwrap();
    for of in Snapshotter::ALL {
        let request = request(&namespace, "same", "");
        snapshots.named(of.name()).unwrap().make(SnapshotKind::Active, request).unwrap();
    }
    snapshots.of(Snapshotter::Native).remove(&namespace, "same").unwrap();
    assert!(snapshots.of(Snapshotter::Overlayfs).stat(&namespace, "same").is_ok());
    assert!(matches!(snapshots.named("zfs"), Err(Error::Invalid { .. })));
}
