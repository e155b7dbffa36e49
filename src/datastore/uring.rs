//! The disk engine on io_uring: the only file that names tokio-uring.
//!
//! Owns the ring threads. A ring thread takes jobs off its queue, hands the aligned pieces to the kernel and tells
//! the results; everything that would stall it (odd heads and tails, syncs, holes, files without direct I/O) goes to
//! helper threads, and nobody computes on it, because submissions reach the kernel only when it goes to sleep.
//!
//! # Memory that the kernel uses
//!
//! The slab is registered once for each ring, one registered buffer for each slot. A slot under way sits in a
//! [`Pinned`] until the kernel has answered. Dropping a future does not take an operation back from the kernel, so a
//! `Pinned` that is dropped with an operation under way gives its slot up for ever rather than let it be used again;
//! in this file no such future is dropped, as a thread ends only after its last operation.
//!
//! # Descriptors
//!
//! tokio-uring's file is not `Send`, so each ring thread keeps one of its own for each open file, on a duplicate of
//! the direct descriptor, made at the first use and closed before `close` returns.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel as sync_channel;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_uring::buf::fixed::{FixedBuf, FixedBufRegistry};
use tokio_uring::buf::{BoundedBuf, IoBuf, IoBufMut};
use tokio_uring::fs::File;

use super::engine::{Access, DiskEngine, EngineInfo, EngineKind, EngineOptions, FileId, FileInfo, Request};
use super::file::{FileOptions, Piece};
use super::gate::Gate;
use super::job::Job;
use super::probe;
use super::slab::{Slab, Slot};
use super::table::{Files, InUse};
use super::transfer::Transfer;
use super::workers::{Workers, join_all};
use crate::error::{Error, ErrorKind, IoResultExt, Result};

/// Most buffers in one registration (UIO_MAXIOV, in the kernel and in tokio-uring).
const MAX_REGISTERED: usize = 1024;

/// Longest wait for a ring to answer its first operation. Registering touches the whole slab, which takes seconds
/// for some GiB.
const START_SECONDS: u64 = 60;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Uring {
    slab: Arc<Slab>,
    files: Files,
    gate: Arc<Gate>,
    rings: Vec<mpsc::Sender<Message>>,
    next_ring: AtomicUsize,
    closing: Mutex<()>,
    info: EngineInfo,
    threads: Vec<JoinHandle<()>>,
}

/// What a ring thread is told.
enum Message {
    Job(Job),
    /// Close the duplicate of this file, then say so.
    Forget(FileId, sync_channel::Sender<()>),
}

/// What a ring thread says once, when it is ready: how many slots are registered, and why not all.
type Ready = io::Result<(usize, Option<String>)>;

impl Uring {
    /// Starts helpers and rings.
    ///
    /// # Errors
    /// `Unsupported` with a readable reason when the kernel does not let us, `Io` when a thread cannot be started.
    pub(super) fn start(slab: Arc<Slab>, options: &EngineOptions) -> Result<Uring> {
        let depth = options.queue_depth;
        let helpers = Arc::new(Workers::start("freshet-helper", options.helper_threads, depth)?);
        let mut engine = Uring {
            slab,
            files: Files::new(FileOptions::from(options)),
            gate: Gate::new(depth),
            rings: Vec::with_capacity(options.ring_threads),
            next_ring: AtomicUsize::new(0),
            closing: Mutex::new(()),
            info: EngineInfo {
                kind: EngineKind::IoUring,
                registered_slots: usize::MAX,
                queue_depth: depth,
                fallbacks: Vec::new(),
            },
            threads: Vec::with_capacity(options.ring_threads),
        };
        for _ in 0..options.ring_threads {
            let (registered, why_not) = engine.add_ring(options, &helpers)?;
            engine.info.registered_slots = engine.info.registered_slots.min(registered);
            if let Some(why_not) = why_not.filter(|why_not| !engine.info.fallbacks.contains(why_not)) {
                engine.info.fallbacks.push(why_not);
            }
        }
        Ok(engine)
    }

    fn add_ring(&mut self, options: &EngineOptions, helpers: &Arc<Workers>) -> Result<(usize, Option<String>)> {
        // Room for every request that the gate lets in, and for the one file that is being closed.
        let (sender, queue) = mpsc::channel(options.queue_depth + 1);
        let (ready, is_ready) = sync_channel::bounded(1);
        let (slab, helpers) = (Arc::clone(&self.slab), Arc::clone(helpers));
        let (depth, register) = (options.queue_depth, options.register_buffers);
        let thread = std::thread::Builder::new()
            .name("freshet-ring".to_owned())
            .spawn(move || ring_thread(depth, register, slab, helpers, queue, &ready))
            .io_context(|| "start a freshet-ring thread")?;
        match is_ready.recv_timeout(Duration::from_secs(START_SECONDS)) {
            Ok(Ok(answer)) => {
                self.rings.push(sender);
                self.threads.push(thread);
                Ok(answer)
            }
            Ok(Err(error)) => Err(Error::new(ErrorKind::Unsupported, probe::no_ring(&error))),
            // The thread is stuck in the kernel: it is left behind, and ends if it ever wakes.
            Err(_) => Err(Error::new(ErrorKind::Unsupported, probe::ring_silent(START_SECONDS))),
        }
    }
}

impl DiskEngine for Uring {
    fn open(&self, path: &Path, access: Access) -> Result<FileId> {
        self.files.open(path, access)
    }

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
        })
    }

    fn submit(&self, request: Request) {
        let job = Job::admit(&self.gate, &self.files, request);
        let ring = self.next_ring.fetch_add(1, Ordering::Relaxed) % self.rings.len();
        // The gate bounds the jobs to the queue's capacity, so this fails only when the ring thread has panicked;
        // then the job is dropped, and replies that the engine failed.
        let _ = self.rings[ring].try_send(Message::Job(job));
    }

    fn file_info(&self, file: FileId) -> Result<FileInfo> {
        self.files.enter(file)?.info()
    }

    fn slab(&self) -> &Arc<Slab> {
        &self.slab
    }

    fn info(&self) -> EngineInfo {
        self.info.clone()
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // Closed queues end the threads after all that is in them.
        self.rings.clear();
        join_all(std::mem::take(&mut self.threads));
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
    // Room for an operation of each request and for closing a file, so that no submission finds the ring full.
    let entries = (depth as u32 + 1).next_power_of_two().max(64);
    let runtime = match tokio_uring::Runtime::new(tokio_uring::builder().entries(entries)) {
        Ok(runtime) => runtime,
        Err(error) => {
            // Nobody waits any more only when the start was given up.
            let _ = ready.send(Err(error));
            return;
        }
    };
    runtime.block_on(async move {
        if let Err(error) = tokio_uring::no_op().await {
            let _ = ready.send(Err(error));
            return;
        }
        let (registry, answer) = if register { register_slab(&slab) } else { (None, (0, None)) };
        if ready.send(Ok(answer)).is_ok() {
            let ring = Ring { slab, registry, helpers, files: RefCell::default() };
            serve(Rc::new(ring), depth, queue).await;
        }
    });
}

/// Registers the slab, or as much of it as one registration takes, with the ring of this thread.
fn register_slab(slab: &Arc<Slab>) -> (Option<FixedBufRegistry<View>>, (usize, Option<String>)) {
    let slots = slab.slots();
    let count = slots.min(MAX_REGISTERED);
    let registry = FixedBufRegistry::new((0..count).map(|index| {
        let (start, len) = slab.raw(index);
        View { start, len, _slab: Arc::clone(slab) }
    }));
    match registry.register() {
        Ok(()) => {
            let partly = (count < slots).then(|| probe::partly_registered(count, slots));
            (Some(registry), (count, partly))
        }
        Err(error) => (None, (0, Some(probe::not_registered(&error, count * slab.slot_size())))),
    }
}

/// Takes messages until the queue is closed and empty, then waits for what is under way.
async fn serve(ring: Rc<Ring>, depth: usize, mut queue: mpsc::Receiver<Message>) {
    let under_way = Arc::new(Semaphore::new(depth));
    while let Some(message) = queue.recv().await {
        match message {
            Message::Job(Job::Transfer(transfer, reply)) => {
                // There is room at once: the gate lets in no more than the semaphore.
                let Ok(permit) = Arc::clone(&under_way).acquire_owned().await else { return };
                let ring = Rc::clone(&ring);
                tokio_uring::spawn(async move {
                    let _permit = permit;
                    // A transfer that was lost with a helper's panic is answered by dropping the reply.
                    if let Some((transfer, result)) = ring.carry(transfer).await {
                        let (completion, _in_use) = transfer.finish(result);
                        reply.send(completion);
                    }
                });
            }
            Message::Job(refused @ Job::Refused(..)) => refused.run(),
            Message::Job(control) => ring.helpers.run(|| control.run()),
            Message::Forget(id, closed) => {
                ring.forget(id).await;
                let _ = closed.send(());
            }
        }
    }
    // An error would mean that the semaphore is closed, which nobody does.
    let _ = under_way.acquire_many(depth as u32).await;
}

/// What a ring thread works with.
struct Ring {
    slab: Arc<Slab>,
    registry: Option<FixedBufRegistry<View>>,
    helpers: Arc<Workers>,
    files: RefCell<HashMap<FileId, Rc<File>>>,
}

impl Ring {
    /// Does all of a transfer; `None` when a helper panicked and it is lost.
    async fn carry(&self, mut transfer: Transfer) -> Option<(Transfer, Result<()>)> {
        if let Err(error) = transfer.check() {
            return Some((transfer, Err(error)));
        }
        while let Some(piece) = transfer.next() {
            let moved;
            (transfer, moved) =
                if piece.direct { self.direct(transfer, piece).await } else { self.helped(transfer, piece).await? };
            if let Err(error) = transfer.advance(moved) {
                return Some((transfer, Err(error)));
            }
        }
        Some((transfer, Ok(())))
    }

    /// Does some of a piece on a helper thread.
    async fn helped(&self, mut transfer: Transfer, piece: Piece) -> Option<(Transfer, io::Result<usize>)> {
        let (sender, receiver) = oneshot::channel();
        self.helpers.run(move || {
            let moved = transfer.step(piece);
            // The receiver is gone only with the ring thread; the transfer ends here then.
            let _ = sender.send((transfer, moved));
        });
        receiver.await.ok()
    }

    /// Does some of a piece through the ring.
    async fn direct(&self, transfer: Transfer, piece: Piece) -> (Transfer, io::Result<usize>) {
        let write = transfer.is_write();
        let len = match transfer.file().judge(write, piece) {
            Ok(0) => return (transfer, Ok(0)),
            Ok(len) => len,
            Err(error) => return (transfer, Err(error)),
        };
        let file = match self.file(transfer.file()) {
            Ok(file) => file,
            Err(error) => return (transfer, Err(error)),
        };
        let (start, offset) = (transfer.position(), piece.offset);
        let registered = self.registered(transfer.slot());
        let view = View::of(transfer.slot(), start, len);
        let pinned = Pinned(Some(transfer));
        let moved = match (registered, write) {
            (Some(buffer), true) => file.write_fixed_at(buffer.slice(start..start + len), offset).await.0,
            (Some(buffer), false) => file.read_fixed_at(buffer.slice(start..start + len), offset).await.0,
            (None, true) => file.write_at(view, offset).submit().await.0,
            (None, false) => file.read_at(view, offset).await.0,
        };
        (pinned.release(), moved)
    }

    /// The registered buffer of a slot, unless it is of another slab or past the registration.
    fn registered(&self, slot: &Slot) -> Option<FixedBuf> {
        let registry = self.registry.as_ref().filter(|_| Arc::ptr_eq(slot.slab(), &self.slab))?;
        registry.check_out(slot.index())
    }

    /// This thread's file on a duplicate of the direct descriptor.
    fn file(&self, in_use: &InUse) -> io::Result<Rc<File>> {
        if let Some(file) = self.files.borrow().get(&in_use.id()) {
            return Ok(Rc::clone(file));
        }
        let direct = in_use.direct().ok_or_else(|| io::Error::other("a direct piece without a direct descriptor"))?;
        let file = Rc::new(File::from_std(direct.try_clone_to_owned()?.into()));
        self.files.borrow_mut().insert(in_use.id(), Rc::clone(&file));
        Ok(file)
    }

    /// Closes the duplicate; nothing is under way on it any more.
    async fn forget(&self, id: FileId) {
        let file = self.files.borrow_mut().remove(&id);
        if let Some(Ok(file)) = file.map(Rc::try_unwrap)
            && let Err(error) = file.close().await
        {
            // What matters was reported by the writes and the sync; the descriptor is gone either way.
            tracing::warn!("closing a duplicate descriptor: {error}");
        }
    }
}

/// A transfer whose slot the kernel may be using. See the module's head.
struct Pinned(Option<Transfer>);

impl Pinned {
    fn release(mut self) -> Transfer {
        self.0.take().expect("only release takes it, and consumes self")
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(transfer) = self.0.take() {
            transfer.abandon();
        }
    }
}

/// Memory of a slot as tokio-uring wants it. Gives no access by itself: who holds the slot decides.
struct View {
    start: *mut u8,
    len: usize,
    _slab: Arc<Slab>,
}

impl View {
    /// `len` bytes from `start` of a slot, both inside it.
    fn of(slot: &Slot, start: usize, len: usize) -> View {
        assert!(start + len <= slot.len(), "bytes {start} + {len} of a slot of {}", slot.len());
        let (base, _) = slot.slab().raw(slot.index());
        View { start: base.wrapping_add(start), len, _slab: Arc::clone(slot.slab()) }
    }
}

// SAFETY: the memory stays where it is and mapped while the slab lives, which this holds; it is initialised in full
// from the start (anonymous memory begins as zeros).
unsafe impl IoBuf for View {
    fn stable_ptr(&self) -> *const u8 {
        self.start
    }

    fn bytes_init(&self) -> usize {
        self.len
    }

    fn bytes_total(&self) -> usize {
        self.len
    }
}

// SAFETY: as above. Exclusive use while an operation is under way is kept by `Pinned`, which holds the slot.
unsafe impl IoBufMut for View {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.start
    }

    unsafe fn set_init(&mut self, _: usize) {}
}
