//! Who reaches what, and as whom.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;

use super::harness::*;
use crate::network::Protocol;

#[test]
fn a_published_port_is_reached_from_everywhere() {
    in_a_world(|world| {
        let network = world.open();
        let web = network.attach(&id("web"), &[publish_everywhere()]).unwrap();
        let other = network.attach(&id("other"), &[]).unwrap();
        let _server = Server::start(&web);
        let port = web.ports[0].host_port;
        let gateway = IpAddr::from(web.gateway);

        // From the LAN the container sees the true caller.
        assert_eq!(inside(world.peer.as_fd(), || call(HOST_ON_LAN, port)), Some(PEER_ON_LAN.into()));
        // From the host by any of its addresses, the loopback too; an answer to 127.0.0.1 must come back through us.
        assert_eq!(call(HOST_ON_LAN, port), Some(HOST_ON_LAN.into()));
        assert_eq!(call(Ipv4Addr::LOCALHOST, port), Some(gateway));
        assert_eq!(call(web.gateway, port), Some(gateway));
        // From a neighbour and from the container itself, through the host's address.
        assert_eq!(inside_pin(&other.namespace, || call(HOST_ON_LAN, port)), Some(gateway));
        assert_eq!(inside_pin(&web.namespace, || call(HOST_ON_LAN, port)), Some(gateway));
        assert_eq!(inside_pin(&web.namespace, || call(web.gateway, port)), Some(gateway));
        // Neighbours need no published port, and see each other.
        assert_eq!(inside_pin(&other.namespace, || call(web.address, 80)), Some(other.address.into()));
    });
}

#[test]
fn the_same_without_br_netfilter() {
    in_a_world(|world| {
        let switch = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        if std::fs::write(switch, "0").is_err() {
            eprintln!("skipped: this kernel has no br_netfilter, so the other tests ran without it");
            return;
        }
        let network = world.open();
        let web = network.attach(&id("web"), &[publish_everywhere()]).unwrap();
        let other = network.attach(&id("other"), &[]).unwrap();
        let _server = Server::start(&web);
        let port = web.ports[0].host_port;
        let gateway = IpAddr::from(web.gateway);
        assert_eq!(inside_pin(&other.namespace, || call(HOST_ON_LAN, port)), Some(gateway));
        assert_eq!(inside_pin(&web.namespace, || call(HOST_ON_LAN, port)), Some(gateway));
        assert_eq!(inside_pin(&other.namespace, || call(web.address, 80)), Some(other.address.into()));
    });
}

#[test]
fn a_port_on_one_address_is_not_on_the_others() {
    in_a_world(|world| {
        let network = world.open();
        let web = network.attach(&id("web"), &[publish(HOST_ON_LAN, Protocol::Tcp)]).unwrap();
        let _server = Server::start(&web);
        let port = web.ports[0].host_port;
        assert_eq!(inside(world.peer.as_fd(), || call(HOST_ON_LAN, port)), Some(PEER_ON_LAN.into()));
        assert_eq!(call_in_vain(Ipv4Addr::LOCALHOST, port), None);
        assert_eq!(call_in_vain(web.gateway, port), None);
    });
}

#[test]
fn udp_is_published_too_and_old_conversations_follow() {
    in_a_world(|world| {
        let network = world.open();
        let request = publish(EVERYWHERE, Protocol::Udp);
        let first = network.attach(&id("first"), &[request]).unwrap();
        let port = first.ports[0].host_port;
        let server = Server::start(&first);
        assert_eq!(call_udp(Ipv4Addr::LOCALHOST, port), Some(first.gateway.into()));
        inside(world.peer.as_fd(), || {
            // One client that never stops sending, from one port: to the kernel one conversation.
            let client = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            assert_eq!(call_udp_from(&client, HOST_ON_LAN, port), Some(PEER_ON_LAN.into()));
            network.detach(&id("first")).unwrap();
            eventually("the client reaches nobody", || call_udp_from(&client, HOST_ON_LAN, port).is_none());

            let again = crate::network::PortRequest { host_port: port, ..request };
            let second = network.attach(&id("second"), &[again]).unwrap();
            let _second = Server::start(&second);
            eventually("the client reaches the new container", || {
                call_udp_from(&client, HOST_ON_LAN, port) == Some(PEER_ON_LAN.into())
            });
        });
        drop(server);
    });
}

#[test]
fn a_container_reaches_the_lan_as_the_host() {
    in_a_world(|world| {
        let network = world.open();
        let web = network.attach(&id("web"), &[]).unwrap();
        // Served by the peer: its namespace has no pin, but any path to it does.
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&world.peer.as_fd()));
        let _server = Server::at(path.as_ref(), 8080);
        let seen = inside_pin(&web.namespace, || call(PEER_ON_LAN, 8080));
        assert_eq!(seen, Some(HOST_ON_LAN.into()));
        let seen = inside_pin(&web.namespace, || call_udp(PEER_ON_LAN, 8080));
        assert_eq!(seen, Some(HOST_ON_LAN.into()));
    });
}
