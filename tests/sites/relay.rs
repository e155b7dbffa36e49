//! The way of one site to the storage site: a relay of TCP connections that takes as long as it is told to, each way.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Pieces on the way in one direction of a connection, and the bytes of each.
const PIECES: usize = 256;
const PIECE: usize = 64 << 10;

/// A relay that runs until it is dropped, on a thread that stays in the network in which it was started.
pub(crate) struct Relay {
    delay_ms: Arc<AtomicU64>,
    port: u16,
    _stop: oneshot::Sender<()>,
}

impl Relay {
    /// Relays what comes in at `at` to port `to` of the loopback interface.
    pub(crate) fn start(at: Ipv4Addr, to: u16) -> Relay {
        let delay_ms = Arc::new(AtomicU64::new(0));
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let delay = Arc::clone(&delay_ms);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind((at, 0)).await.unwrap();
                tell.send(listener.local_addr().unwrap().port()).unwrap();
                tokio::select! {
                    never = accept(listener, SocketAddr::from((Ipv4Addr::LOCALHOST, to)), delay) => match never {},
                    _ = stopped => {}
                }
            });
        });
        Relay { delay_ms, port: told.recv().unwrap(), _stop: stop }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// How long everything takes, each way, from now on.
    pub(crate) fn delay(&self, delay: Duration) {
        self.delay_ms.store(delay.as_millis().try_into().unwrap(), Relaxed);
    }
}

async fn accept(listener: TcpListener, to: SocketAddr, delay: Arc<AtomicU64>) -> std::convert::Infallible {
    loop {
        let Ok((near, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let delay = Arc::clone(&delay);
        tokio::spawn(async move {
            let Ok(far) = TcpStream::connect(to).await else { return };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let (near, far) = (near.into_split(), far.into_split());
            tokio::join!(pump(near.0, far.1, &delay), pump(far.0, near.1, &delay));
        });
    }
}

/// One direction of a connection, to its end.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: &AtomicU64) {
    let (send, mut receive) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
    let read = async move {
        let mut buffer = vec![0; PIECE];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + Duration::from_millis(delay.load(Relaxed));
            if send.send((due, buffer[..n].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = receive.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}
