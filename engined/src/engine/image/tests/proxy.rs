//! A line to the registry that a test can cut: it lets so many bytes through from the registry, then goes dead or dies.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

pub(super) struct Proxy {
    pub(super) port: u16,
    line: Arc<Line>,
    task: JoinHandle<()>,
}

struct Line {
    /// Bytes that may still pass; below zero no connection is accepted either.
    left: AtomicI64,
    passed: AtomicU64,
    /// What happens at the end: silence, else a hang-up.
    silent: bool,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    pub(super) async fn start(to: u16, bytes: i64, silent: bool) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let line = Arc::new(Line { left: AtomicI64::new(bytes), passed: AtomicU64::new(0), silent });
        let shared = Arc::clone(&line);
        let task = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { return };
                tokio::spawn(carry(client, to, Arc::clone(&shared)));
            }
        });
        Proxy { port, line, task }
    }

    pub(super) fn name(&self, name: &str) -> String {
        format!("localhost:{}/{name}", self.port)
    }

    pub(super) fn allow(&self, bytes: i64) {
        self.line.left.store(bytes, Ordering::SeqCst);
    }

    /// Bytes that came from the registry so far.
    pub(super) fn passed(&self) -> u64 {
        self.line.passed.load(Ordering::SeqCst)
    }
}

async fn carry(client: TcpStream, to: u16, line: Arc<Line>) {
    if line.left.load(Ordering::SeqCst) <= 0 && !line.silent {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", to)).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    });
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count) = from_server.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        if line.left.fetch_sub(count as i64, Ordering::SeqCst) < count as i64 {
            if line.silent {
                std::future::pending::<()>().await;
            }
            break;
        }
        line.passed.fetch_add(count as u64, Ordering::SeqCst);
        if to_client.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    up.abort();
}
