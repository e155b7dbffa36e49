//! What memory knows of the regions of one bitmap page, and every step that changes it. Pure; regions count from the
//! page's first.
//!
//! Invariants: what is marked is set; what is unsynced is set; a region that is set and not unsynced has an entry, and so
//! has one with a write in flight or captured. See the module's head for what the three sets mean and why.

use std::collections::HashMap;
use std::ops::Range;

use crate::ids::SegmentNo;

use super::bits::Bits;
use super::rule::{Clause, Rule};

/// A region that was written.
#[derive(Debug, Clone, Default)]
struct Region {
    /// Writes that began and did not end.
    in_flight: u32,
    /// Writes that ever began; wraps.
    begun: u32,
    /// Calls of `clear_accepted` since the last write began.
    quiet: u32,
    /// Highest segment that a write to it, or its resync, was captured in.
    last: SegmentNo,
}

impl Region {
    /// Whether nothing but a sync of the disk stands between it and its clearing.
    fn may_clear(&self, unsynced: bool, accepted: SegmentNo, rule: &Rule) -> bool {
        rule.demands(Clause::NothingInFlight, self.in_flight == 0)
            && rule.demands(Clause::NotUnsynced, !unsynced)
            && rule.demands(Clause::Accepted, self.last <= accepted)
    }
}

/// How a write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It is on the disk and in the segment of this number.
    Captured(SegmentNo),
    /// It is on the disk and not in the chain.
    Uncaptured,
    /// It failed, or nobody knows.
    Failed,
    /// It was never let through.
    NotBegun,
}

/// A region that may be cleared once the disk is synced, and how many writes had begun when that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    region: u32,
    begun: u32,
}

/// The regions of one page.
#[derive(Debug)]
pub(super) struct Page {
    set: Bits,
    marked: Bits,
    unsynced: Bits,
    regions: HashMap<u32, Region>,
    /// Whether `set` differs from what was committed last.
    changed: bool,
    rule: Rule,
}

impl Page {
    /// As the file says, durably: everything that is set is unsynced, since what became of it is not known.
    pub(super) fn opened(set: Bits, rule: Rule) -> Page {
        Page { marked: set.clone(), unsynced: set.clone(), set, regions: HashMap::new(), changed: false, rule }
    }

    /// A write to `regions` begins: they are set, and it is in flight. Whether all are marked, so that it may go on.
    pub(super) fn begin(&mut self, regions: Range<u32>) -> bool {
        let mut marked = true;
        for n in regions {
            let region = self.regions.entry(n).or_default();
            region.in_flight = region.in_flight.saturating_add(1);
            region.begun = region.begun.wrapping_add(1);
            region.quiet = 0;
            marked &= self.marked.has(n);
            self.changed |= self.set.insert(n);
        }
        self.rule.demands(Clause::MarkedFirst, marked)
    }

    /// Whether all of `regions` are marked.
    pub(super) fn is_marked(&self, mut regions: Range<u32>) -> bool {
        regions.all(|n| self.marked.has(n))
    }

    /// A write to `regions` ends.
    pub(super) fn end(&mut self, regions: Range<u32>, end: End) {
        let unsynced = match end {
            End::Captured(_) | End::NotBegun => false,
            End::Uncaptured => !self.rule.lacks(Clause::UncapturedStaysSet),
            End::Failed => !self.rule.lacks(Clause::FailedStaysSet),
        };
        for n in regions {
            let region = self.regions.entry(n).or_default();
            region.in_flight = region.in_flight.saturating_sub(1);
            if let End::Captured(segment) = end {
                region.last = region.last.max(segment);
            }
            if unsynced {
                self.unsynced.insert(n);
            }
            self.forget_if_said(n);
        }
    }

    /// Drops the entry of a region of which it says no more than that it is unsynced.
    fn forget_if_said(&mut self, n: u32) {
        let says_nothing = |region: &Region| region.in_flight == 0 && region.last == SegmentNo::ZERO;
        if self.unsynced.has(n) && self.regions.get(&n).is_some_and(says_nothing) {
            self.regions.remove(&n);
        }
    }

    /// Region `n` was read back and captured in `segment`.
    pub(super) fn synced(&mut self, n: u32, segment: SegmentNo) {
        if self.unsynced.remove(n) {
            let region = self.regions.entry(n).or_default();
            region.last = region.last.max(segment);
        }
    }

    /// Segments after `last` never come into the chain: what was captured in them is unsynced. How many regions became so.
    pub(super) fn lost_after(&mut self, last: SegmentNo) -> u32 {
        let hit = self.regions.iter_mut().filter(|(_, region)| region.last > last);
        let (mut became, mut hits) = (0, Vec::new());
        for (n, region) in hit {
            region.last = SegmentNo::ZERO;
            became += u32::from(self.unsynced.insert(*n));
            hits.push(*n);
        }
        hits.into_iter().for_each(|n| self.forget_if_said(n));
        became
    }

    /// Regions to clear once the disk is synced: those that may, and were quiet for more than `quiet_calls` calls of this.
    pub(super) fn candidates(&mut self, accepted: SegmentNo, quiet_calls: u32) -> Vec<Candidate> {
        let mut found = Vec::new();
        for (n, region) in &mut self.regions {
            if !region.may_clear(self.unsynced.has(*n), accepted, &self.rule) {
                continue;
            }
            region.quiet = region.quiet.saturating_add(1);
            if region.quiet > quiet_calls {
                found.push(Candidate { region: *n, begun: region.begun });
            }
        }
        found
    }

    /// Clears those candidates that nothing happened to since; the disk was synced meanwhile. How many.
    pub(super) fn clear(&mut self, candidates: &[Candidate], accepted: SegmentNo) -> u32 {
        let mut cleared = 0;
        for Candidate { region: n, begun } in candidates {
            let Some(region) = self.regions.get(n) else { continue };
            let untouched = region.begun == *begun;
            let still = untouched && region.may_clear(self.unsynced.has(*n), accepted, &self.rule);
            if !self.rule.demands(Clause::LookedAtAgain, still) {
                continue;
            }
            self.regions.remove(n);
            self.changed |= self.set.remove(*n);
            self.unsynced.remove(*n);
            if !self.rule.lacks(Clause::ClearedIsUnmarked) {
                self.marked.remove(*n);
            }
            cleared += 1;
        }
        cleared
    }

    /// The disk is proved to hold what the chain has: clears every region that nothing was written to, or is being, since
    /// this was opened. How many.
    pub(super) fn proven(&mut self) -> u32 {
        let (mut cleared, mut next) = (0, self.set.next(0));
        while let Some(n) = next {
            next = self.set.next(n + 1);
            if self.regions.contains_key(&n) {
                continue;
            }
            self.changed |= self.set.remove(n);
            self.unsynced.remove(n);
            self.marked.remove(n);
            cleared += 1;
        }
        cleared
    }

    /// What a commit has to write; `None` where nothing changed since the last one.
    pub(super) fn take_changes(&mut self) -> Option<Bits> {
        std::mem::take(&mut self.changed).then(|| self.set.clone())
    }

    /// `written` is in the file, durably, and nothing else has been written since.
    pub(super) fn committed(&mut self, written: Bits) {
        self.marked = written;
        if !self.rule.lacks(Clause::MarkWhatIsSet) {
            self.marked.keep(&self.set);
        }
    }

    /// Regions that are set.
    pub(super) fn set(&self) -> &Bits {
        &self.set
    }

    /// Regions whose content the chain may lack.
    pub(super) fn unsynced(&self) -> &Bits {
        &self.unsynced
    }
}
