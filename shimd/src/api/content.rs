//! The content service.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::BytesMut;
use futures_util::stream::{self, BoxStream, StreamExt};
use proto_containerd::events;
use proto_containerd::services::content as wire;
use proto_containerd::services::content::WriteAction;
use proto_containerd::services::content::content_server::Content;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Api;
use super::convert::{labels, mask, optional_digest, required, size, wire_labels};
use super::scope::{OrStatus, Scope};
use crate::content::{Commit, Info, Opening, Status as IngestStatus, Writer};
use crate::daemon::Daemon;
use crate::db::record::Labels;
use crate::diff::provisional::{DIFF_ID_LABEL, Prospect};
use crate::diff::run_blocking;
use crate::error::{Error, Result as OurResult};
use crate::filter::Filters;
use crate::name::Digest;

const STEP: &str = "pull";
/// Bytes of one message of a read, and messages that wait for the client.
const READ_CHUNK: usize = 1 << 20;
const READ_QUEUE: usize = 2;
/// Records of one message of a list.
const LIST_CHUNK: usize = 100;

#[tonic::async_trait]
impl Content for Api {
    async fn info(&self, request: Request<wire::InfoRequest>) -> Result<Response<wire::InfoResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let digest = Digest::parse(&request.get_ref().digest).or_status(STEP)?;
        let info = self.content.info(&scope.namespace, &digest).or_status(STEP)?;
        Ok(Response::new(wire::InfoResponse { info: Some(to_wire(info)) }))
    }

    async fn update(&self, request: Request<wire::UpdateRequest>) -> Result<Response<wire::UpdateResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let request = request.into_inner();
        let info = required(request.info, "info").or_status(STEP)?;
        let digest = Digest::parse(&info.digest).or_status(STEP)?;
        let paths = mask(request.update_mask);
        let info = self.content.update(&scope.namespace, &digest, &labels(info.labels), &paths).or_status(STEP)?;
        Ok(Response::new(wire::UpdateResponse { info: Some(to_wire(info)) }))
    }

    type ListStream = BoxStream<'static, Result<wire::ListContentResponse, Status>>;

    async fn list(&self, request: Request<wire::ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let filters = Filters::parse(&request.get_ref().filters).or_status(STEP)?;
        let daemon = self.clone();
        let found = run_blocking(move || daemon.content.list(&scope.namespace, &filters)).await.or_status(STEP)?;
        let messages = stream::iter(found).map(to_wire).chunks(LIST_CHUNK);
        Ok(Response::new(messages.map(|info| Ok(wire::ListContentResponse { info })).boxed()))
    }

    async fn delete(&self, request: Request<wire::DeleteContentRequest>) -> Result<Response<()>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let digest = Digest::parse(&request.get_ref().digest).or_status(STEP)?;
        let event = events::ContentDelete { digest: digest.to_string() };
        let (daemon, namespace) = (self.clone(), scope.namespace.clone());
        // It may wait for a collection.
        run_blocking(move || daemon.content.delete(&namespace, &digest)).await.or_status(STEP)?;
        self.events.publish(&scope.namespace, "/content/delete", &event);
        self.gc.schedule();
        Ok(Response::new(()))
    }

    type ReadStream = ReceiverStream<Result<wire::ReadContentResponse, Status>>;

    async fn read(&self, request: Request<wire::ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let request = request.into_inner();
        let digest = Digest::parse(&request.digest).or_status(STEP)?;
        let (file, length) = self.content.blob(&scope.namespace, &digest).or_status(STEP)?;
        // A negative offset counts as none, as in containerd.
        let offset = u64::try_from(request.offset).unwrap_or_default();
        if offset > length {
            let what = format!("read of {digest} at {offset}: it has {length} bytes");
            return Err(Error::OutOfRange { what }.status(STEP));
        }
        let wanted = u64::try_from(request.size).ok().filter(|size| *size > 0).unwrap_or(length);
        let end = offset.saturating_add(wanted).min(length);
        let (sender, receiver) = mpsc::channel(READ_QUEUE);
        tokio::task::spawn_blocking(move || send_blob(&file, &digest, offset, end, &sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn status(&self, request: Request<wire::StatusRequest>) -> Result<Response<wire::StatusResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let status = self.content.status(&scope.namespace, &request.get_ref().r#ref).or_status(STEP)?;
        Ok(Response::new(wire::StatusResponse { status: Some(status_to_wire(status)) }))
    }

    async fn list_statuses(
        &self,
        request: Request<wire::ListStatusesRequest>,
    ) -> Result<Response<wire::ListStatusesResponse>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let filters = Filters::parse(&request.get_ref().filters).or_status(STEP)?;
        let statuses = self.content.statuses(&scope.namespace, &filters).or_status(STEP)?;
        let statuses = statuses.into_iter().map(status_to_wire).collect();
        Ok(Response::new(wire::ListStatusesResponse { statuses }))
    }

    type WriteStream = ReceiverStream<Result<wire::WriteContentResponse, Status>>;

    async fn write(
        &self,
        request: Request<Streaming<wire::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let scope = Scope::making(&request, self).or_status(STEP)?;
        let (sender, receiver) = mpsc::channel(1);
        let daemon = self.clone();
        let requests = request.into_inner();
        tokio::spawn(async move {
            if let Err(status) = serve_write(&daemon, scope, requests, &sender).await {
                // Nobody reads any more: then nobody needs the status.
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn abort(&self, request: Request<wire::AbortRequest>) -> Result<Response<()>, Status> {
        let scope = Scope::of(&request).or_status(STEP)?;
        let (daemon, reference) = (self.clone(), request.into_inner().r#ref);
        // It may wait for a collection.
        run_blocking(move || daemon.content.abort(&scope.namespace, &reference)).await.or_status(STEP)?;
        Ok(Response::new(()))
    }
}

fn send_blob(
    file: &File,
    digest: &Digest,
    mut offset: u64,
    end: u64,
    sender: &mpsc::Sender<Result<wire::ReadContentResponse, Status>>,
) {
    while offset < end {
        let length = READ_CHUNK.min(usize::try_from(end - offset).unwrap_or(READ_CHUNK));
        let mut data = BytesMut::zeroed(length);
        let message = file
            .read_exact_at(&mut data, offset)
            .map(|()| wire::ReadContentResponse { offset: offset as i64, data: data.freeze() })
            .map_err(|source| Error::io(format!("read blob {digest}"), source))
            .or_status(STEP);
        let failed = message.is_err();
        if sender.blocking_send(message).is_err() || failed {
            return;
        }
        offset += length as u64;
    }
}

type Answers = mpsc::Sender<Result<wire::WriteContentResponse, Status>>;

/// One write stream: each request is answered, in order; a commit ends it.
async fn serve_write(
    daemon: &Arc<Daemon>,
    scope: Scope,
    mut requests: Streaming<wire::WriteContentRequest>,
    answers: &Answers,
) -> Result<(), Status> {
    let Some(first) = requests.message().await? else { return Ok(()) };
    let mut session = Session::open(daemon, scope, &first).await.or_status(STEP)?;
    let mut next = Some(first);
    while let Some(request) = next {
        let is_commit = request.action() == WriteAction::Commit;
        let answer = session.serve(request).await.or_status(STEP)?;
        if answers.send(Ok(answer)).await.is_err() || is_commit {
            return Ok(());
        }
        next = requests.message().await?;
    }
    Ok(())
}

/// The state of a write stream.
struct Session<'a> {
    daemon: &'a Daemon,
    scope: Scope,
    writer: Writer,
    expected: Option<Digest>,
    total: u64,
    /// Of all messages; containerd looks at those of the commit alone, which then are all there are.
    labels: Labels,
}

/// Whether what comes shall be unpacked as it comes.
fn prospect(first: &wire::WriteContentRequest, total: u64) -> OurResult<Option<Prospect>> {
    match first.labels.get(DIFF_ID_LABEL) {
        Some(promised) => Ok(Some(Prospect::Promised(Digest::parse(promised)?))),
        None => Ok(Prospect::of(&first.r#ref, total)),
    }
}

impl<'a> Session<'a> {
    async fn open(daemon: &'a Arc<Daemon>, scope: Scope, first: &wire::WriteContentRequest) -> OurResult<Session<'a>> {
        if first.r#ref.is_empty() {
            return Err(Error::invalid("ref", "the first message must have one"));
        }
        let expected = optional_digest(&first.expected)?;
        let total = size(first.total, "total")?;
        let opening = Opening {
            namespace: scope.namespace.clone(),
            lease: scope.lease.clone(),
            reference: first.r#ref.clone(),
            expected: expected.clone(),
            total,
            unpack: prospect(first, total)?,
        };
        let writer = Writer::open(daemon.content.clone(), opening).await?;
        Ok(Session { daemon, scope, writer, expected, total, labels: Labels::new() })
    }

    async fn serve(&mut self, request: wire::WriteContentRequest) -> OurResult<wire::WriteContentResponse> {
        if let Some(expected) = optional_digest(&request.expected)? {
            self.expected = Some(expected);
        }
        if request.total > 0 {
            self.total = size(request.total, "total")?;
        }
        let action = request.action();
        let offset = request.offset;
        self.labels.extend(request.labels.into_iter().filter(|(key, _)| key != DIFF_ID_LABEL));
        let mut answer = wire::WriteContentResponse { action: action.into(), ..Default::default() };
        match action {
            WriteAction::Stat => {
                answer.digest = self.writer.digest().await?.to_string();
                answer.total = self.total as i64;
                answer.started_at = self.writer.started_at();
                answer.updated_at = self.writer.updated_at();
            }
            WriteAction::Write => {
                self.write(offset, request.data).await?;
                // Who promised a digest knows it; a pull need not wait for the hashing of each piece.
                if self.expected.is_none() {
                    answer.digest = self.writer.digest().await?.to_string();
                }
            }
            WriteAction::Commit => {
                self.write(offset, request.data).await?;
                answer.digest = self.commit().await?.to_string();
            }
        }
        answer.offset = self.writer.offset() as i64;
        Ok(answer)
    }

    async fn write(&mut self, offset: i64, data: bytes::Bytes) -> OurResult<()> {
        let offset = size(offset, "offset")?;
        let current = self.writer.offset();
        if offset > 0 && offset != current {
            return Err(Error::OutOfRange { what: format!("write at {offset}: the ingest is at {current}") });
        }
        if offset == 0 && current > 0 {
            self.writer.reset().await?;
        }
        if data.is_empty() { Ok(()) } else { self.writer.write(data).await }
    }

    async fn commit(&mut self) -> OurResult<Digest> {
        let commit =
            Commit { expected: self.expected.clone(), total: self.total, labels: std::mem::take(&mut self.labels) };
        let digest = self.writer.commit(commit).await?;
        let event = events::ContentCreate {
            digest: digest.to_string(),
            size: self.writer.offset() as i64,
            media_type: String::new(),
        };
        self.daemon.events.publish(&self.scope.namespace, "/content/create", &event);
        Ok(digest)
    }
}

fn to_wire(info: Info) -> wire::Info {
    wire::Info {
        digest: info.digest,
        size: info.record.size as i64,
        created_at: info.record.created_at,
        updated_at: info.record.updated_at,
        labels: wire_labels(info.record.labels),
    }
}

fn status_to_wire(status: IngestStatus) -> wire::Status {
    wire::Status {
        started_at: status.started_at,
        updated_at: status.updated_at,
        r#ref: status.reference,
        offset: status.offset as i64,
        total: status.total as i64,
        expected: status.expected,
    }
}
