//! The disk engine on io_uring.
//!
//! | file | what it owns |
//! |---|---|
//! | this one | the ring threads, which take jobs off their queues, and the closing of files |
//! | `ring` | a ring on its thread, and how transfers move over it |
//! | `lane` | rings of threads that run others' work and carry its small transfers themselves |
//!
//! Everything that would stall a ring (odd heads and tails, syncs, holes, files without direct I/O) goes to helper
//! threads, and nobody computes on a ring thread, because submissions reach the kernel only when it goes to sleep.
//! The slab is registered once for each ring thread, one registered buffer for each slot; lanes, which come and go,
//! do without.

mod lane;
mod ring;

use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel as sync_channel;
use tokio::sync::{Semaphore, mpsc};

use self::lane::Lanes;
use self::ring::Ring;
use super::engine::{
    Access, DiskEngine, DrivenWork, EngineInfo, EngineKind, EngineOptions, FileId, FileInfo, Request, drive_plainly,
};
use super::file::FileOptions;
use super::gate::Gate;
use super::job::Job;
use super::probe;
use super::slab::Slab;
use super::table::Files;
use super::workers::{Workers, join_all};
use crate::error::{Error, ErrorKind, IoResultExt, Result};

/// Longest wait for a ring to answer its first operation. Registering touches the whole slab, which takes seconds
/// for some GiB.
const START_SECONDS: u64 = 60;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Uring {
    // Let go of first: it holds the queues, and closed queues end the threads after all that is in them.
    shared: Arc<Shared>,
    slab: Arc<Slab>,
    gate: Arc<Gate>,
    helpers: Arc<Workers>,
    next_ring: AtomicUsize,
    info: EngineInfo,
    _threads: RingThreads,
}

/// What closing a file needs, also from a thread of its own.
#[derive(Debug)]
struct Shared {
    files: Files,
    rings: Vec<mpsc::Sender<Message>>,
    lanes: Arc<Lanes>,
    closing: Mutex<()>,
}

/// Waited for on drop.
#[derive(Debug)]
struct RingThreads(Vec<JoinHandle<()>>);

impl Drop for RingThreads {
    fn drop(&mut self) {
        join_all(std::mem::take(&mut self.0));
    }
}

/// What a ring thread is told.
enum Message {
    Job(Job),
    /// Close the duplicate of this file, then say so.
    Forget(FileId, sync_channel::Sender<()>),
}

/// What a ring thread says once, when it is ready: how many slots are registered, and why not all.
type Ready = io::Result<(usize, Option<String>)>;

/// A ring thread that answered, and its queue.
struct Started {
    queue: mpsc::Sender<Message>,
    thread: JoinHandle<()>,
    registered: usize,
    why_not: Option<String>,
}

impl Uring {
    /// Starts helpers and rings.
    ///
    /// # Errors
    /// `Unsupported` with a readable reason when the kernel does not let us, `Io` when a thread cannot be started.
    pub(super) fn start(slab: Arc<Slab>, options: &EngineOptions) -> Result<Uring> {
        let depth = options.queue_depth;
        let helpers = Arc::new(Workers::start("freshet-helper", options.helper_threads, depth)?);
        let mut info = EngineInfo {
            kind: EngineKind::IoUring,
            registered_slots: usize::MAX,
            queue_depth: depth,
            fallbacks: Vec::new(),
        };
        let (mut rings, mut threads) = (Vec::new(), RingThreads(Vec::new()));
        for _ in 0..options.ring_threads {
            let started = start_ring(options, &slab, &helpers)?;
            rings.push(started.queue);
            threads.0.push(started.thread);
            info.registered_slots = info.registered_slots.min(started.registered);
            if let Some(why_not) = started.why_not.filter(|why_not| !info.fallbacks.contains(why_not)) {
                info.fallbacks.push(why_not);
            }
        }
        let files = Files::new(FileOptions::from(options));
        let shared = Shared { files, rings, lanes: Arc::default(), closing: Mutex::new(()) };
        let (shared, gate) = (Arc::new(shared), Gate::new(depth));
        Ok(Uring { shared, slab, gate, helpers, next_ring: AtomicUsize::new(0), info, _threads: threads })
    }
}

fn start_ring(options: &EngineOptions, slab: &Arc<Slab>, helpers: &Arc<Workers>) -> Result<Started> {
    // Room for every request that the gate lets in, and for the one file that is being closed.
    let (sender, queue) = mpsc::channel(options.queue_depth + 1);
    let (ready, is_ready) = sync_channel::bounded(1);
    let (slab, helpers) = (Arc::clone(slab), Arc::clone(helpers));
    let (depth, register) = (options.queue_depth, options.register_buffers);
    let thread = std::thread::Builder::new()
        .name("freshet-ring".to_owned())
        .spawn(crate::log_context::here(move || ring_thread(depth, register, slab, helpers, queue, &ready)))
        .io_context(|| "start a freshet-ring thread")?;
    match is_ready.recv_timeout(Duration::from_secs(START_SECONDS)) {
        Ok(Ok((registered, why_not))) => Ok(Started { queue: sender, thread, registered, why_not }),
        Ok(Err(error)) => Err(Error::new(ErrorKind::Unsupported, probe::no_ring(&error))),
        // The thread is stuck in the kernel: it is left behind, and ends if it ever wakes.
        Err(_) => Err(Error::new(ErrorKind::Unsupported, probe::ring_silent(START_SECONDS))),
    }
}

impl Shared {
    fn close(&self, file: FileId) -> Result<()> {
        self.files.close(file, || {
            // One at a time, for which the queues have room.
            let _one = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
            for ring in &self.rings {
                let (closed, is_closed) = sync_channel::bounded(1);
                if ring.try_send(Message::Forget(file, closed)).is_ok() {
                    // An error means that the thread is gone, and its descriptors with it.
                    let _ = is_closed.recv();
                }
            }
            self.lanes.forget(file);
        })
    }
}

impl DiskEngine for Uring {
    fn open(&self, path: &Path, access: Access) -> Result<FileId> {
        self.shared.files.open(path, access)
    }

    fn close(&self, file: FileId) -> Result<()> {
        if !lane::is_here() {
            return self.shared.close(file);
        }
        // Lanes that waited for one another to let go of a file would wait for ever.
        let shared = Arc::clone(&self.shared);
        let close = move || {
            if let Err(error) = shared.close(file) {
                tracing::error!("closing a disk file behind its user: {error}");
            }
        };
        let thread = std::thread::Builder::new().name("freshet-close".to_owned()).spawn(close);
        thread.map(drop).io_context(|| "start a thread that closes a file")
    }

    fn submit(&self, request: Request) {
        let Some(request) = lane::carry(&self.shared.lanes, &self.shared.files, request) else { return };
        let job = Job::admit(&self.gate, &self.shared.files, request);
        let rings = &self.shared.rings;
        let ring = self.next_ring.fetch_add(1, Ordering::Relaxed) % rings.len();
        // The gate bounds the jobs to the queue's capacity, so this fails only when the ring thread has panicked;
        // then the job is dropped, and replies that the engine failed.
        let _ = rings[ring].try_send(Message::Job(job));
    }

    fn drive(&self, work: DrivenWork) -> Result<()> {
        let ring = || Ring::plain(Arc::clone(&self.slab), Arc::clone(&self.helpers));
        match lane::drive(&self.shared.lanes, ring, work) {
            Ok(()) => Ok(()),
            Err((error, work)) => {
                tracing::debug!("no ring of its own for a thread: {error}");
                drive_plainly(work)
            }
        }
    }

    fn file_info(&self, file: FileId) -> Result<FileInfo> {
        self.shared.files.enter(file)?.info()
    }

    fn slab(&self) -> &Arc<Slab> {
        &self.slab
    }

    fn info(&self) -> EngineInfo {
        self.info.clone()
    }
}

/// Body of a ring thread.
fn ring_thread(
    depth: usize,
    register: bool,
    slab: Arc<Slab>,
    helpers: Arc<Workers>,
    queue: mpsc::Receiver<Message>,
    ready: &sync_channel::Sender<Ready>,
) {
    let body = || async move {
        if let Err(error) = ring::try_out().await {
            let _ = ready.send(Err(error));
            return;
        }
        let (ring, answer) = match register {
            true => Ring::registered(slab, Arc::clone(&helpers)),
            false => (Ring::plain(slab, Arc::clone(&helpers)), (0, None)),
        };
        if ready.send(Ok(answer)).is_ok() {
            serve(ring, helpers, depth, queue).await;
        }
    };
    if let Err((error, _)) = ring::run(depth, body) {
        // Nobody waits any more only when the start was given up.
        let _ = ready.send(Err(error));
    }
}

/// Takes messages until the queue is closed and empty, then waits for what is under way.
async fn serve(ring: Rc<Ring>, helpers: Arc<Workers>, depth: usize, mut queue: mpsc::Receiver<Message>) {
    let under_way = Arc::new(Semaphore::new(depth));
    while let Some(message) = queue.recv().await {
        match message {
            Message::Job(Job::Transfer(transfer, reply)) => {
                // There is room at once: the gate lets in no more than the semaphore.
                let Ok(permit) = Arc::clone(&under_way).acquire_owned().await else { return };
                ring.begin(transfer, reply, permit);
            }
            Message::Job(refused @ Job::Refused(..)) => refused.run(),
            Message::Job(control) => helpers.run(|| control.run()),
            Message::Forget(id, closed) => {
                ring.forget(id).await;
                let _ = closed.send(());
            }
        }
    }
    // An error would mean that the semaphore is closed, which nobody does.
    let _ = under_way.acquire_many(depth as u32).await;
}
