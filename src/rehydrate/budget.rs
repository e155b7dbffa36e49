//! How one memory budget is divided, and what that means for a kill. Pure.
//!
//! ```text
//! memory = fetched, not decoded (1/2) + slots (1/8) + plans (1/8) + decoders, requests and the rest (1/4)
//! ```
//!
//! While a domain is followed, three quarters of the first are for segments that landed and are not applied: whole
//! segments are read from the log one after the other then, and few bytes are under way at once.
//!
//! A kill loses what is not committed to the hydration map: what is fetched or stands in a slot, and what is written but
//! not committed. Invariant: that is never more than the memory budget plus [`COMMIT_BYTES`], so that no more than this
//! can be fetched a second time. Written bytes are counted raw; stored they are fewer, or the same plus a frame header of
//! 128 bytes for each 256 KiB.

use crate::datastore::Slab;
use crate::error::Result;
use std::sync::Arc;

/// Written bytes after which a commit of the hydration map begins.
pub const COMMIT_BYTES: u64 = 64 << 20;

/// Bytes of one slot.
const SLOT_BYTES: u64 = 1 << 20;
/// Slots at least, so that all workers have one, and at most: more make no disk faster.
const SLOTS: std::ops::RangeInclusive<u64> = 8..=64;
/// Written bytes that may wait for a commit, however large the budget: more would only make a sync longer.
const MOST_UNCOMMITTED: u64 = 256 << 20;

/// Shares of a memory budget, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// What is fetched and not yet decoded.
    pub(super) fetch: u64,
    /// Of these, what segments that landed may hold while a domain is followed.
    pub(super) recent: u64,
    /// Slots that are decoded into and written from.
    slots: u64,
    /// Plans.
    pub(super) plan: u64,
    /// No memory: bytes that may be written and not committed. Work goes on while a commit is under way, up to this.
    pub(super) uncommitted: u64,
}

impl Budget {
    /// Divides `memory` bytes.
    pub(super) fn of(memory: u64) -> Budget {
        let (fetch, plan) = (memory / 2, memory / 8);
        let slots = (memory / 8 / SLOT_BYTES).clamp(*SLOTS.start(), *SLOTS.end()) * SLOT_BYTES;
        let rest = memory.saturating_sub(fetch + slots);
        let recent = fetch / 4 * 3;
        Budget { fetch, recent, slots, plan, uncommitted: (COMMIT_BYTES + rest).min(MOST_UNCOMMITTED) }
    }

    /// The slots.
    pub(super) fn slab(&self) -> Result<Arc<Slab>> {
        // Both are small, see above.
        Slab::new((self.slots / SLOT_BYTES) as usize, SLOT_BYTES as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DEFAULT_MEMORY, MIN_MEMORY};
    use super::*;

    #[test]
    fn a_kill_loses_no_more_than_the_budget_and_one_commit_distance() {
        for memory in [MIN_MEMORY, MIN_MEMORY + 4095, 100 << 20, DEFAULT_MEMORY, 4 << 30, 1 << 40] {
            let Budget { fetch, recent, slots, plan, uncommitted } = Budget::of(memory);
            assert!(fetch + slots + uncommitted <= memory + COMMIT_BYTES, "{memory}");
            assert!(fetch + slots + plan <= memory && recent < fetch, "{memory}");
            assert!(uncommitted > COMMIT_BYTES, "writing must go on while a commit is under way: {memory}");
        }
        assert_eq!(Budget::of(DEFAULT_MEMORY).uncommitted, MOST_UNCOMMITTED);
    }
}
