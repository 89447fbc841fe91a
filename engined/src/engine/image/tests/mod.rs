//! Images over a real supervisor and a real registry: Debian's containerd and our shimd, Debian's docker-registry.

mod proxy;
mod world;

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto_containerd::services::content::ListStatusesRequest;
use strata_fault::{Fault, code};
use tokio::sync::mpsc;

use super::{Images, Phase, Progress, Pull, Pulled};
use proxy::Proxy;
use world::{Kind, Layer, Layout, Made, Packing, Registry, Supervisor, noise};

/// A supervisor, a registry, and the images between them.
struct Scene {
    kind: Kind,
    supervisor: Supervisor,
    registry: Registry,
    images: Arc<Images>,
}

impl Scene {
    async fn set(kind: Kind) -> Option<Scene> {
        let supervisor = Supervisor::start(kind)?;
        let registry = Registry::start()?;
        let images = engine(&supervisor);
        // As engined does at its start.
        supervisor.client().ensure_namespace(world::NAMESPACE).await.unwrap();
        Some(Scene { kind, supervisor, registry, images })
    }

    async fn pull(&self, name: &str) -> Result<Pulled, Fault> {
        pull(&self.images, name).await.0
    }

    /// A layout with one image, pushed.
    fn push(&self, name: &str, layers: &[Layer]) -> Made {
        let layout = Layout::new();
        let made = layout.image("amd64", layers);
        layout.name(&made.entry);
        self.registry.push(&layout, name);
        made
    }

    /// What must not be left after a pull, however it ended.
    async fn assert_clean(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let left = self.left_over().await;
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left over: {left:?}\n{}", self.supervisor.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn left_over(&self) -> Vec<String> {
        let client = self.supervisor.client();
        let mut left = client.list_ingests().await.unwrap();
        left.extend(client.list_leases("").await.unwrap());
        let snapshots = self.supervisor.ctr(&["snapshots", "ls"]);
        left.extend(snapshots.lines().filter(|line| line.contains("extract-")).map(str::to_owned));
        left
    }

    fn content(&self) -> Vec<String> {
        self.supervisor.ctr(&["content", "ls", "-q"]).lines().map(str::to_owned).collect()
    }

    /// Until the supervisor has collected its garbage.
    async fn wait_until(&self, what: &str, mut is_so: impl FnMut(&Scene) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_so(self) {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn engine(supervisor: &Supervisor) -> Arc<Images> {
    engine_with_stall(supervisor, Duration::from_secs(2))
}

/// An engine that waits so long for a registry that is silent.
fn engine_with_stall(supervisor: &Supervisor, stall: Duration) -> Arc<Images> {
    let config = strata_registry::Config { stall, ..Default::default() };
    Images::new(supervisor.client(), strata_registry::Client::new(config), "overlayfs")
}

/// The result, and for each layer the phases that were told.
async fn pull(images: &Arc<Images>, name: &str) -> (Result<Pulled, Fault>, BTreeMap<String, Vec<Phase>>) {
    let (sender, mut receiver) = mpsc::channel::<Progress>(64);
    let wanted = Pull { name: name.to_owned(), ..Pull::default() };
    let listening = tokio::spawn(async move {
        let mut phases: BTreeMap<String, Vec<Phase>> = BTreeMap::new();
        while let Some(progress) = receiver.recv().await {
            assert!(progress.current <= progress.total);
            let told = phases.entry(progress.digest).or_default();
            if told.last() != Some(&progress.phase) {
                told.push(progress.phase);
            }
        }
        phases
    });
    let result = images.pull(wanted, sender).await;
    (result, listening.await.unwrap())
}

fn three_layers() -> Vec<Layer> {
    vec![
        Layer::new(Packing::Gzip, &[("bin/true", b"#!"), ("etc/a", b"a"), ("etc/b", b"b")]),
        Layer::new(Packing::Zstd, &[("usr/data", &noise(1, 3_000_000)), ("etc/.wh.a", b"")]),
        Layer::new(Packing::Plain, &[("etc/c", b"c")]),
    ]
}

/// One test for each supervisor.
macro_rules! over_both {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn over_containerd() {
                if let Some(scene) = Scene::set(Kind::Theirs).await {
                    super::$name(scene).await;
                }
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn over_shimd() {
                if let Some(scene) = Scene::set(Kind::Ours).await {
                    super::$name(scene).await;
                }
            }
        })*
    };
}

over_both! {
    an_image_is_pulled_and_found,
    many_pulls_of_one_image,
    images_that_share_layers,
    a_cancelled_pull_leaves_nothing,
    a_damaged_layer_leaves_nothing,
    a_config_that_lies_about_a_layer,
    a_cut_pull_is_resumed,
    a_pull_after_a_kill_is_resumed,
    a_pull_goes_on_when_the_supervisor_crashed,
    a_full_disk,
    another_platform,
    names_come_and_go,
    an_image_that_others_brought,
    a_name_that_moves,
}

async fn an_image_is_pulled_and_found(scene: Scene) {
    let layout = Layout::new();
    let (arm, amd) = (layout.image("arm64", &three_layers()[..1]), layout.image("amd64", &three_layers()));
    layout.name(&layout.index(&[&arm, &amd]));
    scene.registry.push(&layout, "team/app:1");
    let name = scene.registry.name("team/app:1");
    assert!(scene.images.local(&name).await.unwrap().is_none());

    let (result, phases) = pull(&scene.images, &name).await;
    let Pulled { image, changed } = result.unwrap();
    assert!(changed);
    assert_eq!((image.id.as_str(), image.reference.as_str()), (amd.id.as_str(), name.as_str()));
    assert_eq!(image.config.config.cmd, ["/bin/true"]);
    assert_eq!(phases[""], [Phase::Resolving]);
    for layer in &amd.layers {
        assert_eq!(phases[layer].last(), Some(&Phase::Done), "{phases:?}");
        assert!(phases[layer].is_sorted(), "{phases:?}");
    }
    scene.assert_clean().await;

    // containerd's own client finds it whole, and its top snapshot.
    let check = scene.supervisor.ctr(&["images", "check"]);
    assert!(check.contains("complete (4/4)") && check.contains("true"), "{check}");
    let snapshots = scene.supervisor.ctr(&["snapshots", "ls"]);
    assert!(snapshots.contains(&image.chain_id), "{snapshots}");
    let content = scene.supervisor.ctr(&["content", "ls"]);
    let labels = [
        "gc.ref.content.l.0",
        "gc.ref.content.m.1",
        "gc.ref.snapshot.overlayfs",
        "distribution.source",
        "uncompressed",
    ];
    for label in labels {
        assert!(content.contains(&format!("containerd.io/{label}")), "{label}: {content}");
    }

    // By all that it is called.
    let digest = format!("{}@{}", scene.registry.name("team/app"), image.digest);
    let hex = image.id.strip_prefix("sha256:").unwrap();
    for called in [name.as_str(), &digest, &image.id, hex, &hex[..12], &format!("sha256:{}", &hex[..6])] {
        let found = scene.images.local(called).await.unwrap().unwrap_or_else(|| panic!("{called}"));
        assert_eq!(found.id, image.id);
    }
    for other in ["nginx", &digest.replace("app@", "other@"), "ffffffffffff"] {
        assert!(scene.images.local(other).await.unwrap().is_none(), "{other}");
    }
    assert_eq!(scene.images.local("UPPER:case").await.unwrap_err().code, code::INVALID_ARGUMENT);

    // Again: nothing is downloaded.
    let (again, phases) = pull(&scene.images, &name).await;
    assert!(!again.unwrap().changed);
    assert!(amd.layers.iter().all(|layer| phases[layer].last() == Some(&Phase::Exists)), "{phases:?}");

    // An engine that knows nothing yet finds the same.
    let found = engine(&scene.supervisor).local(&name).await.unwrap().unwrap();
    assert_eq!((&found.id, &found.chain_id, &found.config), (&image.id, &image.chain_id, &image.config));
    let summary = scene.images.list().await.unwrap().pop().unwrap();
    assert_eq!(summary.references, [name.as_str()]);
    assert!(summary.size >= 3_000_000 && summary.created.is_some());
}

async fn many_pulls_of_one_image(scene: Scene) {
    let made = scene.push("app:1", &three_layers());
    let name = scene.registry.name("app:1");
    let pulls: Vec<_> = (0..10)
        .map(|_| {
            let (images, name) = (Arc::clone(&scene.images), name.clone());
            tokio::spawn(async move { pull(&images, &name).await.0 })
        })
        .collect();
    for pull in pulls {
        assert_eq!(pull.await.unwrap().unwrap().image.id, made.id);
    }
    scene.assert_clean().await;
    assert_eq!(scene.supervisor.ctr(&["snapshots", "ls"]).lines().count(), 1 + 3);
}

async fn images_that_share_layers(scene: Scene) {
    let layers = three_layers();
    scene.push("a:1", &layers[..2]);
    scene.push("b:1", &layers);
    scene.push("c:1", &[layers[0].clone(), layers[1].clone(), layers[1].clone()]);
    let names = ["a:1", "b:1", "c:1"].map(|name| scene.registry.name(name));
    let (a, b, c) = tokio::join!(scene.pull(&names[0]), scene.pull(&names[1]), scene.pull(&names[2]));
    let ids: Vec<String> = [a, b, c].into_iter().map(|pulled| pulled.unwrap().image.id.clone()).collect();
    assert_eq!(scene.images.list().await.unwrap().len(), 3);
    assert!(ids.iter().all(|id| ids.iter().filter(|other| *other == id).count() == 1));
    scene.assert_clean().await;
    assert_eq!(scene.supervisor.ctr(&["snapshots", "ls"]).lines().count(), 1 + 4);
}

async fn a_cancelled_pull_leaves_nothing(scene: Scene) {
    let layers =
        [Layer::new(Packing::Plain, &[("a", b"a")]), Layer::new(Packing::Plain, &[("b", &noise(3, 8_000_000))])];
    scene.push("app:1", &layers);
    let proxy = Proxy::start(scene.registry.port, 4_000_000, true).await;
    let name = proxy.name("app:1");
    let pulling = pull(&scene.images, &name);
    assert!(tokio::time::timeout(Duration::from_millis(1500), pulling).await.is_err(), "it should hang");
    scene.assert_clean().await;
    assert!(scene.images.list().await.unwrap().is_empty());
    scene.wait_until("the blobs are collected", |scene| scene.content().is_empty()).await;
    // The next one works.
    assert!(scene.pull(&scene.registry.name("app:1")).await.is_ok());
    scene.assert_clean().await;
}

async fn a_damaged_layer_leaves_nothing(scene: Scene) {
    let made = scene.push("app:1", &three_layers());
    let blob = scene.registry.blob(&made.layers[1]);
    let good = fs::read(&blob).unwrap();
    let mut bad = good.clone();
    bad[100_000] ^= 1;
    fs::write(&blob, bad).unwrap();
    let fault = scene.pull(&scene.registry.name("app:1")).await.unwrap_err();
    assert_eq!((fault.layer.as_str(), fault.code.as_str()), ("registry", code::DIGEST_MISMATCH), "{fault:?}");
    scene.assert_clean().await;
    assert!(scene.images.local(&scene.registry.name("app:1")).await.unwrap().is_none());
    fs::write(&blob, good).unwrap();
    assert!(scene.pull(&scene.registry.name("app:1")).await.is_ok());
}

async fn a_config_that_lies_about_a_layer(scene: Scene) {
    let layout = Layout::new();
    let layers = three_layers();
    let mut diff_ids: Vec<String> = layers.iter().map(Layer::diff_id).collect();
    diff_ids[1] = diff_ids[2].clone();
    let made = layout.image_with("amd64", &layers, diff_ids);
    layout.name(&made.entry);
    scene.registry.push(&layout, "app:1");
    let fault = scene.pull(&scene.registry.name("app:1")).await.unwrap_err();
    assert_eq!(fault.code, code::DIGEST_MISMATCH, "{fault:?}");
    scene.assert_clean().await;
    assert!(scene.images.list().await.unwrap().is_empty());
}

async fn a_cut_pull_is_resumed(scene: Scene) {
    let made = scene.push("app:1", &[Layer::new(Packing::Plain, &[("b", &noise(3, 20_000_000))])]);
    let proxy = Proxy::start(scene.registry.port, 12_000_000, false).await;
    let name = proxy.name("app:1");
    let fault = scene.pull(&name).await.unwrap_err();
    assert_eq!(fault.code, code::REGISTRY_UNREACHABLE, "{fault:?}");
    assert!(scene.images.local(&name).await.unwrap().is_none());
    proxy.allow(1 << 40);
    let pulled = scene.pull(&name).await.unwrap();
    assert_eq!(pulled.image.id, made.id);
    assert!(proxy.passed() < 20_000_000 + (4 << 20), "{}", proxy.passed());
    scene.assert_clean().await;
}

async fn a_pull_after_a_kill_is_resumed(scene: Scene) {
    scene.push("app:1", &[Layer::new(Packing::Plain, &[("b", &noise(3, 20_000_000))])]);
    let proxy = Proxy::start(scene.registry.port, 12_000_000, true).await;
    // An engine whose end nobody cleans up after: its runtime is gone at once, as if it was killed.
    let (socket_client, name) = (scene.supervisor.socket(), proxy.name("app:1"));
    let killed = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let client = crate::containerd::Client::new(&socket_client, world::NAMESPACE).unwrap();
            let images = Images::new(client, strata_registry::Client::new(Default::default()), "overlayfs");
            let _ = tokio::time::timeout(Duration::from_millis(1500), pull(&images, &name)).await;
            // Nothing that is spawned from here on gets to run.
            std::mem::forget(images);
        });
        runtime.shutdown_background();
    });
    tokio::task::spawn_blocking(move || killed.join().unwrap()).await.unwrap();
    proxy.allow(1 << 40);
    let passed = proxy.passed();
    let images = engine(&scene.supervisor);
    let (result, _) = pull(&images, &proxy.name("app:1")).await;
    result.unwrap();
    let all = proxy.passed();
    assert!(all - passed < 20_500_000, "{all} {passed}");
    scene.assert_clean().await;
}

async fn a_pull_goes_on_when_the_supervisor_crashed(mut scene: Scene) {
    // One layer, of which nothing is unpacked yet: Debian's containerd, killed while it prepares a snapshot, can prepare none from
    // then on, as it finds the directory there.
    let made = scene.push("app:1", &[Layer::new(Packing::Plain, &[("b", &noise(3, 20_000_000))])]);
    let proxy = Proxy::start(scene.registry.port, 12_000_000, true).await;
    scene.images = engine_with_stall(&scene.supervisor, Duration::from_secs(60));
    let (images, name) = (Arc::clone(&scene.images), proxy.name("app:1"));
    let pulling = tokio::spawn(async move { pull(&images, &name).await.0 });
    // All that came through is in the supervisor: what the kernel holds for a connection is lost with it.
    while ingested(&scene).await < 11_900_000 {
        assert!(!pulling.is_finished());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::task::block_in_place(|| scene.supervisor.crash());
    proxy.allow(1 << 40);
    // The registry's silence on the old connection is not waited out.
    let pulled = tokio::time::timeout(Duration::from_secs(30), pulling).await.expect("it goes on");
    assert_eq!(pulled.unwrap().unwrap().image.id, made.id);
    assert!(proxy.passed() < 20_000_000 + (4 << 20), "{}", proxy.passed());
    scene.assert_clean().await;
    assert!(scene.supervisor.ctr(&["images", "check"]).contains("complete"));
    // The stream of changes is there again, and names are remembered.
    assert_eq!(scene.images.local(&proxy.name("app:1")).await.unwrap().unwrap().id, made.id);
}

/// Bytes of the largest ingest there is.
async fn ingested(scene: &Scene) -> i64 {
    let statuses = scene.supervisor.client().content().list_statuses(ListStatusesRequest::default()).await;
    statuses.unwrap().into_inner().statuses.iter().map(|status| status.offset).max().unwrap_or_default()
}

async fn a_full_disk(mut scene: Scene) {
    let layers =
        [Layer::new(Packing::Gzip, &[("a", b"a")]), Layer::new(Packing::Plain, &[("b", &noise(3, 20_000_000))])];
    let made = scene.push("app:1", &layers);
    // Room for the blobs, and then for half of what they hold; then not even for the blobs.
    for size_mib in [32, 12] {
        tokio::task::block_in_place(|| {
            drop(scene.images);
            drop(scene.supervisor);
        });
        scene.supervisor = Supervisor::start(scene.kind).unwrap();
        tokio::task::block_in_place(|| scene.supervisor.with_disk(size_mib));
        scene.images = engine(&scene.supervisor);
        scene.supervisor.client().ensure_namespace(world::NAMESPACE).await.unwrap();
        let fault = scene.pull(&scene.registry.name("app:1")).await.unwrap_err();
        assert_eq!(fault.code, code::NO_SPACE, "{size_mib} MiB: {fault:?}");
        scene.assert_clean().await;
        assert!(scene.images.list().await.unwrap().is_empty());
    }
    scene.supervisor.grow_disk(200);
    let pulled = scene.pull(&scene.registry.name("app:1")).await;
    assert_eq!(pulled.unwrap().image.id, made.id);
}

async fn another_platform(scene: Scene) {
    let layout = Layout::new();
    let (arm, amd) = (layout.image("arm64", &three_layers()[..1]), layout.image("amd64", &three_layers()[..2]));
    layout.name(&layout.index(&[&arm, &amd]));
    scene.registry.push(&layout, "app:1");
    let name = scene.registry.name("app:1");
    let pull_for = async |platform: &str| {
        let (sender, _listener) = mpsc::channel(1);
        let wanted = Pull { name: name.clone(), platform: Some(platform.to_owned()), ..Pull::default() };
        scene.images.pull(wanted, sender).await
    };
    let found = async || scene.images.local(&name).await.unwrap().unwrap().id.clone();
    assert_eq!(pull_for("linux/arm64").await.unwrap().image.id, arm.id);
    assert_eq!(found().await, arm.id);
    assert_eq!(scene.pull(&name).await.unwrap().image.id, amd.id);
    assert_eq!(found().await, amd.id);
    // The host's own is what the name means, whichever came last.
    assert_eq!(pull_for("linux/arm64").await.unwrap().image.id, arm.id);
    assert_eq!(found().await, amd.id);
    assert_eq!(pull_for("linux/s390x").await.unwrap_err().code, strata_registry::PLATFORM_NOT_FOUND);
    assert_eq!(pull_for("nonsense").await.unwrap_err().code, code::INVALID_ARGUMENT);
    scene.assert_clean().await;
}

async fn names_come_and_go(scene: Scene) {
    let made = scene.push("a:1", &three_layers());
    scene.push("a:2", &three_layers());
    scene.push("b:1", &three_layers());
    let names = ["a:1", "a:2", "b:1"].map(|name| scene.registry.name(name));
    for name in &names {
        scene.pull(name).await.unwrap();
    }
    let nobody = |_: &str| Vec::new();
    let somebody = |id: &str| if id == made.id { vec!["web".to_owned()] } else { Vec::new() };
    let summary = scene.images.list().await.unwrap();
    assert_eq!((summary.len(), summary[0].references.len()), (1, 3));
    // By id it would take names of two repositories.
    assert_eq!(scene.images.remove(&made.id, false, &nobody).await.unwrap_err().code, code::IMAGE_IN_USE);
    // One of several names may go, also while the image is in use.
    let removed = scene.images.remove(&names[2], false, &somebody).await.unwrap();
    assert_eq!((removed.untagged, removed.deleted.len()), (vec![names[2].clone()], 0));
    assert!(scene.images.local(&names[2]).await.unwrap().is_none());
    let removed = scene.images.remove(&names[0], false, &nobody).await.unwrap();
    assert_eq!(removed.untagged, [names[0].clone()]);
    // The last one may not.
    let fault = scene.images.remove(&names[1], false, &somebody).await.unwrap_err();
    assert_eq!((fault.code.as_str(), fault.causes[0].as_str()), (code::IMAGE_IN_USE, "it is used by web"));
    let removed = scene.images.remove(&made.id[7..19], false, &nobody).await.unwrap();
    assert_eq!((removed.untagged, removed.deleted), (vec![names[1].clone()], vec![made.id.clone()]));
    assert!(scene.images.local(&names[1]).await.unwrap().is_none());
    assert_eq!(scene.images.remove(&names[1], true, &nobody).await.unwrap_err().code, code::IMAGE_NOT_LOCAL);
    scene
        .wait_until("the space is given back", |scene| {
            scene.content().is_empty() && scene.supervisor.ctr(&["snapshots", "ls"]).lines().count() == 1
        })
        .await;
}

async fn an_image_that_others_brought(scene: Scene) {
    let layout = Layout::new();
    let made = layout.image("amd64", &three_layers());
    let mut entry = made.entry.clone();
    entry["annotations"] = serde_json::json!({"io.containerd.image.name": "docker.io/library/brought:1"});
    layout.name(&entry);
    let archive = layout.path().join("image.tar");
    let tar = std::process::Command::new("tar")
        .arg("-C")
        .arg(layout.path())
        .args(["-cf", archive.to_str().unwrap(), "oci-layout", "index.json", "blobs"])
        .status();
    assert!(tar.unwrap().success());
    scene.supervisor.ctr(&["images", "import", "--no-unpack", archive.to_str().unwrap()]);
    let image = scene.images.local("brought:1").await.unwrap().unwrap();
    assert_eq!(image.id, made.id);
    assert!(scene.supervisor.ctr(&["snapshots", "ls"]).contains(&image.chain_id));
    scene.assert_clean().await;
    // What others take away is gone here too.
    scene.supervisor.ctr(&["images", "rm", "--sync", "docker.io/library/brought:1"]);
    let deadline = Instant::now() + Duration::from_secs(2);
    while scene.images.local("brought:1").await.unwrap().is_some() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn a_name_that_moves(scene: Scene) {
    let first = scene.push("app:1", &three_layers()[..1]);
    let name = scene.registry.name("app:1");
    assert_eq!(scene.pull(&name).await.unwrap().image.id, first.id);
    assert_eq!(scene.images.local(&name).await.unwrap().unwrap().id, first.id);
    let second = scene.push("app:1", &three_layers());
    let pulled = scene.pull(&name).await.unwrap();
    assert_eq!((pulled.image.id.as_str(), pulled.changed), (second.id.as_str(), true));
    assert_eq!(scene.images.local(&name).await.unwrap().unwrap().id, second.id);
    assert_eq!(scene.images.list().await.unwrap().len(), 1);
}
