//! Forgetting connections that lead nowhere any more.
//!
//! The kernel rewrites the packets of a connection by what it decided for the first of them. A UDP "connection" has no
//! end, so a client that keeps sending keeps the old decision alive: to a container that is gone, or, from before a port
//! was published, to this host itself. TCP notices by itself.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol as Transport, Tuple,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::endpoint::{Protocol, PublishedPort};
use super::error::Refusal;
use super::netlink::{Channel, Request};

/// Deletions of one datagram.
const BATCH: usize = 64;

/// Forgets UDP connections to `ports` that lead elsewhere than to `container`, and, when it is gone, those that lead to
/// it. The whole table is walked, so this is kept off every reply's path.
pub(super) fn forget_udp(container: Ipv4Addr, ports: &[PublishedPort], gone: bool) -> Result<usize, Refusal> {
    let ports: Vec<_> = ports.iter().filter(|port| port.protocol == Protocol::Udp).copied().collect();
    if ports.is_empty() {
        return Ok(0);
    }
    let mut channel = Channel::open(NETLINK_NETFILTER)?;
    let stale = channel.dump(wrapped(ConntrackMessage::Get(Vec::new())), |message| {
        Connection::of(message).filter(|connection| connection.is_stale(container, &ports, gone))
    })?;
    for part in stale.chunks(BATCH) {
        let requests = part.iter().map(|connection| Request {
            message: wrapped(ConntrackMessage::Delete(vec![ConntrackAttribute::CtaTupleOrig(
                connection.original.clone(),
            )])),
            flags: 0,
        });
        match channel.execute(requests.collect()) {
            // It ended by itself in between.
            Err(refusal) if refusal.is(libc::ENOENT) => {}
            outcome => outcome?,
        }
    }
    Ok(stale.len())
}

fn wrapped(message: ConntrackMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0), message)
}

/// A UDP connection: whom the first packet was for, and who answers.
struct Connection {
    original: Vec<Tuple>,
    destination: (Ipv4Addr, u16),
    answered_by: Ipv4Addr,
}

impl Connection {
    fn of(message: NetfilterMessage) -> Option<Connection> {
        let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner else { return None };
        let (mut original, mut answer) = (None, None);
        for attribute in attributes {
            match attribute {
                ConntrackAttribute::CtaTupleOrig(tuple) => original = Some(tuple),
                ConntrackAttribute::CtaTupleReply(tuple) => answer = Some(tuple),
                _ => {}
            }
        }
        let (original, answer) = (original?, answer?);
        let (_, to, port) = udp_parts(&original)?;
        let (answered_by, _, _) = udp_parts(&answer)?;
        Some(Connection { original, destination: (to, port), answered_by })
    }

    fn is_stale(&self, container: Ipv4Addr, ports: &[PublishedPort], gone: bool) -> bool {
        if self.answered_by == container {
            return gone;
        }
        let (to, number) = self.destination;
        ports.iter().any(|port| port.host_port == number && (port.host_ip.is_unspecified() || port.host_ip == to))
    }
}

/// Source, destination and destination port of a UDP tuple.
fn udp_parts(tuple: &[Tuple]) -> Option<(Ipv4Addr, Ipv4Addr, u16)> {
    let (mut source, mut destination, mut port, mut is_udp) = (None, None, None, false);
    for part in tuple {
        match part {
            Tuple::Ip(parts) => {
                for part in parts {
                    match part {
                        IPTuple::SourceAddress(IpAddr::V4(ip)) => source = Some(*ip),
                        IPTuple::DestinationAddress(IpAddr::V4(ip)) => destination = Some(*ip),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(parts) => {
                for part in parts {
                    match part {
                        ProtoTuple::Protocol(protocol) => is_udp = *protocol == Transport::Udp,
                        ProtoTuple::DestinationPort(number) => port = Some(*number),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if is_udp { Some((source?, destination?, port?)) } else { None }
}
