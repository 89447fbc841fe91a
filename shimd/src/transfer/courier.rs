//! The courier: a process of its own, `shimd-registry`, without privileges, that has the network sockets which shimd
//! has not.
//!
//! One courier serves one transfer. Orders and answers share its two pipes; each answer goes to the order of its
//! stream. It is ended with the transfer, however that ends.

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use proto_registry::{Answer, Descriptor as WireDescriptor, Document, Fetch, Open, Order, PushDocument};
use proto_registry::{answer, order, receive, send};
use strata_fault::Fault;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;

use super::document::Descriptor;
use crate::error::{Error, Result};
use crate::name::Digest;

/// Answers of one order that wait to be taken. What waits is fetched again after a kill.
const QUEUE: usize = 2;
/// Bytes that may be in the pipe from the courier; these, too, are fetched again after a kill.
const PIPE: usize = 1 << 20;
/// What the courier gets of shimd's environment: which proxies to use, and which authorities to trust.
const PASSED_ON: [&str; 9] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "ALL_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

/// The orders that wait for answers; none: the process has ended, and nobody is answered any more.
type Waiting = Arc<Mutex<Option<HashMap<u32, mpsc::Sender<answer::Kind>>>>>;

/// A courier at work on one repository.
pub(super) struct Courier {
    /// To the task that writes them to the process.
    orders: mpsc::Sender<Order>,
    waiting: Waiting,
    next: AtomicU32,
    /// Killed when it is dropped.
    _child: Child,
}

/// An order that is being carried out.
pub(super) struct Answers<'a> {
    courier: &'a Courier,
    stream: u32,
    answers: mpsc::Receiver<answer::Kind>,
}

impl Courier {
    /// Starts `program` for a repository, whose hosts a directory tells of.
    pub(super) async fn start(program: &Path, hosts: Option<&Path>, open: Open) -> Result<Courier> {
        let failed = |source| Error::io(format!("start the registry courier {}", program.display()), source);
        let mut command = Command::new(program);
        command.env_clear().envs(PASSED_ON.iter().filter_map(|name| Some((*name, std::env::var_os(name)?))));
        if let Some(hosts) = hosts {
            command.arg(hosts).arg(&open.reference);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        command.current_dir("/").process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(failed)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(std::io::ErrorKind::BrokenPipe.into()));
        };
        // Fewer turns; a kernel that grants no more leaves it as it is.
        let _ = rustix::pipe::fcntl_setpipe_size(&output, PIPE);
        let waiting = Waiting::new(Mutex::new(Some(HashMap::new())));
        tokio::spawn(hand_out(output, waiting.clone()));
        let (orders, taken) = mpsc::channel(1);
        tokio::spawn(hand_over(input, taken));
        let courier = Courier { orders, waiting, next: AtomicU32::new(0), _child: child };
        courier.order(order::Kind::Open(open)).await?.done().await?;
        Ok(courier)
    }

    /// What the repository's reference stands for.
    pub(super) async fn resolve(&self) -> Result<(Descriptor, Bytes)> {
        let document = self.order(order::Kind::Resolve(true)).await?.document().await?;
        let described = document.descriptor.unwrap_or_default();
        let digest = Digest::parse(&described.digest)?;
        Ok((Descriptor::new(&described.media_type, digest, described.size), document.bytes))
    }

    /// A document by its descriptor.
    pub(super) async fn document(&self, descriptor: &Descriptor) -> Result<Bytes> {
        let order = order::Kind::Document(wire(descriptor));
        Ok(self.order(order).await?.document().await?.bytes)
    }

    /// The bytes of a blob from `offset` on.
    pub(super) async fn fetch(&self, descriptor: &Descriptor, offset: u64) -> Result<Answers<'_>> {
        self.order(order::Kind::Fetch(Fetch { descriptor: Some(wire(descriptor)), offset })).await
    }

    /// Whether the repository has a blob.
    pub(super) async fn has(&self, descriptor: &Descriptor) -> Result<bool> {
        match self.order(order::Kind::Check(wire(descriptor))).await?.next().await? {
            answer::Kind::Has(found) => Ok(found),
            _ => Err(confused()),
        }
    }

    /// Begins to push a blob: its bytes follow.
    pub(super) async fn push(&self, descriptor: &Descriptor) -> Result<Answers<'_>> {
        self.order(order::Kind::Push(wire(descriptor))).await
    }

    pub(super) async fn push_document(&self, descriptor: &Descriptor, bytes: Bytes, is_root: bool) -> Result<()> {
        let order = PushDocument { descriptor: Some(wire(descriptor)), bytes, is_root };
        self.order(order::Kind::PushDocument(order)).await?.done().await
    }

    async fn order(&self, kind: order::Kind) -> Result<Answers<'_>> {
        let stream = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answers) = mpsc::channel(QUEUE);
        match lock(&self.waiting).as_mut() {
            Some(waiting) => drop(waiting.insert(stream, sender)),
            None => return Err(ended()),
        }
        let answers = Answers { courier: self, stream, answers };
        self.send(stream, kind).await?;
        Ok(answers)
    }

    async fn send(&self, stream: u32, kind: order::Kind) -> Result<()> {
        let gone = |_| Error::io("write to the registry courier", std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        self.orders.send(Order { stream, kind: Some(kind) }).await.map_err(gone)
    }
}

impl Answers<'_> {
    /// The next answer that is no failure.
    async fn next(&mut self) -> Result<answer::Kind> {
        taken(self.answers.recv().await)
    }

    /// The next bytes of a blob; `None` at its verified end.
    pub(super) async fn data(&mut self) -> Result<Option<Bytes>> {
        match self.next().await? {
            answer::Kind::Data(piece) => Ok(Some(piece)),
            answer::Kind::Done(_) => Ok(None),
            _ => Err(confused()),
        }
    }

    /// Hands over bytes of a blob that is pushed. Where the registry has refused it by now, the rest need not be read.
    pub(super) async fn give(&mut self, piece: Bytes) -> Result<()> {
        if let Ok(answer) = self.answers.try_recv() {
            // There is no good answer before the end.
            return taken(Some(answer)).and_then(|_| Err(confused()));
        }
        self.courier.send(self.stream, order::Kind::Data(piece)).await
    }

    /// All bytes were given: waits until the registry has the blob.
    pub(super) async fn given(self) -> Result<()> {
        self.courier.send(self.stream, order::Kind::End(true)).await?;
        self.done().await
    }

    async fn document(mut self) -> Result<Document> {
        match self.next().await? {
            answer::Kind::Document(document) => Ok(document),
            _ => Err(confused()),
        }
    }

    async fn done(mut self) -> Result<()> {
        match self.next().await? {
            answer::Kind::Done(_) => Ok(()),
            _ => Err(confused()),
        }
    }
}

/// An answer that is no failure.
fn taken(answer: Option<answer::Kind>) -> Result<answer::Kind> {
    match answer {
        Some(answer::Kind::Failed(status)) => match Fault::from_status_bytes(&status) {
            Ok(Some(fault)) => Err(Error::Registry(Box::new(fault))),
            _ => Err(confused()),
        },
        Some(kind) => Ok(kind),
        None => Err(ended()),
    }
}

impl Drop for Answers<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = lock(&self.courier.waiting).as_mut() {
            waiting.remove(&self.stream);
        }
    }
}

/// Writes orders to the process until it takes no more, or nobody has any.
async fn hand_over(mut input: ChildStdin, mut orders: mpsc::Receiver<Order>) {
    while let Some(order) = orders.recv().await {
        if let Err(error) = send(&mut input, &order).await {
            // Whoever waits for an answer hears that it ended.
            tracing::debug!(%error, "write to the registry courier");
            return;
        }
    }
}

/// Gives each answer to its order, until the courier ends: then nobody waits any more.
async fn hand_out(mut output: ChildStdout, waiting: Waiting) {
    loop {
        match receive::<Answer>(&mut output).await {
            Ok(Some(Answer { stream, kind: Some(kind) })) => {
                let order = lock(&waiting).as_ref().and_then(|waiting| waiting.get(&stream).cloned());
                if let Some(order) = order {
                    let _ = order.send(kind).await;
                }
            }
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "read from the registry courier");
                break;
            }
        }
    }
    *lock(&waiting) = None;
}

fn lock(waiting: &Waiting) -> MutexGuard<'_, Option<HashMap<u32, mpsc::Sender<answer::Kind>>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wire(descriptor: &Descriptor) -> WireDescriptor {
    WireDescriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: descriptor.size,
    }
}

fn ended() -> Error {
    let source = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
    Error::io("hear from the registry courier, which ended", source)
}

fn confused() -> Error {
    let source = std::io::Error::from(std::io::ErrorKind::InvalidData);
    Error::io("understand the registry courier", source)
}
