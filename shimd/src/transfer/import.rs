//! Reading an archive of images: an OCI image layout, or what `docker save` writes.
//!
//! Every file of the archive becomes a blob under its own digest, whatever its name says. Docker's form has no index:
//! one is made of it. Nothing is unpacked here.

use std::collections::HashMap;
use std::io::{BufRead, Read};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tokio::runtime::Handle;

use super::Job;
use super::document::{Config, DOCUMENT_MAX, Descriptor, media_type as mt};
use super::names::{IMAGE_NAME, REF_NAME, normalized, tag};
use super::stream::StreamReader;
use crate::content::{Commit, Opening, Writer};
use crate::db::record::Labels;
use crate::diff::stream::pipe;
use crate::diff::tar::{Archive, Entry, Kind};
use crate::error::{Error, Result};
use crate::lease::{self, Resource};
use crate::name::Digest;

const LAYOUT: &str = "oci-layout";
const INDEX: &str = "index.json";
const DOCKER: &str = "manifest.json";
/// The version of the image layout that is understood.
const LAYOUT_VERSION: &str = "1.0.0";
/// Most files of an archive.
const FILES_MAX: usize = 100_000;
/// Bytes handed to the content store at once.
const PIECE: usize = 256 << 10;

/// A file of the archive, now a blob.
#[derive(Clone, Debug)]
struct Blob {
    digest: Digest,
    size: u64,
}

/// What an archive held.
#[derive(Default)]
struct Found {
    layout: Option<Layout>,
    docker: Option<Vec<DockerImage>>,
    blobs: HashMap<String, Blob>,
    links: HashMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Reads an archive, which may be compressed, into the content store, and gives its index.
pub(super) fn read(job: &Job, source: StreamReader, must_compress: bool) -> Result<Descriptor> {
    if must_compress {
        return Err(Error::Unimplemented { what: "compressing the layers of an archive".to_owned() });
    }
    let (filler, chunks) = pipe();
    let found = std::thread::scope(|scope| {
        // It ends with its source, or when nobody reads any more.
        let handle = Handle::current();
        scope.spawn(move || {
            let _entered = handle.enter();
            filler.run(source);
        });
        read_files(job, Archive::new(chunks))
    })?;
    match (&found.layout, &found.docker) {
        (Some(layout), _) => found.layout_index(layout),
        (None, Some(images)) => found.docker_index(job, images),
        (None, None) => Err(Error::invalid("archive", "it is neither an OCI image layout nor an archive of Docker's")),
    }
}

fn read_files<R: BufRead>(job: &Job, mut archive: Archive<R>) -> Result<Found> {
    let mut found = Found::default();
    let mut count = 0;
    while let Some(entry) = archive.next_entry()? {
        // Those of the same name, too: each is a blob.
        count += 1;
        if count > FILES_MAX {
            return Err(Error::invalid("archive", format!("it has more than {FILES_MAX} files")));
        }
        let name = clean(&entry.path)?;
        match entry.kind {
            Kind::File if name == LAYOUT => found.layout = Some(parse(&name, &read_small(&mut archive, &entry)?)?),
            Kind::File if name == DOCKER => found.docker = Some(parse(&name, &read_small(&mut archive, &entry)?)?),
            Kind::File => {
                let blob = ingest(job, &mut archive, &entry, &name)?;
                found.blobs.insert(name, blob);
            }
            Kind::Symlink => {
                let target = target(&name, &entry)?;
                found.links.insert(name, target);
            }
            _ => {}
        }
    }
    archive.drain()?;
    Ok(found)
}

fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| Error::invalid("archive", "a name in it is not UTF-8"))
}

/// A path without what does not matter. Names are only looked up, never opened.
fn clean(path: &[u8]) -> Result<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in text(path)?.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

fn target(name: &str, entry: &Entry) -> Result<String> {
    let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
    clean(format!("{directory}/{}", text(&entry.link)?).as_bytes())
}

fn parse<T: for<'de> Deserialize<'de>>(name: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::invalid(format!("{name} of the archive"), error.to_string()))
}

fn read_small<R: BufRead>(archive: &mut Archive<R>, entry: &Entry) -> Result<Vec<u8>> {
    if entry.size > DOCUMENT_MAX {
        return Err(Error::invalid(entry.shown(), format!("it is larger than {DOCUMENT_MAX} bytes")));
    }
    let mut bytes = Vec::new();
    loop {
        let data = archive.data()?;
        if data.is_empty() {
            return Ok(bytes);
        }
        bytes.extend_from_slice(data);
        let count = data.len();
        archive.consume(count);
    }
}

fn ingest<R: BufRead>(job: &Job, archive: &mut Archive<R>, entry: &Entry, name: &str) -> Result<Blob> {
    if entry.extents.is_some() {
        return Err(Error::invalid(entry.shown(), "a sparse file is no blob"));
    }
    job.write_blob(name, entry.size, || {
        let data = archive.data()?;
        let piece = Bytes::copy_from_slice(&data[..data.len().min(PIECE)]);
        archive.consume(piece.len());
        Ok(piece)
    })
}

impl Job {
    /// Makes a blob of all pieces that `next` gives, until an empty one; the lease holds it. Blocks.
    fn write_blob(&self, name: &str, size: u64, mut next: impl FnMut() -> Result<Bytes>) -> Result<Blob> {
        let handle = Handle::current();
        let opening = Opening {
            namespace: self.namespace.clone(),
            lease: Some(self.lease.clone()),
            reference: format!("import-{}-{name}", self.lease),
            expected: None,
            total: size,
            unpack: None,
        };
        let mut writer = handle.block_on(Writer::open(self.of.content.clone(), opening))?;
        if writer.offset() > 0 {
            // Of an attempt under the same lease that was cut off: what comes now is the whole.
            handle.block_on(writer.reset())?;
        }
        loop {
            let piece = next()?;
            if piece.is_empty() {
                break;
            }
            handle.block_on(writer.write(piece))?;
        }
        let commit = Commit { expected: None, total: size, labels: Labels::new() };
        let digest = match handle.block_on(writer.commit(commit)) {
            Err(Error::Exists { name, .. }) => self.hold_blob(Digest::parse(&name)?)?,
            outcome => outcome?,
        };
        Ok(Blob { digest, size })
    }

    /// A blob that was there already must not go before it has a name.
    fn hold_blob(&self, digest: Digest) -> Result<Digest> {
        let held = Resource { kind: lease::CONTENT.to_owned(), id: digest.to_string() };
        lease::add_resource(&self.of.store, &self.namespace, &self.lease, &held)?;
        Ok(digest)
    }

    fn write_document(&self, media_type: &str, document: &serde_json::Value) -> Result<Descriptor> {
        let mut bytes = Bytes::from(document.to_string());
        let size = bytes.len() as u64;
        let blob = self.write_blob("document", size, || Ok(std::mem::take(&mut bytes)))?;
        Ok(Descriptor::new(media_type, blob.digest, blob.size))
    }
}

impl Found {
    fn layout_index(&self, layout: &Layout) -> Result<Descriptor> {
        if layout.image_layout_version != LAYOUT_VERSION {
            let why = format!("version {:?}; {LAYOUT_VERSION:?} is understood", layout.image_layout_version);
            return Err(Error::invalid("OCI image layout", why));
        }
        let index = self.blob(INDEX)?;
        Ok(Descriptor::new(mt::OCI_INDEX, index.digest.clone(), index.size))
    }

    /// Makes an index of Docker's list.
    fn docker_index(&self, job: &Job, images: &[DockerImage]) -> Result<Descriptor> {
        let mut manifests = Vec::new();
        for image in images {
            let manifest = self.docker_manifest(job, image)?;
            let tags = image.repo_tags.as_deref().unwrap_or_default();
            if tags.is_empty() {
                manifests.push(manifest.clone());
            }
            manifests.extend(tags.iter().map(|tag| named(&manifest, tag)));
        }
        let index = json!({ "schemaVersion": 2, "mediaType": mt::OCI_INDEX, "manifests": manifests });
        job.write_document(mt::OCI_INDEX, &index)
    }

    fn docker_manifest(&self, job: &Job, image: &DockerImage) -> Result<Descriptor> {
        let config = self.blob(&image.config)?;
        let config = Descriptor::new(mt::DOCKER_CONFIG, config.digest.clone(), config.size);
        let layers: Vec<Descriptor> = image
            .layers
            .iter()
            .flatten()
            .map(|name| {
                let layer = self.blob(name)?;
                Ok(Descriptor::new(layer_type(job, &layer.digest)?, layer.digest.clone(), layer.size))
            })
            .collect::<Result<_>>()?;
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": mt::DOCKER_MANIFEST, "config": config, "layers": layers });
        let mut manifest = job.write_document(mt::DOCKER_MANIFEST, &manifest)?;
        let platform = Config::parse(&config, &job.read(&config)?)?.platform;
        manifest.platform = Some(platform).filter(|platform| !platform.architecture.is_empty());
        Ok(manifest)
    }

    fn blob(&self, name: &str) -> Result<&Blob> {
        let name = clean(name.as_bytes())?;
        let found = self.blobs.get(&name).or_else(|| self.blobs.get(self.links.get(&name)?));
        found.ok_or_else(|| Error::invalid("archive", format!("it names {name:?}, which is not in it")))
    }
}

fn named(manifest: &Descriptor, name: &str) -> Descriptor {
    let name = normalized(name);
    let mut named = manifest.clone();
    named.annotations.insert(REF_NAME.to_owned(), tag(&name).to_owned());
    named.annotations.insert(IMAGE_NAME.to_owned(), name);
    named
}

/// The media type of a layer, by its first bytes: Docker's list does not tell.
fn layer_type(job: &Job, digest: &Digest) -> Result<&'static str> {
    let (file, _) = job.of.content.blob(&job.namespace, digest)?;
    let mut start = Vec::new();
    file.take(4).read_to_end(&mut start).map_err(|error| Error::io(format!("read blob {digest}"), error))?;
    Ok(match start.as_slice() {
        [0x1f, 0x8b, ..] => mt::DOCKER_LAYER_GZIP,
        [0x28, 0xb5, 0x2f, 0xfd] => mt::DOCKER_LAYER_ZSTD,
        _ => mt::DOCKER_LAYER,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_and_never_leave() {
        for (path, cleaned) in [
            ("./index.json", "index.json"),
            ("blobs//sha256/./a", "blobs/sha256/a"),
            ("../../etc/x", "etc/x"),
            ("a/../b", "b"),
        ] {
            assert_eq!(clean(path.as_bytes()).unwrap(), cleaned);
        }
        assert!(clean(b"\xff").is_err());
    }
}
