//! What is done behind the replies: preparing wires, removing pins, watching links go, forgetting connections.
//!
//! The kernel takes a namespace apart on its own time, tens of milliseconds, and much cheaper when it may do several at
//! once than when we delete link by link. So a namespace is only let go here; its link is looked after until it is gone,
//! then its address is free. A link that does not go (a process still lives in the namespace) is deleted.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::conntrack;
use super::endpoint::{Endpoint, PublishedPort};
use super::error::{Attempt, Error};
use super::forwarding;
use super::rtnl::Rtnl;
use super::wire::Wire;
use super::{Shared, lock};

/// Jobs that may wait; a caller that finds it full waits too. Each endpoint makes five in its life.
const QUEUE: usize = 1024;
/// How often links that go are looked at.
const SWEEP: Duration = Duration::from_millis(50);
/// How long a link may take to go by itself.
const PATIENCE: Duration = Duration::from_secs(1);
/// Other people's firewalls are looked at once in this time at most.
const FORWARDING_REST: Duration = Duration::from_secs(1);

/// What is left of an endpoint.
#[derive(Debug)]
pub(super) struct Leftover {
    pub(super) pin: Option<PathBuf>,
    pub(super) link: String,
    pub(super) address: Ipv4Addr,
}

impl Leftover {
    pub(super) fn of_wire(wire: &Wire) -> Leftover {
        Leftover { pin: None, link: wire.link.clone(), address: wire.address }
    }

    pub(super) fn of_endpoint(endpoint: &Endpoint) -> Leftover {
        Leftover { pin: Some(endpoint.namespace.clone()), link: endpoint.link.clone(), address: endpoint.address }
    }
}

enum Job {
    Refill,
    Discard(Leftover),
    /// Let a link's container call its own published ports. Not on the reply's path: the kernel changes links under one
    /// lock, which it holds for tens of milliseconds where it takes links apart.
    Hairpin {
        link: String,
    },
    Forget {
        container: Ipv4Addr,
        ports: Vec<PublishedPort>,
        gone: bool,
    },
    Drain(Sender<()>),
    Stop,
}

/// The thread behind; it ends when this is dropped.
pub(super) struct Worker {
    jobs: SyncSender<Job>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(super) fn start(shared: Arc<Shared>) -> Result<Worker, Error> {
        let (jobs, queue) = mpsc::sync_channel(QUEUE);
        let state = State { shared, going: Vec::new(), forwarding_seen: None };
        let builder = thread::Builder::new().name("network".to_owned()).stack_size(256 * 1024);
        let thread = builder.spawn(move || state.run(&queue)).attempt(|| "start a thread".to_owned())?;
        Ok(Worker { jobs, thread: Some(thread) })
    }

    /// Prepares as many wires as are wanted.
    pub(super) fn refill(&self) {
        self.send(Job::Refill);
    }

    /// Removes what is left of an endpoint.
    pub(super) fn discard(&self, leftover: Leftover) {
        self.send(Job::Discard(leftover));
    }

    /// An endpoint has published its ports.
    pub(super) fn published(&self, endpoint: &Endpoint) {
        if !endpoint.ports.is_empty() {
            self.send(Job::Hairpin { link: endpoint.link.clone() });
            self.send(Job::Forget { container: endpoint.address, ports: endpoint.ports.clone(), gone: false });
        }
    }

    /// An endpoint's ports are published no more.
    pub(super) fn unpublished(&self, endpoint: &Endpoint) {
        if !endpoint.ports.is_empty() {
            self.send(Job::Forget { container: endpoint.address, ports: endpoint.ports.clone(), gone: true });
        }
    }

    /// Waits until every link that is going has gone.
    pub(super) fn drain(&self) {
        let (done, wait) = mpsc::channel();
        self.send(Job::Drain(done));
        // An error means that the worker is gone: then there is nothing to wait for.
        let _ = wait.recv();
    }

    fn send(&self, job: Job) {
        if self.jobs.send(job).is_err() {
            tracing::error!("the network's worker is gone: nothing is prepared or cleaned up until the next start");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.jobs.send(Job::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the network's worker panicked");
        }
    }
}

struct State {
    shared: Arc<Shared>,
    /// Links that are going, and since when.
    going: Vec<(Leftover, Instant)>,
    forwarding_seen: Option<Instant>,
}

impl State {
    fn run(mut self, queue: &Receiver<Job>) {
        loop {
            match self.next(queue) {
                Some(Job::Refill) => self.refill(),
                Some(Job::Discard(leftover)) => self.let_go(leftover),
                Some(Job::Hairpin { link }) => hairpin(&link),
                Some(Job::Forget { container, ports, gone }) => forget(container, &ports, gone),
                Some(Job::Drain(done)) => {
                    self.sweep(Duration::ZERO);
                    let _ = done.send(());
                }
                Some(Job::Stop) => break,
                None => self.sweep(PATIENCE),
            }
        }
        // What was prepared goes with its descriptors; the kernel cleans up.
        lock(&self.shared.prepared).clear();
    }

    /// The next job, or `None` when it is time to look at what is going.
    fn next(&self, queue: &Receiver<Job>) -> Option<Job> {
        if self.going.is_empty() {
            return Some(queue.recv().unwrap_or(Job::Stop));
        }
        match queue.recv_timeout(SWEEP) {
            Ok(job) => Some(job),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Job::Stop),
        }
    }

    fn refill(&mut self) {
        while lock(&self.shared.prepared).len() < self.shared.prepared_wanted {
            match self.shared.new_wire() {
                Ok(wire) => lock(&self.shared.prepared).push_back(wire),
                Err(error) => {
                    // Whoever connects next meets the same error where it can be told.
                    tracing::debug!(%error, "no namespace prepared ahead");
                    break;
                }
            }
        }
        self.look_at_forwarding();
    }

    /// Docker may have been started after us.
    fn look_at_forwarding(&mut self) {
        if self.forwarding_seen.is_some_and(|seen| seen.elapsed() < FORWARDING_REST) {
            return;
        }
        self.forwarding_seen = Some(Instant::now());
        let outcome = forwarding::ensure(&mut lock(&self.shared.nft), &self.shared.table, &self.shared.bridge.name);
        if let Err(error) = outcome {
            tracing::warn!(%error, cause = source_of(&error), "containers may be cut off by this host's firewall");
        }
    }

    fn let_go(&mut self, leftover: Leftover) {
        if let Some(pin) = &leftover.pin
            && let Err(error) = self.shared.pins.unpin(pin)
        {
            tracing::warn!(%error, cause = source_of(&error), "a pin stays behind until the next start");
        }
        self.going.push((leftover, Instant::now()));
    }

    /// Frees the addresses of links that are gone, and deletes those that stayed longer than `patience`.
    fn sweep(&mut self, patience: Duration) {
        let mut rtnl = match Rtnl::open() {
            Ok(rtnl) => rtnl,
            Err(error) => return tracing::warn!(%error, "cannot look at the links of removed containers"),
        };
        let shared = &self.shared;
        self.going.retain(|(leftover, since)| {
            let gone = match rtnl.link(&leftover.link) {
                Ok(None) => true,
                Ok(Some(_)) if since.elapsed() >= patience => delete(&mut rtnl, &leftover.link),
                Ok(Some(_)) => false,
                Err(error) => {
                    tracing::warn!(%error, link = leftover.link, "cannot look at the link of a removed container");
                    false
                }
            };
            if gone {
                lock(&shared.ipam).release(leftover.address);
            }
            !gone
        });
    }
}

fn delete(rtnl: &mut Rtnl, link: &str) -> bool {
    match rtnl.delete_link(link) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, link, "cannot delete the link of a removed container");
            false
        }
    }
}

fn hairpin(link: &str) {
    if let Err(error) = Rtnl::open().and_then(|mut rtnl| rtnl.set_hairpin(link)) {
        tracing::warn!(%error, link, "a container may not reach its own published ports");
    }
}

fn forget(container: Ipv4Addr, ports: &[PublishedPort], gone: bool) {
    if let Err(error) = conntrack::forget_udp(container, ports, gone) {
        tracing::warn!(%error, %container, "stale UDP connections may stay until they time out");
    }
}

fn source_of(error: &Error) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}
