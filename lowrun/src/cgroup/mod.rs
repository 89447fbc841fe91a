//! The container's cgroup: one directory in each v1 hierarchy, or in the v2 hierarchy, or (hybrid) both.
//!
//! Called by `create` (locate, create, limit), `init` (join) and the commands that look at a running container. It
//! reads `/proc/self/cgroup` and never the list of mounts, unless the hierarchies are mounted in unusual places.
//!
//! Why a v1 cgroup is joined by writing `0` to `tasks`: the kernel takes the lock of all forks and exits on the machine
//! (`cgroup_threadgroup_rwsem`) for any other way to move a process, and waits for an RCU grace period with it. A
//! thread that moves itself needs no such lock, and lowrun's child has one thread. On v2 `CLONE_INTO_CGROUP` does it.

mod death;
pub mod devices;
pub mod discover;
pub mod notify;
mod owner;
mod rootless;
pub mod stats;
mod tree;
mod update;
mod v1;
mod v2;

pub(crate) use v2::{ignored_weight, is_idle, swap_alone, weight};

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::fault::{Attempt, Code, Fault, Result};
use crate::plan::{CgroupPath, CgroupPlan};
use crate::spec::Resources;
use crate::sys::{Call, Failure};
use crate::systemd::{self, Unit, properties};

/// How long the removal of a cgroup waits for the last of its processes to be gone.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(5);
/// How long freezing may take before it is given up.
const FREEZE_PATIENCE: Duration = Duration::from_secs(5);

/// A container's directories in the hierarchies. Kept in the state file.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Cgroup {
    pub hierarchies: Vec<Hierarchy>,
    /// With the systemd driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<Unit>,
}

/// A directory in one hierarchy.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Hierarchy {
    /// `cpu,cpuacct`, `name=systemd`, or empty for v2.
    pub controllers: String,
    /// Where the hierarchy is mounted.
    pub mount: PathBuf,
    /// The container's directory.
    pub dir: PathBuf,
    /// Where the mount was found, while that is known.
    #[serde(skip)]
    pub top: Top,
}

/// A handle of the mount of a hierarchy: who makes and removes a container walks to each of its directories several
/// times, and from here the way is a third as long. Says nothing that the path does not say.
#[derive(Clone, Debug, Default)]
pub struct Top(Option<Rc<OwnedFd>>);

impl PartialEq for Hierarchy {
    fn eq(&self, other: &Hierarchy) -> bool {
        (&self.controllers, &self.mount, &self.dir) == (&other.controllers, &other.mount, &other.dir)
    }
}

impl Eq for Hierarchy {}

impl Hierarchy {
    /// Whether this is the v2 hierarchy.
    pub fn is_unified(&self) -> bool {
        self.controllers.is_empty()
    }

    /// Whether the v1 controller `name` is in this hierarchy.
    pub fn has(&self, name: &str) -> bool {
        self.controllers.split(',').any(|controller| controller == name)
    }

    /// The file that a process writes `0` to, to enter the directory.
    pub fn open_processes(&self) -> crate::sys::Result<OwnedFd> {
        self.open_write("cgroup.procs")
    }

    /// Opens a control file of the container's directory.
    fn open_write(&self, file: &str) -> crate::sys::Result<OwnedFd> {
        let path = self.dir.join(file);
        let (dir, path) = self.way_to(&path);
        rustix::fs::openat(dir, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).call("open")
    }

    /// A path of this hierarchy as a call with a directory takes it.
    fn way_to<'a>(&'a self, path: &'a Path) -> (BorrowedFd<'a>, &'a Path) {
        match (&self.top.0, path.strip_prefix(&self.mount)) {
            (Some(top), Ok(below)) if below.as_os_str().is_empty() => (top.as_fd(), Path::new(".")),
            (Some(top), Ok(below)) => (top.as_fd(), below),
            _ => (CWD, path),
        }
    }

    /// The directory's path in the hierarchy, as `/proc/PID/cgroup` shows it on the host.
    pub fn path_in_hierarchy(&self) -> &Path {
        self.dir.strip_prefix(&self.mount).unwrap_or(&self.dir)
    }
}

impl Cgroup {
    /// Where the cgroup of a plan will be; nothing is made.
    pub fn locate(plan: &CgroupPlan) -> Result<Cgroup> {
        let own = discover::own()?;
        let alone = own.len() == 1;
        let base = plan.unit.as_ref().map(|unit| systemd::base(unit.of_user)).transpose()?.unwrap_or_default();
        let hierarchies = own
            .into_iter()
            .map(|own| {
                let dir = match (&plan.unit, &plan.path) {
                    (Some(unit), _) => own.mount.join(&base).join(&unit.path),
                    (None, CgroupPath::Absolute(path)) => own.mount.join(path),
                    // As runc: on v2 a cgroup with processes may not have limited children, so a sibling is made.
                    (None, CgroupPath::Relative(path)) if alone && own.controllers.is_empty() => {
                        own.mount.join(own.path.parent().unwrap_or(Path::new(""))).join(path)
                    }
                    (None, CgroupPath::Relative(path)) => own.mount.join(&own.path).join(path),
                };
                Hierarchy { controllers: own.controllers, mount: own.mount, dir, top: Top(Some(Rc::new(own.top))) }
            })
            .collect();
        let unit = plan.unit.as_ref().map(|unit| Unit {
            name: unit.name.clone(),
            of_user: unit.of_user,
            description: String::new(),
        });
        Ok(Cgroup { hierarchies, unit })
    }

    /// What of it may be ended and removed: nothing, if its unit's name is another's by now.
    pub fn own(&self) -> Cgroup {
        if self.unit.as_ref().is_some_and(Unit::is_anothers) { Cgroup::default() } else { self.clone() }
    }

    /// Whether the machine has cgroup v2 only.
    pub fn is_unified(&self) -> bool {
        matches!(&self.hierarchies[..], [only] if only.is_unified())
    }

    /// The v2 directory, on v2 and hybrid machines.
    pub fn unified(&self) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.is_unified())
    }

    /// The directory with the v1 controller `name`.
    pub fn controller(&self, name: &str) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.has(name))
    }

    /// The directory that says who is in the container and freezes it.
    pub fn main(&self) -> Option<&Hierarchy> {
        if self.is_unified() { self.unified() } else { self.controller("freezer").or(self.hierarchies.first()) }
    }

    /// Makes all directories.
    pub fn create(&self, plan: &CgroupPlan) -> Result<()> {
        self.create_unified(plan)?;
        self.create_v1(plan)
    }

    /// Makes the v2 directory alone: the child is born in it. systemd makes its own, around a process.
    pub fn create_unified(&self, plan: &CgroupPlan) -> Result<()> {
        match self.unified() {
            Some(hierarchy) if self.unit.is_none() => self.create_in(hierarchy, plan),
            _ => Ok(()),
        }
    }

    /// With the systemd driver: has the unit made around the process, with its limits; then what systemd leaves out.
    pub fn start_unit(&self, plan: &CgroupPlan, pid: Pid, is_made: &Cell<bool>) -> Result<()> {
        let Some((unit, own)) = plan.unit.as_ref().zip(self.unit.as_ref()) else { return Ok(()) };
        // Another's unit of this name: as with directories. And what is left of one: systemd knows no freezer of v1, and would
        // move the process into one of v2.
        self.main().map_or(Ok(()), |hierarchy| check_empty(hierarchy).and_then(|()| check_thawed(hierarchy)))?;
        let (mut limits, _) = properties::of(&plan.resources, self.is_unified())?;
        limits.extend(properties::devices(&plan.devices, self.is_unified()));
        let oom_group = plan.resources.unified.get("memory.oom.group").map(String::as_str);
        systemd::start(unit, (&own.description, pid.as_raw_nonzero().get()), limits, oom_group, is_made)?;
        self.unified().map_or(Ok(()), |hierarchy| self.create_in(hierarchy, plan))
    }

    /// Makes the v1 directories alone.
    pub fn create_v1(&self, plan: &CgroupPlan) -> Result<()> {
        let mut v1 = self.hierarchies.iter().filter(|hierarchy| !hierarchy.is_unified());
        v1.try_for_each(|hierarchy| self.create_in(hierarchy, plan))
    }

    fn create_in(&self, hierarchy: &Hierarchy, plan: &CgroupPlan) -> Result<()> {
        let attempted = || format!("make cgroup {}", hierarchy.dir.display());
        let (top, below) = hierarchy.way_to(&hierarchy.dir);
        let made = rustix::fs::mkdirat(top, below, Mode::from_raw_mode(0o755));
        match made {
            Ok(()) => {}
            // What systemd has made has the process in it already.
            Err(Errno::EXIST) if self.unit.is_some() => {}
            Err(Errno::EXIST) => check_unused(hierarchy)?,
            Err(Errno::NOENT) => make_all(hierarchy).attempt(Code::CgroupFailed, attempted)?,
            Err(errno) => return Err(Fault::of(Code::CgroupFailed, attempted(), Failure { call: "mkdir", errno })),
        }
        if hierarchy.has("cpuset") {
            v1::fill_cpuset(hierarchy, made.is_ok())?;
        }
        if self.is_unified() {
            v2::enable_controllers(hierarchy, &plan.resources)?;
            if let Some(uid) = plan.owner {
                owner::give(&hierarchy.dir, uid)?;
            }
        }
        Ok(())
    }

    /// Puts the limits of a plan in force.
    pub fn limit(&self, plan: &CgroupPlan) -> Result<()> {
        match &self.unit {
            // systemd has them; the files get the same, rounded.
            Some(_) => self.write_limits(&properties::of(&plan.resources, self.is_unified())?.1)?,
            None => self.write_limits(&plan.resources)?,
        }
        if let Some(hierarchy) = self.controller("devices") {
            return v1::set_devices(hierarchy, &plan.devices);
        }
        match self.unified() {
            Some(hierarchy) if self.is_unified() => devices::attach(&hierarchy.dir, &plan.devices),
            _ => Ok(()),
        }
    }

    /// Changes limits other than those of devices.
    pub fn set(&self, resources: &Resources) -> Result<()> {
        let Some(unit) = &self.unit else { return self.write_limits(resources) };
        let (properties, rounded) = properties::of(resources, self.is_unified())?;
        // Before systemd has it: with a limit below the usage the container would be killed at once.
        self.check_before_update(resources)?;
        unit.set(properties)?;
        self.write_limits(&rounded)
    }

    fn check_before_update(&self, resources: &Resources) -> Result<()> {
        let Some(memory) = &resources.memory else { return Ok(()) };
        match self.unified().filter(|_| self.is_unified()) {
            Some(hierarchy) => v2::check_before_update(&hierarchy.dir, memory),
            None => {
                self.controller("memory").map_or(Ok(()), |hierarchy| v1::check_before_update(&hierarchy.dir, memory))
            }
        }
    }

    fn write_limits(&self, resources: &Resources) -> Result<()> {
        if self.is_unified() {
            return self.unified().map_or(Ok(()), |hierarchy| v2::set(hierarchy, resources));
        }
        if !resources.unified.is_empty() {
            return Err(Fault::new(Code::SpecInvalid, "linux.resources.unified")
                .cause("invalid configuration: cannot use unified on cgroup v1"));
        }
        v1::set(self, resources)
    }

    /// The files that the child writes `0` to, to enter the v1 directories.
    pub fn entrances(&self) -> Result<Vec<OwnedFd>> {
        let v1 = self.hierarchies.iter().filter(|hierarchy| !hierarchy.is_unified());
        v1.map(|hierarchy| {
            hierarchy
                .open_write("tasks")
                .attempt(Code::CgroupFailed, || format!("open cgroup {}", hierarchy.dir.display()))
        })
        .collect()
    }

    /// Moves a process in from outside; the slow way.
    pub fn add(&self, pid: Pid) -> Result<()> {
        self.hierarchies.iter().try_for_each(|hierarchy| add_to(hierarchy, pid))
    }

    /// As [`Cgroup::add`], into the v2 directory alone.
    pub fn add_unified(&self, pid: Pid) -> Result<()> {
        self.unified().map_or(Ok(()), |hierarchy| add_to(hierarchy, pid))
    }

    /// Whether only systemd may move processes in: a user may not take them out of the own session.
    pub fn is_entered_by_systemd(&self) -> bool {
        self.unit.as_ref().is_some_and(|unit| unit.of_user)
    }

    /// Has systemd move a process in, `below` the container's own directory.
    pub fn attach(&self, below: &Path, pid: Pid) -> Result<()> {
        let Some(unit) = &self.unit else { return Ok(()) };
        unit.attach(&Path::new("/").join(below).to_string_lossy(), pid.as_raw_nonzero().get())
    }

    /// All processes of the container, also those in cgroups below.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let Some(hierarchy) = self.main() else { return Ok(Vec::new()) };
        let mut pids = Vec::new();
        tree::each(&hierarchy.dir, |dir| collect_processes(dir, &mut pids))
            .attempt(Code::CgroupFailed, || format!("list cgroup {}", hierarchy.dir.display()))?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Whether any directory is still there.
    pub fn exists(&self) -> bool {
        self.hierarchies.iter().any(|hierarchy| hierarchy.dir.exists())
    }

    /// How many of its processes the kernel has killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        notify::oom_kills_in(self)
    }

    /// Whether the container is frozen.
    pub fn is_frozen(&self) -> bool {
        if self.is_unified() {
            let events = self.unified().and_then(|hierarchy| read(&hierarchy.dir.join("cgroup.events")).ok());
            return events.is_some_and(|text| text.lines().any(|line| line == "frozen 1"));
        }
        let state = self.controller("freezer").and_then(|hierarchy| read(&hierarchy.dir.join("freezer.state")).ok());
        state.is_some_and(|text| matches!(text.trim(), "FROZEN" | "FREEZING"))
    }

    /// Freezes or thaws the container, and waits until it is so.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let (hierarchy, file, word) = if self.is_unified() {
            (self.unified(), "cgroup.freeze", if frozen { "1" } else { "0" })
        } else {
            (self.controller("freezer"), "freezer.state", if frozen { "FROZEN" } else { "THAWED" })
        };
        let hierarchy = hierarchy.ok_or_else(|| Fault::new(Code::Unsupported, "there is no freezer cgroup"))?;
        let file = hierarchy.dir.join(file);
        let attempted = || format!("write {word} to {}", file.display());
        let begun = Instant::now();
        loop {
            write(&file, word).attempt(Code::CgroupFailed, attempted)?;
            if self.freeze_is_done(frozen) {
                return Ok(());
            }
            if begun.elapsed() > FREEZE_PATIENCE {
                // A container that forks all the time can outrun the v1 freezer: half frozen is worse than not at all.
                let _ = self.thaw_quietly();
                return Err(Fault::new(Code::CgroupFailed, attempted()).cause("unable to freeze"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn freeze_is_done(&self, frozen: bool) -> bool {
        if self.is_unified() {
            return self.is_frozen() == frozen;
        }
        let state = self.controller("freezer").and_then(|hierarchy| read(&hierarchy.dir.join("freezer.state")).ok());
        state.is_some_and(|text| text.trim() == if frozen { "FROZEN" } else { "THAWED" })
    }

    /// Thaws without a word about it: before killing, and when freezing failed.
    pub fn thaw_quietly(&self) -> bool {
        if self.is_unified() {
            return self.unified().is_some_and(|hierarchy| write(&hierarchy.dir.join("cgroup.freeze"), "0").is_ok());
        }
        self.controller("freezer")
            .is_some_and(|hierarchy| write(&hierarchy.dir.join("freezer.state"), "THAWED").is_ok())
    }

    /// Removes the directories and those that the container made below; waits a little while processes are dying.
    pub fn remove(&self) -> Result<()> {
        let deadline = Instant::now() + REMOVAL_PATIENCE;
        // A unit that was never made leaves nothing, whatever systemd says, or if it is not there at all.
        let stopped = self.unit.as_ref().map_or(Ok(()), Unit::stop);
        let mut first_fault = stopped.err().filter(|_| self.exists());
        for hierarchy in &self.hierarchies {
            if let Err(failure) = remove_dir(hierarchy, deadline) {
                let fault =
                    Fault::of(Code::CgroupFailed, format!("remove cgroup {}", hierarchy.dir.display()), failure);
                first_fault.get_or_insert(fault);
            }
        }
        first_fault.map_or(Ok(()), Err)
    }

    /// After a creation that was refused because a directory is somebody else's: removes what is nobody's, and nothing
    /// else. A process that was made has been in the v2 directory alone, and may take a moment to leave it.
    pub fn give_back(&self, had_process: bool) {
        // systemd makes a unit whole or not at all: nothing here is ours.
        if self.unit.is_some() {
            return;
        }
        for hierarchy in &self.hierarchies {
            if hierarchy.is_unified() && had_process {
                let _ = remove_dir(hierarchy, Instant::now() + REMOVAL_PATIENCE);
            } else if check_unused(hierarchy).is_ok() {
                let _ = rustix::fs::rmdir(&hierarchy.dir);
            }
        }
    }
}

fn add_to(hierarchy: &Hierarchy, pid: Pid) -> Result<()> {
    write(&hierarchy.dir.join("cgroup.procs"), &pid.as_raw_nonzero().to_string())
        .attempt(Code::CgroupFailed, || format!("move into cgroup {}", hierarchy.dir.display()))
}

/// A directory that is there already must be empty and not frozen, and keeps no rules of who was there before.
fn check_unused(hierarchy: &Hierarchy) -> Result<()> {
    check_empty(hierarchy)?;
    check_thawed(hierarchy)?;
    if hierarchy.is_unified() {
        devices::detach(&hierarchy.dir);
    }
    Ok(())
}

/// Who is in it already would be killed with the container.
fn check_empty(hierarchy: &Hierarchy) -> Result<()> {
    let mut processes = Vec::new();
    let attempted = || format!("make cgroup {}", hierarchy.dir.display());
    // Those of a container with an init of its own are all in cgroups below.
    tree::each(&hierarchy.dir, |dir| collect_processes(dir, &mut processes)).attempt(Code::CgroupFailed, attempted)?;
    match processes.len() {
        0 => Ok(()),
        count => Err(Fault::new(Code::CgroupInUse, attempted())
            .cause(format!("container's cgroup is not empty: {count} process(es) found"))),
    }
}

/// Who enters a frozen directory never comes to work.
fn check_thawed(hierarchy: &Hierarchy) -> Result<()> {
    let has = |file: &str, word: &str| read(&hierarchy.dir.join(file)).is_ok_and(|text| text.trim() == word);
    if has("cgroup.freeze", "1") || has("freezer.state", "FROZEN") || has("freezer.state", "FREEZING") {
        return Err(Fault::new(Code::CgroupInUse, format!("make cgroup {}", hierarchy.dir.display()))
            .cause("container's cgroup unexpectedly frozen"));
    }
    Ok(())
}

fn make_all(hierarchy: &Hierarchy) -> crate::sys::Result<()> {
    let below = hierarchy.dir.strip_prefix(&hierarchy.mount).unwrap_or(&hierarchy.dir);
    let mut dir = hierarchy.mount.clone();
    for name in below {
        dir.push(name);
        match rustix::fs::mkdir(&dir, Mode::from_raw_mode(0o755)) {
            Ok(()) if hierarchy.has("cpuset") && dir != hierarchy.dir => v1::fill_cpusets_to_come(hierarchy, &dir),
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Failure { call: "mkdir", errno }),
        }
    }
    Ok(())
}

fn collect_processes(dir: BorrowedFd<'_>, pids: &mut Vec<i32>) -> crate::sys::Result<()> {
    match crate::sys::read_kernel_file_at(dir, "cgroup.procs") {
        Ok(text) => pids.extend(String::from_utf8_lossy(&text).lines().filter_map(|line| line.parse::<i32>().ok())),
        // A threaded cgroup of v2 does not tell its processes; its parent does. Or it has gone.
        Err(failure) if matches!(failure.errno, Errno::OPNOTSUPP | Errno::NOENT | Errno::NODEV) => {}
        Err(failure) => return Err(failure),
    }
    Ok(())
}

fn remove_dir(hierarchy: &Hierarchy, deadline: Instant) -> crate::sys::Result<()> {
    let (top, below) = hierarchy.way_to(&hierarchy.dir);
    let mut pause = Duration::from_micros(50);
    loop {
        match rustix::fs::unlinkat(top, below, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
            Err(Errno::BUSY | Errno::NOTEMPTY) if Instant::now() < deadline => {
                // What is still busy below is so for the same reason, and is tried again.
                let _ = tree::remove_below(&hierarchy.dir, deadline);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Failure { call: "rmdir", errno }),
        }
        // A process leaves its cgroup a moment after its parent could reap it.
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

pub(crate) fn open_write(path: &Path) -> crate::sys::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).call("open")
}

/// Writes a control file in one call.
pub(crate) fn write(path: &Path, text: &str) -> crate::sys::Result<()> {
    write_to(&open_write(path)?, text)
}

fn write_to(file: &OwnedFd, text: &str) -> crate::sys::Result<()> {
    loop {
        match rustix::io::write(file, text.as_bytes()) {
            Err(Errno::INTR) => {}
            result => return result.call("write").map(drop),
        }
    }
}

/// Reads a control file.
pub(crate) fn read(path: &Path) -> crate::sys::Result<String> {
    let bytes = crate::sys::read_kernel_file(path)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Writes a limit; what the kernel refuses is told with the file and the value.
pub(crate) fn write_limit(dir: &Path, file: &str, value: &str) -> Result<()> {
    write(&dir.join(file), value).map_err(|failure| {
        let code = if failure.errno == Errno::NOENT { Code::Unsupported } else { Code::LimitInvalid };
        Fault::of(code, format!("write {value:?} to {}", dir.join(file).display()), failure)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_a_hierarchy_is_a_directory_that_is_there() {
        let mount = tempfile::tempdir().unwrap();
        std::fs::write(mount.path().join("cgroup.procs"), "1\n").unwrap();
        let top = rustix::fs::open(mount.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let at = |dir: PathBuf| Hierarchy {
            controllers: "pids".to_owned(),
            mount: mount.path().to_owned(),
            dir,
            top: Top(Some(Rc::new(top.try_clone().unwrap()))),
        };
        let below = mount.path().join("taken/below");
        std::fs::create_dir_all(&below).unwrap();
        std::fs::write(below.join("cgroup.procs"), "7\n8\n").unwrap();
        let refused = check_empty(&at(mount.path().join("taken"))).unwrap_err();
        assert!(refused.one_line().contains("2 process(es)"), "{refused:?}");
        let plan = CgroupPlan {
            path: CgroupPath::Absolute(PathBuf::new()),
            is_named: true,
            unit: None,
            owner: None,
            resources: Box::default(),
            devices: Vec::new(),
        };
        let refused = Cgroup::default().create_in(&at(mount.path().to_owned()), &plan).unwrap_err();
        assert_eq!(refused.code, Code::CgroupInUse, "who is in it is nobody of ours");
        let own = at(mount.path().join("a/b"));
        Cgroup::default().create_in(&own, &plan).unwrap();
        assert!(own.dir.is_dir());
        remove_dir(&own, Instant::now()).unwrap();
        assert!(!own.dir.exists() && mount.path().join("a").is_dir());
    }
}
