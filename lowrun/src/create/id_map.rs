//! Mappings of ids: written for the container's user namespace, and made into user namespaces of their own for
//! id-mapped mounts.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;

use super::wait;
use crate::channel::{self, ToInit};
use crate::fault::{Attempt, Code, Fault, Result};
use crate::path;
use crate::plan::Plan;
use crate::plan::mounts::IdMap;
use crate::plan::namespaces::Kind;
use crate::rootless;
use crate::spec::IdMapping;
use crate::sys::clone::{Forked, clone3};
use crate::sys::{self, Call};

/// Writes the mappings of a process's new user namespace. Without privilege that can be the own id alone; for more there
/// are the two programs that may, by what `/etc/subuid` and `/etc/subgid` grant.
pub(super) fn write(proc: BorrowedFd<'_>, pid: Pid, uids: &[IdMapping], gids: &[IdMapping]) -> Result<()> {
    let privileged = !rootless::is_unprivileged();
    if privileged || is_own(uids, rustix::process::geteuid().as_raw()) {
        write_one(proc, pid, "uid_map", &text(uids))?;
    } else {
        run_tool("newuidmap", pid, uids)?;
    }
    let own_group = is_own(gids, rustix::process::getegid().as_raw());
    if !privileged && own_group {
        // Else groups that deny something could be dropped.
        write_one(proc, pid, "setgroups", "deny")?;
    }
    if privileged || own_group {
        write_one(proc, pid, "gid_map", &text(gids))
    } else {
        run_tool("newgidmap", pid, gids)
    }
}

fn write_one(proc: BorrowedFd<'_>, pid: Pid, file: &str, text: &str) -> Result<()> {
    path::write_in_proc(proc, &format!("{}/{file}", pid.as_raw_nonzero()), text)
        .attempt(Code::SpecInvalid, || format!("write the container's {file}"))
}

fn is_own(mappings: &[IdMapping], id: u32) -> bool {
    matches!(mappings, [only] if only.host_id == id && only.size == 1)
}

fn run_tool(name: &str, pid: Pid, mappings: &[IdMapping]) -> Result<()> {
    let attempted = || format!("run {name}");
    let numbers = mappings.iter().flat_map(|map| [map.container_id, map.host_id, map.size]);
    let mut command = std::process::Command::new(name);
    command.arg(pid.as_raw_nonzero().to_string()).args(numbers.map(|number| number.to_string()));
    let output = command.stdin(std::process::Stdio::null()).output().call("execve");
    let output = output.attempt(Code::NamespaceFailed, attempted).map_err(|fault| {
        fault.hint(format!("{name} comes with the package uidmap; without it, map the own id alone"))
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', ": ");
    Err(Fault::new(Code::SpecInvalid, attempted())
        .cause(said)
        .hint("what may be mapped stands in /etc/subuid and /etc/subgid"))
}

fn text(mappings: &[IdMapping]) -> String {
    mappings.iter().map(|map| format!("{} {} {}\n", map.container_id, map.host_id, map.size)).collect()
}

/// The user namespaces of the id-mapped mounts with mappings of their own, by the mount's place in the spec. Mounts with
/// equal mappings share one.
pub(super) fn namespaces(plan: &Plan, proc: BorrowedFd<'_>) -> Result<BTreeMap<usize, OwnedFd>> {
    let mut made: BTreeMap<usize, OwnedFd> = BTreeMap::new();
    for mount in &plan.mounts {
        let Some(map) = mount.id_map.as_ref().filter(|map| !map.is_implied()) else { continue };
        let attempted = || format!("make a user namespace for mounts[{}]", mount.index);
        let same = plan.mounts[..].iter().find(|other| {
            made.contains_key(&other.index) && other.id_map.as_ref().is_some_and(|other| other.maps_as(map))
        });
        let namespace = match same.and_then(|other| made.get(&other.index)) {
            Some(namespace) => namespace.try_clone().call("fcntl").attempt(Code::SystemError, attempted)?,
            None => namespace_of(map, proc).map_err(|fault| fault.cause(attempted()))?,
        };
        made.insert(mount.index, namespace);
    }
    Ok(made)
}

/// A user namespace with these mappings, which lives for as long as its handle. The process that it is made with ends
/// when its end of the channel does.
fn namespace_of(map: &IdMap, proc: BorrowedFd<'_>) -> Result<OwnedFd> {
    let (host, init) = channel::pair()?;
    let forked = clone3(Kind::User.flag(), None).attempt(Code::NamespaceFailed, || "make a user namespace")?;
    match forked {
        Forked::Child => {
            drop(host);
            let _ = init.expect(ToInit::Continue);
            sys::process::exit_now(0)
        }
        Forked::Parent { pid, pidfd } => {
            drop(init);
            let namespace = write(proc, pid, &map.uids, &map.gids).and_then(|()| of_process(proc, pid));
            drop(host);
            let _ = wait::reap(pidfd.as_fd());
            namespace
        }
    }
}

/// The user namespace that a process is in.
pub(super) fn of_process(proc: BorrowedFd<'_>, pid: Pid) -> Result<OwnedFd> {
    let path = format!("{}/ns/user", pid.as_raw_nonzero());
    rustix::fs::openat(proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .call("openat")
        .attempt(Code::NamespaceFailed, || "open the user namespace")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_a_line() {
        let map = |container_id, host_id, size| IdMapping { container_id, host_id, size };
        assert_eq!(text(&[map(0, 1000, 1), map(1, 100_000, 65_536)]), "0 1000 1\n1 100000 65536\n");
        assert!(is_own(&[map(0, 1000, 1)], 1000) && is_own(&[map(7, 1000, 1)], 1000));
        assert!(!is_own(&[map(0, 1000, 2)], 1000) && !is_own(&[map(0, 1001, 1)], 1000) && !is_own(&[], 0));
    }
}
