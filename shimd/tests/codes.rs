//! Bad input: what cannot be done is answered with the status code that containerd gives. Each row is asked of Debian's
//! containerd, which proves it, and of shimd. What is too much is `limits`' part.

mod rig;

use std::collections::HashMap;
use std::time::Duration;

use prost_types::FieldMask;
use proto_containerd::services::containers::container::Runtime;
use proto_containerd::services::namespaces::namespaces_client::NamespacesClient;
use proto_containerd::services::{containers, content, diff, events, images, leases, namespaces, snapshots, tasks};
use proto_containerd::types::{Descriptor, Mount};
use rig::asked::{Asked, on_both};
use rig::{GZIP_LAYER, SNAPSHOTTER, digest};
use tonic::Code::{
    AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Ok as Fine, OutOfRange, Unimplemented, Unknown,
};
use tonic::{Response, Status, Streaming};

on_both! {
    blobs_that_are_not_there
    writes_that_lie
    images_that_cannot_be
    snapshots_that_cannot_be
    snapshots_in_the_wrong_state
    containers_that_cannot_be
    tasks_that_are_not_there
    leases_that_are_not_there
    namespaces_that_cannot_be
    filters_that_do_not_parse
    masks_that_name_nothing
    layers_that_are_none
}

/// The end of a stream.
async fn end<T>(answer: impl Future<Output = Result<Response<Streaming<T>>, Status>>) -> Result<(), Status> {
    let all = async {
        let mut stream = answer.await?.into_inner();
        while stream.message().await?.is_some() {}
        Ok(())
    };
    // One that subscribed to something waits for ever.
    tokio::time::timeout(Duration::from_secs(1), all).await.unwrap_or(Ok(()))
}

fn unknown() -> String {
    digest(b"unknown")
}

fn mask(path: &str) -> Option<FieldMask> {
    Some(FieldMask { paths: vec![path.to_owned()] })
}

fn long_labels() -> HashMap<String, String> {
    HashMap::from([("long".to_owned(), "x".repeat(4093))])
}

/// Filters that are none. (A pattern that is none is only told when it is compared, and matches nothing.)
const BAD_FILTERS: [&str; 5] = ["name=", "==x", "labels.", "name==\"x", "name=x"];

async fn blobs_that_are_not_there(asked: &mut Asked) {
    let mut client = asked.lab.content().await;
    for digest in ["", "sha256", "sha256:", "sha256:12", "md5:d41d8cd98f00b204e9800998ecf8427e", "../../etc/passwd"] {
        let digest = digest.to_owned();
        let info = client.info(content::InfoRequest { digest: digest.clone() }).await;
        asked.expect(&format!("info {digest:?}"), info, InvalidArgument);
        let read = end(client.read(content::ReadContentRequest { digest: digest.clone(), offset: 0, size: 0 })).await;
        asked.expect(&format!("read {digest:?}"), read, InvalidArgument);
        let delete = client.delete(content::DeleteContentRequest { digest: digest.clone() }).await;
        asked.expect(&format!("delete {digest:?}"), delete, InvalidArgument);
    }
    let digest = unknown();
    asked.expect("info", client.info(content::InfoRequest { digest: digest.clone() }).await, NotFound);
    let request = content::ReadContentRequest { digest: digest.clone(), offset: 0, size: 0 };
    asked.expect("read", end(client.read(request)).await, NotFound);
    asked.expect("delete", client.delete(content::DeleteContentRequest { digest: digest.clone() }).await, NotFound);
    let info = Some(content::Info { digest: digest.clone(), ..Default::default() });
    asked.expect("update", client.update(content::UpdateRequest { info, update_mask: None }).await, NotFound);
    for reference in ["", "gone"] {
        let status = client.status(content::StatusRequest { r#ref: reference.to_owned() }).await;
        asked.expect(&format!("status {reference:?}"), status, NotFound);
        let abort = client.abort(content::AbortRequest { r#ref: reference.to_owned() }).await;
        asked.expect(&format!("abort {reference:?}"), abort, NotFound);
    }
    asked.lab.write("there", b"0123456789", HashMap::new()).await.unwrap();
    for (offset, size, code) in [(10, 0, Fine), (11, 0, OutOfRange), (-1, 0, Fine), (0, -1, Fine), (5, 100, Fine)] {
        let request = content::ReadContentRequest { digest: self::digest(b"0123456789"), offset, size };
        asked.expect(&format!("read {size} at {offset}"), end(client.read(request)).await, code);
    }
}

fn message(action: content::WriteAction, reference: &str) -> content::WriteContentRequest {
    content::WriteContentRequest { action: action.into(), r#ref: reference.to_owned(), ..Default::default() }
}

async fn writes_that_lie(asked: &mut Asked) {
    use content::WriteAction::{Commit, Stat, Write};
    use content::WriteContentRequest;
    let data: bytes::Bytes = b"data".as_slice().into();
    let write = |reference| WriteContentRequest { data: data.clone(), ..message(Write, reference) };
    let commit = |reference| WriteContentRequest { data: data.clone(), ..message(Commit, reference) };
    let lying = [
        ("no name", message(Stat, ""), InvalidArgument),
        ("an offset that is not there", WriteContentRequest { offset: 3, ..write("b") }, OutOfRange),
        ("another digest", WriteContentRequest { expected: unknown(), ..commit("d") }, FailedPrecondition),
        ("too short", WriteContentRequest { total: 5, ..commit("e") }, FailedPrecondition),
        ("too long", WriteContentRequest { total: 3, ..commit("f") }, FailedPrecondition),
        ("labels that are too long", WriteContentRequest { labels: long_labels(), ..commit("h") }, InvalidArgument),
        ("an unknown action", WriteContentRequest { action: 7, ..write("i") }, Fine),
    ];
    for (what, request, code) in lying {
        asked.expect(what, asked.lab.send(vec![request]).await, code);
    }
    // What containerd does not look at, shimd has no use for.
    let senseless = [
        ("a negative offset", WriteContentRequest { offset: -1, ..write("c") }, Fine),
        (
            "an expected digest that is none",
            WriteContentRequest { expected: "x".to_owned(), ..message(Stat, "a") },
            Fine,
        ),
        ("a negative size", WriteContentRequest { total: -1, ..commit("g") }, FailedPrecondition),
    ];
    for (what, request, theirs) in senseless {
        asked.expect_either(what, asked.lab.send(vec![request]).await, theirs, InvalidArgument);
    }
    // The last word counts.
    let first = WriteContentRequest { total: 4, ..message(Stat, "j") };
    let other = WriteContentRequest { total: 5, ..message(Stat, "j") };
    asked.expect("another total", asked.lab.send(vec![first, other]).await, Fine);
    let first = WriteContentRequest { expected: unknown(), ..message(Stat, "k") };
    let other = WriteContentRequest { expected: digest(b"other"), ..message(Stat, "k") };
    asked.expect("another expectation", asked.lab.send(vec![first, other]).await, Fine);
    asked.lab.write("l", b"data", HashMap::new()).await.unwrap();
    asked.expect("there already", asked.lab.write("m", b"data", HashMap::new()).await, AlreadyExists);
    let none = asked.lab.send(vec![message(Commit, "n")]).await;
    asked.expect("nothing", none, Fine);
}

fn image(name: &str, digest: &str, size: i64) -> Option<images::Image> {
    let target =
        Descriptor { media_type: "application/x".to_owned(), digest: digest.to_owned(), size, ..Default::default() };
    Some(images::Image { name: name.to_owned(), target: Some(target), ..Default::default() })
}

async fn images_that_cannot_be(asked: &mut Asked) {
    let mut client = asked.lab.images().await;
    let labelled = image("labels", &unknown(), 1).map(|image| images::Image { labels: long_labels(), ..image });
    let typeless = image("typeless", &unknown(), 1).map(|mut image| {
        image.target.as_mut().unwrap().media_type.clear();
        image
    });
    let rows = [
        ("no name", image("", &unknown(), 1), InvalidArgument),
        ("no target", Some(images::Image { name: "a".to_owned(), ..Default::default() }), InvalidArgument),
        ("no digest", image("a", "", 1), InvalidArgument),
        ("no right digest", image("a", "sha256:12", 1), InvalidArgument),
        ("no size", image("a", &unknown(), 0), InvalidArgument),
        ("a negative size", image("a", &unknown(), -1), InvalidArgument),
        ("no media type", typeless, InvalidArgument),
        ("labels that are too long", labelled, InvalidArgument),
        ("content that is not there", image("there", &unknown(), 1), Fine),
        ("the name is taken", image("there", &unknown(), 2), AlreadyExists),
    ];
    for (what, image, code) in rows {
        let request = images::CreateImageRequest { image: image.clone(), source_date_epoch: None };
        asked.expect(&format!("create: {what}"), client.create(request).await, code);
        let request = images::UpdateImageRequest { image, update_mask: None, source_date_epoch: None };
        // What is updated must be there first.
        let code = match what {
            "no name" => InvalidArgument,
            _ if code == InvalidArgument => NotFound,
            _ => Fine,
        };
        asked.expect(&format!("update: {what}"), client.update(request).await, code);
    }
    for (what, image) in [("no digest", image("there", "", 1)), ("no size", image("there", &unknown(), 0))] {
        let request = images::UpdateImageRequest { image, ..Default::default() };
        asked.expect(&format!("update what is there: {what}"), client.update(request).await, InvalidArgument);
    }
    let request = images::UpdateImageRequest { image: image("gone", &unknown(), 1), ..Default::default() };
    asked.expect("update what is not there", client.update(request).await, NotFound);
    for (name, code) in [("", NotFound), ("gone", NotFound)] {
        let get = client.get(images::GetImageRequest { name: name.to_owned() }).await;
        asked.expect(&format!("get {name:?}"), get, code);
        let delete = client.delete(images::DeleteImageRequest { name: name.to_owned(), ..Default::default() }).await;
        asked.expect(&format!("delete {name:?}"), delete, code);
    }
}

fn prepare(key: &str, parent: &str) -> snapshots::PrepareSnapshotRequest {
    let (key, parent) = (key.to_owned(), parent.to_owned());
    snapshots::PrepareSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key, parent, ..Default::default() }
}

fn view(key: &str, parent: &str) -> snapshots::ViewSnapshotRequest {
    let (key, parent) = (key.to_owned(), parent.to_owned());
    snapshots::ViewSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key, parent, ..Default::default() }
}

fn commit(key: &str, name: &str) -> snapshots::CommitSnapshotRequest {
    let (key, name) = (key.to_owned(), name.to_owned());
    snapshots::CommitSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key, name, ..Default::default() }
}

async fn snapshots_that_cannot_be(asked: &mut Asked) {
    let mut client = asked.lab.snapshots().await;
    for (snapshotter, key, code) in [
        ("nobody", "a", InvalidArgument),
        ("", "a", InvalidArgument),
        (SNAPSHOTTER, "gone", NotFound),
        (SNAPSHOTTER, "", NotFound),
    ] {
        let (snapshotter, key) = (snapshotter.to_owned(), key.to_owned());
        let mut expect = |what: &str, answer: Result<(), Status>| {
            asked.expect(&format!("{what} {snapshotter:?} {key:?}"), answer, code)
        };
        let request = snapshots::StatSnapshotRequest { snapshotter: snapshotter.clone(), key: key.clone() };
        expect("stat", client.stat(request).await.map(drop));
        let request = snapshots::MountsRequest { snapshotter: snapshotter.clone(), key: key.clone() };
        expect("mounts", client.mounts(request).await.map(drop));
        let request = snapshots::UsageRequest { snapshotter: snapshotter.clone(), key: key.clone() };
        expect("usage", client.usage(request).await.map(drop));
        let request = snapshots::RemoveSnapshotRequest { snapshotter: snapshotter.clone(), key: key.clone() };
        expect("remove", client.remove(request).await.map(drop));
        let request = snapshots::CommitSnapshotRequest { snapshotter: snapshotter.clone(), ..commit(&key, "name") };
        expect("commit", client.commit(request).await.map(drop));
        let info = Some(snapshots::Info { name: key.clone(), ..Default::default() });
        let request = snapshots::UpdateSnapshotRequest { snapshotter: snapshotter.clone(), info, update_mask: None };
        if key.is_empty() {
            // Without a name it is not looked for; and no parent is what a first layer has.
            asked.expect("update without a key", client.update(request).await, InvalidArgument);
            continue;
        }
        expect("update", client.update(request).await.map(drop));
        let request = snapshots::PrepareSnapshotRequest { snapshotter: snapshotter.clone(), ..prepare("new", &key) };
        expect("prepare on", client.prepare(request).await.map(drop));
        let request = snapshots::ViewSnapshotRequest { snapshotter: snapshotter.clone(), ..view("new", &key) };
        expect("view of", client.view(request).await.map(drop));
    }
    let request = snapshots::ListSnapshotsRequest { snapshotter: "nobody".to_owned(), filters: Vec::new() };
    asked.expect("list of nobody's", end(client.list(request)).await, InvalidArgument);
    let request = snapshots::PrepareSnapshotRequest { labels: long_labels(), ..prepare("labels", "") };
    asked.expect("labels that are too long", client.prepare(request).await, InvalidArgument);
    asked.expect_either("prepare without a key", client.prepare(prepare("", "")).await, Unknown, InvalidArgument);
}

async fn snapshots_in_the_wrong_state(asked: &mut Asked) {
    let mut client = asked.lab.snapshots().await;
    let key = |key: &str| (SNAPSHOTTER.to_owned(), key.to_owned());
    client.prepare(prepare("active", "")).await.unwrap();
    asked.expect("prepare what is there", client.prepare(prepare("active", "")).await, AlreadyExists);
    asked.expect("view what is there", client.view(view("active", "")).await, AlreadyExists);
    asked.expect("prepare on an active one", client.prepare(prepare("child", "active")).await, InvalidArgument);
    asked.expect("view of an active one", client.view(view("child", "active")).await, InvalidArgument);
    asked.expect("commit under its own name", client.commit(commit("active", "active")).await, AlreadyExists);
    client.prepare(prepare("work", "")).await.unwrap();
    client.commit(commit("work", "done")).await.unwrap();
    asked.expect("commit again", client.commit(commit("work", "done")).await, AlreadyExists);
    asked.expect("commit what is not there", client.commit(commit("work", "new")).await, NotFound);
    asked.expect("commit to a name that is taken", client.commit(commit("active", "done")).await, AlreadyExists);
    asked.expect("commit a committed one", client.commit(commit("done", "other")).await, FailedPrecondition);
    asked.expect_either("commit without a name", client.commit(commit("active", "")).await, Unknown, InvalidArgument);
    asked.expect("prepare under a committed one's name", client.prepare(prepare("done", "")).await, AlreadyExists);
    let (snapshotter, name) = key("done");
    asked.expect(
        "mounts of a committed one",
        client.mounts(snapshots::MountsRequest { snapshotter, key: name }).await,
        FailedPrecondition,
    );
    client.view(view("look", "done")).await.unwrap();
    asked.expect("commit a view", client.commit(commit("look", "seen")).await, FailedPrecondition);
    let (snapshotter, name) = key("done");
    let request = snapshots::RemoveSnapshotRequest { snapshotter, key: name };
    asked.expect("remove what another stands on", client.remove(request).await, FailedPrecondition);
}

fn container(id: &str) -> containers::Container {
    let runtime = Some(Runtime { name: "io.containerd.runc.v2".to_owned(), options: None });
    let spec = Some(prost_types::Any { type_url: "x".to_owned(), value: b"{}".to_vec() });
    containers::Container { id: id.to_owned(), runtime, spec, ..Default::default() }
}

async fn containers_that_cannot_be(asked: &mut Asked) {
    let mut client = asked.lab.containers().await;
    let long = "x".repeat(77);
    let rows = [
        ("no id", container(""), InvalidArgument),
        ("a path", container("a/b"), InvalidArgument),
        ("a way up", container(".."), InvalidArgument),
        ("a space", container("a b"), InvalidArgument),
        ("a long id", container(&long), InvalidArgument),
        ("no runtime", containers::Container { runtime: None, ..container("a") }, InvalidArgument),
        (
            "a runtime without a name",
            containers::Container { runtime: Some(Runtime::default()), ..container("a") },
            InvalidArgument,
        ),
        (
            "a snapshot of nobody",
            containers::Container { snapshot_key: "x".to_owned(), ..container("a") },
            InvalidArgument,
        ),
        (
            "labels that are too long",
            containers::Container { labels: long_labels(), ..container("a") },
            InvalidArgument,
        ),
        (
            "an extension without a name",
            containers::Container {
                extensions: HashMap::from([(String::new(), prost_types::Any::default())]),
                ..container("a")
            },
            InvalidArgument,
        ),
        ("all right", container("there"), Fine),
        ("the name is taken", container("there"), AlreadyExists),
    ];
    for (what, container, code) in rows {
        let request = containers::CreateContainerRequest { container: Some(container) };
        asked.expect(what, client.create(request).await, code);
    }
    for (id, code) in [("", NotFound), ("gone", NotFound), ("a/b", NotFound)] {
        let get = client.get(containers::GetContainerRequest { id: id.to_owned() }).await;
        asked.expect(&format!("get {id:?}"), get, code);
        let delete = client.delete(containers::DeleteContainerRequest { id: id.to_owned() }).await;
        asked.expect(&format!("delete {id:?}"), delete, code);
    }
    let request = containers::UpdateContainerRequest { container: Some(container("gone")), update_mask: None };
    asked.expect("update what is not there", client.update(request).await, NotFound);
    // containerd takes it from 2.0 on.
    let request = containers::CreateContainerRequest {
        container: Some(containers::Container { spec: None, ..container("bare") }),
    };
    asked.expect_either("no spec", client.create(request).await, InvalidArgument, Fine);
    let other = Some(Runtime { name: "io.containerd.other.v1".to_owned(), options: None });
    let other = containers::Container { runtime: other, ..container("there") };
    let request = containers::UpdateContainerRequest { container: Some(other), update_mask: None };
    asked.expect("another runtime", client.update(request).await, InvalidArgument);
}

async fn tasks_that_are_not_there(asked: &mut Asked) {
    let mut client = asked.lab.tasks().await;
    let id = || "gone".to_owned();
    let create = tasks::CreateTaskRequest { container_id: id(), ..Default::default() };
    asked.expect("create", client.create(create).await, NotFound);
    let (container_id, exec_id) = (id(), String::new());
    asked.expect("start", client.start(tasks::StartRequest { container_id, exec_id }).await, NotFound);
    asked.expect("delete", client.delete(tasks::DeleteTaskRequest { container_id: id() }).await, NotFound);
    let request = tasks::DeleteProcessRequest { container_id: id(), exec_id: "e".to_owned() };
    asked.expect("delete a process", client.delete_process(request).await, NotFound);
    let request = tasks::GetRequest { container_id: id(), exec_id: String::new() };
    asked.expect("get", client.get(request).await, NotFound);
    let request = tasks::KillRequest { container_id: id(), signal: 9, ..Default::default() };
    asked.expect("kill", client.kill(request).await, NotFound);
    let request = tasks::ExecProcessRequest { container_id: id(), exec_id: "e".to_owned(), ..Default::default() };
    asked.expect("exec", client.exec(request).await, NotFound);
    let request = tasks::ExecProcessRequest { container_id: id(), ..Default::default() };
    asked.expect("exec without a name", client.exec(request).await, InvalidArgument);
    let request = tasks::ResizePtyRequest { container_id: id(), ..Default::default() };
    asked.expect("resize", client.resize_pty(request).await, NotFound);
    let request = tasks::CloseIoRequest { container_id: id(), ..Default::default() };
    asked.expect("close", client.close_io(request).await, NotFound);
    asked.expect("pause", client.pause(tasks::PauseTaskRequest { container_id: id() }).await, NotFound);
    asked.expect("resume", client.resume(tasks::ResumeTaskRequest { container_id: id() }).await, NotFound);
    asked.expect("pids", client.list_pids(tasks::ListPidsRequest { container_id: id() }).await, NotFound);
    let request = tasks::CheckpointTaskRequest { container_id: id(), ..Default::default() };
    asked.expect("checkpoint", client.checkpoint(request).await, NotFound);
    let request = tasks::UpdateTaskRequest { container_id: id(), ..Default::default() };
    asked.expect("update", client.update(request).await, NotFound);
    let request = tasks::WaitRequest { container_id: id(), exec_id: String::new() };
    asked.expect("wait", client.wait(request).await, NotFound);
}

async fn leases_that_are_not_there(asked: &mut Asked) {
    let mut client = asked.lab.leases().await;
    let create = |id: &str, labels| leases::CreateRequest { id: id.to_owned(), labels };
    asked.expect("no id", client.create(create("", HashMap::new())).await, Fine);
    // Labels of everything else have this bound in containerd, too.
    let long = client.create(create("long", long_labels())).await;
    asked.expect_either("labels that are too long", long, Fine, InvalidArgument);
    asked.expect("a new one", client.create(create("l", HashMap::new())).await, Fine);
    asked.expect("a second one", client.create(create("l", HashMap::new())).await, AlreadyExists);
    asked.expect("delete", client.delete(leases::DeleteRequest { id: "gone".to_owned(), sync: false }).await, NotFound);
    let request = leases::ListResourcesRequest { id: "gone".to_owned() };
    asked.expect("resources of none", client.list_resources(request).await, NotFound);
    let resource = |id: &str, kind: &str| Some(leases::Resource { id: id.to_owned(), r#type: kind.to_owned() });
    let rows = [
        ("of no lease", "gone", resource(&unknown(), "content"), NotFound),
        ("a kind that is none", "l", resource("x", "nonsense"), Unimplemented),
        ("no kind", "l", resource("x", ""), Unimplemented),
        ("a digest that is none", "l", resource("x", "content"), InvalidArgument),
        ("snapshots without a snapshotter", "l", resource("x", "snapshots"), InvalidArgument),
        ("content that is not there", "l", resource(&unknown(), "content"), Fine),
        ("a snapshot that is not there", "l", resource("x", "snapshots/overlayfs"), Fine),
        ("an ingest that is not there", "l", resource("x", "ingests"), Fine),
        ("too deep a kind", "l", resource("x", "snapshots/overlayfs/more"), InvalidArgument),
    ];
    for (what, id, resource, code) in rows {
        let id = id.to_owned();
        let request = leases::AddResourceRequest { id: id.clone(), resource: resource.clone() };
        asked.expect(&format!("add: {what}"), client.add_resource(request).await, code);
        let request = leases::DeleteResourceRequest { id, resource };
        asked.expect(&format!("delete: {what}"), client.delete_resource(request).await, code);
    }
}

async fn namespaces_that_cannot_be(asked: &mut Asked) {
    let mut client = NamespacesClient::new(asked.lab.connect().await);
    let namespace = |name: &str, labels| Some(namespaces::Namespace { name: name.to_owned(), labels });
    let long = "x".repeat(77);
    let rows = [
        ("", HashMap::new(), InvalidArgument),
        ("a/b", HashMap::new(), InvalidArgument),
        ("..", HashMap::new(), InvalidArgument),
        (long.as_str(), HashMap::new(), InvalidArgument),
        ("labels", long_labels(), InvalidArgument),
        ("there", HashMap::new(), Fine),
        ("there", HashMap::new(), AlreadyExists),
    ];
    for (name, labels, code) in rows {
        let request = namespaces::CreateNamespaceRequest { namespace: namespace(name, labels) };
        asked.expect(&format!("create {name:?}"), client.create(request).await, code);
    }
    // One that is not there begins to be: the Go client sets a namespace's default snapshotter before anything is in
    // it.
    let labels = HashMap::from([("a".to_owned(), "b".to_owned())]);
    for (name, path, code) in
        [("new", "labels.a", Fine), ("never", "name", InvalidArgument), ("nor-this", "labels", InvalidArgument)]
    {
        let update_mask = Some(FieldMask { paths: vec![path.to_owned()] });
        let request = namespaces::UpdateNamespaceRequest { namespace: namespace(name, labels.clone()), update_mask };
        asked.expect(&format!("update {name:?}"), client.update(request).await, code);
        let list = client.list(namespaces::ListNamespacesRequest::default()).await.unwrap().into_inner().namespaces;
        assert_eq!(list.iter().any(|found| found.name == name && found.labels == labels), code == Fine, "{name}");
    }
    // One without a name: containerd answers with an empty message.
    for (name, theirs, ours) in [("", Fine, InvalidArgument), ("gone", Fine, Fine)] {
        let get = client.get(namespaces::GetNamespaceRequest { name: name.to_owned() }).await;
        asked.expect_either(&format!("get {name:?}"), get, theirs, ours);
        let delete = client.delete(namespaces::DeleteNamespaceRequest { name: name.to_owned() }).await;
        asked.expect(&format!("delete {name:?}"), delete, NotFound);
    }
    asked.lab.write("r", b"data", HashMap::new()).await.unwrap();
    let delete = client.delete(namespaces::DeleteNamespaceRequest { name: "default".to_owned() }).await;
    asked.expect("delete one with content", delete, FailedPrecondition);
    for (name, code) in
        [("", FailedPrecondition), ("a/b", InvalidArgument), (long.as_str(), InvalidArgument), ("-", InvalidArgument)]
    {
        use content::content_client::ContentClient;
        let info = content::InfoRequest { digest: unknown() };
        let told = ContentClient::new(asked.lab.connect_as(name, None).await).info(info).await;
        asked.expect(&format!("in {name:?}"), told, code);
    }
}

async fn filters_that_do_not_parse(asked: &mut Asked) {
    let lab = &asked.lab;
    let (mut content, mut images, mut snapshots) = (lab.content().await, lab.images().await, lab.snapshots().await);
    let (mut containers, mut leases, mut events) = (lab.containers().await, lab.leases().await, lab.events().await);
    for filter in BAD_FILTERS {
        let filters = || vec![filter.to_owned()];
        let mut expect = |what: &str, answer: Result<(), Status>| {
            // Here containerd forgets what kind of error it was.
            let theirs = if ["snapshots", "events"].contains(&what) { Unknown } else { InvalidArgument };
            asked.expect_either(&format!("{what} {filter:?}"), answer, theirs, InvalidArgument);
        };
        expect("content", end(content.list(content::ListContentRequest { filters: filters() })).await);
        let request = content::ListStatusesRequest { filters: filters() };
        expect("ingests", content.list_statuses(request).await.map(drop));
        expect("images", images.list(images::ListImagesRequest { filters: filters() }).await.map(drop));
        let request = snapshots::ListSnapshotsRequest { snapshotter: SNAPSHOTTER.to_owned(), filters: filters() };
        expect("snapshots", end(snapshots.list(request)).await);
        let request = containers::ListContainersRequest { filters: filters() };
        expect("containers", containers.list(request.clone()).await.map(drop));
        expect("containers, one by one", end(containers.list_stream(request)).await);
        expect("leases", leases.list(leases::ListRequest { filters: filters() }).await.map(drop));
        let subscribed = events.subscribe(events::SubscribeRequest { filters: filters() });
        expect("events", end(subscribed).await);
    }
}

async fn masks_that_name_nothing(asked: &mut Asked) {
    let lab = &asked.lab;
    let (mut content, mut images, mut snapshots) = (lab.content().await, lab.images().await, lab.snapshots().await);
    let mut containers = lab.containers().await;
    lab.write("r", b"data", HashMap::new()).await.unwrap();
    let request = images::CreateImageRequest { image: image("there", &digest(b"data"), 4), source_date_epoch: None };
    images.create(request).await.unwrap();
    snapshots.prepare(prepare("there", "")).await.unwrap();
    containers.create(containers::CreateContainerRequest { container: Some(container("there")) }).await.unwrap();
    for (path, code) in [
        ("", InvalidArgument),
        ("nonsense", InvalidArgument),
        ("name", InvalidArgument),
        ("labels", Fine),
        ("labels.x", Fine),
        ("label.x", InvalidArgument),
        ("created_at", InvalidArgument),
    ] {
        let info = Some(content::Info { digest: digest(b"data"), ..Default::default() });
        let request = content::UpdateRequest { info, update_mask: mask(path) };
        asked.expect(&format!("content {path:?}"), content.update(request).await, code);
        let image = image("there", &digest(b"data"), 4);
        let request = images::UpdateImageRequest { image, update_mask: mask(path), source_date_epoch: None };
        asked.expect(&format!("image {path:?}"), images.update(request).await, code);
        let info = Some(snapshots::Info { name: "there".to_owned(), ..Default::default() });
        let request =
            snapshots::UpdateSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), info, update_mask: mask(path) };
        asked.expect(&format!("snapshot {path:?}"), snapshots.update(request).await, code);
        let request =
            containers::UpdateContainerRequest { container: Some(container("there")), update_mask: mask(path) };
        asked.expect(&format!("container {path:?}"), containers.update(request).await, code);
    }
    // The mask has the name that the field has in Go.
    let update_mask = mask("snapshotkey");
    let request = containers::UpdateContainerRequest { container: Some(container("there")), update_mask };
    asked.expect("container \"snapshotkey\"", containers.update(request).await, Fine);
    for path in ["runtime", "snapshotter", "id", "spec.x", "target.x", "snapshot_key"] {
        let request =
            containers::UpdateContainerRequest { container: Some(container("there")), update_mask: mask(path) };
        asked.expect(&format!("container {path:?}"), containers.update(request).await, InvalidArgument);
    }
    for path in ["target.x", "target.digest"] {
        let image = image("there", &digest(b"data"), 4);
        let request = images::UpdateImageRequest { image, update_mask: mask(path), source_date_epoch: None };
        asked.expect(&format!("image {path:?}"), images.update(request).await, InvalidArgument);
    }
}

fn descriptor(media_type: &str, digest: &str, size: usize) -> Option<Descriptor> {
    let (media_type, digest) = (media_type.to_owned(), digest.to_owned());
    Some(Descriptor { media_type, digest, size: size as i64, annotations: HashMap::new() })
}

async fn layers_that_are_none(asked: &mut Asked) {
    let good = rig::gzip(&rig::layer(&[("file", b"contents that are long enough")]));
    let truncated = good[..good.len() - 12].to_vec();
    let mut damaged = good.clone();
    let end = damaged.len();
    damaged[end - 6] ^= 1;
    let tar = rig::layer(&[("file", &[7; 2000])]);
    let short = rig::gzip(&tar[..1024]);
    let mut sum = tar.clone();
    sum[150] ^= 1;
    let encrypted = format!("{GZIP_LAYER}+encrypted");
    let rows = [
        ("no blob", &b""[..], GZIP_LAYER, 0, NotFound, NotFound),
        ("a media type that is none", &good, "application/x", good.len(), Unknown, Unimplemented),
        ("an encrypted one", &good, encrypted.as_str(), good.len(), Unknown, Unimplemented),
        ("no gzip", b"this is no gzip", GZIP_LAYER, 15, Unknown, InvalidArgument),
        ("a truncated one", &truncated, GZIP_LAYER, truncated.len(), Unknown, InvalidArgument),
        ("a damaged one", &damaged, GZIP_LAYER, damaged.len(), Unknown, InvalidArgument),
        ("an archive that ends within a file", &short, GZIP_LAYER, short.len(), Unknown, InvalidArgument),
        ("a header with a wrong sum", &sum, GZIP_LAYER, sum.len(), Unknown, InvalidArgument),
        ("a size that lies", &good, GZIP_LAYER, good.len() + 1, Fine, Fine),
        ("all right", &good, GZIP_LAYER, good.len(), Fine, Fine),
    ];
    for (number, (what, blob, media_type, size, theirs, ours)) in rows.into_iter().enumerate() {
        let digest = if blob.is_empty() { unknown() } else { digest(blob) };
        if !blob.is_empty() {
            // Several rows have the same blob.
            let _ = asked.lab.write(&format!("r{number}"), blob, HashMap::new()).await;
        }
        let mounts = asked.lab.prepare(&format!("s{number}"), "").await;
        let request = diff::ApplyRequest { diff: descriptor(media_type, &digest, size), mounts, ..Default::default() };
        let told = asked.lab.diff().await.apply(request).await;
        asked.expect_either(what, told, theirs, ours);
    }
    let nowhere = vec![Mount { r#type: "bind".to_owned(), source: "/no/such/place".to_owned(), ..Default::default() }];
    let request = diff::ApplyRequest {
        diff: descriptor(GZIP_LAYER, &digest(&good), good.len()),
        mounts: nowhere.clone(),
        ..Default::default()
    };
    let told = asked.lab.diff().await.apply(request).await;
    asked.expect("nowhere", told, Unknown);
    let right = asked.lab.prepare("right", "").await;
    for (what, left, right, media_type, code) in [
        ("of nowhere", nowhere.clone(), right.clone(), "", Unknown),
        ("of nothing", Vec::new(), Vec::new(), "", Fine),
        ("with nothing below", Vec::new(), right.clone(), "", Fine),
        ("with nothing above", right.clone(), Vec::new(), "", Fine),
        ("in a form that is none", right.clone(), right, "application/x", Unimplemented),
    ] {
        let (media_type, r#ref) = (media_type.to_owned(), "d".to_owned());
        let request = diff::DiffRequest { left, right, media_type, r#ref, ..Default::default() };
        let told = asked.lab.diff().await.diff(request).await;
        asked.expect(&format!("a difference {what}"), told, code);
    }
}
