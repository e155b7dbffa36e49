//! Which granules of a page differ between two maps, and what of a page is needed. Pure.

use std::collections::BTreeMap;

use roaring::RoaringBitmap;

use crate::format::{Digest, Extent, GRANULE, PAGE_SPAN};

/// Granules of one page.
pub(super) const PER_PAGE: u64 = PAGE_SPAN / GRANULE;

/// What identifies the content of a part of a granule.
type Content = (u64, u64, u64, Digest);

/// Content of each granule that any extent touches: where, how long, which part of which raw bytes.
fn by_granule(extents: &[Extent]) -> BTreeMap<u32, Vec<Content>> {
    let mut out: BTreeMap<u32, Vec<Content>> = BTreeMap::new();
    for e in extents {
        for (granule, from, to) in granule_ranges(e.offset, e.end()) {
            let skip = from - e.frame.start;
            out.entry(granule).or_default().push((from, to - from, skip, e.frame.body.raw_digest));
        }
    }
    out
}

/// The granules that `from..to` touches, with the part in each.
pub(super) fn granule_ranges(from: u64, to: u64) -> impl Iterator<Item = (u32, u64, u64)> {
    (from / GRANULE..to.div_ceil(GRANULE))
        .map(move |g| (u32::try_from(g).unwrap_or(u32::MAX), from.max(g * GRANULE), to.min((g + 1) * GRANULE)))
}

/// Granules whose content is not surely the same.
pub(super) fn differing(old: &[Extent], new: &[Extent]) -> RoaringBitmap {
    let (old, new) = (by_granule(old), by_granule(new));
    let changed = new.iter().filter(|(g, content)| old.get(g) != Some(content)).map(|(g, _)| *g);
    let gone = old.keys().filter(|g| !new.contains_key(g)).copied();
    changed.chain(gone).collect()
}

/// What is needed of one page.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Needed {
    /// Live parts in missing granules.
    pub(super) extents: Vec<Extent>,
    /// Ranges in missing granules that must be zero.
    pub(super) zeros: Vec<(u64, u64)>,
    /// Missing granules without any live part.
    pub(super) empty: Vec<u32>,
    /// Live bytes in granules that are not missing.
    pub(super) kept: u64,
}

/// Of the extents of the range `span` of a disk, what lies in `missing` granules.
pub(super) fn needed(extents: &[Extent], missing: &RoaringBitmap, span: std::ops::Range<u64>) -> Needed {
    let mut out = Needed::default();
    for e in extents {
        let mut open: Option<(u64, u64)> = None;
        for (granule, from, to) in granule_ranges(e.offset, e.end()) {
            if !missing.contains(granule) {
                out.kept += to - from;
                out.extents.extend(open.take().map(|r| clip(e, r)));
            } else if let Some((_, end)) = &mut open {
                *end = to;
            } else {
                open = Some((from, to));
            }
        }
        out.extents.extend(open.map(|r| clip(e, r)));
    }
    let mut live = out.extents.iter().peekable();
    for (granule, from, to) in granule_ranges(span.start, span.end) {
        if !missing.contains(granule) {
            continue;
        }
        let mut at = from;
        while let Some(e) = live.peek() {
            if e.offset >= to {
                break;
            }
            push_zeros(&mut out.zeros, at, e.offset.max(at));
            at = e.end().max(at);
            if e.end() > to {
                break;
            }
            live.next();
        }
        if at == from {
            out.empty.push(granule);
        }
        push_zeros(&mut out.zeros, at, to);
    }
    out
}

fn clip(e: &Extent, (from, to): (u64, u64)) -> Extent {
    // A part of an extent is no longer than the extent.
    Extent { offset: from, len: u32::try_from(to - from).unwrap_or(u32::MAX), frame: e.frame }
}

fn push_zeros(zeros: &mut Vec<(u64, u64)>, from: u64, to: u64) {
    if from >= to {
        return;
    }
    match zeros.last_mut() {
        Some((_, end)) if *end == from => *end = to,
        _ => zeros.push((from, to)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Codec, FrameBody, FrameRef};
    use crate::ids::SegmentRef;

    fn extent(offset: u64, len: u32, digest: u8) -> Extent {
        let start = offset / (1 << 20) * (1 << 20);
        let body = FrameBody {
            codec: Codec::Plain,
            raw_len: 1 << 20,
            stored_len: 1 << 20,
            stored_sum: 0,
            raw_digest: Digest([digest; 16]),
        };
        Extent { offset, len, frame: FrameRef { segment: SegmentRef::default(), pos: 256, start, body } }
    }

    #[test]
    fn only_granules_with_other_bytes_differ() {
        let g = GRANULE;
        let old = [extent(0, 1 << 19, 1), extent(1 << 20, 4096, 2), extent(5 << 20, 4096, 3)];
        let new = [extent(0, 1 << 19, 1), extent(1 << 20, 8192, 2), extent(9 << 20, 4096, 3)];
        let expected: RoaringBitmap = [(1 << 20) / g, (5 << 20) / g, (9 << 20) / g].map(|n| n as u32).into();
        assert_eq!(differing(&old, &new), expected);
        assert!(differing(&old, &old).is_empty());
        let other = [extent(0, 1 << 19, 9)];
        assert_eq!(differing(&old[..1], &other).len(), 2);
    }

    #[test]
    fn needed_splits_live_zero_and_kept() {
        let g = GRANULE;
        // One extent over granules 0..4, one inside granule 5; 1 and 2 are there already, 6 is empty.
        let extents = [extent(0, 1 << 20, 1), extent(5 * g + 4096, 4096, 2)];
        let missing: RoaringBitmap = [0, 3, 4, 5, 6].into();
        let got = needed(&extents, &missing, 0..7 * g - 100);
        let parts: Vec<(u64, u64)> = got.extents.iter().map(|e| (e.offset, e.end())).collect();
        assert_eq!(parts, [(0, g), (3 * g, 4 * g), (5 * g + 4096, 5 * g + 8192)]);
        assert_eq!(got.zeros, [(4 * g, 5 * g + 4096), (5 * g + 8192, 7 * g - 100)]);
        assert_eq!(got.empty, [4, 6]);
        assert_eq!(got.kept, 2 * g);
    }
}
