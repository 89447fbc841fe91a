//! A container: its init, its execs, and what they share.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::cgroup::{Cgroup, read_file};
use crate::error::Error;
use crate::lowrun::{LogName, Runtime};
use crate::poll::Poller;
use crate::stdio::Owner;
use crate::task::checkpoint::Checkpoint;
use crate::task::process::{Key, Phase, Process};

/// What the kernel tells of a container only while its init lives.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) cgroup: Cgroup,
    /// The init is process 1 of a pid namespace: when it ends, all others do.
    pub(crate) is_own_pid_namespace: bool,
}

#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) runtime: Runtime,
    /// What it is made of when it is started; gone then.
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) has_rootfs: bool,
    /// It was decided whether the root file system stays in the host's mount table.
    pub(crate) is_rootfs_settled: bool,
    /// Keeps the root file system alive once it was taken off the host's mount table.
    pub(crate) hidden_rootfs: Option<OwnedFd>,
    pub(crate) is_paused: bool,
    pub(crate) init: Process,
    pub(crate) execs: Vec<Process>,
    pub(crate) kernel: Option<Kernel>,
    /// The kernel was asked to tell when it kills for memory, or refused that.
    pub(crate) is_watched: bool,
    /// Calls of the runtime that are at work.
    pub(crate) calls: u32,
    /// Calls of the runtime there ever were.
    pub(crate) call_count: u32,
}

impl Container {
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }

    /// Takes the root file system off the host's mount table, where nobody needs it any more once the program runs: the
    /// container has a mount of its own. Every new mount namespace copies that table, with hundreds of containers for a
    /// millisecond. It stays where the container lives in that very table, and where hooks come that may look for it.
    pub(crate) fn hide_rootfs(&mut self) -> io::Result<()> {
        if self.init.phase != Phase::Running || !self.has_rootfs || self.is_rootfs_settled {
            return Ok(());
        }
        self.is_rootfs_settled = true;
        if crate::rootfs::is_needed_after_start(&self.bundle) {
            return Ok(());
        }
        self.hidden_rootfs = Some(crate::rootfs::detach_all(&self.rootfs())?);
        Ok(())
    }

    /// Unmounts the root file system and returns what keeps it alive.
    pub(crate) fn take_rootfs(&mut self) -> io::Result<Option<OwnedFd>> {
        match self.hidden_rootfs.take() {
            None if self.has_rootfs => crate::rootfs::detach_all(&self.rootfs()).map(Some),
            hidden => Ok(hidden),
        }
    }

    /// Unmounts what was mounted for a container that will not be.
    pub(crate) fn undo_rootfs(&self) {
        if self.has_rootfs {
            // The failure that led here is the one to report; `delete` and the supervisor unmount again.
            let _ = crate::rootfs::unmount_all(&self.rootfs());
        }
    }

    /// Whether it has no process yet, as its start makes it of a checkpoint.
    pub(crate) fn waits_to_be_restored(&self) -> bool {
        self.checkpoint.is_some() && self.init.phase == Phase::Created
    }

    /// The file into which the runtime writes the pid of a process.
    pub(crate) fn pid_file(&self, exec_id: &str) -> PathBuf {
        let name = if exec_id.is_empty() { "init.pid".to_owned() } else { format!("{exec_id}.pid") };
        self.bundle.join(name)
    }

    /// The file that tells the runtime what an exec is to run.
    pub(crate) fn exec_file(&self, key: Key) -> PathBuf {
        self.bundle.join(format!("exec-{}.json", key.number()))
    }

    /// The init and the execs.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Process> {
        std::iter::once(&self.init).chain(&self.execs)
    }

    pub(crate) fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        std::iter::once(&mut self.init).chain(&mut self.execs)
    }

    /// The init for an empty id.
    pub(crate) fn process(&mut self, exec_id: &str) -> Result<&mut Process, Error> {
        let id = &self.id;
        std::iter::once(&mut self.init)
            .chain(&mut self.execs)
            .find(|process| process.exec_id == exec_id)
            .ok_or_else(|| Error::NotFound { what: format!("process {exec_id:?} of container {id} does not exist") })
    }

    pub(crate) fn owner<'a>(&'a self, namespace: &'a str, key: Key) -> Owner<'a> {
        let options = self.runtime.options();
        Owner { container: &self.id, namespace, bundle: &self.bundle, key, uid: options.io_uid, gid: options.io_gid }
    }

    /// The log for the next call of the runtime.
    pub(crate) fn next_log(&mut self) -> LogName {
        self.call_count += 1;
        if self.calls == 0 { LogName::Common } else { LogName::Own(self.call_count) }
    }

    /// Asks the kernel what it tells only while the init lives. It surely lives while it waits to be started.
    pub(crate) fn look(&mut self) -> io::Result<()> {
        if self.kernel.is_some() || self.init.phase != Phase::Created || self.init.pid == 0 {
            return Ok(());
        }
        let cgroup = Cgroup::of(self.init.pid)?;
        let status = read_file(format!("/proc/{}/status", self.init.pid))?;
        self.kernel = Some(Kernel { cgroup, is_own_pid_namespace: is_first_in_namespace(&status) });
        Ok(())
    }
}

impl Container {
    /// Asks the kernel to tell when it kills for memory. Not before the container is started: it takes a while, and the
    /// count is read at the end anyway.
    pub(crate) fn watch_kills(&mut self, poller: &mut Poller) -> io::Result<()> {
        if self.is_watched || self.init.phase != Phase::Running {
            return Ok(());
        }
        self.is_watched = true;
        self.kernel.as_mut().map_or(Ok(()), |kernel| kernel.cgroup.watch_kills(poller))
    }
}

/// Whether `/proc/PID/status` is of a process that is number 1 in a namespace of its own: `NSpid: 4711 1`.
fn is_first_in_namespace(status: &str) -> bool {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let mut numbers = numbers.split_whitespace();
    numbers.next().is_some() && numbers.next_back() == Some("1")
}

/// The pid in a file that the runtime has written.
pub(crate) fn read_pid(path: &Path) -> Result<u32, Error> {
    let failed = |source| Error::System { what: format!("read the pid in {}", path.display()), source };
    let text = read_file(path).map_err(failed)?;
    text.trim().parse().map_err(|_| failed(io::ErrorKind::InvalidData.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_namespace_is_known_by_its_first_process() {
        assert!(is_first_in_namespace("Name:\tsh\nNSpid:\t4711\t1\n"));
        assert!(is_first_in_namespace("NSpid:\t4711\t22\t1\n"));
        assert!(!is_first_in_namespace("NSpid:\t4711\n"));
        assert!(!is_first_in_namespace("NSpid:\t1\n"));
        assert!(!is_first_in_namespace("NSpid:\t4711\t9\n"));
        assert!(!is_first_in_namespace(""));
    }
}
