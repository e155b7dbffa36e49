//! The running server: its own threads, one listener, and the handle that a test or a bench holds.
//!
//! The handle's methods are synchronous and may be called from anywhere, also inside an async test: the server does
//! not run on the caller's runtime. Dropping the handle stops it.

use super::backend::{Backend, MOST_KEYS};
use super::catalog::Catalog;
use super::connection::{Connection, Fate};
use super::counters::{Counters, Tally};
use super::faults::Faults;
use super::front::Front;
use super::rule::Rule;
use hyper::server::conn::http1;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Connections waiting to be accepted.
const BACKLOG: u32 = 1024;

/// How long a command to the accepting loop may take before the server counts as broken.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// How long stopping waits for file reads and writes under way.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// How a server is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// TCP port on 127.0.0.1; 0 takes a free one. A restart that clients shall find needs the former one.
    pub port: u16,
    /// The one access key that is known.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    /// Buckets made at start where they do not exist. The first is the one that `url` names.
    pub buckets: Vec<String>,
    /// Keys in a page of a listing at most (the original has 1,000, and so has this).
    pub page_keys: usize,
    /// Threads that serve connections.
    pub workers: usize,
    /// Faults in force from the start.
    pub rules: Vec<Rule>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            port: 0,
            access_key: "freshet".to_owned(),
            secret_key: "freshet-secret".to_owned(),
            buckets: vec!["freshet".to_owned()],
            page_keys: MOST_KEYS,
            workers: 2,
            rules: Vec::new(),
        }
    }
}

/// A server that runs until it is stopped or dropped.
pub struct S3Server {
    address: SocketAddr,
    options: Options,
    catalog: Arc<Catalog>,
    faults: Faults,
    tally: Tally,
    commands: mpsc::Sender<Command>,
    thread: Option<JoinHandle<()>>,
}

/// What the handle tells the accepting loop.
enum Command {
    /// Open or close the port; answered when it is done.
    Listen(bool, SyncSender<io::Result<()>>),
    Stop,
}

impl S3Server {
    /// Serves the objects in `directory`, which is made if need be, from the moment this returns.
    ///
    /// Errors: the directory cannot be used or another server uses it; the port is taken.
    pub fn start(directory: &Path, options: Options) -> io::Result<S3Server> {
        let catalog = Arc::new(Catalog::open(directory)?);
        for bucket in &options.buckets {
            catalog.create_bucket(bucket)?;
        }
        let (faults, tally) = (Faults::default(), Tally::default());
        faults.set(options.rules.iter().cloned());
        let service = service(Arc::clone(&catalog), &options);
        let front = Front { service, faults: faults.clone(), tally: tally.clone(), fate: Fate::default() };
        let runtime = Builder::new_multi_thread()
            .worker_threads(options.workers.max(1))
            .thread_name("s3-server")
            .enable_all()
            .build()?;
        let (port, listener) = {
            let _context = runtime.enter();
            Port::open(options.port)?
        };
        let address = port.address;
        let (commands, inbox) = mpsc::channel(16);
        let thread = std::thread::Builder::new()
            .name("s3-server".to_owned())
            .spawn(|| run(runtime, port, listener, front, inbox))?;
        Ok(S3Server { address, options, catalog, faults, tally, commands, thread: Some(thread) })
    }

    /// Base URL, `http://127.0.0.1:<port>`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// `s3://<first bucket>/<prefix>`.
    pub fn url(&self, prefix: &str) -> String {
        let bucket = self.options.buckets.first().map_or("", String::as_str);
        format!("s3://{bucket}/{prefix}")
    }

    /// The usual environment variables by which an S3 client finds this server and its credentials.
    pub fn env(&self) -> Vec<(String, String)> {
        let pairs = [
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_ENDPOINT", self.endpoint()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_DEFAULT_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", self.options.access_key.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.options.secret_key.clone()),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value)).into()
    }

    /// The faults in force; takes effect with the next request.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Closes the port and all connections (`false`), so that clients are refused, or opens it again.
    pub fn set_reachable(&self, reachable: bool) -> io::Result<()> {
        let (reply, done) = sync_channel(1);
        self.commands.try_send(Command::Listen(reachable, reply)).map_err(io::Error::other)?;
        done.recv_timeout(COMMAND_LIMIT).map_err(io::Error::other)?
    }

    /// Requests, bytes and faults so far.
    pub fn counters(&self) -> Counters {
        self.tally.counters()
    }

    /// Starts counting anew.
    pub fn reset_counters(&self) {
        self.tally.reset();
    }

    /// The file that holds an object now, for tests that damage it in place. `None` if there is no such object.
    pub fn object_file(&self, bucket: &str, key: &str) -> Option<PathBuf> {
        self.catalog.file_of(bucket, key)
    }

    /// Closes everything. The directory can be served again when this returns.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // A full channel or a dead loop: the closing channel stops a living loop as well.
        let _ = self.commands.try_send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic there has printed itself; a second one here could abort the test process.
            let _ = thread.join();
        }
    }
}

/// A port that stays ours while nobody listens on it: the bound, silent socket keeps others off.
struct Port {
    address: SocketAddr,
    _reservation: TcpSocket,
}

impl Port {
    /// Takes a port and listens on it.
    fn open(port: u16) -> io::Result<(Port, TcpListener)> {
        let socket = TcpSocket::new_v4()?;
        // A given port may have connections of a former server in their last minutes. A free one must be free: among
        // sockets that allow reuse the kernel would hand out the same port twice.
        socket.set_reuseaddr(port != 0)?;
        socket.bind((Ipv4Addr::LOCALHOST, port).into())?;
        socket.set_reuseaddr(true)?;
        let port = Port { address: socket.local_addr()?, _reservation: socket };
        let listener = port.listen()?;
        Ok((port, listener))
    }

    fn listen(&self) -> io::Result<TcpListener> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(self.address)?;
        socket.listen(BACKLOG)
    }
}

fn service(catalog: Arc<Catalog>, options: &Options) -> S3Service {
    let mut builder = S3ServiceBuilder::new(Backend::new(catalog, options.page_keys));
    builder.set_auth(SimpleAuth::from_single(options.access_key.clone(), options.secret_key.clone()));
    builder.build()
}

fn run(runtime: Runtime, port: Port, listener: TcpListener, front: Front, inbox: mpsc::Receiver<Command>) {
    runtime.block_on(accept(port, listener, front, inbox));
    runtime.shutdown_timeout(STOP_LIMIT);
}

async fn accept(port: Port, listener: TcpListener, front: Front, mut inbox: mpsc::Receiver<Command>) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            command = inbox.recv() => match command {
                Some(Command::Listen(true, reply)) => {
                    let opened = if listener.is_some() { Ok(()) } else { port.listen().map(|new| listener = Some(new)) };
                    let _ = reply.send(opened);
                }
                Some(Command::Listen(false, reply)) => {
                    listener = None;
                    connections.shutdown().await;
                    let _ = reply.send(Ok(()));
                }
                Some(Command::Stop) | None => break,
            },
            Some(_) = connections.join_next() => {}
            stream = next(listener.as_ref()) => drop(connections.spawn(serve(stream, front.clone()))),
        }
    }
    connections.shutdown().await;
}

/// The next connection; waits for ever while the port is closed.
async fn next(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // Out of descriptors, or a client that went away: neither lasts, and neither may spin.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn serve(stream: TcpStream, mut front: Front) {
    front.fate = Fate::default();
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let connection = Connection::new(stream, front.fate.clone());
    // Errors are what faults and departing clients leave behind; the client's side is where they are looked at.
    let _ = http1::Builder::new().serve_connection(connection, front).await;
}
