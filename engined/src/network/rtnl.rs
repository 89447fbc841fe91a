//! Links, addresses and routes, by rtnetlink: one function per request.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgePortState, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData, InfoKind,
    InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::endpoint::Mac;
use super::error::Refusal;
use super::netlink::{Channel, Request};
use super::subnet::Subnet;

/// The queueing discipline of a link that throws away what it is given.
const DISCARDING: &str = "noop";

/// A conversation about the links of one network namespace.
pub(super) struct Rtnl {
    channel: Channel,
}

/// What is asked about a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mtu: u32,
    pub(super) mac: Option<Mac>,
    /// `bridge`, `veth`, …; hardware has none.
    pub(super) kind: Option<String>,
    /// The index of the bridge that it is a port of.
    pub(super) master: Option<u32>,
    /// Whether packets that are sent are not thrown away: a link that has just got its carrier throws them away until the
    /// kernel has noticed.
    pub(super) sends: bool,
    /// Whether it is a port that its bridge forwards to.
    pub(super) forwards: bool,
}

/// A pair of links to create: `name` here, a port of `bridge`; `far_name` in another namespace.
pub(super) struct VethPair<'a> {
    pub(super) name: &'a str,
    pub(super) bridge: u32,
    pub(super) far_name: &'a str,
    pub(super) far_namespace: BorrowedFd<'a>,
    pub(super) far_mac: Mac,
    pub(super) mtu: u32,
}

/// The addresses of the far end.
pub(super) struct FarAddress {
    pub(super) address: Ipv4Addr,
    pub(super) subnet: Subnet,
    pub(super) gateway: Ipv4Addr,
}

impl Rtnl {
    /// Speaks about the namespace of the calling thread.
    pub(super) fn open() -> Result<Rtnl, Refusal> {
        Ok(Rtnl { channel: Channel::open(NETLINK_ROUTE)? })
    }

    /// The link of that name, if there is one.
    pub(super) fn link(&mut self, name: &str) -> Result<Option<Link>, Refusal> {
        let request = RouteNetlinkMessage::GetLink(named(name));
        match self.channel.get(request) {
            Ok(RouteNetlinkMessage::NewLink(message)) => Ok(Some(Link::from(message))),
            Ok(_) => Err(Refusal::garbled("the answer to a question about a link is about something else")),
            Err(refusal) if refusal.is(libc::ENODEV) => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    /// All links.
    pub(super) fn links(&mut self) -> Result<Vec<Link>, Refusal> {
        self.channel.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), |message| match message {
            RouteNetlinkMessage::NewLink(message) => Some(Link::from(message)),
            _ => None,
        })
    }

    /// Creates a bridge without spanning tree: its ports forward at once. And without snooping on multicast groups: nobody
    /// here asks who is in one, so that members would be forgotten after some minutes; and the kernel goes through all
    /// ports for it whenever one comes or goes.
    pub(super) fn create_bridge(&mut self, name: &str, mac: Mac) -> Result<(), Refusal> {
        let mut bridge = named(name);
        let stp = InfoBridge::StpState(netlink_packet_route::link::BridgeStpState::Disabled);
        let data = vec![stp, InfoBridge::MulticastSnooping(false)];
        bridge.attributes.push(LinkAttribute::Address(mac.bytes()));
        bridge.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(data)),
        ]));
        self.one(RouteNetlinkMessage::NewLink(bridge), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Sets the MTU of a link and brings it up.
    pub(super) fn bring_up(&mut self, index: u32, mtu: Option<u32>) -> Result<(), Refusal> {
        let mut link = up(index);
        link.attributes.extend(mtu.map(LinkAttribute::Mtu));
        self.one(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Creates both ends of a veth pair in one request. The near end is a port of the bridge and up afterwards; the far end
    /// is down, as veth cannot open it before both are registered.
    pub(super) fn create_veth(&mut self, pair: &VethPair<'_>) -> Result<(), Refusal> {
        let mut far = named(pair.far_name);
        far.attributes.push(LinkAttribute::Address(pair.far_mac.bytes()));
        far.attributes.push(LinkAttribute::Mtu(pair.mtu));
        far.attributes.push(LinkAttribute::NetNsFd(pair.far_namespace.as_raw_fd()));
        let mut near = named(pair.name);
        near.attributes.push(LinkAttribute::Mtu(pair.mtu));
        near.attributes.push(LinkAttribute::Controller(pair.bridge));
        near.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
        ]));
        self.one(RouteNetlinkMessage::NewLink(near), NLM_F_CREATE | NLM_F_EXCL)?;
        self.bring_up_without_ipv6(pair.name)
    }

    /// Brings up a link that needs no IPv6 address of its own, by its name. Every address that links give themselves costs
    /// two routes of the host's, which the kernel looks through whenever a link goes. (`disable_ipv6` would spare the third,
    /// but who writes it turns round and round while the kernel is busy with other links.)
    fn bring_up_without_ipv6(&mut self, name: &str) -> Result<(), Refusal> {
        let silent = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let mut first = named(name);
        first.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![silent])]));
        let mut then = named(name);
        then.header.flags = LinkFlags::Up;
        then.header.change_mask = LinkFlags::Up;
        match self.one(RouteNetlinkMessage::SetLink(first), 0) {
            // A kernel without IPv6.
            Err(refusal) if refusal.is(libc::EAFNOSUPPORT) => {}
            outcome => outcome?,
        }
        self.one(RouteNetlinkMessage::SetLink(then), 0)
    }

    /// Makes a link a port of a bridge, and brings it up.
    pub(super) fn enslave(&mut self, name: &str, bridge: u32) -> Result<(), Refusal> {
        let mut link = named(name);
        link.attributes.push(LinkAttribute::Controller(bridge));
        self.one(RouteNetlinkMessage::SetLink(link), 0)?;
        self.bring_up_without_ipv6(name)
    }

    /// Lets a port of a bridge send frames back to where they came from: a container that calls its own published port
    /// needs it where br_netfilter rewrites bridged frames.
    pub(super) fn set_hairpin(&mut self, name: &str) -> Result<(), Refusal> {
        let mut link = named(name);
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
        ]));
        self.one(RouteNetlinkMessage::NewLink(link), 0)
    }

    /// Gives a link its address, brings it up and sets the default route over it, in one datagram: the route is refused
    /// while the link is down.
    pub(super) fn configure(&mut self, index: u32, far: &FarAddress) -> Result<(), Refusal> {
        let requests = vec![
            Request { message: address(index, far.address, far.subnet), flags: NLM_F_CREATE | NLM_F_REPLACE },
            Request { message: RouteNetlinkMessage::SetLink(up(index)), flags: 0 },
            Request { message: default_route(index, far.gateway), flags: NLM_F_CREATE | NLM_F_REPLACE },
        ];
        self.channel.execute(requests)
    }

    /// Gives a link an address; it may have it already.
    pub(super) fn add_address(&mut self, index: u32, ip: Ipv4Addr, subnet: Subnet) -> Result<(), Refusal> {
        self.one(address(index, ip, subnet), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Takes an address from a link.
    pub(super) fn remove_address(&mut self, index: u32, ip: Ipv4Addr, subnet: Subnet) -> Result<(), Refusal> {
        let RouteNetlinkMessage::NewAddress(message) = address(index, ip, subnet) else { return Ok(()) };
        self.one(RouteNetlinkMessage::DelAddress(message), 0)
    }

    /// The IPv4 addresses of a link with their subnets.
    pub(super) fn addresses(&mut self, index: u32) -> Result<Vec<(Ipv4Addr, Subnet)>, Refusal> {
        let mut question = AddressMessage::default();
        question.header.family = AddressFamily::Inet;
        self.channel.dump(RouteNetlinkMessage::GetAddress(question), |message| match message {
            RouteNetlinkMessage::NewAddress(message) if message.header.index == index => address_of(&message),
            _ => None,
        })
    }

    /// Deletes a link by name; one that is not there is no error.
    pub(super) fn delete_link(&mut self, name: &str) -> Result<(), Refusal> {
        match self.one(RouteNetlinkMessage::DelLink(named(name)), 0) {
            Err(refusal) if refusal.is(libc::ENODEV) => Ok(()),
            outcome => outcome,
        }
    }

    /// The IPv4 routes of all tables: destination and outgoing link; the default route's destination is `0.0.0.0/0`.
    pub(super) fn routes(&mut self) -> Result<Vec<(Subnet, Option<u32>)>, Refusal> {
        let mut question = RouteMessage::default();
        question.header.address_family = AddressFamily::Inet;
        self.channel.dump(RouteNetlinkMessage::GetRoute(question), |message| match message {
            RouteNetlinkMessage::NewRoute(message) => route_of(&message),
            _ => None,
        })
    }

    /// Makes a namespace send what is for its own loopback to another host: what an attacker with a namespace can do.
    #[cfg(test)]
    pub(super) fn take_loopback_route_away(
        &mut self,
        loopback: Subnet,
        link: u32,
        via: Ipv4Addr,
    ) -> Result<(), Refusal> {
        // Addresses of this host are looked up in the local table first, so that is where the route must go from.
        for (prefix, address) in [(32, Ipv4Addr::LOCALHOST), (8, loopback.network())] {
            let mut message = RouteMessage::default();
            message.header = RouteHeader {
                address_family: AddressFamily::Inet,
                destination_prefix_length: prefix,
                table: 255,
                scope: RouteScope::Host,
                kind: RouteType::Local,
                ..RouteHeader::default()
            };
            message.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(address))];
            match self.one(RouteNetlinkMessage::DelRoute(message), 0) {
                Err(refusal) if refusal.is(libc::ESRCH) => {}
                outcome => outcome?,
            }
        }
        let RouteNetlinkMessage::NewRoute(mut message) = default_route(link, via) else { unreachable!() };
        message.header.destination_prefix_length = loopback.prefix();
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(loopback.network())));
        self.one(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn one(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Refusal> {
        self.channel.execute(vec![Request { message, flags }])
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Link {
        let mut link = Link { index: message.header.index, ..Link::default() };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(bytes) => link.mac = Mac::from_bytes(&bytes),
                LinkAttribute::Controller(master) => link.master = Some(master),
                LinkAttribute::Qdisc(discipline) => link.sends = discipline != DISCARDING,
                LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|info| link.note(info)),
                _ => {}
            }
        }
        link
    }
}

impl Link {
    fn note(&mut self, info: LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = Some(kind.to_string()),
            LinkInfo::PortData(InfoPortData::BridgePort(facts)) => {
                self.forwards = facts.contains(&InfoBridgePort::State(BridgePortState::Forwarding));
            }
            _ => {}
        }
    }
}

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn up(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

fn address(index: u32, ip: Ipv4Addr, subnet: Subnet) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = subnet.prefix();
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(ip)),
        AddressAttribute::Address(IpAddr::V4(ip)),
        AddressAttribute::Broadcast(subnet.broadcast()),
    ];
    RouteNetlinkMessage::NewAddress(message)
}

fn address_of(message: &AddressMessage) -> Option<(Ipv4Addr, Subnet)> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(ip)) => Some((*ip, Subnet::around(*ip, message.header.prefix_len)?)),
        _ => None,
    })
}

fn default_route(index: u32, gateway: Ipv4Addr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: AddressFamily::Inet,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Boot,
        scope: RouteScope::Universe,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway)), RouteAttribute::Oif(index)];
    RouteNetlinkMessage::NewRoute(message)
}

fn route_of(message: &RouteMessage) -> Option<(Subnet, Option<u32>)> {
    let mut destination = Ipv4Addr::UNSPECIFIED;
    let mut link = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    Some((Subnet::around(destination, message.header.destination_prefix_length)?, link))
}
