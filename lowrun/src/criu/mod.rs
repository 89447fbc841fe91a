//! Checkpoints through CRIU, which is run as `criu swrk` and asked over its RPC.
//!
//! `wire` is the form of its messages, `client` a conversation; `dump` writes the processes of a container into a
//! directory of images, and `restore` makes a container of such a directory. Called by `cli`. lowrun itself copies no
//! process: what can be saved is what CRIU can save.

mod client;
mod dump;
mod restore;
pub mod wire;

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::cgroup::{Cgroup, Hierarchy};
use crate::fault::{Attempt, Code, Fault, Result};
use crate::log::Log;
use crate::path::Root;
use crate::plan::Plan;
use crate::plan::mounts::{MountKind, MountPlan};
use crate::plan::namespaces::{Kind, Namespaces};
use crate::sys::Call;
use client::{Ask, Client};
use wire::Message;

pub use dump::dump;
pub use restore::{Restore, restore};

/// Fields of `criu_opts`, by number.
pub mod field {
    pub const IMAGES_DIR_FD: u32 = 1;
    pub const PID: u32 = 2;
    pub const LEAVE_RUNNING: u32 = 3;
    pub const EXT_UNIX_SK: u32 = 4;
    pub const TCP_ESTABLISHED: u32 = 5;
    pub const EVASIVE_DEVICES: u32 = 6;
    pub const SHELL_JOB: u32 = 7;
    pub const FILE_LOCKS: u32 = 8;
    pub const LOG_LEVEL: u32 = 9;
    pub const LOG_FILE: u32 = 10;
    pub const PAGE_SERVER: u32 = 11;
    pub const NOTIFY_SCRIPTS: u32 = 12;
    pub const ROOT: u32 = 13;
    pub const PARENT_IMAGE: u32 = 14;
    pub const TRACK_MEM: u32 = 15;
    pub const AUTO_DEDUP: u32 = 16;
    pub const WORK_DIR_FD: u32 = 17;
    pub const LINK_REMAP: u32 = 18;
    pub const EXT_MNT: u32 = 23;
    pub const MANAGE_CGROUPS: u32 = 24;
    pub const CG_ROOT: u32 = 25;
    pub const RST_SIBLING: u32 = 26;
    pub const INHERIT_FD: u32 = 27;
    pub const MANAGE_CGROUPS_MODE: u32 = 34;
    pub const EXTERNAL: u32 = 37;
    pub const EMPTY_NS: u32 = 38;
    pub const JOIN_NS: u32 = 39;
    pub const FREEZE_CGROUP: u32 = 44;
    pub const TCP_SKIP_IN_FLIGHT: u32 = 46;
    pub const LAZY_PAGES: u32 = 48;
    pub const STATUS_FD: u32 = 49;
    pub const ORPHAN_PTS_MASTER: u32 = 50;
    pub const CONFIG_FILE: u32 = 51;
    pub const LSM_PROFILE: u32 = 53;
    pub const LSM_MOUNT_CONTEXT: u32 = 63;
}

/// The file in the directory of images that says what stdio was, as runc writes it.
const DESCRIPTORS: &str = "descriptors.json";
/// There, if the container has the directory of a socket for readiness, which no config.json tells of.
const NOTIFIES: &str = "notify";
/// What masks a file.
const NULL: &str = "/dev/null";
/// The most talkative level that CRIU writes by default of its own tests; a failed dump is understood by its log.
const LOG_LEVEL: u64 = 4;
/// The annotation of a container that names what CRIU reads besides.
pub const CONFIG_ANNOTATION: &str = "org.criu.config";
/// What it reads where there is no such annotation. As with runc.
const CONFIG_FILE: &str = "/etc/criu/runc.conf";
/// The oldest CRIU that tells its version.
const VERSION_MIN: u32 = 30_000;
/// Most error lines of CRIU's log that a fault repeats.
const QUOTED_MAX: usize = 3;

/// What the caller asked for.
#[derive(Debug, Default)]
pub struct Options {
    pub images: PathBuf,
    pub work: Option<PathBuf>,
    /// Relative to `images`.
    pub parent: Option<String>,
    /// Switches that are on, by their fields.
    pub switches: Vec<u32>,
    /// `criu_cg_mode`.
    pub cgroup_mode: u64,
    pub page_server: Option<(String, u16)>,
    pub status_fd: Option<i32>,
    pub pre_dump: bool,
    /// Text options, by their fields.
    pub texts: Vec<(u32, String)>,
}

impl Options {
    /// Whether a switch is on.
    pub fn has(&self, field: u32) -> bool {
        self.switches.contains(&field)
    }
}

/// The directories of one call, held open, and the request that names them.
struct Draft {
    options: Message,
    log: PathBuf,
    _images: OwnedFd,
    _work: Option<OwnedFd>,
}

impl Draft {
    /// What a dump and a restore have in common.
    fn begin(options: &Options, annotations: &BTreeMap<String, String>, log: &str) -> Result<Draft> {
        let images = open_dir(&options.images)?;
        let work = options.work.as_deref().map(|path| make_dir(path).and_then(|()| open_dir(path))).transpose()?;
        let mut message = Message::default();
        message
            .signed(field::IMAGES_DIR_FD, images.as_raw_fd())
            .number(field::LOG_LEVEL, LOG_LEVEL)
            .text(field::LOG_FILE, log)
            .flag(field::MANAGE_CGROUPS, true)
            .number(field::MANAGE_CGROUPS_MODE, options.cgroup_mode)
            .flag(field::NOTIFY_SCRIPTS, true)
            .flag(field::ORPHAN_PTS_MASTER, true)
            // lowrun sets up no network, so its state is not for CRIU to restore.
            .number(field::EMPTY_NS, Kind::Network.flag());
        if let Some(work) = &work {
            message.signed(field::WORK_DIR_FD, work.as_raw_fd());
        }
        for switch in &options.switches {
            message.flag(*switch, true);
        }
        for (field, text) in &options.texts {
            message.text(*field, text);
        }
        match annotations.get(CONFIG_ANNOTATION).map(String::as_str) {
            Some("") => {}
            config => drop(message.text(field::CONFIG_FILE, config.unwrap_or(CONFIG_FILE))),
        }
        let log = options.work.as_ref().unwrap_or(&options.images).join(log);
        Ok(Draft { options: message, log, _images: images, _work: work })
    }

    /// `key` of the container is `value` of the host.
    fn external_mount(&mut self, key: &str, value: &str) {
        let mut mount = Message::default();
        mount.text(1, key).text(2, value);
        self.options.message(field::EXT_MNT, &mount);
    }

    fn request(&self) -> Message {
        Message::default().message(2, &self.options).clone()
    }

    /// CRIU's own words about a failure stand in its log only.
    fn explain(&self, mut fault: Box<Fault>) -> Box<Fault> {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let errors: Vec<&str> = text.lines().filter(|line| line.contains("Error (")).collect();
        // The first are often harmless.
        let told = errors
            .iter()
            .skip(errors.len().saturating_sub(QUOTED_MAX))
            .map(|line| line.split_once(") ").map_or(*line, |(_, rest)| rest.trim_start()));
        fault.causes.extend(told.map(str::to_owned));
        if fault.hint.is_none() && self.log.exists() {
            fault.hint = Some(format!("the whole log is {}", self.log.display()));
        }
        fault
    }
}

/// Makes a directory, unless it is there.
fn make_dir(path: &Path) -> Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o700)) {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        result => result.call("mkdir").attempt(Code::InvalidArgument, || format!("make directory {}", path.display())),
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .call("open")
        .attempt(Code::InvalidArgument, || format!("open directory {}", path.display()))
}

/// The version of the CRIU that is installed.
fn version(log: &Log) -> Result<u32> {
    let client = Client::start(false, &[])?;
    let version = client.ask(Ask::Version, &Message::default(), &mut |_, _| Ok(()))?.version;
    client.end(Ask::Version)?;
    log.debug(&format!("criu {version}"));
    if version < VERSION_MIN {
        return Err(Fault::new(Code::Unsupported, "run criu")
            .cause(format!("CRIU version {version} must be {VERSION_MIN} or higher")));
    }
    Ok(version)
}

/// What CRIU calls a namespace that it leaves alone.
fn external_key(kind: Kind) -> &'static str {
    match kind {
        Kind::Network => "extRootNetNS",
        _ => "extRootPidNS",
    }
}

/// Namespaces that CRIU leaves alone where the container joined them.
fn external_namespaces(namespaces: &Namespaces) -> impl Iterator<Item = (Kind, &Path)> {
    namespaces.joined().filter(|(kind, _)| matches!(kind, Kind::Network | Kind::Pid))
}

/// A destination of a mount as the mount table names it: symlinks of the image are followed within the root, which
/// stands at `rootfs` as the calling process sees it.
fn resolved(root: Option<&Root>, rootfs: &Path, destination: &Path) -> String {
    let real = root.and_then(|root| {
        let handle = root.resolve(destination).ok()?;
        let real = std::fs::read_link(format!("/proc/self/fd/{}", handle.as_raw_fd())).ok()?;
        Some(Path::new("/").join(real.strip_prefix(rootfs).ok()?))
    });
    real.as_deref().unwrap_or(destination).display().to_string()
}

/// Whether the images are of a container with a socket for readiness.
pub fn has_notify(images: &Path) -> bool {
    images.join(NOTIFIES).exists()
}

/// The v1 hierarchies that the container's cgroup mount binds, and where; none where CRIU makes the mounts itself.
fn cgroup_binds<'c>(plan: &Plan, cgroup: &'c Cgroup, mount: &MountPlan) -> Vec<(String, &'c Hierarchy)> {
    let binds = matches!(mount.kind, MountKind::Cgroup { .. });
    if !binds || cgroup.is_unified() || plan.namespaces.has(Kind::Cgroup) {
        return Vec::new();
    }
    let v1 = cgroup.hierarchies.iter().filter(|hierarchy| !hierarchy.is_unified());
    v1.map(|hierarchy| {
        let name = hierarchy.mount.file_name().unwrap_or_default();
        (mount.destination.join(name).display().to_string(), hierarchy)
    })
    .collect()
}
