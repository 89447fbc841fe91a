//! Containers on the network: a bridge with addresses, namespaces, and published ports.
//!
//! The core calls [`Network::open`] once at start, [`Network::attach`] on the path of each run (step 6b, connect) and
//! [`Network::detach`] when a container ends; [`Network::remove_all`] is what `make down` calls. All is synchronous: on an
//! async runtime call it where blocking is allowed. Nothing is executed: links go over rtnetlink, the firewall over
//! nftables' netlink.
//!
//! This part knows no container, only endpoints: the core chooses their ids and keeps their records. It keeps no file of
//! its own but the pins of namespaces; after a restart it looks at the kernel, compares with the records, and makes both
//! agree.
//!
//! ```text
//!                    open: bridge, table, recovery
//!                                │
//!   attach: reserve ports ─► take a wire ─► pin ─► publish ──► Endpoint (the record)
//!                                ▲                                  │
//!                 worker: makes wires ahead                    detach: unpublish, free ports
//!                         watches links go  ◄────── unpin ◄─────────┘
//! ```
//!
//! It never touches a cgroup, reads no image, opens no connection, and changes no table and no sysctl of others but what
//! [`forwarding`] and [`router`] say.

mod bridge;
mod conntrack;
mod endpoint;
mod error;
pub(crate) mod files;
mod forwarding;
mod ipam;
mod legacy;
mod namespace;
mod netlink;
mod nft;
mod ports;
mod recovery;
mod router;
mod rtnl;
mod rules;
mod subnet;
mod sys;
mod watch;
mod wire;
mod worker;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::bridge::Bridge;
pub(crate) use self::endpoint::{Endpoint, EndpointId, PortRequest, Protocol, PublishedPort};
use self::error::Attempt;
pub(crate) use self::error::Error;
use self::ipam::Ipam;
use self::namespace::Pins;
use self::nft::Nft;
use self::ports::Reservation;
pub(crate) use self::recovery::Recovery;
use self::rules::Rules;
pub(crate) use self::subnet::Subnet;
use self::wire::Wire;
use self::worker::{Leftover, Worker};

/// What an instance's network is to be.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The bridge's name, 15 bytes at most.
    pub(crate) bridge: String,
    /// The containers' subnet. `None`: what the bridge has, else one that this host has no route to.
    pub(crate) subnet: Option<Subnet>,
    /// The bridge's own address. `None`: the subnet's first.
    pub(crate) gateway: Option<Ipv4Addr>,
    /// `None`: the uplink's, 1500 at most.
    pub(crate) mtu: Option<u32>,
    /// The name of our nftables table, one per instance.
    pub(crate) table: String,
    /// The directory that namespaces are pinned in.
    pub(crate) namespaces: PathBuf,
    /// Whether the host's `net.ipv4.ip_forward` may be switched on.
    pub(crate) ip_forward: bool,
    /// How many namespaces are prepared ahead; more are made when three in four are taken.
    pub(crate) prepared: usize,
}

/// The network of one instance of the engine.
pub(crate) struct Network {
    shared: Arc<Shared>,
    worker: Worker,
}

/// What the callers and the worker share. No two of its locks are ever held at once, except `live` within `nft`.
struct Shared {
    bridge: Bridge,
    table: String,
    /// Links that must stay closed to each other; see [`router`].
    closed: Vec<String>,
    pins: Pins,
    prepared_wanted: usize,
    nft: Mutex<Nft>,
    ipam: Mutex<Ipam>,
    live: Mutex<HashMap<EndpointId, Live>>,
    prepared: Mutex<VecDeque<Wire>>,
}

/// An endpoint that is connected, or is being.
enum Live {
    Connecting,
    Connected(Connected),
}

/// A connected endpoint.
struct Connected {
    endpoint: Endpoint,
    reservations: Vec<Reservation>,
    /// The pin has not been removed; what holds the namespace otherwise is the container.
    is_pinned: bool,
}

/// A thread that panicked left the data whole: each change is a single insertion or removal.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Network {
    /// Makes bridge and table what the configuration says, brings the kernel's state and the records of `live` endpoints
    /// to agree, and begins to prepare namespaces. `namespaces` are the pins without an endpoint that are still used.
    pub(crate) fn open(
        config: &Config,
        live: &[Endpoint],
        namespaces: &[PathBuf],
    ) -> Result<(Network, Recovery), Error> {
        recovery::open(config, live, namespaces)
    }

    fn start(shared: Shared) -> Result<Network, Error> {
        let shared = Arc::new(shared);
        let worker = Worker::start(Arc::clone(&shared))?;
        worker.refill();
        Ok(Network { shared, worker })
    }

    /// Connects a new endpoint: a namespace of its own on the bridge, its ports published. Either all of it is done when
    /// this returns, or nothing.
    pub(crate) fn attach(&self, id: &EndpointId, requests: &[PortRequest]) -> Result<Endpoint, Error> {
        let claim = Claim::on(&self.shared, id)?;
        // What depends on the user comes first: a port in use costs no namespace.
        let reservations = ports::reserve_all(requests)?;
        self.clear_pin(id)?;
        let wire = self.take_wire()?;
        if !reservations.is_empty() {
            self.worker.hairpin(&wire.link);
        }
        let outcome = self.shared.connect(claim, &wire, reservations);
        match &outcome {
            Ok(endpoint) => self.worker.published(endpoint),
            Err(_) => self.worker.discard(Leftover::of_wire(&wire)),
        }
        self.worker.refill();
        outcome
    }

    /// Disconnects an endpoint. When this returns its ports and its id are free; the namespace and its links are taken
    /// apart behind. One that is not connected is no error.
    pub(crate) fn detach(&self, id: &EndpointId) -> Result<(), Error> {
        let Some((leftover, endpoint, outcome)) = self.shared.disconnect(id) else { return Ok(()) };
        lock(&self.shared.ipam).drain(endpoint.address);
        self.worker.unpublished(&endpoint);
        self.worker.discard(leftover);
        outcome
    }

    /// The endpoint's container runs, and so holds the namespace: its pin goes after a while. Every new mount namespace
    /// copies the pins, with hundreds of them for most of a millisecond.
    pub(crate) fn settled(&self, endpoint: &Endpoint) {
        self.worker.settled(endpoint);
    }

    /// The subnet that containers live in.
    pub(crate) fn subnet(&self) -> Subnet {
        self.shared.bridge.subnet
    }

    /// Removes every trace of an instance: namespaces, links, table, tagged rules, the switch that was thrown. It needs
    /// no running engine, goes on past failures, and says them all.
    pub(crate) fn remove_all(config: &Config) -> Vec<Error> {
        recovery::remove_all(config)
    }

    /// How many wires are ready.
    #[cfg(test)]
    fn prepared(&self) -> usize {
        lock(&self.shared.prepared).len()
    }

    /// The pin of the one that had this id before may wait for its removal.
    fn clear_pin(&self, id: &EndpointId) -> Result<(), Error> {
        let path = self.shared.pins.path(id);
        if !path.exists() {
            return Ok(());
        }
        self.worker.release(&path);
        self.shared.pins.unpin(&path)
    }

    /// A wire made ahead, else a new one.
    fn take_wire(&self) -> Result<Wire, Error> {
        if let Some(wire) = self.shared.prepared_wire() {
            return Ok(wire);
        }
        match self.shared.new_wire() {
            // What is full may be so by endpoints that are going, or by a wire that the worker is just making: once the
            // worker is through, look again.
            Err(Error::AddressesExhausted(_) | Error::BridgeFull { .. }) => {
                self.worker.drain();
                self.shared.prepared_wire().map_or_else(|| self.shared.new_wire(), Ok)
            }
            outcome => outcome,
        }
    }
}

impl Shared {
    fn prepared_wire(&self) -> Option<Wire> {
        lock(&self.prepared).pop_front()
    }

    fn new_wire(&self) -> Result<Wire, Error> {
        let address = lock(&self.ipam).allocate().ok_or(Error::AddressesExhausted(self.bridge.subnet))?;
        Wire::new(&self.bridge, address).inspect_err(|_| lock(&self.ipam).release(address))
    }

    /// Gives a wire its name and its ports; undoes the first when the second fails.
    fn connect(&self, claim: Claim<'_>, wire: &Wire, reservations: Vec<Reservation>) -> Result<Endpoint, Error> {
        let namespace = self.pins.pin(&claim.id, wire.namespace.as_fd())?;
        let endpoint = Endpoint {
            id: claim.id.clone(),
            namespace,
            link: wire.link.clone(),
            address: wire.address,
            prefix: self.bridge.subnet.prefix(),
            gateway: self.bridge.gateway,
            mac: wire.mac,
            ports: reservations.iter().map(|reservation| reservation.port).collect(),
        };
        self.publish(claim, &endpoint, reservations).inspect_err(|_| {
            if let Err(error) = self.pins.unpin(&endpoint.namespace) {
                tracing::warn!(%error, "a pin stays behind until the next start");
            }
        })?;
        Ok(endpoint)
    }

    /// Enters the endpoint among the live ones, and its ports into the table. Both happen within the table's lock, so that
    /// whoever writes the table anew finds neither more nor less than is published.
    fn publish(&self, claim: Claim<'_>, endpoint: &Endpoint, reservations: Vec<Reservation>) -> Result<(), Error> {
        if endpoint.ports.is_empty() {
            claim.fulfil(endpoint, reservations);
            return Ok(());
        }
        let mut nft = lock(&self.nft);
        claim.fulfil(endpoint, reservations);
        let batch = rules::publish(&self.table, endpoint.address, &endpoint.ports);
        self.commit_or_rewrite(&mut nft, batch).inspect_err(|_| {
            lock(&self.live).remove(&endpoint.id);
        })
    }

    /// Takes an endpoint from the live ones and its ports from the table; `None` when it is not connected.
    fn disconnect(&self, id: &EndpointId) -> Option<(Leftover, Endpoint, Result<(), Error>)> {
        let mut nft = lock(&self.nft);
        let mut live = lock(&self.live);
        // One that is just being connected is not connected yet.
        let Some(Live::Connected(_)) = live.get(id) else { return None };
        let Some(Live::Connected(Connected { endpoint, reservations, is_pinned })) = live.remove(id) else {
            return None;
        };
        drop(live);
        let mut outcome = Ok(());
        if !endpoint.ports.is_empty() {
            let batch = rules::unpublish(&self.table, endpoint.address, &endpoint.ports);
            outcome = self.commit_or_rewrite(&mut nft, batch);
        }
        // Free for others only now that no packet is rewritten any more.
        drop(reservations);
        Some((Leftover::of_endpoint(&endpoint, is_pinned), endpoint, outcome))
    }

    /// Removes the pin of an endpoint that is still the one that was meant: another of its id has another address or pin.
    fn unpin_settled(&self, meant: &Endpoint) {
        match lock(&self.live).get_mut(&meant.id) {
            Some(Live::Connected(connected)) if connected.endpoint == *meant && connected.is_pinned => {
                connected.is_pinned = false;
            }
            _ => return,
        }
        worker::tell(self.pins.unpin(&meant.namespace), "a pin stays behind until the next start");
    }

    /// Does a batch. It can fail only when somebody else changed our table (a flushed ruleset takes everybody's): then the
    /// table is written anew, from what is live.
    fn commit_or_rewrite(&self, nft: &mut Nft, batch: nft::Batch) -> Result<(), Error> {
        let Err(refusal) = nft.commit(batch) else { return Ok(()) };
        tracing::warn!(error = %refusal, table = self.table, "our nftables table is not as we left it: written anew");
        self.rewrite(nft)
    }

    /// Writes the whole table from what is live.
    fn rewrite(&self, nft: &mut Nft) -> Result<(), Error> {
        let mut published: Vec<(Ipv4Addr, PublishedPort)> = Vec::new();
        for live in lock(&self.live).values() {
            if let Live::Connected(Connected { endpoint, .. }) = live {
                published.extend(endpoint.ports.iter().map(|port| (endpoint.address, *port)));
            }
        }
        let rules = Rules {
            table: &self.table,
            bridge: &self.bridge.name,
            subnet: self.bridge.subnet,
            closed: &self.closed,
            published: &published,
        };
        nft.commit(rules.replace()).attempt(|| format!("write nftables table {}", self.table))
    }
}

/// The right to connect an id; given back when it is dropped unfulfilled.
struct Claim<'a> {
    shared: &'a Shared,
    id: EndpointId,
    fulfilled: bool,
}

impl<'a> Claim<'a> {
    fn on(shared: &'a Shared, id: &EndpointId) -> Result<Claim<'a>, Error> {
        let mut live = lock(&shared.live);
        if live.contains_key(id) {
            return Err(Error::EndpointExists(id.clone()));
        }
        live.insert(id.clone(), Live::Connecting);
        Ok(Claim { shared, id: id.clone(), fulfilled: false })
    }

    fn fulfil(mut self, endpoint: &Endpoint, reservations: Vec<Reservation>) {
        let connected = Live::Connected(Connected { endpoint: endpoint.clone(), reservations, is_pinned: true });
        lock(&self.shared.live).insert(self.id.clone(), connected);
        self.fulfilled = true;
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.fulfilled {
            lock(&self.shared.live).remove(&self.id);
        }
    }
}
