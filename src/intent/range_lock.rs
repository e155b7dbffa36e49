//! Exclusive use of byte ranges of one disk: overlapping ones one after the other in the order in which they came,
//! disjoint ones never wait for each other.
//!
//! It serialises overlapping writes from disk I/O to capture, and the reads of initial sync and resync against them;
//! without it the chain and the disk could disagree. The number of holders and waiters is bounded by the callers; taking
//! and letting go look at each of them once.
//!
//! Invariant: a request is granted when, and only when, no request that came before it and overlaps it is left. So nobody
//! starves: a wide request that waits is not overtaken by narrow ones that come later.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The lock of one disk. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct RangeLock {
    queue: Arc<Mutex<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    /// In order of arrival.
    requests: Vec<Request>,
    next: u64,
}

#[derive(Debug)]
struct Request {
    ticket: u64,
    range: Range<u64>,
    /// Earlier requests that overlap it and are left.
    before: usize,
    /// Told when there are none left.
    waits: Option<oneshot::Sender<()>>,
}

impl Request {
    fn overlaps(&self, range: &Range<u64>) -> bool {
        self.range.start.max(range.start) < self.range.end.min(range.end)
    }
}

impl Queue {
    fn enter(&mut self, range: Range<u64>) -> (u64, Option<oneshot::Receiver<()>>) {
        let ticket = self.next;
        self.next += 1;
        let before = self.requests.iter().filter(|r| r.overlaps(&range)).count();
        let (waits, told) = match before {
            0 => (None, None),
            _ => {
                let (sender, receiver) = oneshot::channel();
                (Some(sender), Some(receiver))
            }
        };
        self.requests.push(Request { ticket, range, before, waits });
        (ticket, told)
    }

    /// Whoever it was, granted or not, goes; those behind it that waited for it alone are granted.
    fn leave(&mut self, ticket: u64) {
        let Some(at) = self.requests.iter().position(|r| r.ticket == ticket) else { return };
        let gone = self.requests.remove(at);
        for later in self.requests[at..].iter_mut().filter(|r| r.overlaps(&gone.range)) {
            later.before -= 1;
            if later.before == 0
                && let Some(waits) = later.waits.take()
            {
                // A receiver that is gone leaves the queue by itself.
                let _ = waits.send(());
            }
        }
    }
}

impl RangeLock {
    /// Nothing is locked.
    pub fn new() -> RangeLock {
        RangeLock::default()
    }

    /// Waits until `range` is free of all that came before, and takes it. An empty range overlaps nothing. Dropping the
    /// future gives its place in the queue back.
    pub async fn lock(&self, range: Range<u64>) -> RangeGuard {
        let (ticket, told) = self.queue().enter(range.clone());
        // From here on the place is given back whatever happens.
        let guard = RangeGuard { lock: self.clone(), ticket, range };
        if let Some(told) = told {
            // The sender is in the queue until it is used: only that ends this.
            let _ = told.await;
        }
        guard
    }

    /// Takes `range` if nothing that came before overlaps it.
    pub fn try_lock(&self, range: Range<u64>) -> Option<RangeGuard> {
        let mut queue = self.queue();
        if queue.requests.iter().any(|r| r.overlaps(&range)) {
            return None;
        }
        let (ticket, _) = queue.enter(range.clone());
        Some(RangeGuard { lock: self.clone(), ticket, range })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A range that is locked as long as this lives.
#[must_use = "dropping it unlocks the range"]
#[derive(Debug)]
pub struct RangeGuard {
    lock: RangeLock,
    ticket: u64,
    range: Range<u64>,
}

impl RangeGuard {
    /// What is locked.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        self.lock.queue().leave(self.ticket);
    }
}
