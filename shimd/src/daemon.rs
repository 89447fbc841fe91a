//! The daemon: its parts, put together in the order in which they need each other, and taken down again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use crate::checkpoint::Checkpoints;
use crate::config::Config;
use crate::container::Containers;
use crate::content::Content;
use crate::db::{Access, Durability, Store, Table};
use crate::diff::Differ;
use crate::diff::provisional::Provisional;
use crate::error::{Chain, Error, Result};
use crate::event::Events;
use crate::gc::Gc;
use crate::image::Images;
use crate::namespace::Namespaces;
use crate::sandbox::Sandboxes;
use crate::sandbox::controller::Controller;
use crate::shim::bundle::Kind;
use crate::shim::{Launcher, Shims, Spawner, runtime};
use crate::snapshot::{Snapshots, Snapshotters};
use crate::task::Tasks;
use crate::transfer::Transfers;
use crate::trash::Trash;
use crate::upkeep::Upkeep;
use crate::{api, layout, transfer};

/// Everything that the API serves.
pub(crate) struct Daemon {
    pub(crate) store: Arc<Store>,
    pub(crate) events: Arc<Events>,
    pub(crate) namespaces: Namespaces,
    pub(crate) containers: Containers,
    pub(crate) images: Images,
    pub(crate) sandboxes: Sandboxes,
    pub(crate) controller: Arc<Controller>,
    pub(crate) content: Arc<Content>,
    pub(crate) snapshots: Snapshotters,
    pub(crate) differ: Arc<Differ>,
    pub(crate) tasks: Arc<Tasks>,
    pub(crate) gc: Gc,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) upkeep: Arc<Upkeep>,
    pub(crate) transfers: Arc<Transfers>,
    /// Where clients install programs.
    pub(crate) opt: PathBuf,
    /// Names this store, for as long as it exists.
    pub(crate) uuid: String,
}

impl Daemon {
    /// Opens what is on disk; each part makes records and files agree.
    fn open(config: &Config) -> Result<Daemon> {
        let failed = |path: &Path| {
            let attempted = format!("make {}", path.display());
            |error| Error::io(attempted, error)
        };
        for directory in [&config.root, &config.state] {
            layout::make_private(directory).map_err(failed(directory))?;
        }
        for bundles in Kind::ALL.map(|kind| kind.place(&config.state)) {
            layout::make_passage(&bundles).map_err(failed(&bundles))?;
        }
        // What is there may be an administrator's, with a mode of its own.
        for directory in ["bin", "lib"].map(|name| config.opt.join(name)).iter().filter(|directory| !directory.is_dir())
        {
            layout::make_passage(directory).map_err(failed(directory))?;
        }
        let boot_id = boot_id()?;
        let store = Arc::new(Store::open(&config.root)?);
        let trash = Arc::new(Trash::open(config.root.join("trash"))?);
        let provisional = Arc::new(Provisional::open(&config.root)?);
        let content = Arc::new(Content::open(&config.root, store.clone(), provisional.clone())?);
        let checkpoints = Checkpoints::open(config.root.join("checkpoints"), content.clone(), trash.clone())?;
        let open = |of| Snapshots::open(of, &config.root, store.clone(), trash.clone(), boot_id.clone());
        let snapshots = Snapshotters::open(open)?;
        let events = Arc::new(Events::new());
        let shims = Arc::new(open_shims(config, &boot_id)?);
        let controller = Arc::new(Controller::new(store.clone(), shims.clone()));
        let tasks = Tasks::new(store.clone(), events.clone(), shims, controller.clone());
        let images = Images::new(store.clone());
        let differ = Arc::new(Differ::new(provisional.clone()));
        let upkeep = Arc::new(Upkeep::new(store.clone(), snapshots.clone(), provisional));
        let transfers = Transfers {
            store: store.clone(),
            content: content.clone(),
            images: images.clone(),
            snapshots: snapshots.clone(),
            differ: differ.clone(),
            events: events.clone(),
            upkeep: upkeep.clone(),
            streams: Arc::default(),
            courier: config.registry_helper.clone(),
            registry_hosts: config.registry_hosts.clone(),
            unpacking: std::sync::Mutex::default(),
            slots: transfer::Slots::default(),
        };
        Ok(Daemon {
            namespaces: Namespaces::new(store.clone()),
            containers: Containers::new(store.clone()),
            images,
            sandboxes: Sandboxes::new(store.clone()),
            controller,
            differ,
            gc: Gc::new(store.clone(), content.clone(), snapshots.clone()),
            upkeep,
            transfers: Arc::new(transfers),
            checkpoints,
            opt: config.opt.clone(),
            uuid: uuid(&store)?,
            store,
            events,
            content,
            snapshots,
            tasks: Arc::new(tasks),
        })
    }
}

fn open_shims(config: &Config, boot_id: &str) -> Result<Shims> {
    let failed = |error| Error::io(format!("make {}", config.state.display()), error);
    let sockets = config.state.join("s");
    layout::make_private(&sockets).map_err(failed)?;
    // Bundles lie on another file system than snapshots, as a rule: they have a trash of their own.
    let trash = Arc::new(Trash::open(config.state.join("trash"))?);
    forget_other_boot(&config.state, boot_id, &trash)?;
    let launcher = Launcher {
        address: config.address.clone(),
        events_address: config.events_address(),
        socket_directory: sockets,
        publish_binary: std::env::current_exe().map_err(failed)?,
        search_path: runtime::search_path(config.shim_path.as_deref(), &config.opt),
        opt: config.opt.clone(),
        forms: std::sync::Mutex::default(),
        spawner: Spawner::start().map_err(|error| Error::io("start a thread that starts programs", error))?,
    };
    Ok(Shims::new(launcher, config.state.clone(), trash))
}

/// What another boot left in the state directory tells of processes, mounts and sockets that are gone.
fn forget_other_boot(state: &Path, boot_id: &str, trash: &Trash) -> Result<()> {
    let path = state.join("boot-id");
    let failed = |error| Error::io(format!("write {}", path.display()), error);
    if std::fs::read_to_string(&path).is_ok_and(|known| known == boot_id) {
        return Ok(());
    }
    for kind in Kind::ALL {
        trash.take(&kind.place(state))?;
    }
    std::fs::write(&path, boot_id).map_err(failed)
}

fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).map_err(|error| Error::io(format!("read {path}"), error))?;
    Ok(text.trim().to_owned())
}

fn uuid(store: &Store) -> Result<String> {
    if let Some(bytes) = store.read()?.bytes(Table::Meta, b"uuid")? {
        return Ok(String::from_utf8_lossy(&bytes).into_owned());
    }
    let path = "/proc/sys/kernel/random/uuid";
    let text = std::fs::read_to_string(path).map_err(|error| Error::io(format!("read {path}"), error))?;
    let uuid = text.trim().to_owned();
    store.write(Durability::Process, |writer| writer.put_bytes(Table::Meta, b"uuid", uuid.clone().into_bytes()))?;
    Ok(uuid)
}

/// Runs until SIGTERM or SIGINT. Containers go on.
pub(crate) async fn run(config: Config) -> Result<()> {
    let daemon = Arc::new(Daemon::open(&config)?);
    // Shims whose events had to wait try again soon: they find somebody before anything is asked of them.
    let events = api::listen(&config.events_address(), None)?;
    let events = tokio::spawn(api::serve_events(events, daemon.events.clone(), daemon.tasks.clone()));
    daemon.controller.recover().await?;
    daemon.tasks.recover().await?;
    let listener = api::listen(&config.address, config.group)?;
    tracing::info!(address = %config.address.display(), "shimd serves");
    daemon.gc.schedule();
    let stop = stop_signal()?;
    tokio::select! {
        served = serve(&daemon, listener, stop) => served?,
        () = daemon.gc.serve() => {}
        () = daemon.upkeep.serve() => {}
    }
    events.abort();
    for path in [&config.address, &config.events_address()] {
        // A socket that is left over is replaced at the next start.
        let _ = std::fs::remove_file(path);
    }
    daemon.store.checkpoint()
}

/// Serves until `stop`, and does not wait for streams that never end by themselves.
async fn serve(daemon: &Arc<Daemon>, listener: tokio::net::UnixListener, stop: impl Future<Output = ()>) -> Result<()> {
    tokio::select! {
        served = api::serve(daemon.clone(), listener, std::future::pending()) => served,
        () = stop => Ok(()),
    }
}

fn stop_signal() -> Result<impl Future<Output = ()>> {
    let failed = |error| Error::io("catch signals", error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("shimd ends; containers go on");
    })
}

/// The last words of a daemon that could not start.
pub(crate) fn report(error: &Error) {
    eprintln!("shimd: {}", Chain(error));
}
