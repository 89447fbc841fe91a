//! A registry on loopback that does exactly what a test tells it, truth or lie.
//!
//! A test gives it a function from a request to an [`Answer`]; it keeps a record of all requests, so that a test can
//! also say what must not have been asked. It speaks just enough HTTP/1.1 and closes after each answer.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part of it")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};
use strata_registry::{Client, Config, Credentials, Digest, Image, Platform, Problem, Reference, media_type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// With its query.
    pub path: String,
    pub headers: HashMap<String, String>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first position that `Range` asks for.
    pub fn range_start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What is answered.
#[derive(Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Where the body is cut off with a reset.
    pub reset_at: Option<usize>,
    /// Where the body stops for good, with the connection left open.
    pub silent_at: Option<usize>,
    /// The body comes a byte at a time, with this pause after each.
    pub trickle: Option<Duration>,
    /// Before anything is said.
    pub delay: Duration,
    /// No `Content-Length`: the body ends with the connection, in HTTP's chunks.
    pub chunked: bool,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Answer {
        Answer {
            status,
            headers: Vec::new(),
            body: body.into(),
            reset_at: None,
            silent_at: None,
            trickle: None,
            delay: Duration::ZERO,
            chunked: false,
        }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Answer {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn redirect(to: impl Into<String>) -> Answer {
        Answer::new(307, "").header("location", to)
    }

    pub fn reset_at(mut self, at: usize) -> Answer {
        self.reset_at = Some(at);
        self
    }

    pub fn silent_at(mut self, at: usize) -> Answer {
        self.silent_at = Some(at);
        self
    }

    pub fn chunked(mut self) -> Answer {
        self.chunked = true;
        self
    }
}

/// The server. It stops when it is dropped.
pub struct Liar {
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Certified = rcgen::CertifiedKey<rcgen::KeyPair>;

fn acceptor(certificate: &Certified, authority: Option<&Certified>) -> tokio_rustls::TlsAcceptor {
    let key = PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match authority {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(authority.cert.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let config = builder.with_single_cert(vec![certificate.cert.der().clone()], key).unwrap();
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

impl Liar {
    pub async fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Liar {
        Liar::start_with(None, answer).await
    }

    /// With TLS, by the certificate and key given.
    pub async fn start_tls(
        certificate: &Certified,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Liar {
        Liar::start_with(Some(acceptor(certificate, None)), answer).await
    }

    /// The same, and clients must show a certificate that `authority` vouches for.
    pub async fn start_mutual_tls(
        certificate: &Certified,
        authority: &Certified,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Liar {
        Liar::start_with(Some(acceptor(certificate, Some(authority))), answer).await
    }

    async fn start_with(
        tls: Option<tokio_rustls::TlsAcceptor>,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Liar {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let log: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (kept, answer) = (Arc::clone(&log), Arc::new(answer));
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (tls, kept, answer) = (tls.clone(), Arc::clone(&kept), Arc::clone(&answer));
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, &kept, &*answer).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &kept, &*answer).await;
                            }
                        }
                    }
                });
            }
        });
        Liar { address, log, task }
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    pub fn reference(&self) -> Reference {
        format!("{}/team/app:1", self.host()).parse().unwrap()
    }

    pub async fn resolve(&self) -> Result<Image, strata_registry::Error> {
        client().resolve(&self.reference(), &Credentials::Anonymous, &platform()).await
    }

    /// The problem that resolving ends with.
    pub async fn problem(&self) -> Problem {
        problem(self.resolve().await.map(|_| ()))
    }
}

trait Peer: AsyncRead + AsyncWrite + Unpin {
    fn reset(self);
}

impl Peer for TcpStream {
    fn reset(self) {
        self.set_zero_linger().unwrap();
    }
}

impl Peer for tokio_rustls::server::TlsStream<TcpStream> {
    fn reset(self) {
        self.into_inner().0.reset();
    }
}

async fn serve(mut stream: impl Peer, log: &Mutex<Vec<Request>>, answer: &(dyn Fn(&Request) -> Answer + Send + Sync)) {
    let Some(request) = read_request(&mut stream).await else { return };
    log.lock().unwrap().push(request.clone());
    let answer = answer(&request);
    tokio::time::sleep(answer.delay).await;
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let explicit = answer.headers.iter().any(|(name, _)| name == "content-length");
    match (answer.chunked, explicit) {
        (true, _) => head += "transfer-encoding: chunked\r\n",
        (false, false) => head += &format!("content-length: {}\r\n", answer.body.len()),
        (false, true) => {}
    }
    head += "\r\n";
    let _ = stream.write_all(head.as_bytes()).await;
    let end = answer.reset_at.or(answer.silent_at).unwrap_or(answer.body.len()).min(answer.body.len());
    for chunk in answer.body[..end].chunks(if answer.trickle.is_some() { 1 } else { 64 << 10 }) {
        tokio::time::sleep(answer.trickle.unwrap_or_default()).await;
        let framed = if answer.chunked { framed(chunk) } else { chunk.to_vec() };
        if stream.write_all(&framed).await.is_err() {
            return;
        }
    }
    if answer.reset_at.is_some() {
        let _ = stream.flush().await;
        // The reset must not overtake what was written.
        tokio::time::sleep(Duration::from_millis(20)).await;
        return stream.reset();
    }
    if answer.silent_at.is_some() {
        tokio::time::sleep(Duration::from_secs(600)).await;
    }
    if answer.chunked {
        let _ = stream.write_all(b"0\r\n\r\n").await;
    }
    let _ = stream.shutdown().await;
}

fn framed(chunk: &[u8]) -> Vec<u8> {
    let mut framed = format!("{:x}\r\n", chunk.len()).into_bytes();
    framed.extend_from_slice(chunk);
    framed.extend_from_slice(b"\r\n");
    framed
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let text = String::from_utf8(head).ok()?;
    let mut lines = text.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let mut body = vec![0; headers.get("content-length").map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.ok()?;
    Some(Request { method, path, headers, body: String::from_utf8(body).ok()? })
}

/// An image of two layers, and how an honest registry serves it.
#[derive(Clone)]
pub struct Honest {
    pub manifest: Vec<u8>,
    pub blobs: HashMap<String, Vec<u8>>,
    pub layers: Vec<Vec<u8>>,
}

impl Honest {
    pub fn new() -> Honest {
        Honest::with_layers(vec![noise(1, 700_000), noise(2, 1000)])
    }

    pub fn with_layers(layers: Vec<Vec<u8>>) -> Honest {
        let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}});
        let config = config.to_string().into_bytes();
        let described = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": described(media_type::OCI_CONFIG, &config),
            "layers": layers.iter().map(|l| described(media_type::OCI_LAYER_GZIP, l)).collect::<Vec<Value>>(),
        });
        let blobs = layers.iter().chain([&config]).map(|b| (Digest::of(b).to_string(), b.clone())).collect();
        Honest { manifest: manifest.to_string().into_bytes(), blobs, layers }
    }

    /// As a registry that keeps to the protocol answers, with ranges.
    pub fn answer(&self, request: &Request) -> Answer {
        if request.path.contains("/manifests/") {
            return manifest_answer(self.manifest.clone());
        }
        let digest = request.path.rsplit('/').next().unwrap();
        match self.blobs.get(digest) {
            None => Answer::new(404, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}"#),
            Some(bytes) => ranged(bytes, request.range_start()),
        }
    }
}

pub fn manifest_answer(bytes: impl Into<Vec<u8>>) -> Answer {
    let bytes = bytes.into();
    let digest = Digest::of(&bytes).to_string();
    Answer::new(200, bytes).header("content-type", media_type::OCI_MANIFEST).header("docker-content-digest", digest)
}

pub fn ranged(bytes: &[u8], start: Option<usize>) -> Answer {
    match start {
        None => Answer::new(200, bytes),
        Some(start) => {
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            Answer::new(206, &bytes[start..]).header("content-range", range)
        }
    }
}

/// Bytes that look like chance and are the same each time.
pub fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..count).map(|_| next()).collect()
}

/// A client that waits no longer than a test does.
pub fn client() -> Client {
    Client::new(Config { stall: Duration::from_millis(400), ..Config::default() })
}

pub fn platform() -> Platform {
    "linux/amd64".parse().unwrap()
}

/// All bytes of the image's layer `number`, read from `offset` on.
pub async fn layer(image: &Image, number: usize, offset: u64) -> Result<Vec<u8>, strata_registry::Error> {
    let mut blob = image.blob(&image.manifest.document.layers[number], offset);
    let mut all = Vec::new();
    while let Some(bytes) = blob.next().await? {
        assert!(!bytes.is_empty());
        all.extend_from_slice(&bytes);
        assert_eq!(blob.offset(), offset + all.len() as u64);
    }
    Ok(all)
}

/// The problem of a failure, whose words are shown when a test fails.
pub fn problem<T>(result: Result<T, strata_registry::Error>) -> Problem {
    let Err(error) = result else { panic!("it succeeded") };
    eprintln!("{}", error.fault().one_line());
    // The fault is what leaves the program: it must be whole for every error.
    let fault = error.fault();
    assert_eq!((fault.layer, fault.step.as_str()), (strata_fault::Layer::Registry, "pull"));
    assert!(!fault.causes.is_empty());
    error.into_problem()
}
