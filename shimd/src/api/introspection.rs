//! The introspection service: what shimd is made of, told as containerd's plug-ins, which clients look for.

use proto_containerd::services::introspection as wire;
use proto_containerd::services::introspection::introspection_server::Introspection;
use proto_containerd::types::Platform;
use std::borrow::Cow;
use tonic::{Request, Response, Status};

use super::Api;
use super::scope::OrStatus;
use crate::error::Error;
use crate::filter::{Fields, Filters, present};

const STEP: &str = "report";

/// Type and id of each part, as containerd calls them.
const PARTS: [(&str, &str); 18] = [
    ("io.containerd.content.v1", "content"),
    ("io.containerd.snapshotter.v1", "overlayfs"),
    ("io.containerd.metadata.v1", "bolt"),
    ("io.containerd.differ.v1", "walking"),
    ("io.containerd.gc.v1", "scheduler"),
    ("io.containerd.event.v1", "exchange"),
    ("io.containerd.runtime.v2", "task"),
    ("io.containerd.grpc.v1", "containers"),
    ("io.containerd.grpc.v1", "content"),
    ("io.containerd.grpc.v1", "diff"),
    ("io.containerd.grpc.v1", "events"),
    ("io.containerd.grpc.v1", "images"),
    ("io.containerd.grpc.v1", "introspection"),
    ("io.containerd.grpc.v1", "leases"),
    ("io.containerd.grpc.v1", "namespaces"),
    ("io.containerd.grpc.v1", "snapshots"),
    ("io.containerd.grpc.v1", "tasks"),
    ("io.containerd.grpc.v1", "version"),
];

#[tonic::async_trait]
impl Introspection for Api {
    async fn plugins(&self, request: Request<wire::PluginsRequest>) -> Result<Response<wire::PluginsResponse>, Status> {
        let filters = Filters::parse(&request.get_ref().filters).or_status(STEP)?;
        let plugins = PARTS.iter().map(plugin).filter(|plugin| filters.matches(plugin)).collect();
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
        let found = PARTS.iter().find(|(kind, id)| *kind == request.r#type && *id == request.id);
        let part = found.ok_or_else(|| Error::not_found("plugin", format!("{}.{}", request.r#type, request.id)));
        let plugin = plugin(part.or_status(STEP)?);
        Ok(Response::new(wire::PluginInfoResponse { plugin: Some(plugin), extra: None }))
    }
}

fn plugin((kind, id): &(&str, &str)) -> wire::Plugin {
    let platform = Platform { os: "linux".to_owned(), architecture: architecture().to_owned(), ..Platform::default() };
    wire::Plugin {
        r#type: (*kind).to_owned(),
        id: (*id).to_owned(),
        platforms: vec![platform],
        ..wire::Plugin::default()
    }
}

/// Go's name of the processor.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
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
