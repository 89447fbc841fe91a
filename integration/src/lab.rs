//! A place for one test: network and mount namespaces of its own, a directory, a name.
//!
//! The test's own thread enters the namespaces, so that all it starts is in them: bridges, tables, mounts and ports of
//! parallel tests never meet, a dockerd may set its FORWARD to drop, and what remains in them afterwards is a leak of this
//! test. `/run` is empty there, and the site's own `run` is a tmpfs as it is. Cgroups and processes are the machine's: cgroups
//! carry the lab's name, and orphans come to the harness, which is the subreaper of all that it starts.
//!
//! A lab whose process was killed is swept away by the next one that is made.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::leak::{Leak, Scope, Snapshot};
use crate::site::Site;
use crate::{leak, process, wait};

const PREFIX: &str = "strata-lab-";
const CGROUPS: &str = "/sys/fs/cgroup";

/// The place, and what was there before the test.
pub struct Lab {
    site: Site,
    before: Snapshot,
    /// Processes are told apart by descent alone, so that a process has one lab at a time. (nextest runs each test in a
    /// process of its own; cargo's runner waits here.)
    _only: MutexGuard<'static, ()>,
}

static ONLY: Mutex<()> = Mutex::new(());

impl Lab {
    /// Enters new namespaces with the calling thread, for good, and makes the directory.
    ///
    /// # Panics
    /// When the kernel refuses, for instance because the caller is not root.
    pub fn enter() -> Lab {
        // A test that failed with a lab has taken its lab away.
        let only = ONLY.lock().unwrap_or_else(PoisonError::into_inner);
        sweep_dead_labs();
        crate::sys::adopt_orphans();
        let instance = next_instance();
        let root = std::env::temp_dir().join(format!("{PREFIX}{instance}"));
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&root)
            .unwrap_or_else(|error| panic!("create {}: {error}", root.display()));
        fs::write(root.join("owner"), std::process::id().to_string()).expect("write the lab's owner");
        let site = Site::new(&root, &instance).expect("the lab's directories");
        enter_namespaces(&site);
        let before = Snapshot::take(&scope(&site, &[], &[]));
        Lab { site, before, _only: only }
    }

    pub fn site(&self) -> &Site {
        &self.site
    }

    /// What there was when the lab was new.
    pub fn before(&self) -> &Snapshot {
        &self.before
    }

    /// What there is now, with the descriptors of `daemons`, and without them among the processes.
    pub fn look(&self, daemons: &[i32], directories: &[&Path]) -> Snapshot {
        Snapshot::take(&scope(&self.site, daemons, directories))
    }

    /// What there is more than before the test, once everything that it started should be gone, but for what `may_stay`.
    pub fn leaks(&self, may_stay: impl Fn(&Leak) -> bool) -> Vec<Leak> {
        let mut leaks = Vec::new();
        // A daemon's last children may still be on their way out.
        wait::poll(Duration::from_secs(5), || {
            leaks = self.before.grown_to(&self.look(&[], &[]));
            leaks.retain(|leak| !may_stay(leak));
            leaks.is_empty().then_some(())
        });
        leaks
    }

    /// Takes away everything, whatever state it is in.
    pub fn remove(self) {
        kill_descendants();
        empty_cgroups(self.site.instance());
        detach_mounts_below(self.site.root());
        remove_tree(self.site.root());
    }
}

fn scope<'a>(site: &'a Site, daemons: &'a [i32], directories: &'a [&'a Path]) -> Scope<'a> {
    Scope {
        cgroup_name: site.instance(),
        ancestor: std::process::id() as i32,
        expected: daemons,
        daemons,
        directories,
        passing: &[],
    }
}

/// At most eight letters and digits, different for each lab that lives at the same time on this machine.
fn next_instance() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed) % 1296;
    format!("t{}{:0>2}", base36(std::process::id()), base36(count))
}

fn base36(mut number: u32) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit(number % 36, 36).expect("a digit below 36"));
        number /= 36;
        if number == 0 {
            return digits.iter().rev().collect();
        }
    }
}

fn enter_namespaces(site: &Site) {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("unshare mount and network namespaces");
    let none: Option<&str> = None;
    // The machine's mounts must not hear of ours (systemd makes them shared).
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("make the mounts private");
    show_own_network_in_sys(site);
    // What lives only as long as the machine runs lies in memory on a machine too. (ext4 takes milliseconds to find an inode
    // for a new file where thousands were freed within the last minute.)
    for place in [Path::new("/run"), &site.path("run")] {
        let mounted = mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), Some("mode=755"));
        mounted.unwrap_or_else(|errno| panic!("mount a tmpfs on {}: {errno}", place.display()));
    }
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("run ip");
    assert!(status.success(), "ip link set lo up: {status}");
}

/// sysfs shows the network namespace that it was mounted in: a new one is put over it, with the cgroups moved on top.
fn show_own_network_in_sys(site: &Site) {
    let none: Option<&str> = None;
    let aside = site.path("tmp/cgroup");
    fs::create_dir(&aside).expect("a place for the cgroups");
    bind_cgroups(&aside);
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).expect("mount sysfs");
    mount(Some(&aside), CGROUPS, none, MsFlags::MS_MOVE, none).expect("move the cgroups back");
    fs::remove_dir(&aside).expect("remove the place for the cgroups");
}

/// The machine's cgroups. Where each hierarchy is a mount of its own, their parent is made anew and closed, as systemd
/// leaves it: Podman and others would make directories there for the controllers that this kernel lacks, or take what
/// another did so for a controller.
fn bind_cgroups(aside: &Path) {
    let none: Option<&str> = None;
    if statfs(CGROUPS).is_ok_and(|data| data.filesystem_type() != TMPFS_MAGIC) {
        mount(Some(CGROUPS), aside, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).expect("bind the cgroups aside");
        return;
    }
    mount(Some("tmpfs"), aside, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).expect("mount a tmpfs");
    let hierarchies = leak::hierarchies();
    for entry in fs::read_dir(CGROUPS).expect("the cgroups").flatten() {
        let (place, own) = (entry.path(), aside.join(entry.file_name()));
        if let Ok(target) = fs::read_link(&place) {
            std::os::unix::fs::symlink(target, own).expect("another name of a hierarchy");
        } else if hierarchies.iter().any(|hierarchy| Path::new(hierarchy) == place) {
            fs::create_dir(&own).expect("a place for a hierarchy");
            mount(Some(&place), &own, none, MsFlags::MS_BIND, none).expect("bind a hierarchy");
        }
    }
    let closed = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(none, aside, none, closed, none).expect("close the hierarchies' parent");
}

/// Kills what descends from this process until nothing is left, and fetches the dead.
fn kill_descendants() {
    let me = std::process::id() as i32;
    let all_gone = wait::poll(Duration::from_secs(10), || {
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status.pid().is_some()) {}
        let living: Vec<_> = process::descendants(me).into_iter().filter(|process| process.state != 'Z').collect();
        for process in &living {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        living.is_empty().then_some(())
    });
    if all_gone.is_none() {
        eprintln!("lab: some processes do not end: {:?}", process::descendants(me));
    }
}

/// Kills the processes of the cgroups that carry `name` and removes those cgroups, deepest first.
pub(crate) fn empty_cgroups(name: &str) {
    let mut groups = leak::cgroups_named(name);
    groups.sort_by_key(|path| std::cmp::Reverse(path.len()));
    for group in groups {
        let members = || fs::read_to_string(format!("{group}/cgroup.procs")).unwrap_or_default();
        for pid in members().lines().filter_map(|line| line.parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let gone = || (fs::remove_dir(&group).is_ok() || !Path::new(&group).exists()).then_some(());
        if wait::poll(Duration::from_secs(5), gone).is_none() {
            eprintln!("lab: cannot remove the cgroup {group}");
        }
    }
}

/// Detaches the mounts below a directory, last made first.
pub(crate) fn detach_mounts_below(directory: &Path) {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let places =
        text.lines().filter_map(|line| line.split(' ').nth(4)).filter(|place| Path::new(place).starts_with(directory));
    for place in places.collect::<Vec<_>>().into_iter().rev() {
        let _ = umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
}

fn remove_tree(root: &Path) {
    if let Err(error) = fs::remove_dir_all(root) {
        eprintln!("lab: cannot remove {}: {error}", root.display());
    }
}

/// Removes the labs whose process was killed before it could. Their namespaces ended with their last process.
fn sweep_dead_labs() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    let labs = entries
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.strip_prefix(PREFIX)?.to_owned(), entry.path())));
    for (instance, root) in labs.filter(|(_, root)| owner_is_dead(root)).collect::<Vec<(String, PathBuf)>>() {
        empty_cgroups(&instance);
        // Another test may sweep the same lab at the same time.
        let _ = fs::remove_dir_all(root);
    }
}

fn owner_is_dead(root: &Path) -> bool {
    let Ok(text) = fs::read_to_string(root.join("owner")) else { return false };
    text.parse().is_ok_and(|pid: i32| process::find(pid).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_short_and_differ() {
        let (one, two) = (next_instance(), next_instance());
        assert_ne!(one, two);
        assert!(one.len() <= 8 && one.chars().all(|c| c.is_ascii_alphanumeric()), "{one}");
        assert_eq!(
            (base36(0), base36(35), base36(36), base36(4_194_304)),
            ("0".into(), "z".into(), "10".into(), "2hwcg".into())
        );
    }
}
