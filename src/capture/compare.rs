//! What of a piece of a disk must be shipped: its bytes now, against what the map says was shipped before.
//!
//! Pure. Works on grid blocks of [`GRID`] bytes. A block whose live extents are whole frames with the digests of the
//! bytes that stand there now, and which is zero elsewhere, is unchanged. Of any other block all frames that are not
//! in the map already are shipped, and what was live and is zero now becomes a zero entry.
//!
//! Invariants: frames begin at multiples of 4 KiB and never cross the grid; after a block's changes are applied its
//! live extents are whole frames, so that the next comparison can tell what is unchanged by digests alone.

use std::iter::Peekable;
use std::ops::Range;

use crate::format::{Extent, xxh3_128};

use super::zeros::{PIECE, is_zero, nonzero_runs};

/// Bytes of a grid block: the most that one frame of an initial sync covers. 256 KiB keep decoding at full speed
/// (smaller frames cost a third of it), while a change of one byte ships no more than that.
pub(crate) const GRID: u64 = 256 << 10;

/// Zeros of at least this many bytes are not shipped within a frame but separate two of them; fewer cost less as
/// compressed zeros than as another frame header and index entry.
const MIN_GAP: usize = 4 * PIECE;

/// One thing to ship.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// A frame of the bytes that stand there.
    Data { offset: u64, len: u64 },
    /// A range that was live and is zero.
    Zeros { offset: u64, len: u64 },
}

/// Compares pieces; keeps its lists between them. One per thread.
#[derive(Debug, Default)]
pub(crate) struct Comparer {
    runs: Vec<Range<usize>>,
    same: Vec<bool>,
}

impl Comparer {
    /// Compares `bytes`, which stand at `offset` of the disk (a multiple of [`GRID`]), with `extents`: those of the
    /// map that overlap them, sorted and disjoint. Appends what must be shipped to `out`, and answers with the bytes
    /// that are live now.
    pub(crate) fn compare(&mut self, offset: u64, bytes: &[u8], extents: &[Extent], out: &mut Vec<Change>) -> u64 {
        self.same.clear();
        self.same.extend(extents.iter().map(|e| is_same(offset, bytes, e)));
        let mut live = 0;
        let mut rest = 0..extents.len();
        for (i, block) in bytes.chunks(GRID as usize).enumerate() {
            let start = offset + i as u64 * GRID;
            let end = start + block.len() as u64;
            while rest.start < rest.end && extents[rest.start].end() <= start {
                rest.start += 1;
            }
            let count = extents[rest.clone()].iter().take_while(|e| e.offset < end).count();
            let here = rest.start..rest.start + count;
            live += self.block(start, block, &extents[here.clone()], here, out);
        }
        live
    }

    fn block(&mut self, start: u64, block: &[u8], here: &[Extent], at: Range<usize>, out: &mut Vec<Change>) -> u64 {
        let same = &self.same[at];
        let end = start + block.len() as u64;
        let clip = |e: &Extent| e.offset.max(start)..e.end().min(end);
        if !here.is_empty() && same.iter().all(|same| *same) && zero_between(start, block, here) {
            return here.iter().map(clip).map(|r| r.end - r.start).sum();
        }
        self.runs.clear();
        nonzero_runs(block, MIN_GAP, &mut self.runs);
        let (mut live, mut at) = (0, start);
        let mut extents = here.iter().map(clip).peekable();
        for run in &self.runs {
            let (from, to) = (start + run.start as u64, start + run.end as u64);
            zero_gap(at..from, &mut extents, out);
            live += to - from;
            at = to;
            let in_map = |(e, same): (&Extent, &bool)| *same && e.offset == from && e.end() == to;
            if !here.iter().zip(same).any(in_map) {
                out.push(Change::Data { offset: from, len: to - from });
            }
        }
        zero_gap(at..end, &mut extents, out);
        live
    }
}

/// Whether `extent` is a whole frame within `bytes`, and its bytes are those that stand there now.
fn is_same(offset: u64, bytes: &[u8], extent: &Extent) -> bool {
    let Some(from) = extent.offset.checked_sub(offset) else { return false };
    let range = from as usize..(from + u64::from(extent.len)) as usize;
    extent.is_whole_frame() && bytes.get(range).is_some_and(|now| xxh3_128(now) == extent.frame.body.raw_digest)
}

/// Whether the block is zero wherever no extent lies.
fn zero_between(start: u64, block: &[u8], here: &[Extent]) -> bool {
    let mut at = 0;
    for e in here {
        let from = (e.offset.max(start) - start) as usize;
        if !is_zero(&block[at..from]) {
            return false;
        }
        at = ((e.end() - start) as usize).min(block.len());
    }
    is_zero(&block[at..])
}

/// `gap` is zero now: one entry from the first to the last byte in it that was live. What lies between is zero as well,
/// so that one entry says all. Takes from `extents` what ends within the gap.
pub(crate) fn zero_gap(
    gap: Range<u64>,
    extents: &mut Peekable<impl Iterator<Item = Range<u64>>>,
    out: &mut Vec<Change>,
) {
    let mut first = None;
    let mut last = gap.start;
    while let Some(e) = extents.peek().filter(|e| e.start < gap.end) {
        let (from, to) = (e.start.max(gap.start), e.end.min(gap.end));
        if from < to {
            first.get_or_insert(from);
            last = to;
        }
        if e.end > gap.end {
            break;
        }
        extents.next();
    }
    if let Some(offset) = first {
        out.push(Change::Zeros { offset, len: last - offset });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Codec, FrameBody, FrameRef};
    use crate::ids::{Generation, SegmentNo, SegmentRef};
    use proptest::prelude::*;

    const KIB: u64 = 1 << 10;

    fn extent(offset: u64, raw: &[u8]) -> Extent {
        let len = raw.len() as u32;
        let body =
            FrameBody { codec: Codec::Plain, raw_len: len, stored_len: len, stored_sum: 0, raw_digest: xxh3_128(raw) };
        let segment = SegmentRef::new(Generation::new(1), SegmentNo::new(1));
        Extent { offset, len, frame: FrameRef { segment, pos: 256, start: offset, body } }
    }

    fn compare(offset: u64, bytes: &[u8], extents: &[Extent]) -> (Vec<Change>, u64) {
        let mut out = Vec::new();
        let live = Comparer::default().compare(offset, bytes, extents, &mut out);
        (out, live)
    }

    /// The map after the changes, as the overlay of a segment makes it.
    fn apply(offset: u64, bytes: &[u8], extents: &[Extent], changes: &[Change]) -> Vec<Extent> {
        let mut map = extents.to_vec();
        for change in changes {
            let (&Change::Data { offset: from, len } | &Change::Zeros { offset: from, len }) = change;
            let to = from + len;
            let cut = |e: &Extent, from: u64, to: u64| {
                (from < to).then(|| Extent { offset: from, len: (to - from) as u32, ..*e })
            };
            map = map
                .iter()
                .flat_map(|e| [cut(e, e.offset, e.end().min(from)), cut(e, e.offset.max(to), e.end())])
                .flatten()
                .collect();
            if let Change::Data { .. } = change {
                map.push(extent(from, &bytes[(from - offset) as usize..(to - offset) as usize]));
            }
        }
        map.sort_by_key(|e| e.offset);
        map
    }

    /// Every extent is a whole frame of what stands there, and nothing but zeros lies between.
    fn assert_maps(offset: u64, bytes: &[u8], map: &[Extent]) {
        let mut at = offset;
        for e in map {
            assert!(e.is_whole_frame() && e.offset >= at && e.offset % 4096 == 0, "{map:?}");
            assert_eq!(e.offset / GRID, (e.end() - 1) / GRID, "crosses the grid");
            assert!(is_zero(&bytes[(at - offset) as usize..(e.offset - offset) as usize]), "data before {}", e.offset);
            assert_eq!(
                xxh3_128(&bytes[(e.offset - offset) as usize..(e.end() - offset) as usize]),
                e.frame.body.raw_digest
            );
            at = e.end();
        }
        assert!(is_zero(&bytes[(at - offset) as usize..]), "data after {at}");
    }

    #[test]
    fn a_new_disk_ships_its_data_and_not_its_zeros() {
        let mut bytes = vec![0; (GRID * 3 + 100) as usize];
        bytes[5000] = 1;
        bytes[GRID as usize..2 * GRID as usize].fill(2);
        bytes[3 * GRID as usize + 99] = 3;
        let (changes, live) = compare(0, &bytes, &[]);
        let data = |offset, len| Change::Data { offset, len };
        assert_eq!(changes, [data(4 * KIB, 4 * KIB), data(GRID, GRID), data(3 * GRID, 100)]);
        assert_eq!(live, 4 * KIB + GRID + 100);
        assert_eq!(compare(GRID, &[0; 1000], &[]), (vec![], 0));
        assert_eq!(compare(GRID, &[], &[]), (vec![], 0));
    }

    #[test]
    fn what_became_zero_is_told_and_what_stayed_is_not() {
        let base = 4 * GRID;
        let mut bytes = vec![7; 2 * GRID as usize];
        let map = apply(base, &bytes, &[], &compare(base, &bytes, &[]).0);
        assert_eq!(compare(base, &bytes, &map), (vec![], 2 * GRID));
        bytes[GRID as usize..].fill(0);
        assert_eq!(compare(base, &bytes, &map), (vec![Change::Zeros { offset: base + GRID, len: GRID }], GRID));
        bytes[GRID as usize + 40_960] = 1;
        let zeros = |from: u64, to: u64| Change::Zeros { offset: base + GRID + from, len: to - from };
        let data = Change::Data { offset: base + GRID + 40 * KIB, len: 4 * KIB };
        assert_eq!(compare(base, &bytes, &map).0, [zeros(0, 40 * KIB), data, zeros(44 * KIB, 256 * KIB)]);
    }

    #[test]
    fn frames_of_another_writer_are_recognised_and_parts_of_frames_are_shipped_again() {
        let bytes: Vec<u8> = (0..4 * GRID).map(|i| (i / 512 % 251 + 1) as u8).collect();
        let whole = [extent(0, &bytes)];
        assert_eq!(compare(0, &bytes, &whole), (vec![], 4 * GRID), "a frame of 1 MiB");
        let part = [Extent { len: 512, ..whole[0] }, Extent { offset: 512, len: (4 * GRID - 512) as u32, ..whole[0] }];
        let (changes, _) = compare(0, &bytes, &part);
        assert_eq!(changes.len(), 4);
        assert_maps(0, &bytes, &apply(0, &bytes, &part, &changes));
    }

    fn piece() -> impl Strategy<Value = Vec<(usize, usize, u8)>> {
        prop::collection::vec((0..130_usize, 1..40_usize, prop_oneof![Just(0), 1..4_u8]), 0..8)
    }

    proptest! {
        #[test]
        fn the_map_equals_the_bytes_after_any_changes_and_a_second_look_ships_nothing(
            rounds in prop::collection::vec(piece(), 1..6), tail in 1..5000_usize
        ) {
            let mut bytes = vec![0_u8; 128 * 4096 + tail];
            let mut map = Vec::new();
            for round in rounds {
                for (at, len, value) in round {
                    let from = (at * 4096 + at).min(bytes.len());
                    let to = (from + len * 4000).min(bytes.len());
                    bytes[from..to].fill(value);
                }
                let (changes, live) = compare(GRID, &bytes, &map);
                map = apply(GRID, &bytes, &map, &changes);
                assert_maps(GRID, &bytes, &map);
                prop_assert_eq!(live, map.iter().map(|e| u64::from(e.len)).sum::<u64>());
                prop_assert_eq!(compare(GRID, &bytes, &map), (vec![], live));
            }
        }
    }
}
