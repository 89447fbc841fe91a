//! Beside other people's firewalls: containers work where the host's FORWARD chain drops, and nothing of theirs changes.

use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use super::harness::*;
use crate::network::{Endpoint, Network};

/// Runs `iptables` in the world; `None` where there is none.
fn iptables(program: &str, arguments: &str) -> Option<String> {
    let output = Command::new(program).args(arguments.split(' ')).output().ok()?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        eprintln!("{program} {arguments}: {words}");
        return None;
    }
    Some(String::from_utf8(output.stdout).unwrap())
}

/// Everything that a container's network is for.
fn everything_works(world: &World, network: &Network) -> Result<(), &'static str> {
    let web = network.attach(&id("web"), &[publish_everywhere()]).unwrap();
    let other = network.attach(&id("other"), &[]).unwrap();
    let outcome = reached(world, &web, &other);
    network.detach(&web.id).unwrap();
    network.detach(&other.id).unwrap();
    outcome
}

fn reached(world: &World, web: &Endpoint, other: &Endpoint) -> Result<(), &'static str> {
    let _server = Server::start(web);
    let peer = format!("/proc/self/fd/{}", world.peer.as_fd().as_raw_fd());
    let _peers_server = Server::at(peer.as_ref(), 8080);
    let port = web.ports[0].host_port;
    inside(world.peer.as_fd(), || call(HOST_ON_LAN, port)).ok_or("from the LAN")?;
    inside_pin(&other.namespace, || call(PEER_ON_LAN, 8080)).ok_or("to the LAN")?;
    inside_pin(&other.namespace, || call(web.address, 80)).ok_or("from a neighbour")?;
    inside_pin(&web.namespace, || call(HOST_ON_LAN, port)).ok_or("from itself")?;
    Ok(())
}

fn beside_a_forward_chain_that_drops(program: &str) {
    in_a_world(|world| {
        if iptables(program, "-P FORWARD DROP").is_none() {
            eprintln!("skipped: needs {program}");
            return;
        }
        let before = iptables(program, "-S").unwrap();
        let network = world.open();
        let with_ours = iptables(program, "-S").unwrap();
        for rule in ["-i strata-test", "-o strata-test"] {
            assert!(with_ours.lines().any(|line| line.contains(rule) && line.ends_with("-j ACCEPT")), "{with_ours}");
        }
        assert_eq!(everything_works(world, &network), Ok(()));

        // The control: without our rules the chain does drop.
        iptables(program, "-F FORWARD").unwrap();
        drop(network);
        let network = Network::open(&crate::network::Config { prepared: 0, ..world.config() }, &[], &[]).unwrap().0;
        iptables(program, "-F FORWARD").unwrap();
        let web = network.attach(&id("control"), &[publish_everywhere()]).unwrap();
        iptables(program, "-F FORWARD").unwrap();
        let _server = Server::start(&web);
        drop(network);
        iptables(program, "-F FORWARD").unwrap();
        assert_eq!(inside(world.peer.as_fd(), || call_in_vain(HOST_ON_LAN, web.ports[0].host_port)), None);

        let _network = world.open();
        assert_eq!(Network::remove_all(&world.config()).len(), 0);
        assert_eq!(iptables(program, "-S").unwrap(), before);
    });
}

#[test]
fn beside_iptables_on_nftables() {
    beside_a_forward_chain_that_drops("iptables-nft");
}

#[test]
fn beside_iptables_of_before() {
    beside_a_forward_chain_that_drops("iptables-legacy");
}

#[test]
fn counts_and_rules_of_others_survive_in_iptables_of_before() {
    in_a_world(|world| {
        let steps = [
            "-P FORWARD DROP",
            "-N MINE",
            "-A MINE -p tcp -m multiport --dports 80,443 -m comment --comment hands-off -j RETURN",
            "-A FORWARD -i lo -j MINE",
            "-A OUTPUT -o lo -j ACCEPT",
            "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
        ];
        if steps.iter().any(|step| iptables("iptables-legacy", step).is_none()) {
            eprintln!("skipped: needs iptables-legacy");
            return;
        }
        // Something to count.
        let _ = call(std::net::Ipv4Addr::LOCALHOST, 9);
        let before = others_rules();
        assert!(before.iter().any(|line| line.contains("OUTPUT -o lo") && !line.contains("-c 0 0")), "{before:?}");
        let network = world.open();
        assert_eq!(iptables("iptables-legacy", "-S").unwrap().matches("strata-test: containers").count(), 2);
        assert_eq!(others_rules(), before);
        drop(network);
        assert_eq!(Network::remove_all(&world.config()).len(), 0);
        assert_eq!(iptables("iptables-legacy", "-S").unwrap().matches("strata-test").count(), 0);
        assert_eq!(others_rules(), before);
    });
}

/// The rules with their counts. Not the chains' own: a new link's first packets pass there.
fn others_rules() -> Vec<String> {
    let rules = iptables("iptables-legacy", "-S -v").unwrap();
    rules.lines().filter(|line| line.starts_with("-A") && !line.contains("strata-test")).map(str::to_owned).collect()
}

#[test]
fn in_dockers_own_chain_where_there_is_one() {
    in_a_world(|world| {
        // As Docker leaves it.
        let steps = ["-P FORWARD DROP", "-N DOCKER-USER", "-A FORWARD -j DOCKER-USER", "-A DOCKER-USER -j RETURN"];
        for step in steps {
            if iptables("iptables-nft", step).is_none() {
                eprintln!("skipped: needs iptables-nft");
                return;
            }
        }
        let network = world.open();
        let rules = iptables("iptables-nft", "-S DOCKER-USER").unwrap();
        assert_eq!(rules.lines().filter(|line| line.contains("strata-test")).count(), 2, "{rules}");
        assert!(rules.ends_with("-j RETURN\n"), "{rules}");
        assert_eq!(everything_works(world, &network), Ok(()));
        // A second start finds them in place.
        drop(network);
        let _network = world.open();
        assert_eq!(iptables("iptables-nft", "-S DOCKER-USER").unwrap(), rules);
    });
}

#[test]
fn a_firewall_that_comes_later_is_noticed() {
    in_a_world(|world| {
        let network = world.open();
        if iptables("iptables-nft", "-P FORWARD DROP").is_none() {
            eprintln!("skipped: needs iptables-nft");
            return;
        }
        eventually("containers work again", || everything_works(world, &network).is_ok());
    });
}

#[test]
fn a_firewall_of_nftables_own_is_told_and_left_alone() {
    in_a_world(|world| {
        let rules =
            "add table inet mine; add chain inet mine gate { type filter hook forward priority 0; policy drop; }";
        let outcome = Command::new("nft").arg(rules).status();
        if !outcome.as_ref().is_ok_and(std::process::ExitStatus::success) {
            eprintln!("skipped: needs nft: {outcome:?}");
            return;
        }
        let (_network, recovery) = Network::open(&world.config(), &[], &[]).unwrap();
        assert_eq!(recovery.dropping, ["inet mine gate"]);
    });
}
