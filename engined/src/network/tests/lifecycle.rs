//! From the first container to the last: what is made, found again, and removed.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Instant;

use super::harness::*;
use crate::network::nft::{Batch, Nft};
use crate::network::rtnl::Rtnl;
use crate::network::{Error, Network, PortRequest, Protocol};

#[test]
fn an_endpoint_is_what_its_record_says() {
    in_a_world(|world| {
        let network = world.open();
        let web = network.attach(&id("web"), &[publish_everywhere()]).unwrap();
        assert_eq!((web.gateway, web.prefix), (Ipv4Addr::new(10, 88, 0, 1), 16));
        let (eth0, addresses, routes) = inside_pin(&web.namespace, || {
            let mut rtnl = Rtnl::open().unwrap();
            let eth0 = rtnl.link("eth0").unwrap().unwrap();
            (eth0.clone(), rtnl.addresses(eth0.index).unwrap(), rtnl.routes().unwrap())
        });
        assert_eq!(addresses.iter().map(|(address, _)| *address).collect::<Vec<_>>(), [web.address]);
        assert!(routes.iter().any(|(to, out)| to.prefix() == 0 && *out == Some(eth0.index)));
        let six = inside_pin(&web.namespace, || std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap());
        assert!(!six.contains("eth0"), "{six}");
        let six = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        assert!(!six.contains(&web.link), "{six}");
        assert!(matches!(network.attach(&id("web"), &[]), Err(Error::EndpointExists(_))));
        assert!(link_names().contains(&web.link));
    });
}

#[test]
fn a_port_in_use_costs_nothing_and_is_told() {
    in_a_world(|world| {
        let network = world.open();
        let first = network.attach(&id("first"), &[publish_everywhere()]).unwrap();
        let port = first.ports[0].host_port;
        let same = PortRequest { host_port: port, ..publish(Ipv4Addr::LOCALHOST, Protocol::Tcp) };
        let free = publish_everywhere();
        let error = network.attach(&id("second"), &[free, same]).unwrap_err();
        let fault = strata_fault::Fault::from(error);
        assert_eq!((fault.code.as_str(), fault.step.as_str()), ("PORT_IN_USE", "connect"));
        assert!(fault.message.contains(&format!("127.0.0.1:{port}:80/tcp")), "{}", fault.message);
        assert_eq!(std::fs::read_dir(world.config().namespaces).unwrap().count(), 1);
        // The id is free again, and so is the port when its holder goes.
        network.detach(&id("first")).unwrap();
        network.attach(&id("second"), &[same]).unwrap();
    });
}

#[test]
fn everything_goes_when_endpoints_go() {
    in_a_world(|world| {
        let network = world.open();
        for round in 0..3 {
            for name in ["a", "b", "c"] {
                let endpoint = network.attach(&id(name), &[publish_everywhere()]).unwrap();
                assert!(endpoint.namespace.exists(), "round {round}");
            }
            for name in ["a", "b", "c", "a", "never"] {
                network.detach(&id(name)).unwrap();
            }
        }
        drop(network);
        eventually("links go", || !link_names().iter().any(|name| name.starts_with('v')));
        assert_eq!(std::fs::read_dir(world.config().namespaces).unwrap().count(), 0);
        let mut nft = Nft::open().unwrap();
        for set in ["published", "published-everywhere"] {
            assert_eq!(nft.keys(TABLE, set).unwrap(), Vec::<Vec<u8>>::new(), "{set}");
        }
    });
}

#[test]
fn removal_leaves_no_trace() {
    in_a_world(|world| {
        let before = link_names();
        let network = world.open();
        network.attach(&id("web"), &[publish_everywhere()]).unwrap();
        pinned(&network, "none");
        drop(network);
        let failures = Network::remove_all(&world.config());
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!(link_names(), before);
        assert!(!world.config().namespaces.exists());
        assert_eq!(Nft::open().unwrap().chains(crate::network::nft::Family::IPv4).unwrap(), []);
        assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim(), "0");
        // And again, with nothing there.
        assert!(Network::remove_all(&world.config()).is_empty());
    });
}

#[test]
fn after_a_restart_live_endpoints_go_on_and_the_rest_goes() {
    in_a_world(|world| {
        let network = world.open();
        let web = network.attach(&id("web"), &[publish_everywhere()]).unwrap();
        let dead = network.attach(&id("dead"), &[publish_everywhere()]).unwrap();
        let pod = pinned(&network, "pod");
        let _server = Server::start(&web);
        let port = web.ports[0].host_port;
        // As after SIGKILL: nothing is undone, but sockets and descriptors are closed.
        drop(network);
        assert_eq!(call(HOST_ON_LAN, port), Some(HOST_ON_LAN.into()), "it answers while the engine is away");

        let (network, recovery) =
            Network::open(&world.config(), std::slice::from_ref(&web), std::slice::from_ref(&pod)).unwrap();
        assert!(recovery.lost.is_empty() && recovery.unreserved.is_empty(), "{recovery:?}");
        assert_eq!(recovery.removed_namespaces, 1);
        assert_eq!(inside(world.peer.as_fd(), || call(HOST_ON_LAN, port)), Some(PEER_ON_LAN.into()));
        assert!(!dead.namespace.exists() && pod.exists());
        eventually("the dead one's link goes", || !link_names().contains(&dead.link));
        let taken = PortRequest { host_port: port, ..publish_everywhere() };
        assert!(matches!(network.attach(&id("new"), &[taken]), Err(Error::PortInUse { .. })));
        let new = network.attach(&id("new"), &[]).unwrap();
        assert_ne!(new.address, web.address);
        network.detach(&web.id).unwrap();
    });
}

#[test]
fn what_is_missing_after_a_restart_is_made_again() {
    in_a_world(|world| {
        let network = world.open();
        let web = network.attach(&id("web"), &[publish_everywhere()]).unwrap();
        let gone = network.attach(&id("gone"), &[]).unwrap();
        let _server = Server::start(&web);
        drop(network);
        let mut rtnl = Rtnl::open().unwrap();
        rtnl.delete_link(&web.link).unwrap();
        rtnl.delete_link(BRIDGE).unwrap();
        let mut batch = Batch::new(TABLE);
        batch.delete_table();
        Nft::open().unwrap().commit(batch).unwrap();
        rustix::mount::unmount(&gone.namespace, rustix::mount::UnmountFlags::DETACH).unwrap();
        eventually("its link goes with the namespace", || !link_names().contains(&gone.link));

        let (_network, recovery) = Network::open(&world.config(), &[web.clone(), gone.clone()], &[]).unwrap();
        assert_eq!(recovery.rewired, [id("web")]);
        assert_eq!(recovery.lost.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["gone"]);
        assert!(matches!(recovery.lost[0].1, Error::NamespaceGone { .. }));
        assert_eq!(inside(world.peer.as_fd(), || call(HOST_ON_LAN, web.ports[0].host_port)), Some(PEER_ON_LAN.into()));
        assert!(!gone.namespace.exists());
    });
}

#[test]
fn a_running_containers_namespace_needs_no_pin() {
    in_a_world(|world| {
        let network = world.open();
        let web = network.attach(&id("web"), &[publish_everywhere()]).unwrap();
        let held_by_the_container = std::fs::File::open(&web.namespace).unwrap();
        network.settled(&web);
        eventually("the pin goes", || !web.namespace.exists());
        assert!(link_names().contains(&web.link));
        drop(network);
        // A start finds the link, and with it the namespace; the rest of a removal that was cut off goes, and a port that
        // others took from the bridge comes back.
        std::fs::write(&web.namespace, "").unwrap();
        assert!(Command::new("ip").args(["link", "set", &web.link, "nomaster"]).status().unwrap().success());
        let network = world.reopen(std::slice::from_ref(&web));
        assert!(!web.namespace.exists());
        let mut rtnl = Rtnl::open().unwrap();
        assert!(rtnl.link(&web.link).unwrap().unwrap().master.is_some());
        network.detach(&web.id).unwrap();
        // The next of that id has a pin at the same place, which nothing that was said of the first takes away.
        let second = network.attach(&web.id, &[]).unwrap();
        network.settled(&second);
        network.detach(&web.id).unwrap();
        let third = network.attach(&web.id, &[]).unwrap();
        assert_eq!((&second.namespace, &third.namespace), (&web.namespace, &web.namespace));
        std::thread::sleep(std::time::Duration::from_millis(1500));
        assert!(inside_pin(&third.namespace, || Rtnl::open().unwrap().link("eth0").unwrap().is_some()));
        drop(held_by_the_container);
        eventually("the first link goes", || !link_names().contains(&web.link));
    });
}

#[test]
fn a_flushed_ruleset_is_written_anew() {
    in_a_world(|world| {
        let network = world.open();
        let web = network.attach(&id("web"), &[publish_everywhere()]).unwrap();
        let _server = Server::start(&web);
        let mut batch = Batch::new(TABLE);
        batch.delete_table();
        Nft::open().unwrap().commit(batch).unwrap();
        // By the next who needs it, at once.
        let second = network.attach(&id("second"), &[publish_everywhere()]).unwrap();
        let _second = Server::start(&second);
        for endpoint in [&web, &second] {
            assert!(call(HOST_ON_LAN, endpoint.ports[0].host_port).is_some(), "{endpoint:?}");
        }
        // Or soon, though nobody asks.
        let mut batch = Batch::new(TABLE);
        batch.delete_table();
        Nft::open().unwrap().commit(batch).unwrap();
        eventually("the ports work again", || call_in_vain(HOST_ON_LAN, web.ports[0].host_port).is_some());
    });
}

#[test]
fn a_full_bridge_says_so() {
    in_a_world(|world| {
        let network = Network::open(&crate::network::Config { prepared: 0, ..world.config() }, &[], &[]).unwrap().0;
        // 1023 ports, all but one taken by links that cost less than containers.
        let script: String =
            (0..1022).map(|n| format!("link add d{n} type dummy\nlink set d{n} master {BRIDGE}\n")).collect();
        let path = world.directory.join("links");
        std::fs::write(&path, script).unwrap();
        let outcome = Command::new("ip").arg("-batch").arg(&path).status();
        if !outcome.as_ref().is_ok_and(std::process::ExitStatus::success) {
            eprintln!("skipped: needs ip with dummy links: {outcome:?}");
            return;
        }
        network.attach(&id("last"), &[]).unwrap();
        let fault = strata_fault::Fault::from(network.attach(&id("over"), &[]).unwrap_err());
        assert_eq!(fault.code, "BRIDGE_FULL");
        assert!(fault.message.contains("1023"), "{}", fault.message);
        network.detach(&id("last")).unwrap();
        eventually("there is room again", || network.attach(&id("over"), &[]).is_ok());
    });
}

#[test]
fn a_small_subnet_is_used_to_its_last_address_again_and_again() {
    in_a_world(|world| {
        let subnet = Some("10.99.0.0/29".parse().unwrap());
        let config = crate::network::Config { subnet, prepared: 1, ..world.config() };
        let network = Network::open(&config, &[], &[]).unwrap().0;
        for round in 0..3 {
            for number in 0..5 {
                let outcome = network.attach(&id(&format!("c{number}")), &[]);
                assert!(outcome.is_ok(), "round {round}, {number}: {}", told(outcome.unwrap_err()));
            }
            assert!(matches!(network.attach(&id("over"), &[]), Err(Error::AddressesExhausted(_))));
            for number in 0..5 {
                network.detach(&id(&format!("c{number}"))).unwrap();
            }
        }
    });
}

#[test]
fn many_at_once_get_what_is_theirs() {
    in_a_world(|world| {
        let network = world.open();
        // Threads that a test starts share its namespaces.
        let endpoints: Vec<_> = std::thread::scope(|scope| {
            let one = |number: usize| {
                let network = &network;
                scope.spawn(move || network.attach(&id(&format!("c{number}")), &[publish_everywhere()]).unwrap())
            };
            let threads: Vec<_> = (0..24).map(one).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut addresses: Vec<_> = endpoints.iter().map(|endpoint| endpoint.address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), endpoints.len());
        for endpoint in &endpoints {
            let _server = Server::start(endpoint);
            assert!(call(HOST_ON_LAN, endpoint.ports[0].host_port).is_some());
        }
    });
}

#[test]
fn the_table_is_one_that_nft_reads() {
    in_a_world(|world| {
        let network = world.open();
        let web =
            network.attach(&id("web"), &[publish_everywhere(), publish(Ipv4Addr::LOCALHOST, Protocol::Udp)]).unwrap();
        let Ok(output) = Command::new("nft").args(["list", "table", "ip", TABLE]).output() else {
            eprintln!("skipped: needs nft");
            return;
        };
        let text = String::from_utf8(output.stdout).unwrap();
        let everywhere = format!("tcp . {} : {} . 80", web.ports[0].host_port, web.address);
        let at_address = format!("udp . 127.0.0.1 . {} : {} . 80", web.ports[1].host_port, web.address);
        for part in [everywhere.as_str(), at_address.as_str(), "masquerade", "ct status dnat accept", "\"lan0\""] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    });
}

/// Not a benchmark: it shows the order of magnitude and fails only when something is badly wrong.
#[test]
fn connecting_is_quick() {
    in_a_world(|world| {
        let network = world.open();
        let mut prepared = Vec::new();
        for number in 0..20 {
            eventually("a namespace is prepared", || network.prepared() > 0);
            let name = id(&format!("c{number}"));
            let start = Instant::now();
            network.attach(&name, &[publish_everywhere()]).unwrap();
            prepared.push(start.elapsed());
            network.detach(&name).unwrap();
        }
        prepared.sort_unstable();
        eprintln!("attach with a published port, prepared: median {:?}, worst {:?}", prepared[10], prepared[19]);
        assert!(prepared[10].as_millis() < 20, "{prepared:?}");
    });
}

#[test]
fn thousands_of_ports_are_published_at_once_and_after_a_restart() {
    in_a_world(|world| {
        let network = world.open();
        let requests: Vec<_> = (0..3000).map(|_| publish_everywhere()).collect();
        let web = network.attach(&id("web"), &requests).unwrap();
        drop(network);
        let _network = world.reopen(std::slice::from_ref(&web));
        let _server = Server::start(&web);
        for port in [&web.ports[0], &web.ports[2999]] {
            assert!(call(HOST_ON_LAN, port.host_port).is_some());
        }
    });
}

#[test]
fn a_subnet_is_kept_until_another_is_configured() {
    in_a_world(|world| {
        let choosing = crate::network::Config { subnet: None, prepared: 0, ..world.config() };
        let first = Network::open(&choosing, &[], &[]).unwrap().0;
        let chosen = first.subnet();
        let web = first.attach(&id("web"), &[]).unwrap();
        drop(first);
        // The host gets a route into what would be chosen next time; the bridge keeps what it has.
        let (second, recovery) = Network::open(&choosing, std::slice::from_ref(&web), &[]).unwrap();
        assert_eq!((second.subnet(), recovery.lost.len()), (chosen, 0));
        drop(second);
        let other = crate::network::Config { subnet: Some("10.77.0.0/24".parse().unwrap()), ..choosing.clone() };
        let (third, recovery) = Network::open(&other, std::slice::from_ref(&web), &[]).unwrap();
        assert_eq!(recovery.lost.len(), 1, "its address is not in the subnet");
        let index = Rtnl::open().unwrap().link(BRIDGE).unwrap().unwrap().index;
        let addresses = Rtnl::open().unwrap().addresses(index).unwrap();
        assert_eq!(addresses, [(Ipv4Addr::new(10, 77, 0, 1), third.subnet())]);
        assert_eq!(third.attach(&id("new"), &[]).unwrap().gateway, Ipv4Addr::new(10, 77, 0, 1));
        drop(third);
        // One that the host has a route into is refused.
        let taken = crate::network::Config { subnet: Some("192.0.2.0/25".parse().unwrap()), ..choosing };
        let fault = strata_fault::Fault::from(Network::open(&taken, &[], &[]).err().unwrap());
        assert_eq!(fault.code, "SUBNET_IN_USE");
    });
}

#[test]
fn somebody_elses_bridge_is_left_alone() {
    in_a_world(|world| {
        let config = crate::network::Config { bridge: "br0".to_owned(), ..world.config() };
        let mut rtnl = Rtnl::open().unwrap();
        let address = Ipv4Addr::new(203, 0, 113, 1);
        rtnl.create_bridge("br0", crate::network::endpoint::Mac::of(address)).unwrap();
        let index = rtnl.link("br0").unwrap().unwrap().index;
        let subnet = crate::network::Subnet::around(address, 24).unwrap();
        rtnl.add_address(index, address, subnet).unwrap();
        let fault = strata_fault::Fault::from(Network::open(&config, &[], &[]).err().unwrap());
        assert_eq!(fault.code, "BRIDGE_NAME_IN_USE");
        assert_eq!(Network::remove_all(&config).len(), 0);
        assert_eq!(rtnl.addresses(index).unwrap(), [(address, subnet)]);
    });
}

#[test]
fn a_failure_on_the_way_undoes_what_came_before() {
    in_a_world(|world| {
        let network = world.open();
        let held = network.attach(&id("held"), &[publish_everywhere()]).unwrap();
        network.detach(&held.id).unwrap();
        let request = PortRequest { host_port: held.ports[0].host_port, ..publish_everywhere() };
        // No place to pin a namespace at.
        let directory = world.config().namespaces;
        eventually("the pin goes", || std::fs::remove_dir(&directory).is_ok());
        let fault = strata_fault::Fault::from(network.attach(&id("web"), &[request]).unwrap_err());
        assert_eq!(fault.message, format!("create {}", directory.join("web").display()));
        assert_eq!(fault.causes, ["No such file or directory (os error 2)"]);
        std::fs::create_dir(&directory).unwrap();
        let web = network.attach(&id("web"), &[request]).unwrap();
        network.detach(&web.id).unwrap();
        drop(network);
        eventually("links go", || !link_names().iter().any(|name| name.starts_with('v')));
    });
}

#[test]
fn no_descriptor_is_left_open() {
    in_a_world(|world| {
        let config = crate::network::Config { prepared: 0, ..world.config() };
        let network = Network::open(&config, &[], &[]).unwrap().0;
        let round = |number: u32| {
            let name = id(&format!("c{number}"));
            network.attach(&name, &[publish_everywhere()]).unwrap();
            network.detach(&name).unwrap();
        };
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        round(0);
        let before = open();
        (1..100).for_each(round);
        // The worker may hold one for a moment; other tests of the same process may hold theirs.
        eventually("descriptors are closed", || open() <= before);
    });
}
