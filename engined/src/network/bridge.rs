//! The bridge itself: made or found, given its address, its MTU and its sysctls.
//!
//! What is there already counts: a bridge that has an address keeps it, so that the subnet chosen at the first start
//! stays the same as long as the bridge lives.

use std::net::Ipv4Addr;

use super::Config;
use super::endpoint::Mac;
use super::error::{Attempt, Error};
use super::namespace::write_if_known;
use super::rtnl::{Link, Rtnl};
use super::subnet::{self, Subnet};

/// Frames of Ethernet; more only where it is configured.
const ETHERNET_MTU: u32 = 1500;
/// Longest name of a link, in bytes.
const LINK_NAME_MAX: usize = 15;

/// The bridge, ready for containers.
#[derive(Clone, Debug)]
pub(super) struct Bridge {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) subnet: Subnet,
    pub(super) gateway: Ipv4Addr,
    pub(super) mtu: u32,
}

impl Bridge {
    /// Makes the bridge what the configuration says. Safe to repeat.
    pub(super) fn ensure(config: &Config) -> Result<Bridge, Error> {
        check(config)?;
        let name = &config.bridge;
        let mut rtnl = Rtnl::open().attempt(|| "open a netlink socket".to_owned())?;
        let link = find_or_create(&mut rtnl, name)?;
        let (subnet, gateway) = choose_subnet(&mut rtnl, config, &link)?;
        let mtu = config.mtu.map_or_else(|| uplink_mtu(&mut rtnl), Ok)?;
        rtnl.add_address(link.index, gateway, subnet).attempt(|| format!("give {gateway} to bridge {name}"))?;
        remove_other_addresses(&mut rtnl, &link, gateway)?;
        rtnl.bring_up(link.index, Some(mtu)).attempt(|| format!("bring up bridge {name} with an MTU of {mtu}"))?;
        set_sysctls(name)?;
        Ok(Bridge { name: name.clone(), index: link.index, subnet, gateway, mtu })
    }

    /// The bridge as far as it is needed to take it apart.
    pub(super) fn found(config: &Config, index: u32) -> Bridge {
        let subnet = config.subnet.unwrap_or_default();
        Bridge { name: config.bridge.clone(), index, subnet, gateway: subnet.network(), mtu: ETHERNET_MTU }
    }

    /// The name of the link whose far end holds `address`. It says whose it is: the first part is the bridge's, so that
    /// at recovery nobody else's port of the bridge is touched.
    pub(super) fn port_name(&self, address: Ipv4Addr) -> String {
        format!("{}{:08x}", self.port_prefix(), u32::from(address))
    }

    /// Whether a link of that name is one of ours.
    pub(super) fn is_port_name(&self, name: &str) -> bool {
        name.strip_prefix(&self.port_prefix())
            .is_some_and(|rest| rest.len() == 8 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
    }

    fn port_prefix(&self) -> String {
        format!("v{:04x}", fold(&self.name))
    }
}

/// Sixteen bits of a name (FNV-1a, folded).
fn fold(name: &str) -> u16 {
    let hash = name.bytes().fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash >> 16) as u16 ^ hash as u16
}

fn check(config: &Config) -> Result<(), Error> {
    let wrong = |field, value: String, why| Err(Error::Config { field, value, why });
    let name = &config.bridge;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if name.is_empty() || name.len() > LINK_NAME_MAX || !name.bytes().all(plain) || name.starts_with('.') {
        return wrong("bridge", name.clone(), "is not 1 to 15 letters, digits, '_', '-' or '.'");
    }
    if config.mtu.is_some_and(|mtu| !(576..=65_535).contains(&mtu)) {
        return wrong("mtu", config.mtu.unwrap_or_default().to_string(), "is not between 576 and 65535");
    }
    match (config.subnet, config.gateway) {
        (Some(subnet), _) if !subnet.has_room() => wrong("subnet", subnet.to_string(), "is not between /8 and /30"),
        (Some(subnet), Some(gateway)) if !subnet.has_host(gateway) => {
            wrong("gateway", gateway.to_string(), "is no host's address in the subnet")
        }
        (None, Some(gateway)) => wrong("gateway", gateway.to_string(), "needs a subnet beside it"),
        _ => Ok(()),
    }
}

fn find_or_create(rtnl: &mut Rtnl, name: &str) -> Result<Link, Error> {
    let looking = || format!("look for link {name}");
    if let Some(link) = rtnl.link(name).attempt(looking)? {
        return if is_ours(&link) { Ok(link) } else { Err(Error::BridgeNameInUse(name.to_owned())) };
    }
    rtnl.create_bridge(name, own_mac(name)).attempt(|| format!("create bridge {name}"))?;
    rtnl.link(name).attempt(looking)?.ok_or_else(|| Error::BridgeNameInUse(name.to_owned()))
}

/// Whether we made a link. Somebody else's bridge of that name must not lose its addresses to us; ours has a hardware
/// address that it was given when it was made.
pub(super) fn is_ours(link: &Link) -> bool {
    link.kind.as_deref() == Some("bridge") && link.mac == Some(own_mac(&link.name))
}

/// A bridge without an address of its own takes its lowest port's, and changes it as containers come and go.
fn own_mac(name: &str) -> Mac {
    Mac::of(Ipv4Addr::from(u32::from(fold(name))))
}

/// The configured subnet, else the one that the bridge has, else one that the host does not use.
fn choose_subnet(rtnl: &mut Rtnl, config: &Config, link: &Link) -> Result<(Subnet, Ipv4Addr), Error> {
    let existing = rtnl.addresses(link.index).attempt(|| format!("list the addresses of {}", link.name))?;
    if let (None, Some((gateway, subnet))) = (config.subnet, existing.first().filter(|(_, subnet)| subnet.has_room())) {
        return Ok((*subnet, *gateway));
    }
    let routes = rtnl.routes().attempt(|| "list the routes of this host".to_owned())?;
    let foreign: Vec<Subnet> = routes
        .into_iter()
        .filter(|(destination, out)| destination.prefix() > 0 && *out != Some(link.index))
        .map(|(destination, _)| destination)
        .collect();
    let subnet = match config.subnet {
        // A route that is wider than ours is no conflict when it was configured so: the narrower one wins.
        Some(subnet) => {
            match foreign.iter().find(|route| route.overlaps(subnet) && route.prefix() >= subnet.prefix()) {
                Some(route) => return Err(Error::SubnetInUse { subnet, route: *route }),
                None => subnet,
            }
        }
        None => subnet::choose(&foreign).ok_or(Error::NoFreeSubnet)?,
    };
    Ok((subnet, config.gateway.unwrap_or_else(|| subnet.first_host())))
}

/// Addresses of an earlier configuration.
fn remove_other_addresses(rtnl: &mut Rtnl, link: &Link, gateway: Ipv4Addr) -> Result<(), Error> {
    let addresses = rtnl.addresses(link.index).attempt(|| format!("list the addresses of {}", link.name))?;
    for (address, subnet) in addresses.into_iter().filter(|(address, _)| *address != gateway) {
        let outcome = rtnl.remove_address(link.index, address, subnet);
        outcome.attempt(|| format!("take {address} from bridge {}", link.name))?;
    }
    Ok(())
}

/// What fits through the link of the default route: a container cannot be relied on to discover a narrower path.
fn uplink_mtu(rtnl: &mut Rtnl) -> Result<u32, Error> {
    let routes = rtnl.routes().attempt(|| "list the routes of this host".to_owned())?;
    let uplinks: Vec<u32> =
        routes.into_iter().filter(|(destination, _)| destination.prefix() == 0).filter_map(|(_, link)| link).collect();
    let links = rtnl.links().attempt(|| "list the links of this host".to_owned())?;
    let narrowest = links.into_iter().filter(|link| uplinks.contains(&link.index)).map(|link| link.mtu).min();
    Ok(narrowest.unwrap_or(ETHERNET_MTU).clamp(576, ETHERNET_MTU))
}

/// On our own bridge only. `forwarding` and `route_localnet` carry published ports, the latter those of 127.0.0.1 (the
/// table's first chain drops what it would otherwise let in). IPv6 is off: the bridge has none, and a host must not take
/// router advertisements from its containers.
fn set_sysctls(name: &str) -> Result<(), Error> {
    for (family, key, value) in [
        ("ipv6", "accept_ra", "0"),
        ("ipv6", "disable_ipv6", "1"),
        ("ipv4", "forwarding", "1"),
        ("ipv4", "route_localnet", "1"),
    ] {
        write_if_known(&format!("/proc/sys/net/{family}/conf/{name}/{key}"), value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridge() -> Bridge {
        let subnet: Subnet = "10.88.0.0/16".parse().unwrap();
        Bridge { name: "strata0".to_owned(), index: 1, subnet, gateway: subnet.first_host(), mtu: 1500 }
    }

    #[test]
    fn a_ports_name_fits_and_is_known_again() {
        let bridge = bridge();
        let name = bridge.port_name(Ipv4Addr::new(255, 255, 255, 255));
        assert!(name.len() <= LINK_NAME_MAX, "{name}");
        assert!(bridge.is_port_name(&name));
        let other = Bridge { name: "strata1".to_owned(), ..bridge.clone() };
        assert!(!other.is_port_name(&name));
        for stranger in ["veth0", "v", "", &name[..12], &format!("{name}0")] {
            assert!(!bridge.is_port_name(stranger), "{stranger}");
        }
    }
}
