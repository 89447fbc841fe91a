//! containerd's events service over ttrpc, at `ADDRESS.ttrpc`: where shims publish.

use std::sync::Arc;

use prost::Message;
use proto_shim::events_ttrpc::ForwardRequest;
use proto_shim::service;
use strata_ttrpc::message::{INVALID_ARGUMENT, UNIMPLEMENTED};
use strata_ttrpc::server::Handler;
use strata_ttrpc::{Request, Status};
use tokio::net::UnixListener;

use crate::clock;
use crate::event::{Envelope, Events};
use crate::task::Tasks;

struct Forward {
    events: Arc<Events>,
    tasks: Arc<Tasks>,
}

/// Serves shims until the future is dropped.
pub(crate) async fn serve_events(listener: UnixListener, events: Arc<Events>, tasks: Arc<Tasks>) {
    strata_ttrpc::server::serve(listener, Arc::new(Forward { events, tasks })).await;
}

impl Handler for Forward {
    async fn call(&self, request: Request) -> Result<Vec<u8>, Status> {
        if request.service != service::EVENTS || request.method != "Forward" {
            let what = format!("no method {} in service {}", request.method, request.service);
            return Err(Status::new(UNIMPLEMENTED, what));
        }
        let invalid = |why: String| Status::new(INVALID_ARGUMENT, why);
        let message = ForwardRequest::decode(request.payload.as_slice()).map_err(|error| invalid(error.to_string()))?;
        let envelope = message.envelope.ok_or_else(|| invalid("envelope: it is missing".to_owned()))?;
        let envelope = Envelope {
            timestamp: envelope.timestamp.unwrap_or_else(clock::now),
            namespace: envelope.namespace,
            topic: envelope.topic,
            event: envelope.event.unwrap_or_default(),
        };
        // First: whoever hears of it may ask at once.
        self.tasks.hear(&envelope);
        self.events.forward(envelope).map_err(|error| invalid(error.to_string()))?;
        Ok(Vec::new())
    }
}
