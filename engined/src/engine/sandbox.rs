//! Sandboxes: the namespaces and the place on the network that one or more containers share.
//!
//! A plain container has one of its own, with its id. The record says what is connected, so that a start of the engine
//! finds the endpoint again, or takes apart what nobody needs.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use strata_fault::Fault;

use super::container::wanted::{Network as Wanted, NetworkMode, Port};
use super::error::Error;
use super::event::Kind;
use super::means::Means;
use crate::network::{Endpoint, EndpointId, Network, PortRequest};
use crate::store::{Store, Table};

/// A sandbox as the store keeps it, while it is connected.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) endpoint: Endpoint,
}

/// Where the network namespace of a sandbox will be pinned, before it is.
pub(crate) fn namespace_path(means: &Means, id: &str, mode: NetworkMode) -> Option<String> {
    let path = means.settings.namespaces.join(id);
    (mode == NetworkMode::Bridge).then(|| path.to_string_lossy().into_owned())
}

/// Connects a sandbox as it is wanted; `None` where there is nothing to connect. Its record is kept.
pub(crate) async fn connect(means: &Means, id: &str, wanted: &Wanted) -> Result<Option<Arc<Endpoint>>, Fault> {
    if wanted.mode != NetworkMode::Bridge {
        return Ok(None);
    }
    let endpoint_id = endpoint_id(id)?;
    let ports: Vec<PortRequest> = wanted.ports.iter().map(port_request).collect();
    let endpoint = on_network(means, move |network| network.attach(&endpoint_id, &ports)).await?;
    let sandbox = Sandbox { id: id.to_owned(), endpoint };
    if let Err(fault) = keep(&means.store, &sandbox) {
        disconnect(means, id).await?;
        return Err(fault);
    }
    Ok(Some(Arc::new(sandbox.endpoint)))
}

fn keep(store: &Store, sandbox: &Sandbox) -> Result<(), Fault> {
    let json = serde_json::to_vec(sandbox).map_err(|source| Error::Json { what: "a sandbox's record", source })?;
    Ok(store.put(Table::Sandboxes, &sandbox.id, json).map_err(|source| Error::Store { source })?)
}

/// Disconnects a sandbox: its ports are free when this returns. One that is not connected is no error.
pub(crate) async fn disconnect(means: &Means, id: &str) -> Result<(), Fault> {
    let endpoint_id = endpoint_id(id)?;
    let outcome = on_network(means, move |network| network.detach(&endpoint_id)).await;
    means.store.remove(Table::Sandboxes, id).map_err(|source| Error::Store { source })?;
    outcome
}

/// Tells everybody that a container came to the bridge, or left it.
pub(crate) fn emit(means: &Means, action: &'static str, container: &str) {
    let attributes = [("container".to_owned(), container.to_owned()), ("type".to_owned(), "bridge".to_owned())];
    means.events.emit(Kind::Network, action, &means.settings.bridge, attributes.into_iter().collect());
}

fn endpoint_id(id: &str) -> Result<EndpointId, Fault> {
    id.parse().map_err(|error: crate::network::Error| Fault::from(error))
}

fn port_request(port: &Port) -> PortRequest {
    PortRequest {
        host_ip: port.host_ip,
        host_port: port.host_port,
        container_port: port.container_port,
        protocol: port.protocol,
    }
}

/// Netlink answers when the kernel has done it: that is no work for a thread of the runtime.
async fn on_network<T: Send + 'static>(
    means: &Means,
    work: impl FnOnce(&Network) -> Result<T, crate::network::Error> + Send + 'static,
) -> Result<T, Fault> {
    let network = Arc::clone(&means.network);
    match tokio::task::spawn_blocking(move || work(&network)).await {
        Ok(outcome) => outcome.map_err(Fault::from),
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}
