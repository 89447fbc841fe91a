//! The records of the store. Their field numbers are ours and never change their meaning.

use std::collections::BTreeMap;

use prost::Message;
use prost_types::{Any, Timestamp};

use super::{Record, Table};

/// Labels, ordered so that records and answers are the same each time.
pub(crate) type Labels = BTreeMap<String, String>;

/// A namespace; its key is its name.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Namespace {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(crate) labels: Labels,
}

/// A container; key: namespace, id.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Container {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(crate) labels: Labels,
    #[prost(string, tag = "2")]
    pub(crate) image: String,
    /// `io.containerd.runc.v2`, or a path.
    #[prost(string, tag = "3")]
    pub(crate) runtime: String,
    #[prost(message, optional, tag = "4")]
    pub(crate) runtime_options: Option<Any>,
    /// The OCI spec, byte for byte as the client sent it.
    #[prost(message, optional, tag = "5")]
    pub(crate) spec: Option<Any>,
    #[prost(string, tag = "6")]
    pub(crate) snapshotter: String,
    #[prost(string, tag = "7")]
    pub(crate) snapshot_key: String,
    #[prost(message, optional, tag = "8")]
    pub(crate) created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "9")]
    pub(crate) updated_at: Option<Timestamp>,
    #[prost(btree_map = "string, message", tag = "10")]
    pub(crate) extensions: BTreeMap<String, Any>,
    #[prost(string, tag = "11")]
    pub(crate) sandbox: String,
}

/// What an image name means; key: namespace, name.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Image {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(crate) labels: Labels,
    #[prost(string, tag = "2")]
    pub(crate) media_type: String,
    #[prost(string, tag = "3")]
    pub(crate) digest: String,
    #[prost(int64, tag = "4")]
    pub(crate) size: i64,
    #[prost(btree_map = "string, string", tag = "5")]
    pub(crate) annotations: Labels,
    #[prost(message, optional, tag = "6")]
    pub(crate) created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "7")]
    pub(crate) updated_at: Option<Timestamp>,
}

/// A blob as one namespace sees it; key: namespace, digest. The bytes are shared by all namespaces.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Blob {
    #[prost(uint64, tag = "1")]
    pub(crate) size: u64,
    #[prost(btree_map = "string, string", tag = "2")]
    pub(crate) labels: Labels,
    #[prost(message, optional, tag = "3")]
    pub(crate) created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "4")]
    pub(crate) updated_at: Option<Timestamp>,
    /// No lease held it when it was made: what it is for may still be on its way.
    #[prost(bool, tag = "5")]
    pub(crate) is_unleased: bool,
}

/// A blob that is being written; key: namespace, ref.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Ingest {
    /// Name of its directory.
    #[prost(uint64, tag = "1")]
    pub(crate) directory: u64,
    /// Empty where the client does not know.
    #[prost(string, tag = "2")]
    pub(crate) expected: String,
    /// Zero where the client does not know.
    #[prost(uint64, tag = "3")]
    pub(crate) total: u64,
    #[prost(message, optional, tag = "4")]
    pub(crate) started_at: Option<Timestamp>,
}

/// What a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum SnapshotKind {
    Unknown = 0,
    View = 1,
    Active = 2,
    Committed = 3,
}

/// A snapshot; key: namespace, name.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Snapshot {
    /// Name of its directory.
    #[prost(uint64, tag = "1")]
    pub(crate) directory: u64,
    #[prost(enumeration = "SnapshotKind", tag = "2")]
    pub(crate) kind: i32,
    /// Name of the parent; empty for a first layer.
    #[prost(string, tag = "3")]
    pub(crate) parent: String,
    #[prost(btree_map = "string, string", tag = "4")]
    pub(crate) labels: Labels,
    #[prost(message, optional, tag = "5")]
    pub(crate) created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "6")]
    pub(crate) updated_at: Option<Timestamp>,
    /// Boot id under which the files were written, as long as they are not synced. A committed snapshot of another
    /// boot that still has it may be damaged.
    #[prost(string, tag = "7")]
    pub(crate) unsynced_boot: String,
    /// What it takes on disk, once that is known and cannot change.
    #[prost(message, optional, tag = "8")]
    pub(crate) usage: Option<Usage>,
}

/// Disk space.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Usage {
    #[prost(uint64, tag = "1")]
    pub(crate) bytes: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) inodes: u64,
}

/// A sandbox; key: namespace, id.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Sandbox {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(crate) labels: Labels,
    #[prost(string, tag = "2")]
    pub(crate) runtime: String,
    #[prost(message, optional, tag = "3")]
    pub(crate) runtime_options: Option<Any>,
    /// As the client sent it.
    #[prost(message, optional, tag = "4")]
    pub(crate) spec: Option<Any>,
    #[prost(btree_map = "string, message", tag = "5")]
    pub(crate) extensions: BTreeMap<String, Any>,
    #[prost(message, optional, tag = "6")]
    pub(crate) created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "7")]
    pub(crate) updated_at: Option<Timestamp>,
    /// Which controller manages it.
    #[prost(string, tag = "8")]
    pub(crate) sandboxer: String,
}

/// A lease; key: namespace, id.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Lease {
    #[prost(message, optional, tag = "1")]
    pub(crate) created_at: Option<Timestamp>,
    #[prost(btree_map = "string, string", tag = "2")]
    pub(crate) labels: Labels,
}

macro_rules! records {
    ($($record:ty: $table:ident, $noun:literal;)*) => {
        $(impl Record for $record {
            const TABLE: Table = Table::$table;
            const NOUN: &'static str = $noun;
        })*
    };
}

records! {
    Namespace: Namespaces, "namespace";
    Container: Containers, "container";
    Image: Images, "image";
    Blob: Blobs, "content";
    Ingest: Ingests, "ingest";
    Snapshot: Snapshots, "snapshot";
    Lease: Leases, "lease";
    Sandbox: Sandboxes, "sandbox";
}
