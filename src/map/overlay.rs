//! Laying changes over extents: pure, the later change wins.

use crate::format::{Extent, FrameRef};

/// One range that a segment changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// First byte of the disk.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// The frame that holds it from its first byte on; `None` for zeros.
    pub frame: Option<FrameRef>,
}

impl Change {
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// Lays `changes`, in the order in which they were made, over sorted disjoint `extents`; the result is sorted and
/// disjoint. Takes O((n + m) log m) for n extents and m changes.
pub fn overlay(extents: &[Extent], changes: &[Change]) -> Vec<Extent> {
    let changes = last_wins(changes);
    let mut out = Vec::with_capacity(extents.len() + changes.len());
    let mut changes = changes.iter().peekable();
    for old in extents {
        let mut at = old.offset;
        while let Some(change) = changes.peek() {
            if change.offset >= old.end() {
                break;
            }
            out.extend(part(old, at, change.offset));
            if change.end() > old.end() {
                at = old.end();
                break;
            }
            at = at.max(change.end());
            out.extend(placed(change));
            changes.next();
        }
        out.extend(part(old, at, old.end()));
    }
    out.extend(changes.filter_map(placed));
    out
}

/// The changes made disjoint and sorted, each part owned by the last change that covers it. A part of a change keeps the
/// frame of the whole.
pub fn last_wins(changes: &[Change]) -> Vec<Change> {
    let sorted_disjoint = changes.windows(2).all(|w| w[0].end() <= w[1].offset);
    if sorted_disjoint {
        return changes.to_vec();
    }
    // Sweep from the last change to the first and keep of each only what no later one covers.
    let mut covered: std::collections::BTreeMap<u64, u64> = std::collections::BTreeMap::new();
    let mut out = Vec::with_capacity(changes.len());
    for change in changes.iter().rev() {
        let (mut at, end) = (change.offset, change.end());
        let before = covered.range(..=at).next_back().map(|(s, e)| (*s, *e));
        let mut merged = (at, end);
        if let Some((start, stop)) = before
            && stop >= at
        {
            at = at.max(stop);
            merged = (start, end.max(stop));
        }
        let inside: Vec<(u64, u64)> = covered.range(change.offset..end).map(|(s, e)| (*s, *e)).collect();
        for (start, stop) in inside {
            if start > at {
                out.push(clip(change, at, start));
            }
            at = at.max(stop);
            merged.1 = merged.1.max(stop);
            covered.remove(&start);
        }
        if at < end {
            out.push(clip(change, at, end));
        }
        covered.insert(merged.0, merged.1);
    }
    out.sort_unstable_by_key(|c| c.offset);
    out
}

fn clip(change: &Change, from: u64, to: u64) -> Change {
    Change { offset: from, len: to - from, frame: change.frame }
}

/// The part of `extent` in `from..to`, if any.
fn part(extent: &Extent, from: u64, to: u64) -> Option<Extent> {
    let (from, to) = (from.max(extent.offset), to.min(extent.end()));
    let len = u32::try_from(to.checked_sub(from)?).ok()?;
    (len > 0).then_some(Extent { offset: from, len, frame: extent.frame })
}

fn placed(change: &Change) -> Option<Extent> {
    let frame = change.frame?;
    Some(Extent { offset: change.offset, len: u32::try_from(change.len).ok()?, frame })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Codec, Digest, FrameBody};
    use crate::ids::{Generation, SegmentNo, SegmentRef};
    use proptest::prelude::*;

    const SIZE: usize = 64;

    fn frame(n: u64, start: u64, len: u32) -> FrameRef {
        let body = FrameBody {
            codec: Codec::Plain,
            raw_len: len,
            stored_len: len,
            stored_sum: n,
            raw_digest: Digest([0; 16]),
        };
        FrameRef { segment: SegmentRef::new(Generation::new(1), SegmentNo::new(n)), pos: 256, start, body }
    }

    /// Byte-wise: number of the segment that owns each byte, 0 for zeros.
    fn paint(model: &mut [u64; SIZE], change: &Change) {
        let value = change.frame.map_or(0, |f| f.segment.segment.get());
        model[change.offset as usize..change.end() as usize].fill(value);
    }

    proptest! {
        #[test]
        fn equals_a_model_that_paints_byte_by_byte(
            rounds in prop::collection::vec(prop::collection::vec((0..60u64, 1..20u64, any::<bool>()), 0..8), 1..5)
        ) {
            let (mut extents, mut model, mut n) = (Vec::new(), [0; SIZE], 0);
            for round in rounds {
                let changes: Vec<Change> = round.into_iter().map(|(offset, len, data)| {
                    n += 1;
                    let len = len.min(SIZE as u64 - offset);
                    Change { offset, len, frame: data.then(|| frame(n, offset, len as u32)) }
                }).collect();
                changes.iter().for_each(|c| paint(&mut model, c));
                extents = overlay(&extents, &changes);
            }
            let mut found = [0; SIZE];
            let mut at = 0;
            for e in &extents {
                prop_assert!(e.offset >= at && e.len > 0, "out of order: {extents:?}");
                prop_assert!(e.offset >= e.frame.start && e.end() <= e.frame.start + u64::from(e.frame.body.raw_len));
                at = e.end();
                found[e.offset as usize..at as usize].fill(e.frame.segment.segment.get());
            }
            prop_assert_eq!(found, model);
        }
    }
}
