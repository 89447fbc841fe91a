//! Images from a registry, and to one. The network is the [`Courier`]'s; what comes from it is verified again here, by
//! the content store.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use proto_containerd::events;
use proto_containerd::types::transfer::{AuthRequest, AuthResponse, AuthType, ImageStore, OciRegistry};
use proto_registry::{Credentials, Open, PIECE};

use super::courier::Courier;
use super::document::{Config, Descriptor, Document};
use super::gather::{Bounds, Manifest, Wanted, check_depth};
use super::progress::reference;
use super::unpack::snapshotter_of;
use super::{Job, names};
use crate::content::{Commit, Opening, Writer};
use crate::db::record::Labels;
use crate::diff::provisional::Prospect;
use crate::diff::run_blocking;
use crate::error::{Error, Result};
use crate::lease::{self, Resource};
use crate::name::{Digest, LABEL_MAX};
use crate::snapshot::Snapshotter;

/// Blobs that are fetched or pushed at once.
const PARALLEL: usize = 3;
/// Progress of a blob is told each time that so many bytes have come.
const TOLD_EVERY: u64 = 1 << 20;
/// How often it is looked whether somebody else is done with the same blob, and for how long in all.
const BUSY_PAUSE: Duration = Duration::from_millis(200);
const BUSY_MAX: Duration = Duration::from_secs(600);
/// Label of content: the repositories of a registry that have it.
const SOURCE: &str = "containerd.io/distribution.source.";

impl Job {
    pub(super) async fn pull(self: &Arc<Self>, from: OciRegistry, to: ImageStore) -> Result<()> {
        self.progress.event(&format!("Resolving from OCI Registry ({})", from.reference));
        let courier = self.courier(&from, false).await?;
        let (root, bytes) = courier.resolve().await?;
        self.progress.event(&format!("Pulling from OCI Registry ({})", from.reference));
        self.progress.of_image("fetching image content", &from.reference, &root);
        self.keep_document(&root, bytes, &from.reference).await?;
        let remote = Remote { courier: &courier, name: &from.reference };
        let manifests = self.gather(&root, &Wanted::of(&to), Some(&remote)).await?;
        for manifest in &manifests {
            // What is unpacked as it comes is a layer of its own, not a whole directory.
            let to_unpack = to.unpacks.iter().any(|wanted| snapshotter_of(wanted) == Some(Snapshotter::Overlayfs));
            self.fetch_layers(manifest, &remote, to_unpack).await?;
        }
        self.unpack_wanted(&manifests, &to).await?;
        self.save(&names::stored(&to.name, &root, &to.extra_references), &root, &to).await?;
        self.progress.event(&format!("Completed pull from OCI Registry ({})", from.reference));
        Ok(())
    }

    pub(super) async fn push(self: &Arc<Self>, from: ImageStore, to: OciRegistry) -> Result<()> {
        let image = self.of.images.get(&self.namespace, &from.name)?;
        let root = Descriptor::try_from(&image.record)?;
        self.progress.event(&format!("Pushing to OCI Registry ({})", to.reference));
        self.progress.of_image("pushing content", &to.reference, &root);
        let courier = self.courier(&to, true).await?;
        let remote = Remote { courier: &courier, name: &to.reference };
        for (document, blobs) in self.to_push(&root, &Wanted::of(&from))? {
            stream::iter(blobs)
                .map(|blob| self.push_blob(blob, &remote))
                .buffer_unordered(PARALLEL)
                .try_collect::<()>()
                .await?;
            let bytes = Bytes::from(self.read(&document)?);
            courier.push_document(&document, bytes, document.digest == root.digest).await?;
            self.add_source(&document, remote.name)?;
            self.progress.of_blob("complete", remote.name, &document, document.size);
        }
        self.progress.event(&format!("Completed push to OCI Registry ({})", to.reference));
        Ok(())
    }

    async fn courier(&self, registry: &OciRegistry, to_push: bool) -> Result<Courier> {
        let resolver = registry.resolver.clone().unwrap_or_default();
        let open = Open {
            reference: registry.reference.clone(),
            credentials: self.credentials(&registry.reference, &resolver.auth_stream).await?,
            is_plain: resolver.default_scheme == "http",
            to_push,
            headers: resolver.headers.into_iter().collect(),
        };
        let asked = Some(PathBuf::from(resolver.host_dir)).filter(|directory| !directory.as_os_str().is_empty());
        let hosts = asked.as_deref().or(self.of.registry_hosts.as_deref());
        Courier::start(&self.of.courier, hosts, open).await
    }

    /// Asks the client who it is.
    async fn credentials(&self, reference: &str, stream: &str) -> Result<Option<Credentials>> {
        if stream.is_empty() {
            return Ok(None);
        }
        let mut stream = self.take(stream)?;
        let (host, path) = reference.split_once('/').unwrap_or((reference, ""));
        let path = path.split('@').next().unwrap_or_default();
        let question = AuthRequest {
            host: host.to_owned(),
            reference: path.split(':').next().unwrap_or_default().to_owned(),
            wwwauthenticate: Vec::new(),
        };
        let failed = |source| Error::io("ask the client for credentials", source);
        let gone = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        stream.outgoing.send(proto_containerd::any(&question)).await.map_err(|_| failed(gone()))?;
        let answer = stream.incoming.recv().await.ok_or_else(|| failed(gone()))?.map_err(failed)?;
        let answer: Option<AuthResponse> =
            proto_containerd::from_any(&answer).map_err(|error| Error::invalid("credentials", error.to_string()))?;
        credentials(answer.unwrap_or_default())
    }

    /// Makes a blob of a document that came with its descriptor.
    async fn keep_document(&self, descriptor: &Descriptor, mut bytes: Bytes, name: &str) -> Result<()> {
        let Some(mut writer) = self.writer(descriptor, None, name).await? else { return Ok(()) };
        if writer.offset() > 0 {
            writer.reset().await?;
        }
        writer.write(bytes.split_off(0)).await?;
        self.commit_blob(writer, descriptor, name).await
    }

    /// Opens a blob for writing; `None` when it is there, and then held. Where somebody else is fetching it, that is
    /// waited for.
    async fn writer(&self, descriptor: &Descriptor, unpack: Option<Digest>, name: &str) -> Result<Option<Writer>> {
        let opening = || Opening {
            namespace: self.namespace.clone(),
            lease: Some(self.lease.clone()),
            reference: reference(descriptor),
            expected: Some(descriptor.digest.clone()),
            total: descriptor.size,
            unpack: unpack.clone().map(Prospect::Promised),
        };
        let end = tokio::time::Instant::now() + BUSY_MAX;
        let opened = loop {
            match Writer::open(self.of.content.clone(), opening()).await {
                Err(Error::Busy { .. }) if tokio::time::Instant::now() < end => tokio::time::sleep(BUSY_PAUSE).await,
                outcome => break outcome,
            }
        };
        match opened {
            Err(Error::Exists { .. }) => {
                let held = Resource { kind: lease::CONTENT.to_owned(), id: descriptor.digest.to_string() };
                lease::add_resource(&self.of.store, &self.namespace, &self.lease, &held)?;
                self.add_source(descriptor, name)?;
                self.progress.of_blob("already exists", name, descriptor, descriptor.size);
                Ok(None)
            }
            outcome => outcome.map(Some),
        }
    }

    /// Notes on content that it can be had from the repository `name`, too: a push elsewhere may mount it from there.
    fn add_source(&self, descriptor: &Descriptor, name: &str) -> Result<()> {
        let (key, path) = source(name);
        let known = self.of.content.info(&self.namespace, &descriptor.digest)?.record.labels.remove(&key);
        match with_path(known.as_deref(), &path, LABEL_MAX.saturating_sub(key.len())) {
            Some(paths) => self.label(&descriptor.digest, &key, &paths),
            None => Ok(()),
        }
    }

    async fn commit_blob(&self, mut writer: Writer, descriptor: &Descriptor, name: &str) -> Result<()> {
        let (key, path) = source(name);
        let labels = Labels::from([(key, path)]);
        let commit = Commit { expected: Some(descriptor.digest.clone()), total: descriptor.size, labels };
        match writer.commit(commit).await {
            // Somebody else was quicker.
            Ok(_) | Err(Error::Exists { .. }) => {}
            Err(error) => return Err(error),
        }
        let event = events::ContentCreate {
            digest: descriptor.digest.to_string(),
            size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
            media_type: descriptor.media_type.clone(),
        };
        self.of.events.publish(&self.namespace, "/content/create", &event);
        self.progress.of_blob("complete", name, descriptor, descriptor.size);
        Ok(())
    }

    /// Fetches a document, if it is not there.
    pub(super) async fn fetch_document(&self, descriptor: &Descriptor, remote: &Remote<'_>) -> Result<()> {
        if self.of.content.info(&self.namespace, &descriptor.digest).is_ok() {
            // Opening it tells and holds it.
            return self.writer(descriptor, None, remote.name).await.map(drop);
        }
        if !descriptor.is_index() && !descriptor.is_manifest() {
            return self.fetch_blob(descriptor, None, remote).await;
        }
        self.progress.of_blob("waiting", remote.name, descriptor, 0);
        let bytes = remote.courier.document(descriptor).await?;
        self.keep_document(descriptor, bytes, remote.name).await
    }

    async fn fetch_layers(&self, manifest: &Manifest, remote: &Remote<'_>, to_unpack: bool) -> Result<()> {
        let diff_ids = match to_unpack {
            true => Config::parse(&manifest.config, &self.read(&manifest.config)?)?.diff_ids()?,
            false => Vec::new(),
        };
        stream::iter(to_fetch(&manifest.layers, &diff_ids))
            .map(|(layer, diff_id)| async move { self.fetch_blob(&layer, diff_id, remote).await })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await
    }

    /// Fetches a blob, from where an earlier attempt ended.
    async fn fetch_blob(&self, blob: &Descriptor, diff_id: Option<Digest>, remote: &Remote<'_>) -> Result<()> {
        let Some(mut writer) = self.writer(blob, diff_id, remote.name).await? else { return Ok(()) };
        self.progress.of_blob("waiting", remote.name, blob, writer.offset());
        let mut pieces = remote.courier.fetch(blob, writer.offset()).await?;
        let mut told = 0;
        while let Some(piece) = pieces.data().await? {
            writer.write(piece).await?;
            if writer.offset() >= told + TOLD_EVERY {
                told = writer.offset();
                self.progress.of_blob("downloading", remote.name, blob, told);
            }
        }
        self.commit_blob(writer, blob, remote.name).await
    }

    /// Documents of an image, each with its blobs, in the order in which a registry takes them.
    fn to_push(&self, root: &Descriptor, wanted: &Wanted) -> Result<Vec<(Descriptor, Vec<Descriptor>)>> {
        let mut ordered = Vec::new();
        let mut bounds = Bounds::of(root);
        let mut todo = vec![(root.clone(), 0)];
        while let Some((next, depth)) = todo.pop() {
            bounds.count()?;
            match self.document(&next)? {
                Some(Document::Index(manifests)) => {
                    check_depth(&next, depth)?;
                    let chosen = wanted.choose(&next, manifests)?;
                    todo.extend(chosen.into_iter().map(|(manifest, _)| (manifest, depth + 1)));
                    ordered.push((next, Vec::new()));
                }
                Some(Document::Manifest { config, layers }) => {
                    let blobs = layers.into_iter().filter(|layer| !layer.is_restricted()).chain([config]).collect();
                    ordered.push((next, blobs));
                }
                None => return Err(Error::invalid(next.digest.as_str(), "only images can be pushed")),
            }
        }
        // What is named must be there first.
        ordered.reverse();
        Ok(ordered)
    }

    async fn push_blob(&self, blob: Descriptor, remote: &Remote<'_>) -> Result<()> {
        if remote.courier.has(&blob).await? {
            self.progress.of_blob("already exists", remote.name, &blob, blob.size);
            return self.add_source(&blob, remote.name);
        }
        let (mut file, size) = self.of.content.blob(&self.namespace, &blob.digest)?;
        let mut push = remote.courier.push(&blob).await?;
        let mut left = size;
        while left > 0 {
            let length = PIECE.min(usize::try_from(left).unwrap_or(PIECE));
            let (piece, back) = run_blocking(move || read_piece(file, length)).await?;
            file = back;
            left -= piece.len() as u64;
            push.give(piece).await?;
            self.progress.of_blob("uploading", remote.name, &blob, size - left);
        }
        push.given().await?;
        self.progress.of_blob("complete", remote.name, &blob, size);
        self.add_source(&blob, remote.name)
    }
}

/// Layers with what they are unpacked to: each once, for an image may list one twice.
fn to_fetch(layers: &[Descriptor], diff_ids: &[Digest]) -> Vec<(Descriptor, Option<Digest>)> {
    let mut seen = HashSet::new();
    let each = layers.iter().enumerate().filter(|(_, layer)| seen.insert(&layer.digest));
    each.map(|(at, layer)| (layer.clone(), diff_ids.get(at).cloned())).collect()
}

/// The repository at the other end.
pub(super) struct Remote<'a> {
    courier: &'a Courier,
    /// As the client wrote it.
    name: &'a str,
}

fn read_piece(mut file: std::fs::File, length: usize) -> Result<(Bytes, std::fs::File)> {
    use std::io::Read;
    let mut piece = vec![0; length];
    file.read_exact(&mut piece).map_err(|error| Error::io("read a blob", error))?;
    Ok((piece.into(), file))
}

fn credentials(answer: AuthResponse) -> Result<Option<Credentials>> {
    let (kind, AuthResponse { username, secret, .. }) = (answer.auth_type(), answer);
    Ok(match kind {
        AuthType::None => None,
        AuthType::Credentials if username.is_empty() && secret.is_empty() => None,
        AuthType::Credentials => Some(Credentials { user: username, password: secret, ..Credentials::default() }),
        AuthType::Refresh => Some(Credentials { identity_token: secret, ..Credentials::default() }),
        AuthType::Header => match secret.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                Some(Credentials { registry_token: token.to_owned(), ..Credentials::default() })
            }
            _ => return Err(Error::Unimplemented { what: "an authorization that is no bearer token".to_owned() }),
        },
    })
}

/// A list of repositories with one more; `None` where it is in the list, or the list is full: it is a hint, and for
/// want of one repository no transfer fails.
fn with_path(known: Option<&str>, path: &str, limit: usize) -> Option<String> {
    let mut paths: Vec<&str> = known.into_iter().flat_map(|paths| paths.split(',')).collect();
    if paths.contains(&path) {
        return None;
    }
    paths.push(path);
    paths.sort_unstable();
    Some(paths.join(",")).filter(|paths| paths.len() <= limit)
}

/// The label that says where content came from: the registry is its key, the repository its value.
fn source(name: &str) -> (String, String) {
    let (host, path) = name.split_once('/').unwrap_or((name, ""));
    let path = path.split('@').next().unwrap_or_default();
    let path = path.rsplit_once(':').map_or(path, |(path, _)| path);
    (format!("{SOURCE}{}", host.split(':').next().unwrap_or(host)), path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_that_is_listed_twice_is_fetched_once() {
        let digest = |hex: &str| Digest::parse(&format!("sha256:{}", hex.repeat(64))).unwrap();
        let layer = |hex: &str| Descriptor::new("layer", digest(hex), 1);
        let layers = [layer("a"), layer("b"), layer("a")];
        let fetched = to_fetch(&layers, &[digest("c"), digest("d"), digest("c")]);
        let fetched: Vec<_> = fetched.into_iter().map(|(layer, diff_id)| (layer.digest, diff_id)).collect();
        assert_eq!(fetched, [(digest("a"), Some(digest("c"))), (digest("b"), Some(digest("d")))]);
    }

    #[test]
    fn where_content_came_from() {
        let expected = |host: &str, path: &str| (format!("{SOURCE}{host}"), path.to_owned());
        assert_eq!(source("127.0.0.1:5000/busybox:latest"), expected("127.0.0.1", "busybox"));
        assert_eq!(source("docker.io/library/nginx@sha256:00"), expected("docker.io", "library/nginx"));
    }

    #[test]
    fn a_list_of_repositories_that_is_full_stays_as_it_is() {
        assert_eq!(with_path(None, "b", 3).unwrap(), "b");
        assert_eq!(with_path(Some("b"), "a", 3).unwrap(), "a,b");
        assert_eq!(with_path(Some("a,b"), "a", 3), None);
        assert_eq!(with_path(Some("a,b"), "c", 3), None);
    }

    #[test]
    fn what_a_client_says_it_is() {
        let answer = |kind: AuthType, username: &str, secret: &str| AuthResponse {
            auth_type: kind.into(),
            username: username.to_owned(),
            secret: secret.to_owned(),
            expire_at: None,
        };
        assert_eq!(credentials(answer(AuthType::None, "", "")).unwrap(), None);
        assert_eq!(credentials(answer(AuthType::Credentials, "", "")).unwrap(), None);
        let basic = credentials(answer(AuthType::Credentials, "me", "secret")).unwrap().unwrap();
        assert_eq!((basic.user.as_str(), basic.password.as_str()), ("me", "secret"));
        let token = credentials(answer(AuthType::Header, "", "Bearer abc")).unwrap().unwrap();
        assert_eq!(token.registry_token, "abc");
        assert!(credentials(answer(AuthType::Header, "", "Basic abc")).is_err());
    }
}
