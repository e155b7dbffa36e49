//! A server on a Unix socket and a TCP port with real disks behind it, and a client that must go on whatever happens.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use freshet::datastore::{DiskEngine, EngineKind};
use freshet::nbd::{
    Address, BackingDisk, Buffers, CacheMode, Drained, Export, Exports, Image, ImageOptions, Listen, Server,
    ServerOptions, start_engine,
};

use super::client::Client;

pub(crate) const MIB: u64 = 1 << 20;

/// Where files of tests go: on a real file system, whatever `/tmp` is.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// See the module.
pub(crate) struct Rig {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) exports: Exports,
    pub(crate) buffers: Arc<Buffers>,
    pub(crate) server: Option<Server>,
    pub(crate) unix: Address,
    pub(crate) tcp: Address,
}

impl Rig {
    /// A disk `disk` of 16 MiB, and the settings of a server.
    pub(crate) fn new(cache: CacheMode, options: ServerOptions) -> Rig {
        Rig::sized(cache, options, 64 << 20, 16)
    }

    /// The same with so much memory for so many connections.
    pub(crate) fn sized(cache: CacheMode, options: ServerOptions, memory: u64, connections: usize) -> Rig {
        let dir = scratch();
        let (exports, buffers) = (Exports::new(), Buffers::new(memory, connections).unwrap());
        let engine = start_engine(EngineKind::Auto, cache, &buffers).unwrap();
        exports.add("disk", disk_by(&engine, &dir, "disk", 16 * MIB, cache)).unwrap();
        let options = ServerOptions { engine: Some(engine), ..options };
        let listen = [Listen::Unix(dir.path().join("socket")), Listen::Tcp("127.0.0.1:0".to_owned())];
        let server = Server::start(&listen, exports.clone(), buffers.clone(), options).unwrap();
        let [unix, tcp] = server.addresses() else { panic!("two addresses") };
        let (unix, tcp) = (unix.clone(), tcp.clone());
        Rig { dir, exports, buffers, server: Some(server), unix, tcp }
    }

    /// With more time for a handshake than any client here waits, so that who is cut off was not just too slow.
    pub(crate) fn plain() -> Rig {
        let handshake_timeout = Duration::from_secs(600);
        Rig::new(CacheMode::WriteBack, ServerOptions { handshake_timeout, ..Default::default() })
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// Ends the server; all buffers must have come back.
    pub(crate) fn stop(mut self) -> Drained {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let server = self.server.take().unwrap();
        let drained = runtime.block_on(server.shutdown(Duration::from_secs(30)));
        assert_eq!(self.buffers.in_use(), 0, "buffers were lost");
        drained
    }
}

/// A disk on a sparse file.
pub(crate) fn disk(
    dir: &tempfile::TempDir,
    name: &str,
    size: u64,
    cache: CacheMode,
    buffers: &Buffers,
) -> Arc<BackingDisk> {
    disk_by(&start_engine(EngineKind::Auto, cache, buffers).unwrap(), dir, name, size, cache)
}

/// The same, moved by this engine.
fn disk_by(
    engine: &Arc<dyn DiskEngine>,
    dir: &tempfile::TempDir,
    name: &str,
    size: u64,
    cache: CacheMode,
) -> Arc<BackingDisk> {
    let path = dir.path().join(name);
    std::fs::File::create(&path).unwrap();
    let image = Image::open(&path, ImageOptions { size: Some(size), grow: true, read_only: false }).unwrap();
    BackingDisk::open(Arc::clone(engine), image, cache).unwrap()
}

/// A client that writes and reads its own disk all the time, and must never see an error or a wrong byte.
pub(crate) struct Healthy {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Healthy {
    pub(crate) fn start(rig: &Rig) -> Healthy {
        let other = disk(&rig.dir, "healthy", MIB, CacheMode::WriteBack, &rig.buffers);
        rig.exports.add("healthy", other as Arc<dyn Export>).unwrap();
        let mut client = Client::open(&rig.unix, "healthy");
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = {
            let (stop, rounds) = (stop.clone(), rounds.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let round = rounds.load(Ordering::Relaxed);
                    let (at, data) = ((round * 8192) % MIB, vec![round as u8; 8192]);
                    assert_eq!(client.write(at, &data), 0);
                    assert!(client.read(at, data.len()).unwrap() == data);
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        Healthy { stop, rounds, thread }
    }

    /// Waits until it has gone on from here; it never does when it is held up.
    pub(crate) fn goes_on(&self) {
        let from = self.rounds.load(Ordering::Relaxed);
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while self.rounds.load(Ordering::Relaxed) < from + 3 {
            assert!(!self.thread.is_finished(), "the healthy client failed");
            assert!(std::time::Instant::now() < end, "the healthy client was held up");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn finish(self) {
        self.goes_on();
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}
