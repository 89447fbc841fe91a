//! A stack for a person to use: it lies below one directory, goes on when the program that started it ends, and is
//! taken away without a trace.
//!
//! `ROOT/env` is a shell file after which `strata` finds it. `ROOT/etc/daemons` names the processes by pid and start time,
//! so that another process which was given a pid anew is never taken for one of them.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::leak::{self, Kind, Leak, Scope, Snapshot};
use crate::registry::{Access, Registry};
use crate::site::Site;
use crate::stack::ours::{Ours, Settings, client, engined_command, socket};
use crate::{lab, process, programs, wait};

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
const IMAGES: [&str; 2] = ["busybox", "nginx"];

/// A running stack and the port of its registry.
pub struct Installation {
    pub site: Site,
    pub registry_port: u16,
    pub ours: Ours,
    registry: Registry,
}

impl Installation {
    /// Starts a registry with images, shimd and engined, with everything below `root`.
    ///
    /// # Errors
    /// When there is one at `root` already, or a part does not start.
    pub fn start(root: &Path) -> Result<Installation, String> {
        if let Some(path) = programs::missing_of_ours() {
            return Err(format!("{} is missing: run 'make build'", path.display()));
        }
        if root.join("etc/daemons").exists() {
            return Err(format!("there is a stack at {} already: run 'make down ROOT={0}' first", root.display()));
        }
        let site = Site::new(root, &instance_of(root))?.lasting();
        note_forwarding(&site)?;
        let registry = Registry::start(&site, "registry", Access::Anyone)?;
        note_daemon(&site, "registry", registry.pid())?;
        for image in IMAGES {
            registry.add(&programs::images().join(image), image, "latest")?;
        }
        let more = invoking_group().map(|gid| format!("socket_gid = {gid}\n")).unwrap_or_default();
        let mut ours =
            Ours::start(&site, &registry, Settings { more_at_head: more, prepared: Some(8), ..Settings::default() })?;
        for (name, pid) in [("shimd", ours.supervisor().pid()), ("engined", ours.engined().pid())] {
            note_daemon(&site, name, pid)?;
        }
        write_environment(&site, registry.port())?;
        Ok(Installation { registry_port: registry.port(), site, ours, registry })
    }

    /// Lets it go on without this process.
    pub fn leave_running(self) {
        self.ours.leave_running();
        self.registry.leave_running();
    }
}

/// Whoever called sudo may use the stack that root started.
fn invoking_group() -> Option<u32> {
    std::env::var("SUDO_GID").ok()?.parse().ok().filter(|gid| *gid != 0)
}

/// The name of the stack at `root`: the same each time, another one for another directory.
fn instance_of(root: &Path) -> String {
    // FNV-1a: small, and good enough to tell a person's few directories apart.
    let hash = root
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("u{:07x}", hash & 0x0fff_ffff)
}

fn note_forwarding(site: &Site) -> Result<(), String> {
    let now = fs::read_to_string(FORWARDING).map_err(|error| format!("read {FORWARDING}: {error}"))?;
    site.write_config("forwarding-before", &now).map(drop)
}

/// Adds a daemon to the list, or replaces it there when it was started anew.
///
/// # Errors
/// When the list cannot be written.
pub fn note_daemon(site: &Site, name: &str, pid: i32) -> Result<(), String> {
    let started = process::find(pid).ok_or_else(|| format!("{name} has ended"))?.started;
    let others = daemons(site).into_iter().filter(|daemon| daemon.name != name);
    let mut text: String =
        others.map(|daemon| format!("{} {} {}\n", daemon.name, daemon.pid, daemon.started)).collect();
    text += &format!("{name} {pid} {started}\n");
    site.write_config("daemons", &text).map(drop)
}

struct NotedDaemon {
    name: String,
    pid: i32,
    started: u64,
}

fn daemons(site: &Site) -> Vec<NotedDaemon> {
    let text = fs::read_to_string(site.path("etc/daemons")).unwrap_or_default();
    let parse = |line: &str| {
        let mut fields = line.split(' ');
        Some(NotedDaemon {
            name: fields.next()?.to_owned(),
            pid: fields.next()?.parse().ok()?,
            started: fields.next()?.parse().ok()?,
        })
    };
    text.lines().filter_map(parse).collect()
}

impl NotedDaemon {
    fn is_alive(&self) -> bool {
        process::find(self.pid).is_some_and(|now| now.started == self.started && now.state != 'Z')
    }

    fn end(&self) -> Result<(), String> {
        for (signal, patience_s) in [(Signal::SIGTERM, 20), (Signal::SIGKILL, 5)] {
            if !self.is_alive() {
                return Ok(());
            }
            let _ = kill(Pid::from_raw(self.pid), signal);
            let ended = wait::poll(Duration::from_secs(patience_s), || (!self.is_alive()).then_some(()));
            if ended.is_some() {
                return if signal == Signal::SIGTERM {
                    Ok(())
                } else {
                    Err(format!("{} did not end by SIGTERM", self.name))
                };
            }
        }
        Err(format!("{} (process {}) does not end", self.name, self.pid))
    }
}

fn write_environment(site: &Site, registry_port: u16) -> Result<(), String> {
    let path = site.root().join("env");
    let text = format!(
        "export STRATA_HOST='unix://{}'\nexport PATH='{}':\"$PATH\"\nexport REGPORT={registry_port}\nexport STRATA_ROOT='{}'\n",
        socket(site).display(),
        programs::ours().display(),
        site.root().display()
    );
    fs::write(&path, text).map_err(|error| format!("write {}: {error}", path.display()))?;
    if let Some(gid) = invoking_group() {
        chown(&path, None, Some(gid)).map_err(|error| format!("give {} to group {gid}: {error}", path.display()))?;
    }
    Ok(())
}

/// Removes the containers, ends the daemons and takes away every trace of the stack at `root`. Returns what went wrong on
/// the way; it goes on past that.
pub fn remove(root: &Path) -> Vec<String> {
    if !root.join("etc").is_dir() {
        return vec![format!("there is no stack at {}", root.display())];
    }
    let site = match Site::new(root, &instance_of(root)) {
        Ok(site) => site,
        Err(error) => return vec![error],
    };
    let mut troubles = Vec::new();
    remove_containers(&site, &mut troubles);
    for name in ["engined", "shimd", "registry"] {
        let found = daemons(&site).into_iter().find(|daemon| daemon.name == name);
        troubles.extend(found.and_then(|daemon| daemon.end().err()));
    }
    end_shims(root);
    remove_network(&site, &mut troubles);
    lab::detach_mounts_below(root);
    lab::empty_cgroups(&format!("strata-{}", site.instance()));
    restore_forwarding(&site, &mut troubles);
    if let Err(error) = fs::remove_dir_all(root) {
        troubles.push(format!("remove {}: {error}", root.display()));
    }
    troubles
}

/// As a person would. When engined does not answer, what is left of containers is killed by its cgroups later.
fn remove_containers(site: &Site, troubles: &mut Vec<String>) {
    let is_alive = |name: &str| daemons(site).iter().any(|daemon| daemon.name == name && daemon.is_alive());
    if !(is_alive("engined") && is_alive("shimd")) {
        return;
    }
    let mut fail = |what: &str| troubles.push(format!("{what}: the containers could not all be removed"));
    let Ok(listed) = client(site).args(["ps", "-aq", "--no-trunc"]).output() else { return fail("strata ps") };
    for id in String::from_utf8_lossy(&listed.stdout).lines() {
        if !client(site).args(["rm", "-f", id]).output().is_ok_and(|output| output.status.success()) {
            fail(&format!("strata rm -f {id}"));
        }
    }
}

/// A shim outlives the daemons; one that still has a container here names this directory in its command line.
fn end_shims(root: &Path) {
    let place = format!("{}/", root.display());
    let shims = || {
        process::all()
            .into_iter()
            .filter(|process| process.command.contains(&place) && process.command.contains("shim"))
    };
    for shim in shims() {
        let _ = kill(Pid::from_raw(shim.pid), Signal::SIGKILL);
    }
    wait::poll(Duration::from_secs(5), || shims().next().is_none().then_some(()));
}

fn remove_network(site: &Site, troubles: &mut Vec<String>) {
    match engined_command(site).arg("--remove-network").output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => troubles.push(format!("engined --remove-network: {}", String::from_utf8_lossy(&output.stderr))),
        Err(error) => troubles.push(format!("run engined --remove-network: {error}")),
    }
}

fn restore_forwarding(site: &Site, troubles: &mut Vec<String>) {
    let before = fs::read_to_string(site.path("etc/forwarding-before")).unwrap_or_default();
    let now = fs::read_to_string(FORWARDING).unwrap_or_default();
    if before.is_empty() || before == now {
        return;
    }
    if let Err(error) = fs::write(FORWARDING, before) {
        troubles.push(format!("restore {FORWARDING}: {error}"));
    }
}

/// What is on the machine, for a comparison with later.
pub fn look(root: &Path) -> Snapshot {
    Snapshot::take(&Scope {
        cgroup_name: &instance_of(root),
        ancestor: std::process::id() as i32,
        directories: &[root],
        ..Scope::default()
    })
}

/// What `later` has more and belongs to the stack at `root`: other people's mounts and links may come and go.
pub fn left_over(root: &Path, before: &Snapshot, later: &Snapshot) -> Vec<Leak> {
    let (place, instance) = (root.display().to_string(), instance_of(root));
    let is_ours = |leak: &Leak| match leak.kind {
        Kind::Link => leak.what.contains(&instance) || leak::is_port(leak),
        Kind::Mount | Kind::Nftables => leak.what.contains(&instance) || leak.what.contains(&place),
        _ => true,
    };
    before.grown_to(later).into_iter().filter(is_ours).collect()
}

/// The default place of a person's stack.
pub fn default_root() -> PathBuf {
    PathBuf::from("/tmp/strata")
}

/// The leaks as text.
pub fn report(leaks: &[Leak]) -> String {
    leak::report(leaks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_name() {
        assert_eq!(instance_of(Path::new("/tmp/strata")), instance_of(Path::new("/tmp/strata")));
        assert_ne!(instance_of(Path::new("/tmp/strata")), instance_of(Path::new("/tmp/strata2")));
        assert_eq!(instance_of(Path::new("/")).len(), 8);
    }
}
