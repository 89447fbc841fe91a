//! Writing an archive of images: an OCI image layout that Docker reads as well.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use proto_containerd::types::transfer::ImageExportStream;
use serde_json::json;

use super::Job;
use super::document::{Descriptor, Document, media_type as mt};
use super::gather::{Bounds, check_depth};
use super::names::{IMAGE_NAME, REF_NAME, familiar, tag};
use super::platform::Platform;
use crate::diff::tar::write::ArchiveWriter;
use crate::diff::tar::{Entry, Kind, Time};
use crate::error::{Error, Result};
use crate::name::Digest;

/// Labels of content that are passed on: where it can be had.
const SOURCE: &str = "containerd.io/distribution.source";
/// Bytes written at once.
const PIECE: usize = 256 << 10;
const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// An export under way.
pub(super) struct Export<'a> {
    job: &'a Job,
    platforms: Vec<Platform>,
    all_platforms: bool,
    with_docker: bool,
    with_restricted: bool,
    blobs: BTreeSet<Digest>,
    /// Images as Docker lists them: by the digest of their manifest, with their names.
    docker: BTreeMap<Digest, DockerImage>,
}

struct DockerImage {
    config: Digest,
    layers: Vec<Digest>,
    names: Vec<String>,
}

/// A file of the archive.
enum File {
    Directory,
    Bytes(Vec<u8>),
    Blob(Digest),
}

impl<'a> Export<'a> {
    pub(super) fn new(job: &'a Job, wanted: ImageExportStream) -> Export<'a> {
        let mut platforms: Vec<Platform> = wanted.platforms.into_iter().map(Platform::from).collect();
        if platforms.is_empty() {
            platforms.push(Platform::host());
        }
        Export {
            job,
            platforms,
            all_platforms: wanted.all_platforms,
            with_docker: !wanted.skip_compatibility_manifest,
            with_restricted: !wanted.skip_non_distributable,
            blobs: BTreeSet::new(),
            docker: BTreeMap::new(),
        }
    }

    /// Writes the images to `out`, each under its name.
    pub(super) fn write<W: Write>(mut self, images: &[(String, Descriptor)], out: W) -> Result<W> {
        let mut index = Vec::new();
        for (name, target) in images {
            let main = self.collect(target, 0, &mut Bounds::of(target))?;
            if let Some(image) = main.and_then(|digest| self.docker.get_mut(&digest)) {
                image.names.push(familiar(name).to_owned());
            }
            index.push(self.listed(name, target)?);
        }
        self.write_files(&index, out)
    }

    /// Notes all blobs of an image, and gives its manifest for the wanted platform.
    fn collect(&mut self, target: &Descriptor, depth: usize, bounds: &mut Bounds) -> Result<Option<Digest>> {
        bounds.count()?;
        match self.job.document(target)? {
            Some(Document::Manifest { config, layers }) => {
                self.add_manifest(target, config, layers);
                Ok(Some(target.digest.clone()))
            }
            Some(Document::Index(manifests)) => {
                check_depth(target, depth)?;
                self.blobs.insert(target.digest.clone());
                let main = self.collect_all(manifests, depth + 1, bounds)?;
                main.map(Some).ok_or_else(|| Error::not_found("manifest for the platform", target.digest.as_str()))
            }
            None => Err(Error::invalid(target.digest.as_str(), "only images can be exported")),
        }
    }

    fn collect_all(&mut self, manifests: Vec<Descriptor>, depth: usize, bounds: &mut Bounds) -> Result<Option<Digest>> {
        let mut main = None;
        for manifest in manifests {
            let is_wanted = self.is_wanted(&manifest);
            if !is_wanted && !self.all_platforms {
                continue;
            }
            let found = self.collect(&manifest, depth, bounds)?;
            if is_wanted && main.is_none() {
                main = found;
            }
        }
        Ok(main)
    }

    fn is_wanted(&self, manifest: &Descriptor) -> bool {
        let Some(offered) = &manifest.platform else { return true };
        self.platforms.iter().any(|wanted| wanted.accepts(offered))
    }

    fn add_manifest(&mut self, manifest: &Descriptor, config: Descriptor, layers: Vec<Descriptor>) {
        self.blobs.extend([manifest.digest.clone(), config.digest.clone()]);
        let passed_on = layers.iter().filter(|layer| self.with_restricted || !layer.is_restricted());
        self.blobs.extend(passed_on.map(|layer| layer.digest.clone()));
        self.docker.entry(manifest.digest.clone()).or_insert_with(|| DockerImage {
            config: config.digest,
            layers: layers.into_iter().map(|layer| layer.digest).collect(),
            names: Vec::new(),
        });
    }

    /// The entry of an image in the layout's index.
    fn listed(&self, name: &str, target: &Descriptor) -> Result<Descriptor> {
        let mut listed = target.clone();
        let labels = self.job.of.content.info(&self.job.namespace, &target.digest)?.record.labels;
        listed.annotations.extend(labels.into_iter().filter(|(key, _)| key.starts_with(SOURCE)));
        listed.annotations.insert(IMAGE_NAME.to_owned(), name.to_owned());
        listed.annotations.insert(REF_NAME.to_owned(), tag(name).to_owned());
        Ok(listed)
    }

    fn write_files<W: Write>(self, index: &[Descriptor], out: W) -> Result<W> {
        let index = json!({ "schemaVersion": 2, "mediaType": mt::OCI_INDEX, "manifests": index });
        let mut files = BTreeMap::from([
            ("blobs/".to_owned(), File::Directory),
            ("blobs/sha256/".to_owned(), File::Directory),
            ("index.json".to_owned(), File::Bytes(index.to_string().into_bytes())),
            ("oci-layout".to_owned(), File::Bytes(LAYOUT.as_bytes().to_vec())),
        ]);
        if self.with_docker && !self.docker.is_empty() {
            files.insert("manifest.json".to_owned(), File::Bytes(docker_list(&self.docker)));
        }
        files.extend(self.blobs.into_iter().map(|digest| (blob_path(&digest), File::Blob(digest))));
        let mut archive = ArchiveWriter::new(out);
        for (name, file) in files {
            self.job.write_file(&mut archive, &name, file)?;
        }
        archive.finish().map_err(not_written)
    }
}

impl Job {
    fn write_file<W: Write>(&self, archive: &mut ArchiveWriter<W>, name: &str, file: File) -> Result<()> {
        match file {
            File::Directory => archive.begin(&entry(name, Kind::Directory, 0)).map_err(not_written),
            File::Bytes(bytes) => write_from(archive, name, bytes.len() as u64, bytes.as_slice()),
            File::Blob(digest) => {
                let (blob, size) = self.of.content.blob(&self.namespace, &digest)?;
                write_from(archive, name, size, blob)
            }
        }
    }
}

fn write_from<W: Write>(archive: &mut ArchiveWriter<W>, name: &str, size: u64, mut from: impl Read) -> Result<()> {
    archive.begin(&entry(name, Kind::File, size)).map_err(not_written)?;
    let mut buffer = vec![0; PIECE];
    let mut left = size;
    while left > 0 {
        let length = PIECE.min(usize::try_from(left).unwrap_or(PIECE));
        from.read_exact(&mut buffer[..length]).map_err(|error| Error::io(format!("read {name}"), error))?;
        archive.data(&buffer[..length]).map_err(not_written)?;
        left -= length as u64;
    }
    archive.end(size).map_err(not_written)
}

fn not_written(error: io::Error) -> Error {
    Error::io("write the archive", error)
}

fn entry(name: &str, kind: Kind, size: u64) -> Entry {
    let mode = if kind == Kind::Directory { 0o755 } else { 0o444 };
    Entry {
        path: name.as_bytes().to_vec(),
        link: Vec::new(),
        kind,
        mode,
        uid: 0,
        gid: 0,
        modified: Time::default(),
        size,
        extents: None,
        xattrs: Vec::new(),
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn docker_list(images: &BTreeMap<Digest, DockerImage>) -> Vec<u8> {
    let list: Vec<_> = images
        .values()
        .map(|image| {
            let layers: Vec<String> = image.layers.iter().map(blob_path).collect();
            json!({ "Config": blob_path(&image.config), "RepoTags": image.names, "Layers": layers })
        })
        .collect();
    json!(list).to_string().into_bytes()
}
