//! Checkpoints of tasks: images that CRIU writes into a directory, on their way between a shim and the content store.
//!
//! Of a task that is saved they lie beside the store's other files and are packed into two blobs: the images, and the
//! container's spec. For a task that is made of a checkpoint they are unpacked into its bundle, and go with that.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prost::Message;
use prost_types::Any;

use crate::content::{Commit, Content, Opening, Writer};
use crate::db::record::Labels;
use crate::diff::make::{Changes, Packing};
use crate::diff::store::pack_to;
use crate::diff::{Differ, Target};
use crate::error::{Error, Result};
use crate::layout;
use crate::name::{Digest, Namespace};
use crate::snapshot::Mount;
use crate::trash::Trash;

/// containerd's names for the two blobs.
pub(crate) const IMAGES: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";
pub(crate) const CONFIG: &str = "application/vnd.containerd.container.checkpoint.config.v1+proto";

/// A blob of a checkpoint.
pub(crate) struct Part {
    pub(crate) media_type: &'static str,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// Where images lie until they are packed.
pub(crate) struct Checkpoints {
    content: Arc<Content>,
    directory: PathBuf,
    next: AtomicU64,
    trash: Arc<Trash>,
}

/// Images that are just being written; they go when this does.
pub(crate) struct Images<'a> {
    pub(crate) path: PathBuf,
    number: u64,
    checkpoints: &'a Checkpoints,
}

/// For whom blobs are written.
pub(crate) struct Owner {
    pub(crate) namespace: Namespace,
    pub(crate) lease: Option<String>,
}

impl Checkpoints {
    /// What a killed shimd left half-made goes.
    pub(crate) fn open(directory: PathBuf, content: Arc<Content>, trash: Arc<Trash>) -> Result<Checkpoints> {
        let failed = |source| Error::io(format!("make {}", directory.display()), source);
        trash.take(&directory)?;
        layout::make_private(&directory).map_err(failed)?;
        Ok(Checkpoints { content, directory, next: AtomicU64::new(0), trash })
    }

    /// An empty directory for images.
    pub(crate) fn prepare(&self) -> Result<Images<'_>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.join(number.to_string());
        layout::make_private(&path).map_err(|source| Error::io(format!("make {}", path.display()), source))?;
        Ok(Images { path, number, checkpoints: self })
    }
}

impl Images<'_> {
    /// Packs them and a container's spec into the content store.
    pub(crate) async fn store(&self, owner: &Owner, spec: Option<Any>) -> Result<[Part; 2]> {
        let content = &self.checkpoints.content;
        let opening = self.opening(owner, "images");
        let (writer, _) = pack_to(content.clone(), opening, Changes::all(self.path.clone()), Packing::Plain).await?;
        let images = commit(writer, IMAGES).await?;
        let mut writer = Writer::open(content.clone(), self.opening(owner, "spec")).await?;
        writer.reset().await?;
        writer.write(spec.unwrap_or_default().encode_to_vec().into()).await?;
        Ok([images, commit(writer, CONFIG).await?])
    }

    fn opening(&self, owner: &Owner, what: &str) -> Opening {
        Opening {
            namespace: owner.namespace.clone(),
            lease: owner.lease.clone(),
            reference: format!("checkpoint-{}-{what}", self.number),
            expected: None,
            total: 0,
            unpack: None,
        }
    }
}

impl Drop for Images<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.checkpoints.trash.take(&self.path) {
            tracing::warn!(error = %crate::error::Chain(&error), "remove the images of a checkpoint");
        }
    }
}

async fn commit(mut writer: Writer, media_type: &'static str) -> Result<Part> {
    let size = writer.offset();
    let committed = writer.commit(Commit { expected: None, total: size, labels: Labels::new() }).await;
    let digest = match committed {
        Err(Error::Exists { name, .. }) => Digest::parse(&name)?,
        outcome => outcome?,
    };
    Ok(Part { media_type, digest, size })
}

/// Images in the content store, of which a task is to be made.
pub(crate) struct Saved {
    pub(crate) content: Arc<Content>,
    pub(crate) differ: Arc<Differ>,
    pub(crate) digest: Digest,
}

impl Saved {
    /// Unpacks them into a new directory.
    pub(crate) async fn unpack(&self, namespace: &Namespace, directory: &Path) -> Result<()> {
        let (blob, _) = self.content.blob(namespace, &self.digest)?;
        layout::make_private(directory).map_err(|source| Error::io(format!("make {}", directory.display()), source))?;
        let mount = Mount {
            kind: "bind".to_owned(),
            source: directory.display().to_string(),
            options: vec!["rbind".to_owned(), "rw".to_owned()],
        };
        let target = Target::from_mounts(&[mount])?;
        self.differ.apply(&self.digest, blob, target).await.map(drop)
    }
}
