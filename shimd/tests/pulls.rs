//! Pulls by the transfer service: what a registry that resets connections, or a kill, costs; and that what is wanted by
//! many is fetched and unpacked once.

mod rig;

use std::time::Duration;

use proto_containerd::any;
use proto_containerd::services::leases;
use proto_containerd::services::transfer::TransferRequest;
use proto_containerd::types::transfer::{ImageStore, OciRegistry, RegistryResolver, UnpackConfiguration};
use rig::chance::Chance;
use rig::registry::{Image, Registry};
use rig::{Lab, SNAPSHOTTER};
use tonic::Status;

/// Most bytes of a stream that may be fetched again after each interruption.
const TWICE_MAX: u64 = 4 << 20;
const MIB: usize = 1 << 20;

fn helper_is_there() -> bool {
    let helper = std::path::Path::new(env!("CARGO_BIN_EXE_shimd")).with_file_name("shimd-registry");
    if !helper.exists() {
        eprintln!("skipped: this test needs {}", helper.display());
    }
    helper.exists() && rig::is_root()
}

/// Pulls an image, and unpacks it.
async fn pull(lab: &Lab, name: &str) -> Result<(), Status> {
    pull_with(lab, name, None).await
}

async fn pull_with(lab: &Lab, name: &str, resolver: Option<RegistryResolver>) -> Result<(), Status> {
    let unpack = UnpackConfiguration { snapshotter: SNAPSHOTTER.to_owned(), platform: None };
    let request = TransferRequest {
        source: Some(any(&OciRegistry { reference: name.to_owned(), resolver })),
        destination: Some(any(&ImageStore { name: name.to_owned(), unpacks: vec![unpack], ..Default::default() })),
        options: None,
    };
    lab.transfer().await.transfer(request).await.map(drop)
}

/// No stream was fetched twice by more than its bound after each of its interruptions, and each to its end.
fn assert_little_twice(registry: &Registry, image: &Image) {
    for (layer, size) in image.layers.iter().zip(&image.sizes) {
        let sent = registry.sent(layer);
        eprintln!("{size} bytes in {} requests, {} of them twice: {:?}", sent.requests, sent.bytes - size, sent.twice);
        assert!(sent.bytes >= *size);
        assert!(sent.twice.iter().all(|twice| *twice <= TWICE_MAX), "{sent:?}");
    }
}

async fn assert_there(lab: &Lab, name: &str, image: &Image) {
    use proto_containerd::services::images::GetImageRequest;
    lab.images().await.get(GetImageRequest { name: name.to_owned() }).await.unwrap();
    for (layer, size) in image.layers.iter().zip(&image.sizes) {
        let blob = lab.path("lib/content/blobs/sha256").join(layer.trim_start_matches("sha256:"));
        assert_eq!(rig::digest(&std::fs::read(blob).unwrap()), *layer);
        assert!(*size > 0);
    }
}

#[tokio::test]
async fn a_registry_that_resets_connections_costs_little() {
    if !helper_is_there() {
        return;
    }
    let lab = Lab::start().await;
    let registry = Registry::start();
    let image = registry.add("a", &[24 * MIB, 16 * MIB, 8 * MIB]);
    let mut chance = Chance::new();
    registry.state.lock().unwrap().cuts = (0..16).map(|_| chance.below(5 * MIB as u64)).collect();
    pull(&lab, &registry.name("a")).await.unwrap();
    assert!(registry.state.lock().unwrap().cuts.is_empty(), "not all cuts were made");
    assert_little_twice(&registry, &image);
    assert_there(&lab, &registry.name("a"), &image).await;
}

#[tokio::test]
async fn a_kill_of_shimd_costs_little() {
    if !helper_is_there() {
        return;
    }
    let mut lab = Lab::start().await;
    let registry = Registry::start();
    let image = registry.add("b", &[32 * MIB, 24 * MIB]);
    registry.state.lock().unwrap().pause = Duration::from_millis(2);
    let mut chance = Chance::new();
    for _ in 0..6 {
        let name = registry.name("b");
        let until = registry.bytes_sent() + 256 * 1024 + chance.below(6 * MIB as u64);
        tokio::select! {
            pulled = pull(&lab, &name) => panic!("it ended before it was killed: {pulled:?}"),
            () = sent(&registry, until) => {}
        }
        lab.kill();
        lab.up().await;
    }
    pull(&lab, &registry.name("b")).await.unwrap();
    assert_little_twice(&registry, &image);
    assert_there(&lab, &registry.name("b"), &image).await;
}

#[tokio::test]
async fn a_kill_of_the_helper_costs_little() {
    if !helper_is_there() {
        return;
    }
    let lab = Lab::start().await;
    let registry = Registry::start();
    let image = registry.add("c", &[32 * MIB, 24 * MIB]);
    registry.state.lock().unwrap().pause = Duration::from_millis(2);
    let mut chance = Chance::new();
    for _ in 0..6 {
        let name = registry.name("c");
        let until = registry.bytes_sent() + 256 * 1024 + chance.below(6 * MIB as u64);
        let killed = async {
            sent(&registry, until).await;
            let helper = lab.child_of_shimd("shimd-registry").expect("it works for the pull");
            rustix::process::kill_process(helper, rustix::process::Signal::KILL).unwrap();
        };
        let (pulled, ()) = tokio::join!(pull(&lab, &name), killed);
        let error = pulled.unwrap_err();
        assert!(error.message().contains("registry courier"), "{error:?}");
        let leases = lab.leases().await.list(leases::ListRequest::default()).await.unwrap().into_inner().leases;
        assert!(leases.is_empty(), "the lease of a pull that failed is left: {leases:?}");
    }
    pull(&lab, &registry.name("c")).await.unwrap();
    assert_little_twice(&registry, &image);
    assert_there(&lab, &registry.name("c"), &image).await;
}

async fn sent(registry: &Registry, bytes: u64) {
    while registry.bytes_sent() < bytes {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn ten_pulls_of_one_image_fetch_and_unpack_it_once() {
    if !helper_is_there() {
        return;
    }
    let lab = Lab::start().await;
    let registry = Registry::start();
    let image = registry.add("d", &[6 * MIB, 4 * MIB, 2 * MIB]);
    registry.state.lock().unwrap().pause = Duration::from_millis(1);
    let name = registry.name("d");
    let events = lab.events_of("/snapshot/commit").await;
    let pulls = (0..10).map(|_| pull(&lab, &name));
    for pulled in futures_util::future::join_all(pulls).await {
        pulled.unwrap();
    }
    for (layer, size) in image.layers.iter().zip(&image.sizes) {
        let sent = registry.sent(layer);
        assert_eq!((sent.bytes, sent.requests), (*size, 1), "{sent:?}");
    }
    assert_eq!(events.count(), image.layers.len(), "layers were unpacked more than once");
    let snapshots = std::fs::read_dir(lab.path("lib/snapshots")).unwrap().count();
    assert_eq!(snapshots, image.layers.len());
    assert_there(&lab, &name, &image).await;
}

#[tokio::test]
async fn mirrors_are_asked_as_a_hosts_file_says() {
    if !helper_is_there() {
        return;
    }
    let lab = Lab::start().await;
    let (mirror, own) = (Registry::start(), Registry::start());
    let image = mirror.add("e", &[MIB]);
    let name = own.name("e");
    let host = name.split('/').next().unwrap();
    let directory = lab.path("certs.d").join(host.replace(':', "_") + "_");
    std::fs::create_dir_all(&directory).unwrap();
    // What is said of clients' keys is root's to read.
    std::fs::set_permissions(lab.path("certs.d"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let hosts = format!("[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", mirror.host());
    std::fs::write(directory.join("hosts.toml"), hosts).unwrap();
    let resolver = RegistryResolver { host_dir: lab.path("certs.d").display().to_string(), ..Default::default() };
    let absent = pull(&lab, &name).await.unwrap_err();
    assert_eq!(absent.code(), tonic::Code::NotFound, "{absent:?}");
    pull_with(&lab, &name, Some(resolver)).await.unwrap();
    assert_there(&lab, &name, &image).await;
    assert_eq!((own.bytes_sent(), mirror.sent(&image.layers[0]).requests), (0, 1));
}
