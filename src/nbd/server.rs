//! The server: accepts clients, gives each a thread, and stops in an orderly way.
//!
//! Owns the listening sockets, the thread that accepts, and the roll of connections. Invariants: at most
//! [`ServerOptions::max_handshakes`] clients negotiate at once, and when one more comes the oldest of them makes room,
//! so that clients that never finish keep nobody out; connections that serve an export are bounded by the shares of the
//! buffers, and are never closed to make room.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{Notify, watch};

use super::buffers::Buffers;
use super::connection::{Connection, Fate, Limits};
use super::exports::Exports;
use super::handshake::{self, Offer};
use super::listen::{Address, Listen, Socket};
use super::stream::{Accepted, Stream};
use super::tls::Tls;
use crate::datastore::{DiskEngine, DrivenWork, drive_plainly};
use crate::error::{Error, ErrorKind, IoResultExt, Result};
use crate::log_context::here;

/// Pause after a failed accept, which mostly means that there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Longest wait for threads to end once they were told to drop everything.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// Settings of a server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// TLS for all connections. Default off.
    pub tls: Tls,
    /// Requests in flight on one connection, 1 to 4096. Default 128.
    pub max_in_flight: usize,
    /// Clients that negotiate at once, 1 to 4096. Default 64.
    pub max_handshakes: usize,
    /// Time for a whole handshake. Default 30 s.
    pub handshake_timeout: Duration,
    /// Time in which a client must take some byte of what it is sent, or go on with what it has begun to send. Default
    /// two minutes.
    pub stall_timeout: Duration,
    /// What clients see that send requests while the server stops. Default [`Farewell::HangUp`].
    pub farewell: Farewell,
    /// The engine of the disks that are served, which then runs the threads of connections. Default none: they run by
    /// themselves, and every request is handed to the engine's own threads.
    pub engine: Option<Arc<dyn DiskEngine>>,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            tls: Tls::Off,
            max_in_flight: 128,
            max_handshakes: 64,
            handshake_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(120),
            farewell: Farewell::HangUp,
            engine: None,
        }
    }
}

/// How clients are told that the server stops. What is in flight is finished either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// Further requests are not read, and the connection ends: a hypervisor that reconnects sends them again, and its
    /// guest sees no error.
    HangUp,
    /// Further requests fail with `ESHUTDOWN`, until none comes.
    Refuse,
}

/// Whether the server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Open,
    Stopping,
    Over,
}

/// What [`Server::shutdown`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were cut off with requests in flight, because the grace was over.
    pub cut: usize,
}

/// See the module's head. Dropped without a [`Server::shutdown`] it drops all connections as they are.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<Address>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    offer: Offer,
    options: ServerOptions,
    phase: watch::Sender<Phase>,
    roll: Mutex<Roll>,
    changed: Notify,
}

/// The connections there are.
#[derive(Debug, Default)]
struct Roll {
    last: u64,
    /// Those that negotiate, and how to end them.
    negotiating: BTreeMap<u64, Arc<Notify>>,
    serving: usize,
}

impl Server {
    /// Listens on all of `listen` and serves `exports`, to as many connections at once as `buffers` has shares.
    ///
    /// # Errors
    /// `Invalid` for settings out of bounds; those of listening; `Io` when the thread cannot be started.
    pub fn start(listen: &[Listen], exports: Exports, buffers: Arc<Buffers>, options: ServerOptions) -> Result<Server> {
        for (name, value) in [("max_in_flight", options.max_in_flight), ("max_handshakes", options.max_handshakes)] {
            if !(1..=4096).contains(&value) {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("NBD server: {name} is {value}, must be 1 to 4096"),
                ));
            }
        }
        if listen.is_empty() {
            return Err(Error::new(ErrorKind::Invalid, "NBD server: no address to listen on"));
        }
        let sockets = listen.iter().map(Socket::open).collect::<Result<Vec<_>>>()?;
        let addresses = sockets.iter().map(Socket::address).collect::<Result<Vec<_>>>()?;
        let shared = Arc::new(Shared {
            offer: Offer { exports, buffers, tls: options.tls.clone() },
            options,
            phase: watch::Sender::new(Phase::Open),
            roll: Mutex::default(),
            changed: Notify::new(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.io_context(|| "start the NBD server")?;
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("freshet-nbd".to_owned())
                .spawn(here(move || runtime.block_on(accept_all(sockets, shared))))
                .io_context(|| "start the NBD server")?
        };
        Ok(Server { addresses, shared, thread: Some(thread) })
    }

    /// Where it listens, in the order asked for.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// The exports, to add to and remove from.
    pub fn exports(&self) -> &Exports {
        &self.shared.offer.exports
    }

    /// Connections that serve an export now.
    pub fn connections(&self) -> usize {
        self.shared.roll().serving
    }

    /// Listens no more, finishes what is in flight, and ends all connections; those that are not done after `grace`
    /// are cut off.
    pub async fn shutdown(mut self, grace: Duration) -> Drained {
        self.shared.phase.send_replace(Phase::Stopping);
        let _ = tokio::time::timeout(grace, self.shared.until(|roll| roll.serving == 0)).await;
        let cut = self.connections();
        if cut > 0 {
            tracing::warn!("{cut} NBD connections had requests in flight after {} s and were cut off", grace.as_secs());
        }
        self.shared.phase.send_replace(Phase::Over);
        let gone = self.shared.until(|roll| roll.serving == 0 && roll.negotiating.is_empty());
        let _ = tokio::time::timeout(LAST_WAIT, gone).await;
        if let Some(thread) = self.thread.take() {
            // It only waits for sockets, and was told: it ends at once.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        Drained { cut }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.phase.send_replace(Phase::Over);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn roll(&self) -> MutexGuard<'_, Roll> {
        self.roll.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the roll is so.
    async fn until(&self, is_so: impl Fn(&Roll) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Before the look, so that a change after it wakes us.
            changed.as_mut().enable();
            if is_so(&self.roll()) {
                return;
            }
            changed.await;
        }
    }

    /// Enters a new client; the oldest of too many makes room.
    fn admit(&self) -> (u64, Arc<Notify>) {
        let mut roll = self.roll();
        if roll.negotiating.len() >= self.options.max_handshakes
            && let Some((_, oldest)) = roll.negotiating.pop_first()
        {
            tracing::warn!("{} clients negotiate at once: the oldest was closed", self.options.max_handshakes);
            oldest.notify_one();
        }
        roll.last += 1;
        let (id, evicted) = (roll.last, Arc::new(Notify::new()));
        roll.negotiating.insert(id, Arc::clone(&evicted));
        (id, evicted)
    }

    async fn reached(&self, phase: Phase) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.phase.subscribe().wait_for(|now| *now >= phase).await;
    }
}

/// Accepts on every socket until the server stops; then the sockets are closed and their files removed.
async fn accept_all(sockets: Vec<Socket>, shared: Arc<Shared>) {
    let loops = sockets.into_iter().map(|socket| accept(socket, &shared));
    futures::future::join_all(loops).await;
}

async fn accept(socket: Socket, shared: &Arc<Shared>) {
    let mut stopping = Box::pin(shared.reached(Phase::Stopping));
    let listener = match Listener::new(socket) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("the NBD server cannot listen: {error}"),
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stopping => return,
        };
        match accepted {
            Ok(accepted) => greet(accepted, shared),
            Err(error) => {
                tracing::warn!("the NBD server cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A listening socket in the runtime of its thread.
enum Listener {
    Tcp(tokio::net::TcpListener),
    Unix(
        tokio::net::UnixListener,
        #[allow(dead_code, reason = "removed when it is dropped")] super::listen::SocketFile,
    ),
}

impl Listener {
    fn new(socket: Socket) -> std::io::Result<Listener> {
        Ok(match socket {
            Socket::Tcp(listener) => Listener::Tcp(tokio::net::TcpListener::from_std(listener)?),
            Socket::Unix(listener, file) => Listener::Unix(tokio::net::UnixListener::from_std(listener)?, file),
        })
    }

    async fn accept(&self) -> std::io::Result<Accepted> {
        match self {
            Listener::Tcp(listener) => Ok(Accepted::Tcp(listener.accept().await?.0.into_std()?)),
            Listener::Unix(listener, _) => Ok(Accepted::Unix(listener.accept().await?.0.into_std()?)),
        }
    }
}

/// Starts the thread of a client.
fn greet(accepted: Accepted, shared: &Arc<Shared>) {
    let (id, evicted) = shared.admit();
    let seat = Seat { id, shared: Arc::clone(shared), serving: false };
    let engine = shared.options.engine.clone();
    let work: DrivenWork = Box::new(|| Box::pin(async move { attend(accepted, &evicted, seat).await }));
    let serve = here(move || {
        let driven = match engine {
            Some(engine) => engine.drive(work),
            None => drive_plainly(work),
        };
        if let Err(error) = driven {
            tracing::warn!("an NBD client was turned away: {error}");
        }
    });
    let spawned = std::thread::Builder::new().name("freshet-nbd-conn".to_owned()).spawn(serve);
    if let Err(error) = spawned {
        tracing::warn!("an NBD client was turned away, its thread cannot be started: {error}");
    }
}

/// The place of a connection on the roll; given up on drop.
struct Seat {
    id: u64,
    shared: Arc<Shared>,
    serving: bool,
}

impl Seat {
    fn serve(&mut self) {
        let mut roll = self.shared.roll();
        roll.negotiating.remove(&self.id);
        roll.serving += 1;
        self.serving = true;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut roll = self.shared.roll();
        roll.negotiating.remove(&self.id);
        roll.serving -= usize::from(self.serving);
        drop(roll);
        self.shared.changed.notify_waiters();
    }
}

/// The life of a connection.
async fn attend(accepted: Accepted, evicted: &Notify, mut seat: Seat) {
    let shared = Arc::clone(&seat.shared);
    let plain = match accepted.enter() {
        Ok(plain) => plain,
        Err(error) => return tracing::debug!("an NBD client was gone before it was greeted: {error}"),
    };
    let peer = plain.peer();
    let is_stopping = || *shared.phase.borrow() != Phase::Open;
    let negotiation = handshake::negotiate(Stream::Plain(plain), &shared.offer, &is_stopping);
    let negotiated = tokio::select! {
        negotiated = tokio::time::timeout(shared.options.handshake_timeout, negotiation) => negotiated,
        () = evicted.notified() => return,
        () = shared.reached(Phase::Over) => return,
    };
    let (stream, session) = match negotiated {
        Ok(Ok(Some(negotiated))) => negotiated,
        Ok(Ok(None)) => return,
        Ok(Err(fate)) => return tell(&peer, &fate),
        Err(_) => {
            return tracing::info!("NBD client {peer}: no handshake within {:?}", shared.options.handshake_timeout);
        }
    };
    seat.serve();
    let limits = Limits {
        max_in_flight: shared.options.max_in_flight,
        stall: shared.options.stall_timeout,
        refuse_at_end: shared.options.farewell == Farewell::Refuse,
    };
    let stopping = {
        let shared = Arc::clone(&shared);
        async move { shared.reached(Phase::Stopping).await }.boxed()
    };
    let connection = Connection::new(stream, peer.clone(), session, limits, stopping);
    tokio::select! {
        fate = connection.run() => tell(&peer, &fate),
        () = shared.reached(Phase::Over) => {}
    }
}

fn tell(peer: &str, fate: &Fate) {
    match fate {
        Fate::Left | Fate::Stopped => tracing::debug!("NBD client {peer}: {fate:?}"),
        Fate::Broken(error) => tracing::info!("NBD client {peer}: the connection ended: {error}"),
        Fate::Breach(what) => tracing::warn!("NBD client {peer} was cut off: {what}"),
    }
}
