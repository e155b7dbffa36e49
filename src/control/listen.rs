//! Where the API is reached: a Unix socket, and TCP. Owns the listening sockets, who is at the other end of each connection,
//! and the limit of connections. TLS is put on by the server.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::transport::server::Connected;

use crate::cancel::Cancel;
use crate::error::{Error, ErrorKind, IoResultExt, Result};

/// Pause after a connection that could not be accepted, as when descriptors have run out.
const PAUSE: Duration = Duration::from_millis(50);

/// Who is at the other end of a Unix socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnixPeer {
    /// As the kernel says it.
    pub(crate) user: u32,
}

/// Who is at the other end of a TCP connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TcpPeer;

/// A connection, and its place among those that may be at once.
pub(crate) struct Connection<S, P> {
    stream: S,
    peer: P,
    _place: OwnedSemaphorePermit,
}

impl<S, P: Clone + Send + Sync + 'static> Connected for Connection<S, P> {
    type ConnectInfo = P;

    fn connect_info(&self) -> P {
        self.peer.clone()
    }
}

impl<S: AsyncRead + Unpin, P: Unpin> AsyncRead for Connection<S, P> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, to)
    }
}

impl<S: AsyncWrite + Unpin, P: Unpin> AsyncWrite for Connection<S, P> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Connections as they come, until `closing`.
pub(crate) type Incoming<S, P> = Pin<Box<dyn Stream<Item = std::io::Result<Connection<S, P>>> + Send>>;

/// Accepts with a limit: whoever comes beyond it waits in the kernel's queue.
fn accept<S, P, F, A>(limit: usize, closing: Cancel, mut next: A) -> Incoming<S, P>
where
    S: Send + 'static,
    P: Send + 'static,
    F: Future<Output = std::io::Result<(S, P)>> + Send,
    A: FnMut() -> F + Send + 'static,
{
    let places = Arc::new(Semaphore::new(limit));
    // One at a time: a connection that nobody takes keeps its place, and no more are accepted.
    let (give, take) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let came = tokio::select! { came = next() => came, () = closing.cancelled() => return };
            match came {
                Ok((stream, peer)) => {
                    if give.send(Ok(Connection { stream, peer, _place: place })).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!("a connection could not be accepted: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    });
    Box::pin(tokio_stream::wrappers::ReceiverStream::new(take))
}

/// Connections at a Unix socket.
pub(crate) fn unix(listener: UnixListener, limit: usize, closing: Cancel) -> Incoming<UnixStream, UnixPeer> {
    let listener = Arc::new(listener);
    accept(limit, closing, move || {
        let listener = Arc::clone(&listener);
        async move {
            let (stream, _) = listener.accept().await?;
            let user = stream.peer_cred()?.uid();
            Ok((stream, UnixPeer { user }))
        }
    })
}

/// Connections at a TCP port.
pub(crate) fn tcp(listener: TcpListener, limit: usize, closing: Cancel) -> Incoming<TcpStream, TcpPeer> {
    let listener = Arc::new(listener);
    accept(limit, closing, move || {
        let listener = Arc::clone(&listener);
        async move {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Ok((stream, TcpPeer))
        }
    })
}

/// Listens at `host:port`.
pub(crate) async fn bind_tcp(address: &str) -> Result<TcpListener> {
    let owned = address.to_owned();
    let resolved = tokio::task::spawn_blocking(move || super::settings::resolve(&owned)).await;
    let resolved = resolved.map_err(|e| Error::with_source(ErrorKind::Internal, "a look-up panicked", e))??;
    TcpListener::bind(resolved).await.io_context(|| format!("listen at {address}"))
}
