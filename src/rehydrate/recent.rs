//! Segments that have just landed, kept in memory until they are applied, so that the log's disk need not be read for them.
//!
//! ```text
//! verified segment --append--> log         applying takes it from here, else from the log, else from the storage site
//!                  '--copy, while there is room--> kept
//! ```
//!
//! A help only: nothing depends on what is kept, and what is taken out is verified frame by frame like anything else.
//! Bounded by a share of the memory budget, which the pipeline has the less meanwhile. The first ones are kept, since they
//! are applied first. It copies: what came from the storage site may be a small part of a large buffer.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::ids::{SegmentNo, SegmentRef};

/// See the module.
#[derive(Default)]
pub(super) struct Recent {
    limit: u64,
    shared: Mutex<Shared>,
}

#[derive(Default)]
struct Shared {
    kept: BTreeMap<SegmentNo, (SegmentRef, Bytes)>,
    bytes: u64,
}

impl Recent {
    /// Keeps up to `limit` bytes.
    pub(super) fn new(limit: u64) -> Recent {
        Recent { limit, shared: Mutex::default() }
    }

    /// Most bytes that are kept.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes that are kept now.
    pub(super) fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a segment, as far as there is room.
    pub(super) fn keep(&self, segment: SegmentRef, parts: &[Bytes]) {
        let len: usize = parts.iter().map(Bytes::len).sum();
        let fits = |shared: &Shared| shared.bytes + len as u64 <= self.limit;
        if !fits(&self.lock()) {
            return;
        }
        // Outside the lock: it may be many megabytes. Only one lander keeps, so that there is room still.
        let mut whole = Vec::with_capacity(len);
        parts.iter().for_each(|part| whole.extend_from_slice(part));
        let mut shared = self.lock();
        if let Some((_, before)) = shared.kept.insert(segment.segment, (segment, whole.into())) {
            shared.bytes -= before.len() as u64;
        }
        shared.bytes += len as u64;
    }

    /// Takes out this very segment.
    pub(super) fn take(&self, segment: SegmentRef) -> Option<Bytes> {
        let mut shared = self.lock();
        shared.kept.get(&segment.segment).filter(|(id, _)| *id == segment)?;
        let (_, whole) = shared.kept.remove(&segment.segment)?;
        shared.bytes -= whole.len() as u64;
        Some(whole)
    }

    /// Forgets those up to `applied`.
    pub(super) fn trim(&self, applied: SegmentNo) {
        let mut shared = self.lock();
        while let Some(first) = shared.kept.first_entry().filter(|first| *first.key() <= applied) {
            let (_, whole) = first.remove();
            shared.bytes -= whole.len() as u64;
        }
    }

    /// Forgets all: another history landed, or nobody follows any more.
    pub(super) fn clear(&self) {
        *self.lock() = Shared::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Generation;

    fn at(generation: u64, n: u64) -> SegmentRef {
        SegmentRef::new(Generation::new(generation), SegmentNo::new(n))
    }

    #[test]
    fn the_first_ones_are_kept_within_the_limit_and_only_the_very_segment_is_given_out() {
        let recent = Recent::new(10);
        let parts = |len: usize| [Bytes::from(vec![7; len - 1]), Bytes::from(vec![8])];
        recent.keep(at(1, 1), &parts(4));
        recent.keep(at(1, 2), &parts(6));
        recent.keep(at(1, 3), &parts(1));
        assert_eq!((recent.take(at(1, 3)), recent.take(at(2, 1))), (None, None));
        assert_eq!(recent.take(at(1, 1)).as_deref(), Some(&[7, 7, 7, 8][..]));
        assert_eq!(recent.take(at(1, 1)), None);
        assert_eq!(recent.bytes(), 6);
        recent.keep(at(1, 4), &parts(4));
        // The same number of another history takes its place.
        recent.trim(SegmentNo::new(2));
        recent.keep(at(2, 4), &parts(6));
        assert_eq!((recent.take(at(1, 4)), recent.take(at(2, 4)).map(|whole| whole.len())), (None, Some(6)));
        recent.keep(at(1, 5), &parts(10));
        recent.clear();
        recent.keep(at(1, 6), &parts(10));
        assert!(recent.take(at(1, 6)).is_some());
    }
}
