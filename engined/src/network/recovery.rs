//! The start: the kernel's state and the endpoints' records are brought to agree. And the end: everything goes.
//!
//! The records say what should be, the kernel what is. What should be and is not is made again; what is and should not be
//! goes. Only what carries our name is touched: links of our bridge with our ports' names, pins in our directory, our
//! table, rules with our tag.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use super::bridge::{self, Bridge};
use super::endpoint::{Endpoint, EndpointId};
use super::error::{Attempt, Error};
use super::ipam::Ipam;
use super::namespace::{Namespace, Pins};
use super::nft::{Batch, Nft, TABLE_NAME_MAX};
use super::ports;
use super::rtnl::{Link, Rtnl};
use super::worker::Leftover;
use super::{Config, Connected, Live, Network, Shared, forwarding, lock, router, wire};

/// How long the kernel may take to take the last links apart, before they are deleted one by one.
const LINKS_GO: Duration = Duration::from_secs(2);

/// What was found at the start.
#[derive(Debug, Default)]
pub(crate) struct Recovery {
    /// Endpoints that could not be kept, and why: their containers have no network.
    pub(crate) lost: Vec<(EndpointId, Error)>,
    /// Published ports that are forwarded, but that another program took while the engine was away.
    pub(crate) unreserved: Vec<(EndpointId, Error)>,
    /// Endpoints whose link was made again.
    pub(crate) rewired: Vec<EndpointId>,
    /// Namespaces that nobody needed.
    pub(crate) removed_namespaces: usize,
    /// Links that nobody needed.
    pub(crate) removed_links: usize,
    /// Chains of this host's firewall, `family table chain`, that drop what is forwarded and that we leave alone: containers
    /// may be cut off by them.
    pub(crate) dropping: Vec<String>,
}

pub(super) fn open(config: &Config, live: &[Endpoint], namespaces: &[PathBuf]) -> Result<(Network, Recovery), Error> {
    check_table(&config.table)?;
    let bridge = Bridge::ensure(config)?;
    let pins = Pins::open(config.namespaces.clone())?;
    let mut nft = Nft::open().attempt(|| "open a netlink socket for nftables".to_owned())?;
    let plan = router::plan(config.ip_forward, &mut nft, &config.table, &bridge.name)?;
    let mut shared = Shared {
        ipam: Mutex::new(Ipam::new(bridge.subnet, bridge.gateway)),
        bridge,
        table: config.table.clone(),
        closed: plan.closed,
        pins,
        prepared_wanted: config.prepared,
        nft: Mutex::new(nft),
        live: Mutex::new(HashMap::new()),
        prepared: Mutex::new(VecDeque::new()),
    };
    let mut recovery = Recovery::default();
    let strays = keep_live(&mut shared, live, &mut recovery)?;
    remove_stray_pins(&shared, namespaces, &mut recovery)?;
    {
        let mut nft = lock(&shared.nft);
        shared.rewrite(&mut nft)?;
        forwarding::ensure(&mut nft, &shared.table, &shared.bridge.name)?;
        recovery.dropping = forwarding::strangers(&mut nft)?;
    }
    if plan.throw {
        router::enable()?;
    }
    let rewired: Vec<Endpoint> =
        live.iter().filter(|endpoint| recovery.rewired.contains(&endpoint.id)).cloned().collect();
    let network = Network::start(shared)?;
    for endpoint in rewired.iter().filter(|endpoint| !endpoint.ports.is_empty()) {
        network.worker.hairpin(&endpoint.link);
    }
    for stray in strays {
        network.worker.discard(stray);
    }
    Ok((network, recovery))
}

fn check_table(table: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let begins_well = table.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
    if begins_well && table.len() <= TABLE_NAME_MAX && table.bytes().all(plain) {
        return Ok(());
    }
    let why = "is not a letter and then up to 63 letters, digits, '_', '-' or '.'";
    Err(Error::Config { field: "table", value: table.to_owned(), why })
}

/// Takes over the endpoints that are whole or can be made whole; returns the links that belong to none.
fn keep_live(shared: &mut Shared, live: &[Endpoint], recovery: &mut Recovery) -> Result<Vec<Leftover>, Error> {
    let mut rtnl = Rtnl::open().attempt(|| "open a netlink socket".to_owned())?;
    let links = our_links(&mut rtnl, &shared.bridge)?;
    let present: HashMap<&str, &Link> = links.iter().map(|link| (link.name.as_str(), link)).collect();
    for endpoint in live {
        match keep(shared, endpoint, &present, recovery) {
            Ok(connected) => {
                lock(&shared.live).insert(endpoint.id.clone(), Live::Connected(connected));
            }
            Err(error) => recovery.lost.push((endpoint.id.clone(), error)),
        }
    }
    let kept = lock(&shared.live);
    let used: HashSet<&str> = kept.values().filter_map(Live::link).collect();
    let strays: Vec<Leftover> =
        links.iter().filter(|link| !used.contains(link.name.as_str())).filter_map(stray).collect();
    // Their addresses rest until the links are gone.
    let mut ipam = lock(&shared.ipam);
    for stray in &strays {
        if ipam.claim(stray.address) {
            ipam.drain(stray.address);
        }
    }
    recovery.removed_links = strays.len();
    Ok(strays)
}

/// Checks one endpoint and repairs it where it can be: while its namespace is pinned. Without a pin the namespace is the
/// running container's, and its link tells that it is there: the kernel takes both away together.
fn keep(
    shared: &Shared,
    endpoint: &Endpoint,
    present: &HashMap<&str, &Link>,
    recovery: &mut Recovery,
) -> Result<Connected, Error> {
    let link = present.get(endpoint.link.as_str());
    let has_link = link.is_some();
    let pinned = match Namespace::open(&endpoint.namespace) {
        Err(Error::NamespaceGone { .. }) if has_link => None,
        outcome => Some(outcome?),
    };
    if endpoint.gateway != shared.bridge.gateway || !lock(&shared.ipam).claim(endpoint.address) {
        let why = "is not free in the bridge's subnet: was the subnet changed while containers ran?";
        return Err(Error::Config { field: "subnet", value: endpoint.address.to_string(), why });
    }
    let is_pinned = pinned.is_some();
    if let Some(mut namespace) = pinned.filter(|_| !has_link) {
        wire::connect(&shared.bridge, endpoint.address, &mut namespace)
            .inspect_err(|_| lock(&shared.ipam).release(endpoint.address))?;
        recovery.rewired.push(endpoint.id.clone());
    }
    if link.is_some_and(|link| link.master != Some(shared.bridge.index)) {
        wire::reconnect(&shared.bridge, &endpoint.link)
            .inspect_err(|_| lock(&shared.ipam).release(endpoint.address))?;
        recovery.rewired.push(endpoint.id.clone());
    }
    let mut reservations = Vec::new();
    for port in &endpoint.ports {
        match ports::hold(*port) {
            Ok(reservation) => reservations.push(reservation),
            // The container was promised the port and packets do reach it: it stays published.
            Err(error) => recovery.unreserved.push((endpoint.id.clone(), error)),
        }
    }
    Ok(Connected { endpoint: endpoint.clone(), reservations, is_pinned })
}

/// Ports of our bridge, which carry our names, also where others took them from it.
fn our_links(rtnl: &mut Rtnl, bridge: &Bridge) -> Result<Vec<Link>, Error> {
    let links = rtnl.links().attempt(|| "list the links of this host".to_owned())?;
    Ok(links.into_iter().filter(|link| bridge.is_port_name(&link.name)).collect())
}

fn stray(link: &Link) -> Option<Leftover> {
    let digits = link.name.get(link.name.len().checked_sub(8)?..)?;
    let address = Ipv4Addr::from(u32::from_str_radix(digits, 16).ok()?);
    Some(Leftover { pin: None, link: link.name.clone(), address })
}

fn remove_stray_pins(shared: &Shared, namespaces: &[PathBuf], recovery: &mut Recovery) -> Result<(), Error> {
    let mut used: HashSet<PathBuf> = namespaces.iter().cloned().collect();
    used.extend(lock(&shared.live).values().filter_map(Live::pin).cloned());
    for pin in shared.pins.list()? {
        if !used.contains(&pin) {
            shared.pins.unpin(&pin)?;
            recovery.removed_namespaces += 1;
        }
    }
    Ok(())
}

impl Live {
    fn link(&self) -> Option<&str> {
        match self {
            Live::Connected(connected) => Some(&connected.endpoint.link),
            Live::Connecting => None,
        }
    }

    /// Where its namespace is pinned; what lies there otherwise is the rest of a removal that was cut off.
    fn pin(&self) -> Option<&PathBuf> {
        match self {
            Live::Connected(connected) if connected.is_pinned => Some(&connected.endpoint.namespace),
            _ => None,
        }
    }
}

/// Removes an instance's network. Each step stands alone, so that a failure leaves as little as can be.
pub(super) fn remove_all(config: &Config) -> Vec<Error> {
    let mut failures = Vec::new();
    let mut note = |outcome: Result<(), Error>| failures.extend(outcome.err());
    note(remove_pins(config));
    note(remove_links(config));
    note(remove_rules(config));
    failures
}

fn remove_pins(config: &Config) -> Result<(), Error> {
    if !fs::exists(&config.namespaces).attempt(|| format!("look for {}", config.namespaces.display()))? {
        return Ok(());
    }
    let pins = Pins::open(config.namespaces.clone())?;
    for pin in pins.list()? {
        pins.unpin(&pin)?;
    }
    pins.remove_directory()
}

/// The bridge goes first, so that nothing is connected any more; then the kernel has a while for the links whose
/// namespaces were let go.
fn remove_links(config: &Config) -> Result<(), Error> {
    let mut rtnl = Rtnl::open().attempt(|| "open a netlink socket".to_owned())?;
    let found = rtnl.link(&config.bridge).attempt(|| format!("look for link {}", config.bridge))?;
    let Some(link) = found.filter(bridge::is_ours) else { return Ok(()) };
    let ours = Bridge::found(config, link.index);
    let mut ports: Vec<String> = our_links(&mut rtnl, &ours)?.into_iter().map(|link| link.name).collect();
    rtnl.delete_link(&config.bridge).attempt(|| format!("delete bridge {}", config.bridge))?;
    let deadline = Instant::now() + LINKS_GO;
    loop {
        let links = rtnl.links().attempt(|| "list the links of this host".to_owned())?;
        ports.retain(|port| links.iter().any(|link| link.name == *port));
        if ports.is_empty() || Instant::now() >= deadline {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    for port in ports {
        rtnl.delete_link(&port).attempt(|| format!("delete link {port}"))?;
    }
    Ok(())
}

/// The switch goes back before the table goes: the table is what remembers it.
fn remove_rules(config: &Config) -> Result<(), Error> {
    let mut nft = Nft::open().attempt(|| "open a netlink socket for nftables".to_owned())?;
    forwarding::remove(&mut nft, &config.table, &config.bridge)?;
    router::disable(&mut nft, &config.table)?;
    let mut batch = Batch::new(&config.table);
    batch.create_table();
    batch.delete_table();
    nft.commit(batch).attempt(|| format!("delete nftables table {}", config.table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_read_from_a_strays_name() {
        let link = Link { name: "v12340a580002".to_owned(), ..Link::default() };
        assert_eq!(stray(&link).unwrap().address, Ipv4Addr::new(10, 88, 0, 2));
    }

    #[test]
    fn tables_have_plain_names() {
        assert!(check_table("strata-main").is_ok());
        for bad in ["", "-a", "1a", "a b", "a;b", &"a".repeat(65)] {
            assert!(check_table(bad).is_err(), "{bad}");
        }
    }
}
