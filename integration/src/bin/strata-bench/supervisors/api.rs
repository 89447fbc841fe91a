//! A client of containerd's API, the same for both: containers of busybox, and their tasks.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use proto_containerd::NAMESPACE_HEADER;
use proto_containerd::services::containers::containers_client::ContainersClient;
use proto_containerd::services::containers::{Container, CreateContainerRequest, GetContainerRequest, container};
use proto_containerd::services::containers::{DeleteContainerRequest, ListContainersRequest};
use proto_containerd::services::snapshots::snapshots_client::SnapshotsClient;
use proto_containerd::services::snapshots::{PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest};
use proto_containerd::services::tasks::tasks_client::TasksClient;
use proto_containerd::services::tasks::{CreateTaskRequest, DeleteTaskRequest, KillRequest, StartRequest, WaitRequest};
use proto_containerd::types::Mount;
use serde_json::Value;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

pub(super) const SNAPSHOTTER: &str = "overlayfs";
/// A snapshot that bears it is not collected.
const ROOT_LABEL: &str = "containerd.io/gc.root";

/// Says in which namespace every request is.
#[derive(Clone)]
pub(super) struct Namespace(MetadataValue<Ascii>);

impl Interceptor for Namespace {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(NAMESPACE_HEADER, self.0.clone());
        Ok(request)
    }
}

pub(super) type Connection = InterceptedService<Channel, Namespace>;

/// A connection, and what every container of the benchmark is made from.
#[derive(Clone)]
pub(super) struct Api {
    connection: Connection,
    namespace: String,
    runtime: String,
    template: Template,
}

/// What `ctr` makes of the image: its spec and the snapshot that its root file system stands on.
#[derive(Clone, Default)]
struct Template {
    image: String,
    spec: Value,
    parent: String,
}

/// How a container differs from others.
#[derive(Clone, Copy, Default)]
pub(super) struct Wish<'a> {
    pub(super) arguments: &'a [&'a str],
    /// A file that it sees as `/input`.
    pub(super) input: Option<&'a Path>,
}

impl Api {
    /// Connects, and takes the container `template` that `ctr` has made for a pattern.
    pub(super) async fn connect(socket: &Path, namespace: &str, runtime: &str) -> Api {
        let connection = InterceptedService::new(channel(socket).await, Namespace(namespace.parse().expect("a word")));
        let (namespace, runtime) = (namespace.to_owned(), runtime.to_owned());
        let mut api = Api { connection, namespace, runtime, template: Template::default() };
        let pattern = api.inspect("template").await;
        let stat = StatSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key: pattern.snapshot_key };
        let snapshot = api.snapshots().stat(stat).await.expect("the template's snapshot").into_inner();
        let spec = serde_json::from_slice(&pattern.spec.expect("the template's spec").value);
        let parent = snapshot.info.expect("what is known of it").parent;
        api.template = Template { image: pattern.image, spec: spec.expect("a spec is JSON"), parent };
        api
    }

    /// The same over a connection of its own.
    pub(super) async fn again(&self, socket: &Path) -> Api {
        let namespace = Namespace(self.namespace.parse().expect("a word"));
        Api { connection: InterceptedService::new(channel(socket).await, namespace), ..self.clone() }
    }

    pub(super) fn connection(&self) -> Connection {
        self.connection.clone()
    }

    pub(super) fn containers(&self) -> ContainersClient<Connection> {
        ContainersClient::new(self.connection())
    }

    pub(super) fn tasks(&self) -> TasksClient<Connection> {
        TasksClient::new(self.connection())
    }

    fn snapshots(&self) -> SnapshotsClient<Connection> {
        SnapshotsClient::new(self.connection())
    }

    pub(super) async fn inspect(&self, id: &str) -> Container {
        let request = GetContainerRequest { id: id.to_owned() };
        self.containers().get(request).await.expect("get a container").into_inner().container.expect("a container")
    }

    /// How many containers there are that the filters want. In a stream, as containerd's client asks: one message has a
    /// bound.
    pub(super) async fn list(&self, filters: Vec<String>) -> usize {
        let answer = self.containers().list_stream(ListContainersRequest { filters }).await;
        let mut stream = answer.expect("list the containers").into_inner();
        let mut count = 0;
        while stream.message().await.expect("list the containers").is_some() {
            count += 1;
        }
        count
    }

    /// A record alone, without a snapshot.
    pub(super) async fn record(&self, id: &str, wish: Wish<'_>) {
        let spec =
            prost_types::Any { type_url: proto_containerd::json_type::SPEC.to_owned(), value: self.spec(id, wish) };
        let runtime = container::Runtime { name: self.runtime.clone(), options: None };
        let container = Container {
            id: id.to_owned(),
            image: self.template.image.clone(),
            runtime: Some(runtime),
            spec: Some(spec),
            snapshotter: SNAPSHOTTER.to_owned(),
            snapshot_key: id.to_owned(),
            ..Container::default()
        };
        let request = CreateContainerRequest { container: Some(container) };
        self.containers().create(request).await.expect("create a container");
    }

    fn spec(&self, id: &str, wish: Wish<'_>) -> Vec<u8> {
        let mut spec = self.template.spec.clone();
        spec["process"]["args"] = wish.arguments.into();
        spec["linux"]["cgroupsPath"] = format!("/{}/{id}", self.namespace).into();
        if let (Some(input), Some(mounts)) = (wish.input, spec["mounts"].as_array_mut()) {
            let options = ["rbind", "ro"];
            let mount =
                serde_json::json!({"destination": "/input", "type": "bind", "source": input, "options": options});
            mounts.push(mount);
        }
        serde_json::to_vec(&spec).expect("JSON is written")
    }

    /// A container with its snapshot; where its root file system is.
    pub(super) async fn container(&self, id: &str, wish: Wish<'_>) -> Vec<Mount> {
        let mounts = self.snapshot(id, &self.template.parent).await;
        self.record(id, wish).await;
        mounts
    }

    /// A snapshot that can be written to, over `parent` or over nothing.
    pub(super) async fn snapshot(&self, key: &str, parent: &str) -> Vec<Mount> {
        let prepare = PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: HashMap::from([(ROOT_LABEL.to_owned(), "bench".to_owned())]),
        };
        self.snapshots().prepare(prepare).await.expect("prepare a snapshot").into_inner().mounts
    }

    pub(super) async fn remove_snapshot(&self, key: &str) {
        let remove = RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.to_owned(), key: key.to_owned() };
        self.snapshots().remove(remove).await.expect("remove a snapshot");
    }

    /// Takes away what [`Api::container`] has made.
    pub(super) async fn remove(&self, id: &str) {
        self.forget(id).await;
        self.remove_snapshot(id).await;
    }

    /// Takes away a record.
    pub(super) async fn forget(&self, id: &str) {
        self.containers().delete(DeleteContainerRequest { id: id.to_owned() }).await.expect("delete a container");
    }

    /// Creates and starts a task whose stdout and stderr go where it says (nowhere when empty).
    pub(super) async fn start(&self, id: &str, rootfs: Vec<Mount>, [stdout, stderr]: [&str; 2]) {
        let (container_id, stdout, stderr) = (id.to_owned(), stdout.to_owned(), stderr.to_owned());
        let create = CreateTaskRequest { container_id, rootfs, stdout, stderr, ..CreateTaskRequest::default() };
        self.tasks().create(create).await.expect("create a task");
        let start = StartRequest { container_id: id.to_owned(), exec_id: String::new() };
        self.tasks().start(start).await.expect("start a task");
    }

    /// Waits for a task's end; its exit status.
    pub(super) async fn wait(&self, id: &str) -> u32 {
        let wait = WaitRequest { container_id: id.to_owned(), exec_id: String::new() };
        self.tasks().wait(wait).await.expect("wait for a task").into_inner().exit_status
    }

    /// Deletes a task that has ended.
    pub(super) async fn delete(&self, id: &str) {
        self.tasks().delete(DeleteTaskRequest { container_id: id.to_owned() }).await.expect("delete a task");
    }

    /// Kills a task, deletes it, and takes its container away.
    pub(super) async fn kill_and_remove(&self, id: &str) {
        let kill = KillRequest { container_id: id.to_owned(), signal: 9, all: true, ..KillRequest::default() };
        self.tasks().kill(kill).await.expect("kill a task");
        self.wait(id).await;
        self.delete(id).await;
        self.remove(id).await;
    }
}

async fn channel(socket: &Path) -> Channel {
    let socket = PathBuf::from(socket);
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://supervisor").connect_with_connector(connector).await.expect("connect to a supervisor")
}
