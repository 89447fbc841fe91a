//! The events service.

use futures_util::stream::{self, BoxStream, StreamExt};
use proto_containerd::services::events as wire;
use proto_containerd::services::events::events_server::Events;
use proto_containerd::types::Envelope as WireEnvelope;
use tonic::{Request, Response, Status};

use super::Api;
use super::convert::required;
use super::scope::{OrStatus, Scope};
use crate::clock;
use crate::error::Result as OurResult;
use crate::event::Envelope;
use crate::filter::Filters;

const STEP: &str = "report";

#[tonic::async_trait]
impl Events for Api {
    async fn publish(&self, request: Request<wire::PublishRequest>) -> Result<Response<()>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let request = request.into_inner();
        let envelope = Envelope {
            timestamp: clock::now(),
            namespace: scope.namespace.to_string(),
            topic: request.topic,
            event: required(request.event, "event").or_status(STEP)?,
        };
        self.events.forward(envelope).or_status(STEP)?;
        Ok(Response::new(()))
    }

    async fn forward(&self, request: Request<wire::ForwardRequest>) -> Result<Response<()>, Status> {
        let envelope = required(request.into_inner().envelope, "envelope").or_status(STEP)?;
        from_wire(envelope).and_then(|envelope| self.events.forward(envelope)).or_status(STEP)?;
        Ok(Response::new(()))
    }

    type SubscribeStream = BoxStream<'static, Result<WireEnvelope, Status>>;

    async fn subscribe(
        &self,
        request: Request<wire::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let filters = Filters::parse(&request.get_ref().filters).or_status(STEP)?;
        let subscription = self.events.subscribe(filters);
        let envelopes = stream::unfold(Some(subscription), |subscription| async {
            let mut subscription = subscription?;
            let next = subscription.next().await?;
            let rest = next.is_ok().then_some(subscription);
            Some((next.map(|envelope| to_wire(&envelope)).or_status(STEP), rest))
        });
        Ok(Response::new(envelopes.boxed()))
    }
}

fn to_wire(envelope: &Envelope) -> WireEnvelope {
    WireEnvelope {
        timestamp: Some(envelope.timestamp),
        namespace: envelope.namespace.clone(),
        topic: envelope.topic.clone(),
        event: Some(envelope.event.clone()),
    }
}

fn from_wire(wire: WireEnvelope) -> OurResult<Envelope> {
    Ok(Envelope {
        // containerd 2.x takes none for the beginning of time.
        timestamp: wire.timestamp.unwrap_or_default(),
        namespace: wire.namespace,
        topic: wire.topic,
        event: required(wire.event, "event")?,
    })
}
