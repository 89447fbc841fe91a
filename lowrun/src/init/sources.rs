//! Copies of what is bind-mounted, taken before it is attached anywhere.
//!
//! Mostly a source is copied when its turn comes. In a user namespace all are there before: the host side has opened
//! them, or, where it cannot enter the container's mount namespace, the container side does before it becomes somebody
//! else. Whoever does cuts the propagation before, as it is cut before a source is copied in its turn: else a root that
//! is to be private would have binds that are slaves of the host's. But for sources in the container's own root, which
//! the mounts before may have made: those are asked for when their turn comes.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;

use super::{Setup, root};
use crate::channel::{FromInit, InitEnd, ToInit};
use crate::fault::{Attempt, Code, Fault, Result};
use crate::plan::mounts::{MountKind, MountPlan};
use crate::sys::{mount, stage};

/// The sources of bind mounts, by the mount's place in the spec.
#[derive(Default)]
pub(super) struct Sources(BTreeMap<usize, OwnedFd>);

impl Sources {
    /// All of them, from the host side or opened here.
    pub(super) fn open(setup: &Setup<'_>, channel: &InitEnd) -> Result<Sources> {
        let mut sources = Sources::default();
        if !setup.host_opens_sources {
            root::cut_propagation(setup.plan)?;
        }
        for mount in &setup.plan.mounts {
            let MountKind::Bind { source, recursive } = &mount.kind else { continue };
            if setup.plan.is_in_root(source) {
                continue;
            }
            let tree = if setup.host_opens_sources {
                channel.expect_descriptor(ToInit::Source)?
            } else {
                open_source(mount, source, *recursive, None)?
            };
            sources.0.insert(mount.index, tree);
        }
        Ok(sources)
    }

    /// The source of a mount.
    pub(super) fn take(&mut self, setup: &Setup<'_>, channel: &InitEnd, mount: &MountPlan) -> Result<OwnedFd> {
        let MountKind::Bind { source, recursive } = &mount.kind else {
            return Err(Fault::new(Code::SystemError, mount.describe()).cause("it has no source"));
        };
        let tree = match self.0.remove(&mount.index) {
            Some(tree) => tree,
            None if setup.host_opens_sources => {
                channel.send(&FromInit::Source { index: mount.index })?;
                channel.expect_descriptor(ToInit::Source)?
            }
            None => open_source(mount, source, *recursive, setup.id_maps.get(&mount.index).map(AsFd::as_fd))?,
        };
        match stage::makes_clones() {
            true => mount::clone_handle(tree.as_fd(), *recursive).attempt(Code::MountFailed, || mount.describe()),
            false => Ok(tree),
        }
    }
}

/// A detached copy of a source, with its ids mapped by the user namespace `map`, if the plan wants that. Where copies are
/// made on a stage, a handle of the source itself: only the container side has one.
pub fn open_source(mount: &MountPlan, source: &Path, recursive: bool, map: Option<BorrowedFd<'_>>) -> Result<OwnedFd> {
    let is_copied_later = stage::makes_clones();
    let opened = if is_copied_later { mount::open_source(source) } else { mount::clone_path(source, recursive) };
    let tree = opened.map_err(|failure| {
        let code = if failure.errno == Errno::NOENT { Code::MountSourceMissing } else { Code::MountFailed };
        Fault::of(code, mount.describe(), failure)
    })?;
    let Some(wanted) = &mount.id_map else { return Ok(tree) };
    if is_copied_later {
        return Err(Fault::new(Code::Unsupported, format!("mounts[{}]", mount.index))
            .cause("id-mapped mounts need open_tree and move_mount, which are denied here"));
    }
    let map = map.ok_or_else(|| {
        Fault::new(Code::Unsupported, format!("mounts[{}]", mount.index))
            .cause("id-mapped mounts are not supported for rootless containers")
    })?;
    mount::map_ids(tree.as_fd(), wanted.recursive, map)
        .attempt(Code::MountFailed, || format!("map the ids of {}", source.display()))
        .map_err(|fault| fault.hint("id-mapped mounts need Linux 5.12 and a file system that supports them"))?;
    Ok(tree)
}
