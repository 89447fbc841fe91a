//! The sources of bind mounts of a container in a user namespace.
//!
//! The container side is then somebody on the host who may not reach them, and has no right to map their ids. So the
//! host side opens them, but in the container's mount namespace: what is copied there is locked as the kernel locked
//! the host's mounts when it copied them for a lesser user namespace, and propagates nothing back.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use super::clone::open_namespace;
use super::id_map;
use crate::channel::{HostEnd, ToInit};
use crate::fault::{Attempt, Code, Result};
use crate::init::{Setup, cut_propagation, open_source};
use crate::path;
use crate::plan::Plan;
use crate::plan::mounts::MountKind;
use crate::plan::namespaces::Kind;
use crate::state::{NamespaceIdentity, State};
use crate::sys::{self, Call};

/// Whether the host side opens the sources: it must be allowed to enter the container's mount namespace.
pub(super) fn are_opened_by_host(plan: &Plan) -> bool {
    let binds = plan.mounts.iter().any(|mount| matches!(mount.kind, MountKind::Bind { .. }));
    binds
        && plan.namespaces.has(Kind::User)
        && plan.namespaces.is_new(Kind::Mount)
        && rustix::process::geteuid().is_root()
}

/// Opens the sources in the mount namespace of the container's process and hands them over, in their order: the one of
/// mount `index`, or all that are there before the mounts are made.
pub(super) fn hand_over(
    setup: &Setup<'_>,
    host: &HostEnd,
    (pid, pidfd): (rustix::process::Pid, BorrowedFd<'_>),
    index: Option<usize>,
) -> Result<()> {
    let implied = implied_map(setup, pid)?;
    let place = Place::leave()?;
    let opened = sys::process::setns(pidfd, Kind::Mount.flag())
        .attempt(Code::NamespaceFailed, || "enter the container's mount namespace")
        .and_then(|()| open(setup, implied.as_ref(), index));
    place.come_back()?;
    opened?.iter().for_each(|tree| host.send_descriptor(ToInit::Source, tree.as_fd()));
    Ok(())
}

/// Takes away the stage of mounts that a container side left which was killed at work: on the host, or in the mount
/// namespace that it had joined, if that is still there. One of its own has gone with it.
pub fn sweep_stage(state: &State) -> Result<()> {
    let (namespaces, rootfs, name) = (&state.namespaces, &state.rootfs, state.stage_name());
    let attempted = || format!("take the stage of mounts off {}", rootfs.display());
    if namespaces.is_new(Kind::Mount) {
        return Ok(());
    }
    let proc = path::open_proc().attempt(Code::RootfsUnsafe, || "open the host's /proc")?;
    let sweep = |place: &Path| sys::stage::sweep(proc.as_fd(), place, &name).attempt(Code::MountFailed, attempted);
    if !namespaces.has(Kind::Mount) {
        return sweep(rootfs);
    }
    let Some(joined) = namespaces.path(Kind::Mount).and_then(|path| open_namespace(Kind::Mount, path).ok()) else {
        return Ok(());
    };
    // A path of a process may be another's by now, whose namespace is not to be entered.
    if state.mount_namespace.is_none() || NamespaceIdentity::of(joined.as_fd()).ok() != state.mount_namespace {
        return Ok(());
    }
    let place = Place::leave()?;
    if sys::process::setns(joined.as_fd(), Kind::Mount.flag()).is_err() {
        return Ok(());
    }
    // From the change of the root on, it is the root of that namespace.
    let swept = sweep(rootfs).and_then(|()| sweep(Path::new("/")));
    place.come_back()?;
    swept
}

/// The container's user namespace, for mounts that are mapped as it is.
fn implied_map(setup: &Setup<'_>, pid: rustix::process::Pid) -> Result<Option<OwnedFd>> {
    let is_implied = setup.plan.mounts.iter().any(|mount| mount.id_map.as_ref().is_some_and(|map| map.is_implied()));
    is_implied.then(|| id_map::of_process(setup.proc.as_fd(), pid)).transpose()
}

/// Whether there are sources that the container side is given before it mounts anything.
fn has_early(plan: &Plan) -> bool {
    let is_early = |kind: &MountKind| matches!(kind, MountKind::Bind { source, .. } if !plan.is_in_root(source));
    plan.mounts.iter().any(|mount| is_early(&mount.kind))
}

fn open(setup: &Setup<'_>, implied: Option<&OwnedFd>, index: Option<usize>) -> Result<Vec<OwnedFd>> {
    // As the container side finds it, which makes the copies then.
    sys::stage::find_denied(setup.proc.as_fd());
    // The container side waits for these before it makes its first mount, and cuts before it; it waits for none that may lie
    // on an earlier mount.
    if index.is_none() && has_early(setup.plan) {
        cut_propagation(setup.plan)?;
    }
    let mut trees = Vec::new();
    for mount in &setup.plan.mounts {
        if let MountKind::Bind { source, recursive } = &mount.kind
            && index.map_or(!setup.plan.is_in_root(source), |index| index == mount.index)
        {
            let map = setup.id_maps.get(&mount.index).or(implied);
            trees.push(open_source(mount, source, *recursive, map.map(AsFd::as_fd))?);
        }
    }
    Ok(trees)
}

/// Where this process is in its own mount namespace: joining another one changes root and working directory.
struct Place {
    namespace: OwnedFd,
    root: OwnedFd,
    dir: OwnedFd,
}

impl Place {
    fn leave() -> Result<Place> {
        let open = |path: &str, flags: OFlags| {
            rustix::fs::openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty())
                .call("open")
                .attempt(Code::SystemError, || format!("open {path}"))
        };
        let directory = OFlags::PATH | OFlags::DIRECTORY;
        Ok(Place {
            namespace: open("/proc/self/ns/mnt", OFlags::RDONLY)?,
            root: open("/", directory)?,
            dir: open(".", directory)?,
        })
    }

    fn come_back(&self) -> Result<()> {
        let back = || -> sys::Result<()> {
            sys::process::setns(self.namespace.as_fd(), Kind::Mount.flag())?;
            rustix::process::fchdir(&self.root).call("fchdir")?;
            rustix::process::chroot(".").call("chroot")?;
            rustix::process::fchdir(&self.dir).call("fchdir")
        };
        back().attempt(Code::NamespaceFailed, || "return to the own mount namespace")
    }
}
