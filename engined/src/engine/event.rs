//! What happened: a bounded memory of the past, and a stream of what comes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

use super::stamp::Stamp;

/// Events that are remembered for those who ask for the past.
const REMEMBERED: usize = 1024;
/// Events that a slow listener may be behind before it loses some.
const BEHIND_MAX: usize = 1024;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Container,
    Image,
    Network,
}

impl Kind {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Kind::Container => "container",
            Kind::Image => "image",
            Kind::Network => "network",
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) kind: Kind,
    /// Docker's word.
    pub(crate) action: &'static str,
    /// The container's id, the image's name, the network's name.
    pub(crate) id: String,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) at: Stamp,
}

/// The engine's events.
pub(crate) struct Events {
    past: Mutex<VecDeque<Arc<Event>>>,
    sender: broadcast::Sender<Arc<Event>>,
}

impl Default for Events {
    fn default() -> Events {
        Events { past: Mutex::default(), sender: broadcast::Sender::new(BEHIND_MAX) }
    }
}

impl Events {
    /// Tells everybody.
    pub(crate) fn emit(&self, kind: Kind, action: &'static str, id: &str, attributes: BTreeMap<String, String>) {
        let event = Arc::new(Event { kind, action, id: id.to_owned(), attributes, at: Stamp::now() });
        let mut past = self.past();
        if past.len() == REMEMBERED {
            past.pop_front();
        }
        past.push_back(Arc::clone(&event));
        // With the lock held, so that a listener gets each event once: from the past or from the stream. Nobody listening
        // is no failure.
        let _ = self.sender.send(event);
    }

    /// What is remembered from `since` on, and what comes.
    pub(crate) fn listen(&self, since: Option<Stamp>) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let past = self.past();
        let remembered = match since {
            Some(since) => past.iter().filter(|event| event.at >= since).cloned().collect(),
            None => Vec::new(),
        };
        (remembered, self.sender.subscribe())
    }

    fn past(&self) -> MutexGuard<'_, VecDeque<Arc<Event>>> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_past_is_bounded_and_nothing_comes_twice() {
        let events = Events::default();
        for number in 0..REMEMBERED + 10 {
            events.emit(Kind::Container, "start", &number.to_string(), BTreeMap::new());
        }
        let (past, mut stream) = events.listen(Some(Stamp::from_ns(0)));
        assert_eq!((past.len(), past[0].id.as_str()), (REMEMBERED, "10"));
        assert!(stream.try_recv().is_err());
        events.emit(Kind::Image, "pull", "x", BTreeMap::new());
        assert_eq!(stream.try_recv().unwrap().action, "pull");
        assert!(events.listen(None).0.is_empty());
    }
}
