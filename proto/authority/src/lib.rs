//! Connections of gRPC clients that name a socket's path as the host.
//!
//! What stands on gRPC's C library (Python, C++, Ruby, PHP) and connects to `/run/shimd.sock` says in each request that it
//! wants the host `run%2Fshimd.sock`. The crate `http` takes no percent sign in a host, and so `h2` ends each such stream
//! with PROTOCOL_ERROR before anybody else sees it; servers in Go or C do not mind. Nobody looks at the host of a Unix
//! socket. So each `%` in it becomes `_` on its way in: what has the same length leaves frames and tables as they are.
//!
//! A host that is packed by Huffman's code is left alone; the C library packs none.

mod block;
mod frames;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

use frames::Frames;

/// A connection to a server of HTTP/2, on which hosts hold no percent signs.
#[derive(Debug)]
pub struct PlainHosts<S> {
    stream: S,
    frames: Frames,
}

impl<S> PlainHosts<S> {
    /// Of a connection that has just been accepted.
    pub fn new(stream: S) -> PlainHosts<S> {
        PlainHosts { stream, frames: Frames::default() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PlainHosts<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.frames.pass(&mut buffer.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PlainHosts<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl<S: Connected> Connected for PlainHosts<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}
