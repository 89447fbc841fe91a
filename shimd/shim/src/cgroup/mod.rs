//! The cgroups of a container, read only: its members, its counters, whether the kernel killed for memory. Making and
//! removing them is the runtime's.

mod v1;
mod v2;

use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use prost_types::Any;

use crate::poll::{Interest, Poller, Source, Token};

/// Where the hierarchies are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// Where a container is in the hierarchies.
#[derive(Debug)]
pub(crate) struct Cgroup {
    /// The content of the init's `/proc/PID/cgroup`.
    membership: String,
    seen_kills: u64,
    watch: Option<Watch>,
}

#[derive(Debug)]
struct Watch {
    /// An eventfd or an inotify instance.
    fd: OwnedFd,
    token: Token,
}

impl Cgroup {
    /// The cgroups of a process that lives: one that is ending is in none any more.
    pub(crate) fn of(pid: u32) -> io::Result<Cgroup> {
        let membership = read_file(format!("/proc/{pid}/cgroup"))?;
        Ok(Cgroup { membership, seen_kills: 0, watch: None })
    }

    /// The directory of a controller of version 1, where that is mounted.
    fn v1(&self, controller: &str) -> Option<PathBuf> {
        self.membership.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let is_it = controllers.split(',').any(|name| name == controller);
            is_it.then(|| under(&v1_mount(controllers, controller), path))
        })
    }

    /// The directory in the one hierarchy of version 2.
    fn v2(&self) -> Option<PathBuf> {
        let path = self.membership.lines().find_map(|line| line.strip_prefix("0::"))?;
        Some(under(Path::new(MOUNT), path))
    }

    /// Whether the controllers are those of version 1, alone or beside version 2.
    fn is_v1(&self) -> bool {
        self.v1("memory").is_some() || self.v1("pids").is_some()
    }

    /// All processes in the container's cgroup and below.
    pub(crate) fn pids(&self) -> io::Result<Vec<u32>> {
        let directory = ["pids", "memory", "systemd"].into_iter().find_map(|controller| self.v1(controller));
        let directory = directory.or_else(|| self.v2()).ok_or(io::ErrorKind::NotFound)?;
        let mut pids = Vec::new();
        collect_pids(&directory, &mut pids)?;
        pids.sort_unstable();
        Ok(pids)
    }

    /// The counters, as the message that clients of this version expect.
    pub(crate) fn stats(&self) -> io::Result<Any> {
        if self.is_v1() {
            return Ok(proto_shim::any(&v1::stats(|controller| self.v1(controller))));
        }
        let directory = self.v2().ok_or(io::ErrorKind::NotFound)?;
        // Without this no counter is there either.
        fs::metadata(&directory)?;
        Ok(proto_shim::any(&v2::stats(&directory)))
    }

    /// How often the kernel has killed for memory since the last time this was asked.
    pub(crate) fn new_kills(&mut self) -> u64 {
        let count = if self.is_v1() {
            self.v1("memory").and_then(|directory| keyed(&directory.join("memory.oom_control"), "oom_kill"))
        } else {
            self.v2().and_then(|directory| keyed(&directory.join("memory.events"), "oom_kill"))
        };
        let new = count.unwrap_or(self.seen_kills).saturating_sub(self.seen_kills);
        self.seen_kills += new;
        new
    }

    /// Wants to know at once when the kernel kills for memory.
    pub(crate) fn watch_kills(&mut self, poller: &mut Poller) -> io::Result<()> {
        let fd = match self.v1("memory") {
            Some(directory) => v1::watch_kills(&directory)?,
            None => v2::watch_kills(&self.v2().ok_or(io::ErrorKind::NotFound)?)?,
        };
        let token = poller.add(&fd, Source::Oom, Interest::Read)?;
        self.watch = Some(Watch { fd, token });
        Ok(())
    }

    /// Takes what the watch has to say, so that it is quiet until the next time.
    pub(crate) fn hear(&self) {
        if let Some(watch) = &self.watch {
            // An eventfd wants eight bytes, inotify room for an event with a name.
            let _ = rustix::io::read(&watch.fd, &mut [0; 512]);
        }
    }

    pub(crate) fn unwatch(&mut self, poller: &mut Poller) {
        if let Some(watch) = self.watch.take() {
            poller.remove(watch.token, &watch.fd);
        }
    }
}

/// Moves this process into the cgroup `path` of every hierarchy that has it.
pub(crate) fn join(path: &str) -> io::Result<()> {
    let own = Cgroup::of(std::process::id())?;
    let hierarchies = own.membership.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let mounts = hierarchies.map(|(controllers, _)| match controllers {
        "" => PathBuf::from(MOUNT),
        _ => v1_mount(controllers, controllers.split(',').next().unwrap_or(controllers)),
    });
    let mut joined = false;
    for members in mounts.map(|mount| under(&mount, path).join("cgroup.procs")).filter(|members| members.exists()) {
        fs::write(members, std::process::id().to_string())?;
        joined = true;
    }
    if joined { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Distributions mount controllers that share a hierarchy at their joined name, and some by the single name alone.
fn v1_mount(controllers: &str, controller: &str) -> PathBuf {
    let mount = Path::new(MOUNT);
    // `name=systemd` is mounted at `systemd`.
    let joined = mount.join(controllers.strip_prefix("name=").unwrap_or(controllers));
    if !controllers.contains(',') || joined.is_dir() { joined } else { mount.join(controller) }
}

fn under(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

/// Reads a file of the kernel's: these have no length to ask for, and one read mostly gets all.
pub(crate) fn read_file(path: impl AsRef<Path>) -> io::Result<String> {
    const ENOUGH: usize = 4096;
    let mut file = fs::File::open(path)?;
    let mut bytes = Vec::with_capacity(ENOUGH);
    loop {
        let filled = bytes.len();
        bytes.resize((filled + 1).max(bytes.capacity()), 0);
        let count = file.read(&mut bytes[filled..])?;
        bytes.truncate(filled + count);
        if count == 0 {
            return String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into());
        }
    }
}

fn collect_pids(directory: &Path, pids: &mut Vec<u32>) -> io::Result<()> {
    let members = read_file(directory.join("cgroup.procs"))?;
    pids.extend(members.lines().filter_map(|line| line.parse::<u32>().ok()));
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect_pids(&entry.path(), pids)?;
        }
    }
    Ok(())
}

/// A file with one number; `max` is the largest. A file that is not there counts nothing: kernels differ.
fn number(path: &Path) -> u64 {
    read_file(path).map_or(0, |text| parse_number(text.trim()))
}

fn parse_number(text: &str) -> u64 {
    if text == "max" { u64::MAX } else { text.parse().unwrap_or(0) }
}

/// The number after `key` in a file of lines `key number`.
fn keyed(path: &Path, key: &str) -> Option<u64> {
    let text = read_file(path).ok()?;
    Table::parse(&text).get(key)
}

/// A file of lines `key number`.
#[derive(Debug, Default)]
struct Table<'a>(Vec<(&'a str, u64)>);

impl<'a> Table<'a> {
    fn parse(text: &'a str) -> Table<'a> {
        let pair = |line: &'a str| line.split_once(' ').map(|(key, value)| (key, parse_number(value.trim())));
        Table(text.lines().filter_map(pair).collect())
    }

    fn get(&self, key: &str) -> Option<u64> {
        self.0.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
    }

    fn or_zero(&self, key: &str) -> u64 {
        self.get(key).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(membership: &str) -> Cgroup {
        Cgroup { membership: membership.to_owned(), seen_kills: 0, watch: None }
    }

    #[test]
    fn controllers_are_found_where_they_are() {
        let hybrid = cgroup("12:cpu,cpuacct:/a/b\n5:memory:/a/b\n1:name=systemd:/c\n0::/d\n");
        assert!(hybrid.is_v1());
        assert_eq!(hybrid.v1("memory").unwrap(), Path::new("/sys/fs/cgroup/memory/a/b"));
        assert!(hybrid.v1("cpuacct").unwrap().ends_with("a/b"));
        assert_eq!(hybrid.v1("hugetlb"), None);
        let unified = cgroup("0::/user.slice/x\n");
        assert!(!unified.is_v1());
        assert_eq!(unified.v2().unwrap(), Path::new("/sys/fs/cgroup/user.slice/x"));
    }

    #[test]
    fn tables_and_numbers() {
        let table = Table::parse("low 0\noom_kill 3\nmax max\nbroken\n");
        assert_eq!((table.or_zero("oom_kill"), table.or_zero("max"), table.get("none")), (3, u64::MAX, None));
    }

    #[test]
    fn own_cgroup_counts_itself() {
        let own = Cgroup::of(std::process::id()).unwrap();
        assert!(own.pids().unwrap().contains(&std::process::id()));
        assert!(!own.stats().unwrap().value.is_empty());
    }
}
