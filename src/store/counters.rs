//! Counts of what a site does: atomics behind [`StoreCounters`], shared by the backends.
//!
//! Relaxed order: the numbers report, nothing is decided by them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::StoreCounters;

/// The live counts of one site.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) gets: AtomicU64,
    pub(super) heads: AtomicU64,
    pub(super) puts: AtomicU64,
    pub(super) lists: AtomicU64,
    pub(super) deletes: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) hedges: AtomicU64,
    pub(super) hedges_won: AtomicU64,
    pub(super) bytes_in: AtomicU64,
    pub(super) bytes_out: AtomicU64,
}

/// Adds one.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// Adds a number of bytes.
pub(super) fn add(counter: &AtomicU64, bytes: u64) {
    counter.fetch_add(bytes, Relaxed);
}

impl Counters {
    /// The counts now.
    pub(super) fn snapshot(&self) -> StoreCounters {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        StoreCounters {
            gets: read(&self.gets),
            heads: read(&self.heads),
            puts: read(&self.puts),
            lists: read(&self.lists),
            deletes: read(&self.deletes),
            retries: read(&self.retries),
            hedges: read(&self.hedges),
            hedges_won: read(&self.hedges_won),
            bytes_in: read(&self.bytes_in),
            bytes_out: read(&self.bytes_out),
        }
    }
}
