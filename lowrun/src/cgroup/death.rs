//! The end of what is in a container's cgroup: it is killed, and let die.
//!
//! To die takes time of a processor. Who has used up more than was given (many tasks on many processors, or a guest whose
//! machine stood still) would wait for it longer than anybody waits for its end. And what a v1 freezer holds does not die at
//! all. So limits of time are lifted and freezers thawed, also where the container has set them itself, in cgroups below its
//! own.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::Pid;

use super::{Cgroup, Hierarchy, collect_processes, discover, read, tree, write, write_to};
use crate::fault::Result;
use crate::state::NamespaceIdentity;
use crate::sys::{self, Call};

/// How often the processes of a container that cannot be frozen are killed anew.
const KILL_PASSES: usize = 64;

/// A control file that can keep the killed from dying, and its word that does not.
#[derive(Clone, Copy)]
struct Bar {
    file: &'static str,
    lifted: &'static str,
}

const CPU_MAX: Bar = Bar { file: "cpu.max", lifted: "max" };
const CPU_QUOTA: Bar = Bar { file: "cpu.cfs_quota_us", lifted: "-1" };
const FREEZER: Bar = Bar { file: "freezer.state", lifted: "THAWED" };

impl Cgroup {
    /// Sends SIGKILL to everything in the container, and lets it die at once.
    pub fn kill(&self) -> Result<()> {
        let killed = self.kill_all();
        self.let_all_die();
        killed
    }

    fn kill_all(&self) -> Result<()> {
        if let Some(hierarchy) = self.unified()
            && write(&hierarchy.dir.join("cgroup.kill"), "1").is_ok()
        {
            return Ok(());
        }
        // Before Linux 5.14: stop forks by freezing, signal each process, let them die. To be frozen takes time, too.
        self.let_all_die();
        let is_frozen = self.freeze(true).is_ok();
        let listed = self.kill_listed();
        self.thaw_quietly();
        if is_frozen {
            return listed.map(drop);
        }
        // What forks faster than it freezes also forks while it is listed: again, until none is left, but not for ever.
        (1..KILL_PASSES)
            .map(|_| self.kill_listed())
            .find(|listed| !matches!(listed, Ok(1..)))
            .unwrap_or(listed)
            .map(drop)
    }

    /// Sends SIGKILL to each process that is seen; how many there were.
    fn kill_listed(&self) -> Result<usize> {
        let pids = self.processes()?;
        for pid in pids.iter().copied().filter_map(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        Ok(pids.len())
    }

    /// In the container's cgroup and all below, as far as time allows.
    fn let_all_die(&self) {
        let deadline = tree::deadline();
        for (hierarchy, bar) in self.bars() {
            let _ = tree::each_until(&hierarchy.dir, deadline, |dir| {
                let _ = lift(dir, bar);
                Ok(())
            });
        }
    }

    fn bars(&self) -> Vec<(&Hierarchy, Bar)> {
        let bars = match self.is_unified() {
            true => [(self.unified(), CPU_MAX)].to_vec(),
            false => [(self.controller("freezer"), FREEZER), (self.controller("cpu"), CPU_QUOTA)].to_vec(),
        };
        bars.into_iter().filter_map(|(hierarchy, bar)| Some((hierarchy?, bar))).collect()
    }

    /// The ways to a process of the container that lives. If it does so also after this, they are its container's.
    pub fn ways_to(&self, pid: i32) -> Ways<'_> {
        let places = read(Path::new(&format!("/proc/{pid}/cgroup"))).unwrap_or_default();
        let way = |(hierarchy, bar)| {
            // Where lowrun sees other paths than the kernel tells, the container's own directory is all that is known; but
            // one of systemd's may be another unit's by now.
            let below = below(hierarchy, &places).or_else(|| self.unit.is_none().then(PathBuf::new))?;
            Some(Way { hierarchy, top: tree::open(CWD, &hierarchy.dir).ok()?, below, bar })
        };
        let ways = self.bars().into_iter().filter_map(way).collect();
        Ways { ways, namespace: Process::open(pid).and_then(|process| process.namespace()) }
    }
}

/// The cgroups from a container's own to that of its first process, in each hierarchy that can keep it from dying.
///
/// Held, not told by their paths: when the process is dead, there may be another container of that name.
///
/// The first process of a PID namespace does not end before all others of the namespace and of those in it, which are killed
/// with it. So their ways are cleared, too; but no others, because below a container's cgroup may be that of another
/// container, which is not killed. Who freezes them (version 1) anew before they come to die keeps the first one from its end
/// until the container is deleted by force.
pub struct Ways<'a> {
    ways: Vec<Way<'a>>,
    /// The namespace whose first process it is.
    namespace: Option<NamespaceIdentity>,
}

struct Way<'a> {
    hierarchy: &'a Hierarchy,
    top: OwnedFd,
    below: PathBuf,
    bar: Bar,
}

impl Ways<'_> {
    /// Lets the process die that was killed, and those that die with it.
    pub fn let_die(&self) {
        self.ways.iter().for_each(|way| way.lift(&way.below));
        let Some(namespace) = self.namespace else { return };
        self.ways.iter().for_each(|way| way.lift_for_others(namespace));
    }
}

impl Way<'_> {
    /// Where something in the way of others is left: for those of the namespace. Seldom is there anything, and then all that
    /// this takes is a look at each cgroup.
    fn lift_for_others(&self, namespace: NamespaceIdentity) {
        let (mut is_barred, mut pids) = (false, Vec::new());
        let _ = tree::each_in(self.top.as_fd(), tree::deadline(), |dir| {
            is_barred |= is_in_force(dir, self.bar);
            collect_processes(dir, &mut pids)
        });
        let others = pids.into_iter().filter(|_| is_barred).filter_map(Process::open);
        let places = others.filter(|process| process.is_in(namespace)).filter_map(|process| process.places());
        places.filter_map(|places| below(self.hierarchy, &places)).for_each(|below| self.lift(&below));
    }

    fn lift(&self, below: &Path) {
        let _ = lift(self.top.as_fd(), self.bar);
        let mut here = None;
        for name in below {
            let Ok(next) = tree::open(here.as_ref().unwrap_or(&self.top).as_fd(), name) else { return };
            let _ = lift(next.as_fd(), self.bar);
            here = Some(next);
        }
    }
}

/// The path of a process below the container's directory; `places` is the text of its `/proc/PID/cgroup`.
fn below(hierarchy: &Hierarchy, places: &str) -> Option<PathBuf> {
    let mut places = places.lines().filter_map(discover::parse);
    let (_, path) = places.find(|(controllers, _)| *controllers == hierarchy.controllers)?;
    let path = Path::new(path.trim_start_matches('/'));
    path.strip_prefix(hierarchy.path_in_hierarchy()).ok().map(Path::to_owned)
}

/// Lifts a bar in one directory, if it is there and its writer's. It is looked at before: for each limit of time that is
/// written the kernel goes through the processors with a lock of all of the machine's.
fn lift(dir: BorrowedFd<'_>, bar: Bar) -> sys::Result<()> {
    let (file, is_lifted) = look(dir, bar, OFlags::RDWR)?;
    if is_lifted { Ok(()) } else { write_to(&file, bar.lifted) }
}

fn is_in_force(dir: BorrowedFd<'_>, bar: Bar) -> bool {
    look(dir, bar, OFlags::RDONLY).is_ok_and(|(_, is_lifted)| !is_lifted)
}

/// The file of a bar, and whether that is lifted.
fn look(dir: BorrowedFd<'_>, bar: Bar, access: OFlags) -> sys::Result<(OwnedFd, bool)> {
    let file = rustix::fs::openat(dir, bar.file, access | OFlags::CLOEXEC, Mode::empty()).call("openat")?;
    let mut text = [0; 64];
    let length = rustix::io::pread(&file, &mut text, 0).call("pread")?;
    let word = text[..length].split(u8::is_ascii_whitespace).next();
    Ok((file, word == Some(bar.lifted.as_bytes())))
}

/// A process by its directory in `/proc`, so that all that is read is of the same one.
struct Process(OwnedFd);

impl Process {
    fn open(pid: i32) -> Option<Process> {
        tree::open(CWD, format!("/proc/{pid}")).ok().map(Process)
    }

    /// Its PID namespace.
    fn namespace(&self) -> Option<NamespaceIdentity> {
        NamespaceIdentity::of(self.open_namespace()?.as_fd()).ok()
    }

    /// Whether its PID namespace is this one, or lies in it.
    fn is_in(&self, namespace: NamespaceIdentity) -> bool {
        let parent = |here: &OwnedFd| sys::process::parent_namespace(here.as_fd()).ok();
        let mut around = std::iter::successors(self.open_namespace(), parent);
        around.any(|here| NamespaceIdentity::of(here.as_fd()).is_ok_and(|here| here == namespace))
    }

    fn open_namespace(&self) -> Option<OwnedFd> {
        rustix::fs::openat(&self.0, "ns/pid", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
    }

    /// Where it is in each hierarchy.
    fn places(&self) -> Option<String> {
        sys::read_kernel_file_at(self.0.as_fd(), "cgroup").ok().and_then(|text| String::from_utf8(text).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_below_its_container_and_nowhere_else() {
        let hierarchy = Hierarchy {
            controllers: "cpu,cpuacct".to_owned(),
            mount: PathBuf::from("/sys/fs/cgroup/cpu"),
            dir: PathBuf::from("/sys/fs/cgroup/cpu/a/c"),
            top: super::super::Top::default(),
        };
        let below = |path: &str| below(&hierarchy, &format!("9:cpuset:/x\n4:cpu,cpuacct:{path}\n0::/y\n"));
        assert_eq!(below("/a/c"), Some(PathBuf::new()));
        assert_eq!(below("/a/c/d/e:f"), Some(PathBuf::from("d/e:f")));
        for path in ["/a", "/a/cd", "/", "/../a/c"] {
            assert_eq!(below(path), None, "{path}");
        }
    }
}
