//! One connection: TCP, perhaps through a proxy, and TLS where the URL says so.
//!
//! Certificates are those of the system, and more that the configuration names. They are read at the first TLS
//! connection: an engine that only ever talks to a registry on loopback never holds them.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::verify::Unverified;
use crate::error::Cause;
use crate::hosts::Trust;
use crate::sys;

/// Most bytes that lie unread in the kernel: a reader that is slow, and then killed, has them sent again. With what is on its
/// way through the programs above it is less than 4 MiB of a stream.
const WINDOW: i32 = 1 << 20;

/// Makes connections.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    shared: Arc<Shared>,
}

struct Shared {
    timeout: Duration,
    certificates: Certificates,
    /// `HTTPS_PROXY`, `NO_PROXY`: as everybody reads them.
    proxies: Matcher,
    tls: OnceCell<TlsConnector>,
}

/// Whom TLS trusts beside the system's authorities, and who it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Certificates {
    pub(crate) ca_files: Vec<PathBuf>,
    pub(crate) trust: Trust,
    /// Whose the trust is.
    pub(crate) host: String,
}

impl Connector {
    pub(super) fn new(timeout: Duration, certificates: Certificates) -> Connector {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(timeout));
        let shared = Shared { timeout, certificates, proxies: Matcher::from_env(), tls: OnceCell::new() };
        Connector { tcp, shared: Arc::new(shared) }
    }

    async fn connect(self, uri: Uri) -> Result<TokioIo<Stream>, Cause> {
        let connected = tokio::time::timeout(self.shared.timeout, self.connect_unbounded(&uri)).await;
        connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map(TokioIo::new)
    }

    async fn connect_unbounded(&self, uri: &Uri) -> Result<Stream, Cause> {
        if uri.scheme_str() != Some("https") {
            return Ok(Stream::Plain(bounded(self.tcp.clone().call(uri.clone()).await?.into_inner())));
        }
        let tcp = bounded(self.tcp_for_tls(uri).await?);
        let tls = self.shared.tls.get_or_try_init(|| tls_connector(self.shared.certificates.clone())).await?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(|error| TlsError(io::Error::other(error)))?;
        let stream = tls.connect(name, tcp).await.map_err(TlsError::or_plain)?;
        Ok(Stream::Tls(Box::new(stream)))
    }

    async fn tcp_for_tls(&self, uri: &Uri) -> Result<TcpStream, Cause> {
        let tcp = self.tcp.clone();
        let Some(proxy) = self.shared.proxies.intercept(uri) else {
            return Ok({ tcp }.call(uri.clone()).await?.into_inner());
        };
        let mut tunnel = Tunnel::new(proxy.uri().clone(), tcp);
        if let Some(auth) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(auth.clone());
        }
        Ok(tunnel.call(uri.clone()).await?.into_inner())
    }
}

fn bounded(tcp: TcpStream) -> TcpStream {
    // A kernel that does not know it sends more again, and that is all.
    if let Err(error) = sys::bound_window(&tcp, WINDOW) {
        tracing::debug!(%error, "bound the window of a connection");
    }
    tcp
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = Cause;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Cause>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// TLS could not be agreed on: a certificate, a name, or a peer that does not speak it. Trying again is no use.
#[derive(Debug)]
pub(super) struct TlsError(io::Error);

impl TlsError {
    /// A connection that broke during the handshake is no failure of TLS.
    fn or_plain(error: io::Error) -> Cause {
        let broke = matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
        );
        if broke { Box::new(error) } else { Box::new(TlsError(error)) }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("agree on TLS")
    }
}

impl std::error::Error for TlsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// A file of certificates that is of no use.
#[derive(Debug)]
struct CaFileError {
    path: PathBuf,
    source: rustls::pki_types::pem::Error,
}

impl fmt::Display for CaFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "read the certificates in {}", self.path.display())
    }
}

impl std::error::Error for CaFileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

async fn tls_connector(certificates: Certificates) -> Result<TlsConnector, Cause> {
    // Some hundred files are read: not on a thread that serves requests.
    let config = tokio::task::spawn_blocking(move || tls_config(&certificates)).await.map_err(Cause::from)??;
    Ok(TlsConnector::from(Arc::new(config)))
}

fn tls_config(certificates: &Certificates) -> Result<rustls::ClientConfig, Cause> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = Arc::new(roots(certificates)?);
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError(io::Error::other(error)))?;
    let builder = if certificates.trust.skip_verify {
        let others = WebPkiServerVerifier::builder_with_provider(roots, provider).build()?;
        let host = certificates.host.clone();
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified { host, others }))
    } else {
        builder.with_root_certificates(roots)
    };
    let Some((certificate, key)) = &certificates.trust.client else { return Ok(builder.with_no_client_auth()) };
    let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(if key.is_empty() { certificate } else { key })?;
    Ok(builder.with_client_auth_cert(chain, key)?)
}

fn roots(wanted: &Certificates) -> Result<RootCertStore, Cause> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::warn!(%error, "a certificate of the system was not read");
    }
    roots.add_parsable_certificates(system.certs);
    for path in &wanted.ca_files {
        roots.add_parsable_certificates(certificates(path)?);
    }
    for pem in &wanted.trust.authorities {
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?);
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CaFileError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    read.map_err(|source| CaFileError { path: path.to_owned(), source })
}

/// A connection.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Stream::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
