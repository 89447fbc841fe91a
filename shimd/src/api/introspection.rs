//! The introspection service: what shimd is made of, told as containerd's plug-ins, which clients look for.

use std::borrow::Cow;
use std::collections::HashMap;

use prost::Name;
use prost_types::Any;
use proto_containerd::services::introspection as wire;
use proto_containerd::services::introspection::introspection_server::Introspection;
use proto_containerd::types::{Platform, RuntimeInfo, RuntimeRequest};
use tonic::{Request, Response, Status};

use super::Api;
use super::scope::OrStatus;
use crate::error::{Error, Result as OurResult};
use crate::filter::{Fields, Filters, present};
use crate::snapshot::Snapshotter;
use crate::transfer::architecture;

const STEP: &str = "report";
/// The part that knows runtimes.
const RUNTIME: &str = "io.containerd.runtime.v2";

/// What clients know of a part.
struct Part {
    kind: &'static str,
    id: &'static str,
    /// It works on images or containers, so it has a platform.
    has_platform: bool,
}

const fn part(kind: &'static str, id: &'static str) -> Part {
    Part { kind, id, has_platform: false }
}

const fn platform_part(kind: &'static str, id: &'static str) -> Part {
    Part { kind, id, has_platform: true }
}

/// Each part, as containerd calls them: of 1.x and of 2.x.
const PARTS: [Part; 41] = [
    part("io.containerd.content.v1", "content"),
    platform_part("io.containerd.snapshotter.v1", "overlayfs"),
    platform_part("io.containerd.snapshotter.v1", "native"),
    part("io.containerd.internal.v1", "opt"),
    part("io.containerd.metadata.v1", "bolt"),
    platform_part("io.containerd.differ.v1", "walking"),
    part("io.containerd.gc.v1", "scheduler"),
    part("io.containerd.event.v1", "exchange"),
    part("io.containerd.lease.v1", "manager"),
    platform_part("io.containerd.runtime.v2", "task"),
    part("io.containerd.shim.v1", "manager"),
    part("io.containerd.streaming.v1", "manager"),
    platform_part("io.containerd.transfer.v1", "local"),
    part("io.containerd.sandbox.store.v1", "local"),
    part("io.containerd.sandbox.controller.v1", "shim"),
    part("io.containerd.service.v1", "containers-service"),
    part("io.containerd.service.v1", "content-service"),
    part("io.containerd.service.v1", "diff-service"),
    part("io.containerd.service.v1", "images-service"),
    part("io.containerd.service.v1", "introspection-service"),
    part("io.containerd.service.v1", "leases-service"),
    part("io.containerd.service.v1", "namespaces-service"),
    part("io.containerd.service.v1", "snapshots-service"),
    part("io.containerd.service.v1", "tasks-service"),
    part("io.containerd.grpc.v1", "containers"),
    part("io.containerd.grpc.v1", "content"),
    part("io.containerd.grpc.v1", "diff"),
    part("io.containerd.grpc.v1", "events"),
    part("io.containerd.grpc.v1", "healthcheck"),
    part("io.containerd.grpc.v1", "images"),
    part("io.containerd.grpc.v1", "introspection"),
    part("io.containerd.grpc.v1", "leases"),
    part("io.containerd.grpc.v1", "namespaces"),
    part("io.containerd.grpc.v1", "sandbox-controllers"),
    part("io.containerd.grpc.v1", "sandboxes"),
    part("io.containerd.grpc.v1", "snapshots"),
    part("io.containerd.grpc.v1", "streaming"),
    part("io.containerd.grpc.v1", "tasks"),
    part("io.containerd.grpc.v1", "transfer"),
    part("io.containerd.grpc.v1", "version"),
    part("io.containerd.ttrpc.v1", "events"),
];

#[tonic::async_trait]
impl Introspection for Api {
    async fn plugins(&self, request: Request<wire::PluginsRequest>) -> Result<Response<wire::PluginsResponse>, Status> {
        let filters = Filters::parse(&request.get_ref().filters).or_status(STEP)?;
        let plugins = PARTS.iter().map(|part| self.plugin(part)).filter(|plugin| filters.matches(plugin)).collect();
        Ok(Response::new(wire::PluginsResponse { plugins }))
    }

    async fn server(&self, _: Request<()>) -> Result<Response<wire::ServerResponse>, Status> {
        let pidns = std::fs::metadata("/proc/self/ns/pid").map(|meta| std::os::unix::fs::MetadataExt::ino(&meta));
        Ok(Response::new(wire::ServerResponse {
            uuid: self.uuid.clone(),
            pid: u64::from(std::process::id()),
            pidns: pidns.unwrap_or_default(),
            deprecations: Vec::new(),
        }))
    }

    async fn plugin_info(
        &self,
        request: Request<wire::PluginInfoRequest>,
    ) -> Result<Response<wire::PluginInfoResponse>, Status> {
        let request = request.into_inner();
        let found = PARTS.iter().find(|part| part.kind == request.r#type && part.id == request.id);
        let found = found.ok_or_else(|| Error::not_found("plugin", format!("{}.{}", request.r#type, request.id)));
        let plugin = self.plugin(found.or_status(STEP)?);
        let extra = match request.options.filter(|_| plugin.r#type == RUNTIME) {
            Some(options) => Some(self.runtime_info(&options).await.or_status(STEP)?),
            None => None,
        };
        Ok(Response::new(wire::PluginInfoResponse { plugin: Some(plugin), extra }))
    }
}

impl Api {
    fn plugin(&self, part: &Part) -> wire::Plugin {
        let platform =
            Platform { os: "linux".to_owned(), architecture: architecture().to_owned(), ..Platform::default() };
        // Where snapshots lie is looked up by those who make their own beside them.
        let export = |name: &str, value: String| HashMap::from([(name.to_owned(), value)]);
        let exports = match (part.kind, Snapshotter::named(part.id)) {
            ("io.containerd.snapshotter.v1", Some(of)) => export("root", self.snapshots.of(of).root()),
            // Where `ctr install` puts programs.
            ("io.containerd.internal.v1", _) => export("path", self.opt.display().to_string()),
            _ => HashMap::new(),
        };
        wire::Plugin {
            r#type: part.kind.to_owned(),
            id: part.id.to_owned(),
            platforms: if part.has_platform { vec![platform] } else { Vec::new() },
            exports,
            ..wire::Plugin::default()
        }
    }

    /// What a runtime tells of itself.
    async fn runtime_info(&self, options: &Any) -> OurResult<Any> {
        let invalid = |why: String| Error::invalid("options", why);
        let request: Option<RuntimeRequest> =
            proto_containerd::from_any(options).map_err(|error| invalid(error.to_string()))?;
        let request = request.ok_or_else(|| invalid(format!("{:?} is no RuntimeRequest", options.type_url)))?;
        let info = self.tasks.runtime_info(&request.runtime_path, request.options.as_ref()).await?;
        Ok(Any { type_url: RuntimeInfo::full_name(), value: info })
    }
}

impl Fields for wire::Plugin {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        match path.first()?.as_str() {
            "type" => present(&self.r#type),
            "id" => present(&self.id),
            "platforms" => self.platforms.first().map(|platform| platform.architecture.as_str().into()),
            _ => None,
        }
    }
}
