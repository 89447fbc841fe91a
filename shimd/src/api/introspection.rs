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
use super::mapping::knows_mappings;
use super::scope::OrStatus;
use crate::error::{Error, Result as OurResult};
use crate::filter::{Fields, Filters, present};
use crate::snapshot::Snapshotter;
use crate::transfer::architecture;

const STEP: &str = "report";
/// Parts that keep snapshots.
const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";
/// The part that knows runtimes.
const RUNTIME: &str = "io.containerd.runtime.v2";

/// Kinds of the others.
const CONTENT: &str = "io.containerd.content.v1";
const METADATA: &str = "io.containerd.metadata.v1";
const DIFFER: &str = "io.containerd.differ.v1";
const GC: &str = "io.containerd.gc.v1";
const EVENT: &str = "io.containerd.event.v1";
const LEASE: &str = "io.containerd.lease.v1";
const SHIM: &str = "io.containerd.shim.v1";
const STREAMING: &str = "io.containerd.streaming.v1";
const TRANSFER: &str = "io.containerd.transfer.v1";
const SANDBOX_STORE: &str = "io.containerd.sandbox.store.v1";
const SANDBOX_CONTROLLER: &str = "io.containerd.sandbox.controller.v1";
const SERVICE: &str = "io.containerd.service.v1";
const GRPC: &str = "io.containerd.grpc.v1";

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
    part(CONTENT, "content"),
    platform_part(SNAPSHOTTER, "overlayfs"),
    platform_part(SNAPSHOTTER, "native"),
    part("io.containerd.internal.v1", "opt"),
    part(METADATA, "bolt"),
    platform_part(DIFFER, "walking"),
    part(GC, "scheduler"),
    part(EVENT, "exchange"),
    part(LEASE, "manager"),
    platform_part(RUNTIME, "task"),
    part(SHIM, "manager"),
    part(STREAMING, "manager"),
    platform_part(TRANSFER, "local"),
    part(SANDBOX_STORE, "local"),
    part(SANDBOX_CONTROLLER, "shim"),
    part(SERVICE, "containers-service"),
    part(SERVICE, "content-service"),
    part(SERVICE, "diff-service"),
    part(SERVICE, "images-service"),
    part(SERVICE, "introspection-service"),
    part(SERVICE, "leases-service"),
    part(SERVICE, "namespaces-service"),
    part(SERVICE, "snapshots-service"),
    part(SERVICE, "tasks-service"),
    part(GRPC, "containers"),
    part(GRPC, "content"),
    part(GRPC, "diff"),
    part(GRPC, "events"),
    part(GRPC, "healthcheck"),
    part(GRPC, "images"),
    part(GRPC, "introspection"),
    part(GRPC, "leases"),
    part(GRPC, "namespaces"),
    part(GRPC, "sandbox-controllers"),
    part(GRPC, "sandboxes"),
    part(GRPC, "snapshots"),
    part(GRPC, "streaming"),
    part(GRPC, "tasks"),
    part(GRPC, "transfer"),
    part(GRPC, "version"),
    part("io.containerd.ttrpc.v1", "events"),
];

/// On which kinds of parts a part stands, as containerd 2.1 says, of those that are here.
fn requirements(part: &Part) -> &'static [&'static str] {
    match (part.kind, part.id) {
        (METADATA, _) => &[CONTENT, EVENT, SNAPSHOTTER],
        (GC | DIFFER | SANDBOX_STORE | STREAMING, _) => &[METADATA],
        (SERVICE, "content-service" | "snapshots-service") => &[METADATA],
        (LEASE, _) | (SERVICE, "images-service" | "leases-service") => &[METADATA, GC],
        (SHIM, _) | (SERVICE, "containers-service" | "namespaces-service") => &[EVENT, METADATA],
        (SERVICE, "diff-service") => &[DIFFER],
        (SERVICE, "tasks-service") => &[EVENT, RUNTIME, METADATA],
        (RUNTIME, _) => &[SHIM],
        (TRANSFER, _) => &[LEASE, METADATA, DIFFER, SNAPSHOTTER],
        (SANDBOX_CONTROLLER, _) => &[SHIM, EVENT],
        (GRPC, "events") | ("io.containerd.ttrpc.v1", _) => &[EVENT],
        (GRPC, "leases") => &[LEASE],
        (GRPC, "sandboxes") => &[SANDBOX_STORE],
        (GRPC, "sandbox-controllers") => &[SANDBOX_CONTROLLER, EVENT],
        (GRPC, "streaming") => &[STREAMING],
        (GRPC, "transfer") => &[TRANSFER, STREAMING],
        (GRPC, "healthcheck" | "version") => &[],
        (GRPC, _) => &[SERVICE],
        _ => &[],
    }
}

#[tonic::async_trait]
impl Introspection for Api {
    async fn plugins(&self, request: Request<wire::PluginsRequest>) -> Result<Response<wire::PluginsResponse>, Status> {
        let filters = Filters::parse(&request.get_ref().filters).or_status(STEP)?;
        let knows = knows_mappings(request.metadata());
        let plugins =
            PARTS.iter().map(|part| self.plugin(part, knows)).filter(|plugin| filters.matches(plugin)).collect();
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
        let knows = knows_mappings(request.metadata());
        let request = request.into_inner();
        let found = PARTS.iter().find(|part| part.kind == request.r#type && part.id == request.id);
        let found = found.ok_or_else(|| Error::not_found("plugin", format!("{}.{}", request.r#type, request.id)));
        let plugin = self.plugin(found.or_status(STEP)?, knows);
        let extra = match request.options.filter(|_| plugin.r#type == RUNTIME) {
            Some(options) => Some(self.runtime_info(&options).await.or_status(STEP)?),
            None => None,
        };
        Ok(Response::new(wire::PluginInfoResponse { plugin: Some(plugin), extra }))
    }
}

impl Api {
    fn plugin(&self, part: &Part, knows_mappings: bool) -> wire::Plugin {
        let platform =
            Platform { os: "linux".to_owned(), architecture: architecture().to_owned(), ..Platform::default() };
        // Where snapshots lie is looked up by those who make their own beside them.
        let export = |name: &str, value: String| HashMap::from([(name.to_owned(), value)]);
        let exports = match (part.kind, Snapshotter::named(part.id)) {
            (SNAPSHOTTER, Some(of)) => export("root", self.snapshots.of(of).root()),
            // Where `ctr install` puts programs.
            ("io.containerd.internal.v1", _) => export("path", self.opt.display().to_string()),
            _ => HashMap::new(),
        };
        // Clients map ids in a snapshot themselves, file by file, where the snapshotter does not say that it can be
        // mounted so.
        let capabilities = match (part.kind, Snapshotter::named(part.id)) {
            (SNAPSHOTTER, Some(of)) if knows_mappings && self.snapshots.of(of).maps_ids() => {
                vec!["remap-ids".to_owned()]
            }
            _ => Vec::new(),
        };
        wire::Plugin {
            r#type: part.kind.to_owned(),
            id: part.id.to_owned(),
            platforms: if part.has_platform { vec![platform] } else { Vec::new() },
            requires: requirements(part).iter().map(|kind| (*kind).to_owned()).collect(),
            exports,
            capabilities,
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
