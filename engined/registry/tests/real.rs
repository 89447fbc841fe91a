//! Against a real registry: Debian's `docker-registry`, filled by `skopeo`. Both must be installed, else the tests say
//! that they were skipped.

mod liar;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use liar::{client, layer, noise, platform, problem};
use serde_json::{Value, json};
use strata_registry::{Compression, Credentials, Digest, Image, Problem, Reference, media_type};
use tempfile::TempDir;

/// `user:pass`, by bcrypt.
const HTPASSWD: &str = "user:$2b$05$9u3qVefFtoJUR13c4uartu0gPWMgM0W.84shGEPxFi9HfOc8BPQ3a\n";

/// A registry with a directory of its own, ended when it is dropped.
struct Registry {
    child: Child,
    port: u16,
    directory: TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    /// `None`, with a word about it, where the programs are not installed.
    fn start(auth: &str) -> Option<Registry> {
        for program in ["docker-registry", "skopeo"] {
            if Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
                eprintln!("skipped: {program} is not installed");
                return None;
            }
        }
        let directory = tempfile::Builder::new().prefix("registry-test-").tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let path = directory.path();
        fs::write(path.join("htpasswd"), HTPASSWD).unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {0}/data}}}}\n\
             http: {{addr: '127.0.0.1:{port}'}}\n{1}\n",
            path.display(),
            auth.replace("DIR", &path.display().to_string()),
        );
        fs::write(path.join("config.yml"), config).unwrap();
        let log = fs::File::create(path.join("log")).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve".as_ref(), path.join("config.yml").as_os_str()])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let registry = Registry { child, port, directory };
        registry.wait();
        Some(registry)
    }

    fn wait(&self) {
        for _ in 0..100 {
            if std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{}", fs::read_to_string(self.directory.path().join("log")).unwrap());
    }

    fn reference(&self, name: &str) -> Reference {
        format!("localhost:{}/{name}", self.port).parse().unwrap()
    }

    fn push(&self, layout: &Layout, name: &str, options: &[&str]) {
        let status = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"])
            .args(options)
            .arg(format!("oci:{}", layout.directory.path().display()))
            .arg(format!("docker://{}", self.reference(name)))
            .status()
            .unwrap();
        assert!(status.success());
    }

    async fn resolve(&self, name: &str, credentials: &Credentials) -> Result<Image, strata_registry::Error> {
        client().resolve(&self.reference(name), credentials, &platform()).await
    }
}

/// An OCI image layout in a directory.
struct Layout {
    directory: TempDir,
}

impl Layout {
    fn new() -> Layout {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("blobs/sha256")).unwrap();
        fs::write(directory.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Layout { directory }
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        fs::write(self.directory.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    fn image(&self, architecture: &str, layers: &[(&str, Vec<u8>, Vec<u8>)]) -> Value {
        let diff_ids: Vec<Digest> = layers.iter().map(|(_, tar, _)| Digest::of(tar)).collect();
        let config = json!({"architecture": architecture, "os": "linux", "config": {"Cmd": ["true"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": []});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": self.blob(media_type::OCI_CONFIG, config.to_string().as_bytes()),
            "layers": layers.iter().map(|(kind, _, packed)| self.blob(kind, packed)).collect::<Vec<_>>(),
        });
        let mut entry = self.blob(media_type::OCI_MANIFEST, manifest.to_string().as_bytes());
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    }

    fn index(&self, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests});
        fs::write(self.directory.path().join("index.json"), index.to_string()).unwrap();
    }

    /// One image of three layers, packed in the three ways.
    fn single() -> Layout {
        let layout = Layout::new();
        let entry = layout.image("amd64", &layers());
        layout.index(&[entry]);
        layout
    }

    /// The same for two processors, behind an index of their own.
    fn several() -> Layout {
        let layout = Layout::new();
        let manifests = [layout.image("arm64", &layers()[..1]), layout.image("amd64", &layers())];
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests});
        let entry = layout.blob(media_type::OCI_INDEX, index.to_string().as_bytes());
        layout.index(&[entry]);
        layout
    }
}

/// Media type, content, packed content.
fn layers() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let content = |seed| [noise(seed, 200_000), vec![0; 500_000]].concat();
    vec![
        (media_type::OCI_LAYER_GZIP, content(1), packed("gzip", &content(1))),
        (media_type::OCI_LAYER_ZSTD, content(2), packed("zstd", &content(2))),
        (media_type::OCI_LAYER, content(3), content(3)),
    ]
}

/// By the tool of that name; where it is not there, the bytes as they are, which a registry does not mind.
fn packed(tool: &str, bytes: &[u8]) -> Vec<u8> {
    let child = Command::new(tool).arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = child else { return bytes.to_vec() };
    let mut stdin = child.stdin.take().unwrap();
    let input = bytes.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    output.stdout
}

async fn whole(image: &Image) -> BTreeMap<usize, usize> {
    let config: Value = serde_json::from_slice(&image.config().await.unwrap()).unwrap();
    assert_eq!(config["architecture"], "amd64");
    let mut sizes = BTreeMap::new();
    for number in 0..image.manifest.document.layers.len() {
        sizes.insert(number, layer(image, number, 0).await.unwrap().len());
    }
    sizes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_pulled() {
    let Some(registry) = Registry::start("") else { return };
    // skopeo would compress the plain layer.
    registry.push(&Layout::single(), "team/app:1", &["--preserve-digests"]);
    let image = registry.resolve("team/app:1", &Credentials::Anonymous).await.unwrap();
    let layers = &image.manifest.document.layers;
    let packing: Vec<_> = layers.iter().map(|layer| Compression::of(&layer.media_type).unwrap()).collect();
    assert_eq!(packing, [Compression::Gzip, Compression::Zstd, Compression::None]);
    assert_eq!(whole(&image).await.len(), 3);
    // The same by digest, and with a range.
    let digest = image.target().digest.clone();
    let by_digest = registry.resolve(&format!("team/app@{digest}"), &Credentials::Anonymous).await.unwrap();
    assert_eq!(by_digest.manifest.bytes, image.manifest.bytes);
    let all = layer(&image, 2, 0).await.unwrap();
    assert_eq!(layer(&image, 2, 300_000).await.unwrap(), all[300_000..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_and_docker_formats() {
    let Some(registry) = Registry::start("") else { return };
    registry.push(&Layout::several(), "app:many", &["--all"]);
    let image = registry.resolve("app:many", &Credentials::Anonymous).await.unwrap();
    assert_eq!(image.indexes.len(), 1);
    assert_eq!(image.target().media_type, media_type::OCI_INDEX);
    assert_eq!(whole(&image).await.len(), 3);

    let layout = Layout::new();
    layout.index(&[layout.image("amd64", &layers()[..1])]);
    registry.push(&layout, "app:docker", &["--format", "v2s2"]);
    let image = registry.resolve("app:docker", &Credentials::Anonymous).await.unwrap();
    assert_eq!(image.target().media_type, media_type::DOCKER_MANIFEST);
    assert_eq!(image.manifest.document.config.media_type, media_type::DOCKER_CONFIG);
    assert_eq!(whole(&image).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_and_who_is_not_let_in() {
    let Some(registry) = Registry::start("auth: {htpasswd: {realm: test, path: DIR/htpasswd}}") else { return };
    registry.push(&Layout::single(), "app:1", &["--dest-creds", "user:pass"]);
    let user = |password: &str| Credentials::Basic { user: "user".into(), password: password.into() };
    assert_eq!(whole(&registry.resolve("app:1", &user("pass")).await.unwrap()).await.len(), 3);
    let problem_of = async |name: &str, credentials: Credentials| problem(registry.resolve(name, &credentials).await);
    assert!(matches!(problem_of("app:2", user("pass")).await, Problem::NotFound { .. }));
    assert!(matches!(problem_of("nothing:1", user("pass")).await, Problem::NotFound { .. }));
    assert!(matches!(problem_of("app:1", user("no")).await, Problem::Unauthorized { given: true, .. }));
    assert!(matches!(problem_of("app:1", Credentials::Anonymous).await, Problem::Unauthorized { given: false, .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_blob_in_the_registrys_store() {
    let Some(registry) = Registry::start("") else { return };
    registry.push(&Layout::single(), "app:1", &["--preserve-digests"]);
    let image = registry.resolve("app:1", &Credentials::Anonymous).await.unwrap();
    let digest = &image.manifest.document.layers[2].digest;
    let blobs = registry.directory.path().join("data/docker/registry/v2/blobs/sha256");
    let data = blobs.join(&digest.hex()[..2]).join(digest.hex()).join("data");
    damage(&data);
    assert!(matches!(problem(layer(&image, 2, 0).await), Problem::Digest { .. }));
}

fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes[1000] ^= 1;
    fs::write(path, bytes).unwrap();
}
