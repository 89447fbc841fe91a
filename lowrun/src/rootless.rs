//! What lowrun may not do on this machine: as a user without privilege, and as root of a user namespace.
//!
//! Without privilege a container needs a user namespace; in it the user is root, and the kernel lets root of a user
//! namespace do most of what making a container takes. Ids but the own are mapped by `newuidmap` and `newgidmap`.

use std::sync::OnceLock;

use crate::fault::{Code, Fault, Result};
use crate::plan::Plan;
use crate::plan::mounts::{MountKind, MountPlan};
use crate::plan::namespaces::Kind;
use crate::spec::IdMapping;

/// Number of the first user namespace's file, the same on every machine.
const FIRST_USER_NAMESPACE: u64 = 0xefff_fffd;

/// Whether lowrun runs as somebody else than root.
pub fn is_unprivileged() -> bool {
    !rustix::process::geteuid().is_root()
}

/// Whether lowrun is in another user namespace than the machine's first.
pub fn in_user_namespace() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    let ask = || rustix::fs::stat("/proc/self/ns/user").is_ok_and(|stat| stat.st_ino != FIRST_USER_NAMESPACE);
    *ANSWER.get_or_init(ask)
}

/// Whether lowrun has no privilege over the namespaces that it comes from.
pub fn lacks_privilege() -> bool {
    is_unprivileged() || in_user_namespace()
}

/// Whether cgroups that may not be made are gone without; `asked` is what `--rootless` says.
pub fn tolerates_cgroups(asked: Option<bool>) -> bool {
    asked.unwrap_or_else(lacks_privilege)
}

/// What a plan asks that cannot be without privilege, found before anything is made.
pub fn check(plan: &Plan) -> Result<()> {
    if !is_unprivileged() {
        return Ok(());
    }
    let refuse = |field: &str, cause: &str| Err(Fault::new(Code::SpecInvalid, field).cause(cause));
    if !plan.namespaces.has(Kind::User) {
        return refuse("linux.namespaces", "rootless container requires user namespaces");
    }
    if let Some(mount) = plan.mounts.iter().find(|mount| mount.id_map.is_some()) {
        let field = format!("mounts[{}]", mount.index);
        return refuse(&field, "id-mapped mounts are not supported for rootless containers");
    }
    if !plan.net_devices.is_empty() {
        return refuse("linux.netDevices", "network devices are not supported for rootless containers");
    }
    if plan.namespaces.is_new(Kind::User) {
        return plan.mounts.iter().try_for_each(|mount| check_ids(plan, mount));
    }
    Ok(())
}

/// A file system whose owner is nobody's id in the container: the kernel would only say that it is invalid.
fn check_ids(plan: &Plan, mount: &MountPlan) -> Result<()> {
    let MountKind::Filesystem { options, .. } = &mount.kind else { return Ok(()) };
    for (name, value) in options {
        let mappings = match name.as_str() {
            "uid" => &plan.uid_mappings,
            "gid" => &plan.gid_mappings,
            _ => continue,
        };
        let id = value.as_deref().and_then(|value| value.parse().ok());
        if let Some(id) = id.filter(|id| !is_mapped(mappings, *id)) {
            return Err(Fault::new(Code::SpecInvalid, format!("mounts[{}].options", mount.index))
                .cause(format!("cannot specify {name}={id} mount option for rootless container: it is not mapped")));
        }
    }
    Ok(())
}

fn is_mapped(mappings: &[IdMapping], id: u32) -> bool {
    mappings.iter().any(|map| id >= map.container_id && id - map.container_id < map.size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_id_lies_in_a_range() {
        let maps = [IdMapping { container_id: 10, host_id: 1, size: 2 }];
        assert!(is_mapped(&maps, 10) && is_mapped(&maps, 11));
        assert!(!is_mapped(&maps, 9) && !is_mapped(&maps, 12) && !is_mapped(&[], 0));
    }
}
