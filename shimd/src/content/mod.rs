//! Content: blobs, known by their digest, and the ingests that become blobs.
//!
//! ```text
//!   <root>/content/blobs/sha256/<hex>    one file per blob, shared by all namespaces
//!   <root>/content/ingest/<number>       one file per ingest
//! ```
//! Each namespace has a record of the blobs that it may see. A blob appears by a rename, after its bytes were written,
//! hashed, compared and synced: what is visible is right. The directory's entry and the records are synced when an
//! image is made of them ([`Content::sync_names`]); a power cut before loses a blob that nobody was told to rely on.

mod ingest;
mod recover;

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock;
use crate::db::record::{Blob, Ingest, Labels, Namespace as NamespaceRecord};
use crate::db::{Access, Durability, Store, Table, Writer as DbWriter, key, prefix, tail};
use crate::diff::provisional::Provisional;
use crate::error::{Chain, Error, Result};
use crate::filter::{Fields, Filters, label};
use crate::layout;
use crate::lease;
use crate::mask;
use crate::name::{Digest, Namespace, check_labels};
pub(crate) use ingest::{Commit, Opening, Status, Writer};

/// The content of all namespaces.
pub(crate) struct Content {
    store: Arc<Store>,
    provisional: Arc<Provisional>,
    blobs: PathBuf,
    ingests: PathBuf,
    next: AtomicU64,
    /// Ingests that have a writer: namespace and ref.
    open: Mutex<HashSet<(Namespace, String)>>,
    /// Held while blobs appear or disappear, so that no file goes that a record was just made for.
    publishing: Mutex<()>,
}

/// A blob as a namespace sees it.
#[derive(Debug)]
pub(crate) struct Info {
    pub(crate) digest: String,
    pub(crate) record: Blob,
}

impl Fields for Info {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        match path.first()?.as_str() {
            "digest" => Some(Cow::Borrowed(&self.digest)),
            "size" => Some(Cow::Owned(self.record.size.to_string())),
            "labels" => label(&self.record.labels, &path[1..]),
            _ => None,
        }
    }
}

impl Content {
    /// Opens the content under `root`, and makes records and files agree.
    pub(crate) fn open(root: &Path, store: Arc<Store>, provisional: Arc<Provisional>) -> Result<Content> {
        let directory = root.join("content");
        let content = Content {
            store,
            provisional,
            blobs: directory.join("blobs/sha256"),
            ingests: directory.join("ingest"),
            next: AtomicU64::new(1),
            open: Mutex::default(),
            publishing: Mutex::default(),
        };
        for path in [&directory, &content.blobs, &content.ingests] {
            layout::make_private(path).map_err(|error| Error::io(format!("make {}", path.display()), error))?;
        }
        content.recover()?;
        Ok(content)
    }

    pub(crate) fn info(&self, namespace: &Namespace, digest: &Digest) -> Result<Info> {
        let record = self.store.read()?.require(&key(&[namespace.as_str(), digest.as_str()]), digest.as_str())?;
        Ok(Info { digest: digest.to_string(), record })
    }

    /// Replaces labels, as `paths` of a field mask say.
    pub(crate) fn update(
        &self,
        namespace: &Namespace,
        digest: &Digest,
        labels: &Labels,
        paths: &[String],
    ) -> Result<Info> {
        check_labels(labels)?;
        let entry = key(&[namespace.as_str(), digest.as_str()]);
        let record = self.store.write(Durability::Process, |writer| {
            let mut record: Blob = writer.require(&entry, digest.as_str())?;
            mask::update_labels("content", &mut record.labels, labels, paths)?;
            record.updated_at = Some(clock::now());
            writer.put(&entry, &record)?;
            Ok(record)
        })?;
        Ok(Info { digest: digest.to_string(), record })
    }

    pub(crate) fn list(&self, namespace: &Namespace, filters: &Filters) -> Result<Vec<Info>> {
        let mut found = Vec::new();
        self.store.read()?.each(&prefix(&[namespace.as_str()]), |entry, record: Blob| {
            let info = Info { digest: tail(entry, 1), record };
            if filters.matches(&info) {
                found.push(info);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Opens a blob for reading, with its length.
    pub(crate) fn blob(&self, namespace: &Namespace, digest: &Digest) -> Result<(File, u64)> {
        let size = self.info(namespace, digest)?.record.size;
        let file =
            File::open(self.blob_path(digest)).map_err(|error| Error::io(format!("open blob {digest}"), error))?;
        Ok((file, size))
    }

    /// Takes a blob out of a namespace; the bytes go with the last namespace that has it.
    pub(crate) fn delete(&self, namespace: &Namespace, digest: &Digest) -> Result<()> {
        let _publishing = self.publishing();
        let is_last = self.store.write(Durability::Process, |writer| self.delete_in(writer, namespace, digest))?;
        if !is_last {
            return Ok(());
        }
        self.provisional.forget(digest);
        remove_file(&self.blob_path(digest))
    }

    /// The records' part of [`Content::delete`], under [`Content::publishing`]: tells whether the file must go, too.
    pub(crate) fn delete_in(&self, writer: &mut DbWriter, namespace: &Namespace, digest: &Digest) -> Result<bool> {
        let entry = key(&[namespace.as_str(), digest.as_str()]);
        writer.require::<Blob>(&entry, digest.as_str())?;
        writer.remove(Table::Blobs, &entry)?;
        lease::release_all(writer, namespace, lease::CONTENT, digest.as_str())?;
        is_in_no_namespace(writer, digest)
    }

    /// The records' part of [`Content::abort`]: the number of the file that must go; none while somebody writes it.
    pub(crate) fn abort_in(
        &self,
        writer: &mut DbWriter,
        namespace: &Namespace,
        reference: &str,
    ) -> Result<Option<u64>> {
        let Ok(_claim) = self.claim(namespace, reference) else { return Ok(None) };
        let entry = key(&[namespace.as_str(), reference]);
        let record: Ingest = writer.require(&entry, reference)?;
        writer.remove(Table::Ingests, &entry)?;
        lease::release_all(writer, namespace, lease::INGEST, reference)?;
        Ok(Some(record.directory))
    }

    /// Removes files whose records are gone. What cannot be removed goes at the next start.
    pub(crate) fn remove_files(&self, blobs: &[Digest], ingests: &[u64]) {
        blobs.iter().for_each(|digest| self.provisional.forget(digest));
        let blobs = blobs.iter().map(|digest| self.blob_path(digest));
        for path in blobs.chain(ingests.iter().map(|number| self.ingest_path(*number))) {
            if let Err(error) = remove_file(&path) {
                tracing::warn!(error = %Chain(&error), "remove content");
            }
        }
    }

    /// Makes the names of blobs survive a power cut; their bytes are synced already.
    pub(crate) fn sync_names(&self) -> Result<()> {
        File::open(&self.blobs)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| Error::io("sync the directory of blobs", error))
    }

    /// The ingests that match, open or left over.
    pub(crate) fn statuses(&self, namespace: &Namespace, filters: &Filters) -> Result<Vec<Status>> {
        let mut found = Vec::new();
        self.store.read()?.each(&prefix(&[namespace.as_str()]), |entry, record: Ingest| {
            let status = self.status_of(tail(entry, 1), &record);
            if filters.matches(&status) {
                found.push(status);
            }
            Ok(())
        })?;
        Ok(found)
    }

    pub(crate) fn status(&self, namespace: &Namespace, reference: &str) -> Result<Status> {
        let record: Ingest = self.store.read()?.require(&key(&[namespace.as_str(), reference]), reference)?;
        Ok(self.status_of(reference.to_owned(), &record))
    }

    fn status_of(&self, reference: String, record: &Ingest) -> Status {
        let file = std::fs::metadata(self.ingest_path(record.directory)).ok();
        Status {
            reference,
            offset: file.as_ref().map_or(0, std::fs::Metadata::len),
            total: record.total,
            expected: record.expected.clone(),
            started_at: record.started_at,
            updated_at: file.and_then(|file| file.modified().ok()).map(clock::timestamp).or(record.started_at),
        }
    }

    /// Gives up an ingest. One that is written becomes no blob any more: its commit will say that it is not there.
    pub(crate) fn abort(&self, namespace: &Namespace, reference: &str) -> Result<()> {
        let record: Ingest = {
            // Not between a commit's look at the record and its blob's.
            let _publishing = self.publishing();
            let record = self.store.read()?.require(&key(&[namespace.as_str(), reference]), reference)?;
            self.forget_record(namespace, reference)?;
            record
        };
        remove_file(&self.ingest_path(record.directory))
    }

    fn forget_ingest(&self, namespace: &Namespace, reference: &str, number: u64) -> Result<()> {
        self.forget_record(namespace, reference)?;
        remove_file(&self.ingest_path(number))
    }

    fn forget_record(&self, namespace: &Namespace, reference: &str) -> Result<()> {
        self.store.write(Durability::Process, |writer| {
            writer.remove(Table::Ingests, &key(&[namespace.as_str(), reference]))?;
            lease::release_all(writer, namespace, lease::INGEST, reference)
        })
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    fn ingest_path(&self, number: u64) -> PathBuf {
        self.ingests.join(number.to_string())
    }

    /// The right to write an ingest, until it is dropped.
    fn claim(&self, namespace: &Namespace, reference: &str) -> Result<Claim<'_>> {
        let entry = (namespace.clone(), reference.to_owned());
        if !self.claims().insert(entry.clone()) {
            return Err(Error::Busy { what: format!("ingest {reference:?}") });
        }
        Ok(Claim { content: self, entry })
    }

    /// Whether an ingest has a writer.
    #[cfg(test)]
    pub(crate) fn is_written(&self, namespace: &Namespace, reference: &str) -> bool {
        self.claims().contains(&(namespace.clone(), reference.to_owned()))
    }

    fn claims(&self) -> MutexGuard<'_, HashSet<(Namespace, String)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps blobs from appearing and going, while it is held.
    pub(crate) fn publishing(&self) -> MutexGuard<'_, ()> {
        self.publishing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

struct Claim<'a> {
    content: &'a Content,
    entry: (Namespace, String),
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.content.claims().remove(&self.entry);
    }
}

/// Whether no namespace has the blob. Namespaces are few, and each has a record once anything is in it.
fn is_in_no_namespace(view: &impl Access, digest: &Digest) -> Result<bool> {
    let mut names = Vec::new();
    view.each(&[], |entry, _: NamespaceRecord| {
        names.push(tail(entry, 0));
        Ok(())
    })?;
    for name in names {
        if view.bytes(Table::Blobs, &key(&[&name, digest.as_str()]))?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
