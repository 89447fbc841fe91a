//! The supervisor below: a client of containerd's API, over one connection that comes back when shimd does.
//!
//! Requests carry our namespace and, while a traced request is served, its trace context; answers give their spans to the
//! request's collector. A status becomes a [`Fault`]: one of Strata's programs sent a whole one, a stranger's is given
//! the layer of the operation (see [`foreign`]). Nothing here knows what a container is.

pub(crate) mod containers;
pub(crate) mod content;
mod diff;
pub(crate) mod events;
mod foreign;
pub(crate) mod images;
pub(crate) mod leases;
pub(crate) mod snapshots;
pub(crate) mod tasks;
pub(crate) mod version;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use prost::Message;
use proto_containerd::services::containers::containers_client::ContainersClient;
use proto_containerd::services::content::content_client::ContentClient;
use proto_containerd::services::diff::diff_client::DiffClient;
use proto_containerd::services::events::events_client::EventsClient;
use proto_containerd::services::images::images_client::ImagesClient;
use proto_containerd::services::leases::leases_client::LeasesClient;
use proto_containerd::services::namespaces::namespaces_client::NamespacesClient;
use proto_containerd::services::snapshots::snapshots_client::SnapshotsClient;
use proto_containerd::services::tasks::tasks_client::TasksClient;
use proto_containerd::services::version::version_client::VersionClient;
use proto_containerd::{LEASE_HEADER, MESSAGE_MAX, NAMESPACE_HEADER};
use strata_fault::{Fault, Layer};
use strata_trace::collect;
use strata_trace::{SPANS_TRAILER, Spans, TRACEPARENT};
use tokio::net::UnixStream;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status};

/// Bytes that one stream may have in flight: a layer is pushed through at memory speed, and idle streams cost nothing.
const STREAM_WINDOW: u32 = 1 << 20;
/// The same for the whole connection.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// How long a request waits for a supervisor that is not there: as long as a restart takes, with room to spare.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// How long between two tries to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);

/// What the generated clients stand on.
pub(crate) type Wire = InterceptedService<Channel, Headers>;

/// A name that cannot stand in a header.
#[derive(Debug)]
pub(crate) struct HeaderError {
    what: &'static str,
    value: String,
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "use {:?} as the {} in requests", self.value, self.what)
    }
}

impl std::error::Error for HeaderError {}

fn header(what: &'static str, value: &str) -> Result<MetadataValue<Ascii>, HeaderError> {
    value.parse().map_err(|_| HeaderError { what, value: value.to_owned() })
}

/// Adds what every request carries.
#[derive(Clone)]
pub(crate) struct Headers {
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert(NAMESPACE_HEADER, self.namespace.clone());
        if let Some(lease) = &self.lease {
            metadata.insert(LEASE_HEADER, lease.clone());
        }
        if collect::current().is_some() {
            metadata.insert(TRACEPARENT, trace_context());
        }
        Ok(request)
    }
}

/// A sampled context. Spans come back with each answer, so layers below need no common trace id to be put together.
fn trace_context() -> MetadataValue<Ascii> {
    MetadataValue::from_static("00-00000000000000000000000000000001-0000000000000001-01")
}

/// A client of the supervisor; clones share the connection.
#[derive(Clone)]
pub(crate) struct Client {
    channel: Channel,
    headers: Headers,
}

macro_rules! clients {
    ($($name:ident: $client:ident),* $(,)?) => {
        impl Client {
            $(
                #[doc = concat!("The `", stringify!($name), "` service.")]
                pub(crate) fn $name(&self) -> $client<Wire> {
                    $client::with_interceptor(self.channel.clone(), self.headers.clone())
                        .max_decoding_message_size(MESSAGE_MAX)
                        .max_encoding_message_size(MESSAGE_MAX)
                }
            )*
        }
    };
}

clients! {
    containers: ContainersClient,
    content: ContentClient,
    diff: DiffClient,
    events: EventsClient,
    images: ImagesClient,
    leases: LeasesClient,
    namespaces: NamespacesClient,
    snapshots: SnapshotsClient,
    tasks: TasksClient,
    version: VersionClient,
}

impl Client {
    /// A client that connects with its first request, and again whenever the connection broke.
    pub(crate) fn new(address: &Path, namespace: &str) -> Result<Client, HeaderError> {
        let headers = Headers { namespace: header("namespace", namespace)?, lease: None };
        let address: PathBuf = address.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let address = address.clone();
            async move { connect(&address).await.map(TokioIo::new) }
        });
        // The authority is nobody's name: the socket says who is asked.
        let channel = Endpoint::from_static("http://localhost")
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect_with_connector_lazy(connector);
        Ok(Client { channel, headers })
    }

    /// A client whose requests' creations belong to a lease.
    pub(crate) fn with_lease(&self, lease: &str) -> Result<Client, HeaderError> {
        let mut client = self.clone();
        client.headers.lease = Some(header("lease", lease)?);
        Ok(client)
    }
}

/// Connects; a supervisor that is being restarted is waited for, so that its restart fails no request.
async fn connect(address: &Path) -> io::Result<UnixStream> {
    let give_up = Instant::now() + CONNECT_PATIENCE;
    loop {
        match UnixStream::connect(address).await {
            Err(error) if is_absent(&error) && Instant::now() < give_up => tokio::time::sleep(CONNECT_PAUSE).await,
            outcome => return outcome,
        }
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// The message of an answer. Its spans go to the request's collector, and a status becomes the fault it carries, or one
/// of the supervisor at `step`.
pub(crate) fn answer<T>(step: &str, result: Result<Response<T>, Status>) -> Result<T, Fault> {
    match result {
        Ok(response) => {
            gather(response.metadata());
            Ok(response.into_inner())
        }
        Err(status) => {
            gather(status.metadata());
            Err(foreign::fault(&status, Layer::Supervisor, step))
        }
    }
}

/// As [`answer`]; what is not there is `None`.
pub(crate) fn answer_if_found<T>(step: &str, result: Result<Response<T>, Status>) -> Result<Option<T>, Fault> {
    match result {
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        other => answer(step, other).map(Some),
    }
}

fn gather(metadata: &MetadataMap) {
    let Some(value) = metadata.get_bin(SPANS_TRAILER) else { return };
    let Some(collector) = collect::current() else { return };
    let spans = value.to_bytes().ok().and_then(|bytes| Spans::decode(bytes).ok());
    collector.add(spans.map(|spans| spans.spans).unwrap_or_default());
}

/// Whether a fault says that the supervisor could not be reached, rather than that it refused.
pub(crate) fn is_unreachable(fault: &Fault) -> bool {
    fault.code == foreign::SUPERVISOR_UNREACHABLE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_cannot_be_a_header_is_refused() {
        assert!(header("namespace", "strata").is_ok());
        assert_eq!(header("namespace", "a\nb").unwrap_err().to_string(), "use \"a\\nb\" as the namespace in requests");
    }
}
