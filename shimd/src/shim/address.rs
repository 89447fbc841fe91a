//! Where a shim listens: what `start` prints, in the three forms that have been in use.
//!
//! A plain address (containerd 1.x: ttrpc, version 2), JSON (1.7, 2.x), or a protobuf message (2.3).

use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;
use proto_shim::bootstrap::BootstrapResult;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use crate::error::{Error, Result};

/// The newest task service that is spoken here.
const VERSION_MAX: i32 = 3;
/// How long the listener of a killed process may be there when its connections have ended.
const DYING: Duration = Duration::from_millis(500);
/// The same where nobody waits: a machine that has much else to do takes its time to take a process apart.
const DYING_SLOWLY: Duration = Duration::from_secs(30);

/// A shim's socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    /// Version of the task service, 2 or 3.
    pub(crate) version: i32,
    /// `unix:///path`.
    pub(crate) address: String,
    /// `ttrpc`.
    pub(crate) protocol: String,
}

impl Endpoint {
    /// The socket at a path, as our own shims serve it.
    pub(crate) fn at(path: &Path) -> Endpoint {
        Endpoint { version: VERSION_MAX, address: format!("unix://{}", path.display()), protocol: "ttrpc".to_owned() }
    }

    /// Reads what a shim of `runtime` printed.
    pub(crate) fn parse(output: &[u8], runtime: &str) -> Result<Endpoint> {
        let endpoint = from_protobuf(output).or_else(|| from_json(output)).or_else(|| from_text(output));
        let failed = |why: String| Error::ShimStart { runtime: runtime.to_owned(), why, source: None };
        let endpoint = endpoint.ok_or_else(|| failed("it printed no address".to_owned()))?;
        if !(2..=VERSION_MAX).contains(&endpoint.version) {
            return Err(failed(format!("its task service has version {}, not 2 or 3", endpoint.version)));
        }
        if !endpoint.protocol.eq_ignore_ascii_case("ttrpc") {
            return Err(failed(format!("it speaks {:?}, not ttrpc", endpoint.protocol)));
        }
        endpoint.path().ok_or_else(|| failed(format!("its address {:?} is no unix socket", endpoint.address)))?;
        Ok(endpoint)
    }

    /// Whether a shim printed the message of containerd 2.3.
    pub(crate) fn is_in_newer_form(output: &[u8]) -> bool {
        from_protobuf(output).is_some()
    }

    /// The socket's path; `None` for what is not a socket in the file system. Abstract sockets can be reached from
    /// containers that share the host's network.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        let path = Path::new(self.address.strip_prefix("unix://")?);
        path.is_absolute().then(|| path.to_owned())
    }

    /// Whether somebody listens there.
    pub(crate) async fn is_served(&self) -> bool {
        !is_gone(&self.connect().await)
    }

    /// The same, where that one may just be dying. The kernel closes the descriptors of a killed process one after the
    /// other, often the connections before the listener: who saw a connection end can still make another, which nobody
    /// takes, and which ends with the listener.
    async fn stays_served(&self, patience: Duration) -> bool {
        let connected = self.connect().await;
        let Ok(mut connection) = connected else { return !is_gone(&connected) };
        // A shim says nothing unasked. One that lives may end a connection, too, because it has too many.
        match tokio::time::timeout(patience, connection.read_u8()).await {
            Ok(_) => self.is_served().await,
            Err(_) => true,
        }
    }

    async fn connect(&self) -> std::io::Result<UnixStream> {
        let path = self.path().ok_or(std::io::ErrorKind::NotFound)?;
        UnixStream::connect(path).await
    }

    /// Removes the socket of a shim that is gone; most have done so themselves. One that is served stays: it is of a
    /// shim that has other containers of its group, or of that one's successor.
    pub(crate) async fn remove_unserved_socket(&self) {
        self.remove_socket_unless_served(DYING).await;
    }

    /// The same, with the patience of who keeps nobody waiting.
    pub(crate) async fn remove_socket_in_the_end(&self) {
        self.remove_socket_unless_served(DYING_SLOWLY).await;
    }

    async fn remove_socket_unless_served(&self, patience: Duration) {
        let Some(path) = self.path() else { return };
        let Some(seen) = socket_at(&path) else { return };
        // What came meanwhile is another file. Between the last look and the removal there is a moment left; a
        // successor that comes just then is alone with its own container, as nobody else finds its socket.
        if !self.stays_served(patience).await && socket_at(&path) == Some(seen) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Whether nobody listens. Any other error says that somebody does: the queue is full.
fn is_gone(connected: &std::io::Result<UnixStream>) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    connected.as_ref().is_err_and(|error| matches!(error.kind(), ConnectionRefused | NotFound))
}

/// Which file the socket at `path` is.
fn socket_at(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let meta = std::fs::symlink_metadata(path).ok()?;
    meta.file_type().is_socket().then(|| (meta.dev(), meta.ino()))
}

fn from_protobuf(output: &[u8]) -> Option<Endpoint> {
    let result = BootstrapResult::decode(output).ok().filter(|result| !result.address.is_empty())?;
    Some(Endpoint { version: result.version, address: result.address, protocol: result.protocol })
}

fn from_json(output: &[u8]) -> Option<Endpoint> {
    serde_json::from_slice(output).ok()
}

fn from_text(output: &[u8]) -> Option<Endpoint> {
    let text = std::str::from_utf8(output).ok()?.trim();
    (!text.is_empty()).then(|| Endpoint { version: 2, address: text.to_owned(), protocol: "ttrpc".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_forms() {
        let plain = Endpoint::parse(b"unix:///run/s/abc\n", "r").unwrap();
        assert_eq!((plain.version, plain.path().unwrap()), (2, PathBuf::from("/run/s/abc")));
        let json = br#"{"version":3,"address":"unix:///run/s/abc","protocol":"ttrpc"}"#;
        assert_eq!(Endpoint::parse(json, "r").unwrap().version, 3);
        let message = BootstrapResult {
            version: 3,
            address: "unix:///run/s/abc".to_owned(),
            protocol: "ttrpc".to_owned(),
            ..Default::default()
        };
        assert_eq!(Endpoint::parse(&message.encode_to_vec(), "r").unwrap(), Endpoint::parse(json, "r").unwrap());
        // Only who answers in the newest form has understood what it was told in it.
        assert!(Endpoint::is_in_newer_form(&message.encode_to_vec()));
        assert!(!Endpoint::is_in_newer_form(json) && !Endpoint::is_in_newer_form(b"unix:///run/s/abc\n"));
    }

    #[tokio::test]
    async fn a_socket_goes_once_nobody_listens() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let endpoint = Endpoint::parse(format!("unix://{}", path.display()).as_bytes(), "r").unwrap();
        assert!(!endpoint.is_served().await);
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        endpoint.remove_unserved_socket().await;
        assert!(endpoint.is_served().await && path.exists());
        drop(listener);
        endpoint.remove_unserved_socket().await;
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_goes_also_while_its_shim_is_dying() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let endpoint = Endpoint::parse(format!("unix://{}", path.display()).as_bytes(), "r").unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let dying = std::thread::spawn(move || {
            std::thread::sleep(DYING / 5);
            drop(listener);
        });
        endpoint.remove_unserved_socket().await;
        assert!(!path.exists());
        dying.join().unwrap();
    }

    #[tokio::test]
    async fn a_socket_goes_also_where_its_shim_dies_slowly() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let endpoint = Endpoint::parse(format!("unix://{}", path.display()).as_bytes(), "r").unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let dying = std::thread::spawn(move || {
            std::thread::sleep(2 * DYING);
            drop(listener);
        });
        endpoint.remove_unserved_socket().await;
        assert!(path.exists());
        endpoint.remove_socket_in_the_end().await;
        assert!(!path.exists());
        dying.join().unwrap();
    }

    #[tokio::test]
    async fn a_shim_that_takes_no_more_connections_keeps_its_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let endpoint = Endpoint::parse(format!("unix://{}", path.display()).as_bytes(), "r").unwrap();
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let full = tokio::spawn(async move {
            loop {
                drop(listener.accept().await);
            }
        });
        endpoint.remove_unserved_socket().await;
        assert!(path.exists());
        full.abort();
    }

    #[test]
    fn what_cannot_be_spoken_to() {
        for bad in [
            "",
            "\n",
            "relative/path",
            "unix://relative",
            r#"{"version":4,"address":"unix:///s","protocol":"ttrpc"}"#,
            r#"{"version":3,"address":"unix:///s","protocol":"grpc"}"#,
            r#"{"version":3,"address":"vsock://3:1","protocol":"ttrpc"}"#,
        ] {
            assert!(Endpoint::parse(bad.as_bytes(), "r").is_err(), "{bad}");
        }
    }
}
