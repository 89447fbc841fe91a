//! Events: what happens, told to everybody who asked.
//!
//! Services publish, shims forward theirs over ttrpc, clients publish theirs; subscribers get what their filters match,
//! in the order in which it came. The queue is bounded ([`QUEUE`]): a subscriber that falls behind it is told so and
//! its stream ends, so that it can look anew at how things are.

use std::borrow::Cow;
use std::sync::Arc;

use prost::{Message, Name};
use prost_types::{Any, Timestamp};
use proto_containerd::events;
use proto_containerd::services::images;
use tokio::sync::broadcast;

use crate::clock;
use crate::error::{Error, Result};
use crate::filter::{Fields, Filters, present};
use crate::name::{Namespace, check_identifier};

/// Events that wait for the slowest subscriber.
const QUEUE: usize = 4096;

/// An event on its way.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Envelope {
    pub(crate) timestamp: Timestamp,
    pub(crate) namespace: String,
    pub(crate) topic: String,
    pub(crate) event: Any,
}

/// The exchange.
pub(crate) struct Events(broadcast::Sender<Arc<Envelope>>);

impl Events {
    pub(crate) fn new() -> Events {
        Events(broadcast::Sender::new(QUEUE))
    }

    /// Tells an event of shimd's own.
    pub(crate) fn publish<M: Message + Name>(&self, namespace: &Namespace, topic: &str, event: &M) {
        self.send(Envelope {
            timestamp: clock::now(),
            namespace: namespace.to_string(),
            topic: topic.to_owned(),
            event: proto_containerd::any(event),
        });
    }

    /// Passes on somebody else's event.
    pub(crate) fn forward(&self, envelope: Envelope) -> Result<()> {
        Namespace::parse(&envelope.namespace)?;
        check_topic(&envelope.topic)?;
        self.send(envelope);
        Ok(())
    }

    fn send(&self, envelope: Envelope) {
        // An error says that nobody listens.
        let _ = self.0.send(Arc::new(envelope));
    }

    /// What happens from now on, as far as it matches.
    pub(crate) fn subscribe(&self, filters: Filters) -> Subscription {
        Subscription { receiver: self.0.subscribe(), filters }
    }
}

/// One subscriber's view.
pub(crate) struct Subscription {
    receiver: broadcast::Receiver<Arc<Envelope>>,
    filters: Filters,
}

impl Subscription {
    /// The next event; `None` when shimd ends.
    pub(crate) async fn next(&mut self) -> Option<Result<Arc<Envelope>>> {
        loop {
            match self.receiver.recv().await {
                Ok(envelope) if self.filters.matches(envelope.as_ref()) => return Some(Ok(envelope)),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    return Some(Err(Error::OutOfRange {
                        what: format!("the subscriber is too slow: {missed} events lost"),
                    }));
                }
            }
        }
    }
}

/// `/a/b`: identifiers behind slashes.
fn check_topic(topic: &str) -> Result<()> {
    let mut parts = topic.split('/');
    if parts.next() != Some("") || topic.len() < 2 {
        return Err(Error::invalid(format!("topic {topic:?}"), "it must begin with a slash"));
    }
    parts.try_for_each(|part| check_identifier("part of the topic", part))
}

impl Fields for Envelope {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        match path.first()?.as_str() {
            "namespace" => present(&self.namespace),
            "topic" => present(&self.topic),
            "event" => event_field(&self.event, path.get(1)?).filter(|value| !value.is_empty()).map(Cow::Owned),
            _ => None,
        }
    }
}

macro_rules! string_fields {
    ($any:ident, $field:ident, $($message:ty: $($name:ident)*;)*) => {
        $(if let Ok(Some(event)) = proto_containerd::from_any::<$message>($any) {
            return match $field { $(stringify!($name) => Some(event.$name),)* _ => None };
        })*
    };
}

/// A text field of an event that containerd's API knows.
fn event_field(any: &Any, field: &str) -> Option<String> {
    string_fields! { any, field,
        events::TaskCreate: container_id bundle checkpoint;
        events::TaskStart: container_id;
        events::TaskDelete: container_id id;
        events::TaskExit: container_id id;
        events::TaskOom: container_id;
        events::TaskExecAdded: container_id exec_id;
        events::TaskExecStarted: container_id exec_id;
        events::TaskPaused: container_id;
        events::TaskResumed: container_id;
        events::TaskCheckpointed: container_id checkpoint;
        events::ContainerCreate: id image;
        events::ContainerUpdate: id image snapshot_key;
        events::ContainerDelete: id;
        images::ImageCreate: name;
        images::ImageUpdate: name;
        images::ImageDelete: name;
        events::NamespaceCreate: name;
        events::NamespaceUpdate: name;
        events::NamespaceDelete: name;
        events::SnapshotPrepare: key parent snapshotter;
        events::SnapshotCommit: key name snapshotter;
        events::SnapshotRemove: key snapshotter;
        events::ContentCreate: digest;
        events::ContentDelete: digest;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(namespace: &str, topic: &str) -> Envelope {
        let event = proto_containerd::any(&events::TaskOom { container_id: "c1".to_owned() });
        Envelope { timestamp: clock::now(), namespace: namespace.to_owned(), topic: topic.to_owned(), event }
    }

    #[tokio::test]
    async fn subscribers_get_what_matches() {
        let events = Events::new();
        let filters = Filters::parse(&["topic==\"/tasks/oom\",event.container_id==c1".to_owned()]).unwrap();
        let mut subscription = events.subscribe(filters);
        events.forward(envelope("ns", "/tasks/other")).unwrap();
        events.forward(envelope("ns", "/tasks/oom")).unwrap();
        assert_eq!(subscription.next().await.unwrap().unwrap().topic, "/tasks/oom");
    }

    #[tokio::test]
    async fn who_falls_behind_is_told() {
        let events = Events::new();
        let mut subscription = events.subscribe(Filters::default());
        for _ in 0..=QUEUE {
            events.forward(envelope("ns", "/t")).unwrap();
        }
        assert!(subscription.next().await.unwrap().is_err());
    }

    #[test]
    fn topics_and_namespaces_are_checked() {
        let events = Events::new();
        for (namespace, topic) in [("", "/t"), ("ns", "t"), ("ns", "/"), ("ns", ""), ("ns", "/a//b"), ("a/b", "/t")] {
            assert!(events.forward(envelope(namespace, topic)).is_err(), "{namespace} {topic}");
        }
        assert!(events.forward(envelope("ns", "/tasks/exec-added")).is_ok());
    }
}
