//! The start of the engine: what it stands on, and what became of the containers of an earlier life.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use strata_fault::Fault;

use super::Engine;
use super::container::files::make_directory;
use super::container::record::Record;
use super::container::recovery;
use super::error::Error;
use super::event::Events;
use super::image::Images;
use super::log_watch::LogWatch;
use super::means::{LogSettings, Means, Settings};
use super::roster::Roster;
use super::sandbox::Sandbox;
use super::spec::Machine;
use super::spec::seccomp::DefaultProfile;
use super::supervision;
use super::users::Users;
use crate::config::{Config, STRATA_RUNTIME};
use crate::containerd::containers::Runtime;
use crate::containerd::{Client, HeaderError, is_unreachable};
use crate::network::{self, Network};
use crate::store::{Store, StoreError};

/// How often it is said that the supervisor is waited for.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// How long between two tries to reach the supervisor.
pub(super) const SUPERVISOR_PAUSE: Duration = Duration::from_millis(200);

/// Why the engine cannot start.
#[derive(Debug)]
pub(crate) enum StartError {
    Core(Error),
    Header(HeaderError),
    Store(StoreError),
    Network(network::Error),
    Subnet { text: String, why: String },
    Io { attempt: &'static str, source: std::io::Error },
    Fault(Fault),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Core(_) => f.write_str("make the engine's directories"),
            StartError::Header(_) => f.write_str("ask the supervisor"),
            StartError::Store(_) => f.write_str("open the records"),
            StartError::Network(_) => f.write_str("make the network"),
            StartError::Subnet { text, why } => write!(f, "understand network.subnet = {text:?}: {why}"),
            StartError::Io { attempt, .. } => f.write_str(attempt),
            StartError::Fault(_) => f.write_str("find out what became of the containers"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StartError::Core(source) => Some(source),
            StartError::Header(source) => Some(source),
            StartError::Store(source) => Some(source),
            StartError::Network(source) => Some(source),
            StartError::Io { source, .. } => Some(source),
            StartError::Fault(source) => Some(source),
            StartError::Subnet { .. } => None,
        }
    }
}

/// The network that the configuration describes.
pub(crate) fn network_config(config: &Config) -> Result<network::Config, StartError> {
    let subnet = match &config.network.subnet {
        None => None,
        Some(text) => Some(text.parse().map_err(|why: String| StartError::Subnet { text: text.clone(), why })?),
    };
    Ok(network::Config {
        bridge: config.bridge(),
        subnet,
        gateway: config.network.gateway,
        mtu: config.network.mtu,
        table: config.nft_table(),
        namespaces: config.state.join("netns"),
        ip_forward: config.network.ip_forward,
        prepared: config.network.prepared,
    })
}

/// Starts the engine. When this returns every container is known as it is.
pub(crate) async fn start(config: &Config) -> Result<Engine, StartError> {
    make_directory(&config.root).map_err(StartError::Core)?;
    make_directory(&config.state).map_err(StartError::Core)?;
    let store = Store::open(&config.root).map_err(StartError::Store)?;
    let loaded = Record::load_all(&store).map_err(StartError::Core)?;
    let sandboxes = recovery::load_sandboxes(&store).map_err(StartError::Store)?;
    let network = open_network(network_config(config)?, &sandboxes).await?;
    let means = means(config, store, network)?;
    tokio::spawn(supervision::listen(Arc::clone(&means)));
    reach_supervisor(&means, &config.namespace).await?;
    recovery::recover(&means, loaded, &sandboxes).await.map_err(StartError::Fault)?;
    Ok(Engine { means })
}

/// Before the supervisor is there: containers that run keep their network whatever becomes of it.
async fn open_network(config: network::Config, sandboxes: &HashMap<String, Sandbox>) -> Result<Network, StartError> {
    let live: Vec<network::Endpoint> = sandboxes.values().map(|sandbox| sandbox.endpoint.clone()).collect();
    let opened = tokio::task::spawn_blocking(move || Network::open(&config, &live, &[])).await;
    let (network, recovery) = match opened {
        Ok(outcome) => outcome.map_err(StartError::Network)?,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    };
    for (id, error) in &recovery.lost {
        tracing::warn!(endpoint = %id, %error, "a container has no network any more");
    }
    for (id, error) in &recovery.unreserved {
        tracing::warn!(endpoint = %id, %error, "a published port was taken by another program");
    }
    tracing::debug!(?recovery, "the network is as it should be");
    Ok(network)
}

fn means(config: &Config, store: Store, network: Network) -> Result<Arc<Means>, StartError> {
    let client = Client::new(&config.containerd, &config.namespace).map_err(StartError::Header)?;
    let registry = strata_registry::Client::new(strata_registry::Config {
        insecure: config.registry.insecure.clone(),
        mirrors: config.registry.mirrors.clone(),
        ca_files: config.registry.ca_files.clone(),
        hosts_dir: config.registry.hosts_dir.clone(),
        ..strata_registry::Config::default()
    });
    Ok(Arc::new(Means {
        settings: settings(config)?,
        machine: Machine::look(config.cgroup_parent(), config.runtime_options.systemd_cgroup),
        images: Images::new(client.clone(), registry, &config.snapshotter),
        client,
        network: Arc::new(network),
        store,
        events: Events::default(),
        roster: Roster::default(),
        logs: LogWatch::new()
            .map_err(|source| StartError::Io { attempt: "begin to watch containers' logs", source })?,
        profiles: DefaultProfile::default(),
        users: Users::default(),
    }))
}

fn settings(config: &Config) -> Result<Settings, StartError> {
    let limits = strata_log::Limits { segment_bytes: config.log.segment_bytes, keep_bytes: config.log.keep_bytes };
    Ok(Settings {
        root: config.root.clone(),
        state: config.state.clone(),
        namespaces: config.state.join("netns"),
        instance: config.instance.clone(),
        snapshotter: config.snapshotter.clone(),
        runtime: Runtime {
            name: config.runtime.clone(),
            binary_name: config.runtime_options.binary_name.clone(),
            root: config.runtime_root(),
            systemd_cgroup: config.runtime_options.systemd_cgroup,
        },
        log: LogSettings { limits, writer: log_writer(&config.runtime)? },
        supervisor: config.containerd.clone(),
        bridge: config.bridge(),
        cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u64),
        boot_id: boot_id()?,
    })
}

/// A stock shim is given this program to write our log; ours writes it itself.
fn log_writer(runtime: &str) -> Result<Option<PathBuf>, StartError> {
    if runtime == STRATA_RUNTIME {
        return Ok(None);
    }
    let own = std::env::current_exe();
    own.map(Some).map_err(|source| StartError::Io { attempt: "find the engine's own program", source })
}

fn boot_id() -> Result<String, StartError> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let text = text.map_err(|source| StartError::Io { attempt: "read the kernel's boot id", source })?;
    Ok(text.trim().to_owned())
}

/// Waits for the supervisor, for as long as it takes.
async fn reach_supervisor(means: &Means, namespace: &str) -> Result<(), StartError> {
    let mut say = tokio::time::Instant::now();
    loop {
        match means.client.ensure_namespace(namespace).await {
            Err(fault) if is_unreachable(&fault) => {
                if say <= tokio::time::Instant::now() {
                    tracing::warn!(socket = %means.settings.supervisor.display(), "waiting for the supervisor");
                    say = tokio::time::Instant::now() + SAY_EVERY;
                }
                tokio::time::sleep(SUPERVISOR_PAUSE).await;
            }
            outcome => return outcome.map_err(StartError::Fault),
        }
    }
}
