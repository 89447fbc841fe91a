//! Who refers to what.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::db::record::{Blob, Container, Image, Ingest, Labels, Lease, Snapshot};
use crate::db::{Access, Table, tail};
use crate::error::Result;
use crate::lease;
use crate::name::Namespace;
use crate::snapshot::Snapshotter;

const ROOT: &str = "containerd.io/gc.root";
const REF: &str = "containerd.io/gc.ref.";
const BACK_REF: &str = "containerd.io/gc.bref.";
const EXPIRE: &str = "containerd.io/gc.expire";
const FLAT: &str = "containerd.io/gc.flat";
/// An ingest that no lease holds is kept this long: its client may come back.
const INGEST_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// A blob that was made without a lease is kept this long by collections that nobody asked for: people write a blob
/// with one command and refer to it with the next.
pub(super) const UNLEASED_AGE: Duration = Duration::from_secs(60);

/// How much a collection takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// All that nothing refers to.
    All,
    /// All but blobs that are too young, see [`UNLEASED_AGE`].
    Settled,
}

/// A thing in a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Node {
    Blob(String),
    Snapshot(Snapshotter, String),
    Image(String),
    Container(String),
    Ingest(String),
    Lease(String),
}

type Place = (Namespace, Node);

/// Everything in the store, as far as it refers to something.
#[derive(Default)]
pub(super) struct Graph {
    /// What there is and can be collected. Snapshots stand behind those that stand on them when it is swept.
    nodes: Vec<Place>,
    roots: Vec<Place>,
    /// Roots whose own labels are not followed.
    flat_roots: Vec<Place>,
    /// References that labels make.
    labelled: HashMap<Place, Vec<Node>>,
    /// A snapshot's parent: always needed.
    parents: HashMap<Place, Node>,
    /// How many blobs were too young.
    pub(super) young: usize,
}

impl Graph {
    pub(super) fn read(view: &impl Access, scope: Scope) -> Result<Graph> {
        let mut graph = Graph::default();
        graph.read_leases(view)?;
        graph.read_images(view)?;
        graph.read_containers(view)?;
        graph.read_blobs(view, scope)?;
        for snapshotter in Snapshotter::ALL {
            graph.read_snapshots(view, snapshotter)?;
        }
        graph.read_ingests(view)?;
        Ok(graph)
    }

    fn read_leases(&mut self, view: &impl Access) -> Result<()> {
        let mut flat = HashSet::new();
        let mut expired = HashSet::new();
        view.each(&[], |entry, record: Lease| {
            let place = (Namespace::parse(&tail(entry, 0))?, tail(entry, 1));
            if is_expired(&record.labels) {
                self.nodes.push((place.0.clone(), Node::Lease(place.1.clone())));
                expired.insert(place);
            } else if record.labels.contains_key(FLAT) {
                flat.insert(place);
            }
            Ok(())
        })?;
        view.scan(Table::LeaseResources, &[], &mut |entry, _| {
            let place = (Namespace::parse(&tail(entry, 0))?, tail(entry, 1));
            let Some(node) = resource(&tail(entry, 2), tail(entry, 3)) else { return Ok(ControlFlow::Continue(())) };
            let held = (place.0.clone(), node);
            if flat.contains(&place) {
                self.flat_roots.push(held);
            } else if !expired.contains(&place) {
                self.roots.push(held);
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    fn read_images(&mut self, view: &impl Access) -> Result<()> {
        view.each(&[], |entry, record: Image| {
            let place = place(entry, Node::Image)?;
            self.add_labels(&place, &record.labels);
            self.labelled.entry(place.clone()).or_default().push(Node::Blob(record.digest));
            if is_expired(&record.labels) {
                self.nodes.push(place)
            } else {
                self.roots.push(place)
            }
            Ok(())
        })
    }

    fn read_containers(&mut self, view: &impl Access) -> Result<()> {
        view.each(&[], |entry, record: Container| {
            let place = place(entry, Node::Container)?;
            self.add_labels(&place, &record.labels);
            if let Some(snapshotter) = Snapshotter::named(&record.snapshotter)
                && !record.snapshot_key.is_empty()
            {
                let node = Node::Snapshot(snapshotter, record.snapshot_key);
                self.labelled.entry(place.clone()).or_default().push(node);
            }
            self.roots.push(place);
            Ok(())
        })
    }

    fn read_blobs(&mut self, view: &impl Access, scope: Scope) -> Result<()> {
        view.each(&[], |entry, record: Blob| {
            let place = place(entry, Node::Blob)?;
            if scope == Scope::Settled && record.is_unleased && age(record.created_at) < UNLEASED_AGE {
                self.young += 1;
                self.roots.push(place.clone());
            }
            self.add_collectable(place, &record.labels);
            Ok(())
        })
    }

    fn read_snapshots(&mut self, view: &impl Access, snapshotter: Snapshotter) -> Result<()> {
        view.each_in(snapshotter.table(), &[], |entry, record: Snapshot| {
            let place = place(entry, |name| Node::Snapshot(snapshotter, name))?;
            if !record.parent.is_empty() {
                self.parents.insert(place.clone(), Node::Snapshot(snapshotter, record.parent));
            }
            self.add_collectable(place, &record.labels);
            Ok(())
        })
    }

    fn read_ingests(&mut self, view: &impl Access) -> Result<()> {
        view.each(&[], |entry, record: Ingest| {
            let place = place(entry, Node::Ingest)?;
            if age(record.started_at) > INGEST_AGE {
                self.nodes.push(place)
            } else {
                self.roots.push(place)
            }
            Ok(())
        })
    }

    fn add_collectable(&mut self, place: Place, labels: &Labels) {
        self.add_labels(&place, labels);
        if labels.contains_key(ROOT) {
            self.roots.push(place.clone());
        }
        self.nodes.push(place);
    }

    fn add_labels(&mut self, from: &Place, labels: &Labels) {
        for (label, value) in labels {
            if let Some(node) = label.strip_prefix(REF).and_then(|kind| referred(kind, value)) {
                self.labelled.entry(from.clone()).or_default().push(node);
            }
            // The label's value refers to its owner.
            if let Some(node) = label.strip_prefix(BACK_REF).and_then(|kind| referred(kind, value)) {
                self.labelled.entry((from.0.clone(), node)).or_default().push(from.1.clone());
            }
        }
    }

    /// What no root leads to: snapshots in an order in which each comes before what it stands on.
    pub(super) fn unmarked(mut self) -> Vec<Place> {
        let mut marked: HashSet<Place> = HashSet::new();
        let mut todo: Vec<Place> = std::mem::take(&mut self.roots);
        for place in std::mem::take(&mut self.flat_roots) {
            self.mark_parents(place, &mut marked);
        }
        // What a flat lease holds may also be held by something that is not flat: then its labels count.
        let mut followed: HashSet<Place> = HashSet::new();
        while let Some(place) = todo.pop() {
            if !followed.insert(place.clone()) {
                continue;
            }
            let next = self.labelled.get(&place).into_iter().flatten().chain(self.parents.get(&place));
            todo.extend(next.map(|node| (place.0.clone(), node.clone())));
            marked.insert(place);
        }
        let mut garbage: Vec<Place> =
            std::mem::take(&mut self.nodes).into_iter().filter(|place| !marked.contains(place)).collect();
        garbage.sort_by_cached_key(|place| std::cmp::Reverse(self.depth(place)));
        garbage
    }

    fn mark_parents(&self, place: Place, marked: &mut HashSet<Place>) {
        let mut next = Some(place);
        while let Some(place) = next {
            next = self.parents.get(&place).map(|node| (place.0.clone(), node.clone()));
            if !marked.insert(place) {
                return;
            }
        }
    }

    fn depth(&self, place: &Place) -> usize {
        let mut depth = 0;
        let mut next = self.parents.get(place);
        while let Some(node) = next {
            depth += 1;
            if depth > self.parents.len() {
                break;
            }
            next = self.parents.get(&(place.0.clone(), node.clone()));
        }
        depth
    }
}

/// How long ago a time was; what has none is as old as can be.
fn age(time: Option<prost_types::Timestamp>) -> Duration {
    let seconds = time.map_or(0, |time| time.seconds.max(0) as u64);
    SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_secs(seconds)).unwrap_or_default()
}

fn place(entry: &[u8], node: impl Fn(String) -> Node) -> Result<Place> {
    Ok((Namespace::parse(&tail(entry, 0))?, node(tail(entry, 1))))
}

/// The kinds that a lease can hold.
fn resource(kind: &str, id: String) -> Option<Node> {
    match kind {
        lease::CONTENT => Some(Node::Blob(id)),
        lease::INGEST => Some(Node::Ingest(id)),
        lease::IMAGE => Some(Node::Image(id)),
        kind => {
            let snapshotter = Snapshotter::ALL.into_iter().find(|snapshotter| snapshotter.resource() == kind)?;
            Some(Node::Snapshot(snapshotter, id))
        }
    }
}

/// What a label refers to: `content`, `content.config`, `content.l.0`, `snapshot.overlayfs`, `snapshot.overlayfs/x`,
/// `image`, `container`.
fn referred(kind: &str, value: &str) -> Option<Node> {
    let is = |name: &str| kind.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '/']));
    if is("content") {
        return Some(Node::Blob(value.to_owned()));
    }
    if is("image") {
        return Some(Node::Image(value.to_owned()));
    }
    if is("container") {
        return Some(Node::Container(value.to_owned()));
    }
    let snapshotter = kind.strip_prefix("snapshot.")?;
    let name = snapshotter.split(['/', '.']).next()?;
    Snapshotter::named(name).map(|snapshotter| Node::Snapshot(snapshotter, value.to_owned()))
}

/// Whether the time in the expiry label has passed; a label that is no time expires nothing.
fn is_expired(labels: &Labels) -> bool {
    let Some(time) = labels.get(EXPIRE).and_then(|text| text.parse::<prost_types::Timestamp>().ok()) else {
        return false;
    };
    let now = crate::clock::now();
    (time.seconds, time.nanos) < (now.seconds, now.nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_name_what_they_refer_to() {
        assert_eq!(referred("content", "d"), Some(Node::Blob("d".to_owned())));
        assert_eq!(referred("content.l.3", "d"), Some(Node::Blob("d".to_owned())));
        let snapshot = |snapshotter| Some(Node::Snapshot(snapshotter, "s".to_owned()));
        assert_eq!(referred("snapshot.overlayfs", "s"), snapshot(Snapshotter::Overlayfs));
        assert_eq!(referred("snapshot.overlayfs/x", "s"), snapshot(Snapshotter::Overlayfs));
        assert_eq!(referred("snapshot.native", "s"), snapshot(Snapshotter::Native));
        assert_eq!(referred("snapshot.zfs", "s"), None);
        assert_eq!(referred("contents", "d"), None);
    }

    #[test]
    fn times_expire() {
        let labels = |text: &str| Labels::from([(EXPIRE.to_owned(), text.to_owned())]);
        assert!(is_expired(&labels("2001-01-01T00:00:00Z")));
        assert!(!is_expired(&labels("2999-01-01T00:00:00.5+02:00")));
        assert!(!is_expired(&labels("soon")));
        assert!(!is_expired(&Labels::new()));
    }
}
