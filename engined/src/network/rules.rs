//! Our nftables table: what it holds, and why each rule stands where it stands.
//!
//! There is one table per instance, of the family `ip`. The number of rules is constant; each published port is one
//! element of a map. A packet meets the chains in this order:
//!
//! ```text
//! in ──► guard-loopback ──► publish ──► route ──► forward ──► source ──► out
//!        (raw -300)         (dstnat)             (filter)     (srcnat)
//! from this host ──► publish-local ──────────────────────────► source ──► out
//! ```
//!
//! An accept of ours ends only our own chain: other tables still have their say. A drop of ours is final.

use std::net::Ipv4Addr;

use netlink_packet_netfilter::nftables::InetHookNumber as Hook;

use super::endpoint::PublishedPort;
use super::nft::expr::{self, Expression};
use super::nft::{BaseChain, Batch, Element, Field, Place, Set};
use super::subnet::Subnet;

const GUARD_LOOPBACK: BaseChain =
    BaseChain { name: "guard-loopback", kind: "filter", hook: Hook::PreRouting, priority: -300 };
const PUBLISH: BaseChain = BaseChain { name: "publish", kind: "nat", hook: Hook::PreRouting, priority: -100 };
const PUBLISH_LOCAL: BaseChain = BaseChain { name: "publish-local", kind: "nat", hook: Hook::LocalOut, priority: -100 };
pub(super) const FORWARD: BaseChain = BaseChain { name: "forward", kind: "filter", hook: Hook::Forward, priority: 0 };
const SOURCE: BaseChain = BaseChain { name: "source", kind: "nat", hook: Hook::PostRouting, priority: 100 };

/// nft's numbers for the types of fields; a concatenation packs them six bits each.
const TYPE_ADDRESS: u32 = 7;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_SERVICE: u32 = 13;
const TYPE_LINK_NAME: u32 = 41;
const ADDRESS_AND_PORT: Field = Field { kind: TYPE_ADDRESS << 6 | TYPE_SERVICE, length: 8, host_order: false };

/// protocol . address . port → container's address . port
const PUBLISHED: Set = Set {
    name: "published",
    key: Field { kind: TYPE_PROTOCOL << 12 | TYPE_ADDRESS << 6 | TYPE_SERVICE, length: 12, host_order: false },
    value: Some(ADDRESS_AND_PORT),
};
/// protocol . port → container's address . port, for ports published on every address.
const PUBLISHED_EVERYWHERE: Set = Set {
    name: "published-everywhere",
    key: Field { kind: TYPE_PROTOCOL << 6 | TYPE_SERVICE, length: 8, host_order: false },
    value: Some(ADDRESS_AND_PORT),
};
/// The links that did not forward before we made this host a router; see [`super::router`].
pub(super) const CLOSED: Set =
    Set { name: "closed", key: Field { kind: TYPE_LINK_NAME, length: 16, host_order: true }, value: None };

/// 127.0.0.0/8.
fn loopback() -> Subnet {
    Subnet::around(Ipv4Addr::LOCALHOST, 8).unwrap_or_else(|| unreachable!("8 is a prefix length"))
}

/// What the table is made of.
pub(super) struct Rules<'a> {
    pub(super) table: &'a str,
    pub(super) bridge: &'a str,
    pub(super) subnet: Subnet,
    /// Links between which nothing may be forwarded.
    pub(super) closed: &'a [String],
    /// Who publishes what.
    pub(super) published: &'a [(Ipv4Addr, PublishedPort)],
}

impl Rules<'_> {
    /// A transaction after which the table is exactly this, whatever it was: no packet meets a moment without it, and
    /// connections that are rewritten already stay as they are.
    pub(super) fn replace(&self) -> Batch {
        let mut batch = Batch::new(self.table);
        // Created first, so that the deletion finds something; then made anew.
        batch.create_table();
        batch.delete_table();
        batch.create_table();
        for set in [PUBLISHED, PUBLISHED_EVERYWHERE, CLOSED] {
            batch.create_set(set);
        }
        for chain in [GUARD_LOOPBACK, PUBLISH, PUBLISH_LOCAL, FORWARD, SOURCE] {
            batch.create_chain(chain);
        }
        self.add_rules(&mut batch);
        self.add_elements(&mut batch);
        batch
    }

    fn add_rules(&self, batch: &mut Batch) {
        let mut add = |chain: BaseChain, rule: Rule| batch.add_rule(chain.name, Place::Last, None, rule.0);
        // 127.0.0.0/8 never comes by wire. Without this, route_localnet on the bridge would open the host's loopback to
        // containers (CVE-2020-8558), and the rewriting below, which comes before the kernel's own check, would open
        // ports published on 127.0.0.1 to the neighbours on the LAN.
        let from_outside = || Rule::new().when(expr::incoming_link_is_not_loopback());
        add(GUARD_LOOPBACK, from_outside().when(expr::destination_in(loopback())).then(expr::drop_packet()));
        add(GUARD_LOOPBACK, from_outside().when(expr::source_in(loopback())).then(expr::drop_packet()));

        for chain in [PUBLISH, PUBLISH_LOCAL] {
            add(chain, rewrite_if_published_at_address());
            add(chain, rewrite_if_published_everywhere());
        }

        // The order serves speed: most packets belong to a connection that is known.
        let to_bridge = || Rule::new().when(expr::outgoing_link_is(self.bridge));
        let known = expr::connection_has(expr::Conntrack::State, expr::STATE_ESTABLISHED | expr::STATE_RELATED);
        add(FORWARD, to_bridge().when(known).then(expr::accept()));
        let published = || expr::connection_has(expr::Conntrack::Status, expr::STATUS_DNAT);
        add(FORWARD, to_bridge().when(published()).then(expr::accept()));
        add(FORWARD, to_bridge().when(expr::incoming_link_is(self.bridge)).then(expr::accept()));
        // What is not published is not reached from other hosts, though they may route to the subnet.
        add(FORWARD, to_bridge().then(expr::drop_packet()));
        if !self.closed.is_empty() {
            let between_closed =
                Rule::new().when(expr::incoming_link_in(CLOSED.name)).when(expr::outgoing_link_in(CLOSED.name));
            add(FORWARD, between_closed.then(expr::drop_packet()));
        }

        let from_containers = || Rule::new().when(expr::source_in(self.subnet));
        add(SOURCE, from_containers().when(expr::outgoing_link_is_not(self.bridge)).then(expr::masquerade()));
        // A container that calls a published port, its own or a neighbour's: the answer must come back through this host
        // to be rewritten, so the caller must look like this host.
        let hairpin = from_containers().when(expr::outgoing_link_is(self.bridge)).when(published());
        add(SOURCE, hairpin.then(expr::masquerade()));
        // A caller on the host's loopback: a container cannot answer to 127.0.0.1.
        let from_loopback = Rule::new().when(expr::source_in(loopback()));
        add(SOURCE, from_loopback.when(expr::outgoing_link_is(self.bridge)).then(expr::masquerade()));
    }

    fn add_elements(&self, batch: &mut Batch) {
        let (at_address, everywhere): (Vec<_>, Vec<_>) =
            self.published.iter().partition(|(_, port)| !port.host_ip.is_unspecified());
        let elements = |part: Vec<&(Ipv4Addr, PublishedPort)>| -> Vec<Element> {
            part.into_iter().map(|(container, port)| element(*container, port)).collect()
        };
        batch.add_elements(PUBLISHED.name, &elements(at_address));
        batch.add_elements(PUBLISHED_EVERYWHERE.name, &elements(everywhere));
        let closed: Vec<_> = self.closed.iter().map(|name| closed_link(name)).collect();
        batch.add_elements(CLOSED.name, &closed);
    }
}

/// A transaction that publishes the ports of the container at `address`.
pub(super) fn publish(table: &str, address: Ipv4Addr, ports: &[PublishedPort]) -> Batch {
    let mut batch = Batch::new(table);
    for port in ports {
        batch.add_elements(map_for(port).name, &[element(address, port)]);
    }
    batch
}

/// A transaction that takes them back.
pub(super) fn unpublish(table: &str, address: Ipv4Addr, ports: &[PublishedPort]) -> Batch {
    let mut batch = Batch::new(table);
    for port in ports {
        batch.delete_elements(map_for(port).name, &[element(address, port)]);
    }
    batch
}

/// The name of a link that an element of [`CLOSED`] holds.
pub(super) fn closed_link_name(key: &[u8]) -> Option<String> {
    let end = key.iter().position(|byte| *byte == 0).unwrap_or(key.len());
    String::from_utf8(key[..end].to_vec()).ok()
}

fn closed_link(name: &str) -> Element {
    Element { key: expr::link_name(name), value: None }
}

fn map_for(port: &PublishedPort) -> Set {
    if port.host_ip.is_unspecified() { PUBLISHED_EVERYWHERE } else { PUBLISHED }
}

fn element(container: Ipv4Addr, port: &PublishedPort) -> Element {
    let mut key = padded(&[port.protocol.number()]).to_vec();
    if !port.host_ip.is_unspecified() {
        key.extend_from_slice(&port.host_ip.octets());
    }
    key.extend_from_slice(&padded(&port.host_port.to_be_bytes()));
    let mut value = container.octets().to_vec();
    value.extend_from_slice(&padded(&port.container_port.to_be_bytes()));
    Element { key, value: Some(value) }
}

/// A field as a register holds it: from its first byte on, zeros after.
fn padded(bytes: &[u8]) -> [u8; 4] {
    let mut register = [0; 4];
    register[..bytes.len()].copy_from_slice(bytes);
    register
}

fn rewrite_if_published_at_address() -> Rule {
    Rule::new()
        .when(expr::destination_is_local())
        .when([expr::load_protocol(expr::FIRST)])
        .when([expr::load_destination(expr::SECOND)])
        .when([expr::load_destination_port(expr::THIRD)])
        .when([expr::lookup(PUBLISHED.name, expr::FIRST, Some(expr::FIRST))])
        .then(expr::destination_nat(expr::FIRST, expr::SECOND))
}

fn rewrite_if_published_everywhere() -> Rule {
    Rule::new()
        .when(expr::destination_is_local())
        .when([expr::load_protocol(expr::FIRST)])
        .when([expr::load_destination_port(expr::SECOND)])
        .when([expr::lookup(PUBLISHED_EVERYWHERE.name, expr::FIRST, Some(expr::FIRST))])
        .then(expr::destination_nat(expr::FIRST, expr::SECOND))
}

/// A rule as it is read: when this and that, then so.
struct Rule(Vec<Expression>);

impl Rule {
    fn new() -> Rule {
        Rule(Vec::new())
    }

    fn when(mut self, conditions: impl IntoIterator<Item = Expression>) -> Rule {
        self.0.extend(conditions);
        self
    }

    fn then(mut self, action: Expression) -> Rule {
        self.0.push(action);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::endpoint::Protocol;

    #[test]
    fn an_element_is_laid_out_as_the_registers_are() {
        let port = PublishedPort {
            host_ip: Ipv4Addr::new(192, 0, 2, 1),
            host_port: 0x1234,
            container_port: 80,
            protocol: Protocol::Tcp,
        };
        let container = Ipv4Addr::new(10, 88, 0, 2);
        let at_address = element(container, &port);
        assert_eq!(at_address.key, [6, 0, 0, 0, 192, 0, 2, 1, 0x12, 0x34, 0, 0]);
        assert_eq!(at_address.value, Some(vec![10, 88, 0, 2, 0, 80, 0, 0]));
        let everywhere = element(container, &PublishedPort { host_ip: Ipv4Addr::UNSPECIFIED, ..port });
        assert_eq!(everywhere.key, [6, 0, 0, 0, 0x12, 0x34, 0, 0]);
    }

    #[test]
    fn a_closed_link_is_read_back() {
        assert_eq!(closed_link_name(&closed_link("eth0").key), Some("eth0".to_owned()));
    }
}
