//! Requests and answers: connections, TLS, redirects, and what a status means.
//!
//! The rules that keep credentials and callers safe stand here, once, for every request:
//!
//! - Plain HTTP is spoken to loopback and to registries that the configuration lists, and nobody else. What began
//!   with TLS never goes on without it, and a TLS failure is an error, not a reason to try less.
//! - A redirect is followed without the `Authorization` of the first request unless it stays at the same scheme, host
//!   and port; at most [`REDIRECTS_MAX`] of them.
//! - Every wait has a bound: [`CONNECT_TIMEOUT`] for a connection, [`Config::stall`](crate::Config) for the next bytes.
//!
//! HTTP/1.1 is enough: blobs come over several connections at a time, each with a window of its own.

mod connect;
mod verify;

use std::collections::HashSet;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, LOCATION, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;
use tokio::time::timeout;

use crate::error::Problem;
pub(crate) use connect::Certificates;
use connect::{Connector, TlsError};

/// Most time to resolve a name, connect and agree on TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Most redirects of one request.
const REDIRECTS_MAX: usize = 5;
/// Most bytes that are read of an error's body.
const ERROR_BODY_MAX: u64 = 64 << 10;
/// Most characters of it that are shown.
const SAID_MAX: usize = 300;
/// Idle connections that are kept for the next blob of the same pull, and how long.
const IDLE_MAX: usize = 4;
const IDLE_TIME: Duration = Duration::from_secs(20);
/// Most bytes that one read from a connection asks for: large enough that a fast network costs few system calls.
const READ_MAX: usize = 512 << 10;

const AGENT: &str = concat!("strata/", env!("CARGO_PKG_VERSION"));

/// A client for all registries.
pub(crate) struct Transport {
    client: legacy::Client<Connector, Full<Bytes>>,
    /// Registries that may be spoken to in plain text, as `host:port` or `host`.
    insecure: HashSet<String>,
    /// Longest wait for the next bytes.
    pub(crate) stall: Duration,
    /// What one host is sent with each request, and nobody else.
    extra: Option<(Uri, HeaderMap)>,
}

/// An answer with a status of success, or 401 for the caller to deal with.
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    /// `host:port` that gave it.
    pub(crate) host: String,
    /// It is not from the host that was asked.
    pub(crate) elsewhere: bool,
    /// It came with TLS.
    pub(crate) tls: bool,
}

impl Transport {
    pub(crate) fn new(
        insecure: impl IntoIterator<Item = String>,
        certificates: Certificates,
        stall: Duration,
    ) -> Transport {
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(IDLE_MAX)
            .pool_idle_timeout(IDLE_TIME)
            .http1_max_buf_size(READ_MAX)
            .build(Connector::new(CONNECT_TIMEOUT, certificates));
        let insecure = insecure.into_iter().map(|host| host.to_ascii_lowercase()).collect();
        Transport { client, insecure, stall, extra: None }
    }

    /// Sends headers with each request to the origin of `uri`.
    pub(crate) fn with_headers(self, uri: Uri, headers: HeaderMap) -> Transport {
        Transport { extra: Some((uri, headers)), ..self }
    }

    /// Whether plain HTTP is allowed there.
    pub(crate) fn may_be_plain(&self, authority: &str) -> bool {
        let authority = authority.to_ascii_lowercase();
        let host = host_of(&authority);
        is_loopback(host) || self.insecure.contains(&authority) || self.insecure.contains(host)
    }

    /// Fetches `uri`, following redirects. Statuses of failure are problems, but for 401.
    pub(crate) async fn get(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, Problem> {
        let mut at = uri.clone();
        for _ in 0..=REDIRECTS_MAX {
            let same_origin = Origin::of(&at) == Origin::of(uri);
            let authorization = authorization.filter(|_| same_origin);
            let response = self.send(Method::GET, &at, headers, authorization, Bytes::new()).await?;
            if !is_redirect(response.status()) {
                return self.checked(response, &at, !same_origin).await;
            }
            at = self.redirected(&at, &response)?;
        }
        Err(Problem::Protocol(format!("it redirects more than {REDIRECTS_MAX} times")))
    }

    /// Posts a form. Redirects are not followed: what is posted is a secret.
    pub(crate) async fn post_form(&self, uri: &Uri, form: String) -> Result<Answer, Problem> {
        self.allowed(uri)?;
        let mut headers = HeaderMap::new();
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        let response = self.send(Method::POST, uri, &headers, None, Bytes::from(form)).await?;
        self.checked(response, uri, false).await
    }

    /// One request whose redirects are not followed. Statuses of failure are problems, but for 401.
    pub(crate) async fn exchange(
        &self,
        method: Method,
        uri: &Uri,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
        body: Bytes,
    ) -> Result<Answer, Problem> {
        let response = self.send(method, uri, headers, authorization, body).await?;
        self.checked(response, uri, false).await
    }

    /// One request, one answer.
    async fn send(
        &self,
        method: Method,
        uri: &Uri,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
        body: Bytes,
    ) -> Result<Response<Incoming>, Problem> {
        let host = host_and_port(uri);
        let mut request = Request::builder().method(method).uri(uri).header(USER_AGENT, AGENT);
        if let Some(all) = request.headers_mut() {
            all.extend(headers.clone());
            let extra = self.extra.iter().filter(|(of, _)| Origin::of(of) == Origin::of(uri));
            extra.for_each(|(_, headers)| all.extend(headers.clone()));
            all.extend(authorization.map(|value| (AUTHORIZATION, value.clone())));
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| Problem::Protocol(format!("{uri} cannot be asked: {error}")))?;
        // The connection has a shorter bound of its own, so running out of this time means a silent server.
        match timeout(CONNECT_TIMEOUT + self.stall, self.client.request(request)).await {
            Ok(answer) => answer.map_err(|error| failed(host, error)),
            Err(_) => Err(Problem::Stalled { host, waited: CONNECT_TIMEOUT + self.stall }),
        }
    }

    async fn checked(&self, response: Response<Incoming>, at: &Uri, elsewhere: bool) -> Result<Answer, Problem> {
        let (host, tls) = (host_and_port(at), at.scheme_str() == Some("https"));
        let status = response.status();
        if status.is_success() || status == StatusCode::UNAUTHORIZED {
            return Ok(Answer { response, host, elsewhere, tls });
        }
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let said = self.said(response).await;
        Err(match status {
            StatusCode::FORBIDDEN => Problem::Forbidden { said },
            StatusCode::NOT_FOUND => Problem::NotFound { said },
            StatusCode::TOO_MANY_REQUESTS => {
                Problem::RateLimited { said, retry_after: retry_after.map(Duration::from_secs) }
            }
            other => Problem::Status { status: other.as_u16(), said },
        })
    }

    /// The registry's own words of an error. Failing to read them is no error of its own: the status is known.
    pub(crate) async fn said(&self, response: Response<Incoming>) -> String {
        let body = self.read_all(response.into_body(), ERROR_BODY_MAX, String::new()).await;
        body.map(|bytes| words(&bytes)).unwrap_or_default()
    }

    /// The whole body, if it has at most `limit` bytes.
    pub(crate) async fn read_all(&self, mut body: Incoming, limit: u64, host: String) -> Result<Bytes, Problem> {
        if body.size_hint().lower() > limit {
            return Err(Problem::TooLarge { limit });
        }
        let mut all = Vec::with_capacity(usize::try_from(body.size_hint().lower()).unwrap_or(0));
        while let Some(bytes) = self.next_bytes(&mut body, &host).await? {
            if all.len() as u64 + bytes.len() as u64 > limit {
                return Err(Problem::TooLarge { limit });
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all.into())
    }

    /// The next bytes of a body; `None` at its proper end.
    pub(crate) async fn next_bytes(&self, body: &mut Incoming, host: &str) -> Result<Option<Bytes>, Problem> {
        loop {
            let frame = match timeout(self.stall, body.frame()).await {
                Err(_) => return Err(Problem::Stalled { host: host.to_owned(), waited: self.stall }),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => {
                    return Err(Problem::Broken { host: host.to_owned(), source: Box::new(error) });
                }
                Ok(Some(Ok(frame))) => frame,
            };
            // Trailers and empty frames say nothing here.
            if let Ok(bytes) = frame.into_data()
                && !bytes.is_empty()
            {
                return Ok(Some(bytes));
            }
        }
    }

    fn redirected(&self, from: &Uri, response: &Response<Incoming>) -> Result<Uri, Problem> {
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| Problem::Protocol("it redirects without saying where to".into()))?;
        let to = resolve(from, location)
            .ok_or_else(|| Problem::Protocol(format!("it redirects to {location:?}, which is no URL")))?;
        self.led(from, &to)?;
        Ok(to)
    }

    /// Whether a place that `from` led to is the same one, so that credentials may go there: not by how it is written, but
    /// by scheme, host and port. Where nobody may be led, that is an error.
    pub(crate) fn led(&self, from: &Uri, to: &Uri) -> Result<bool, Problem> {
        if from.scheme_str() == Some("https") && to.scheme_str() != Some("https") {
            let (from, to) = (host_and_port(from), host_and_port(to));
            return Err(Problem::Unsafe(format!("{from} leads to {to} without TLS, which is not followed")));
        }
        self.allowed(to)?;
        Ok(Origin::of(from) == Origin::of(to))
    }

    /// Whether `uri` may be asked at all.
    pub(crate) fn allowed(&self, uri: &Uri) -> Result<(), Problem> {
        let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
        if authority.contains('@') {
            return Err(Problem::Unsafe("the registry points to a URL with credentials in it".into()));
        }
        match uri.scheme_str() {
            Some("https") => Ok(()),
            Some("http") if self.may_be_plain(authority) => Ok(()),
            Some("http") => Err(Problem::Unsafe(format!(
                "the registry points to {authority} in plain HTTP, and it is neither loopback nor listed as insecure"
            ))),
            _ => Err(Problem::Unsafe("the registry points to a place that is neither http nor https".into())),
        }
    }
}

/// Scheme, host and port: what must be the same for credentials to be sent along.
#[derive(PartialEq, Eq)]
struct Origin {
    https: bool,
    host: String,
    port: u16,
}

impl Origin {
    fn of(uri: &Uri) -> Origin {
        let https = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default().to_ascii_lowercase();
        Origin { https, host, port: uri.port_u16().unwrap_or(if https { 443 } else { 80 }) }
    }
}

/// `host:port`, for people; the port only when it is written.
pub(crate) fn host_and_port(uri: &Uri) -> String {
    uri.authority()
        .map(|authority| authority.as_str().rsplit('@').next().unwrap_or_default().to_owned())
        .unwrap_or_default()
}

/// The host of `host[:port]`, without the brackets of an IPv6 address.
fn host_of(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(inner) => inner.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    }
}

/// `localhost` is loopback by name alone (RFC 6761); of addresses only those that are.
fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// `location` as seen from `base` (RFC 3986, section 4.2), without its fragment.
pub(crate) fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let scheme = base.scheme_str()?;
    let authority = base.authority()?;
    let text = if location.contains("://") && !location.starts_with('/') {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let directory = base.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        format!("{scheme}://{authority}{directory}/{location}")
    };
    text.parse().ok()
}

/// What a request that got no answer means.
fn failed(host: String, error: legacy::Error) -> Problem {
    if !error.is_connect() {
        return Problem::Broken { host, source: Box::new(Beneath(error)) };
    }
    let tls = chain(&error).any(|cause| cause.is::<TlsError>());
    Problem::Connect { host, tls, source: Box::new(Beneath(error)) }
}

/// Whether connecting failed because the other side does not speak TLS at all.
pub(crate) fn is_no_tls(error: &(dyn StdError + 'static)) -> bool {
    chain(error).any(|cause| {
        // An I/O error does not show what it wraps as its source.
        let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        inner
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
            .is_some_and(|error| matches!(error, rustls::Error::InvalidMessage(_)))
    })
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (**error).source())
}

/// The client's error, shown by its cause: its own words say only that a client had an error.
#[derive(Debug)]
struct Beneath(legacy::Error);

impl fmt::Display for Beneath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.source() {
            Some(cause) => write!(f, "{cause}"),
            None => write!(f, "{}", self.0),
        }
    }
}

impl StdError for Beneath {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()?.source()
    }
}

/// The words in an error's body, which the distribution specification gives a form; bounded, and in one line.
fn words(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<OneError>,
        /// Token servers say it here.
        details: Option<String>,
    }
    #[derive(Deserialize)]
    struct OneError {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Errors>(body) {
        Ok(Errors { errors, details }) => errors
            .into_iter()
            .map(|error| if error.message.is_empty() { error.code } else { error.message })
            .chain(details)
            .collect::<Vec<_>>()
            .join("; "),
        Err(_) if body.trim_ascii_start().starts_with(b"<") => String::new(),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    text.trim().chars().take(SAID_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transport(insecure: &[&str]) -> Transport {
        Transport::new(insecure.iter().map(|host| (*host).to_owned()), Certificates::default(), Duration::from_secs(1))
    }

    #[test]
    fn plain_text_is_for_loopback_and_the_listed() {
        let transport = transport(&["reg.lan:5000", "Bare.lan"]);
        for plain in
            ["localhost", "localhost:5000", "127.0.0.1:1", "127.9.9.9", "[::1]:5000", "reg.lan:5000", "bare.lan:7"]
        {
            assert!(transport.may_be_plain(plain), "{plain}");
        }
        for tls in
            ["docker.io", "reg.lan", "reg.lan:5001", "localhost.evil.com", "128.0.0.1", "[::2]:80", "127.0.0.1.nip.io"]
        {
            assert!(!transport.may_be_plain(tls), "{tls}");
        }
    }

    #[test]
    fn credentials_belong_to_scheme_host_and_port() {
        let same = |a: &str, b: &str| Origin::of(&a.parse().unwrap()) == Origin::of(&b.parse().unwrap());
        assert!(same("https://a.com/x", "https://A.com:443/y"));
        assert!(!same("https://a.com/", "http://a.com/"));
        assert!(!same("https://a.com/", "https://a.com:8443/"));
        assert!(!same("https://a.com/", "https://b.a.com/"));
    }

    #[test]
    fn locations() {
        let base: Uri = "https://a.com:5000/v2/x/blobs/y?q=1".parse().unwrap();
        let to = |location: &str| resolve(&base, location).map(|uri| uri.to_string());
        assert_eq!(to("/z?a=b#c").unwrap(), "https://a.com:5000/z?a=b");
        assert_eq!(to("https://cdn/x?u=http://y").unwrap(), "https://cdn/x?u=http://y");
        assert_eq!(to("//cdn/x").unwrap(), "https://cdn/x");
        assert_eq!(to("z").unwrap(), "https://a.com:5000/v2/x/blobs/z");
        assert_eq!(to("http://[bad/"), None);
    }

    #[test]
    fn where_a_registry_may_point_to() {
        let transport = transport(&[]);
        let allowed = |uri: &str| transport.allowed(&uri.parse().unwrap()).is_ok();
        assert!(allowed("https://cdn.example/x") && allowed("http://127.0.0.1:5000/x"));
        assert!(!allowed("http://cdn.example/x") && !allowed("https://u:p@cdn.example/x") && !allowed("ftp://x/y"));
    }

    #[test]
    fn where_a_registry_may_lead_to() {
        let transport = transport(&["a.com"]);
        let led = |from: &str, to: &str| transport.led(&from.parse().unwrap(), &to.parse().unwrap()).ok();
        assert_eq!(led("https://a.com/v2/", "https://A.com:443/upload"), Some(true));
        assert_eq!(led("http://a.com:80/v2/", "http://a.com/upload"), Some(true));
        assert_eq!(led("https://a.com/v2/", "https://cdn.example/upload"), Some(false));
        // Written alike, and another place: what goes there can be read by anybody.
        assert_eq!(led("https://a.com/v2/", "http://a.com/upload"), None);
        assert_eq!(led("http://a.com/v2/", "https://a.com/upload"), Some(false));
        assert_eq!(led("http://a.com/v2/", "http://cdn.example/upload"), None);
    }

    #[test]
    fn words_are_taken_from_the_specified_form_and_bounded() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\nunknown"},{"code":"X"}]}"#;
        assert_eq!(words(body), "manifest unknown; X");
        assert_eq!(words(br#"{"details":"incorrect username or password"}"#), "incorrect username or password");
        assert_eq!(words(b"<html>no"), "");
        assert_eq!(words(&vec![b'a'; 5000]).len(), SAID_MAX);
    }
}
