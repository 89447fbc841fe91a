//! Our daemons, with all their state in the site.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::daemon::Daemon;
use crate::programs;
use crate::registry::Registry;
use crate::site::Site;
use crate::sys;

use super::theirs::start_containerd_with;

/// What lies under engined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Supervisor {
    /// shimd.
    #[default]
    Shimd,
    /// Debian's containerd, with its own shim and runc.
    Containerd,
}

/// How a stack differs from the default one.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub supervisor: Supervisor,
    /// The shim's name, such as `io.containerd.runc.v2`; ours when there is none.
    pub runtime: Option<String>,
    /// Where shimd looks for shims first; with our other programs when there is none.
    pub shims: Option<PathBuf>,
    /// The OCI runtime that the shim calls; lowrun when there is none.
    pub runtime_binary: Option<PathBuf>,
    /// Put shimd's state on a file system of so many MiB.
    pub supervisor_megabytes: Option<u32>,
    /// How many network namespaces engined makes ahead; two when there is none said: so many are there at any time, and the
    /// links and descriptors before and after a test can be compared.
    pub prepared: Option<u32>,
    /// More lines of engined.toml, before its tables.
    pub more_at_head: String,
    /// More lines of engined.toml, after its tables.
    pub more: String,
}

/// The daemons.
pub struct Ours {
    site: Site,
    settings: Settings,
    supervisor: Daemon,
    engined: Daemon,
}

impl Ours {
    /// Writes the configuration, starts the supervisor and engined and waits until they answer.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start(site: &Site, registry: &Registry, settings: Settings) -> Result<Ours, String> {
        write_configuration(site, registry, &settings)?;
        if let Some(megabytes) = settings.supervisor_megabytes {
            mount_small_disk(&supervisor_root(site), megabytes)?;
        }
        let supervisor = start_supervisor(site, &settings)?;
        let engined = start_engined(site)?;
        Ok(Ours { site: site.clone(), settings, supervisor, engined })
    }

    pub(super) fn client(&self, site: &Site) -> Command {
        client(site)
    }

    /// An engine that makes many namespaces ahead has at any time as many as it makes, or up to three in four less: there may
    /// be more of them after a test than before it.
    pub(super) fn may_have_ports(&self, count: usize) -> bool {
        self.settings.prepared.is_some_and(|prepared| count <= prepared as usize)
    }

    pub(super) fn daemons(&mut self) -> Vec<&mut Daemon> {
        vec![&mut self.engined, &mut self.supervisor]
    }

    pub fn engined(&mut self) -> &mut Daemon {
        &mut self.engined
    }

    /// shimd, or the containerd in its place.
    pub fn supervisor(&mut self) -> &mut Daemon {
        &mut self.supervisor
    }

    /// Starts engined again after its end, and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn restart_engined(&mut self) {
        self.engined = start_engined(&self.site).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Starts the supervisor again after its end, and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn restart_supervisor(&mut self) {
        self.supervisor = start_supervisor(&self.site, &self.settings).unwrap_or_else(|error| panic!("{error}"));
    }

    /// After the daemons' end: takes away what an engine leaves for the next one, and what the harness had put there.
    ///
    /// # Errors
    /// When engined cannot.
    pub(super) fn clean_up(&self) -> Result<(), String> {
        if self.settings.supervisor_megabytes.is_some() {
            let place = supervisor_root(&self.site);
            umount2(&place, MntFlags::empty()).map_err(|errno| format!("unmount {}: {errno}", place.display()))?;
        }
        let output = engined_command(&self.site).arg("--remove-network").output();
        let output = output.map_err(|error| format!("run engined --remove-network: {error}"))?;
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(format!("engined --remove-network: {why}")) }
    }

    /// Leaves both running when this process ends; returns their pids.
    pub fn leave_running(self) -> [i32; 2] {
        [self.supervisor.leave_running(), self.engined.leave_running()]
    }

    pub(super) fn directories(site: &Site) -> Vec<PathBuf> {
        let run = ["run/engined", "run/shimd", "lib/engined/containers"];
        run.iter().map(|directory| site.path(directory)).collect()
    }

    pub(super) fn stores(site: &Site) -> Vec<PathBuf> {
        let stores = ["snapshots", "provisional", "trash", "content/ingest"];
        stores.iter().map(|store| supervisor_root(site).join(store)).collect()
    }
}

/// A call of `strata` for the stack at `site`.
pub fn client(site: &Site) -> Command {
    let mut command = site.command(&programs::ours().join("strata"));
    command.env("STRATA_HOST", format!("unix://{}", socket(site).display()));
    command.env("DOCKER_CONFIG", site.path("home/.docker"));
    command
}

/// Where engined listens.
pub fn socket(site: &Site) -> PathBuf {
    site.path("run/engined.sock")
}

/// Where the supervisor listens.
pub fn supervisor_socket(site: &Site, supervisor: Supervisor) -> PathBuf {
    match supervisor {
        Supervisor::Shimd => site.path("run/shimd.sock"),
        Supervisor::Containerd => site.path("run/containerd.sock"),
    }
}

fn write_configuration(site: &Site, registry: &Registry, settings: &Settings) -> Result<(), String> {
    site.write_config("engined.toml", &engined_toml(site, registry, settings))?;
    let shims = settings.shims.clone().unwrap_or_else(programs::ours);
    site.write_config("shimd.toml", &shimd_toml(site, &shims))?;
    Ok(())
}

fn shimd_toml(site: &Site, shims: &Path) -> String {
    format!(
        "root = '{}'\nstate = '{}'\naddress = '{}'\nshim_path = '{}'\nopt = '{}'\n",
        supervisor_root(site).display(),
        site.path("run/shimd").display(),
        supervisor_socket(site, Supervisor::Shimd).display(),
        shims.display(),
        site.path("opt").display()
    )
}

fn supervisor_root(site: &Site) -> PathBuf {
    site.path("lib/shimd")
}

fn mount_small_disk(place: &Path, megabytes: u32) -> Result<(), String> {
    fs::create_dir_all(place).map_err(|error| format!("create {}: {error}", place.display()))?;
    let options = format!("size={megabytes}m");
    let mounted = mount(Some("small-disk"), place, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()));
    mounted.map_err(|errno| format!("mount a tmpfs on {}: {errno}", place.display()))
}

fn engined_toml(site: &Site, registry: &Registry, settings: &Settings) -> String {
    let runtime = settings.runtime.as_deref().unwrap_or("io.containerd.strata.v1");
    let binary = settings.runtime_binary.as_deref().map(|path| format!("binary_name = '{}'\n", path.display()));
    format!(
        "root = '{}'\nstate = '{}'\naddress = '{}'\ncontainerd = '{}'\ninstance = '{}'\nruntime = '{runtime}'\n\
         {}[runtime_options]\n{}[network]\nip_forward = true\nprepared = {}\n[registry]\ninsecure = ['{}']\n{}",
        site.path("lib/engined").display(),
        site.path("run/engined").display(),
        socket(site).display(),
        supervisor_socket(site, settings.supervisor).display(),
        site.instance(),
        settings.more_at_head,
        binary.unwrap_or_default(),
        settings.prepared.unwrap_or(2),
        registry.host(),
        settings.more
    )
}

/// Starts shimd alone for a site, with the shims of a directory, and waits until it listens.
///
/// # Errors
/// When it does not start.
pub fn start_shimd(site: &Site, shims: &Path) -> Result<Daemon, String> {
    site.write_config("shimd.toml", &shimd_toml(site, shims))?;
    start_daemon(site, "shimd", &supervisor_socket(site, Supervisor::Shimd))
}

/// The same, but each sync of the file system answers at once and does nothing: weakened, for a test to find out.
///
/// # Errors
/// When it does not start.
pub fn start_shimd_without_syncs(site: &Site, shims: &Path) -> Result<Daemon, String> {
    site.write_config("shimd.toml", &shimd_toml(site, shims))?;
    let mut command = daemon_command(site, "shimd");
    sys::lose_syncs(&mut command);
    start_command(site, "shimd", command, &supervisor_socket(site, Supervisor::Shimd))
}

fn start_supervisor(site: &Site, settings: &Settings) -> Result<Daemon, String> {
    match settings.supervisor {
        Supervisor::Shimd => start_daemon(site, "shimd", &supervisor_socket(site, Supervisor::Shimd)),
        Supervisor::Containerd => start_containerd_with(site, &[("PATH", &path_with_ours())]),
    }
}

/// engined with the site's configuration.
pub fn engined_command(site: &Site) -> Command {
    let mut command = site.command(&programs::ours().join("engined"));
    command.arg("--config").arg(site.path("etc/engined.toml"));
    command
}

fn start_engined(site: &Site) -> Result<Daemon, String> {
    start_daemon(site, "engined", &socket(site))
}

fn start_daemon(site: &Site, name: &str, socket: &Path) -> Result<Daemon, String> {
    start_command(site, name, daemon_command(site, name), socket)
}

fn daemon_command(site: &Site, name: &str) -> Command {
    let mut command = site.daemon(&programs::ours().join(name));
    command.arg("--config").arg(site.path("etc").join(format!("{name}.toml")));
    command.env("PATH", path_with_ours());
    command
}

fn start_command(site: &Site, name: &str, command: Command, socket: &Path) -> Result<Daemon, String> {
    let mut daemon = Daemon::start(name, command, &site.path("log").join(format!("{name}.log")))?;
    daemon.ready(|| UnixStream::connect(socket).is_ok())?;
    Ok(daemon)
}

fn path_with_ours() -> String {
    format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", programs::ours().display())
}
