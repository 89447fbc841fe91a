//! From a request to a container that is made: steps 4 and 5 of a run, and 6 and 6b when it is to be started at once.
//!
//! What can be refused is refused before anything is made. Then the container's task makes it, in steps that do not need
//! each other and so are done at the same time; each step's undo is known before the step is tried, and all are undone
//! when one fails.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

use proto_containerd::types::Mount;
use strata_fault::Fault;
use tokio::sync::{RwLock, mpsc, oneshot, watch};
use tracing::{Instrument, Span};

use super::actor::Actor;
use super::files::Files;
use super::id::ContainerId;
use super::record::{Fixed, ImageRef};
use super::state::Life;
use super::stdin::Stdin;
use super::wanted::{Hostname, MountKind, NetworkMode, Wanted};
use super::{Container, Handle, MAILBOX, News, View};
use crate::containerd::containers::NewContainer;
use crate::engine::error::Error;
use crate::engine::image::Image;
use crate::engine::means::{INSTANCE_LABEL, Means, NAME_LABEL};
use crate::engine::roster::Reservation;
use crate::engine::sandbox;
use crate::engine::spec::program::{self, Program};
use crate::engine::spec::{self, EtcFiles, Ingredients};
use crate::engine::stamp::Stamp;
use crate::engine::step::step;
use crate::network::Endpoint;

/// A container that was made; `started` answers when it was to be started at once.
pub(crate) struct Created {
    pub(crate) container: Container,
    pub(crate) started: Option<oneshot::Receiver<Result<(), Fault>>>,
}

/// What becomes of a container when it is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AtOnce {
    /// Start it.
    pub(crate) start: bool,
    /// The size of its terminal.
    pub(crate) size: Option<(u32, u32)>,
}

/// Makes a container, and has it started if that is wanted.
pub(crate) async fn create(
    means: &Arc<Means>,
    wanted: Wanted,
    image: &Image,
    at_once: AtOnce,
) -> Result<Created, Fault> {
    let reservation = means.roster.reserve(wanted.name.as_ref())?;
    let (fixed, spec) =
        configure(means, wanted, image, &reservation).instrument(step!("configure", image.familiar)).await?;
    let (birth, created, started) = Birth::new(spec, reservation, at_once);
    let container = bear(means, fixed, at_once.size, birth);
    let gone = || Fault::from(Error::Gone { container: container.id().short().to_owned() });
    created.await.map_err(|_| gone())??;
    Ok(Created { container, started: at_once.start.then_some(started) })
}

/// What the task of a new container is to do first.
pub(super) struct Birth {
    pub(super) spec: Vec<u8>,
    pub(super) reservation: Reservation,
    pub(super) start: bool,
    pub(super) created: oneshot::Sender<Result<(), Fault>>,
    pub(super) started: oneshot::Sender<Result<(), Fault>>,
    pub(super) span: Span,
}

type Answer = oneshot::Receiver<Result<(), Fault>>;

impl Birth {
    fn new(spec: Vec<u8>, reservation: Reservation, at_once: AtOnce) -> (Birth, Answer, Answer) {
        let (created, is_created) = oneshot::channel();
        let (started, is_started) = oneshot::channel();
        let birth = Birth { spec, reservation, start: at_once.start, created, started, span: Span::current() };
        (birth, is_created, is_started)
    }
}

/// Starts the task of a container that is to be made. The task goes on when nobody waits any more: what is half made
/// would be nobody's.
fn bear(means: &Arc<Means>, fixed: Arc<Fixed>, size: Option<(u32, u32)>, birth: Birth) -> Container {
    let (container, actor) = unborn(means, fixed, Life::default(), size);
    tokio::spawn(actor.live(birth));
    container
}

/// A container and its task, which does not run yet.
pub(super) fn unborn(
    means: &Arc<Means>,
    fixed: Arc<Fixed>,
    life: Life,
    size: Option<(u32, u32)>,
) -> (Container, Actor) {
    let files = Files::new(&means.settings.root, &means.settings.state, fixed.id.as_str());
    let (mailbox, orders) = mpsc::channel(MAILBOX);
    let view = View { fixed: Arc::clone(&fixed), life: life.clone(), endpoint: None, ends: 0, is_gone: false };
    let (window, view) = watch::channel(view);
    let is_open = fixed.wanted.open_stdin && life.phase.is_up();
    let container = Container(Arc::new(Handle {
        stdin: Stdin::new(fixed.id.clone(), files.stdin(), is_open),
        fixed,
        files,
        mailbox,
        view,
        news: watch::Sender::new(News::default()),
        log: Arc::new(RwLock::new(())),
        size: Mutex::new(size),
    }));
    let actor = Actor::new(Arc::clone(means), container.clone(), life, orders, window);
    (container, actor)
}

/// Step 4: the request and the image become what the container will be. Nothing is made but missing bind sources.
async fn configure(
    means: &Means,
    wanted: Wanted,
    image: &Image,
    reservation: &Reservation,
) -> Result<(Arc<Fixed>, Vec<u8>), Fault> {
    ensure_sources(&wanted)?;
    let run = &image.config.config;
    let user_spec = program::user(&wanted, run)?;
    let user = means.users.resolve(means, image, &user_spec).await?;
    let hostname = hostname(&wanted, &reservation.id);
    let program = Program {
        args: program::args(&wanted, run)?,
        env: program::env(&wanted, run, &hostname, user.home.as_deref()),
        cwd: program::cwd(&wanted, run)?,
        user_as_written: wanted.user.clone().map_or_else(|| run.user.clone(), String::from),
        user,
        stop_signal: program::stop_signal(&wanted, run),
    };
    let fixed = Fixed {
        id: reservation.id.clone(),
        name: reservation.name.clone(),
        created: Stamp::now(),
        image: image_ref(image),
        program,
        hostname,
        sandbox: reservation.id.to_string(),
        wanted,
    };
    let spec = render(means, &fixed)?;
    Ok((Arc::new(fixed), spec))
}

fn image_ref(image: &Image) -> ImageRef {
    let labels: BTreeMap<String, String> = image.config.config.labels.clone();
    ImageRef {
        reference: image.reference.clone(),
        id: image.id.clone(),
        digest: image.digest.clone(),
        chain_id: image.chain_id.clone(),
        labels,
    }
}

/// In the host's network a container has the host's name, as in Docker.
fn hostname(wanted: &Wanted, id: &ContainerId) -> String {
    match (&wanted.hostname, wanted.network.mode) {
        (Some(hostname), _) => hostname.as_str().to_owned(),
        (None, NetworkMode::Host) => {
            let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
            Hostname::parse(&host).map_or_else(|_| id.short().to_owned(), |name| name.as_str().to_owned())
        }
        (None, _) => id.short().to_owned(),
    }
}

/// Sources of bind mounts are there, or made where that was asked for.
pub(super) fn ensure_sources(wanted: &Wanted) -> Result<(), Error> {
    let mut to_make = Vec::new();
    for mount in &wanted.mounts {
        let MountKind::Bind { source, create_source, .. } = &mount.kind else { continue };
        match source.try_exists() {
            Ok(true) => {}
            Ok(false) if *create_source => to_make.push(source),
            Ok(false) => return Err(Error::MountSourceMissing { path: source.clone() }),
            Err(error) => return Err(Error::file("look at bind mount source", source, error)),
        }
    }
    // Only when none is refused: a request that fails leaves nothing.
    to_make.into_iter().try_for_each(|source| make_source(source))
}

/// A directory that everybody may enter: a container's user must.
fn make_source(path: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(path).map_err(|error| Error::file("make bind mount source", path, error))
}

fn render(means: &Means, fixed: &Fixed) -> Result<Vec<u8>, Error> {
    let id = fixed.id.as_str();
    let files = Files::new(&means.settings.root, &means.settings.state, id);
    let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
    let (hosts, hostname, resolv_conf) = (text(files.hosts()), text(files.hostname()), text(files.resolv_conf()));
    let namespace = sandbox::namespace_path(means, &fixed.sandbox, fixed.wanted.network.mode);
    spec::render(&Ingredients {
        id,
        wanted: &fixed.wanted,
        program: &fixed.program,
        hostname: &fixed.hostname,
        etc: EtcFiles { hosts: &hosts, hostname: &hostname, resolv_conf: &resolv_conf },
        network_namespace: namespace.as_deref(),
        machine: &means.machine,
        profiles: &means.profiles,
    })
}

/// Step 5: the supervisor knows the container, and what it is to be.
pub(super) async fn take_over(means: &Means, fixed: &Fixed, spec: Vec<u8>) -> Result<(), Fault> {
    let mut labels = instance_label(means);
    labels.insert(NAME_LABEL.to_owned(), fixed.name.to_string());
    let new = NewContainer {
        id: fixed.id.to_string(),
        image: fixed.image.reference.clone(),
        labels,
        snapshotter: means.settings.snapshotter.clone(),
        runtime: means.settings.runtime.clone(),
        spec,
    };
    means.client.create_container(new).instrument(step!("take-over")).await
}

/// Step 6: the container has a writable layer on its image's.
pub(super) async fn assemble(means: &Means, fixed: &Fixed) -> Result<Vec<Mount>, Fault> {
    let snapshotter = &means.settings.snapshotter;
    let prepare =
        means.client.prepare_snapshot(snapshotter, fixed.id.as_str(), &fixed.image.chain_id, instance_label(means));
    prepare.instrument(step!("assemble")).await
}

fn instance_label(means: &Means) -> HashMap<String, String> {
    HashMap::from([(INSTANCE_LABEL.to_owned(), means.settings.instance.clone())])
}

/// Step 6b: the container is on the network.
pub(super) async fn connect(means: &Means, fixed: &Fixed) -> Result<Option<Arc<Endpoint>>, Fault> {
    let endpoint = sandbox::connect(means, &fixed.sandbox, &fixed.wanted.network).instrument(step!("connect")).await?;
    if endpoint.is_some() {
        sandbox::emit(means, "connect", fixed.id.as_str());
    }
    Ok(endpoint)
}
