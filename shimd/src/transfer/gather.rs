//! From an image's target to its documents: all that is wanted is there, and each document holds its children.

use std::io::Read;

use proto_containerd::types::transfer::ImageStore;

use super::Job;
use super::document::{DOCUMENT_MAX, Descriptor, Document, child_labels};
use super::platform::Platform;
use super::registry::Remote;
use crate::error::{Error, Result};
use crate::name::Digest;

/// Deepest nesting of indexes, and most documents of an image: both come from strangers.
const NESTING_MAX: usize = 4;
const DOCUMENTS_MAX: usize = 4096;

/// How many documents of an image were looked at.
pub(super) struct Bounds {
    root: Digest,
    count: usize,
}

impl Bounds {
    pub(super) fn of(root: &Descriptor) -> Bounds {
        Bounds { root: root.digest.clone(), count: 0 }
    }

    /// One more document.
    pub(super) fn count(&mut self) -> Result<()> {
        self.count += 1;
        if self.count > DOCUMENTS_MAX {
            return Err(Error::invalid(self.root.as_str(), format!("it has more than {DOCUMENTS_MAX} documents")));
        }
        Ok(())
    }
}

/// Refuses an index at `depth` that has others below: the root's depth is zero.
pub(super) fn check_depth(index: &Descriptor, depth: usize) -> Result<()> {
    if depth >= NESTING_MAX {
        let why = format!("its indexes are nested more than {NESTING_MAX} deep");
        return Err(Error::invalid(index.digest.as_str(), why));
    }
    Ok(())
}

/// Which images of an index are wanted.
pub(super) struct Wanted {
    /// None at all: every platform.
    platforms: Vec<Platform>,
    /// Of the others the documents are wanted, too.
    all_metadata: bool,
    /// Most images of an index; zero: all.
    limit: usize,
}

/// An image for one platform.
#[derive(Clone, Debug)]
pub(super) struct Manifest {
    pub(super) descriptor: Descriptor,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// A document to look at.
struct Next {
    descriptor: Descriptor,
    depth: usize,
    is_wanted: bool,
}

impl Wanted {
    pub(super) fn of(store: &ImageStore) -> Wanted {
        Wanted {
            platforms: store.platforms.iter().cloned().map(Platform::from).collect(),
            all_metadata: store.all_metadata,
            limit: store.manifest_limit as usize,
        }
    }

    fn is_wanted(&self, descriptor: &Descriptor) -> bool {
        let Some(offered) = &descriptor.platform else { return true };
        self.platforms.is_empty() || self.platforms.iter().any(|wanted| wanted.accepts(offered))
    }

    /// Those of an index that are looked at, and whether their layers are wanted.
    pub(super) fn choose(&self, index: &Descriptor, manifests: Vec<Descriptor>) -> Result<Vec<(Descriptor, bool)>> {
        let (mut wanted, others): (Vec<_>, Vec<_>) = manifests.into_iter().partition(|next| self.is_wanted(next));
        if self.limit > 0 {
            if wanted.is_empty() {
                return Err(Error::not_found("manifest for the platform", index.digest.as_str()));
            }
            wanted.truncate(self.limit);
        }
        let others = others.into_iter().filter(|_| self.all_metadata).map(|next| (next, false));
        Ok(wanted.into_iter().map(|next| (next, true)).chain(others).collect())
    }
}

impl Job {
    /// The wanted images below `root`, which is in the content store; what is not is fetched, where there is a
    /// `remote`.
    pub(super) async fn gather(
        &self,
        root: &Descriptor,
        wanted: &Wanted,
        remote: Option<&Remote<'_>>,
    ) -> Result<Vec<Manifest>> {
        let mut todo = vec![Next { descriptor: root.clone(), depth: 0, is_wanted: true }];
        let mut found = Vec::new();
        let mut bounds = Bounds::of(root);
        while let Some(next) = todo.pop() {
            bounds.count()?;
            if let (Some(remote), true) = (remote, next.depth > 0) {
                self.fetch_document(&next.descriptor, remote).await?;
            }
            let Some(document) = self.document(&next.descriptor)? else { continue };
            self.hold_children(&next.descriptor, &document)?;
            if let (Some(remote), Document::Manifest { config, .. }) = (remote, &document) {
                self.fetch_document(config, remote).await?;
            }
            match document {
                Document::Index(manifests) => todo.extend(below(&next, manifests, wanted)?),
                Document::Manifest { config, layers } if next.is_wanted => {
                    found.push(Manifest { descriptor: next.descriptor, config, layers });
                }
                Document::Manifest { .. } => {}
            }
        }
        Ok(found)
    }

    /// The images of an index, as it lists them.
    pub(super) fn index(&self, descriptor: &Descriptor) -> Result<Vec<Descriptor>> {
        match self.document(descriptor)? {
            Some(Document::Index(manifests)) => Ok(manifests),
            _ => Err(Error::invalid(descriptor.digest.as_str(), "it is no index")),
        }
    }

    /// The document of a descriptor; `None` where it is none.
    pub(super) fn document(&self, descriptor: &Descriptor) -> Result<Option<Document>> {
        if !descriptor.is_index() && !descriptor.is_manifest() {
            return Ok(None);
        }
        Document::parse(descriptor, &self.read(descriptor)?)
    }

    /// A small blob as a whole.
    pub(super) fn read(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let (file, size) = self.of.content.blob(&self.namespace, &descriptor.digest)?;
        if size > DOCUMENT_MAX {
            return Err(Error::invalid(descriptor.digest.as_str(), format!("it is larger than {DOCUMENT_MAX} bytes")));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        file.take(DOCUMENT_MAX)
            .read_to_end(&mut bytes)
            .map_err(|error| Error::io(format!("read blob {}", descriptor.digest), error))?;
        Ok(bytes)
    }

    /// Labels a document so that it keeps its children from the garbage collector.
    fn hold_children(&self, descriptor: &Descriptor, document: &Document) -> Result<()> {
        let labels = child_labels(document.children());
        if labels.is_empty() {
            return Ok(());
        }
        let mask: Vec<String> = labels.keys().map(|key| format!("labels.{key}")).collect();
        self.of.content.update(&self.namespace, &descriptor.digest, &labels, &mask).map(drop)
    }
}

/// What to look at below an index, in the order of a stack.
fn below(index: &Next, manifests: Vec<Descriptor>, wanted: &Wanted) -> Result<Vec<Next>> {
    check_depth(&index.descriptor, index.depth)?;
    let chosen = wanted.choose(&index.descriptor, manifests)?.into_iter().rev();
    Ok(chosen
        .map(|(descriptor, is_wanted)| Next {
            descriptor,
            depth: index.depth + 1,
            is_wanted: is_wanted && index.is_wanted,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::document::media_type;

    #[test]
    fn bounds_of_an_image() {
        let digest = Digest::parse(&format!("sha256:{}", "0".repeat(64))).unwrap();
        let root = Descriptor::new(media_type::OCI_INDEX, digest, 1);
        let mut bounds = Bounds::of(&root);
        assert!((0..DOCUMENTS_MAX).all(|_| bounds.count().is_ok()));
        assert!(bounds.count().is_err());
        assert!(check_depth(&root, NESTING_MAX - 1).is_ok());
        assert!(check_depth(&root, NESTING_MAX).is_err());
    }
}
