//! What comes in: containerd's gRPC services, and its events service for shims over ttrpc.
//!
//! A file per service. Each translates requests into calls of the core and answers back, and decides nothing; errors
//! become statuses in [`scope`], traces are handled around all services in [`traced`].

mod containers;
mod content;
mod convert;
mod details;
mod diff;
mod events;
mod images;
mod introspection;
mod leases;
mod mapping;
mod namespaces;
mod sandbox_controller;
mod sandboxes;
mod scope;
mod snapshots;
mod streaming;
mod tasks;
mod traced;
mod transfer;
mod ttrpc;
mod version;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use proto_containerd::MESSAGE_MAX;
use proto_containerd::services as wire;
use strata_authority::PlainHosts;
use tokio::net::UnixListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::transfer::stream;
pub(crate) use ttrpc::serve_events;

/// Bytes that a client may send on a stream before they are read: blobs come fast.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Longest frame that a client may send: fewer frames, fewer system calls.
const FRAME_MAX: u32 = 256 << 10;

/// What every service is made of.
#[derive(Clone)]
struct Api(Arc<Daemon>);

impl std::ops::Deref for Api {
    type Target = Arc<Daemon>;

    fn deref(&self) -> &Arc<Daemon> {
        &self.0
    }
}

/// Serves the API on `listener` until `stop` resolves.
pub(crate) async fn serve(daemon: Arc<Daemon>, listener: UnixListener, stop: impl Future<Output = ()>) -> Result<()> {
    let failed = |why: String| Error::io("serve the API", std::io::Error::other(why));
    let reflection = |error: tonic_reflection::server::Error| failed(error.to_string());
    let mut server = Server::builder()
        .max_concurrent_streams(u32::MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_MAX)
        .layer(details::DetailsLayer)
        .layer(traced::TraceLayer);
    macro_rules! service {
        ($($server:ident)::*) => {
            wire::$($server)::*::new(Api(daemon.clone()))
                .max_decoding_message_size(MESSAGE_MAX)
                .max_encoding_message_size(MESSAGE_MAX)
        };
    }
    let connections = UnixListenerStream::new(listener).map(|connection| connection.map(PlainHosts::new));
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    server
        .add_service(health_service)
        .add_service(reflection_service().build_v1().map_err(reflection)?)
        .add_service(reflection_service().build_v1alpha().map_err(reflection)?)
        .add_service(service!(containers::containers_server::ContainersServer))
        .add_service(service!(content::content_server::ContentServer))
        .add_service(service!(diff::diff_server::DiffServer))
        .add_service(service!(events::events_server::EventsServer))
        .add_service(service!(images::images_server::ImagesServer))
        .add_service(service!(introspection::introspection_server::IntrospectionServer))
        .add_service(service!(leases::leases_server::LeasesServer))
        .add_service(service!(namespaces::namespaces_server::NamespacesServer))
        .add_service(service!(sandbox::controller_server::ControllerServer))
        .add_service(service!(sandbox::store_server::StoreServer))
        .add_service(service!(snapshots::snapshots_server::SnapshotsServer))
        .add_service(
            service!(streaming::streaming_server::StreamingServer).max_decoding_message_size(stream::MESSAGE_MAX),
        )
        .add_service(service!(tasks::tasks_server::TasksServer))
        .add_service(service!(transfer::transfer_server::TransferServer))
        .add_service(service!(version::version_server::VersionServer))
        .serve_with_incoming_shutdown(connections, stop)
        .await
        .map_err(|error| failed(crate::error::Chain(&error).to_string()))
}

fn reflection_service() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto_containerd::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// Listens at `path`, for root alone, or for the members of a group too. Who left a socket there is gone: its owner
/// would hold the store.
pub(crate) fn listen(path: &Path, group: Option<u32>) -> Result<UnixListener> {
    let failed = |source| Error::io(format!("listen at {}", path.display()), source);
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // The mode is right from the first moment on: nobody else can connect in between.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = strata_ttrpc::server::listen(path);
    rustix::process::umask(before);
    let listener = listener.map_err(failed)?;
    if let Some(group) = group {
        std::os::unix::fs::chown(path, None, Some(group)).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    }
    Ok(listener)
}
