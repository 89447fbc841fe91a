//! The diff service.

use proto_containerd::services::diff as wire;
use proto_containerd::services::diff::diff_server::Diff;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use super::Api;
use super::convert::{descriptor, mounts, required};
use super::scope::{OrStatus, Scope};
use crate::daemon::Daemon;
use crate::diff::{PLAIN_LAYER, Target, run_blocking};
use crate::error::{Error, Result as OurResult};
use crate::name::Digest;

const STEP: &str = "pull";

#[tonic::async_trait]
impl Diff for Api {
    async fn apply(&self, request: Request<wire::ApplyRequest>) -> Result<Response<wire::ApplyResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let request = request.into_inner();
        let span = crate::span!("unpack", "supervisor", request.diff.as_ref().map_or("", |diff| &diff.digest));
        apply(self, scope, request).instrument(span).await.or_status(STEP).map(Response::new)
    }

    async fn diff(&self, request: Request<wire::DiffRequest>) -> Result<Response<wire::DiffResponse>, Status> {
        Scope::of(&request).or_status(STEP)?;
        Err(Error::Unimplemented { what: "make a layer of a snapshot".to_owned() }.status(STEP))
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
