//! Packs a layer straight into the content store.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::make::{Changes, Packing, pack};
use crate::content::{Content, Opening, Writer};
use crate::error::Result;
use crate::name::Digest;

/// Pieces of an archive on their way to the content store.
const QUEUE: usize = 8;

/// Writes the archive of `changes` to an ingest, which is still to be committed; gives the digest of the plain archive.
pub(crate) async fn pack_to(
    content: Arc<Content>,
    opening: Opening,
    changes: Changes,
    packing: Packing,
) -> Result<(Writer, Digest)> {
    let mut writer = Writer::open(content, opening).await?;
    // What an earlier attempt left there is another archive.
    writer.reset().await?;
    let (sender, mut packed) = mpsc::channel(QUEUE);
    let packing = tokio::task::spawn_blocking(move || pack(&changes, packing, Sink(sender)));
    while let Some(bytes) = packed.recv().await {
        writer.write(bytes).await?;
    }
    let digest = packing.await.unwrap_or_else(|failure| std::panic::resume_unwind(failure.into_panic()))?;
    Ok((writer, digest))
}

/// Takes an archive's bytes on their way to the content store.
struct Sink(mpsc::Sender<Bytes>);

impl std::io::Write for Sink {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        // The store has said why it takes no more.
        let closed = |_| std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        self.0.blocking_send(Bytes::copy_from_slice(data)).map_err(closed)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
