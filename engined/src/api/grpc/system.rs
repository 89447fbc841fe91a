//! The `System` service.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proto_engine as wire;
use proto_engine::system_server;
use strata_registry::Platform;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc::{self, Sender};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{wanted, wire as answer};
use crate::engine::Engine;
use crate::engine::event::Event;
use crate::engine::filter::EventFilter;
use crate::engine::stamp::Stamp;

/// Events that may wait for a slow client, besides those that the engine keeps for it.
const EVENTS_WAITING: usize = 64;

pub(super) struct System {
    engine: Engine,
}

impl System {
    pub(super) fn new(engine: Engine) -> System {
        System { engine }
    }
}

/// What one client wants to hear.
struct Listening {
    past: Vec<Arc<Event>>,
    stream: Receiver<Arc<Event>>,
    filter: EventFilter,
    until: Option<Stamp>,
}

impl Listening {
    fn is_wanted(&self, event: &Event) -> bool {
        self.until.is_none_or(|until| event.at <= until) && self.filter.lets_through(event)
    }

    async fn serve(mut self, to: Sender<Result<wire::Event, Status>>) {
        for event in std::mem::take(&mut self.past) {
            if self.is_wanted(&event) && to.send(Ok(answer::event(&event))).await.is_err() {
                return;
            }
        }
        let end = until(self.until);
        tokio::pin!(end);
        loop {
            let event = tokio::select! {
                event = self.stream.recv() => event,
                () = &mut end => return,
                () = to.closed() => return,
            };
            match event {
                Ok(event) if self.is_wanted(&event) => {
                    if to.send(Ok(answer::event(&event))).await.is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(RecvError::Lagged(count)) => {
                    let words = format!("{count} events were lost: the client is too slow");
                    let _ = to.send(Err(Status::data_loss(words))).await;
                    return;
                }
                Err(RecvError::Closed) => return,
            }
        }
    }
}

/// Returns at that time, or never.
async fn until(stamp: Option<Stamp>) {
    match stamp {
        Some(stamp) => {
            let left = SystemTime::from(stamp).duration_since(SystemTime::now()).unwrap_or(Duration::ZERO);
            tokio::time::sleep(left).await;
        }
        None => std::future::pending().await,
    }
}

#[tonic::async_trait]
impl system_server::System for System {
    type EventsStream = ReceiverStream<Result<wire::Event, Status>>;

    async fn version(&self, _: Request<wire::VersionRequest>) -> Result<Response<wire::VersionResponse>, Status> {
        let version = self.engine.version().await;
        let platform = Platform::host();
        Ok(Response::new(wire::VersionResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            git_commit: option_env!("STRATA_REVISION").unwrap_or_default().to_owned(),
            api_version: "v1".to_owned(),
            os: platform.os,
            arch: platform.architecture,
            kernel: version.kernel,
            supervisor_name: version.supervisor_name.to_owned(),
            supervisor_version: version.supervisor.version,
        }))
    }

    async fn info(&self, _: Request<wire::InfoRequest>) -> Result<Response<wire::InfoResponse>, Status> {
        let info = self.engine.info().await?;
        let settings = &self.engine.means().settings;
        let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(Response::new(wire::InfoResponse {
            containers: count(info.containers),
            running: count(info.running),
            stopped: count(info.containers - info.running),
            images: count(info.images),
            root_dir: text(&settings.root),
            state_dir: text(&settings.state),
            cgroup_version: info.cgroup_version.to_owned(),
            snapshotter: settings.snapshotter.clone(),
            runtime: settings.runtime.name.clone(),
            bridge: settings.bridge.clone(),
            subnet: info.subnet,
            cpus: u32::try_from(settings.cpus).unwrap_or(u32::MAX),
            memory: info.memory,
            kernel: info.kernel,
            operating_system: info.operating_system,
            name: info.hostname,
            supervisor_address: text(&settings.supervisor),
        }))
    }

    async fn events(&self, request: Request<wire::EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let request = request.into_inner();
        let filter = EventFilter::parse(wanted::filters(request.filters))?;
        let until = answer::stamp(request.until);
        let (past, stream) = self.engine.means().events.listen(answer::stamp(request.since));
        let (to, events) = mpsc::channel(EVENTS_WAITING);
        tokio::spawn(Listening { past, stream, filter, until }.serve(to));
        Ok(Response::new(ReceiverStream::new(events)))
    }
}
