//! The version service.

use proto_containerd::services::version as wire;
use proto_containerd::services::version::version_server::Version;
use tonic::{Request, Response, Status};

use super::Api;

#[tonic::async_trait]
impl Version for Api {
    async fn version(&self, _: Request<()>) -> Result<Response<wire::VersionResponse>, Status> {
        Ok(Response::new(wire::VersionResponse {
            version: format!("v{}+strata", env!("CARGO_PKG_VERSION")),
            revision: option_env!("STRATA_REVISION").unwrap_or_default().to_owned(),
        }))
    }
}
