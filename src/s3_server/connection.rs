//! A TCP connection that can be told to end in a reset instead of a close.

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::net::TcpStream;

/// How a connection is to end; shared between it and the requests on it.
#[derive(Clone, Default)]
pub(super) struct Fate {
    reset: Arc<AtomicBool>,
}

/// The socket under one HTTP connection.
pub(super) struct Connection {
    io: TokioIo<TcpStream>,
    fate: Fate,
}

impl Fate {
    /// Nothing more is sent, and the peer sees a reset.
    pub(super) fn reset(&self) {
        self.reset.store(true, Ordering::Release);
    }

    fn is_reset(&self) -> bool {
        self.reset.load(Ordering::Acquire)
    }
}

impl Connection {
    pub(super) fn new(stream: TcpStream, fate: Fate) -> Connection {
        Connection { io: TokioIo::new(stream), fate }
    }

    fn open(&mut self) -> io::Result<Pin<&mut TokioIo<TcpStream>>> {
        if self.fate.is_reset() { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(Pin::new(&mut self.io)) }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.fate.is_reset() {
            // A close with linger time zero is a reset. If the peer was quicker, there is nobody to tell.
            let _ = self.io.inner().set_zero_linger();
        }
    }
}

impl Read for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        self.open()?.poll_read(cx, buf)
    }
}

impl Write for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.open()?.poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.open()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.open()?.poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.open()?.poll_write_vectored(cx, bufs)
    }
}
