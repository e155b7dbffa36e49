//! The byte stream of a connection: TCP or a Unix socket, plain or inside TLS.
//!
//! Owns the socket and its settings, and nothing of what flows through it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

/// Bytes that the kernel may hold for a client that is slower than we are; a large read fits without waiting.
const SEND_BUFFER: usize = 2 << 20;

/// A peer whose machine is gone is found out after about two minutes.
const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEP_ALIVE_PAUSE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TRIES: u32 = 6;

/// An accepted socket, in no runtime yet.
#[derive(Debug)]
pub(super) enum Accepted {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

/// A socket.
#[derive(Debug)]
pub(super) enum Plain {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A socket, perhaps inside TLS.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(Plain),
    Tls(Box<TlsStream<Plain>>),
}

impl Accepted {
    /// Enters the runtime of the calling thread, with the settings that suit the protocol.
    pub(super) fn enter(self) -> io::Result<Plain> {
        match self {
            Accepted::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                socket.set_nodelay(true)?;
                sockopt::set_socket_keepalive(&socket, true)?;
                sockopt::set_tcp_keepidle(&socket, KEEP_ALIVE_IDLE)?;
                sockopt::set_tcp_keepintvl(&socket, KEEP_ALIVE_PAUSE)?;
                sockopt::set_tcp_keepcnt(&socket, KEEP_ALIVE_TRIES)?;
                Ok(Plain::Tcp(TcpStream::from_std(socket)?))
            }
            Accepted::Unix(socket) => {
                socket.set_nonblocking(true)?;
                // A wish: the forced way is for root only, and the other has a limit of its own.
                if sockopt::set_socket_send_buffer_size_force(&socket, SEND_BUFFER).is_err() {
                    let _ = sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER);
                }
                Ok(Plain::Unix(UnixStream::from_std(socket)?))
            }
        }
    }
}

impl Plain {
    /// Who is at the other end, for the log.
    pub(super) fn peer(&self) -> String {
        match self {
            Plain::Tcp(socket) => socket.peer_addr().map_or("an unknown address".to_owned(), |peer| peer.to_string()),
            Plain::Unix(socket) => match socket.peer_cred().ok().and_then(|peer| peer.pid()) {
                Some(pid) => format!("process {pid}"),
                None => "an unknown process".to_owned(),
            },
        }
    }
}

/// Calls a method of whichever stream it is.
macro_rules! each {
    ($self:expr, $kind:ident { $($variant:ident),+ }, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            $($kind::$variant($stream) => $call,)+
        }
    };
}

macro_rules! delegate {
    ($kind:ident { $($variant:ident),+ }) => {
        impl AsyncRead for $kind {
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                each!(self, $kind { $($variant),+ }, stream => Pin::new(stream).poll_read(cx, into))
            }
        }

        impl AsyncWrite for $kind {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
                each!(self, $kind { $($variant),+ }, stream => Pin::new(stream).poll_write(cx, bytes))
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                parts: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                each!(self, $kind { $($variant),+ }, stream => Pin::new(stream).poll_write_vectored(cx, parts))
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                each!(self, $kind { $($variant),+ }, stream => Pin::new(stream).poll_flush(cx))
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                each!(self, $kind { $($variant),+ }, stream => Pin::new(stream).poll_shutdown(cx))
            }
        }
    };
}

delegate!(Plain { Tcp, Unix });
delegate!(Stream { Plain, Tls });
