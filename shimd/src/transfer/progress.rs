//! What a client is told while a transfer goes on. It is for people's eyes: a client that does not read misses some.

use proto_containerd::types::Descriptor as WireDescriptor;
use proto_containerd::types::transfer::Progress as Message;

use super::document::Descriptor;
use super::stream::Stream;

/// Where progress is told.
pub(super) struct Progress(Option<Stream>);

impl Progress {
    pub(super) fn silent() -> Progress {
        Progress(None)
    }

    pub(super) fn on(stream: Stream) -> Progress {
        Progress(Some(stream))
    }

    /// Something that concerns the whole transfer.
    pub(super) fn event(&self, event: &str) {
        self.send(Message { event: event.to_owned(), ..Message::default() });
    }

    /// Something about an image.
    pub(super) fn of_image(&self, event: &str, name: &str, target: &Descriptor) {
        self.send(Message {
            event: event.to_owned(),
            name: name.to_owned(),
            desc: Some(wire(target)),
            ..Message::default()
        });
    }

    /// How far a blob is, which belongs to the image `parent`.
    pub(super) fn of_blob(&self, event: &str, parent: &str, blob: &Descriptor, progress: u64) {
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.send(Message {
            event: event.to_owned(),
            name: reference(blob),
            parents: vec![parent.to_owned()],
            progress: number(progress),
            total: number(blob.size),
            desc: Some(wire(blob)),
        });
    }

    fn send(&self, message: Message) {
        if let Some(stream) = &self.0 {
            let _ = stream.outgoing.try_send(proto_containerd::any(&message));
        }
    }
}

/// What containerd calls a blob while it is being fetched: `layer-sha256:…`.
pub(super) fn reference(blob: &Descriptor) -> String {
    let kind = match () {
        () if blob.is_index() => "index",
        () if blob.is_manifest() => "manifest",
        () if blob.is_config() => "config",
        () if blob.is_layer() => "layer",
        () => "unknown",
    };
    format!("{kind}-{}", blob.digest)
}

fn wire(descriptor: &Descriptor) -> WireDescriptor {
    WireDescriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
        annotations: descriptor.annotations.clone().into_iter().collect(),
    }
}
