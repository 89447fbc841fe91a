//! The controller of sandboxes. There is one, which is called `shim` as in containerd.

use std::sync::Arc;

use proto_containerd::events::{SandboxCreate, SandboxExit, SandboxStart};
use proto_containerd::services::sandbox as wire;
use proto_containerd::services::sandbox::controller_server::Controller;
use proto_containerd::types;
use proto_shim::sandbox as shim;
use tonic::{Request, Response, Status};

use super::Api;
use super::scope::{OrStatus, Scope};
use super::tasks::shim_mount;
use crate::clock;
use crate::error::{Error, Result as OurResult};
use crate::sandbox::controller::{Creation, Sandbox};

/// The one controller.
const NAME: &str = "shim";
const CREATED: &str = "/sandboxes/create";
const STARTED: &str = "/sandboxes/start";
const EXITED: &str = "/sandboxes/exit";

#[tonic::async_trait]
impl Controller for Api {
    async fn create(
        &self,
        request: Request<wire::ControllerCreateRequest>,
    ) -> Result<Response<wire::ControllerCreateResponse>, Status> {
        let scope = Scope::making(&request, self).or_status("create")?;
        let request = request.into_inner();
        check_name(&request.sandboxer).or_status("create")?;
        let sandbox_id = request.sandbox_id.clone();
        let creation = creation(self, &scope, request).or_status("create")?;
        self.controller.create(creation).await.or_status("create")?;
        let event = SandboxCreate { sandbox_id: sandbox_id.clone() };
        self.events.publish(&scope.namespace, CREATED, &event);
        Ok(Response::new(wire::ControllerCreateResponse { sandbox_id }))
    }

    async fn start(
        &self,
        request: Request<wire::ControllerStartRequest>,
    ) -> Result<Response<wire::ControllerStartResponse>, Status> {
        let scope = Scope::of(&request).or_status("start")?;
        let wire::ControllerStartRequest { sandbox_id, sandboxer } = request.into_inner();
        let sandbox = find(self, &scope, &sandboxer, &sandbox_id).or_status("start")?;
        let started = self.controller.start(&sandbox).await.or_status("start")?;
        let event = SandboxStart { sandbox_id: sandbox_id.clone() };
        self.events.publish(&scope.namespace, STARTED, &event);
        Ok(Response::new(wire::ControllerStartResponse {
            sandbox_id,
            pid: started.pid,
            created_at: started.created_at,
            labels: Default::default(),
            address: address(&sandbox),
            version: version(&sandbox),
            spec: started.spec,
        }))
    }

    async fn platform(
        &self,
        request: Request<wire::ControllerPlatformRequest>,
    ) -> Result<Response<wire::ControllerPlatformResponse>, Status> {
        let scope = Scope::of(&request).or_status("report")?;
        let wire::ControllerPlatformRequest { sandbox_id, sandboxer } = request.into_inner();
        let sandbox = find(self, &scope, &sandboxer, &sandbox_id).or_status("report")?;
        let request = shim::PlatformRequest { sandbox_id };
        let answer: shim::PlatformResponse = sandbox.call("report", "Platform", &request).await.or_status("report")?;
        let platform = answer.platform.map(|platform| types::Platform {
            os: platform.os,
            architecture: platform.architecture,
            variant: platform.variant,
            os_version: platform.os_version,
            os_features: platform.os_features,
        });
        Ok(Response::new(wire::ControllerPlatformResponse { platform }))
    }

    /// What is not there has stopped.
    async fn stop(
        &self,
        request: Request<wire::ControllerStopRequest>,
    ) -> Result<Response<wire::ControllerStopResponse>, Status> {
        let scope = Scope::of(&request).or_status("kill")?;
        let wire::ControllerStopRequest { sandbox_id, timeout_secs, sandboxer } = request.into_inner();
        let stop = async {
            let sandbox = find(self, &scope, &sandboxer, &sandbox_id)?;
            let request = shim::StopSandboxRequest { sandbox_id, timeout_secs };
            sandbox.call::<_, shim::StopSandboxResponse>("kill", "StopSandbox", &request).await.map(drop)
        };
        check_name(&sandboxer).or_status("kill")?;
        match stop.await {
            Err(error) if !error.is_not_found() && !matches!(error, Error::ShimDied { .. }) => {
                Err(error.status("kill"))
            }
            _ => Ok(Response::new(wire::ControllerStopResponse {})),
        }
    }

    async fn wait(
        &self,
        request: Request<wire::ControllerWaitRequest>,
    ) -> Result<Response<wire::ControllerWaitResponse>, Status> {
        let scope = Scope::of(&request).or_status("watch")?;
        let wire::ControllerWaitRequest { sandbox_id, sandboxer } = request.into_inner();
        let sandbox = find(self, &scope, &sandboxer, &sandbox_id).or_status("watch")?;
        let request = shim::WaitSandboxRequest { sandbox_id: sandbox_id.clone() };
        let exit: shim::WaitSandboxResponse =
            sandbox.call("watch", "WaitSandbox", &request).await.or_status("watch")?;
        let event = SandboxExit { sandbox_id, exit_status: exit.exit_status, exited_at: exit.exited_at };
        self.events.publish(&scope.namespace, EXITED, &event);
        Ok(Response::new(wire::ControllerWaitResponse { exit_status: exit.exit_status, exited_at: exit.exited_at }))
    }

    /// Of what is not there it is only said that it has ended by now.
    async fn status(
        &self,
        request: Request<wire::ControllerStatusRequest>,
    ) -> Result<Response<wire::ControllerStatusResponse>, Status> {
        let scope = Scope::of(&request).or_status("report")?;
        let wire::ControllerStatusRequest { sandbox_id, verbose, sandboxer } = request.into_inner();
        check_name(&sandboxer).or_status("report")?;
        let Ok(sandbox) = find(self, &scope, &sandboxer, &sandbox_id) else {
            let exited_at = Some(clock::now());
            return Ok(Response::new(wire::ControllerStatusResponse { sandbox_id, exited_at, ..Default::default() }));
        };
        let request = shim::SandboxStatusRequest { sandbox_id, verbose };
        let answer = sandbox.call("report", "SandboxStatus", &request).await;
        let answer: shim::SandboxStatusResponse = answer.or_status("report")?;
        Ok(Response::new(wire::ControllerStatusResponse {
            sandbox_id: answer.sandbox_id,
            pid: answer.pid,
            state: answer.state,
            info: answer.info,
            created_at: answer.created_at,
            exited_at: answer.exited_at,
            extra: answer.extra,
            address: address(&sandbox),
            version: version(&sandbox),
        }))
    }

    async fn shutdown(
        &self,
        request: Request<wire::ControllerShutdownRequest>,
    ) -> Result<Response<wire::ControllerShutdownResponse>, Status> {
        let scope = Scope::of(&request).or_status("delete")?;
        let wire::ControllerShutdownRequest { sandbox_id, sandboxer } = request.into_inner();
        let sandbox = find(self, &scope, &sandboxer, &sandbox_id).or_status("delete")?;
        self.controller.shut_down(sandbox).await.or_status("delete")?;
        Ok(Response::new(wire::ControllerShutdownResponse {}))
    }

    async fn metrics(
        &self,
        request: Request<wire::ControllerMetricsRequest>,
    ) -> Result<Response<wire::ControllerMetricsResponse>, Status> {
        let scope = Scope::of(&request).or_status("report")?;
        let wire::ControllerMetricsRequest { sandbox_id, sandboxer } = request.into_inner();
        let sandbox = find(self, &scope, &sandboxer, &sandbox_id).or_status("report")?;
        let request = shim::SandboxMetricsRequest { sandbox_id };
        let answer = sandbox.call("report", "SandboxMetrics", &request).await;
        let answer: shim::SandboxMetricsResponse = answer.or_status("report")?;
        let metrics = answer.metrics.map(|metric| types::Metric {
            timestamp: metric.timestamp,
            id: metric.id,
            data: metric.data,
        });
        Ok(Response::new(wire::ControllerMetricsResponse { metrics }))
    }

    /// A shim cannot be told of changes: what can change stands in the record, as in containerd.
    async fn update(
        &self,
        request: Request<wire::ControllerUpdateRequest>,
    ) -> Result<Response<wire::ControllerUpdateResponse>, Status> {
        let scope = Scope::of(&request).or_status("update")?;
        let request = request.into_inner();
        super::convert::required(request.sandbox, "sandbox").or_status("update")?;
        find(self, &scope, &request.sandboxer, &request.sandbox_id).or_status("update")?;
        Ok(Response::new(wire::ControllerUpdateResponse {}))
    }
}

fn check_name(sandboxer: &str) -> OurResult<()> {
    match sandboxer {
        NAME => Ok(()),
        "" => Err(Error::invalid("sandboxer", "the name of a controller must be set")),
        other => Err(Error::not_found("sandbox controller", other)),
    }
}

fn find(api: &Api, scope: &Scope, sandboxer: &str, id: &str) -> OurResult<Arc<Sandbox>> {
    check_name(sandboxer)?;
    api.controller.find(&scope.namespace, id)
}

/// What is to be made: as the request says, or else the record of that id.
fn creation(api: &Api, scope: &Scope, request: wire::ControllerCreateRequest) -> OurResult<Creation> {
    let (runtime, runtime_options, spec) = match request.sandbox {
        Some(sandbox) => {
            let runtime = sandbox.runtime.unwrap_or_default();
            (runtime.name, runtime.options, sandbox.spec)
        }
        None => {
            let record = api.sandboxes.get(&scope.namespace, &request.sandbox_id)?.record;
            (record.runtime, record.runtime_options, record.spec)
        }
    };
    Ok(Creation {
        namespace: scope.namespace.clone(),
        id: request.sandbox_id,
        runtime,
        runtime_options,
        spec,
        rootfs: request.rootfs.into_iter().map(shim_mount).collect(),
        options: request.options,
        netns_path: request.netns_path,
        annotations: request.annotations,
    })
}

/// Where the sandbox's shim listens, as containerd writes it: `ttrpc+unix:///path`.
fn address(sandbox: &Sandbox) -> String {
    let endpoint = sandbox.endpoint();
    format!("{}+{}", endpoint.protocol, endpoint.address)
}

fn version(sandbox: &Sandbox) -> u32 {
    sandbox.endpoint().version.unsigned_abs()
}
