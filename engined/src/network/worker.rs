//! What is done behind the replies: preparing wires, removing pins, watching links go, forgetting connections, repairing
//! what others changed.
//!
//! The kernel takes a namespace apart on its own time, tens of milliseconds, and much cheaper when it may do several at
//! once than when we delete link by link. So a namespace is only let go here; its link is looked after until it is gone,
//! then its address is free. A link that does not go (a process still lives in the namespace) is deleted.
//!
//! One thread does it all, and sleeps in one place: until there is a job, until somebody else changed nftables, or until
//! it is time to look at something again.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::conntrack;
use super::endpoint::{Endpoint, PublishedPort};
use super::error::{Attempt, Error, Refusal};
use super::forwarding;
use super::rtnl::Rtnl;
use super::watch::Watch;
use super::wire::Wire;
use super::{Shared, lock};

/// Jobs that may wait; a caller that finds it full waits too. Each endpoint makes six in its life.
const QUEUE: usize = 1024;
/// How often links that go are looked at.
const SWEEP: Duration = Duration::from_millis(50);
/// How long a link may take to go by itself.
const PATIENCE: Duration = Duration::from_secs(1);
/// What is let go waits so long for others to go with it. Taking one namespace apart costs the kernel about as much as taking
/// ten apart, under the lock that whoever makes links waits for.
const GATHER: Duration = Duration::from_millis(200);
/// But no more wait than this.
const GATHER_MAX: usize = 64;
/// How long the pin of a running container stays: what runs shorter is taken apart once, at its end.
const SETTLED: Duration = Duration::from_secs(1);
/// Others' changes of a firewall come in many steps: it is looked at when this long after the first.
const SETTLE: Duration = Duration::from_millis(50);
/// And no more often than this, however much others change.
const REST: Duration = Duration::from_secs(1);

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

    pub(super) fn of_endpoint(endpoint: &Endpoint, is_pinned: bool) -> Leftover {
        let pin = is_pinned.then(|| endpoint.namespace.clone());
        Leftover { pin, link: endpoint.link.clone(), address: endpoint.address }
    }
}

enum Job {
    Refill,
    Discard(Leftover),
    Settled(Endpoint),
    /// Not on the reply's path: the kernel changes links under one lock, which it holds for tens of milliseconds where it
    /// takes links apart.
    Hairpin {
        link: String,
    },
    Forget {
        container: Ipv4Addr,
        ports: Vec<PublishedPort>,
        gone: bool,
    },
    Release(PathBuf, Sender<()>),
    Drain(Sender<()>),
    Stop,
}

/// The thread behind; it ends when this is dropped.
pub(super) struct Worker {
    jobs: SyncSender<Job>,
    /// Written to when there is a job.
    bell: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(super) fn start(shared: Arc<Shared>) -> Result<Worker, Error> {
        let (jobs, queue) = mpsc::sync_channel(QUEUE);
        let bell =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).attempt(|| "create an eventfd".to_owned())?;
        let bell = Arc::new(bell);
        let own_port = lock(&shared.nft).port();
        let watch = own_port
            .and_then(|port| Watch::open(port, &shared.table))
            .attempt(|| "listen to changes of nftables".to_owned())?;
        let state = State {
            shared,
            queue,
            bell: Arc::clone(&bell),
            watch,
            is_refilling: false,
            leaving: Vec::new(),
            leave_due: None,
            going: Vec::new(),
            settled: VecDeque::new(),
            table: Repair::default(),
            forwarding: Repair::default(),
        };
        let builder = thread::Builder::new().name("network".to_owned()).stack_size(256 * 1024);
        let thread = builder.spawn(move || state.run()).attempt(|| "start a thread".to_owned())?;
        Ok(Worker { jobs, bell, thread: Some(thread) })
    }

    /// Prepares as many wires as are wanted.
    pub(super) fn refill(&self) {
        self.send(Job::Refill);
    }

    /// Removes what is left of an endpoint.
    pub(super) fn discard(&self, leftover: Leftover) {
        self.send(Job::Discard(leftover));
    }

    /// Removes the pin of an endpoint in a while, if the endpoint is still there.
    /// Nobody waits for it, and where the queue is full the pin just stays: so this never blocks.
    pub(super) fn settled(&self, endpoint: &Endpoint) {
        if self.jobs.try_send(Job::Settled(endpoint.clone())).is_ok() {
            self.ring();
        }
    }

    /// Lets the container behind `link` call its own published ports.
    pub(super) fn hairpin(&self, link: &str) {
        self.send(Job::Hairpin { link: link.to_owned() });
    }

    /// An endpoint has published its ports.
    pub(super) fn published(&self, endpoint: &Endpoint) {
        if !endpoint.ports.is_empty() {
            self.send(Job::Forget { container: endpoint.address, ports: endpoint.ports.clone(), gone: false });
        }
    }

    /// An endpoint's ports are published no more.
    pub(super) fn unpublished(&self, endpoint: &Endpoint) {
        if !endpoint.ports.is_empty() {
            self.send(Job::Forget { container: endpoint.address, ports: endpoint.ports.clone(), gone: true });
        }
    }

    /// Waits until the pin at `path` is removed, if it is to be.
    pub(super) fn release(&self, path: &Path) {
        let (done, wait) = mpsc::channel();
        self.send(Job::Release(path.to_owned(), done));
        // As below.
        let _ = wait.recv();
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
            return;
        }
        self.ring();
    }

    fn ring(&self) {
        // It fails only when it was rung 2^64 times unheard.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.send(Job::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the network's worker panicked");
        }
    }
}

/// Something to look at because others changed it: soon, but not too often.
#[derive(Default)]
struct Repair {
    due: Option<Instant>,
    last: Option<Instant>,
}

impl Repair {
    fn ask(&mut self) {
        let now = Instant::now();
        let soon = now + SETTLE;
        let rested = self.last.map_or(soon, |last| last + REST);
        self.due.get_or_insert(soon.max(rested));
    }

    /// Whether it is time; asked once, then done.
    fn take_due(&mut self) -> bool {
        let now = Instant::now();
        let is_due = self.due.is_some_and(|due| due <= now);
        if is_due {
            self.due = None;
            self.last = Some(now);
        }
        is_due
    }
}

struct State {
    shared: Arc<Shared>,
    queue: Receiver<Job>,
    bell: Arc<OwnedFd>,
    watch: Watch,
    /// More namespaces are to be made ahead.
    is_refilling: bool,
    /// What is let go with the next, and when at the latest.
    leaving: Vec<Leftover>,
    leave_due: Option<Instant>,
    /// Links that are going, and since when.
    going: Vec<(Leftover, Instant)>,
    /// Endpoints whose pin is to go, in the order of when.
    settled: VecDeque<(Endpoint, Instant)>,
    table: Repair,
    forwarding: Repair,
}

impl State {
    fn run(mut self) {
        while self.do_jobs() {
            if self.leaving.len() >= GATHER_MAX || self.leave_due.is_some_and(|due| due <= Instant::now()) {
                self.let_go(|_| true);
            }
            self.sweep(PATIENCE);
            self.unpin_settled();
            self.repair();
            match self.is_refilling {
                true => self.prepare(),
                false => self.sleep(),
            }
        }
        self.let_go(|_| true);
        // What was prepared goes with its descriptors; the kernel cleans up.
        lock(&self.shared.prepared).clear();
    }

    /// Does what waits; `false` when it is time to end.
    fn do_jobs(&mut self) -> bool {
        loop {
            match self.queue.try_recv() {
                Ok(Job::Refill) => self.refill(),
                Ok(Job::Discard(leftover)) => self.gather(leftover),
                Ok(Job::Settled(endpoint)) => self.settled.push_back((endpoint, Instant::now() + SETTLED)),
                Ok(Job::Hairpin { link }) => hairpin(&link),
                Ok(Job::Forget { container, ports, gone }) => forget(container, &ports, gone),
                Ok(Job::Release(path, done)) => {
                    self.let_go(|leftover| leftover.pin.as_ref() == Some(&path));
                    let _ = done.send(());
                }
                Ok(Job::Drain(done)) => {
                    self.let_go(|_| true);
                    self.sweep(Duration::ZERO);
                    let _ = done.send(());
                }
                Err(TryRecvError::Empty) => return true,
                Ok(Job::Stop) | Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn sleep(&mut self) {
        let sweep = (!self.going.is_empty()).then(|| Instant::now() + SWEEP);
        let unpin = self.settled.front().map(|(_, due)| *due);
        let until = [sweep, unpin, self.leave_due, self.table.due, self.forwarding.due].into_iter().flatten().min();
        let timeout = until.map(|until| {
            let rest = until.saturating_duration_since(Instant::now());
            Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: i64::from(rest.subsec_nanos()) }
        });
        let (bell, watch) = (self.bell.as_fd(), self.watch.as_fd());
        let mut fds = [PollFd::from_borrowed_fd(bell, PollFlags::IN), PollFd::from_borrowed_fd(watch, PollFlags::IN)];
        // An interruption is as good a reason to look around as any.
        let _ = poll(&mut fds, timeout.as_ref());
        let heard = !fds[1].revents().is_empty();
        let mut rings = [0; 8];
        let _ = rustix::io::read(&self.bell, &mut rings);
        if heard {
            self.listen();
        }
    }

    fn listen(&mut self) {
        let changes = self.watch.changes().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot hear changes of nftables");
            Default::default()
        });
        if changes.ours {
            self.table.ask();
        }
        if changes.forwarding {
            self.forwarding.ask();
        }
    }

    /// Not at each that is taken, but for several at once: most containers then start while nothing is being prepared.
    fn refill(&mut self) {
        let (there, wanted) = (lock(&self.shared.prepared).len(), self.shared.prepared_wanted);
        let few = if wanted < 4 { wanted.saturating_sub(1) } else { wanted / 4 };
        self.is_refilling |= there <= few;
    }

    /// Makes one: other jobs do not wait for all.
    fn prepare(&mut self) {
        if lock(&self.shared.prepared).len() >= self.shared.prepared_wanted {
            self.is_refilling = false;
            return;
        }
        match self.shared.new_wire() {
            Ok(wire) => lock(&self.shared.prepared).push_back(wire),
            Err(error) => {
                // Whoever connects next meets the same error where it can be told.
                tracing::debug!(%error, "no namespace prepared ahead");
                self.is_refilling = false;
            }
        }
    }

    fn repair(&mut self) {
        if self.table.take_due() {
            tracing::warn!(table = self.shared.table, "others changed our nftables table: written anew");
            tell(self.shared.rewrite(&mut lock(&self.shared.nft)), "published ports may not work");
        }
        if self.forwarding.take_due() {
            let outcome = forwarding::ensure(&mut lock(&self.shared.nft), &self.shared.table, &self.shared.bridge.name);
            tell(outcome, "containers may be cut off by this host's firewall");
        }
    }

    fn unpin_settled(&mut self) {
        let now = Instant::now();
        let due = self.settled.iter().take_while(|(_, due)| *due <= now).count();
        for (endpoint, _) in self.settled.drain(..due) {
            self.shared.unpin_settled(&endpoint);
        }
    }

    fn gather(&mut self, leftover: Leftover) {
        // The address, and so the link's name, is free for another only after this.
        self.settled.retain(|(endpoint, _)| endpoint.link != leftover.link);
        self.leave_due.get_or_insert_with(|| Instant::now() + GATHER);
        self.leaving.push(leftover);
    }

    fn let_go(&mut self, is_wanted: impl Fn(&Leftover) -> bool) {
        let (wanted, others) = std::mem::take(&mut self.leaving).into_iter().partition::<Vec<_>, _>(is_wanted);
        self.leaving = others;
        self.leave_due = self.leave_due.filter(|_| !self.leaving.is_empty());
        for leftover in wanted {
            if let Some(pin) = &leftover.pin {
                tell(self.shared.pins.unpin(pin), "a pin stays behind until the next start");
            }
            self.going.push((leftover, Instant::now()));
        }
    }

    /// Frees the addresses of links that are gone, and deletes those that stayed longer than `patience`.
    fn sweep(&mut self, patience: Duration) {
        if self.going.is_empty() {
            return;
        }
        let mut rtnl = match Rtnl::open() {
            Ok(rtnl) => rtnl,
            Err(error) => return tracing::warn!(%error, "cannot look at the links of removed containers"),
        };
        let shared = &self.shared;
        self.going.retain(|(leftover, since)| {
            let gone = is_gone(&mut rtnl, &leftover.link, since.elapsed() >= patience).unwrap_or_else(|error| {
                tracing::warn!(%error, link = leftover.link, "cannot remove the link of a removed container");
                false
            });
            if gone {
                lock(&shared.ipam).release(leftover.address);
            }
            !gone
        });
    }
}

fn is_gone(rtnl: &mut Rtnl, link: &str, impatient: bool) -> Result<bool, Refusal> {
    match rtnl.link(link)? {
        None => Ok(true),
        Some(_) if impatient => rtnl.delete_link(link).map(|()| true),
        Some(_) => Ok(false),
    }
}

fn hairpin(link: &str) {
    match Rtnl::open().and_then(|mut rtnl| rtnl.set_hairpin(link)) {
        // The container has ended already.
        Err(error) if error.is(libc::ENODEV) => {}
        Err(error) => tracing::warn!(%error, link, "a container may not reach its own published ports"),
        Ok(()) => {}
    }
}

fn forget(container: Ipv4Addr, ports: &[PublishedPort], gone: bool) {
    if let Err(error) = conntrack::forget_udp(container, ports, gone) {
        tracing::warn!(%error, %container, "stale UDP connections may stay until they time out");
    }
}

pub(super) fn tell(outcome: Result<(), Error>, consequence: &str) {
    if let Err(error) = outcome {
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        tracing::warn!(%error, cause, "{consequence}");
    }
}
