//! One repository at one host: every request to a registry is made here, with its authorization and its retries.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use tokio::time::{sleep, timeout};

use crate::auth::{self, Credentials};
use crate::digest::Digest;
use crate::document::{ACCEPTED, DOCUMENT_MAX};
use crate::error::Problem;
use crate::hosts::{Capabilities, Host};
use crate::retry::{Attempts, DOCUMENT_ATTEMPTS, RETRY_AFTER_MAX};
use crate::transport::{Answer, Transport};

/// Longest time for one attempt at a document, however its bytes trickle.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// The header with which a registry says the digest of what it sends.
const CONTENT_DIGEST: &str = "docker-content-digest";

/// A repository, with the right to pull from it once it was asked for.
pub(crate) struct Repository {
    transport: Arc<Transport>,
    host: String,
    /// What goes before the repository in a URL.
    prefix: String,
    path: String,
    /// Which registry a mirror is asked in place of.
    namespace: Option<String>,
    capabilities: Capabilities,
    /// TLS is spoken. On loopback it begins without, and this is set when the other side turns out to want it; it is
    /// never unset.
    tls: AtomicBool,
    credentials: Credentials,
    right: Right,
    /// What the last challenge led to.
    authorization: Mutex<Option<HeaderValue>>,
}

/// What a repository is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    Pull,
    Push,
}

/// A document's bytes, with what the registry said about them.
pub(crate) struct RawDocument {
    pub(crate) bytes: Bytes,
    pub(crate) content_type: Option<String>,
    /// What the registry says the digest is, where it says so.
    pub(crate) claimed: Option<Digest>,
}

impl Repository {
    pub(crate) fn new(transport: Arc<Transport>, host: &str, path: &str, credentials: Credentials) -> Repository {
        let tls = AtomicBool::new(!transport.may_be_plain(host));
        Repository {
            transport,
            host: host.to_owned(),
            prefix: "/v2".to_owned(),
            path: path.to_owned(),
            namespace: None,
            capabilities: Capabilities::default(),
            tls,
            credentials,
            right: Right::Pull,
            authorization: Mutex::new(None),
        }
    }

    /// The repository at a host that the operator named for it.
    pub(crate) fn at(transport: Arc<Transport>, host: &Host, path: &str, credentials: Credentials) -> Repository {
        let repository = Repository::new(transport, &host.authority, path, credentials);
        repository.tls.fetch_or(host.tls == Some(true), Ordering::Relaxed);
        Repository { prefix: host.prefix.clone(), capabilities: host.capabilities, ..repository }
    }

    /// Asked in place of the registry `namespace`.
    pub(crate) fn in_place_of(self, namespace: &str) -> Repository {
        Repository { namespace: Some(namespace.to_owned()), ..self }
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// What it is asked for.
    pub(crate) fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    pub(crate) fn with(self, right: Right) -> Repository {
        Repository { right, ..self }
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.transport
    }

    /// The manifest or index that `name`, a tag or a digest, stands for.
    pub(crate) async fn document(&self, name: &str) -> Result<RawDocument, Problem> {
        let tail = format!("manifests/{name}");
        let mut headers = plain_headers();
        for media_type in ACCEPTED {
            headers.append(ACCEPT, HeaderValue::from_static(media_type));
        }
        let mut attempts = Attempts::new(DOCUMENT_ATTEMPTS);
        loop {
            match self.document_once(&tail, &headers).await {
                Err(problem) => pause_or_fail(problem, &mut attempts).await?,
                document => return document,
            }
        }
    }

    async fn document_once(&self, tail: &str, headers: &HeaderMap) -> Result<RawDocument, Problem> {
        self.bounded_in_time(async {
            let answer = self.request(tail, headers).await?;
            let text = |name: &str| answer.response.headers().get(name)?.to_str().ok().map(str::to_owned);
            let content_type = text(CONTENT_TYPE.as_str());
            let claimed = text(CONTENT_DIGEST).and_then(|digest| digest.parse().ok());
            let bytes = self.transport.read_all(answer.response.into_body(), DOCUMENT_MAX, answer.host).await?;
            Ok(RawDocument { bytes, content_type, claimed })
        })
        .await
    }

    /// A small blob as a whole, its size bounded by `limit` and not yet verified.
    pub(crate) async fn small_blob(&self, digest: &Digest, limit: u64) -> Result<Bytes, Problem> {
        let mut attempts = Attempts::new(DOCUMENT_ATTEMPTS);
        loop {
            match self.small_blob_once(digest, limit).await {
                Err(problem) => pause_or_fail(problem, &mut attempts).await?,
                bytes => return bytes,
            }
        }
    }

    async fn small_blob_once(&self, digest: &Digest, limit: u64) -> Result<Bytes, Problem> {
        self.bounded_in_time(async {
            let answer = self.request(&blob(digest), &plain_headers()).await?;
            self.transport.read_all(answer.response.into_body(), limit, answer.host).await
        })
        .await
    }

    /// Begins to fetch a blob at `offset`. One attempt: whoever reads it knows when another one makes sense.
    pub(crate) async fn open_blob(&self, digest: &Digest, offset: u64) -> Result<Answer, Problem> {
        let mut headers = plain_headers();
        if offset > 0 {
            let range = HeaderValue::try_from(format!("bytes={offset}-")).expect("digits are printable ASCII");
            headers.insert(RANGE, range);
        }
        self.request(&blob(digest), &headers).await
    }

    fn uri(&self, tail: &str, tls: bool) -> Result<Uri, Problem> {
        let scheme = if tls { "https" } else { "http" };
        let query = self.namespace.iter().map(|namespace| format!("?ns={namespace}")).collect::<String>();
        let text = format!("{scheme}://{}{}/{}/{tail}{query}", self.host, self.prefix, self.path);
        text.parse().map_err(|_| Problem::Protocol(format!("{text} is no URL")))
    }

    /// One request; a challenge is answered once.
    async fn request(&self, tail: &str, headers: &HeaderMap) -> Result<Answer, Problem> {
        let known = self.authorization();
        let answer = self.get(tail, headers, known.as_ref()).await?;
        if answer.response.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let fresh = self.authorize(answer).await?;
        let answer = self.get(tail, headers, Some(&fresh)).await?;
        if answer.response.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        Err(auth::refused(&self.transport, answer, &self.credentials).await)
    }

    async fn authorize(&self, refused: Answer) -> Result<HeaderValue, Problem> {
        let actions = if self.right == Right::Push { "pull,push" } else { "pull" };
        let scope = auth::Scope { path: &self.path, actions };
        let fresh = auth::authorize(&self.transport, refused, &scope, &self.credentials).await?;
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(fresh.clone());
        Ok(fresh)
    }

    /// A request that is no GET; with the URL that was asked in the end.
    pub(crate) async fn write(
        &self,
        method: Method,
        tail: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<(Answer, Uri), Problem> {
        let tls = self.tls.load(Ordering::Relaxed);
        let uri = self.uri(tail, tls)?;
        let plain = match self.write_at(method.clone(), (&uri, &uri), headers, body.clone()).await {
            Err(problem @ (Problem::Broken { .. } | Problem::Status { status: 400, .. })) if !tls => problem,
            outcome => return outcome.map(|answer| (answer, uri)),
        };
        let uri = self.uri(tail, true)?;
        match self.write_at(method, (&uri, &uri), headers, body).await {
            Err(problem) if problem.is_no_tls() => Err(plain),
            outcome => {
                self.tls.store(true, Ordering::Relaxed);
                outcome.map(|answer| (answer, uri))
            }
        }
    }

    /// The same at a place that the registry named where it was asked. Credentials go to the registry alone.
    pub(crate) async fn write_at(
        &self,
        method: Method,
        (asked, uri): (&Uri, &Uri),
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Answer, Problem> {
        let is_own = self.transport.led(asked, uri)?;
        let known = self.authorization().filter(|_| is_own);
        let answer = self.transport.exchange(method.clone(), uri, headers, known.as_ref(), body.clone()).await?;
        if answer.response.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        if !is_own {
            return Err(auth::refused(&self.transport, answer, &self.credentials).await);
        }
        let fresh = self.authorize(answer).await?;
        let answer = self.transport.exchange(method, uri, headers, Some(&fresh), body).await?;
        if answer.response.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        Err(auth::refused(&self.transport, answer, &self.credentials).await)
    }

    async fn get(
        &self,
        tail: &str,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, Problem> {
        let tls = self.tls.load(Ordering::Relaxed);
        let plain = match self.transport.get(&self.uri(tail, tls)?, headers, authorization).await {
            // What a server that wants TLS does with a request in plain text: an alert or a hang-up, or this status.
            Err(problem @ (Problem::Broken { .. } | Problem::Status { status: 400, .. })) if !tls => problem,
            result => return result,
        };
        match self.transport.get(&self.uri(tail, true)?, headers, authorization).await {
            Err(problem) if problem.is_no_tls() => Err(plain),
            result => {
                self.tls.store(true, Ordering::Relaxed);
                result
            }
        }
    }

    async fn bounded_in_time<T>(&self, work: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
        let stalled = |_| Err(Problem::Stalled { host: self.host.clone(), waited: DOCUMENT_TIMEOUT });
        timeout(DOCUMENT_TIMEOUT, work).await.unwrap_or_else(stalled)
    }

    fn authorization(&self) -> Option<HeaderValue> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What every request says: that bytes are wanted as they are, for it is they that have the digest.
fn plain_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers
}

fn blob(digest: &Digest) -> String {
    format!("blobs/{digest}")
}

/// Waits before the next attempt after `problem`, or gives it back when there is none.
pub(crate) async fn pause_or_fail(problem: Problem, attempts: &mut Attempts) -> Result<(), Problem> {
    if !problem.is_passing() {
        return Err(problem);
    }
    let Some(pause) = attempts.failed() else { return Err(problem) };
    let asked = match &problem {
        Problem::RateLimited { retry_after: Some(asked), .. } => *asked,
        _ => Duration::ZERO,
    };
    if asked > RETRY_AFTER_MAX {
        return Err(problem);
    }
    tracing::debug!(%problem, "a request to a registry failed and is made again");
    sleep(pause.max(asked)).await;
    Ok(())
}
