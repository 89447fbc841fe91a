//! What may be left, of this test or of one that was killed.

use std::path::Path;
use std::process::Child;
use std::sync::Once;

use super::{Lab, eventually};

impl Lab {
    /// Asserts that of containers and sandboxes nothing is left: bundles, sockets, mounts, shims.
    pub(crate) async fn assert_nothing_left(&self) {
        let count = |path: &Path| std::fs::read_dir(path).map_or(0, Iterator::count);
        let directories =
            ["io.containerd.runtime.v2.task/default", "io.containerd.sandbox.controller.v1.shim/default", "s", "trash"];
        let left = || -> usize { directories.iter().map(|name| count(&self.path("run/shimd").join(name))).sum() };
        // containerd keeps bundles of tasks that could not be made; those are its own.
        if self.theirs.is_none() {
            eventually("bundles and sockets go", || left() == 0).await;
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.directory.path().to_str().unwrap()), "{mounts}");
        assert_eq!(count(&self.path("runc/default")), 0);
        eventually("shims go", || self.strays().is_empty()).await;
    }

    /// The shim of a container or sandbox: the process that was started with its id and this shimd's address.
    pub(crate) fn shim_pid(&self, id: &str) -> rustix::process::Pid {
        self.find_shim(id).unwrap_or_else(|| panic!("the shim of {id} does not run"))
    }

    /// A process of a program that shimd itself runs.
    pub(crate) fn child_of_shimd(&self, program: &str) -> Option<rustix::process::Pid> {
        let shimd = self.pid();
        let children = names_in(format!("/proc/{shimd}/task")).into_iter().flat_map(|thread| {
            let children = std::fs::read_to_string(format!("/proc/{shimd}/task/{thread}/children")).unwrap_or_default();
            children.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        });
        let pid = children.into_iter().find(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .unwrap_or_default()
                .ends_with(format!("{program}\0").as_bytes())
        });
        rustix::process::Pid::from_raw(pid?.parse().ok()?)
    }

    pub(crate) fn find_shim(&self, id: &str) -> Option<rustix::process::Pid> {
        let address = self.socket().display().to_string();
        let wanted = [address.as_str(), id];
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let pid = pids.find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            words[0].windows(15).any(|part| part == b"containerd-shim")
                && wanted.iter().all(|word| words.contains(&word.as_bytes()))
        });
        rustix::process::Pid::from_raw(pid?)
    }
}

impl Lab {
    /// Processes of this lab but for its shimd: their command lines name its directory.
    pub(crate) fn strays(&self) -> Vec<i32> {
        let own = self.child.as_ref().map_or(0, Child::id);
        processes_of(self.directory.path()).into_iter().filter(|pid| *pid as u32 != own).collect()
    }

    /// Removes what a failed test, or a failed containerd, has left: containers with their shims, and mounts.
    pub(crate) fn sweep(&self) {
        for pid in self.strays() {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            children.split_whitespace().filter_map(|child| child.parse().ok()).chain([pid]).for_each(kill);
        }
        unmount_below(self.directory.path());
    }
}

/// Processes but for this one whose command lines name a directory.
fn processes_of(directory: &Path) -> Vec<i32> {
    let directory = directory.display().to_string();
    let pids = names_in("/proc").into_iter().filter_map(|name| name.parse::<i32>().ok());
    let names_it = |pid: &i32| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains(&directory)
    };
    pids.filter(|pid| *pid as u32 != std::process::id()).filter(names_it).collect()
}

fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn unmount_below(directory: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let targets = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    for target in targets.filter(|target| Path::new(target).starts_with(directory)) {
        let _ = rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH);
    }
}

/// What labs' directories and their containers' cgroups are called, and then the number of the test's process: by it
/// those of a test that was killed are known.
const PREFIX: &str = "shimd-test-";

/// An empty directory for a lab.
pub(super) fn directory() -> tempfile::TempDir {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(sweep_dead);
    tempfile::Builder::new().prefix(&format!("{PREFIX}{}-", std::process::id())).tempdir().unwrap()
}

impl Lab {
    /// The cgroup of a container: called like the lab's directory.
    pub(crate) fn cgroup(&self, id: &str) -> String {
        format!("/{}-{id}", self.directory.path().file_name().unwrap().display())
    }
}

/// Removes what tests left that were killed: they could not do so themselves.
fn sweep_dead() {
    let temporary = std::env::temp_dir();
    for directory in names_in(&temporary).iter().filter(|name| is_of_dead(name)).map(|name| temporary.join(name)) {
        processes_of(&directory).into_iter().for_each(kill);
        unmount_below(&directory);
        let _ = std::fs::remove_dir_all(directory);
    }
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = names_in(root).into_iter().map(|name| root.join(name)).filter(|path| path.is_dir());
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        for cgroup in names_in(&hierarchy).iter().filter(|name| is_of_dead(name)).map(|name| hierarchy.join(name)) {
            remove_cgroup(&cgroup);
        }
    }
}

fn remove_cgroup(path: &Path) {
    for _ in 0..100 {
        // One that is frozen does not die.
        let _ = std::fs::write(path.join("freezer.state"), "THAWED");
        let inside = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        inside.lines().filter_map(|pid| pid.parse().ok()).for_each(kill);
        if std::fs::remove_dir(path).is_ok() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// Whether something has the name of a test's, and that test does not run any more.
fn is_of_dead(name: &str) -> bool {
    let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).and_then(|pid| pid.parse::<u32>().ok());
    let Some(pid) = pid else { return false };
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    // Another test may have got the number: then its neighbours wait for a later one.
    pid != std::process::id() && !program.components().any(|part| part.as_os_str() == "deps")
}

fn names_in(directory: impl AsRef<Path>) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
