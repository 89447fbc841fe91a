//! Making this host forward packets, and no more of them than it must.
//!
//! Containers reach the world only when the host forwards. Linux has one switch for it, which makes the host a router
//! between all its links. So where we are the ones who throw that switch, our table keeps closed what was closed before:
//! nothing passes between two links that did not forward. The set of those links in the table is also the memory that it
//! was us: with it gone, the switch is left alone.

use std::fs;

use super::error::{Attempt, Error};
use super::nft::Nft;
use super::rtnl::Rtnl;
use super::rules::{CLOSED, closed_link_name};

const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";

/// What is to be done about forwarding.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Links between which nothing may pass.
    pub(super) closed: Vec<String>,
    /// Whether the switch is to be thrown, after the table is in place.
    pub(super) throw: bool,
}

/// Looks at the host. `bridge` forwards in any case; `wanted` says whether the switch is ours to throw.
pub(super) fn plan(wanted: bool, nft: &mut Nft, table: &str, bridge: &str) -> Result<Plan, Error> {
    let mut closed = remembered(nft, table)?;
    if !wanted || is_on(SWITCH)? {
        return Ok(Plan { closed, throw: false });
    }
    let links = Rtnl::open().and_then(|mut rtnl| rtnl.links()).attempt(|| "list the links of this host".to_owned())?;
    for link in links {
        let known = closed.contains(&link.name) || link.name == bridge || link.name == "lo";
        if !known && link.master.is_none() && !forwards(&link.name)? {
            closed.push(link.name);
        }
    }
    Ok(Plan { closed, throw: true })
}

/// Throws the switch; the table must be in place.
pub(super) fn enable() -> Result<(), Error> {
    fs::write(SWITCH, "1").attempt(|| format!("write 1 to {SWITCH}"))
}

/// Takes the switch back when it was us, unless a link that came since may rely on it. To be called while the table is
/// still there, when our bridge is gone.
pub(super) fn disable(nft: &mut Nft, table: &str) -> Result<(), Error> {
    let closed = remembered(nft, table)?;
    if closed.is_empty() {
        return Ok(());
    }
    let links = Rtnl::open().and_then(|mut rtnl| rtnl.links()).attempt(|| "list the links of this host".to_owned())?;
    // Ports of a bridge forward by their bridge.
    let relied_on = links.iter().any(|link| link.name != "lo" && link.master.is_none() && !closed.contains(&link.name));
    if relied_on {
        tracing::info!("left {SWITCH} on: links have come since it was switched on");
        return Ok(());
    }
    fs::write(SWITCH, "0").attempt(|| format!("write 0 to {SWITCH}"))
}

fn remembered(nft: &mut Nft, table: &str) -> Result<Vec<String>, Error> {
    let keys = nft.keys(table, CLOSED.name).attempt(|| format!("list set {} of table {table}", CLOSED.name))?;
    Ok(keys.iter().filter_map(|key| closed_link_name(key)).collect())
}

fn forwards(link: &str) -> Result<bool, Error> {
    is_on(&format!("/proc/sys/net/ipv4/conf/{link}/forwarding"))
}

fn is_on(path: &str) -> Result<bool, Error> {
    match fs::read_to_string(path) {
        // The link went in between.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        outcome => Ok(outcome.attempt(|| format!("read {path}"))?.trim() != "0"),
    }
}
