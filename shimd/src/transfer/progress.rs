//! What a client is told while a transfer goes on. It is for people's eyes: a client that does not read misses some.

use std::time::Duration;

use proto_containerd::types::Descriptor as WireDescriptor;
use proto_containerd::types::transfer::Progress as Message;

use super::document::Descriptor;
use super::stream::Stream;

/// How long the end of a transfer waits for a client that is still being told of it.
const SETTLING: Duration = Duration::from_millis(200);

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

    /// Waits a moment until all that was told is on its way: clients count the names that they were told as soon as the
    /// transfer has ended, and the answer to it would overtake the last ones.
    pub(super) async fn settle(&self) {
        let Some(stream) = &self.0 else { return };
        // All places of a queue are free when it is empty.
        let emptied = stream.outgoing.reserve_many(stream.outgoing.max_capacity());
        let _ = tokio::time::timeout(SETTLING, emptied).await;
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

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::super::stream::QUEUE;
    use super::*;

    #[tokio::test]
    async fn a_client_is_told_the_last_before_the_transfer_ends() {
        let (_client, incoming) = mpsc::channel(QUEUE);
        let (outgoing, mut to_client) = mpsc::channel(QUEUE);
        let progress = Progress::on(Stream { incoming, outgoing });
        progress.event("first");
        progress.event("last");
        let reading = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let told = (to_client.recv().await.is_some(), to_client.recv().await.is_some());
            (told, to_client)
        });
        progress.settle().await;
        assert!(reading.is_finished());
        let (told, _to_client) = reading.await.unwrap();
        assert_eq!(told, (true, true));
        // Nobody reads this any more, and it is over all the same.
        progress.event("unread");
        progress.settle().await;
    }
}
