//! What shims say of themselves: each writes to a FIFO in its bundle, and shimd passes it on to its own log.

use std::io;

use tokio::net::unix::pipe;
use tokio::task::AbortHandle;

use super::bundle::Bundle;
use crate::error::{Chain, Error};

/// Longest line of a shim's own log that is passed on.
const LOG_LINE_MAX: usize = 8 << 10;

/// Passes what a shim writes to its log FIFO on to shimd's own log, as long as it is held.
pub(crate) struct LogCopy(AbortHandle);

impl Drop for LogCopy {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl LogCopy {
    /// Begins to read; a FIFO that cannot be opened is told in the log and is no reason to fail.
    pub(crate) fn start(bundle: &Bundle, id: &str) -> Option<LogCopy> {
        // Open for writing, too: then there is no end of file before the shim has opened it.
        match pipe::OpenOptions::new().read_write(true).open_receiver(bundle.log()) {
            Ok(log) => Some(LogCopy(tokio::spawn(copy_lines(log, id.to_owned())).abort_handle())),
            Err(error) => {
                let error = Error::io(format!("open {}", bundle.log().display()), error);
                tracing::warn!(error = %Chain(&error), "read the log of a shim");
                None
            }
        }
    }
}

/// Between two lines nothing is kept: most shims never write any.
async fn copy_lines(log: pipe::Receiver, id: String) {
    let mut line = Vec::new();
    while log.readable().await.is_ok() {
        let mut chunk = [0; 1024];
        match log.try_read(&mut chunk) {
            Ok(count) => take_lines(&chunk[..count], &mut line, &id),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

fn take_lines(mut chunk: &[u8], line: &mut Vec<u8>, id: &str) {
    while let Some(end) = chunk.iter().position(|byte| *byte == b'\n') {
        add(line, &chunk[..end]);
        tracing::info!(target: "shim", id, "{}", String::from_utf8_lossy(&std::mem::take(line)));
        chunk = &chunk[end + 1..];
    }
    add(line, chunk);
}

fn add(line: &mut Vec<u8>, bytes: &[u8]) {
    let room = LOG_LINE_MAX.saturating_sub(line.len());
    line.extend_from_slice(&bytes[..bytes.len().min(room)]);
}
