//! What the core stands on: everything that goes out of the engine, and what it was told of itself.

use std::path::PathBuf;
use std::sync::Arc;

use super::event::Events;
use super::image::Images;
use super::log_watch::LogWatch;
use super::roster::Roster;
use super::spec::Machine;
use super::spec::seccomp::DefaultProfile;
use super::users::Users;
use crate::containerd::Client;
use crate::containerd::containers::Runtime;
use crate::network::Network;
use crate::store::Store;

/// Label of everything that an engine makes in the supervisor: which engine's it is.
pub(crate) const INSTANCE_LABEL: &str = "strata.io/instance";
/// Label of a container's record there, for people.
pub(crate) const NAME_LABEL: &str = "strata.io/name";

/// What an operator decided, as the core needs it.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Where what must last is kept.
    pub(crate) root: PathBuf,
    /// Where what a reboot ends is kept.
    pub(crate) state: PathBuf,
    /// Where network namespaces are pinned.
    pub(crate) namespaces: PathBuf,
    pub(crate) instance: String,
    pub(crate) snapshotter: String,
    pub(crate) runtime: Runtime,
    /// Where containers write.
    pub(crate) log: LogSettings,
    /// The supervisor's socket, for people.
    pub(crate) supervisor: PathBuf,
    pub(crate) bridge: String,
    /// Processors of the host.
    pub(crate) cpus: u64,
    /// Differs from boot to boot.
    pub(crate) boot_id: String,
}

/// How output comes into a container's log.
#[derive(Clone, Debug)]
pub(crate) struct LogSettings {
    pub(crate) limits: strata_log::Limits,
    /// `None`: the shim writes our log itself. Else this program is started by the shim to do it.
    pub(crate) writer: Option<PathBuf>,
}

/// See the module's text.
pub(crate) struct Means {
    pub(crate) settings: Settings,
    pub(crate) machine: Machine,
    pub(crate) client: Client,
    pub(crate) network: Arc<Network>,
    pub(crate) images: Arc<Images>,
    pub(crate) store: Store,
    pub(crate) events: Events,
    pub(crate) roster: Roster,
    pub(crate) logs: LogWatch,
    pub(crate) profiles: DefaultProfile,
    pub(crate) users: Users,
}
