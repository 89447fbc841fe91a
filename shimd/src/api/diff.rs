//! The diff service.

use proto_containerd::services::diff as wire;
use proto_containerd::services::diff::diff_server::Diff;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use super::Api;
use super::convert::{descriptor, labels, mounts, required};
use super::scope::{OrStatus, Scope};
use crate::content::{Commit, Opening};
use crate::daemon::Daemon;
use crate::diff::make::{Changes, Packing};
use crate::diff::store::pack_to;
use crate::diff::{PLAIN_LAYER, Target, run_blocking};
use crate::error::{Error, Result as OurResult};
use crate::name::Digest;
use crate::transfer::is_layer;

const STEP: &str = "pull";
/// Label of a packed layer: its diff id.
const UNCOMPRESSED_LABEL: &str = "containerd.io/uncompressed";

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
    let changes = Changes::between(&mounts(request.left), &mounts(request.right))?;
    let reference = if request.r#ref.is_empty() { changes.name() } else { request.r#ref };
    let opening = Opening {
        namespace: scope.namespace.clone(),
        lease: scope.lease,
        reference,
        expected: None,
        total: 0,
        unpack: None,
    };
    let (mut writer, diff_id) = pack_to(daemon.content.clone(), opening, changes, packing).await?;
    let mut labels = labels(request.labels);
    labels.insert(UNCOMPRESSED_LABEL.to_owned(), diff_id.to_string());
    let size = writer.offset();
    let digest = match writer.commit(Commit { expected: None, total: size, labels }).await {
        Err(Error::Exists { name, .. }) => Digest::parse(&name)?,
        outcome => outcome?,
    };
    Ok(wire::DiffResponse { diff: Some(descriptor(media_type, &digest, size)) })
}

async fn apply(daemon: &Daemon, scope: Scope, request: wire::ApplyRequest) -> OurResult<wire::ApplyResponse> {
    let diff = required(request.diff, "diff")?;
    // Whatever else is wrong: who is told that the content is not there brings it.
    let digest = Digest::parse(&diff.digest).map_err(|_| Error::not_found("content", diff.digest))?;
    let (blob, _) = daemon.content.blob(&scope.namespace, &digest)?;
    check_layer(&diff.media_type)?;
    let target = Target::from_mounts(&mounts(request.mounts))?;
    let applied = daemon.differ.apply(&digest, blob, target.clone()).await?;
    if request.sync_fs {
        run_blocking(move || sync(&target)).await?;
    }
    Ok(wire::ApplyResponse { applied: Some(descriptor(PLAIN_LAYER, &applied.diff_id, applied.size)) })
}

/// What a layer is packed with is seen by its bytes; what else was done to one, none here undoes.
fn check_layer(media_type: &str) -> OurResult<()> {
    let is_packed = media_type.split('+').skip(1).all(|form| matches!(form, "gzip" | "zstd"));
    if is_layer(media_type) && is_packed {
        return Ok(());
    }
    Err(Error::Unimplemented { what: format!("to apply a layer of media type {media_type:?}") })
}

fn sync(target: &Target) -> OurResult<()> {
    let failed = |source| Error::io(format!("sync the file system of {}", target.root.display()), source);
    let root = std::fs::File::open(&target.root).map_err(failed)?;
    rustix::fs::syncfs(root).map_err(|error| failed(error.into()))
}
