//! The diff service.

use bytes::Bytes;
use proto_containerd::services::diff as wire;
use proto_containerd::services::diff::diff_server::Diff;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use super::Api;
use super::convert::{descriptor, labels, mounts, required};
use super::scope::{OrStatus, Scope};
use crate::content::{Commit, Opening, Writer};
use crate::daemon::Daemon;
use crate::diff::make::{Packing, pack, upper};
use crate::diff::{PLAIN_LAYER, Target, run_blocking};
use crate::error::{Error, Result as OurResult};
use crate::name::Digest;

const STEP: &str = "pull";
/// Label of a packed layer: its diff id.
const UNCOMPRESSED_LABEL: &str = "containerd.io/uncompressed";
/// Pieces of a layer on their way to the content store.
const QUEUE: usize = 8;

#[tonic::async_trait]
impl Diff for Api {
    async fn apply(&self, request: Request<wire::ApplyRequest>) -> Result<Response<wire::ApplyResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let request = request.into_inner();
        let span = crate::span!("unpack", "supervisor", request.diff.as_ref().map_or("", |diff| &diff.digest));
        apply(self, scope, request).instrument(span).await.or_status(STEP).map(Response::new)
    }

    async fn diff(&self, request: Request<wire::DiffRequest>) -> Result<Response<wire::DiffResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let request = request.into_inner();
        make(self, scope, request).await.or_status(STEP).map(Response::new)
    }
}

/// Packs a layer straight into the content store.
async fn make(daemon: &Api, scope: Scope, request: wire::DiffRequest) -> OurResult<wire::DiffResponse> {
    let (packing, media_type) = Packing::of(&request.media_type)?;
    let upper = upper(&mounts(request.left), &mounts(request.right))?;
    let reference = if request.r#ref.is_empty() { format!("diff-{}", upper.display()) } else { request.r#ref };
    let opening = Opening {
        namespace: scope.namespace.clone(),
        lease: scope.lease,
        reference,
        expected: None,
        total: 0,
        unpack: None,
    };
    let mut writer = Writer::open(daemon.content.clone(), opening).await?;
    // What an earlier attempt left there is another layer.
    writer.reset().await?;
    let (sender, mut packed) = mpsc::channel(QUEUE);
    let packing = tokio::task::spawn_blocking(move || pack(&upper, packing, Sink(sender)));
    while let Some(bytes) = packed.recv().await {
        writer.write(bytes).await?;
    }
    let diff_id = packing.await.unwrap_or_else(|failure| std::panic::resume_unwind(failure.into_panic()))?;
    let mut labels = labels(request.labels);
    labels.insert(UNCOMPRESSED_LABEL.to_owned(), diff_id.to_string());
    let size = writer.offset();
    let digest = match writer.commit(Commit { expected: None, total: size, labels }).await {
        Err(Error::Exists { name, .. }) => Digest::parse(&name)?,
        outcome => outcome?,
    };
    Ok(wire::DiffResponse { diff: Some(descriptor(media_type, &digest, size)) })
}

/// Takes a layer's bytes on their way to the content store.
struct Sink(mpsc::Sender<Bytes>);

impl std::io::Write for Sink {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        // The store has said why it takes no more.
        let closed = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        self.0.blocking_send(Bytes::copy_from_slice(data)).map_err(closed)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn apply(daemon: &Daemon, scope: Scope, request: wire::ApplyRequest) -> OurResult<wire::ApplyResponse> {
    let diff = required(request.diff, "diff")?;
    let digest = Digest::parse(&diff.digest)?;
    let target = Target::from_mounts(&mounts(request.mounts))?;
    let (blob, _) = daemon.content.blob(&scope.namespace, &digest)?;
    let applied = daemon.differ.apply(&digest, blob, target.clone()).await?;
    if request.sync_fs {
        run_blocking(move || sync(&target)).await?;
    }
    Ok(wire::ApplyResponse { applied: Some(descriptor(PLAIN_LAYER, &applied.diff_id, applied.size)) })
}

fn sync(target: &Target) -> OurResult<()> {
    let failed = |source| Error::io(format!("sync the file system of {}", target.root.display()), source);
    let root = std::fs::File::open(&target.root).map_err(failed)?;
    rustix::fs::syncfs(root).map_err(|error| failed(error.into()))
}
