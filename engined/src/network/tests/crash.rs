//! SIGKILL at any instant: afterwards the kernel's state and the records agree again, and nothing is left over.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::harness::*;
use crate::network::nft::Nft;
use crate::network::{Config, Endpoint, Network};

/// Tells the child of the test below where its world is.
const WORLD: &str = "STRATA_NETWORK_TEST_WORLD";
const KILLS: u32 = 25;

/// The child: connects and disconnects, keeping records as the core does, until it is killed.
#[test]
#[ignore = "the child of killed_at_any_instant"]
fn churn() {
    let directory = PathBuf::from(std::env::var_os(WORLD).expect("started by the test"));
    let network = Network::open(&config_in(&directory), &records(&directory), &[]).unwrap().0;
    for number in std::process::id().. {
        let name = id(&format!("c{number}"));
        let endpoint = network.attach(&name, &[publish_everywhere(), publish_everywhere()]).unwrap();
        let record = directory.join("records").join(name.as_str());
        std::fs::write(&record, serde_json::to_vec(&endpoint).unwrap()).unwrap();
        // Some stay.
        if !number.is_multiple_of(4) {
            network.detach(&name).unwrap();
            std::fs::remove_file(record).unwrap();
        }
    }
}

fn records(directory: &Path) -> Vec<Endpoint> {
    let files = std::fs::read_dir(directory.join("records")).unwrap();
    let texts = files.map(|file| std::fs::read(file.unwrap().path()).unwrap());
    // One that was cut while it was written is none: the core's store is transactional.
    texts.filter_map(|text| serde_json::from_slice(&text).ok()).collect()
}

#[test]
fn killed_at_any_instant() {
    in_a_world(|world| {
        std::fs::create_dir(world.directory.join("records")).unwrap();
        for kill in 0..KILLS {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "network::tests::crash::churn"])
                .env(WORLD, &world.directory)
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            // Different instants, from before the start is done to well into the work.
            std::thread::sleep(Duration::from_micros(u64::from(kill * 2711 % 61_000)));
            child.kill().unwrap();
            child.wait().unwrap();
            after_a_kill(world);
        }
        assert!(!records(&world.directory).is_empty(), "no child got to work before it was killed");
        assert!(Network::remove_all(&world.config()).is_empty());
        assert!(!link_names().iter().any(|name| name.starts_with('v')));
    });
}

fn after_a_kill(world: &World) {
    let live = records(&world.directory);
    let config = Config { prepared: 0, ..world.config() };
    let (network, recovery) = Network::open(&config, &live, &[]).unwrap_or_else(|error| panic!("{}", told(error)));
    // Lost are only those whose removal was under way: their pins had gone, their records not yet.
    for (lost, _) in &recovery.lost {
        std::fs::remove_file(world.directory.join("records").join(lost.as_str())).unwrap();
    }
    assert!(recovery.lost.len() <= 1 && recovery.unreserved.is_empty(), "{recovery:?}");
    let kept: Vec<_> =
        live.iter().filter(|endpoint| recovery.lost.iter().all(|(lost, _)| *lost != endpoint.id)).collect();

    let pins: BTreeSet<_> = std::fs::read_dir(&config.namespaces).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(pins, kept.iter().map(|endpoint| endpoint.namespace.clone()).collect());
    let links: BTreeSet<_> = kept.iter().map(|endpoint| endpoint.link.clone()).collect();
    eventually("links agree with records", || {
        link_names().into_iter().filter(|name| name.starts_with('v')).collect::<BTreeSet<_>>() == links
    });
    let elements = Nft::open().unwrap().keys(TABLE, "published-everywhere").unwrap();
    assert_eq!(elements.len(), kept.len() * 2);
    drop(network);
}
