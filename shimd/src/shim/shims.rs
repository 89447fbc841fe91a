//! How a shim comes and goes, whoever it is for: a bundle is made, the shim started in it; what it leaves is cleaned
//! up; the bundle goes last, by which a start of shimd would find the rest.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost_types::Any;
use proto_shim::task::DeleteResponse;
use tracing::Instrument;

use super::bundle::{self, Bundle, Kind, ShimRecord};
use super::launch::Subject;
use super::log::LogCopy;
use super::stray::Strays;
use super::{Endpoint, Launcher, Shim};
use crate::error::{Chain, Error, Result};
use crate::name::Namespace;
use crate::trash::Trash;

/// The pauses before a clean-up that failed is tried again.
const CLEAN_UP_PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(500)];
/// How long a shim may take to end after it was told to.
pub(crate) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a shim may take to answer a start of shimd before it is taken as it is: one that is stopped must not hold
/// shimd up.
pub(crate) const RECOVERY_TIMEOUT: Duration = Duration::from_millis(300);

/// All shims of this shimd, of tasks and of sandboxes.
pub(crate) struct Shims {
    pub(crate) launcher: Launcher,
    state: PathBuf,
    trash: Arc<Trash>,
    /// Bundles whose shims are being cleaned up after: a shim is not spared for their sake.
    leaving: Mutex<HashSet<PathBuf>>,
}

/// A shim, and where it was found.
pub(crate) struct Connection {
    pub(crate) endpoint: Endpoint,
    pub(crate) shim: Shim,
    pub(crate) log: Option<LogCopy>,
    /// It is a sandbox's, and stays when the container goes.
    pub(crate) is_of_sandbox: bool,
}

/// Whose shim it is, without borrows.
#[derive(Clone)]
pub(crate) struct OwnedSubject {
    pub(crate) namespace: Namespace,
    pub(crate) id: String,
    pub(crate) program: PathBuf,
}

impl OwnedSubject {
    pub(crate) fn borrow<'a>(&'a self, bundle: &'a Bundle) -> Subject<'a> {
        Subject { program: &self.program, namespace: &self.namespace, id: &self.id, bundle: &bundle.path }
    }
}

impl Shims {
    pub(crate) fn new(launcher: Launcher, state: PathBuf, trash: Arc<Trash>) -> Shims {
        Shims { launcher, state, trash, leaving: Mutex::default() }
    }

    /// The bundle at its place; whether it exists is not looked at.
    pub(crate) fn bundle(&self, kind: Kind, namespace: &Namespace, id: &str) -> Bundle {
        Bundle::at(&self.state, kind, namespace, id)
    }

    /// Makes a bundle with `spec` as its configuration; it goes again unless the undo is disarmed.
    pub(crate) fn make_bundle(
        &self,
        kind: Kind,
        namespace: &Namespace,
        id: &str,
        spec: Option<&Any>,
    ) -> Result<Undo<'_>> {
        let spec = spec.map(|spec| spec.value.as_slice()).unwrap_or_default();
        let bundle = Bundle::create(&self.state, kind, (namespace, id), spec)?;
        Ok(Undo { bundle, shims: Some(self) })
    }

    /// The bundles of a kind that are there.
    pub(crate) fn bundles(&self, kind: Kind) -> Result<Vec<(Namespace, String)>> {
        bundle::list(&self.state, kind)
    }

    /// Starts a shim in its bundle.
    pub(crate) async fn start(
        &self,
        subject: &OwnedSubject,
        bundle: &Bundle,
        options: Option<&Any>,
    ) -> Result<Connection> {
        let span = crate::span!("shim", "shim", subject.id);
        let record = |endpoint: Option<Endpoint>| {
            bundle.record(&ShimRecord { program: subject.program.clone(), endpoint, is_of_sandbox: false })
        };
        async {
            // Before it runs: who finds this bundle later must know whom to ask for cleaning up.
            record(None)?;
            bundle.name_program(&subject.program)?;
            let log = LogCopy::start(bundle, &subject.id);
            let endpoint = self.launcher.start(&subject.borrow(bundle), options).await?;
            record(Some(endpoint.clone()))?;
            let shim = Shim::connect(&endpoint, &subject.id).await?;
            Ok(Connection { endpoint, shim, log, is_of_sandbox: false })
        }
        .instrument(span)
        .await
    }

    /// Connects to the shim of a sandbox for one of its containers. What the shim says of itself it says in the
    /// sandbox's bundle.
    pub(crate) async fn join(
        &self,
        subject: &OwnedSubject,
        bundle: &Bundle,
        endpoint: &Endpoint,
    ) -> Result<Connection> {
        let endpoint = endpoint.clone();
        let record =
            ShimRecord { program: subject.program.clone(), endpoint: Some(endpoint.clone()), is_of_sandbox: true };
        bundle.record(&record)?;
        let shim = Shim::connect(&endpoint, &subject.id).await?;
        Ok(Connection { endpoint, shim, log: None, is_of_sandbox: true })
    }

    /// Has the shim's program clean up after a shim that is not there, or that nobody has the address of. Processes
    /// that work for the shim still, a runtime that sets the container up for one, would make again what is removed:
    /// they go first. It is tried again where it fails.
    pub(crate) async fn clean_up(&self, subject: &OwnedSubject, bundle: &Bundle) -> Result<DeleteResponse> {
        let mut pauses = CLEAN_UP_PAUSES.into_iter();
        self.leaving().insert(bundle.path.clone());
        let strays = Strays {
            subject: subject.borrow(bundle),
            address: &self.launcher.address,
            spares_shim: self.has_shared_shim(bundle).await,
        };
        loop {
            strays.kill().await;
            let error = match self.launcher.delete(&subject.borrow(bundle)).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            tracing::warn!(id = %subject.id, error = %Chain(&error), "clean up what is left of a container");
            let Some(pause) = pauses.next() else { return Err(error) };
            tokio::time::sleep(pause).await;
        }
    }

    /// Whether the shim of a bundle lives, and other bundles have it, too: those of its group or sandbox. Those that
    /// are cleaned up as well do not count: of two that go at once, each would leave the shim to the other.
    async fn has_shared_shim(&self, bundle: &Bundle) -> bool {
        let Some(endpoint) = bundle.endpoint() else { return false };
        if !endpoint.is_served().await {
            return false;
        }
        let others = Kind::ALL.into_iter().flat_map(|kind| {
            let all = self.bundles(kind).unwrap_or_default();
            all.into_iter().map(move |(namespace, id)| self.bundle(kind, &namespace, &id))
        });
        let leaving = self.leaving().clone();
        others
            .filter(|other| !leaving.contains(&other.path))
            .any(|other| other.endpoint().is_some_and(|other| other.address == endpoint.address))
    }

    /// Removes a bundle; its shim is gone, or somebody else's.
    pub(crate) fn discard(&self, bundle: &Bundle) {
        if let Err(error) = bundle.remove(&self.trash) {
            tracing::warn!(bundle = %bundle.path.display(), error = %Chain(&error), "remove a bundle");
        }
        self.leaving().remove(&bundle.path);
    }

    /// Removes sockets that no bundle names and nobody serves. To be called before a shim is started.
    pub(crate) async fn forget_sockets(&self) -> Result<()> {
        let mut named = HashSet::new();
        for kind in Kind::ALL {
            for (namespace, id) in self.bundles(kind)? {
                named.extend(self.bundle(kind, &namespace, &id).endpoint().map(|endpoint| endpoint.address));
            }
        }
        let directory = &self.launcher.socket_directory;
        let failed = |error| Error::io(format!("list {}", directory.display()), error);
        for entry in std::fs::read_dir(directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let endpoint = Endpoint::at(&path);
            if !named.contains(&endpoint.address) && !endpoint.is_served().await {
                tracing::info!(socket = %path.display(), "a socket that was nobody's is removed");
                // It may be no file.
                let _ = std::fs::remove_file(path);
            }
        }
        Ok(())
    }

    fn leaving(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A bundle that goes when what follows fails.
pub(crate) struct Undo<'a> {
    pub(crate) bundle: Bundle,
    shims: Option<&'a Shims>,
}

impl Undo<'_> {
    pub(crate) fn disarm(mut self) -> Bundle {
        self.shims = None;
        self.bundle.clone()
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Some(shims) = self.shims {
            shims.discard(&self.bundle);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// With no program to be found.
    pub(crate) fn shims(state: &std::path::Path) -> Shims {
        let launcher = Launcher {
            address: state.join("shimd.sock"),
            events_address: state.join("events.sock"),
            socket_directory: state.join("s"),
            publish_binary: "/bin/true".into(),
            search_path: Vec::new(),
            opt: PathBuf::new(),
            forms: Mutex::default(),
            spawner: crate::shim::Spawner::start().unwrap(),
        };
        let trash = Arc::new(Trash::open(state.join("trash")).unwrap());
        Shims::new(launcher, state.to_owned(), trash)
    }

    #[tokio::test]
    async fn sockets_that_are_nobodys_go() {
        let directory = tempfile::tempdir().unwrap();
        let shims = shims(directory.path());
        let sockets = shims.launcher.socket_directory.clone();
        std::fs::create_dir(&sockets).unwrap();
        let listen = |name: &str| std::os::unix::net::UnixListener::bind(sockets.join(name)).unwrap();
        let served = listen("served");
        drop([listen("left"), listen("named")]);
        let namespace = Namespace::parse("n").unwrap();
        let bundle = shims.make_bundle(Kind::Task, &namespace, "a", None).unwrap().disarm();
        let endpoint = Some(Endpoint::at(&sockets.join("named")));
        bundle.record(&ShimRecord { program: "/bin/true".into(), endpoint, is_of_sandbox: false }).unwrap();
        shims.forget_sockets().await.unwrap();
        let mut left: Vec<_> = std::fs::read_dir(&sockets).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["named", "served"]);
        drop(served);
    }

    #[tokio::test]
    async fn of_bundles_that_go_at_once_none_spares_the_shim_for_another() {
        let directory = tempfile::tempdir().unwrap();
        let shims = shims(directory.path());
        let socket = directory.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let namespace = Namespace::parse("n").unwrap();
        let bundles = [(Kind::Task, "a"), (Kind::Task, "b"), (Kind::Sandbox, "a")].map(|(kind, id)| {
            let bundle = shims.make_bundle(kind, &namespace, id, None).unwrap().disarm();
            let endpoint = Some(Endpoint::at(&socket));
            bundle.record(&ShimRecord { program: "/bin/true".into(), endpoint, is_of_sandbox: false }).unwrap();
            bundle
        });
        let subject =
            |id: &str| OwnedSubject { namespace: namespace.clone(), id: id.to_owned(), program: "/bin/true".into() };
        for bundle in &bundles {
            assert!(shims.has_shared_shim(bundle).await, "the others have it");
        }
        shims.leaving().insert(bundles[1].path.clone());
        shims.clean_up(&subject("a"), &bundles[0]).await.unwrap();
        assert!(shims.has_shared_shim(&bundles[1]).await, "the sandbox has it");
        shims.clean_up(&subject("a"), &bundles[2]).await.unwrap();
        assert!(!shims.has_shared_shim(&bundles[1]).await, "nobody else stays");
        shims.discard(&bundles[1]);
        assert!(shims.leaving().len() == 2);
        shims.discard(&bundles[0]);
        shims.discard(&bundles[2]);
        assert!(shims.leaving().is_empty());
    }
}
