//! Writing to a repository: blobs in chunks, then the documents that name them.
//!
//! ```text
//! POST blobs/uploads/ ─▶ Location ─ PATCH chunk ─▶ Location ─ … ─ PUT ?digest= ─▶ the blob is there
//! ```

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_RANGE, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};

use crate::document::Descriptor;
use crate::error::Problem;
use crate::repository::Repository;
use crate::transport::{Answer, resolve};

/// Bytes of one request.
const CHUNK: usize = 4 << 20;

/// A blob on its way to a registry. What is not finished is the registry's to forget.
pub struct Upload<'a> {
    repository: &'a Repository,
    descriptor: Descriptor,
    /// Where the registry itself was asked: what it leads to may be elsewhere.
    asked: Uri,
    location: Uri,
    sent: u64,
    waiting: BytesMut,
}

impl<'a> Upload<'a> {
    pub(crate) async fn begin(repository: &'a Repository, descriptor: &Descriptor) -> Result<Upload<'a>, Problem> {
        let (answer, asked) = repository.write(Method::POST, "blobs/uploads/", &HeaderMap::new(), Bytes::new()).await?;
        let location = location(&answer, &asked)?;
        let descriptor = descriptor.clone();
        Ok(Upload { repository, descriptor, asked, location, sent: 0, waiting: BytesMut::new() })
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        self.waiting.extend_from_slice(bytes);
        while self.waiting.len() >= CHUNK {
            let chunk = self.waiting.split_to(CHUNK).freeze();
            self.send(chunk).await?;
        }
        Ok(())
    }

    async fn send(&mut self, chunk: Bytes) -> Result<(), Problem> {
        let end = self.sent + chunk.len() as u64;
        let mut headers = octets();
        let range = HeaderValue::try_from(format!("{}-{}", self.sent, end - 1)).expect("digits are printable ASCII");
        headers.insert(CONTENT_RANGE, range);
        let answer = self.repository.write_at(Method::PATCH, (&self.asked, &self.location), &headers, chunk).await?;
        self.location = location(&answer, &self.location)?;
        self.sent = end;
        Ok(())
    }

    /// Makes the blob visible: the registry checks its digest.
    ///
    /// # Errors
    /// See [`Problem`].
    pub async fn finish(mut self) -> Result<(), Problem> {
        let rest = self.waiting.split().freeze();
        let actual = self.sent + rest.len() as u64;
        if actual != self.descriptor.size {
            return Err(Problem::Size { expected: self.descriptor.size, actual });
        }
        if !rest.is_empty() {
            self.send(rest).await?;
        }
        let joint = if self.location.query().is_some() { '&' } else { '?' };
        let text = format!("{}{joint}digest={}", self.location, self.descriptor.digest);
        let uri = text.parse().map_err(|_| Problem::Protocol(format!("{text} is no URL")))?;
        stored(&self.repository.write_at(Method::PUT, (&self.asked, &uri), &octets(), Bytes::new()).await?)
    }
}

impl Repository {
    /// Whether something is there.
    pub(crate) async fn has(&self, tail: &str) -> Result<bool, Problem> {
        match self.write(Method::HEAD, tail, &HeaderMap::new(), Bytes::new()).await {
            Err(Problem::NotFound { .. }) => Ok(false),
            // It is there, at another place.
            Err(Problem::Status { status: 300..=399, .. }) => Ok(true),
            outcome => outcome.map(|_| true),
        }
    }

    pub(crate) async fn put_document(&self, name: &str, media_type: &str, bytes: Bytes) -> Result<(), Problem> {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::try_from(media_type);
        let value =
            value.map_err(|_| Problem::Protocol(format!("media type {media_type:?} cannot stand in a header")))?;
        headers.insert(CONTENT_TYPE, value);
        stored(&self.write(Method::PUT, &format!("manifests/{name}"), &headers, bytes).await?.0)
    }
}

fn octets() -> HeaderMap {
    HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))])
}

/// Whether the registry says that what it was sent is there now: as the standard says it, or as some others do.
fn stored(answer: &Answer) -> Result<(), Problem> {
    match answer.response.status() {
        StatusCode::CREATED | StatusCode::OK | StatusCode::NO_CONTENT => Ok(()),
        other => Err(Problem::Protocol(format!("it answers the end of an upload with {other}"))),
    }
}

/// Where the upload goes on.
fn location(answer: &Answer, asked: &Uri) -> Result<Uri, Problem> {
    let response = &answer.response;
    if response.status() != StatusCode::ACCEPTED {
        return Err(Problem::Protocol(format!("it answers an upload with {}", response.status())));
    }
    let text = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let text = text.ok_or_else(|| Problem::Protocol("it does not say where an upload goes on".into()))?;
    resolve(asked, text).ok_or_else(|| Problem::Protocol(format!("it sends an upload to {text:?}, which is no URL")))
}
