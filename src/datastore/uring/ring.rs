//! One io_uring and what moves through it: the only file that names tokio-uring.
//!
//! Owns a ring on the thread that made it, by [`run`], and carries transfers over it: the aligned pieces go to the
//! kernel; everything that would stall the thread (odd heads and tails, files without direct I/O) goes to helper
//! threads.
//!
//! # Memory that the kernel uses
//!
//! A slot under way sits in a [`Pinned`] until the kernel has answered. Dropping a future does not take an operation
//! back from the kernel, so a `Pinned` that is dropped with an operation under way gives its slot up for ever rather
//! than let it be used again; where nothing panics no such future is dropped, as a ring ends only after its last
//! operation.
//!
//! # Descriptors
//!
//! tokio-uring's file is not `Send`, so each ring keeps one of its own for each open file, on a duplicate of the direct
//! descriptor, made at the first use and closed before the engine's `close` is done.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio_uring::buf::fixed::{FixedBuf, FixedBufRegistry};
use tokio_uring::buf::{BoundedBuf, IoBuf, IoBufMut};
use tokio_uring::fs::File;

use super::super::engine::FileId;
use super::super::file::Piece;
use super::super::job::Reply;
use super::super::probe;
use super::super::slab::{Slab, Slot};
use super::super::table::InUse;
use super::super::transfer::Transfer;
use super::super::workers::Workers;
use crate::error::Result;

/// Most buffers in one registration (UIO_MAXIOV, in the kernel and in tokio-uring).
const MAX_REGISTERED: usize = 1024;

/// Runs the future that `work` makes, on this thread, with a ring that takes `depth` operations at once.
///
/// # Errors
/// Why the kernel gives no ring, with the work, which was not begun.
pub(super) fn run<W, F>(depth: usize, work: W) -> Result<F::Output, (io::Error, W)>
where
    W: FnOnce() -> F,
    F: Future,
{
    // Room for an operation of each request and for closing a file, so that no submission finds the ring full.
    let entries = (depth as u32 + 1).next_power_of_two().max(64);
    match tokio_uring::Runtime::new(tokio_uring::builder().entries(entries)) {
        Ok(runtime) => Ok(runtime.block_on(work())),
        Err(error) => Err((error, work)),
    }
}

/// Runs a future beside the others of this thread's ring, until that ends.
pub(super) fn beside(work: impl Future<Output = ()> + 'static) -> tokio::task::JoinHandle<()> {
    tokio_uring::spawn(work)
}

/// Asks the kernel for one operation, to see that it answers.
pub(super) async fn try_out() -> io::Result<()> {
    tokio_uring::no_op().await
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

/// What moves bytes on the thread of a ring.
pub(super) struct Ring {
    slab: Arc<Slab>,
    registry: Option<FixedBufRegistry<View>>,
    helpers: Arc<Workers>,
    files: RefCell<HashMap<FileId, Rc<File>>>,
}

impl Ring {
    /// A ring that knows no buffers: the kernel looks up the pages of each operation.
    pub(super) fn plain(slab: Arc<Slab>, helpers: Arc<Workers>) -> Rc<Ring> {
        Rc::new(Ring { slab, registry: None, helpers, files: RefCell::default() })
    }

    /// A ring with the slab registered, one buffer for each slot; how many slots, and why not all.
    pub(super) fn registered(slab: Arc<Slab>, helpers: Arc<Workers>) -> (Rc<Ring>, (usize, Option<String>)) {
        let (registry, answer) = register_slab(&slab);
        (Rc::new(Ring { slab, registry, helpers, files: RefCell::default() }), answer)
    }

    /// Carries a transfer beside whatever else the thread does, and replies; `permit` is held until then.
    pub(super) fn begin(self: &Rc<Self>, transfer: Transfer, reply: Reply, permit: OwnedSemaphorePermit) {
        let ring = Rc::clone(self);
        tokio_uring::spawn(async move {
            let _permit = permit;
            // A transfer that was lost with a helper's panic is answered by dropping the reply.
            if let Some((transfer, result)) = ring.carry(transfer).await {
                let (completion, _in_use) = transfer.finish(result);
                reply.send(completion);
            }
        });
    }

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
        let registered = self.registered_buffer(transfer.slot());
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

    /// The registered buffer of a slot, unless there are none, it is of another slab or past the registration.
    fn registered_buffer(&self, slot: &Slot) -> Option<FixedBuf> {
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

    /// Closes all duplicates; nothing is under way on them any more.
    pub(super) async fn forget_all(&self) {
        let ids: Vec<FileId> = self.files.borrow().keys().copied().collect();
        for id in ids {
            self.forget(id).await;
        }
    }

    /// Closes the duplicate; nothing is under way on it any more.
    pub(super) async fn forget(&self, id: FileId) {
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
