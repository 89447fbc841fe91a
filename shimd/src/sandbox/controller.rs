//! The controller of sandboxes: each is held by a shim that speaks the sandbox service, and its containers' tasks are
//! made in that shim.
//!
//! ```text
//!           create: bundle, shim, CreateSandbox       shutdown: ShutdownSandbox, or the shim died
//!   (free) ─────────────── Busy ───────────────▶ Known ─────────────────── Busy ─────────────────▶ (free)
//! ```
//! What a sandbox does between, its shim alone knows and is asked. A start of shimd finds the sandboxes by their
//! bundles: one whose shim has it is known again, of any other the rest is cleaned up.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message;
use prost_types::Any;
use proto_shim::sandbox as wire;
use proto_shim::types::Mount;
use strata_fault::GrpcCode;
use tokio::sync::watch as channel;

use crate::db::record::Sandbox as Record;
use crate::db::{Access, Store, key};
use crate::error::{Chain, Error, Result};
use crate::name::{Namespace, check_identifier};
use crate::shim::bundle::{Bundle, Kind};
use crate::shim::log::LogCopy;
use crate::shim::shims::{RECOVERY_TIMEOUT, SHUTDOWN_TIMEOUT};
use crate::shim::{Connection, Endpoint, OwnedSubject, Shim, Shims, runtime};
use crate::trace;

/// The version of a shim's protocol from which on it takes containers that it was not started for.
const VERSION_OF_SANDBOXES: i32 = 3;

/// What a client asks for.
pub(crate) struct Creation {
    pub(crate) namespace: Namespace,
    pub(crate) id: String,
    pub(crate) runtime: String,
    pub(crate) runtime_options: Option<Any>,
    pub(crate) spec: Option<Any>,
    pub(crate) rootfs: Vec<Mount>,
    pub(crate) options: Option<Any>,
    pub(crate) netns_path: String,
    pub(crate) annotations: HashMap<String, String>,
}

/// Namespace and sandbox id.
type Key = (Namespace, String);

/// The sandboxes of all namespaces that have a shim.
pub(crate) struct Controller {
    store: Arc<Store>,
    shims: Arc<Shims>,
    entries: Mutex<HashMap<Key, Entry>>,
}

enum Entry {
    /// It is being made or removed; the channel closes when that is over.
    Busy(channel::Receiver<()>),
    Known(Arc<Sandbox>),
}

/// A sandbox and the shim that holds it.
pub(crate) struct Sandbox {
    subject: OwnedSubject,
    bundle: Bundle,
    endpoint: Endpoint,
    /// Its sandbox service.
    shim: Shim,
    _log: Option<LogCopy>,
    /// Set while it is being removed: then the end of the shim is no accident.
    leaving: AtomicBool,
    /// Held by who asks the shim to end: where one is refused, the end that another brings about is still no accident.
    ending: tokio::sync::Mutex<()>,
}

impl Controller {
    pub(crate) fn new(store: Arc<Store>, shims: Arc<Shims>) -> Controller {
        Controller { store, shims, entries: Mutex::default() }
    }

    pub(crate) fn find(&self, namespace: &Namespace, id: &str) -> Result<Arc<Sandbox>> {
        match self.entries().get(&(namespace.clone(), id.to_owned())) {
            Some(Entry::Known(sandbox)) => Ok(sandbox.clone()),
            _ => Err(Error::not_found("sandbox", id)),
        }
    }

    /// The sandbox in whose shim a container's task is to be made; `None` where the container has none, or one that is
    /// no more than a name, or whose shim takes no containers of others.
    pub(crate) fn shim_for(&self, namespace: &Namespace, id: &str) -> Result<Option<Arc<Sandbox>>> {
        if id.is_empty() || self.store.read()?.get::<Record>(&key(&[namespace.as_str(), id]))?.is_none() {
            return Ok(None);
        }
        let sandbox = self.find(namespace, id)?;
        Ok((sandbox.endpoint.version >= VERSION_OF_SANDBOXES).then_some(sandbox))
    }

    /// Makes a sandbox. Once begun it is finished or undone, whether the caller still waits or not.
    pub(crate) async fn create(self: &Arc<Self>, creation: Creation) -> Result<()> {
        let controller = self.clone();
        trace::detached(async move { controller.create_whole(creation).await }).await
    }

    async fn create_whole(self: &Arc<Self>, creation: Creation) -> Result<()> {
        check_identifier("sandbox", &creation.id)?;
        let claim = self.claim(&creation.namespace, &creation.id).await?;
        // To a shim's program and to the runtime the two would be one thing, and cleaning up one would end the other.
        if self.shims.bundle(Kind::Task, &creation.namespace, &creation.id).exists() {
            return Err(Error::exists("a container of the name of sandbox", &creation.id));
        }
        let program = runtime::find(&creation.runtime, &self.shims.launcher.search_path)?;
        let bundle =
            self.shims.make_bundle(Kind::Sandbox, &creation.namespace, &creation.id, creation.spec.as_ref())?;
        let subject = OwnedSubject { namespace: creation.namespace.clone(), id: creation.id.clone(), program };
        // From here on the shim's own clean-up must be run when something fails.
        let started = self.shims.start(&subject, &bundle.bundle, creation.runtime_options.as_ref()).await;
        let connection = match started {
            Ok(connection) => connection,
            Err(error) => {
                let _ = self.shims.clean_up(&subject, &bundle.bundle).await;
                return Err(error);
            }
        };
        let sandbox = Sandbox::new(subject, bundle.disarm(), connection);
        if let Err(error) = sandbox.make(creation).await {
            self.remove(&sandbox).await;
            return Err(error);
        }
        self.adopt(sandbox, claim);
        Ok(())
    }

    /// Claims an id, after what had it before is gone.
    async fn claim(self: &Arc<Self>, namespace: &Namespace, id: &str) -> Result<Claim> {
        let key = (namespace.clone(), id.to_owned());
        loop {
            let busy = match self.entries().entry(key.clone()) {
                Place::Vacant(place) => {
                    let (done, busy) = channel::channel(());
                    place.insert(Entry::Busy(busy));
                    return Ok(Claim { controller: self.clone(), key: Some(key), _done: done });
                }
                Place::Occupied(place) => match place.get() {
                    Entry::Known(_) => return Err(Error::exists("sandbox", id)),
                    Entry::Busy(busy) => busy.clone(),
                },
            };
            closed(busy).await;
        }
    }

    fn adopt(self: &Arc<Self>, sandbox: Sandbox, claim: Claim) {
        let sandbox = Arc::new(sandbox);
        claim.fulfil(Entry::Known(sandbox.clone()));
        tokio::spawn(self.clone().watch(sandbox));
    }

    /// Cleans up when the shim of a sandbox dies. Its containers' tasks notice by themselves.
    async fn watch(self: Arc<Self>, sandbox: Arc<Sandbox>) {
        sandbox.shim.closed().await;
        self.bury(&sandbox).await;
    }

    async fn bury(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        let Some(claim) = self.take(sandbox) else { return };
        tracing::warn!(namespace = %sandbox.subject.namespace, id = %sandbox.subject.id, "the shim of a sandbox died");
        self.remove(sandbox).await;
        drop(claim);
    }

    /// Starts a sandbox. One that cannot be started is removed, as containerd does; but not for being started twice.
    pub(crate) async fn start(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<wire::StartSandboxResponse> {
        let request = wire::StartSandboxRequest { sandbox_id: sandbox.subject.id.clone() };
        let started = sandbox.shim.call("start", "StartSandbox", &request).await;
        match &started {
            Ok(_) => {}
            Err(Error::Shim(fault)) if matches!(fault.grpc, GrpcCode::FailedPrecondition | GrpcCode::AlreadyExists) => {
            }
            Err(_) => {
                if let Some(claim) = self.take(sandbox) {
                    let (controller, sandbox) = (self.clone(), sandbox.clone());
                    trace::detached(async move {
                        controller.remove(&sandbox).await;
                        drop(claim);
                    })
                    .await;
                }
            }
        }
        started
    }

    /// Ends a sandbox and its shim. One that has containers may refuse that, and stays.
    pub(crate) async fn shut_down(self: &Arc<Self>, sandbox: Arc<Sandbox>) -> Result<()> {
        let controller = self.clone();
        trace::detached(async move {
            let _ending = sandbox.ending.lock().await;
            // From before the shim ends.
            sandbox.leaving.store(true, Ordering::Release);
            match sandbox.end(None).await {
                Ok(()) | Err(Error::ShimDied { .. }) => {}
                Err(error) => {
                    controller.keep(&sandbox).await;
                    return Err(error);
                }
            }
            if let Some(claim) = controller.take_leaving(&sandbox) {
                controller.remove(&sandbox).await;
                drop(claim);
            }
            Ok(())
        })
        .await
    }

    /// A sandbox that was to go stays. Its watcher may have seen the end of the shim meanwhile and taken it for the one
    /// that was asked for: then nobody watches it any more.
    async fn keep(self: &Arc<Self>, sandbox: &Arc<Sandbox>) {
        sandbox.leaving.store(false, Ordering::Release);
        if sandbox.shim.is_closed() {
            self.bury(sandbox).await;
        }
    }

    /// Takes a sandbox off the list, to remove it; `None` where somebody else does.
    fn take(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Option<Claim> {
        let is_first = !sandbox.leaving.swap(true, Ordering::AcqRel);
        is_first.then(|| self.take_leaving(sandbox)).flatten()
    }

    fn take_leaving(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Option<Claim> {
        let key = (sandbox.subject.namespace.clone(), sandbox.subject.id.clone());
        let mut entries = self.entries();
        match entries.get(&key) {
            Some(Entry::Known(known)) if Arc::ptr_eq(known, sandbox) => {}
            _ => return None,
        }
        let (done, busy) = channel::channel(());
        entries.insert(key.clone(), Entry::Busy(busy));
        Some(Claim { controller: self.clone(), key: Some(key), _done: done })
    }

    /// Ends what is left of a sandbox, its shim first.
    async fn remove(&self, sandbox: &Sandbox) {
        if !sandbox.shim.is_closed() {
            match sandbox.end(Some(SHUTDOWN_TIMEOUT)).await {
                Ok(()) => {}
                // It has ended it before, or never had it.
                Err(error) => tracing::debug!(id = %sandbox.subject.id, error = %Chain(&error), "shut a sandbox down"),
            }
            let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, sandbox.shim.closed()).await;
        }
        let _ = self.shims.clean_up(&sandbox.subject, &sandbox.bundle).await;
        self.shims.discard(&sandbox.bundle);
        sandbox.endpoint.remove_unserved_socket().await;
    }

    /// Finds all sandboxes again. What has to be cleaned up is cleaned up in the background.
    pub(crate) async fn recover(self: &Arc<Self>) -> Result<()> {
        let mut found = tokio::task::JoinSet::new();
        for (namespace, id) in self.shims.bundles(Kind::Sandbox)? {
            let claim = self.claim(&namespace, &id).await?;
            let controller = self.clone();
            found.spawn(async move { controller.recover_one(namespace, id, claim).await });
        }
        while found.join_next().await.is_some() {}
        Ok(())
    }

    async fn recover_one(self: Arc<Self>, namespace: Namespace, id: String, claim: Claim) {
        let bundle = self.shims.bundle(Kind::Sandbox, &namespace, &id);
        let Some(record) = bundle.recorded() else {
            // It was killed before a shim was started.
            return self.shims.discard(&bundle);
        };
        let subject = OwnedSubject { namespace, id, program: record.program };
        match reach(&subject, &bundle).await {
            Ok(connection) => self.adopt(Sandbox::new(subject, bundle, connection), claim),
            Err(error) => {
                tracing::warn!(id = %subject.id, error = %Chain(&error), "a sandbox has no shim, or its shim not it");
                tokio::spawn(async move {
                    let _ = self.shims.clean_up(&subject, &bundle).await;
                    let endpoint = bundle.endpoint();
                    self.shims.discard(&bundle);
                    if let Some(endpoint) = endpoint {
                        endpoint.remove_unserved_socket().await;
                    }
                    drop(claim);
                });
            }
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects to the shim that a bundle tells of, and asks whether it has the sandbox. One that does not answer soon is
/// taken to have it.
async fn reach(subject: &OwnedSubject, bundle: &Bundle) -> Result<Connection> {
    let endpoint = bundle.endpoint().ok_or_else(|| Error::ShimDied { id: subject.id.clone() })?;
    let log = LogCopy::start(bundle, &subject.id);
    let shim = Shim::connect(&endpoint, &subject.id).await?;
    let request = wire::SandboxStatusRequest { sandbox_id: subject.id.clone(), verbose: false };
    let limit = Some(RECOVERY_TIMEOUT);
    let asked = shim.sandbox_service();
    let answer = asked.call_within::<_, wire::SandboxStatusResponse>(limit, "report", "SandboxStatus", &request).await;
    match answer {
        Ok(_) => {}
        Err(Error::Shim(fault)) if fault.grpc == GrpcCode::DeadlineExceeded => {}
        Err(error) => return Err(error),
    }
    Ok(Connection { endpoint, shim, log, is_of_sandbox: true })
}

impl Sandbox {
    fn new(subject: OwnedSubject, bundle: Bundle, connection: Connection) -> Sandbox {
        Sandbox {
            subject,
            bundle,
            endpoint: connection.endpoint,
            shim: connection.shim.sandbox_service(),
            _log: connection.log,
            leaving: AtomicBool::new(false),
            ending: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn program(&self) -> &Path {
        &self.subject.program
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Asks the shim, which knows, or does, what is asked for.
    pub(crate) async fn call<Q: Message, A: Message + Default>(
        &self,
        step: &str,
        method: &str,
        request: &Q,
    ) -> Result<A> {
        self.shim.call(step, method, request).await
    }

    async fn make(&self, creation: Creation) -> Result<()> {
        let request = wire::CreateSandboxRequest {
            sandbox_id: creation.id,
            bundle_path: self.bundle.path.display().to_string(),
            rootfs: creation.rootfs,
            options: creation.options,
            netns_path: creation.netns_path,
            annotations: creation.annotations,
        };
        self.call::<_, wire::CreateSandboxResponse>("create", "CreateSandbox", &request).await.map(drop)
    }

    async fn end(&self, limit: Option<Duration>) -> Result<()> {
        let request = wire::ShutdownSandboxRequest { sandbox_id: self.subject.id.clone() };
        let told =
            self.shim.call_within::<_, wire::ShutdownSandboxResponse>(limit, "delete", "ShutdownSandbox", &request);
        told.await.map(drop)
    }
}

/// An id that nobody else gets, until the sandbox is there or the claim is dropped.
struct Claim {
    controller: Arc<Controller>,
    key: Option<Key>,
    /// Whoever waits for the id waits for this to go.
    _done: channel::Sender<()>,
}

impl Claim {
    fn fulfil(mut self, entry: Entry) {
        if let Some(key) = self.key.take() {
            self.controller.entries().insert(key, entry);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.controller.entries().remove(&key);
        }
    }
}

/// Waits for the end of a channel that never says anything.
async fn closed(mut channel: channel::Receiver<()>) {
    let _ = channel.changed().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::shims::tests::shims;

    /// A controller with one sandbox, and the shim's end of the connection to it.
    async fn controlled(directory: &Path) -> (Arc<Controller>, Arc<Sandbox>, tokio::net::UnixStream) {
        let store = Arc::new(Store::open(directory).unwrap());
        let controller = Arc::new(Controller::new(store, Arc::new(shims(directory))));
        let namespace = Namespace::parse("n").unwrap();
        let socket = directory.join("socket");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let address = format!("unix://{}", socket.display());
        let endpoint = Endpoint { version: 3, address, protocol: "ttrpc".to_owned() };
        let shim = Shim::connect(&endpoint, "pod").await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let bundle = controller.shims.make_bundle(Kind::Sandbox, &namespace, "pod", None).unwrap().disarm();
        let subject = OwnedSubject { namespace: namespace.clone(), id: "pod".to_owned(), program: "/bin/true".into() };
        let claim = controller.claim(&namespace, "pod").await.unwrap();
        controller
            .adopt(Sandbox::new(subject, bundle, Connection { endpoint, shim, log: None, is_of_sandbox: true }), claim);
        let sandbox = controller.find(&namespace, "pod").unwrap();
        (controller, sandbox, stream)
    }

    #[tokio::test]
    async fn one_whose_shim_dies_while_it_refuses_to_end_is_not_kept() {
        let directory = tempfile::tempdir().unwrap();
        let (controller, sandbox, shim) = controlled(directory.path()).await;
        // As while it is asked to end.
        sandbox.leaving.store(true, Ordering::Release);
        drop(shim);
        sandbox.shim.closed().await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(controller.find(&sandbox.subject.namespace, "pod").is_ok(), "its watcher leaves it to who asked");
        controller.keep(&sandbox).await;
        assert!(controller.find(&sandbox.subject.namespace, "pod").is_err_and(|error| error.is_not_found()));
        assert!(!sandbox.bundle.exists());
    }

    #[tokio::test]
    async fn one_that_refuses_to_end_is_watched_on() {
        let directory = tempfile::tempdir().unwrap();
        let (controller, sandbox, shim) = controlled(directory.path()).await;
        sandbox.leaving.store(true, Ordering::Release);
        controller.keep(&sandbox).await;
        assert!(controller.find(&sandbox.subject.namespace, "pod").is_ok());
        drop(shim);
        let gone = async {
            while controller.find(&sandbox.subject.namespace, "pod").is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.expect("it goes with its shim");
    }
}
