//! A container's record: what never changes, and the life so far.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::id::{ContainerId, Name};
use super::state::Life;
use super::wanted::Wanted;
use crate::engine::error::Error;
use crate::engine::spec::program::Program;
use crate::engine::stamp::Stamp;
use crate::store::{Store, Table};

/// What does not change after a container was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Fixed {
    pub(crate) id: ContainerId,
    pub(crate) name: Name,
    pub(crate) created: Stamp,
    pub(crate) wanted: Wanted,
    pub(crate) image: ImageRef,
    pub(crate) program: Program,
    pub(crate) hostname: String,
    /// Whose namespaces it lives in.
    pub(crate) sandbox: String,
}

/// The image that a container was made from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ImageRef {
    /// Canonical.
    pub(crate) reference: String,
    pub(crate) id: String,
    /// Of what the name stood for.
    pub(crate) digest: String,
    /// The snapshot that the container's own is made on.
    pub(crate) chain_id: String,
    /// The request's come over these.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) labels: BTreeMap<String, String>,
}

impl Fixed {
    /// The image's labels, and the request's over them.
    pub(crate) fn labels(&self) -> BTreeMap<&str, &str> {
        let all = self.image.labels.iter().chain(&self.wanted.labels);
        all.map(|(key, value)| (key.as_str(), value.as_str())).collect()
    }
}

/// A record as the store keeps it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) fixed: Arc<Fixed>,
    pub(crate) life: Life,
    /// The boot that `life` is of: a process of another one has ended.
    pub(crate) boot: String,
}

impl Record {
    /// Keeps it; it then survives the death of the engine.
    pub(crate) fn keep(&self, store: &Store) -> Result<(), Error> {
        let json = serde_json::to_vec(self).map_err(|source| Error::Json { what: "a container's record", source })?;
        store.put(Table::Containers, self.fixed.id.as_str(), json).map_err(|source| Error::Store { source })
    }

    /// Every record. One that cannot be read is of a later version, or damaged: it is named, and left where it is.
    pub(crate) fn load_all(store: &Store) -> Result<Loaded, Error> {
        let rows = store.load(Table::Containers).map_err(|source| Error::Store { source })?;
        let mut loaded = Loaded::default();
        for (id, bytes) in rows {
            match serde_json::from_slice(&bytes) {
                Ok(record) => loaded.records.push(record),
                Err(error) => {
                    tracing::error!(container = id, %error, "a container's record cannot be read: it is left alone");
                    loaded.unreadable.push(id);
                }
            }
        }
        Ok(loaded)
    }
}

/// What the store had.
#[derive(Default)]
pub(crate) struct Loaded {
    pub(crate) records: Vec<Record>,
    /// Ids of containers that nobody may touch.
    pub(crate) unreadable: Vec<String>,
}
