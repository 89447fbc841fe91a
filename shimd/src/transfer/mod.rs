//! Moving images: out of archives and registries into the store, out of it again, and within it.
//!
//! ```text
//!   archive (a client's stream) --import--> content --gather--> labels, manifests --unpack--> snapshots --> names
//!   registry (a courier process) --fetch --> content ---------------------------------------------------------^
//!   names --> content --export--> archive;   --push--> registry (a courier process)
//! ```
//! [`Transfers`] decides what a pair of source and destination means; a [`Job`] is one transfer under way, all that it
//! makes held by a lease until it has a name. shimd itself opens no network socket: [`courier`] does, in a process of
//! its own without privileges.

mod courier;
mod document;
mod export;
mod gather;
mod import;
mod names;
mod platform;
mod progress;
mod registry;
mod slots;
pub(crate) mod stream;
mod unpack;

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use prost_types::Any;
use proto_containerd::services::images as events;
use proto_containerd::types::transfer::{ImageExportStream, ImageImportStream, ImageStore, OciRegistry};

use crate::content::Content;
use crate::db::Store;
use crate::db::record::{Image, Labels};
use crate::diff::{Differ, run_blocking};
use crate::error::{Chain, Error, Result};
use crate::event::Events;
use crate::image::{Images, Info};
use crate::lease;
use crate::name::Namespace;
use crate::snapshot::Snapshotters;
use crate::upkeep::Upkeep;
use document::Descriptor;
pub(crate) use document::is_layer;
use export::Export;
use gather::Wanted;
pub(crate) use platform::architecture;
use progress::Progress;
pub(crate) use slots::Slots;
use stream::{StreamReader, StreamWriter, Streams};
use unpack::Unpacking;

/// How long what a killed shimd left of a transfer is kept from the garbage collector, in seconds.
const LEASE_SECONDS: i64 = 24 * 60 * 60;

/// The transfers of all namespaces, and what they work on.
pub(crate) struct Transfers {
    pub(crate) store: Arc<Store>,
    pub(crate) content: Arc<Content>,
    pub(crate) images: Images,
    pub(crate) snapshots: Snapshotters,
    pub(crate) differ: Arc<Differ>,
    pub(crate) events: Arc<Events>,
    pub(crate) upkeep: Arc<Upkeep>,
    pub(crate) streams: Arc<Streams>,
    /// The program that talks to registries.
    pub(crate) courier: PathBuf,
    /// A directory that says where registries' images are had, where a client names none.
    pub(crate) registry_hosts: Option<PathBuf>,
    /// Chain ids that are being unpacked: the second who wants one waits, and finds it.
    pub(crate) unpacking: Mutex<Unpacking>,
    pub(crate) slots: Slots,
}

/// What is asked for.
pub(crate) struct Request {
    pub(crate) namespace: Namespace,
    /// Of the client; without one the transfer makes one for itself.
    pub(crate) lease: Option<String>,
    pub(crate) source: Any,
    pub(crate) destination: Any,
    /// Name of a stream; empty: nobody wants to know.
    pub(crate) progress: String,
}

/// A source or a destination.
enum End {
    Store(ImageStore),
    Import(ImageImportStream),
    Export(ImageExportStream),
    Registry(OciRegistry),
}

/// One transfer.
struct Job {
    of: Arc<Transfers>,
    namespace: Namespace,
    lease: String,
    /// It made the lease, which goes with it.
    is_own_lease: bool,
    progress: Progress,
}

/// However the transfer ends, also by a client that goes away: the lease is there as long as anybody works for it.
impl Drop for Job {
    fn drop(&mut self) {
        if self.is_own_lease
            && let Err(error) = lease::delete(&self.of.store, &self.namespace, &self.lease)
        {
            tracing::warn!(lease = self.lease, error = %Chain(&error), "delete the lease of a transfer");
        }
    }
}

impl Transfers {
    /// Does what `request` asks for.
    pub(crate) async fn transfer(self: &Arc<Self>, request: Request) -> Result<()> {
        let (source, destination) = (End::of(&request.source)?, End::of(&request.destination)?);
        self.slots.within(self.transfer_now(request, source, destination)).await
    }

    async fn transfer_now(self: &Arc<Self>, request: Request, source: End, destination: End) -> Result<()> {
        let progress = match request.progress.as_str() {
            "" => Progress::silent(),
            id => Progress::on(self.streams.take(&request.namespace, id)?),
        };
        let is_own_lease = request.lease.is_none();
        let lease = match request.lease {
            Some(lease) => lease,
            None => lease::create(&self.store, &request.namespace, "", expiring())?.id,
        };
        let namespace = request.namespace;
        let job = Arc::new(Job { of: self.clone(), namespace, lease, is_own_lease, progress });
        let outcome = Box::pin(job.run(source, destination)).await;
        job.progress.settle().await;
        outcome
    }
}

impl End {
    fn of(any: &Any) -> Result<End> {
        let invalid = |error: prost::DecodeError| Error::invalid(any.type_url.clone(), error.to_string());
        if let Some(store) = proto_containerd::from_any(any).map_err(invalid)? {
            return Ok(End::Store(store));
        }
        if let Some(import) = proto_containerd::from_any(any).map_err(invalid)? {
            return Ok(End::Import(import));
        }
        if let Some(export) = proto_containerd::from_any(any).map_err(invalid)? {
            return Ok(End::Export(export));
        }
        if let Some(registry) = proto_containerd::from_any(any).map_err(invalid)? {
            return Ok(End::Registry(registry));
        }
        Err(Error::Unimplemented { what: format!("transfer from or to {:?}", any.type_url) })
    }

    /// What it is, for errors: what a client says of a registry may hold its secrets.
    fn kind(&self) -> &'static str {
        match self {
            End::Store(_) => "an image store",
            End::Import(_) => "an archive to import",
            End::Export(_) => "an archive to export",
            End::Registry(_) => "a registry",
        }
    }
}

impl Job {
    async fn run(self: &Arc<Self>, source: End, destination: End) -> Result<()> {
        match (source, destination) {
            (End::Import(from), End::Store(to)) => self.import(from, to).await,
            (End::Import(from), End::Export(to)) => self.echo(&from, &to).await,
            (End::Store(from), End::Export(to)) => self.export(from, to).await,
            (End::Store(from), End::Store(to)) => self.tag(&from, &to).await,
            (End::Registry(from), End::Store(to)) => self.pull(from, to).await,
            (End::Store(from), End::Registry(to)) => self.push(from, to).await,
            (source, destination) => {
                Err(Error::Unimplemented { what: format!("transfer of {} to {}", source.kind(), destination.kind()) })
            }
        }
    }

    async fn import(self: &Arc<Self>, from: ImageImportStream, to: ImageStore) -> Result<()> {
        self.progress.event("Importing");
        let reader = StreamReader::new(self.take(&from.stream)?);
        let job = self.clone();
        let must_compress = from.force_compress;
        let index = run_blocking(move || import::read(&job, reader, must_compress)).await?;
        let manifests = self.gather(&index, &Wanted::of(&to), None).await?;
        self.unpack_wanted(&manifests, &to).await?;
        let names = names::stored(&to.name, &index, &to.extra_references);
        self.save(&names, &index, &to).await?;
        for manifest in self.index(&index)? {
            let names = names::imported(&manifest, &to.extra_references);
            self.save(&names, &manifest, &to).await?;
        }
        self.progress.event("Completed import");
        Ok(())
    }

    async fn export(self: &Arc<Self>, from: ImageStore, to: ImageExportStream) -> Result<()> {
        self.progress.event("Exporting");
        let images = self.looked_up(&from)?;
        let writer = StreamWriter::new(self.take(&to.stream)?);
        let job = self.clone();
        run_blocking(move || {
            let writer = Export::new(&job, to).write(&images, writer)?;
            writer.finish();
            Ok(())
        })
        .await?;
        self.progress.event("Completed export");
        Ok(())
    }

    /// Gives an archive back as it comes: clients try their streams so.
    async fn echo(&self, from: &ImageImportStream, to: &ImageExportStream) -> Result<()> {
        let mut reader = StreamReader::new(self.take(&from.stream)?);
        let mut writer = StreamWriter::new(self.take(&to.stream)?);
        run_blocking(move || {
            std::io::copy(&mut reader, &mut writer)
                .and_then(|_| writer.flush())
                .map_err(|error| Error::io("copy a stream", error))?;
            writer.finish();
            Ok(())
        })
        .await
    }

    async fn tag(&self, from: &ImageStore, to: &ImageStore) -> Result<()> {
        let image = self.of.images.get(&self.namespace, &from.name)?;
        let target = Descriptor::try_from(&image.record)?;
        let names = names::stored(&to.name, &target, &to.extra_references);
        if names.is_empty() {
            return Err(Error::not_found("image name", ""));
        }
        self.save(&names, &target, to).await
    }

    fn take(&self, id: &str) -> Result<stream::Stream> {
        self.of.streams.take(&self.namespace, id)
    }

    /// The images that an export names.
    fn looked_up(&self, from: &ImageStore) -> Result<Vec<(String, Descriptor)>> {
        if from.extra_references.iter().any(|reference| reference.is_prefix) {
            return Err(Error::Unimplemented { what: "export of all images with a prefix".to_owned() });
        }
        let named = Some(&from.name).filter(|name| !name.is_empty());
        let names = named.into_iter().chain(from.extra_references.iter().map(|reference| &reference.name));
        names
            .map(|name| {
                let image = self.of.images.get(&self.namespace, name)?;
                Ok((name.clone(), Descriptor::try_from(&image.record)?))
            })
            .collect()
    }

    /// Gives an image its names: from here on they keep it.
    async fn save(&self, names: &[String], target: &Descriptor, to: &ImageStore) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let content = self.of.content.clone();
        run_blocking(move || content.sync_names()).await?;
        for name in names {
            self.save_one(name, target, to).await?;
            self.progress.of_image("saved", name, target);
        }
        Ok(())
    }

    async fn save_one(&self, name: &str, target: &Descriptor, to: &ImageStore) -> Result<()> {
        let labels: Labels = to.labels.clone().into_iter().collect();
        let record = Image {
            labels,
            media_type: target.media_type.clone(),
            digest: target.digest.to_string(),
            size: i64::try_from(target.size).unwrap_or(i64::MAX),
            annotations: target.annotations.clone(),
            ..Image::default()
        };
        let info = move |name: &str| Info { name: name.to_owned(), record: record.clone() };
        let (images, namespace, name) = (self.of.images.clone(), self.namespace.clone(), name.to_owned());
        let (is_new, saved) = run_blocking(move || match images.create(&namespace, info(&name)) {
            Err(Error::Exists { .. }) => Ok((false, images.update(&namespace, info(&name), &[])?)),
            created => Ok((true, created?)),
        })
        .await?;
        let labels = saved.record.labels.into_iter().collect();
        if is_new {
            let event = events::ImageCreate { name: saved.name, labels };
            self.of.events.publish(&self.namespace, "/images/create", &event);
        } else {
            let event = events::ImageUpdate { name: saved.name, labels };
            self.of.events.publish(&self.namespace, "/images/update", &event);
        }
        Ok(())
    }
}

impl TryFrom<&Image> for Descriptor {
    type Error = Error;

    fn try_from(image: &Image) -> Result<Descriptor> {
        let digest = crate::name::Digest::parse(&image.digest)?;
        let size = u64::try_from(image.size).unwrap_or_default();
        Ok(Descriptor { annotations: image.annotations.clone(), ..Descriptor::new(&image.media_type, digest, size) })
    }
}

fn expiring() -> Labels {
    let now = crate::clock::now();
    let end = prost_types::Timestamp { seconds: now.seconds + LEASE_SECONDS, nanos: 0 };
    Labels::from([("containerd.io/gc.expire".to_owned(), end.to_string())])
}
