//! A real registry: Debian's docker-registry, on a free port of 127.0.0.1, over a storage directory of its own.
//!
//! Images come into it by placing the files of an OCI layout where the registry keeps its blobs and links (the layout of
//! distribution's filesystem driver), which is what a push ends with, without a second copy.

mod variants;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub use variants::Variant;

use crate::daemon::Daemon;
use crate::site::Site;
use crate::{http, programs};

/// Of a registry that asks for credentials.
pub const USER: &str = "reader";
/// Of a registry that asks for credentials.
pub const PASSWORD: &str = "open sesame";
/// The line of an htpasswd file for [`USER`] and [`PASSWORD`] (bcrypt, cost 4: the registry checks it at each request).
const HTPASSWD: &str = "reader:$2y$04$fN0Akr3eyMWtblVOp3TTyecXDghIB3o7R6WqUr9VJ8ERI0LjiIasG\n";

/// Whom a registry serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Anyone,
    /// Only [`USER`] with [`PASSWORD`].
    WithPassword,
}

/// A running registry.
pub struct Registry {
    daemon: Daemon,
    storage: PathBuf,
    port: u16,
    is_left: bool,
}

impl Drop for Registry {
    fn drop(&mut self) {
        if !self.is_left {
            self.stop();
        }
    }
}

impl Registry {
    /// Starts an empty registry, whose files are below the site's `lib/<name>`.
    ///
    /// # Errors
    /// When it is not installed or does not start.
    pub fn start(site: &Site, name: &str, access: Access) -> Result<Registry, String> {
        Registry::start_on(site, name, access, free_port())
    }

    /// The same on a port of the caller's choice.
    ///
    /// # Errors
    /// As [`Registry::start`].
    pub fn start_on(site: &Site, name: &str, access: Access, port: u16) -> Result<Registry, String> {
        let program = programs::peer("docker-registry").ok_or("docker-registry is not installed: run 'make setup'")?;
        let storage = site.path("lib").join(name);
        fs::create_dir_all(&storage).map_err(|error| format!("create {}: {error}", storage.display()))?;
        let config = site.write_config(&format!("{name}.yml"), &configuration(site, name, &storage, access, port)?)?;
        let mut command = site.daemon(&program);
        command.arg("serve").arg(config);
        let mut daemon = Daemon::start(name, command, &site.path("log").join(format!("{name}.log")))?;
        daemon.ready(|| http::get(&format!("127.0.0.1:{port}"), "/v2/").is_some())?;
        Ok(Registry { daemon, storage, port, is_left: false })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The host as it stands in an image's name.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// Places the image of an OCI layout under `repository:tag`.
    ///
    /// # Errors
    /// When the layout is not whole.
    pub fn add(&self, layout: &Path, repository: &str, tag: &str) -> Result<(), String> {
        let manifest = only_manifest(layout)?;
        self.add_blob(layout, repository, &manifest)?;
        let document = read_json(&blob_of(layout, &manifest))?;
        self.add_blob(layout, repository, digest_of(&document["config"])?)?;
        for layer in document["layers"].as_array().ok_or("the manifest lists no layers")? {
            self.add_blob(layout, repository, digest_of(layer)?)?;
        }
        self.link_manifest(repository, tag, &manifest)
    }

    fn link_manifest(&self, repository: &str, tag: &str, digest: &str) -> Result<(), String> {
        let manifests = self.repository(repository).join("_manifests");
        link(&manifests.join("revisions/sha256").join(hex(digest)), digest)?;
        link(&manifests.join("tags").join(tag).join("current"), digest)?;
        link(&manifests.join("tags").join(tag).join("index/sha256").join(hex(digest)), digest)
    }

    fn link_layer(&self, repository: &str, digest: &str) -> Result<(), String> {
        link(&self.repository(repository).join("_layers/sha256").join(hex(digest)), digest)
    }

    fn write_blob(&self, digest: &str, bytes: &[u8]) -> Result<(), String> {
        let path = self.blob(digest);
        make_parent(&path)?;
        fs::write(&path, bytes).map_err(|error| format!("write {}: {error}", path.display()))
    }

    fn add_blob(&self, layout: &Path, repository: &str, digest: &str) -> Result<(), String> {
        let data = self.blob(digest);
        if !data.exists() {
            make_parent(&data)?;
            let source = blob_of(layout, digest);
            // A hard link where both are on one file system.
            let placed = fs::hard_link(&source, &data).or_else(|_| fs::copy(&source, &data).map(drop));
            placed.map_err(|error| format!("place {}: {error}", source.display()))?;
        }
        self.link_layer(repository, digest)
    }

    /// Changes one byte of the last layer of the image: its bytes then have another digest than the manifest says. The
    /// registry serves them as they are.
    ///
    /// # Errors
    /// When there is no such image.
    pub fn damage(&self, layout: &Path) -> Result<String, String> {
        let document = read_json(&blob_of(layout, &only_manifest(layout)?))?;
        let layer = document["layers"].as_array().and_then(|layers| layers.last()).ok_or("no layer")?;
        let digest = digest_of(layer)?.to_owned();
        let path = self.blob(&digest);
        let mut bytes = fs::read(&path).map_err(|error| format!("read {}: {error}", path.display()))?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        // A new file: the old one may be a hard link to the layout's.
        fs::remove_file(&path)
            .and_then(|()| fs::write(&path, bytes))
            .map_err(|error| format!("write {}: {error}", path.display()))?;
        Ok(digest)
    }

    /// What it has logged: a line for each request.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// How many layers and configs were fetched so far.
    pub fn blobs_served(&self) -> usize {
        let is_fetch = |line: &&str| line.contains("/blobs/sha256:") && line.contains("\"GET ");
        self.log().lines().filter(is_fetch).count()
    }

    pub fn pid(&self) -> i32 {
        self.daemon.pid()
    }

    /// Ends it.
    pub fn stop(&mut self) {
        self.daemon.kill();
    }

    /// Does not end it when this value goes.
    pub fn leave_running(mut self) -> i32 {
        self.is_left = true;
        self.daemon.pid()
    }

    fn repository(&self, name: &str) -> PathBuf {
        self.storage.join("docker/registry/v2/repositories").join(name)
    }

    fn blob(&self, digest: &str) -> PathBuf {
        let hex = hex(digest);
        self.storage.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }
}

fn configuration(site: &Site, name: &str, storage: &Path, access: Access, port: u16) -> Result<String, String> {
    let auth = match access {
        Access::Anyone => String::new(),
        Access::WithPassword => {
            let path = site.write_config(&format!("{name}.htpasswd"), HTPASSWD)?;
            format!("auth: {{htpasswd: {{realm: tests, path: '{}'}}}}\n", path.display())
        }
    };
    Ok(format!(
        "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: false}}}}\n\
         storage: {{filesystem: {{rootdirectory: '{}'}}, maintenance: {{uploadpurging: {{enabled: false}}}}}}\n\
         http: {{addr: '127.0.0.1:{port}', secret: none}}\n{auth}",
        storage.display()
    ))
}

/// A port of 127.0.0.1 that nobody uses at this moment.
///
/// # Panics
/// When there is none.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

fn only_manifest(layout: &Path) -> Result<String, String> {
    let index = read_json(&layout.join("index.json"))?;
    digest_of(&index["manifests"][0]).map(str::to_owned)
}

fn digest_of(descriptor: &Value) -> Result<&str, String> {
    let digest = descriptor["digest"].as_str().ok_or("a descriptor has no digest")?;
    if digest.starts_with("sha256:") { Ok(digest) } else { Err(format!("{digest} is not a sha256 digest")) }
}

fn hex(digest: &str) -> &str {
    digest.trim_start_matches("sha256:")
}

fn blob_of(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs/sha256").join(hex(digest))
}

fn read_json(path: &Path) -> Result<Value, String> {
    let bytes = fs::read(path).map_err(|error| format!("read {}: {error} (run 'make images')", path.display()))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("parse {}: {error}", path.display()))
}

/// Writes one of the registry's links: a file that names a digest.
fn link(directory: &Path, digest: &str) -> Result<(), String> {
    let path = directory.join("link");
    make_parent(&path)?;
    fs::write(&path, digest).map_err(|error| format!("write {}: {error}", path.display()))
}

fn make_parent(path: &Path) -> Result<(), String> {
    let parent = path.parent().expect("a file has a directory");
    fs::create_dir_all(parent).map_err(|error| format!("create {}: {error}", parent.display()))
}
