//! One write in flight, from before it is let through until it is known how it ended.
//!
//! Invariant: whatever becomes of the writer, the mark ends; if nobody says how, the write counts as failed.

use std::ops::Range;
use std::sync::Arc;

use crate::ids::SegmentNo;

use super::page::End;
use super::shared::Shared;

/// A write that was let through: its regions are marked, and stay so at least until this ends. Dropping it says that the
/// write failed or that its outcome is unknown.
#[must_use = "dropping it says that the write failed"]
#[derive(Debug)]
pub struct WriteMark {
    shared: Arc<Shared>,
    regions: Range<u32>,
    end: End,
}

impl WriteMark {
    /// A write to `regions` that has begun and is not let through yet.
    pub(super) fn begun(shared: Arc<Shared>, regions: Range<u32>) -> WriteMark {
        WriteMark { shared, regions, end: End::NotBegun }
    }

    /// From here on the caller may write.
    pub(super) fn let_through(&mut self) {
        self.end = End::Failed;
    }

    /// Regions that the write touches.
    pub fn regions(&self) -> Range<u32> {
        self.regions.clone()
    }

    /// It is on the local disk (done, not necessarily synced) and in the open segment, which will get the number `segment`.
    pub fn captured(mut self, segment: SegmentNo) {
        self.end = End::Captured(segment);
    }

    /// It is on the local disk and not in the chain: its regions are unsynced.
    pub fn uncaptured(mut self) {
        self.end = End::Uncaptured;
    }

    /// It failed, or its outcome is not known: its regions are unsynced. The same as dropping this.
    pub fn failed(self) {}
}

impl Drop for WriteMark {
    fn drop(&mut self) {
        self.shared.end(self.regions.clone(), self.end);
    }
}
