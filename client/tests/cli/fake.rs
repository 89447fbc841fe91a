//! A fake engined: the three services over a unix socket, with programs of its own in place of containers.
//!
//! A container's image names the program it plays (see [`play`]). Its output goes into a log that outlives the server, as
//! the shim's does, so that a server that "dies" ([`Fake::die`]) and is started again goes on where it was.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use prost::Message;
use proto_engine::containers_server::{Containers, ContainersServer};
use proto_engine::images_server::{Images, ImagesServer};
use proto_engine::system_server::{System, SystemServer};
use proto_engine::*;
use strata_fault::{Fault, Layer, code};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

pub(crate) const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// Bytes of a piece of output.
const PIECE: usize = 32 << 10;

/// What a container wrote and how it ended.
#[derive(Default)]
struct Record {
    log: Vec<(Stream, Vec<u8>)>,
    exit: Option<Exit>,
    input: Vec<u8>,
    input_closed: bool,
    signal: Option<String>,
}

impl Record {
    fn write(&mut self, stream: Stream, data: &[u8]) {
        self.log.extend(data.chunks(PIECE).map(|piece| (stream, piece.to_vec())));
    }
}

/// What tests look at, and what outlives the server.
#[derive(Default)]
pub(crate) struct Shared {
    record: Record,
    /// Every request, as Debug shows it, with its name.
    pub(crate) requests: Vec<(&'static str, String)>,
    pub(crate) run: Option<RunOpen>,
    pub(crate) resizes: Vec<(u32, u32)>,
    pub(crate) attachments: Vec<AttachOpen>,
    pub(crate) traceparents: Vec<String>,
    /// Break the connection after so many pieces of output, once.
    pub(crate) break_after: Option<usize>,
    /// Break the connection between `created` and `started`, once.
    pub(crate) break_before_start: bool,
    /// Answers of lists and inspections.
    pub(crate) containers: Vec<ContainerSummary>,
    pub(crate) details: HashMap<String, ContainerDetail>,
    pub(crate) images: Vec<ImageSummary>,
    pub(crate) pull: Vec<PullProgress>,
    pub(crate) events: Vec<Event>,
    /// Hold the stream of events open after the last one, once.
    pub(crate) hold_events: bool,
}

#[derive(Clone)]
struct Service {
    shared: Arc<Mutex<Shared>>,
    changed: Arc<Notify>,
    broke: Arc<Notify>,
}

/// A running fake.
pub(crate) struct Fake {
    folder: tempfile::TempDir,
    service: Service,
    runtime: Option<Runtime>,
}

impl Fake {
    pub(crate) fn start() -> Fake {
        let service = Service { shared: Arc::default(), changed: Arc::default(), broke: Arc::default() };
        let mut fake = Fake { folder: tempfile::tempdir().expect("a folder"), service, runtime: None };
        fake.live();
        fake
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("engined.sock")
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn shared(&self) -> MutexGuard<'_, Shared> {
        self.service.shared.lock().expect("no test panicked under it")
    }

    /// Ends the server as SIGKILL would: every connection is cut.
    pub(crate) fn die(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }

    /// Starts the server (again).
    pub(crate) fn live(&mut self) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let _ = std::fs::remove_file(self.socket());
        let listener = runtime.block_on(async { UnixListener::bind(self.socket()) }).expect("a socket");
        let service = self.service.clone();
        runtime.spawn(async move {
            tonic::transport::Server::builder()
                .add_service(ContainersServer::new(service.clone()))
                .add_service(ImagesServer::new(service.clone()))
                .add_service(SystemServer::new(service))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
        });
        self.runtime = Some(runtime);
    }

    /// Waits until `break_after` was reached.
    pub(crate) fn wait_for_break(&self) {
        let broke = Arc::clone(&self.service.broke);
        let runtime = self.runtime.as_ref().expect("it lives");
        runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(20), broke.notified()).await })
            .expect("a break");
    }

    /// Waits until `holds` of what tests look at.
    pub(crate) fn wait_until(&self, holds: impl Fn(&Shared) -> bool) {
        let begun = std::time::Instant::now();
        while !holds(&self.shared()) {
            assert!(begun.elapsed() < Duration::from_secs(20), "waited in vain: {:?}", self.shared().requests);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.die();
    }
}

impl Service {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("no test panicked under it")
    }

    fn note<T: std::fmt::Debug>(&self, name: &'static str, request: &Request<T>) {
        let mut shared = self.shared();
        shared.requests.push((name, format!("{:?}", request.get_ref())));
        if let Some(parent) = request.metadata().get("traceparent") {
            shared.traceparents.push(parent.to_str().expect("text").to_owned());
        }
    }

    fn note_stream(&self, name: &'static str, metadata: &tonic::metadata::MetadataMap) {
        let mut shared = self.shared();
        shared.requests.push((name, String::new()));
        if let Some(parent) = metadata.get("traceparent") {
            shared.traceparents.push(parent.to_str().expect("text").to_owned());
        }
    }

    fn change(&self, change: impl FnOnce(&mut Record)) {
        change(&mut self.shared().record);
        self.changed.notify_waiters();
    }

    /// Waits until `of` says something of the record.
    async fn wait<T>(&self, of: impl Fn(&Record) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(value) = of(&self.shared().record) {
                return value;
            }
            changed.await;
        }
    }

    fn take_input(&self, input: Input) {
        match input.kind {
            Some(input::Kind::Stdin(bytes)) => self.change(|record| record.input.extend(bytes)),
            Some(input::Kind::CloseStdin(_)) => self.change(|record| record.input_closed = true),
            Some(input::Kind::Resize(size)) => self.shared().resizes.push((size.width, size.height)),
            Some(input::Kind::Signal(signal)) => self.change(|record| record.signal = Some(signal)),
            None => {}
        }
    }

    /// Sends the log from piece `from` on, and at last the exit. Ends early when the connection is to break.
    async fn follow<T>(
        &self,
        from: u64,
        to: &mpsc::Sender<Result<T, Status>>,
        message_of: fn(Result<Output, Exit>) -> T,
    ) {
        let mut at = from as usize;
        loop {
            let next = self
                .wait(|record| match (record.log.get(at), &record.exit) {
                    (Some((stream, data)), _) => Some(Ok((*stream, data.clone()))),
                    (None, Some(exit)) => Some(Err(exit.clone())),
                    (None, None) => None,
                })
                .await;
            let message = match next {
                Ok((stream, data)) => {
                    at += 1;
                    Ok(Output { stream: stream.into(), data: data.into(), next: at as u64, lost: 0 })
                }
                Err(exit) => Err(exit),
            };
            let is_exit = message.is_err();
            if to.send(Ok(message_of(message))).await.is_err() || is_exit {
                return;
            }
            if self.shared().break_after.take_if(|after| *after <= at).is_some() {
                self.broke.notify_one();
                std::future::pending::<()>().await;
            }
        }
    }
}

/// What the program of `image` does.
async fn play(service: Service, image: String, command: Vec<String>, tty: bool) {
    let number = |at: usize| command.get(at).and_then(|word| word.parse::<usize>().ok()).unwrap_or(0);
    let ended = |code: u32| Exit { code, ..Exit::default() };
    let exit = match image.as_str() {
        "echo" => {
            service.change(|record| record.write(Stream::Stdout, format!("{}\n", command.join(" ")).as_bytes()));
            ended(0)
        }
        "exit" => ended(number(0) as u32),
        "both" => {
            service.change(|record| {
                record.write(Stream::Stdout, b"to stdout\n");
                record.write(Stream::Stderr, b"to stderr\n");
            });
            ended(3)
        }
        "flood" => {
            let bytes: Vec<u8> = (0..number(0)).map(|at| (at % 251) as u8).collect();
            service.change(|record| record.write(Stream::Stdout, &bytes));
            ended(0)
        }
        "cat" => {
            let end = if tty { b'\x04' } else { b'\0' };
            loop {
                let bytes = service
                    .wait(|record| (!record.input.is_empty() || record.input_closed).then(|| record.input.clone()))
                    .await;
                service.change(|record| {
                    record.input.drain(..bytes.len());
                    record.write(Stream::Stdout, &bytes);
                });
                if bytes.is_empty() || (tty && bytes.contains(&end)) {
                    break ended(0);
                }
            }
        }
        "sleep" => {
            service.change(|record| record.write(Stream::Stdout, b"asleep\n"));
            let signal = service.wait(|record| record.signal.clone()).await;
            let number = if signal == "INT" { 2 } else { 15 };
            Exit { code: 128 + number, signal: number, ..Exit::default() }
        }
        "oom" => Exit {
            code: 137,
            signal: 9,
            oom_killed: true,
            problem: Some(Problem {
                layer: "kernel".to_owned(),
                step: "watch".to_owned(),
                code: code::OOM_KILLED.to_owned(),
                message: "the memory limit of 64 MiB was reached".to_owned(),
                ..Problem::default()
            }),
            ..Exit::default()
        },
        _ => ended(255),
    };
    service.change(|record| record.exit = Some(exit));
}

/// The faults that images of these names stand for.
fn fault_of(image: &str) -> Option<Fault> {
    let fault = match image {
        "missing" => {
            Fault::new(Layer::Registry, "pull", code::IMAGE_NOT_FOUND, "pull docker.io/library/missing:latest")
                .cause("manifest unknown")
                .hint("check the name")
        }
        "nocommand" => Fault::new(Layer::Runtime, "start", code::COMMAND_NOT_FOUND, "run \"nope\"").cause("ENOENT"),
        "noexec" => {
            Fault::new(Layer::Runtime, "start", code::COMMAND_NOT_EXECUTABLE, "run \"/etc/passwd\"").cause("EACCES")
        }
        "badmount" => Fault::new(Layer::Kernel, "create:mounts", code::MOUNT_SOURCE_MISSING, "mount /x on /y"),
        _ => return None,
    };
    Some(fault)
}

fn spans() -> Vec<u8> {
    let span = |name: &str, layer: &str, at_us: u64, took_us: u64| strata_trace::Span {
        name: name.to_owned(),
        layer: layer.to_owned(),
        start_ns: strata_trace::now_ns() + at_us * 1000,
        duration_ns: took_us * 1000,
        detail: String::new(),
    };
    let spans = vec![
        span("validate", "engine", 0, 100),
        span("create", "runtime", 100, 300),
        span("clone", "runtime", 150, 100),
    ];
    strata_trace::Spans { spans }.encode_to_vec()
}

fn of_run(message: Result<Output, Exit>) -> RunEvent {
    let kind = match message {
        Ok(output) => run_event::Kind::Output(output),
        Err(exit) => run_event::Kind::Exited(exit),
    };
    RunEvent { kind: Some(kind) }
}

fn of_attach(message: Result<Output, Exit>) -> AttachEvent {
    let kind = match message {
        Ok(output) => attach_event::Kind::Output(output),
        Err(exit) => attach_event::Kind::Exited(exit),
    };
    AttachEvent { kind: Some(kind) }
}

fn of_exec(message: Result<Output, Exit>) -> ExecEvent {
    let kind = match message {
        Ok(output) => exec_event::Kind::Output(output),
        Err(exit) => exec_event::Kind::Exited(exit),
    };
    ExecEvent { kind: Some(kind) }
}

type Events<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl Containers for Service {
    type RunStream = Events<RunEvent>;
    type AttachStream = Events<AttachEvent>;
    type ExecStream = Events<ExecEvent>;
    type LogsStream = UnboundedReceiverStream<Result<LogsEvent, Status>>;

    async fn create(&self, request: Request<CreateRequest>) -> Result<Response<CreateResponse>, Status> {
        self.note("create", &request);
        let spec = request.into_inner().spec.unwrap_or_default();
        let here = self.shared().images.iter().any(|image| image.references.contains(&spec.image));
        if spec.image == "notlocal" && !here {
            return Err(Fault::new(Layer::Engine, "validate", code::IMAGE_NOT_LOCAL, "look for notlocal").into());
        }
        Ok(Response::new(CreateResponse {
            id: ID.to_owned(),
            warnings: vec!["a warning".to_owned()],
            name: "n".to_owned(),
        }))
    }

    async fn start(&self, request: Request<StartRequest>) -> Result<Response<StartResponse>, Status> {
        self.note("start", &request);
        let name = request.into_inner().container;
        if name == "gone" {
            return Err(Fault::new(Layer::Engine, "validate", code::CONTAINER_NOT_FOUND, "find container gone").into());
        }
        self.change(|record| {
            record.exit = None;
            record.write(Stream::Stdout, b"started again\n");
            record.exit = Some(Exit { code: 5, ..Exit::default() });
        });
        Ok(Response::new(StartResponse { id: name }))
    }

    async fn run(&self, request: Request<Streaming<RunRequest>>) -> Result<Response<Self::RunStream>, Status> {
        let (metadata, _, mut requests) = request.into_parts();
        self.note_stream("run", &metadata);
        let traced = metadata.get("traceparent").is_some();
        let Some(RunRequest { kind: Some(run_request::Kind::Open(open)) }) = requests.message().await? else {
            return Err(Status::invalid_argument("open first"));
        };
        self.shared().run = Some(open.clone());
        let spec = open.spec.clone().unwrap_or_default();
        if let Some(fault) = fault_of(&spec.image).filter(|fault| fault.layer != Layer::Runtime) {
            return Err(fault.into());
        }
        let (sender, receiver) = mpsc::channel(4);
        let service = self.clone();
        tokio::spawn(async move {
            let event = |kind| Ok(RunEvent { kind: Some(kind) });
            let pull = service.shared().pull.clone();
            for progress in pull {
                let _ = sender.send(event(run_event::Kind::Pull(progress))).await;
            }
            let created = CreateResponse { id: ID.to_owned(), warnings: Vec::new(), name: "n".to_owned() };
            let _ = sender.send(event(run_event::Kind::Created(created))).await;
            if let Some(fault) = fault_of(&spec.image) {
                let _ = sender.send(Err(fault.into())).await;
                return;
            }
            if std::mem::take(&mut service.shared().break_before_start) {
                service.broke.notify_one();
                std::future::pending::<()>().await;
            }
            tokio::spawn(play(service.clone(), spec.image.clone(), spec.command.clone(), spec.tty));
            let _ = sender.send(event(run_event::Kind::Started(StartResponse { id: ID.to_owned() }))).await;
            if open.detach {
                return;
            }
            let inputs = service.clone();
            tokio::spawn(async move {
                while let Ok(Some(RunRequest { kind: Some(run_request::Kind::Input(input)) })) =
                    requests.message().await
                {
                    inputs.take_input(input);
                }
            });
            service.follow(0, &sender, of_run).await;
            if traced {
                let _ = sender.send(event(run_event::Kind::Spans(spans()))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn attach(&self, request: Request<Streaming<AttachRequest>>) -> Result<Response<Self::AttachStream>, Status> {
        self.note_stream("attach", request.metadata());
        let mut requests = request.into_inner();
        let Some(AttachRequest { kind: Some(attach_request::Kind::Open(open)) }) = requests.message().await? else {
            return Err(Status::invalid_argument("open first"));
        };
        let from = if open.from_start || open.offset > 0 { open.offset } else { self.shared().record.log.len() as u64 };
        self.shared().attachments.push(open);
        let (sender, receiver) = mpsc::channel(4);
        let service = self.clone();
        tokio::spawn(async move {
            let event = |kind| Ok(AttachEvent { kind: Some(kind) });
            let opened = AttachOpened { id: ID.to_owned(), tty: false };
            let _ = sender.send(event(attach_event::Kind::Opened(opened))).await;
            let inputs = service.clone();
            tokio::spawn(async move {
                while let Ok(Some(AttachRequest { kind: Some(attach_request::Kind::Input(input)) })) =
                    requests.message().await
                {
                    inputs.take_input(input);
                }
            });
            service.follow(from, &sender, of_attach).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn exec(&self, request: Request<Streaming<ExecRequest>>) -> Result<Response<Self::ExecStream>, Status> {
        self.note_stream("exec", request.metadata());
        let mut requests = request.into_inner();
        let Some(ExecRequest { kind: Some(exec_request::Kind::Open(open)) }) = requests.message().await? else {
            return Err(Status::invalid_argument("open first"));
        };
        self.shared().requests.push(("exec open", format!("{open:?}")));
        let mut command = open.command.clone().into_iter();
        let program = command.next().unwrap_or_default();
        if program == "nope" {
            return Err(fault_of("nocommand").expect("a fault").into());
        }
        let (sender, receiver) = mpsc::channel(4);
        let service = self.clone();
        tokio::spawn(async move {
            let event = |kind| Ok(ExecEvent { kind: Some(kind) });
            let _ = sender.send(event(exec_event::Kind::Started(ExecStarted { exec_id: "e".to_owned() }))).await;
            if open.detach {
                return;
            }
            tokio::spawn(play(service.clone(), program, command.collect(), open.tty));
            let inputs = service.clone();
            tokio::spawn(async move {
                while let Ok(Some(ExecRequest { kind: Some(exec_request::Kind::Input(input)) })) =
                    requests.message().await
                {
                    inputs.take_input(input);
                }
            });
            service.follow(0, &sender, of_exec).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        self.note("stop", &request);
        not_gone(&request.get_ref().container)?;
        Ok(Response::new(StopResponse { id: ID.to_owned() }))
    }

    async fn kill(&self, request: Request<KillRequest>) -> Result<Response<KillResponse>, Status> {
        self.note("kill", &request);
        not_gone(&request.get_ref().container)?;
        self.change(|record| record.signal = Some(request.get_ref().signal.clone()));
        Ok(Response::new(KillResponse { id: ID.to_owned() }))
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<RemoveResponse>, Status> {
        self.note("remove", &request);
        not_gone(&request.get_ref().container)?;
        Ok(Response::new(RemoveResponse { id: ID.to_owned() }))
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<WaitResponse>, Status> {
        self.note("wait", &request);
        not_gone(&request.get_ref().container)?;
        let code = request.get_ref().container.len() as u32;
        Ok(Response::new(WaitResponse { exit: Some(Exit { code, ..Exit::default() }) }))
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        self.note("logs", &request);
        let tail = request.get_ref().tail;
        let (sender, receiver) = mpsc::unbounded_channel();
        let shared = self.shared();
        let at = Some(prost_types::Timestamp { seconds: 0, nanos: 1 });
        let _ = sender.send(Ok(LogsEvent::default()));
        let skipped = tail.map_or(0, |tail| shared.record.log.len().saturating_sub(tail as usize));
        for (index, (stream, data)) in shared.record.log.iter().enumerate().skip(skipped) {
            let next = index as u64 + 1;
            let output = Some(Output { stream: (*stream).into(), data: data.clone().into(), next, lost: 0 });
            let _ = sender.send(Ok(LogsEvent { output, at, tty: false }));
        }
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }

    async fn list(&self, request: Request<ListContainersRequest>) -> Result<Response<ListContainersResponse>, Status> {
        self.note("list", &request);
        Ok(Response::new(ListContainersResponse { containers: self.shared().containers.clone() }))
    }

    async fn inspect(
        &self,
        request: Request<InspectContainerRequest>,
    ) -> Result<Response<InspectContainerResponse>, Status> {
        self.note("inspect", &request);
        let name = request.into_inner().container;
        match self.shared().details.get(&name) {
            Some(detail) => Ok(Response::new(InspectContainerResponse { container: Some(detail.clone()) })),
            None => {
                Err(Fault::new(Layer::Engine, "validate", code::CONTAINER_NOT_FOUND, format!("find container {name}"))
                    .into())
            }
        }
    }

    async fn resize(&self, request: Request<ResizeRequest>) -> Result<Response<ResizeResponse>, Status> {
        self.note("resize", &request);
        Ok(Response::new(ResizeResponse {}))
    }
}

fn not_gone(name: &str) -> Result<(), Status> {
    match name {
        "gone" => Err(Fault::new(Layer::Engine, "validate", code::CONTAINER_NOT_FOUND, "find container gone").into()),
        _ => Ok(()),
    }
}

#[tonic::async_trait]
impl Images for Service {
    type PullStream = UnboundedReceiverStream<Result<PullEvent, Status>>;

    async fn pull(&self, request: Request<PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        self.note("pull", &request);
        let image = request.into_inner().image;
        if let Some(fault) = fault_of(&image) {
            return Err(fault.into());
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        for progress in self.shared().pull.clone() {
            let _ = sender.send(Ok(PullEvent { kind: Some(pull_event::Kind::Progress(progress)) }));
        }
        let done = PullDone {
            image: format!("docker.io/library/{image}:latest"),
            digest: "sha256:00".to_owned(),
            image_id: "sha256:11".to_owned(),
            changed: true,
        };
        self.shared().images.push(ImageSummary { references: vec![image], ..ImageSummary::default() });
        let _ = sender.send(Ok(PullEvent { kind: Some(pull_event::Kind::Done(done)) }));
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }

    async fn list(&self, request: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        self.note("images", &request);
        Ok(Response::new(ListImagesResponse { images: self.shared().images.clone() }))
    }

    async fn inspect(&self, request: Request<InspectImageRequest>) -> Result<Response<InspectImageResponse>, Status> {
        self.note("inspect image", &request);
        let name = request.into_inner().image;
        let shared = self.shared();
        match shared.images.iter().find(|image| image.references.contains(&name)) {
            Some(image) => Ok(Response::new(InspectImageResponse {
                summary: Some(image.clone()),
                config: b"{\"config\":{\"Cmd\":[\"sh\"]}}".to_vec(),
                ..InspectImageResponse::default()
            })),
            None => {
                Err(Fault::new(Layer::Engine, "validate", code::IMAGE_NOT_FOUND, format!("find image {name}")).into())
            }
        }
    }

    async fn remove(&self, request: Request<RemoveImageRequest>) -> Result<Response<RemoveImageResponse>, Status> {
        self.note("rmi", &request);
        let image = request.into_inner().image;
        Ok(Response::new(RemoveImageResponse { untagged: vec![image], deleted: vec!["sha256:11".to_owned()] }))
    }
}

#[tonic::async_trait]
impl System for Service {
    type EventsStream = UnboundedReceiverStream<Result<Event, Status>>;

    async fn version(&self, request: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        self.note("version", &request);
        Ok(Response::new(VersionResponse {
            version: "9.9".to_owned(),
            supervisor_name: "shimd".to_owned(),
            ..Default::default()
        }))
    }

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        self.note("info", &request);
        Ok(Response::new(InfoResponse { containers: 3, memory: 24 << 30, ..InfoResponse::default() }))
    }

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        self.note("events", &request);
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut shared = self.shared();
        for event in shared.events.clone() {
            let _ = sender.send(Ok(event));
        }
        if std::mem::take(&mut shared.hold_events) {
            tokio::spawn(async move { sender.closed().await });
            self.broke.notify_one();
        }
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }
}
