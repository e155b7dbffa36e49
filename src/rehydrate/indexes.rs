//! Indexes of segments that landed in this run and are not applied: applying would read whole segments for them otherwise.
//!
//! A help only: what is not here is read from the log. Bounded by entries; the first ones are kept, since they are applied
//! first.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::format::Index;
use crate::ids::{SegmentNo, SegmentRef};

/// Most entries of all indexes that are kept, at about a hundred bytes each.
const MAX_ENTRIES: usize = 256 << 10;

/// See the module.
#[derive(Default)]
pub(super) struct Indexes {
    kept: BTreeMap<SegmentNo, Arc<Index>>,
    entries: usize,
}

impl Indexes {
    /// Keeps one, as far as there is room.
    pub(super) fn keep(&mut self, index: Index) {
        let entries = index.entries.len() + 1;
        if self.entries + entries <= MAX_ENTRIES && !self.kept.contains_key(&index.segment.segment) {
            self.entries += entries;
            self.kept.insert(index.segment.segment, Arc::new(index));
        }
    }

    /// That of this very segment.
    pub(super) fn get(&self, segment: SegmentRef) -> Option<Arc<Index>> {
        self.kept.get(&segment.segment).filter(|index| index.segment == segment).cloned()
    }

    /// Forgets those up to `applied`.
    pub(super) fn trim(&mut self, applied: SegmentNo) {
        while let Some(first) = self.kept.first_entry().filter(|first| *first.key() <= applied) {
            self.entries -= first.remove().entries.len() + 1;
        }
    }

    /// Forgets all: another history landed.
    pub(super) fn clear(&mut self) {
        *self = Indexes::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::IndexEntry;
    use crate::ids::{DomainId, Generation};

    fn index(generation: u64, n: u64, entries: usize) -> Index {
        let entry = IndexEntry { disk: 0, offset: 0, len: 512, frame: None };
        Index {
            domain: DomainId::default(),
            segment: SegmentRef::new(Generation::new(generation), SegmentNo::new(n)),
            parent: SegmentRef::default(),
            parent_digest: Default::default(),
            disks: Vec::new(),
            entries: vec![entry; entries],
            point: None,
            catalogue: None,
        }
    }

    #[test]
    fn the_first_ones_are_kept_and_only_the_very_segment_is_given_out() {
        let mut kept = Indexes::default();
        kept.keep(index(1, 1, 10));
        kept.keep(index(1, 2, MAX_ENTRIES - 12));
        kept.keep(index(1, 3, 0));
        let at = |generation, n| SegmentRef::new(Generation::new(generation), SegmentNo::new(n));
        assert!(kept.get(at(1, 1)).is_some() && kept.get(at(1, 2)).is_some() && kept.get(at(1, 3)).is_none());
        assert!(kept.get(at(2, 1)).is_none());
        kept.trim(SegmentNo::new(1));
        kept.keep(index(1, 3, 0));
        assert!(kept.get(at(1, 1)).is_none() && kept.get(at(1, 3)).is_some());
        kept.clear();
        assert!(kept.get(at(1, 2)).is_none());
        kept.keep(index(1, 4, MAX_ENTRIES - 1));
        assert!(kept.get(at(1, 4)).is_some());
    }
}
