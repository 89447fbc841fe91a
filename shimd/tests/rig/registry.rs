//! A registry of the tests' own: it serves images out of memory, as slowly as is wanted, counts every byte, and cuts
//! connections in the middle.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use super::{digest, layer};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// What is sent at once; what waits in the kernel was counted and may be lost, and shall be little.
const PIECE: usize = 64 << 10;

/// A running registry; it ends with the test's process.
pub(crate) struct Registry {
    port: u16,
    pub(crate) state: Arc<Mutex<State>>,
}

/// What it serves, and how.
#[derive(Default)]
pub(crate) struct State {
    documents: HashMap<String, Vec<u8>>,
    blobs: HashMap<String, Arc<Vec<u8>>>,
    /// After so many bytes of a blob's body a connection is cut, the next in turn; none: no more cuts.
    pub(crate) cuts: Vec<u64>,
    /// Between two pieces.
    pub(crate) pause: Duration,
    /// What was sent of each blob.
    pub(crate) sent: HashMap<String, Sent>,
}

/// What was sent of a blob.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) bytes: u64,
    pub(crate) requests: usize,
    /// The end of what was ever sent.
    furthest: u64,
    /// For each request after the first: bytes that were sent before already.
    pub(crate) twice: Vec<u64>,
}

/// An image that a registry serves.
pub(crate) struct Image {
    pub(crate) layers: Vec<String>,
    pub(crate) sizes: Vec<u64>,
}

/// Bytes that do not repeat, the same ones for each seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

impl Registry {
    pub(crate) fn start() -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::<Mutex<State>>::default();
        let of = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = of.clone();
                std::thread::spawn(move || drop(serve(stream, &state)));
            }
        });
        Registry { port, state }
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The name of an image.
    pub(crate) fn name(&self, image: &str) -> String {
        format!("{}/{image}:latest", self.host())
    }

    /// Makes an image of layers of such sizes, each with one file.
    pub(crate) fn add(&self, image: &str, sizes: &[usize]) -> Image {
        let layers: Vec<Vec<u8>> = sizes
            .iter()
            .enumerate()
            .map(|(at, size)| layer(&[(&format!("file-{at}"), &noise(at as u64 + *size as u64, *size))]))
            .collect();
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = config.to_string().into_bytes();
        let describe = |media_type: &str, bytes: &[u8]| json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": describe(CONFIG, &config),
            "layers": layers.iter().map(|layer| describe(LAYER, layer)).collect::<Vec<_>>(),
        });
        let manifest = manifest.to_string().into_bytes();
        let mut state = self.state.lock().unwrap();
        state.documents.insert(format!("{image}:latest"), manifest.clone());
        state.documents.insert(format!("{image}:{}", digest(&manifest)), manifest);
        let sizes = layers.iter().map(|layer| layer.len() as u64).collect();
        state.blobs.extend(layers.into_iter().chain([config]).map(|blob| (digest(&blob), Arc::new(blob))));
        Image { layers: diff_ids, sizes }
    }

    /// What was sent of a blob.
    pub(crate) fn sent(&self, digest: &str) -> Sent {
        self.state.lock().unwrap().sent.get(digest).cloned().unwrap_or_default()
    }

    pub(crate) fn bytes_sent(&self) -> u64 {
        self.state.lock().unwrap().sent.values().map(|sent| sent.bytes).sum()
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    rustix::net::sockopt::set_socket_send_buffer_size(&stream, PIECE)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.by_ref().take(16 << 10).read_line(&mut line)? == 0 {
                return Ok(());
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let path = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
        let range = lines.iter().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let value = value.trim().strip_prefix("bytes=")?.strip_suffix('-')?;
            name.eq_ignore_ascii_case("range").then(|| value.parse::<u64>().ok()).flatten()
        });
        if !answer(&stream, state, &path, range)? {
            return Ok(());
        }
    }
}

/// Whether the connection goes on.
fn answer(mut stream: &TcpStream, state: &Mutex<State>, path: &str, range: Option<u64>) -> std::io::Result<bool> {
    let path = path.split('?').next().unwrap_or_default();
    if let Some((image, name)) = path.strip_prefix("/v2/").and_then(|path| path.split_once("/manifests/")) {
        let document = state.lock().unwrap().documents.get(&format!("{image}:{name}")).cloned();
        let Some(document) = document else { return not_found(stream) };
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: {MANIFEST}\r\nContent-Length: {}\r\n\r\n", document.len())?;
        stream.write_all(&document)?;
        return Ok(true);
    }
    let digest = path.rsplit('/').next().unwrap_or_default();
    let blob = state.lock().unwrap().blobs.get(digest).cloned();
    let Some(blob) = blob else { return not_found(stream) };
    let begin = range.unwrap_or(0);
    let head = match range {
        Some(begin) => {
            format!("206 Partial Content\r\nContent-Range: bytes {begin}-{}/{}", blob.len() - 1, blob.len())
        }
        None => "200 OK".to_owned(),
    };
    write!(stream, "HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", blob.len() as u64 - begin)?;
    send(stream, state, digest, &blob[begin as usize..], begin)
}

fn send(mut stream: &TcpStream, state: &Mutex<State>, digest: &str, body: &[u8], begin: u64) -> std::io::Result<bool> {
    let cut = {
        let mut state = state.lock().unwrap();
        let cut = if body.len() > PIECE { state.cuts.pop() } else { None };
        let sent = state.sent.entry(digest.to_owned()).or_default();
        if sent.requests > 0 {
            sent.twice.push(sent.furthest.saturating_sub(begin));
        }
        sent.requests += 1;
        cut.map_or(body.len(), |cut| body.len().min(usize::try_from(cut).unwrap()))
    };
    for piece in body[..cut].chunks(PIECE) {
        let written = stream.write_all(piece);
        let pause = {
            let mut state = state.lock().unwrap();
            let pause = state.pause;
            let sent = state.sent.entry(digest.to_owned()).or_default();
            sent.bytes += piece.len() as u64;
            let offset = piece.as_ptr() as u64 - body.as_ptr() as u64;
            sent.furthest = sent.furthest.max(begin + offset + piece.len() as u64);
            pause
        };
        written?;
        std::thread::sleep(pause);
    }
    if cut < body.len() {
        // What was not read is lost, as with a reset.
        rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO))?;
        return Ok(false);
    }
    Ok(true)
}

fn not_found(mut stream: &TcpStream) -> std::io::Result<bool> {
    stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
    Ok(true)
}
