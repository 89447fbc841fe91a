//! What containerd answers from 2.0 on where 1.6 answers otherwise, or not at all. Each row is asked of a containerd
//! 2.x, which proves it, and of shimd.

mod rig;

use std::collections::HashMap;

use proto_containerd::services::containers::container::Runtime;
use proto_containerd::services::content::WriteAction::{self, Commit, Stat, Write};
use proto_containerd::services::content::WriteContentRequest;
use proto_containerd::services::introspection::PluginsRequest;
use proto_containerd::services::introspection::introspection_client::IntrospectionClient;
use proto_containerd::services::{containers, diff, events, snapshots, tasks};
use proto_containerd::types::{Descriptor, Envelope, Mount};
use rig::asked::{Asked, on_newer};
use rig::{GZIP_LAYER, SNAPSHOTTER, digest};
use tonic::Code::{InvalidArgument, NotFound, Ok as Fine, Unimplemented, Unknown};

on_newer! {
    writes_are_answered_with_the_digest_so_far
    containers_without_a_spec
    differences_between_nothing
    layers_of_content_that_is_not_there
    events_without_a_time
    clean_ups
    snapshots_with_mapped_ids
    what_parts_stand_on
    tasks_that_cannot_be_made
    shims_that_shall_be_in_a_cgroup
}

fn message(action: WriteAction, offset: i64, data: &'static [u8]) -> WriteContentRequest {
    WriteContentRequest {
        action: action.into(),
        r#ref: "r".to_owned(),
        offset,
        data: data.into(),
        ..Default::default()
    }
}

async fn writes_are_answered_with_the_digest_so_far(asked: &mut Asked) {
    let messages = [
        (message(Stat, 0, b""), &b""[..]),
        (message(Write, 0, b"ab"), b"ab"),
        (message(Write, 2, b"cd"), b"abcd"),
        // Begun anew.
        (message(Write, 0, b"x"), b"x"),
        (message(Write, 1, b""), b"x"),
        (message(Commit, 1, b"yz"), b"xyz"),
    ];
    let (requests, contents): (Vec<_>, Vec<_>) = messages.into_iter().unzip();
    let mut answers = asked.lab.content().await.write(tokio_stream::iter(requests)).await.unwrap().into_inner();
    for content in contents {
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!((answer.digest, answer.offset as usize), (digest(content), content.len()));
    }
}

fn bare(id: &str) -> containers::Container {
    let runtime = Some(Runtime { name: "io.containerd.runc.v2".to_owned(), options: None });
    containers::Container { id: id.to_owned(), runtime, ..Default::default() }
}

async fn containers_without_a_spec(asked: &mut Asked) {
    let mut client = asked.lab.containers().await;
    let request = containers::CreateContainerRequest { container: Some(bare("a")) };
    asked.expect("create", client.create(request).await, Fine);
    let labels = HashMap::from([("k".to_owned(), "v".to_owned())]);
    let container = Some(containers::Container { labels, ..bare("a") });
    let request = containers::UpdateContainerRequest { container, update_mask: None };
    asked.expect("update", client.update(request).await, Fine);
    asked.expect("get", client.get(containers::GetContainerRequest { id: "a".to_owned() }).await, Fine);
    // At which containerd 2.1 panics.
    if !asked.is_theirs {
        let request = tasks::CreateTaskRequest { container_id: "a".to_owned(), ..Default::default() };
        asked.expect("run", asked.lab.tasks().await.create(request).await, InvalidArgument);
    }
    asked.expect("delete", client.delete(containers::DeleteContainerRequest { id: "a".to_owned() }).await, Fine);
}

async fn differences_between_nothing(asked: &mut Asked) {
    let empty = asked.lab.prepare("empty", "").await;
    let full = asked.lab.prepare("full", "").await;
    std::fs::write(format!("{}/file", full[0].source), "contents").unwrap();
    let mut client = asked.lab.diff().await;
    let mut digests = Vec::new();
    for (name, left, right) in [
        ("nothing", vec![], vec![]),
        ("nothing and an empty directory", vec![], empty),
        ("nothing and a file", vec![], full.clone()),
        ("a file and nothing", full, vec![]),
    ] {
        let media_type = "application/vnd.oci.image.layer.v1.tar".to_owned();
        let request = diff::DiffRequest { left, right, r#ref: name.to_owned(), media_type, ..Default::default() };
        let told = client.diff(request).await;
        digests.push(told.as_ref().ok().and_then(|told| Some(told.get_ref().diff.as_ref()?.digest.clone())));
        asked.expect(name, told, Fine);
    }
    // The end of an archive and nothing else; the root is no part of what a directory has beyond nothing.
    assert_eq!(digests[0], Some(digest(&[0; 1024])));
    assert_eq!(digests[1], digests[0]);
    assert!(digests[2] != digests[0] && digests[3] != digests[0] && digests[2] != digests[3], "{digests:?}");
}

async fn layers_of_content_that_is_not_there(asked: &mut Asked) {
    let good = asked.lab.prepare("good", "").await;
    let nowhere = vec![Mount { r#type: "bind".to_owned(), source: "/no/such/place".to_owned(), ..Default::default() }];
    let unknown = digest(b"unknown");
    let mut client = asked.lab.diff().await;
    for (what, media_type, digest, mounts) in [
        ("a layer", GZIP_LAYER, unknown.as_str(), good.clone()),
        ("a media type that is none", "application/x", &unknown, good.clone()),
        ("to nowhere", GZIP_LAYER, &unknown, nowhere),
        ("without mounts", GZIP_LAYER, &unknown, vec![]),
        ("a digest that is none", GZIP_LAYER, "sha256:12", good.clone()),
        ("no digest", GZIP_LAYER, "", good),
    ] {
        let (media_type, digest) = (media_type.to_owned(), digest.to_owned());
        let layer = Descriptor { media_type, digest, size: 7, annotations: HashMap::new() };
        let request = diff::ApplyRequest { diff: Some(layer), mounts, ..Default::default() };
        asked.expect(what, client.apply(request).await, NotFound);
    }
}

async fn events_without_a_time(asked: &mut Asked) {
    let mut client = asked.lab.events().await;
    let filters = vec!["topic==\"/x\"".to_owned()];
    // containerd answers with the first event.
    let mut subscriber = client.clone();
    let heard = tokio::spawn(async move {
        subscriber.subscribe(events::SubscribeRequest { filters }).await.unwrap().into_inner().message().await
    });
    let event = Some(prost_types::Any { type_url: "t".to_owned(), value: vec![1] });
    let envelope = Envelope { namespace: "n".to_owned(), topic: "/x".to_owned(), event, timestamp: None };
    for (what, envelope, code) in [
        ("no topic", Envelope { topic: String::new(), ..envelope.clone() }, InvalidArgument),
        ("no namespace", Envelope { namespace: String::new(), ..envelope.clone() }, InvalidArgument),
        ("no time", envelope.clone(), Fine),
    ] {
        let told = client.forward(events::ForwardRequest { envelope: Some(envelope) }).await;
        asked.expect(what, told, code);
    }
    let began = std::time::Instant::now();
    while !heard.is_finished() {
        assert!(began.elapsed() < rig::PATIENCE, "it was not heard");
        let request = events::ForwardRequest { envelope: Some(envelope.clone()) };
        client.forward(request).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let heard = heard.await.unwrap().unwrap().unwrap();
    assert_eq!((heard.timestamp, heard.event), (Some(prost_types::Timestamp::default()), envelope.event));
}

async fn clean_ups(asked: &mut Asked) {
    for (snapshotter, theirs, ours) in [(SNAPSHOTTER, Unimplemented, Fine), ("none", InvalidArgument, InvalidArgument)]
    {
        let request = snapshots::CleanupRequest { snapshotter: snapshotter.to_owned() };
        let told = asked.lab.snapshots().await.cleanup(request).await;
        asked.expect_either(snapshotter, told, theirs, ours);
    }
}

async fn snapshots_with_mapped_ids(asked: &mut Asked) {
    use std::os::unix::fs::MetadataExt;
    if !rig::is_root() {
        return;
    }
    for (parent, layer) in [("", "one"), ("one", "two")] {
        asked.lab.prepare("work", parent).await;
        asked.lab.commit("work", layer).await;
    }
    let plugins = IntrospectionClient::new(asked.lab.connect().await)
        .plugins(PluginsRequest { filters: vec!["type==io.containerd.snapshotter.v1, id==overlayfs".to_owned()] })
        .await
        .unwrap()
        .into_inner()
        .plugins;
    // On kernels that cannot, clients copy.
    if !strata_idmap::is_supported(asked.lab.directory.path()) {
        return eprintln!("skipped: this kernel maps no ids");
    }
    let capabilities = &plugins[0].capabilities;
    assert!(capabilities.iter().any(|capability| capability == "remap-ids"), "{capabilities:?}");
    let mut client = asked.lab.snapshots().await;
    let labels = |users: &str, groups: &str| {
        let label = |name: &str, value: &str| (format!("containerd.io/snapshot/{name}"), value.to_owned());
        HashMap::from([label("uidmapping", users), label("gidmapping", groups)])
    };
    let prepare = |key: &str, labels| snapshots::PrepareSnapshotRequest {
        snapshotter: SNAPSHOTTER.to_owned(),
        key: key.to_owned(),
        parent: "two".to_owned(),
        labels,
    };
    let mapping = labels("0:100000:65536", "0:200000:65536,65536:5:1");
    let mounts = client.prepare(prepare("active", mapping.clone())).await.unwrap().into_inner().mounts;
    let names = |mounts: &[Mount]| -> Vec<String> {
        let options = mounts[0].options.iter();
        options.map(|option| option.split_once("dir=").map_or(option.as_str(), |(name, _)| name).to_owned()).collect()
    };
    let told = ["uidmap=0:100000:65536", "gidmap=0:200000:65536,65536:5:1", "work", "upper", "lower", "index=off"];
    assert_eq!((mounts[0].r#type.as_str(), names(&mounts)), ("overlay", told.map(str::to_owned).to_vec()));
    let upper = mounts[0].options[3].strip_prefix("upperdir=").unwrap();
    let owner = std::fs::metadata(upper).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (100_000, 200_000));
    let request = snapshots::ViewSnapshotRequest {
        snapshotter: SNAPSHOTTER.to_owned(),
        key: "view".to_owned(),
        parent: "one".to_owned(),
        labels: mapping,
    };
    let mounts = client.view(request).await.unwrap().into_inner().mounts;
    assert_eq!((mounts[0].r#type.as_str(), names(&mounts)[2..].join(",")), ("bind", "ro,rbind".to_owned()));
    for (what, labels) in [("no mapping", labels("x", "0:1:1")), ("nobody is root", labels("0:1:1", "1:1:1"))] {
        asked.expect_either(what, client.prepare(prepare("bad", labels)).await, Unknown, InvalidArgument);
    }
}

async fn what_parts_stand_on(asked: &mut Asked) {
    let request = PluginsRequest::default();
    let plugins =
        IntrospectionClient::new(asked.lab.connect().await).plugins(request).await.unwrap().into_inner().plugins;
    // What shimd has no such part for.
    let absent = ["image-verifier.v1", "warning.v1", "monitor.task.v1", "podsandbox.controller.v1"];
    for (kind, id, wanted) in [
        ("content.v1", "content", ""),
        ("metadata.v1", "bolt", "content.v1 event.v1 snapshotter.v1"),
        ("gc.v1", "scheduler", "metadata.v1"),
        ("lease.v1", "manager", "metadata.v1 gc.v1"),
        ("runtime.v2", "task", "shim.v1"),
        ("service.v1", "tasks-service", "event.v1 runtime.v2 metadata.v1"),
        ("service.v1", "images-service", "metadata.v1 gc.v1"),
        ("transfer.v1", "local", "lease.v1 metadata.v1 differ.v1 snapshotter.v1"),
        ("sandbox.controller.v1", "shim", "shim.v1 event.v1"),
        ("grpc.v1", "content", "service.v1"),
        ("grpc.v1", "events", "event.v1"),
        ("grpc.v1", "sandbox-controllers", "sandbox.controller.v1 event.v1"),
        ("grpc.v1", "transfer", "transfer.v1 streaming.v1"),
        ("grpc.v1", "version", ""),
    ] {
        let kind = format!("io.containerd.{kind}");
        let part = plugins.iter().find(|part| part.r#type == kind && part.id == id).expect(id);
        let requires = part.requires.iter().map(|kind| kind.trim_start_matches("io.containerd."));
        let requires: Vec<&str> = requires.filter(|kind| !absent.contains(kind)).collect();
        assert_eq!(requires.join(" "), wanted, "{kind} {id}");
    }
}

/// Clients and scripts look for how containerd begins to say it.
async fn tasks_that_cannot_be_made(asked: &mut Asked) {
    if !rig::can_run_containers() {
        return;
    }
    asked.lab.busybox("busybox").await;
    let rootfs = asked.lab.container("a", "busybox", &["/none"]).await;
    let mut client = asked.lab.tasks().await;
    let request = tasks::CreateTaskRequest { container_id: "a".to_owned(), rootfs, ..Default::default() };
    let status = client.create(request).await.unwrap_err();
    assert!(status.message().starts_with("failed to create shim task: "), "{}", status.message());
    assert!(status.message().contains("/none"), "{}", status.message());
    let runtime = Some(Runtime { name: "io.containerd.none.v1".to_owned(), options: None });
    let spec = Some(asked.lab.spec("b", &["/bin/true"]));
    let container = Some(containers::Container { runtime, spec, ..bare("b") });
    asked.lab.containers().await.create(containers::CreateContainerRequest { container }).await.unwrap();
    let request = tasks::CreateTaskRequest { container_id: "b".to_owned(), ..Default::default() };
    let status = client.create(request).await.unwrap_err();
    assert!(status.message().starts_with("failed to start shim: "), "{}", status.message());
    assert!(status.message().contains("containerd-shim-none-v1"), "{}", status.message());
}

/// The shim of 2.x itself says that there is no such cgroup: it was told, also when it is started for the first time.
async fn shims_that_shall_be_in_a_cgroup(asked: &mut Asked) {
    let shim = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/peers/containerd.root/usr/bin/containerd-shim-runc-v2");
    if !rig::is_root() || !shim.exists() {
        return;
    }
    let options = proto_shim::runc::Options { shim_cgroup: "/shimd-test-none".to_owned(), ..Default::default() };
    let runtime = Some(Runtime { name: shim.display().to_string(), options: Some(proto_shim::any(&options)) });
    let spec = Some(asked.lab.spec("a", &["/bin/true"]));
    let container = Some(containers::Container { runtime, spec, ..bare("a") });
    asked.lab.containers().await.create(containers::CreateContainerRequest { container }).await.unwrap();
    let request = tasks::CreateTaskRequest { container_id: "a".to_owned(), ..Default::default() };
    let status = asked.lab.tasks().await.create(request).await.unwrap_err();
    let told = status.message().starts_with("failed to start shim: ") && status.message().contains("/shimd-test-none");
    assert!(told, "{}", status.message());
}
