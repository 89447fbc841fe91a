//! The transfer service.

use proto_containerd::services::transfer as wire;
use proto_containerd::services::transfer::transfer_server::Transfer;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use super::Api;
use super::convert::required;
use super::scope::{OrStatus, Scope};
use crate::transfer::Request as Wanted;

const STEP: &str = "pull";

#[tonic::async_trait]
impl Transfer for Api {
    async fn transfer(&self, request: Request<wire::TransferRequest>) -> Result<Response<()>, Status> {
        let scope = Scope::making(&request, self).or_status(STEP)?;
        let request = request.into_inner();
        let wanted = Wanted {
            namespace: scope.namespace,
            lease: scope.lease,
            source: required(request.source, "source").or_status(STEP)?,
            destination: required(request.destination, "destination").or_status(STEP)?,
            progress: request.options.unwrap_or_default().progress_stream,
        };
        let span = crate::span!("transfer", "supervisor", wanted.source.type_url);
        let outcome = self.transfers.transfer(wanted).instrument(span).await;
        // What a transfer that failed has left is free now.
        self.gc.schedule();
        outcome.or_status(STEP)?;
        Ok(Response::new(()))
    }
}
