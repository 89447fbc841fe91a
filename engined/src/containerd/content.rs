//! The supervisor's content: blobs by digest, and the ingests that become blobs.

use std::collections::HashMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use prost_types::FieldMask;
use proto_containerd::services::content as rpc;
use strata_fault::{Fault, GrpcCode, Layer, code};
use strata_registry::{Descriptor, Digest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Client, answer, answer_if_found, is_unreachable};

const STEP: &str = "pull";
/// Messages of an ingest that may wait to be sent: enough that the registry's and the supervisor's work overlap, few
/// enough that a slow disk holds the download back.
const QUEUE: usize = 4;
/// How often an ingest that somebody else holds is asked for, and the pause in between.
const LOCKED_TRIES: u32 = 600;
const LOCKED_PAUSE: Duration = Duration::from_millis(100);
/// How often the removal of an ingest is tried whose writer has just gone.
const ABORT_TRIES: u32 = 20;
const ABORT_PAUSE: Duration = Duration::from_millis(50);

/// What there is to know of a blob without reading it.
#[derive(Clone, Debug)]
pub(crate) struct BlobInfo {
    pub(crate) labels: HashMap<String, String>,
}

impl Client {
    /// What is known of a blob; `None` when there is none.
    pub(crate) async fn blob_info(&self, digest: &Digest) -> Result<Option<BlobInfo>, Fault> {
        let request = rpc::InfoRequest { digest: digest.to_string() };
        let response = answer_if_found(STEP, self.content().info(request).await)?;
        Ok(response.and_then(|response| response.info).map(|info| BlobInfo { labels: info.labels }))
    }

    /// A whole blob of at most `limit` bytes; `None` when there is none.
    pub(crate) async fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, Fault> {
        let request = rpc::ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
        let Some(mut stream) = answer_if_found(STEP, self.content().read(request).await)? else { return Ok(None) };
        let mut all = BytesMut::new();
        loop {
            // A stranger says only with the first message that there is no such blob.
            let message = stream.message().await.map(tonic::Response::new);
            let Some(part) = answer_if_found(STEP, message)? else { return Ok(None) };
            let Some(part) = part else { return Ok(Some(all.freeze())) };
            if all.len() as u64 + part.data.len() as u64 > limit {
                let what = format!("read {digest}, which has more than {limit} bytes");
                return Err(Fault::new(Layer::Engine, STEP, code::MANIFEST_INVALID, what));
            }
            all.extend_from_slice(&part.data);
        }
    }

    /// Sets labels of a blob and leaves its others; `false` when there is no such blob.
    pub(crate) async fn label_blob(&self, digest: &Digest, labels: HashMap<String, String>) -> Result<bool, Fault> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = rpc::Info { digest: digest.to_string(), labels, ..Default::default() };
        let request = rpc::UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) };
        Ok(answer_if_found(STEP, self.content().update(request).await)?.is_some())
    }

    /// Throws an ingest away; one that is gone is no error. Its last writer may have been cut off an instant ago, and
    /// while the supervisor has not noticed it keeps the ingest locked.
    pub(crate) async fn abort_ingest(&self, reference: &str) -> Result<(), Fault> {
        let mut tries = 0;
        loop {
            let request = rpc::AbortRequest { r#ref: reference.to_owned() };
            match answer_if_found(STEP, self.content().abort(request).await) {
                Err(fault) if is_locked(&fault) && tries < ABORT_TRIES => tries += 1,
                outcome => return outcome.map(drop),
            }
            tokio::time::sleep(ABORT_PAUSE).await;
        }
    }

    /// The references of all ingests of our namespace.
    pub(crate) async fn list_ingests(&self) -> Result<Vec<String>, Fault> {
        let response = answer(STEP, self.content().list_statuses(rpc::ListStatusesRequest::default()).await)?;
        Ok(response.statuses.into_iter().map(|status| status.r#ref).collect())
    }

    /// Begins or resumes the ingest of a blob; `None` when the blob is there already. An ingest that somebody else
    /// writes is waited for: it ends with the blob, or with its writer's end.
    pub(crate) async fn open_ingest(&self, new: &NewIngest) -> Result<Option<Ingest>, Fault> {
        let mut tries = 0;
        loop {
            match self.try_open_ingest(new).await {
                Err(fault) if is_locked(&fault) && tries < LOCKED_TRIES => tries += 1,
                Err(fault) if fault.grpc == GrpcCode::AlreadyExists => return Ok(None),
                outcome => return outcome.map(Some),
            }
            tokio::time::sleep(LOCKED_PAUSE).await;
        }
    }

    async fn try_open_ingest(&self, new: &NewIngest) -> Result<Ingest, Fault> {
        let (requests, queue) = mpsc::channel(QUEUE);
        let first = new.request(rpc::WriteAction::Stat, 0, new.labels.clone());
        // The answer's head comes with the answer to the first message, so that has to be on its way before.
        requests.try_send(first).expect("the queue is empty");
        let answers = answer(STEP, self.content().write(ReceiverStream::new(queue)).await)?;
        let mut ingest = Ingest { new: new.clone(), requests, answers, offset: 0 };
        let status = ingest.next_answer().await?;
        ingest.offset = u64::try_from(status.offset).unwrap_or(0);
        Ok(ingest)
    }
}

/// Somebody else writes the ingest.
fn is_locked(fault: &Fault) -> bool {
    fault.grpc == GrpcCode::Unavailable && !is_unreachable(fault)
}

/// An ingest as it is asked for.
#[derive(Clone, Debug)]
pub(crate) struct NewIngest {
    pub(crate) reference: String,
    pub(crate) descriptor: Descriptor,
    /// Of the ingest, which the supervisor may act upon while bytes arrive.
    pub(crate) labels: HashMap<String, String>,
}

impl NewIngest {
    fn request(
        &self,
        action: rpc::WriteAction,
        offset: u64,
        labels: HashMap<String, String>,
    ) -> rpc::WriteContentRequest {
        rpc::WriteContentRequest {
            action: action.into(),
            r#ref: self.reference.clone(),
            total: signed(self.descriptor.size),
            expected: self.descriptor.digest.to_string(),
            offset: signed(offset),
            data: Bytes::new(),
            labels,
        }
    }
}

/// An open ingest. When it is dropped the supervisor keeps what it has, until somebody resumes or aborts it.
pub(crate) struct Ingest {
    new: NewIngest,
    requests: mpsc::Sender<rpc::WriteContentRequest>,
    answers: tonic::Streaming<rpc::WriteContentResponse>,
    offset: u64,
}

impl Ingest {
    /// Where the next bytes belong.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Waits for bytes to come, unless the supervisor ends the call before: whatever came then would come for nothing.
    pub(crate) async fn wait_for<T>(&mut self, bytes: impl Future<Output = T>) -> Result<T, Fault> {
        let mut bytes = std::pin::pin!(bytes);
        loop {
            tokio::select! {
                bytes = &mut bytes => return Ok(bytes),
                answer = self.next_answer() => drop(answer?),
            }
        }
    }

    /// Sends the next bytes. They are acknowledged later: an error may belong to earlier ones.
    pub(crate) async fn write(&mut self, data: Bytes) -> Result<(), Fault> {
        let request = rpc::WriteContentRequest {
            action: rpc::WriteAction::Write.into(),
            r#ref: String::new(),
            offset: signed(self.offset),
            ..Default::default()
        };
        self.offset += data.len() as u64;
        self.send(rpc::WriteContentRequest { data, ..request }).await?;
        // Each message is answered: what has come is taken, so that the answers never fill their window.
        while let Some(next) = self.next_answer().now_or_never() {
            next?;
        }
        Ok(())
    }

    /// Makes the ingest a blob, with these labels, if its bytes are those that were promised. One that came into being
    /// meanwhile is as good.
    pub(crate) async fn commit(mut self, labels: HashMap<String, String>) -> Result<(), Fault> {
        let request = self.new.request(rpc::WriteAction::Commit, self.offset, labels);
        match self.finish(request).await {
            Err(fault) if fault.grpc == GrpcCode::AlreadyExists => Ok(()),
            outcome => outcome.map_err(with_code_from_words),
        }
    }

    async fn finish(&mut self, request: rpc::WriteContentRequest) -> Result<(), Fault> {
        self.send(request).await?;
        while self.next_answer().await?.action != i32::from(rpc::WriteAction::Commit) {}
        Ok(())
    }

    async fn send(&mut self, request: rpc::WriteContentRequest) -> Result<(), Fault> {
        if self.requests.send(request).await.is_ok() {
            return Ok(());
        }
        // The supervisor has ended the call, and the reason is among its answers.
        loop {
            self.next_answer().await?;
        }
    }

    async fn next_answer(&mut self) -> Result<rpc::WriteContentResponse, Fault> {
        let message = self.answers.message().await.map(tonic::Response::new);
        answer(STEP, message)?.ok_or_else(|| {
            let what = format!("write {} into the content store", self.new.descriptor.digest);
            Fault::new(Layer::Supervisor, STEP, code::UNKNOWN, what).cause("the supervisor ended the transfer early")
        })
    }
}

/// A stranger says only in words that the bytes were wrong.
fn with_code_from_words(fault: Fault) -> Fault {
    let is = |words: &str| fault.code == code::UNKNOWN && fault.message.contains(words);
    let word = if is("unexpected commit digest") {
        code::DIGEST_MISMATCH
    } else if is("unexpected commit size") {
        code::SIZE_MISMATCH
    } else {
        return fault;
    };
    Fault { code: word.to_owned(), ..fault }
}

/// The API counts in signed numbers. Sizes were bounded when documents were read.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_words_about_wrong_bytes() {
        let fault = |words: &str| Fault::new(Layer::Supervisor, STEP, code::UNKNOWN, words);
        let code_of = |words: &str| with_code_from_words(fault(words)).code;
        assert_eq!(code_of("unexpected commit digest sha256:a, expected sha256:b: failed"), code::DIGEST_MISMATCH);
        assert_eq!(code_of("unexpected commit size 1, expected 2: failed"), code::SIZE_MISMATCH);
        assert_eq!(code_of("other"), code::UNKNOWN);
    }
}
