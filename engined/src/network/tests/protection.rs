//! What must not be reached, each with a control.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use super::harness::*;
use crate::network::nft::{Batch, Nft};
use crate::network::rtnl::Rtnl;
use crate::network::subnet::Subnet;
use crate::network::{Network, Protocol};

/// Takes the rules of one of our chains away: the control of a test. The engine must be gone, as it would write them anew;
/// containers live on without it.
fn without_protection(network: Network, chain: &str) {
    drop(network);
    let mut batch = Batch::new(TABLE);
    batch.flush_chain(chain);
    Nft::open().unwrap().commit(batch).unwrap();
}

#[test]
fn what_is_not_published_is_not_reached_from_the_lan() {
    in_a_world(|world| {
        let network = world.open();
        // It publishes a port, so a hole for the one must not be a hole for the other.
        let web = network.attach(&id("web"), &[publish_everywhere()]).unwrap();
        let _server = Server::start(&web);
        let _private = Server::at(&web.namespace, 81);
        let from_lan = |to: Ipv4Addr, port: u16| inside(world.peer.as_fd(), || call(to, port));
        let from_lan_in_vain = |to: Ipv4Addr, port: u16| inside(world.peer.as_fd(), || call_in_vain(to, port));
        assert_eq!(from_lan_in_vain(web.address, 81), None);
        // Nor is a published one by the container's own address.
        assert_eq!(from_lan_in_vain(web.address, 80), None);
        without_protection(network, "forward");
        assert_eq!(from_lan(web.address, 81), Some(PEER_ON_LAN.into()));
        assert_eq!(from_lan(web.address, 80), Some(PEER_ON_LAN.into()));
    });
}

#[test]
fn a_port_published_on_the_loopback_is_not_reached_from_the_lan() {
    in_a_world(|world| {
        let network = world.open();
        let web = network.attach(&id("web"), &[publish(Ipv4Addr::LOCALHOST, Protocol::Tcp)]).unwrap();
        let _server = Server::start(&web);
        let port = web.ports[0].host_port;
        // The peer sends packets for 127.0.0.1 to the host, as a hostile neighbour would.
        std::fs::write("/proc/sys/net/ipv4/conf/lan0/route_localnet", "1").unwrap();
        inside(world.peer.as_fd(), || send_loopback_by_wire(HOST_ON_LAN));
        let attack = |call: fn(Ipv4Addr, u16) -> _| inside(world.peer.as_fd(), || call(Ipv4Addr::LOCALHOST, port));
        assert_eq!(call(Ipv4Addr::LOCALHOST, port), Some(web.gateway.into()));
        assert_eq!(inside(world.peer.as_fd(), || call_in_vain(HOST_ON_LAN, port)), None);
        assert_eq!(attack(call_in_vain), None);
        without_protection(network, "guard-loopback");
        assert!(attack(call).is_some(), "the attack works without the protection");
    });
}

#[test]
fn a_container_does_not_reach_the_hosts_loopback() {
    in_a_world(|world| {
        let network = world.open();
        let web = network.attach(&id("web"), &[]).unwrap();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let answering = std::thread::spawn(move || {
            use std::io::Write;
            for stream in listener.incoming().take(1) {
                let _ = stream.unwrap().write_all(b"192.0.2.99");
            }
        });
        inside_pin(&web.namespace, || send_loopback_by_wire(web.gateway));
        let attack = |call: fn(Ipv4Addr, u16) -> _| inside_pin(&web.namespace, || call(Ipv4Addr::LOCALHOST, port));
        assert_eq!(attack(call_in_vain), None);
        without_protection(network, "guard-loopback");
        assert!(attack(call).is_some(), "the attack works without the protection");
        answering.join().unwrap();
    });
}

/// Makes 127.0.0.1 another host's: the namespace's own loopback loses the address range to the wire.
fn send_loopback_by_wire(via: Ipv4Addr) {
    // The answers come from 127.0.0.1, which the attacker must take for an address of somebody else.
    for switch in ["route_localnet", "accept_local"] {
        std::fs::write(format!("/proc/sys/net/ipv4/conf/eth0/{switch}"), "1").unwrap();
    }
    let mut rtnl = Rtnl::open().unwrap();
    let eth0 = rtnl.link("eth0").unwrap().unwrap().index;
    let loopback = Subnet::around(Ipv4Addr::LOCALHOST, 8).unwrap();
    rtnl.take_loopback_route_away(loopback, eth0, via).unwrap();
}

#[test]
fn the_switch_makes_no_router_of_the_host() {
    in_a_world(|world| {
        // A second LAN that the host did not connect to the first.
        let (other, address) = second_lan();
        let network = world.open();
        assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim(), "1");
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&other.as_fd()));
        let _server = Server::at(path.as_ref(), 80);
        assert_eq!(inside(world.peer.as_fd(), || call_in_vain(address, 80)), None);
        // After a restart it is remembered.
        drop(network);
        let network = world.open();
        assert_eq!(inside(world.peer.as_fd(), || call_in_vain(address, 80)), None);
        without_protection(network, "forward");
        assert_eq!(inside(world.peer.as_fd(), || call(address, 80)), Some(PEER_ON_LAN.into()));
    });
}

fn second_lan() -> (crate::network::namespace::Namespace, Ipv4Addr) {
    use crate::network::endpoint::Mac;
    use crate::network::rtnl::{FarAddress, VethPair};
    let (host, address) = (Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(198, 51, 100, 2));
    let subnet = Subnet::around(host, 24).unwrap();
    let mut far = crate::network::namespace::Namespace::fresh().unwrap();
    let mut rtnl = Rtnl::open().unwrap();
    rtnl.create_bridge("lan1", Mac::of(host)).unwrap();
    let lan = rtnl.link("lan1").unwrap().unwrap().index;
    rtnl.add_address(lan, host, subnet).unwrap();
    rtnl.bring_up(lan, None).unwrap();
    let pair = VethPair {
        name: "lan1-port",
        bridge: lan,
        far_name: "eth0",
        far_namespace: far.as_fd(),
        far_mac: Mac::of(address),
        mtu: 1500,
    };
    rtnl.create_veth(&pair).unwrap();
    let eth0 = far.rtnl.link("eth0").unwrap().unwrap().index;
    far.rtnl.configure(eth0, &FarAddress { address, subnet, gateway: host }).unwrap();
    (far, address)
}
