//! The `Images` service.

use proto_engine as wire;
use proto_engine::images_server;
use strata_fault::{Fault, Layer, code};
use strata_trace::collect;
use tokio::sync::mpsc::{self, Sender};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::{Instrument, Span};

use super::{trace, wanted, wire as answer};
use crate::engine::Engine;
use crate::engine::filter::ImageFilter;
use crate::engine::image::Pull;

/// Messages of progress that may wait for a slow client; it misses some.
const PROGRESS_WAITING: usize = 64;

pub(super) struct Images {
    engine: Engine,
}

impl Images {
    pub(super) fn new(engine: Engine) -> Images {
        Images { engine }
    }
}

type Events = Sender<Result<wire::PullEvent, Status>>;

fn event(kind: wire::pull_event::Kind) -> Result<wire::PullEvent, Status> {
    Ok(wire::PullEvent { kind: Some(kind) })
}

/// Pulls, and tells. It ends when the client goes, and the pull with it.
async fn pull(engine: Engine, wanted: Pull, to: Events) {
    use wire::pull_event::Kind;
    let (progress, mut told) = mpsc::channel(PROGRESS_WAITING);
    let pulling = engine.pull(wanted, progress);
    tokio::pin!(pulling);
    let outcome = loop {
        tokio::select! {
            biased;
            Some(progress) = told.recv() => {
                if to.send(event(Kind::Progress(answer::progress(progress)))).await.is_err() {
                    return;
                }
            }
            outcome = &mut pulling => break outcome,
            () = to.closed() => return,
        }
    };
    while let Ok(progress) = told.try_recv() {
        let _ = to.send(event(Kind::Progress(answer::progress(progress)))).await;
    }
    let last = match outcome {
        Ok(pulled) => event(Kind::Done(answer::pulled(pulled))),
        Err(fault) => Err(fault.into()),
    };
    let is_done = last.is_ok();
    let _ = to.send(last).await;
    if let Some(collector) = collect::current().filter(|_| is_done) {
        let _ = to.send(event(Kind::Spans(trace::encoded(&collector)))).await;
    }
}

#[tonic::async_trait]
impl images_server::Images for Images {
    type PullStream = ReceiverStream<Result<wire::PullEvent, Status>>;

    async fn pull(&self, request: Request<wire::PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let request = request.into_inner();
        let wanted = wanted::pull(request.image, request.auth, &request.platform);
        let (to, events) = mpsc::channel(PROGRESS_WAITING);
        tokio::spawn(pull(self.engine.clone(), wanted, to).instrument(Span::current()));
        Ok(Response::new(ReceiverStream::new(events)))
    }

    async fn list(
        &self,
        request: Request<wire::ListImagesRequest>,
    ) -> Result<Response<wire::ListImagesResponse>, Status> {
        let filter = ImageFilter::parse(wanted::filters(request.into_inner().filters))?;
        let all = self.engine.images().list().await?;
        let images = all.into_iter().filter(|image| filter.lets_through(image)).map(answer::image).collect();
        Ok(Response::new(wire::ListImagesResponse { images }))
    }

    async fn inspect(
        &self,
        request: Request<wire::InspectImageRequest>,
    ) -> Result<Response<wire::InspectImageResponse>, Status> {
        let name = request.into_inner().image;
        let not_here = || {
            let message = format!("no such image: {name}");
            Fault::new(Layer::Engine, "validate", code::IMAGE_NOT_LOCAL, message)
        };
        let image = self.engine.images().local(&name).await?.ok_or_else(not_here)?;
        let summary = self.engine.images().summary(&image).await?;
        let config = &image.config;
        Ok(Response::new(wire::InspectImageResponse {
            summary: Some(answer::image(summary)),
            os: config.os.clone(),
            architecture: config.architecture.clone(),
            variant: config.variant.clone(),
            config: image.config_bytes.to_vec(),
            diff_ids: config.diff_ids.clone(),
        }))
    }

    async fn remove(
        &self,
        request: Request<wire::RemoveImageRequest>,
    ) -> Result<Response<wire::RemoveImageResponse>, Status> {
        let request = request.into_inner();
        let removed = self.engine.remove_image(&request.image, request.force).await?;
        Ok(Response::new(wire::RemoveImageResponse { untagged: removed.untagged, deleted: removed.deleted }))
    }
}
