//! Lanes: threads that run somebody's work on a ring of their own, and carry the small transfers of that work themselves.
//!
//! A request that goes to a ring thread and back wakes two threads, which costs more than a small transfer on a fast
//! disk. On a lane it wakes none. Large transfers still go to the ring threads, whose buffers are registered, and so
//! that the work goes on meanwhile.
//!
//! Owns the lane of the current thread, and the list of lanes, which closing a file goes through. Invariants: a lane
//! ends only after its last transfer; it has closed its duplicate of a file before whoever closes the file is told; a
//! thread with a lane never waits for another one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam::channel as sync_channel;
use tokio::sync::{Semaphore, mpsc};

use super::super::engine::{DrivenWork, FileId, Op, Request};
use super::super::job::Job;
use super::super::table::Files;
use super::ring::{self, Ring};

/// Longest transfer in bytes that a lane carries.
const LONGEST: usize = 128 << 10;

/// Most transfers that a lane carries at once; what is more goes to the ring threads.
const DEPTH: usize = 128;

thread_local! {
    /// The lane of this thread while it runs work.
    static HERE: RefCell<Option<Lane>> = const { RefCell::new(None) };
}

struct Lane {
    lanes: Arc<Lanes>,
    ring: Rc<Ring>,
    under_way: Arc<Semaphore>,
}

/// The lanes of one engine.
#[derive(Debug, Default)]
pub(super) struct Lanes(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    last: u64,
    queues: BTreeMap<u64, mpsc::Sender<Forget>>,
}

/// Close the duplicate of this file, then say so.
type Forget = (FileId, sync_channel::Sender<()>);

impl Lanes {
    fn lock(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no lane has a duplicate of `file`, which nobody uses any more. One caller at a time.
    pub(super) fn forget(&self, file: FileId) {
        // Without the lock while waiting: a lane that ends takes it.
        let queues: Vec<_> = self.lock().queues.values().cloned().collect();
        for queue in queues {
            let (closed, is_closed) = sync_channel::bounded(1);
            if queue.try_send((file, closed)).is_ok() {
                // An error means that the lane has ended, and closed what it had before.
                let _ = is_closed.recv();
            }
        }
    }
}

/// Place of a lane on the list; given up on drop.
struct Listed {
    lanes: Arc<Lanes>,
    id: u64,
}

impl Listed {
    fn new(lanes: &Arc<Lanes>) -> (Listed, mpsc::Receiver<Forget>) {
        let (sender, receiver) = mpsc::channel(1);
        let mut list = lanes.lock();
        list.last += 1;
        let id = list.last;
        list.queues.insert(id, sender);
        (Listed { lanes: Arc::clone(lanes), id }, receiver)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.lanes.lock().queues.remove(&self.id);
    }
}

/// Makes the thread a lane until it is dropped.
struct Open;

impl Open {
    fn new(lane: Lane) -> Open {
        HERE.set(Some(lane));
        Open
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        HERE.take();
    }
}

/// Whether this thread is a lane, of whichever engine.
pub(super) fn is_here() -> bool {
    HERE.with_borrow(Option::is_some)
}

/// Begins to carry `request` if this thread is a lane of `lanes` and it is one for a lane; else gives it back.
pub(super) fn carry(lanes: &Arc<Lanes>, files: &Files, request: Request) -> Option<Request> {
    let (Op::Read { ref range, .. } | Op::Write { ref range, .. }) = request.op else { return Some(request) };
    if range.len() > LONGEST {
        return Some(request);
    }
    let place = HERE.with_borrow(|here| {
        let lane = here.as_ref().filter(|lane| Arc::ptr_eq(&lane.lanes, lanes))?;
        let permit = Arc::clone(&lane.under_way).try_acquire_owned().ok()?;
        Some((Rc::clone(&lane.ring), permit))
    });
    let Some((ring, permit)) = place else { return Some(request) };
    match Job::without_gate(files, request) {
        Job::Transfer(transfer, reply) => ring.begin(transfer, reply, permit),
        // Not from here: who submits may hold what its callback wants.
        refused => drop(ring::beside(async move { refused.run() })),
    }
    None
}

/// Runs `work` on this thread with a lane beside it, until both are done.
///
/// # Errors
/// Why there is no ring, with the work, which was not begun.
pub(super) fn drive(
    lanes: &Arc<Lanes>,
    ring: impl FnOnce() -> Rc<Ring>,
    work: DrivenWork,
) -> Result<(), (io::Error, DrivenWork)> {
    let mut work = Some(work);
    let run = || {
        let (work, ring) = (work.take(), ring());
        async move {
            let under_way = Arc::new(Semaphore::new(DEPTH));
            let (listed, forgets) = Listed::new(lanes);
            let letting_go = ring::beside(let_go(Rc::clone(&ring), forgets));
            let lane = Lane { lanes: Arc::clone(lanes), ring: Rc::clone(&ring), under_way: Arc::clone(&under_way) };
            let open = Open::new(lane);
            if let Some(work) = work {
                work().await;
            }
            drop(open);
            // An error would mean that the semaphore is closed, which nobody does.
            let _ = under_way.acquire_many(DEPTH as u32).await;
            drop(listed);
            ring.forget_all().await;
            // Whoever still waits to be told is told by this.
            letting_go.abort();
        }
    };
    ring::run(DEPTH, run).map_err(|(error, _)| error).map_err(|error| {
        let work = work.take().expect("work that was not begun is still here");
        (error, work)
    })
}

/// Closes duplicates as they are asked for.
async fn let_go(ring: Rc<Ring>, mut forgets: mpsc::Receiver<Forget>) {
    while let Some((file, closed)) = forgets.recv().await {
        ring.forget(file).await;
        // Nobody waits any more only when that thread is gone.
        let _ = closed.send(());
    }
}
