//! The readings of a snapshot, a function per kind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::process;

/// Every mount of the calling thread's mount namespace: where, of what type, from what. `mountinfo`'s numbers change from
/// mount to mount and are left out (proc_pid_mountinfo(5)).
pub(super) fn mounts() -> Vec<String> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").expect("/proc is mounted");
    text.lines().filter_map(mount_of).collect()
}

fn mount_of(line: &str) -> Option<String> {
    let (head, tail) = line.split_once(" - ")?;
    let root = head.split(' ').nth(3)?;
    let place = head.split(' ').nth(4)?;
    let mut tail = tail.split(' ');
    Some(format!("{place} ({} {} {root})", tail.next()?, tail.next()?))
}

/// The cgroups of every hierarchy whose path below the hierarchy contains `name`.
pub(super) fn cgroups(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for hierarchy in hierarchies() {
        below(Path::new(&hierarchy), &mut |path| {
            let relative = path.strip_prefix(&hierarchy).unwrap_or(path).to_string_lossy().into_owned();
            if !name.is_empty() && relative.contains(name) {
                found.push(path.display().to_string());
            }
        });
    }
    found
}

/// The mount points of the cgroup hierarchies, version 1 and 2, each once: a mount may hide another on the same place.
pub(super) fn hierarchies() -> Vec<String> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").expect("/proc is mounted");
    let is_cgroup = |line: &&str| line.contains(" - cgroup ") || line.contains(" - cgroup2 ");
    let places: BTreeSet<&str> = text.lines().filter(is_cgroup).filter_map(|line| line.split(' ').nth(4)).collect();
    places.into_iter().map(str::to_owned).collect()
}

/// Calls `see` with every directory below `path`, deepest last. Directories that vanish meanwhile are passed over.
fn below(path: &Path, see: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            see(&entry.path());
            below(&entry.path(), see);
        }
    }
}

/// The network interfaces of the calling thread's network namespace. (`/sys/class/net` would show those of the namespace
/// that sysfs was mounted in.)
pub(crate) fn links() -> Vec<String> {
    let text = fs::read_to_string("/proc/thread-self/net/dev").expect("/proc is mounted");
    let names = text.lines().skip(2).filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim());
    names.map(|name| if is_port(name) { PORT.to_owned() } else { name.to_owned() }).collect()
}

/// What engined's ports of a bridge are called here. Their own names tell the address, and those that are prepared ahead
/// have another one after each container: it is their number that is compared.
pub(crate) const PORT: &str = "a port of a bridge";

/// engined calls the host's ends of its veth pairs `v` and twelve hexadecimal digits.
fn is_port(link: &str) -> bool {
    link.len() == 13 && link.starts_with('v') && link[1..].chars().all(|digit| digit.is_ascii_hexdigit())
}

/// The tables, chains, rules and elements of nftables, line by line, without counters and handles.
pub(crate) fn nftables() -> Vec<String> {
    let output = Command::new("nft").args(["--stateless", "list", "ruleset"]).output();
    let output = output.unwrap_or_else(|error| panic!("run nft: {error}"));
    assert!(output.status.success(), "nft list ruleset: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut table = String::new();
    let mut found = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && *line != "}") {
        if line.starts_with("table ") {
            table = line.trim_end_matches(" {").to_owned();
        }
        found.push(format!("{table}: {line}"));
    }
    found
}

/// The descendants of `ancestor` but for `expected` ones. A zombie holds nothing but its number, and process 1 of a
/// machine may be slow to fetch it: it does not count.
pub(super) fn processes(ancestor: i32, expected: &[i32]) -> Vec<String> {
    let strangers = process::descendants(ancestor).into_iter();
    let strangers = strangers.filter(|process| process.state != 'Z' && !expected.contains(&process.pid));
    strangers.map(|process| format!("{} {}", process.pid, process.command)).collect()
}

/// What a daemon's descriptors refer to. Sockets, pipes and the like differ only in a number: of those only the kind is
/// kept, so that it is their count that is compared.
pub(super) fn descriptors(pid: i32) -> Vec<String> {
    let nameless = |target: &str| match target.split_once(":[") {
        Some((kind, _)) => kind.to_owned(),
        None => target.to_owned(),
    };
    let name = process::find(pid).map(|process| process.command).unwrap_or_default();
    let program = name.split(' ').next().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
    process::descriptors(pid).iter().map(|target| format!("{program}: {}", nameless(target))).collect()
}

/// Every file and directory below `directory` whose path contains none of `passing`.
pub(super) fn files(directory: &Path, passing: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else { return found };
    for entry in entries.flatten() {
        let path = entry.path();
        let text = path.display().to_string();
        if passing.iter().any(|part| text.contains(part)) {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files(&path, passing));
        }
        found.push(text);
    }
    found
}

/// What lies right in `directory`.
pub(super) fn entries(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path().display().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo() {
        let line = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        assert_eq!(mount_of(line).as_deref(), Some("/mnt2 (ext3 /dev/root /mnt1)"));
    }

    #[test]
    fn ports_of_a_bridge_are_known_by_their_names() {
        assert!(is_port("v12ab0a580002"));
        assert!(!is_port("veth12345678a") && !is_port("v12ab"));
    }

    #[test]
    fn files_below_a_directory() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(directory.path().join("a/b")).expect("directories");
        fs::write(directory.path().join("a/lock"), "").expect("a file");
        assert_eq!(files(directory.path(), &["lock"]).len(), 2);
        assert_eq!(files(directory.path(), &[]).len(), 3);
    }
}
