//! Debian's dockerd over Debian's containerd, with all their state in the site.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::ours;
use crate::daemon::Daemon;
use crate::site::Site;
use crate::{http, programs};

/// The two daemons.
pub struct Theirs {
    containerd: Daemon,
    dockerd: Daemon,
}

impl Theirs {
    /// Starts both and waits until dockerd answers.
    ///
    /// # Errors
    /// When one is missing or does not start.
    pub fn start(site: &Site) -> Result<Theirs, String> {
        Theirs::start_configured(site, "{}\n", &[], containerd(site)?)
    }

    /// The same with shimd in containerd's place.
    ///
    /// # Errors
    /// As [`Theirs::start`].
    pub fn start_on_shimd(site: &Site) -> Result<Theirs, String> {
        let shimd = ours::start_shimd(site, &programs::ours())?;
        Theirs::start_configured(site, "{}\n", &[], (shimd, "run/shimd.sock"))
    }

    /// The same with a program of ours, such as `lowrun`, in runc's place.
    ///
    /// # Errors
    /// As [`Theirs::start`].
    pub fn start_over(site: &Site, runtime: &str) -> Result<Theirs, String> {
        let path = programs::ours().join(runtime);
        let config = serde_json::json!({"runtimes": {runtime: {"path": path}}, "default-runtime": runtime});
        Theirs::start_configured(site, &config.to_string(), &[], containerd(site)?)
    }

    /// The same with `flags` of dockerd.
    ///
    /// # Errors
    /// As [`Theirs::start`].
    pub fn start_with(site: &Site, flags: &[&str]) -> Result<Theirs, String> {
        Theirs::start_configured(site, "{}\n", flags, containerd(site)?)
    }

    /// Over a supervisor that listens at a place in the site.
    fn start_configured(
        site: &Site,
        config: &str,
        flags: &[&str],
        (containerd, at): (Daemon, &str),
    ) -> Result<Theirs, String> {
        let program = programs::peer("dockerd").ok_or("dockerd is not installed")?;
        let config = site.write_config("docker.json", config)?;
        let socket = socket(site);
        let mut command = site.daemon(&program);
        command.arg("--config-file").arg(config).arg("--host").arg(format!("unix://{}", socket.display()));
        command.arg("--data-root").arg(site.path("lib/docker")).arg("--exec-root").arg(site.path("run/docker"));
        command.arg("--pidfile").arg(site.path("run/docker.pid"));
        command.arg("--containerd").arg(site.path(at));
        command.arg("--cgroup-parent").arg(format!("/strata-{}", site.instance())).args(flags);
        let mut dockerd = Daemon::start("dockerd", command, &site.path("log/dockerd.log"))?;
        dockerd.ready(|| http::get_unix(&socket, "/_ping").is_some_and(|(status, _)| status == 200))?;
        Ok(Theirs { containerd, dockerd })
    }

    pub(super) fn client(&self, site: &Site) -> Command {
        let mut command = site.command(&programs::peer("docker").unwrap_or_else(|| PathBuf::from("docker")));
        command.env("DOCKER_HOST", format!("unix://{}", socket(site).display()));
        command.env("DOCKER_CONFIG", site.path("home/.docker"));
        command
    }

    pub(super) fn daemons(&mut self) -> Vec<&mut Daemon> {
        vec![&mut self.dockerd, &mut self.containerd]
    }

    pub(super) fn directories(site: &Site) -> Vec<PathBuf> {
        // Docker's network namespaces are collected once a minute: those are not looked at.
        vec![site.path("lib/docker/containers")]
    }
}

/// Debian's containerd, and where it listens.
fn containerd(site: &Site) -> Result<(Daemon, &'static str), String> {
    Ok((start_containerd(site)?, "run/containerd.sock"))
}

fn socket(site: &Site) -> PathBuf {
    site.path("run/docker.sock")
}

/// Starts Debian's containerd for a site: at `run/containerd.sock`.
///
/// # Errors
/// When it is missing or does not start.
pub fn start_containerd(site: &Site) -> Result<Daemon, String> {
    start_containerd_with(site, &[])
}

/// The same with variables of its environment set, such as a PATH with other shims.
///
/// # Errors
/// As [`start_containerd`].
pub fn start_containerd_with(site: &Site, environment: &[(&str, &str)]) -> Result<Daemon, String> {
    let program = programs::peer("containerd").ok_or("containerd is not installed")?;
    start_containerd_program(site, &program, environment)
}

/// The same with a containerd of another version.
///
/// # Errors
/// When it does not start.
pub fn start_containerd_program(site: &Site, program: &Path, environment: &[(&str, &str)]) -> Result<Daemon, String> {
    let socket = site.path("run/containerd.sock");
    let config = site.write_config(
        "containerd.toml",
        &format!(
            "version = 2\nroot = '{}'\nstate = '{}'\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n\
             [grpc]\naddress = '{}'\n[debug]\nlevel = 'info'\n\
             [plugins.'io.containerd.internal.v1.opt']\npath = '{}'\n",
            site.path("lib/containerd").display(),
            site.path("run/containerd").display(),
            socket.display(),
            site.path("opt").display()
        ),
    )?;
    let mut command = site.daemon(program);
    command.envs(environment.iter().copied()).arg("--config").arg(config);
    let mut daemon = Daemon::start("containerd", command, &site.path("log/containerd.log"))?;
    daemon.ready(|| std::os::unix::net::UnixStream::connect(&socket).is_ok())?;
    Ok(daemon)
}
