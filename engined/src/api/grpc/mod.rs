//! `strata.engine.v1` on a unix socket, with server reflection and the standard health service.

mod containers;
mod images;
mod session;
mod system;
mod trace;
mod wanted;
mod wire;

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use proto_engine::FILE_DESCRIPTOR_SET;
use proto_engine::containers_server::ContainersServer;
use proto_engine::images_server::ImagesServer;
use proto_engine::system_server::SystemServer;
use strata_authority::PlainHosts;
use tokio::net::UnixListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::config::Config;
use crate::engine::Engine;

/// Most bytes of one message that a client may send: a seccomp profile is the largest thing in a request.
const MESSAGE_MAX: usize = 16 << 20;
/// Bytes of input that one stream may have in flight.
const STREAM_WINDOW: u32 = 1 << 20;
/// Who may use the socket: root, and the group that owns it.
const SOCKET_MODE: u32 = 0o660;

/// Opens the socket, in place of one that a killed predecessor left.
pub(crate) fn listen(config: &Config) -> io::Result<UnixListener> {
    remove_stale(&config.address)?;
    let listener = UnixListener::bind(&config.address)?;
    std::os::unix::fs::chown(&config.address, None, config.socket_gid)?;
    // Until now the umask decided; the daemon sets a strict one before.
    fs::set_permissions(&config.address, fs::Permissions::from_mode(SOCKET_MODE))?;
    Ok(listener)
}

/// Removes a socket that is there; anything else that has the name is somebody's.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(status) if status.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => Err(io::Error::from(io::ErrorKind::AlreadyExists)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Serves until `end`.
pub(crate) async fn serve(
    engine: Engine,
    listener: UnixListener,
    end: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<ContainersServer<containers::Containers>>().await;
    health.set_serving::<ImagesServer<images::Images>>().await;
    health.set_serving::<SystemServer<system::System>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .unwrap_or_else(|error| unreachable!("our own descriptors are whole: {error}"));
    let containers = ContainersServer::new(containers::Containers::new(engine.clone()));
    let images = ImagesServer::new(images::Images::new(engine.clone()));
    let system = SystemServer::new(system::System::new(engine));
    let connections = UnixListenerStream::new(listener).map(|connection| connection.map(PlainHosts::new));
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .layer(trace::TraceLayer)
        .add_service(health_service)
        .add_service(reflection)
        .add_service(containers.max_decoding_message_size(MESSAGE_MAX))
        .add_service(images.max_decoding_message_size(MESSAGE_MAX))
        .add_service(system.max_decoding_message_size(MESSAGE_MAX))
        .serve_with_incoming_shutdown(connections, end)
        .await
}
