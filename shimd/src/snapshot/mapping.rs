//! Snapshots whose files belong to others in a container, without a copy: labels say as whom. Who mounts such a
//! snapshot maps the layers; what is written belongs to who wrote it.

use strata_idmap::Mapping;

use crate::db::record::Labels;
use crate::error::{Error, Result};

const USERS: &str = "containerd.io/snapshot/uidmapping";
const GROUPS: &str = "containerd.io/snapshot/gidmapping";

/// The user and the group that are root in the container; `None` where nothing is mapped. What has no label is as it
/// is.
pub(super) fn root(labels: &Labels) -> Result<Option<(u32, u32)>> {
    const SAME: &str = "0:0:1";
    let (users, groups) = (labels.get(USERS), labels.get(GROUPS));
    if users.is_none() && groups.is_none() {
        return Ok(None);
    }
    let [users, groups] = [users, groups].map(|label| label.map_or(SAME, String::as_str));
    let invalid = |why: &str| Error::invalid(format!("labels of ids {users:?} and {groups:?}"), why);
    let mapping = Mapping::parse(users, groups).ok_or_else(|| invalid("they are no mappings like 0:100000:65536"))?;
    mapping.root().map(Some).ok_or_else(|| invalid("root is not mapped"))
}

/// How that is said to who mounts it. A mapping of users or of groups alone is none.
pub(super) fn options(labels: &Labels) -> Vec<String> {
    match (labels.get(USERS), labels.get(GROUPS)) {
        (Some(users), Some(groups)) => vec![format!("uidmap={users}"), format!("gidmap={groups}")],
        _ => Vec::new(),
    }
}
