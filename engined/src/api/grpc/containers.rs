//! The `Containers` service.

use std::sync::Arc;

use proto_engine as wire;
use proto_engine::containers_server;
use strata_fault::Fault;
use strata_log::Start;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument, Span};

use super::session::{Attach, ExecCall, Logs, MESSAGES_WAITING, Run, first, not_open};
use super::{wanted, wire as answer};
use crate::engine::Engine;
use crate::engine::container::Awaited;
use crate::engine::container::output::{Streams, Until, Wish};
use crate::engine::error::Error;
use crate::engine::filter::ContainerFilter;
use crate::engine::signal::Signal;
use crate::engine::step::step;

pub(super) struct Containers {
    engine: Engine,
}

impl Containers {
    pub(super) fn new(engine: Engine) -> Containers {
        Containers { engine }
    }

    fn find(&self, name: &str) -> Result<crate::engine::container::Container, Fault> {
        Ok(self.engine.find(name)?)
    }
}

type Events<T> = ReceiverStream<Result<T, Status>>;

/// A stream of answers that a session of its own gives; the session goes on in the request's span.
fn stream<T: Send + 'static, F: Future<Output = ()> + Send + 'static>(
    session: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F,
) -> Response<Events<T>> {
    let (to, events) = mpsc::channel(MESSAGES_WAITING);
    tokio::spawn(session(to).instrument(Span::current()));
    Response::new(ReceiverStream::new(events))
}

#[tonic::async_trait]
impl containers_server::Containers for Containers {
    type RunStream = Events<wire::RunEvent>;
    type AttachStream = Events<wire::AttachEvent>;
    type ExecStream = Events<wire::ExecEvent>;
    type LogsStream = Events<wire::LogsEvent>;

    async fn create(&self, request: Request<wire::CreateRequest>) -> Result<Response<wire::CreateResponse>, Status> {
        let cpus = self.engine.means().settings.cpus;
        let spec = request.into_inner().spec;
        let wanted = step!("validate").in_scope(|| wanted::container(spec, cpus)).map_err(Fault::from)?;
        let container = self.engine.create(wanted).await?;
        Ok(Response::new(wire::CreateResponse {
            id: container.id().to_string(),
            name: container.name().to_string(),
            warnings: Vec::new(),
        }))
    }

    async fn start(&self, request: Request<wire::StartRequest>) -> Result<Response<wire::StartResponse>, Status> {
        let container = self.find(&request.into_inner().container)?;
        container.start().await?;
        Ok(Response::new(wire::StartResponse { id: container.id().to_string() }))
    }

    async fn run(&self, request: Request<Streaming<wire::RunRequest>>) -> Result<Response<Self::RunStream>, Status> {
        let mut inbound = request.into_inner();
        let Some(wire::run_request::Kind::Open(open)) = first(&mut inbound).await?.kind else {
            return Err(not_open());
        };
        let run = Run { engine: self.engine.clone(), open, inbound };
        Ok(stream(|to| run.serve(to)))
    }

    async fn attach(
        &self,
        request: Request<Streaming<wire::AttachRequest>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut inbound = request.into_inner();
        let Some(wire::attach_request::Kind::Open(open)) = first(&mut inbound).await?.kind else {
            return Err(not_open());
        };
        let attach = Attach { engine: self.engine.clone(), open, inbound };
        Ok(stream(|to| attach.serve(to)))
    }

    async fn exec(&self, request: Request<Streaming<wire::ExecRequest>>) -> Result<Response<Self::ExecStream>, Status> {
        let mut inbound = request.into_inner();
        let Some(wire::exec_request::Kind::Open(open)) = first(&mut inbound).await?.kind else {
            return Err(not_open());
        };
        let exec = ExecCall { engine: self.engine.clone(), open, inbound };
        Ok(stream(|to| exec.serve(to)))
    }

    async fn stop(&self, request: Request<wire::StopRequest>) -> Result<Response<wire::StopResponse>, Status> {
        let request = request.into_inner();
        let container = self.find(&request.container)?;
        let signal = wanted::signal(&request.signal).map_err(Fault::from)?;
        container.stop(signal, request.timeout_s).await?;
        Ok(Response::new(wire::StopResponse { id: container.id().to_string() }))
    }

    async fn kill(&self, request: Request<wire::KillRequest>) -> Result<Response<wire::KillResponse>, Status> {
        let request = request.into_inner();
        let container = self.find(&request.container)?;
        let signal = wanted::signal(&request.signal).map_err(Fault::from)?;
        container.kill(signal.unwrap_or(Signal::KILL)).await?;
        Ok(Response::new(wire::KillResponse { id: container.id().to_string() }))
    }

    async fn remove(&self, request: Request<wire::RemoveRequest>) -> Result<Response<wire::RemoveResponse>, Status> {
        let request = request.into_inner();
        let container = self.find(&request.container)?;
        container.remove(request.force).await?;
        Ok(Response::new(wire::RemoveResponse { id: container.id().to_string() }))
    }

    async fn wait(&self, request: Request<wire::WaitRequest>) -> Result<Response<wire::WaitResponse>, Status> {
        use wire::wait_request::Condition;
        let request = request.into_inner();
        let awaited = match request.condition() {
            Condition::NotRunning => Awaited::NotRunning,
            Condition::NextExit => Awaited::NextExit,
            Condition::Removed => Awaited::Removed,
        };
        let exit = self.find(&request.container)?.wait(awaited).await;
        // One that never ran has ended with nothing.
        let exit = exit.as_ref().map_or_else(wire::Exit::default, answer::exit);
        Ok(Response::new(wire::WaitResponse { exit: Some(exit) }))
    }

    async fn logs(&self, request: Request<wire::LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let request = request.into_inner();
        let container = self.find(&request.container)?;
        let tty = container.fixed().wanted.tty;
        let wish = logs_wish(&request);
        let follower = container.follow(self.engine.means(), wish).map_err(Fault::from)?;
        Ok(stream(|to| Logs { follower, tty }.serve(to)))
    }

    async fn list(
        &self,
        request: Request<wire::ListContainersRequest>,
    ) -> Result<Response<wire::ListContainersResponse>, Status> {
        let request = request.into_inner();
        // Who asks for the newest few asks for all of them, as with docker's `-n`.
        let all = request.all || request.limit > 0;
        let filter = ContainerFilter::parse(all, wanted::filters(request.filters)).map_err(Fault::from)?;
        let views = self.engine.list(&filter, request.limit as usize);
        Ok(Response::new(wire::ListContainersResponse { containers: views.iter().map(answer::summary).collect() }))
    }

    async fn inspect(
        &self,
        request: Request<wire::InspectContainerRequest>,
    ) -> Result<Response<wire::InspectContainerResponse>, Status> {
        let container = self.find(&request.into_inner().container)?;
        let detail = answer::detail(&container, &container.view());
        Ok(Response::new(wire::InspectContainerResponse { container: Some(detail) }))
    }

    async fn resize(&self, request: Request<wire::ResizeRequest>) -> Result<Response<wire::ResizeResponse>, Status> {
        let request = request.into_inner();
        let container = self.find(&request.container)?;
        let Some(size) = wanted::size(request.size).map_err(Fault::from)? else {
            return Ok(Response::new(wire::ResizeResponse {}));
        };
        let means = Arc::clone(self.engine.means());
        if request.exec_id.is_empty() {
            container.resize(&means, size).await?;
        } else {
            means.client.resize_task(container.id().as_str(), &request.exec_id, size).await?;
        }
        Ok(Response::new(wire::ResizeResponse {}))
    }
}

fn logs_wish(request: &wire::LogsRequest) -> Wish {
    let since = answer::stamp(request.since);
    let from = match (request.tail, since) {
        (Some(lines), _) => Start::Lines(lines),
        (None, Some(since)) => Start::Time(since.ns()),
        (None, None) => Start::Oldest,
    };
    let (stdout, stderr) = (request.stdout, request.stderr);
    Wish {
        until: if request.follow { Until::Stopped } else { Until::Now },
        timed: true,
        not_before: since,
        not_after: answer::stamp(request.until),
        // Neither is both.
        streams: if stdout || stderr { Streams { stdout, stderr } } else { Streams::BOTH },
        ..Wish::plain(from, Until::Now, false)
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        Fault::from(error).into()
    }
}
