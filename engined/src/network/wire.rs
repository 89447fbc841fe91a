//! A wire: a new namespace that is a port of the bridge already, with its address and default route.
//!
//! Making one takes the kernel about a millisecond, and some are made ahead, so that connecting a container is little
//! more than giving one a name. A wire that is dropped unused takes itself apart: its namespace has no other holder.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use super::bridge::Bridge;
use super::endpoint::Mac;
use super::error::{Attempt, Error, Refusal};
use super::namespace::Namespace;
use super::rtnl::{FarAddress, Rtnl, VethPair};

/// What the link is called in the container.
const FAR_NAME: &str = "eth0";
/// How long to wait for the carrier, and how often to look. The wait is long only where the kernel is busy with links.
const CARRIER: Duration = Duration::from_millis(250);
const CARRIER_LOOK: Duration = Duration::from_micros(50);

/// A namespace on the bridge that nobody uses yet.
pub(super) struct Wire {
    pub(super) namespace: Namespace,
    pub(super) address: Ipv4Addr,
    pub(super) mac: Mac,
    /// The near end, a port of the bridge.
    pub(super) link: String,
}

impl Wire {
    /// Makes a namespace and connects it.
    pub(super) fn new(bridge: &Bridge, address: Ipv4Addr) -> Result<Wire, Error> {
        let mut namespace = Namespace::fresh()?;
        connect(bridge, address, &mut namespace)?;
        Ok(Wire { namespace, address, mac: Mac::of(address), link: bridge.port_name(address) })
    }
}

/// Connects a namespace that has no link of ours: both ends in one request, then address and route from inside.
pub(super) fn connect(bridge: &Bridge, address: Ipv4Addr, namespace: &mut Namespace) -> Result<(), Error> {
    let mut rtnl = Rtnl::open().attempt(|| "open a netlink socket".to_owned())?;
    create_pair(&mut rtnl, bridge, address, namespace)?;
    let inside = || format!("configure {FAR_NAME} in a container's network namespace as {address}");
    let far = namespace.rtnl.link(FAR_NAME).attempt(inside)?.ok_or_else(|| Error::Kernel {
        attempted: inside(),
        source: std::io::Error::from_raw_os_error(libc::ENODEV).into(),
    })?;
    let wanted = FarAddress { address, subnet: bridge.subnet, gateway: bridge.gateway };
    namespace.rtnl.configure(far.index, &wanted).attempt(inside)?;
    await_carrier(&mut rtnl, &bridge.port_name(address), &mut namespace.rtnl).attempt(inside)
}

/// Makes a port that others took from the bridge one of its ports again.
pub(super) fn reconnect(bridge: &Bridge, port: &str) -> Result<(), Error> {
    let outcome = Rtnl::open().and_then(|mut rtnl| rtnl.enslave(port, bridge.index));
    outcome.attempt(|| format!("make link {port} a port of bridge {}", bridge.name))
}

/// Waits until the kernel has noticed that the two ends have each other. It notices behind our back, mostly within a
/// tenth of a millisecond; until then both ends throw away what they are given, and a first packet that is lost is sent
/// again only after a second.
fn await_carrier(near: &mut Rtnl, name: &str, far: &mut Rtnl) -> Result<(), Refusal> {
    let deadline = Instant::now() + CARRIER;
    loop {
        let near_is_ready = near.link(name)?.is_some_and(|link| link.sends && link.forwards);
        let far_is_ready = near_is_ready && far.link(FAR_NAME)?.is_some_and(|link| link.sends);
        if far_is_ready {
            return Ok(());
        }
        if Instant::now() >= deadline {
            tracing::debug!(name, "a link has no carrier yet");
            return Ok(());
        }
        thread::sleep(CARRIER_LOOK);
    }
}

fn create_pair(rtnl: &mut Rtnl, bridge: &Bridge, address: Ipv4Addr, namespace: &Namespace) -> Result<(), Error> {
    let name = bridge.port_name(address);
    let pair = VethPair {
        name: &name,
        bridge: bridge.index,
        far_name: FAR_NAME,
        far_namespace: std::os::fd::AsFd::as_fd(namespace),
        far_mac: Mac::of(address),
        mtu: bridge.mtu,
    };
    let mut outcome = rtnl.create_veth(&pair);
    if outcome.as_ref().is_err_and(|refusal| refusal.is(libc::EEXIST)) {
        // The address was free, so the link is the rest of a holder that is gone.
        rtnl.delete_link(&name).attempt(|| format!("delete the stale link {name}"))?;
        outcome = rtnl.create_veth(&pair);
    }
    match outcome {
        Err(source) if source.is(libc::EXFULL) => Err(Error::BridgeFull { bridge: bridge.name.clone(), source }),
        outcome => outcome.attempt(|| format!("create link {name} on bridge {}", bridge.name)),
    }
}
