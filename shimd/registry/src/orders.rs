//! The orders of one repository: each on a stream of its own, all side by side.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use bytes::Bytes;
use proto_registry::{
    Answer, Credentials as WireCredentials, Descriptor as WireDescriptor, Open, Order, answer, order,
};
use proto_registry::{Document as WireDocument, Fetch, PIECE, PushDocument, receive, send};
use strata_fault::{Fault, GrpcCode, Layer, code};
use strata_registry::{
    Client, Config, Credentials, Descriptor, HostFiles, Hosts, Problem, Reference, ReferenceError, Session,
};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

/// Answers that wait to be written, and pieces of one blob that wait to be pushed. What waits is fetched again after a
/// kill.
const QUEUE: usize = 2;

type Answers = mpsc::Sender<Answer>;
type Outcome = Result<answer::Kind, Box<Fault>>;

/// Serves until the input ends: shimd is done, or killed, and wants no answer that is still to come.
pub(crate) async fn serve(hosts: Option<HostFiles>) -> io::Result<()> {
    let mut input = tokio::io::stdin();
    let (answers, waiting) = mpsc::channel(QUEUE);
    tokio::spawn(write_answers(waiting));
    let mut helper = Helper { hosts, session: None, pushes: HashMap::new(), answers };
    while let Some(order) = receive::<Order>(&mut input).await? {
        helper.obey(order).await;
    }
    Ok(())
}

async fn write_answers(mut waiting: mpsc::Receiver<Answer>) -> io::Result<()> {
    // Written where it is: tokio's own standard output copies each piece for another thread.
    let mut output = pipe::Sender::from_owned_fd(io::stdout().as_fd().try_clone_to_owned()?)?;
    while let Some(answer) = waiting.recv().await {
        send(&mut output, &answer).await?;
    }
    Ok(())
}

struct Helper {
    /// What was read before the privileges were given up.
    hosts: Option<HostFiles>,
    session: Option<Arc<Session>>,
    /// Blobs that are being pushed, by stream.
    pushes: HashMap<u32, mpsc::Sender<Bytes>>,
    answers: Answers,
}

impl Helper {
    async fn obey(&mut self, order: Order) {
        let stream = order.stream;
        let outcome = match order.kind {
            Some(order::Kind::Open(open)) => self.open(&open),
            Some(order::Kind::Data(piece)) => return self.pass_on(stream, piece).await,
            Some(order::Kind::End(_)) => return drop(self.pushes.remove(&stream)),
            Some(kind) => return self.begin(stream, kind).await,
            None => Err(broken("an order of no kind")),
        };
        answer(&self.answers, stream, outcome).await;
    }

    fn open(&mut self, open: &Open) -> Outcome {
        let reference: Reference = open.reference.parse().map_err(|error: ReferenceError| {
            let fault = Fault::new(Layer::Registry, "pull", code::INVALID_ARGUMENT, error.to_string());
            Box::new(fault.caused_by(error.problem()).grpc(GrpcCode::InvalidArgument))
        })?;
        let insecure = if open.is_plain { vec![reference.host().to_owned()] } else { Vec::new() };
        let hosts = self.hosts(&reference, &open.headers).map_err(fault)?;
        let client = Client::new(Config { insecure, hosts, ..Config::default() });
        let credentials = open.credentials.clone().map_or(Credentials::Anonymous, credentials);
        let session = client.session(&reference, &credentials, open.to_push).map_err(fault)?;
        self.session = Some(Arc::new(session));
        Ok(answer::Kind::Done(true))
    }

    /// Where the registry's images are had, if that was told.
    fn hosts(
        &self,
        reference: &Reference,
        headers: &BTreeMap<String, String>,
    ) -> Result<Option<Hosts>, strata_registry::Error> {
        if self.hosts.is_none() && headers.is_empty() {
            return Ok(None);
        }
        let files = self.hosts.clone().unwrap_or_default();
        let hosts = Hosts::of_files(&files, reference.host()).and_then(|hosts| hosts.with_headers(headers));
        hosts.map(Some).map_err(|error| {
            strata_registry::Error::new(format!("find the hosts of {reference}"), Problem::Setup(Box::new(error)))
        })
    }

    /// A piece of a blob; one whose push has failed goes nowhere.
    async fn pass_on(&self, stream: u32, piece: Bytes) {
        if let Some(push) = self.pushes.get(&stream) {
            let _ = push.send(piece).await;
        }
    }

    async fn begin(&mut self, stream: u32, kind: order::Kind) {
        let Some(session) = self.session.clone() else {
            return answer(&self.answers, stream, Err(broken("an order before Open"))).await;
        };
        let answers = self.answers.clone();
        let pieces = matches!(kind, order::Kind::Push(_)).then(|| {
            let (push, pieces) = mpsc::channel(QUEUE);
            self.pushes.insert(stream, push);
            pieces
        });
        tokio::spawn(async move {
            let outcome = carry_out(&session, stream, kind, pieces, &answers).await;
            answer(&answers, stream, outcome).await;
        });
    }
}

async fn carry_out(
    session: &Session,
    stream: u32,
    kind: order::Kind,
    pieces: Option<mpsc::Receiver<Bytes>>,
    answers: &Answers,
) -> Outcome {
    match kind {
        order::Kind::Resolve(_) => resolve(session).await,
        order::Kind::Document(wanted) => document(session, wanted).await,
        order::Kind::Fetch(fetch) => fetch_blob(session, stream, fetch, answers).await,
        order::Kind::Check(wanted) => {
            let found = session.has_blob(&from_wire(&wanted)?).await.map_err(fault)?;
            Ok(answer::Kind::Has(found))
        }
        order::Kind::Push(descriptor) => match pieces {
            Some(pieces) => push(session, &from_wire(&descriptor)?, pieces).await,
            None => Err(broken("a push without pieces")),
        },
        order::Kind::PushDocument(document) => push_document(session, document).await,
        order::Kind::Open(_) | order::Kind::Data(_) | order::Kind::End(_) => Err(broken("an order out of order")),
    }
}

async fn resolve(session: &Session) -> Outcome {
    let found = session.resolve().await.map_err(fault)?;
    let descriptor = WireDescriptor {
        media_type: found.descriptor.media_type,
        digest: found.descriptor.digest.to_string(),
        size: found.descriptor.size,
    };
    Ok(answer::Kind::Document(WireDocument { descriptor: Some(descriptor), bytes: found.bytes }))
}

async fn document(session: &Session, wanted: WireDescriptor) -> Outcome {
    let bytes = session.document(&from_wire(&wanted)?).await.map_err(fault)?;
    Ok(answer::Kind::Document(WireDocument { descriptor: Some(wanted), bytes }))
}

async fn fetch_blob(session: &Session, stream: u32, fetch: Fetch, answers: &Answers) -> Outcome {
    let descriptor = from_wire(&fetch.descriptor.unwrap_or_default())?;
    let mut blob = session.blob(&descriptor, fetch.offset);
    while let Some(mut bytes) = blob.next().await.map_err(fault)? {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            answer(answers, stream, Ok(answer::Kind::Data(piece))).await;
        }
    }
    Ok(answer::Kind::Done(true))
}

async fn push(session: &Session, descriptor: &Descriptor, mut pieces: mpsc::Receiver<Bytes>) -> Outcome {
    let failed = |problem| fault(session.pushing("push blob", descriptor, problem));
    let mut upload = session.upload(descriptor).await.map_err(fault)?;
    while let Some(piece) = pieces.recv().await {
        upload.write(&piece).await.map_err(failed)?;
    }
    upload.finish().await.map_err(failed)?;
    Ok(answer::Kind::Done(true))
}

async fn push_document(session: &Session, document: PushDocument) -> Outcome {
    let descriptor = from_wire(&document.descriptor.unwrap_or_default())?;
    let pushed = session.push_document(&descriptor, document.bytes, document.is_root).await;
    pushed.map_err(fault)?;
    Ok(answer::Kind::Done(true))
}

async fn answer(answers: &Answers, stream: u32, outcome: Outcome) {
    let kind = outcome.unwrap_or_else(|fault| answer::Kind::Failed(fault.to_status_bytes().into()));
    // Nobody reads any more: then the input ends, too.
    let _ = answers.send(Answer { stream, kind: Some(kind) }).await;
}

fn from_wire(wire: &WireDescriptor) -> Result<Descriptor, Box<Fault>> {
    let digest = wire.digest.parse().map_err(|_| broken(&format!("digest {:?}", wire.digest)))?;
    Ok(Descriptor {
        media_type: wire.media_type.clone(),
        digest,
        size: wire.size,
        annotations: Default::default(),
        platform: None,
    })
}

fn credentials(wire: WireCredentials) -> Credentials {
    match wire {
        WireCredentials { identity_token, .. } if !identity_token.is_empty() => {
            Credentials::IdentityToken(identity_token)
        }
        WireCredentials { registry_token, .. } if !registry_token.is_empty() => {
            Credentials::RegistryToken(registry_token)
        }
        WireCredentials { user, password, .. } => Credentials::Basic { user, password },
    }
}

fn fault(error: strata_registry::Error) -> Box<Fault> {
    Box::new(error.fault())
}

fn broken(what: &str) -> Box<Fault> {
    let words = format!("the registry helper was given {what}");
    Box::new(Fault::new(Layer::Registry, "pull", code::INVALID_ARGUMENT, words))
}
